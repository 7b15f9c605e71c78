"""Is this alignment good: pages by ``inr-report``, and Fourier shell correlation by ``inr-fsc``."""

from __future__ import annotations

import json
import os

import pyworkflow.protocol.params as params
from pwem.objects import FSC, SetOfFSCs
from tomo.objects import SetOfTiltSeries, Tomogram

from ..constants import FAILED, FSCS
from ..engine import run_program
from ..local_motion import find_run
from ..pages import report_page
from .protocol_base import ProtInrBase


class ProtInrReport(ProtInrBase):
    """A page for every series - movie, slices, plots, a verdict - and the resolution of its half maps.

    The tilt series are those of *inr - align tilt series*. With tomograms that have half maps connected, their Fourier
    shell correlation is computed (output FSCs) and is on the page, too.
    """

    _label = "report and FSC"
    _possibleOutputs = {FSCS: SetOfFSCs, FAILED: SetOfTiltSeries}
    MAIN_OUTPUT = FSCS

    # ------------------------------------------------- parameters --------------------------------------------------

    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineTiltSeriesParam(form, "As aligned by inr - align tilt series.")
        form.addParam(
            "inputTomograms",
            params.PointerParam,
            pointerClass="SetOfTomograms",
            allowsNull=True,
            label="Tomograms (optional)",
            help="Sliced on the page; with half maps also their Fourier shell correlation.",
        )
        form.addParam(
            "mask",
            params.EnumParam,
            choices=["slab", "box"],
            default=0,
            label="Mask for the FSC",
            help="The slab that holds the specimen, or the whole box; both with soft edges.",
        )
        self._defineMoreOptions(form, "inr-fsc")
        self._defineMachine(form, gpu=False)

    # ------------------------------------------------- a series ----------------------------------------------------

    def inputs(self):
        tomograms = self.inputTomograms.get()
        return super().inputs() + ([tomograms] if tomograms is not None else [])

    def process(self, ts_id):
        series = self.series(ts_id)
        run = find_run(series)
        tomogram = self._tomogram(ts_id)
        halves = list(tomogram.getHalfMaps(asList=True)) if tomogram is not None and tomogram.hasHalfMaps() else []
        if halves:
            used = [view.tilt_deg for view in series.views if view.enabled]
            words = [*halves, "-o", self.fsc(ts_id, ""), "--mask", self.getEnumText("mask")]
            # one word: an angle below zero would be taken for an option
            words += [f"--tilts={min(used):.2f},{max(used):.2f}", "--overwrite"]
            run_program(self, "inr-fsc", words + self.options(), self.fsc(ts_id), self.log(ts_id))
        if run is None:
            if not halves:
                raise ValueError("no run of inr - align tilt series made its alignment, so there is nothing to report")
            return
        words = [run.folder, "-o", self.folder(ts_id, ts_id), "--stack", f"{run.base}.mrc", "--overwrite"]
        if tomogram is not None:
            words += ["--tomogram", tomogram.getFileName()]
        if halves:
            words += ["--fsc", self.fsc(ts_id)]
        run_program(self, "inr-report", words, self.report(ts_id), self.log(ts_id))

    def _tomogram(self, ts_id):
        if self.inputTomograms.get() is None:
            return None
        with self._lock:
            return self.inputTomograms.get().getItem(Tomogram.TS_ID_FIELD, ts_id).clone()

    def fsc(self, ts_id, ending=".json"):
        return self.folder(ts_id, f"{ts_id}_fsc{ending}")

    def report(self, ts_id, ending=".html"):
        return self.folder(ts_id, f"{ts_id}_report{ending}")

    # ------------------------------------------------- outputs -----------------------------------------------------

    def _prepareOutputs(self):
        """All pages are made anew: they are quick, and their files are replaced."""
        if hasattr(self, FSCS):
            self.deleteOutput(getattr(self, FSCS))
        super()._prepareOutputs()
        return []

    def addOutput(self, ts_id):
        if not os.path.exists(self.fsc(ts_id)):
            return
        with open(self.fsc(ts_id)) as file:
            values = json.load(file)
        curve = FSC(objLabel=ts_id)
        curve.setData(*known(values["frequency_per_A"], values["curves"][values["curve"]]["correlation"]))
        output = getattr(self, FSCS, None)
        if output is None:
            output = self._createSetOfFSCs()
            output.setStreamState(output.STREAM_OPEN)
            self._defineOutputs(**{FSCS: output})
            self._defineSourceRelation(self.inputTomograms, output)
        else:
            output.enableAppend()
        output.append(curve)
        output.write()
        self._store(output)
        output.close()

    def closeStep(self):
        report_page(self)
        super().closeStep()

    def isAnythingDone(self):
        with self._lock:
            names = list(self.inputSetOfTiltSeries.get().getTSIds())
        return any(os.path.exists(path) for name in names for path in (self.report(name), self.fsc(name)))

    # ------------------------------------------------- information -------------------------------------------------

    def _validate(self):
        errors = super()._validate()
        source = self.inputSetOfTiltSeries.get()
        if source is not None and not source.hasAlignment():
            errors.append("The tilt series have no alignment to report on.")
        return errors

    def _summary(self):
        lines = []
        extra = self._getExtraPath()
        for ts_id in sorted(os.listdir(extra)) if os.path.isdir(extra) else []:
            words = [f"{ts_id}:"]
            if os.path.isfile(self.report(ts_id, ".json")):
                with open(self.report(ts_id, ".json")) as file:
                    values = json.load(file)
                words.append(f"*{values['verdict']}* ({'; '.join(values['reasons'])})")
            if os.path.isfile(self.fsc(ts_id)):
                with open(self.fsc(ts_id)) as file:
                    resolution = json.load(file)["resolution_A"]
                words.append("no resolution" if resolution is None else f"half maps agree to {resolution:.1f} A")
            if len(words) > 1:
                lines.append(" ".join(words))
        return (lines or ["Nothing is ready yet."]) + self._failureLines()


def known(frequencies, values):
    """The shells in which a curve has a value."""
    pairs = [(f, v) for f, v in zip(frequencies, values) if v is not None]
    return [f for f, _ in pairs], [v for _, v in pairs]
