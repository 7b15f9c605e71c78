"""What all protocols share: a step for every series as it comes in, outputs that grow, and what failed and why."""

from __future__ import annotations

import logging
import os
import shlex

import pyworkflow.protocol.params as params
from pwem.protocols import EMProtocol
from pyworkflow.object import Set
from pyworkflow.protocol import ProtStreamingBase
from pyworkflow.protocol.constants import STEPS_PARALLEL
from pyworkflow.utils import makePath, redStr
from pyworkflow.utils.retry_streaming import retry_on_sqlite_lock
from tomo.objects import TiltImage, TiltSeries, Tomogram
from tomo.protocols.protocol_base import ProtTomoBase

from ..constants import FAILED, TOMOGRAMS
from ..series_files import Series, is_file_name, read_series, write_ctf

logger = logging.getLogger(__name__)

WHY = "failed.txt"
MAX_THREADS_OF_A_SERIES = 4


class ProtInrBase(EMProtocol, ProtTomoBase, ProtStreamingBase):
    """Runs a program of the engine on every series of a set, as soon as all inputs have it.

    A protocol of its own says what to do with a series (`process`) and what it adds to the outputs (`addOutput`).
    """

    _label: str | None = None
    stepsExecutionMode = STEPS_PARALLEL
    MAIN_OUTPUT = TOMOGRAMS

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._failures = {}

    # ------------------------------------------------- parameters --------------------------------------------------

    def _defineTiltSeriesParam(self, form, help, **options):
        form.addParam(
            "inputSetOfTiltSeries",
            params.PointerParam,
            pointerClass="SetOfTiltSeries",
            important=True,
            label="Tilt series",
            help=help,
            **options,
        )

    def _defineCtfParam(self, form, help):
        form.addParam(
            "inputSetOfCtfTomoSeries",
            params.PointerParam,
            pointerClass="SetOfCTFTomoSeries",
            allowsNull=True,
            label="CTF (optional)",
            help=help + " Series without a CTF in the set are left out.",
        )

    def _defineMoreOptions(self, form, program):
        form.addParam(
            "moreOptions",
            params.StringParam,
            default="",
            expertLevel=params.LEVEL_ADVANCED,
            label="More options",
            help=f"Options of {program} to add to the command line, see `{program} --help`.",
        )

    def _defineMachine(self, form, gpu, threads=3):
        form.addHidden(
            params.USE_GPU,
            params.BooleanParam,
            default=gpu,
            label="Use GPU",
            help="Without, no GPU is shown to the program and as many series run at a time as there are threads.",
        )
        form.addHidden(
            params.GPU_LIST,
            params.StringParam,
            default="0",
            label="GPU IDs",
            help="A series at a time runs on each of them; `0 1` for two.",
        )
        self._defineStreamingParams(form)
        form.addParallelSection(
            threads=threads,
            mpi=0,
            binThreads=MAX_THREADS_OF_A_SERIES,
            binThreadsHelp="Processor cores that the program may use for one series.",
        )

    # ------------------------------------------------- streaming ---------------------------------------------------

    def inputs(self):
        """The sets that must have a series before it is processed; the first one says which series there are."""
        ctf = self.inputSetOfCtfTomoSeries.get() if self.hasAttribute("inputSetOfCtfTomoSeries") else None
        return [self.inputSetOfTiltSeries.get()] + ([ctf] if ctf is not None else [])

    def process(self, ts_id: str) -> None:
        """Make the files of a series; any exception becomes the reason for its failure."""
        raise NotImplementedError

    def addOutput(self, ts_id: str) -> None:
        """Add a series that succeeded to the outputs; called under the lock."""
        raise NotImplementedError

    def stepsGeneratorStep(self):
        done = self._prepareOutputs()
        sets = self.inputs()
        started, last = set(done), []
        while True:
            with self._lock:
                for each in sets:
                    if each.isStreamOpen():
                        each.loadAllProperties()
                streaming = any(each.isStreamOpen() for each in sets)
                present = [list(each.getTSIds()) for each in sets]
            complete = set(present[0]).intersection(*present[1:])
            for ts_id in [each for each in present[0] if each in complete and each not in started]:
                started.add(ts_id)
                last.append(self._insertSeries(ts_id, self.processStep))
            if not streaming:
                break
            self._streamingSleepOnWait()
        for ts_id in [each for each in present[0] if each not in started]:
            last.append(self._insertSeries(ts_id, self.lackStep))
        self._insertFunctionStep(self.closeStep, prerequisites=last, needsGPU=False)

    def _insertSeries(self, ts_id, first):
        gpu = self.usesGpu() and first == self.processStep
        made = self._insertFunctionStep(first, ts_id, prerequisites=[], needsGPU=gpu)
        return self._insertFunctionStep(self.outputStep, ts_id, prerequisites=[made], needsGPU=False)

    def _prepareOutputs(self):
        """Forget failures of an earlier run, which are tried again; returns the series that are in the outputs."""
        if hasattr(self, FAILED):
            self.deleteOutput(getattr(self, FAILED))
        output = getattr(self, self.MAIN_OUTPUT, None)
        return [] if output is None else list(output.getTSIds())

    # ------------------------------------------------- steps -------------------------------------------------------

    def processStep(self, ts_id):
        try:
            makePath(self.folder(ts_id))
            why = self.folder(ts_id, WHY)
            if os.path.exists(why):
                os.remove(why)
            self.process(ts_id)
        except Exception as error:  # a series that fails must not take the others with it
            self._fail(ts_id, str(error))
            logger.error(redStr(f"{ts_id} failed: {error}"), exc_info=error)

    def lackStep(self, ts_id):
        if is_file_name(ts_id):
            makePath(self.folder(ts_id))
        self._fail(ts_id, "it is not in every input set")

    @retry_on_sqlite_lock(log=logger)
    def outputStep(self, ts_id):
        with self._lock:
            if ts_id in self._failures:
                self._addFailed(ts_id)
            else:
                self.addOutput(ts_id)

    def closeStep(self):
        self._closeOutputSet()
        if not self.isAnythingDone():
            reasons = "; ".join(f"{ts_id}: {why}" for ts_id, why in sorted(self._failures.items()))
            raise RuntimeError(f"No series succeeded. {reasons}")

    def isAnythingDone(self) -> bool:
        return getattr(self, self.MAIN_OUTPUT, None) is not None

    def _fail(self, ts_id, why):
        self._failures[ts_id] = why
        if not is_file_name(ts_id):
            return  # it has no folder; the log says it
        with open(self.folder(ts_id, WHY), "w") as file:
            file.write(why + "\n")

    # ------------------------------------------------- files and series --------------------------------------------

    def folder(self, ts_id, *names):
        """The folder of a series, ``extra/ID``, or a file in it. Raises ValueError for an ID that leads elsewhere."""
        if not is_file_name(ts_id):
            raise ValueError(f"its ID {ts_id!r} cannot be the name of a folder; rename the series")
        return self._getExtraPath(ts_id, *names)

    def log(self, ts_id):
        return self.folder(ts_id, "log.txt")

    def series(self, ts_id) -> Series:
        with self._lock:
            return read_series(self.inputSetOfTiltSeries.get().getItem(TiltSeries.TS_ID_FIELD, ts_id))

    def ctfFile(self, series: Series):
        """Text file with the CTF of a series, or None where no CTF is connected."""
        if not self.hasAttribute("inputSetOfCtfTomoSeries") or self.inputSetOfCtfTomoSeries.get() is None:
            return None
        path = self.folder(series.ts_id, f"{series.ts_id}_ctf.txt")
        with self._lock:
            count = write_ctf(series, self.inputSetOfCtfTomoSeries.get().getItem("_tsId", series.ts_id), path)
        if count == 0:
            raise ValueError("its CTF has none of its images (matched by order of acquisition)")
        return path

    def options(self):
        """The words of "More options"."""
        return shlex.split(self.moreOptions.get() or "")

    # ------------------------------------------------- outputs -----------------------------------------------------

    def _tiltSeriesSet(self, name, suffix=""):
        """An output set of tilt series, made at its first use."""
        output = getattr(self, name, None)
        if output is not None:
            output.enableAppend()
            return output
        output = self._createSetOfTiltSeries(suffix=suffix)
        output.copyInfo(self.inputSetOfTiltSeries.get())
        output.setStreamState(Set.STREAM_OPEN)
        output.write()  # so that nobody sees a set without properties
        self._defineOutputs(**{name: output})
        self._defineSourceRelation(self.inputSetOfTiltSeries, output)
        return output

    def _tomogramSet(self, sampling_A):
        output = getattr(self, TOMOGRAMS, None)
        if output is not None:
            output.enableAppend()
            return output
        source = self.inputSetOfTiltSeries.get()
        output = self._createSetOfTomograms()
        output.setAcquisition(source.getAcquisition())
        output.setSamplingRate(sampling_A)
        output.setStreamState(Set.STREAM_OPEN)
        output.write()
        self._defineOutputs(**{TOMOGRAMS: output})
        self._defineSourceRelation(self.inputSetOfTiltSeries, output)
        return output

    def _addTomogram(self, ts_id, path, sampling_A, ctf_corrected, angles_deg, halves=()):
        """Add a tomogram, with what the next protocols ask for: halves, tilt range, origin."""
        tilt_series = self.inputSetOfTiltSeries.get().getItem(TiltSeries.TS_ID_FIELD, ts_id)
        acquisition = tilt_series.getAcquisition().clone()
        acquisition.setAngleMin(min(angles_deg))
        acquisition.setAngleMax(max(angles_deg))
        output = self._tomogramSet(sampling_A)
        tomogram = Tomogram(tsId=ts_id)
        tomogram.setLocation(path)
        tomogram.setSamplingRate(sampling_A)
        tomogram.setOrigin(newOrigin=None)
        tomogram.setAcquisition(acquisition)
        tomogram.setCtfCorrected(ctf_corrected)
        tomogram.setHalfMaps(list(halves))
        output.append(tomogram)
        output.update(tomogram)
        output.write()
        self._store(output)
        output.close()

    def _copySeries(self, ts_id, output, change=lambda new: None, change_image=lambda image: None):
        """Append a copy of an input series to a set, with every image."""
        source = self.inputSetOfTiltSeries.get().getItem(TiltSeries.TS_ID_FIELD, ts_id)
        new = TiltSeries(tsId=ts_id)
        new.copyInfo(source)
        change(new)
        output.append(new)
        for image in source.iterItems():
            copy = TiltImage()
            copy.copyInfo(image, copyId=True)
            copy.setAcquisition(image.getAcquisition().clone())
            copy.setLocation(image.getLocation())
            change_image(copy)
            new.append(copy)
        new.write(properties=False)
        output.update(new)
        output.write()
        self._store(output)
        output.close()

    def _addFailed(self, ts_id):
        self._copySeries(ts_id, self._tiltSeriesSet(FAILED, suffix="Failed"))

    # ------------------------------------------------- information -------------------------------------------------

    def _validate(self):
        errors: list[str] = []
        self._validateThreads(errors)
        if self.usesGpu() and not self.getGpuList():
            errors.append("Use GPU is on, but the list of GPU IDs is empty.")
        return errors

    def _failureLines(self):
        """A line for every series that failed, for the summary: it runs in another process than the steps."""
        lines = []
        extra = self._getExtraPath()
        for ts_id in sorted(os.listdir(extra)) if os.path.isdir(extra) else []:
            why = self.folder(ts_id, WHY)
            if os.path.isfile(why):
                with open(why) as file:
                    lines.append(f"*{ts_id} failed*: {file.read().strip()}")
        return lines

    def _summary(self):
        output = getattr(self, self.MAIN_OUTPUT, None)
        lines = ["Nothing is ready yet."] if output is None else [f"Series done: {output.getSize()}"]
        return lines + self._failureLines()
