"""What the protocols that make tomograms from aligned series share: inr-recon and inr-infer take the same options."""

from __future__ import annotations

import pyworkflow.protocol.params as params
from tomo.objects import SetOfTiltSeries, SetOfTomograms

from ..constants import FAILED, TOMOGRAMS
from ..engine import run_program
from ..local_motion import alignment_for, find_run
from ..series_files import write_alignment, write_series
from .protocol_base import ProtInrBase

NM_IN_A = 10.0


class ProtInrVolumes(ProtInrBase):
    """Tomograms along the rays of an alignment: our own with its local motion, or that of the set."""

    _label: str | None = None
    _possibleOutputs = {TOMOGRAMS: SetOfTomograms, FAILED: SetOfTiltSeries}
    PROGRAM = ""

    # ------------------------------------------------- parameters --------------------------------------------------

    def _defineInput(self, form, ctf_help):
        form.addSection(label="Input")
        self._defineTiltSeriesParam(form, "Aligned, not interpolated tilt series. Disabled images are left out.")
        self._defineCtfParam(form, ctf_help)

    def _defineTomogramParams(self, form):
        form.addParam("binning", params.IntParam, default=4, label="Binning")
        form.addParam(
            "thickness",
            params.FloatParam,
            allowsNull=True,
            label="Thickness (nm)",
            help="Of the sample. Empty: what inr - align tilt series found for each series, or 300.",
        )
        form.addParam(
            "halves",
            params.BooleanParam,
            default=True,
            label="Half maps",
            help="For denoising and Fourier shell correlation, of odd and even frames if the tilt series have them, "
            "otherwise of every other tilt. Takes three times as long.",
        )
        form.addParam(
            "normalize",
            params.BooleanParam,
            default=False,
            label="Normalize",
            help="Mean 0 and standard deviation 1, as denoisers want it.",
        )
        form.addParam(
            "positive",
            params.BooleanParam,
            default=False,
            label="Protein bright",
            help="Whatever it is in the images. Off: as in the images.",
        )

    # ------------------------------------------------- a series ----------------------------------------------------

    def tomogram(self, ts_id, ending=""):
        return self.folder(ts_id, f"{ts_id}_tomogram{ending}.mrc")

    def ownArguments(self, ctf):
        """Words that only this protocol's program takes; ``ctf``: whether a CTF is given."""
        raise NotImplementedError

    def process(self, ts_id):
        series = self.series(ts_id)
        stack, out = write_series(series, self.folder(ts_id)), self.tomogram(ts_id)
        words = [stack, *self._alignment(series), "-o", out, "--pixel-size", series.sampling_A]
        words += ["--bin", self.binning.get(), "--orientation", "xyz", "--overwrite"]
        if series.disabled:
            words += ["--exclude", ",".join(map(str, series.disabled))]
        for flag, wanted in (("--halves", self.halves), ("--normalize", self.normalize)):
            words += [flag] if wanted else []
        if self.positive:
            words += ["--contrast", "positive"]
        ctf = self.ctfFile(series)
        if ctf is not None:
            words += ["--ctf", ctf, "--voltage", series.voltage_kV]
        words += self.ownArguments(ctf is not None)
        run_program(self, self.PROGRAM, words + self.options(), out, self.log(ts_id))

    def _alignment(self, series):
        """The alignment of a series and the thickness that goes with it, as words of the command line."""
        run = find_run(series)
        folder = self.folder(series.ts_id, "alignment")
        if run is None:
            self.info(f"{series.ts_id}: no run of inr-align in this project made its alignment; it has no local motion")
            words, thickness = [write_alignment(series, folder)], self.thickness.get()
        else:
            self.info(f"{series.ts_id}: alignment and local motion from {run.folder}")
            words, thickness = [alignment_for(series, run, folder)], self.thickness.get()
            if thickness is None:
                # a folder of inr-align says it by itself, the lines of fewer images do not
                thickness = round(run.specimen_px * run.sampling_A / NM_IN_A, 2)
        return words if thickness is None else [*words, "--thickness", thickness]

    # ------------------------------------------------- outputs -----------------------------------------------------

    def addOutput(self, ts_id):
        series = self.series(ts_id)
        corrected = self.inputSetOfCtfTomoSeries.get() is not None or self.inputSetOfTiltSeries.get().ctfCorrected()
        halves = [self.tomogram(ts_id, ending) for ending in ("_odd", "_even")] if self.halves else []
        angles = [view.tilt_deg for view in series.views if view.enabled]
        sampling = series.sampling_A * self.binning.get()
        self._addTomogram(ts_id, self.tomogram(ts_id), sampling, corrected, angles, halves)

    # ------------------------------------------------- information -------------------------------------------------

    def _validate(self):
        errors = super()._validate()
        if self.binning.get() < 1:
            errors.append("The binning must be 1 or more.")
        source = self.inputSetOfTiltSeries.get()
        if source is None:
            return errors
        if not source.hasAlignment():
            errors.append("The tilt series have no alignment. Align them first, or connect an aligned set.")
        if source.interpolated():
            errors.append("The tilt series are interpolated. Connect the raw ones with their alignment.")
        return errors

    def _warnings(self):
        source = self.inputSetOfTiltSeries.get()
        if source is not None and source.ctfCorrected() and self.inputSetOfCtfTomoSeries.get() is not None:
            return ["The tilt series are CTF corrected already: with the CTF connected it is corrected twice."]
        return []
