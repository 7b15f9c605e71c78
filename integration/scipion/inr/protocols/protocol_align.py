"""Alignment by ``inr-align``."""

from __future__ import annotations

import json
import os
import statistics

import pyworkflow.protocol.params as params
from tomo.objects import SetOfTiltSeries, SetOfTomograms

from ..constants import FAILED, TILT_SERIES, TOMOGRAMS
from ..conventions import matrix_of_line, read_angles, read_xf, tilt_axis_angle
from ..engine import run_program
from ..local_motion import write_record
from ..series_files import angles_path, write_alignment, write_series
from .protocol_base import ProtInrBase

ALIGN_2D = "2D"
IDENTITY = (1, 0, 0, 1, 0, 0)


class ProtInrAlign(ProtInrBase):
    """Aligns tilt series without fiducial markers, local sample motion included.

    A density, held by an implicit neural representation, and the motion of every tilt are fitted together to the raw
    images. Scipion's sets hold a matrix and an angle for every image: these are the output, and any protocol can use
    them. The local motion stays beside the set, and *inr - reconstruct tomograms* finds it there by itself.

    Images without signal and outliers are found and disabled in the output. A series that cannot be aligned goes to
    FailedTiltSeries; the summary says why.
    """

    _label = "align tilt series"
    _possibleOutputs = {TILT_SERIES: SetOfTiltSeries, TOMOGRAMS: SetOfTomograms, FAILED: SetOfTiltSeries}
    MAIN_OUTPUT = TILT_SERIES

    # ------------------------------------------------- parameters --------------------------------------------------

    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineTiltSeriesParam(form, "Raw tilt series: not interpolated. Disabled images are left out.")
        self._defineCtfParam(form, "Restores the low frequencies with the measured defocus instead of an estimate.")
        form.addParam(
            "tiltAxis",
            params.FloatParam,
            allowsNull=True,
            label="Tilt axis (deg)",
            help="From the image's +y, counter-clockwise positive. Empty: that of the acquisition. Off by 180 degrees "
            "it mirrors the tomogram.",
        )
        form.addParam(
            "searchAxis",
            params.BooleanParam,
            default=False,
            label="Search for the tilt axis",
            help="For an axis that nobody wrote down.",
        )
        form.addParam(
            "thickness",
            params.FloatParam,
            allowsNull=True,
            label="Thickness of the sample (nm)",
            help="Empty: estimated.",
        )
        form.addSection(label="Alignment")
        form.addParam(
            "fast",
            params.BooleanParam,
            default=False,
            label="Tracks only",
            help="Feature tracks and bundle adjustment: seconds instead of minutes, no local motion.",
        )
        form.addParam(
            "localMotion",
            params.BooleanParam,
            default=True,
            condition="not fast",
            label="Local motion",
            help="Fit a smooth deformation of every image, too. It is kept only where held-out pixels agree better.",
        )
        form.addParam(
            "refine",
            params.BooleanParam,
            default=False,
            label="Refine the input's alignment",
            help="Start from the matrices and angles of the input instead of from correlation and tracks.",
        )
        form.addParam(
            "level",
            params.BooleanParam,
            default=True,
            label="Level and centre the specimen",
            help="Turns the specimen flat by an offset of the tilt angles and an x-axis tilt. Scipion's sets cannot "
            "hold the x-axis tilt; reconstruct tomograms of this plugin uses it all the same.",
        )
        form.addParam(
            "workingSize",
            params.IntParam,
            default=640,
            expertLevel=params.LEVEL_ADVANCED,
            label="Working size (px)",
            help="Images are binned until their longer side is at most this.",
        )
        form.addParam(
            "seed", params.IntParam, default=0, expertLevel=params.LEVEL_ADVANCED, label="Seed of everything random"
        )
        self._defineMoreOptions(form, "inr-align")
        form.addSection(label="Tomograms")
        form.addParam(
            "makeTomograms",
            params.BooleanParam,
            default=False,
            label="Reconstruct tomograms",
            help="By weighted back-projection through the local motion. For other methods, half maps and CTF "
            "correction, use reconstruct tomograms.",
        )
        form.addParam(
            "binning", params.IntParam, default=4, condition="makeTomograms", label="Binning of the tomograms"
        )
        self._defineMachine(form, gpu=True)

    # ------------------------------------------------- a series ----------------------------------------------------

    def process(self, ts_id):
        series, folder = self.series(ts_id), self.folder(ts_id)
        stack = write_series(series, folder)
        write_record(series, folder)
        run_program(self, "inr-align", self._arguments(series, stack), self.folder(ts_id, f"{ts_id}_align.json"),
                    self.log(ts_id))  # fmt: skip
        if self.makeTomograms:
            words = [stack, folder, "-o", self._tomogram(ts_id), "--method", "fbp", "--bin", self.binning.get()]
            words += ["--orientation", "xyz", "--pixel-size", series.sampling_A, "--overwrite"]
            run_program(self, "inr-recon", words, self._tomogram(ts_id), self.log(ts_id))

    def _arguments(self, series, stack):
        folder = self.folder(series.ts_id)
        words = [stack, "-o", folder, "--tilt-angles", angles_path(series, folder), "--resume"]
        words += ["--pixel-size", series.sampling_A, "--tilt-axis", self._axis(series)]
        words += ["--working-size", self.workingSize.get(), "--seed", self.seed.get()]
        if self.thickness.get() is not None:
            words += ["--thickness", self.thickness.get()]
        if series.disabled:
            words += ["--exclude", ",".join(map(str, series.disabled))]
        ctf = self.ctfFile(series)
        if ctf is not None:
            words += ["--defocus", ctf]
        if self.refine:
            words += ["--start", write_alignment(series, self.folder(series.ts_id, "start"))]
        if self.fast:
            words.append("--fast")
        elif not self.localMotion:
            words += ["--warp", "none"]
        if not self.level:
            words.append("--no-level")
        return words + self.options()

    def _axis(self, series):
        if self.searchAxis:
            return "auto"
        axis = self.tiltAxis.get()
        if axis is None:
            axis = series.axis_deg
        if axis is None:
            raise ValueError("its tilt axis is not known; give it, or search for it")
        return axis

    def _tomogram(self, ts_id):
        return self.folder(ts_id, f"{ts_id}_tomogram.mrc")

    # ------------------------------------------------- outputs -----------------------------------------------------

    def addOutput(self, ts_id):
        series = self.series(ts_id)
        base = self.folder(ts_id, ts_id)
        matrices, tilts = read_xf(f"{base}.xf"), read_angles(f"{base}.tlt")
        with open(f"{base}_align.json") as file:
            left_out = {entry["tilt"] for entry in json.load(file)["excluded_tilts"]}
        used = [k for k in range(len(tilts)) if k not in left_out]
        axis = statistics.median(tilt_axis_angle(matrices[k]) for k in used)
        place = {view.order: k for k, view in enumerate(series.views)}

        def change(new):
            new.setAlignment(ALIGN_2D)
            acquisition = new.getAcquisition()
            acquisition.setTiltAxisAngle(axis)
            acquisition.setAngleMin(min(tilts[k] for k in used))
            acquisition.setAngleMax(max(tilts[k] for k in used))

        def change_image(image):
            k = place[image.getAcquisitionOrder()]
            image.setTiltAngle(tilts[k])
            image.getAcquisition().setTiltAxisAngle(axis)
            image.setEnabled(k not in left_out)
            # all images have a matrix or none: a set takes its columns from the first one
            image.setTransform(_transform(matrices[k] if k not in left_out else matrix_of_line(IDENTITY)))

        output = self._tiltSeriesSet(TILT_SERIES)
        output.setAlignment(ALIGN_2D)
        self._copySeries(ts_id, output, change, change_image)
        if self.makeTomograms:
            sampling = series.sampling_A * self.binning.get()
            self._addTomogram(ts_id, self._tomogram(ts_id), sampling, False, [tilts[k] for k in used])

    # ------------------------------------------------- information -------------------------------------------------

    def _validate(self):
        errors = super()._validate()
        source = self.inputSetOfTiltSeries.get()
        if source is None:
            return errors
        if source.interpolated():
            errors.append("The tilt series are interpolated: aligned already, with blurred images. Give the raw ones.")
        if self.refine and not source.hasAlignment():
            errors.append("The tilt series have no alignment to refine.")
        if not self.searchAxis and self.tiltAxis.get() is None and source.getAcquisition().getTiltAxisAngle() is None:
            errors.append("The tilt axis is not known from the acquisition: give it, or search for it.")
        if self.makeTomograms and self.binning.get() < 1:
            errors.append("The binning must be 1 or more.")
        return errors

    def _warnings(self):
        source = self.inputSetOfTiltSeries.get()
        if source is not None and source.ctfCorrected() and self.inputSetOfCtfTomoSeries.get() is not None:
            return ["The tilt series are CTF corrected already; do not connect a CTF, too."]
        return []

    def _summary(self):
        lines = super()._summary()
        for ts_id in _folders(self._getExtraPath()):
            path = self.folder(ts_id, f"{ts_id}_align.json")
            if os.path.isfile(path):
                with open(path) as file:
                    values = json.load(file)
                lines.append(
                    f"{ts_id}: residual {values['residual_rms_px']:.2f} px, axis {values['tilt_axis_deg']:.2f} deg, "
                    f"sample {values['thickness_nm']:.0f} nm thick, {len(values['excluded_tilts'])} images left out"
                )
        return lines

    def _methods(self):
        motion = "" if self.fast or not self.localMotion else ", local motion included,"
        return [f"Tilt series were aligned{motion} with inr-align (inrtomo)."]


def _transform(matrix):
    from pwem.objects import Transform

    return Transform(matrix=matrix)


def _folders(path):
    """Names of the folders in a folder, sorted; none where it is not there."""
    if not os.path.isdir(path):
        return []
    return sorted(name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name)))
