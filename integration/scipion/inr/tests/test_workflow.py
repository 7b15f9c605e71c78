"""Import, align, reconstruct, report and infer in a project of Scipion, with a series whose truth is known.

The engine is the one that `INR_ENV_ACTIVATION` or `INR_HOME` gives; its `inr-simulate` makes the series.
"""

import json
import os
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import mrcfile
import numpy as np
import pyworkflow as pw
from pyworkflow.tests import BaseTest, setupTestProject
from tomo.objects import CTFTomo, CTFTomoSeries, SetOfCTFTomoSeries
from tomo.protocols import ProtImportTs

from inr import Plugin
from inr.constants import INR_ENV_ACTIVATION
from inr.local_motion import find_run
from inr.protocols import ProtInrAlign, ProtInrInfer, ProtInrReconstruct, ProtInrReport
from inr.series_files import read_series, write_alignment
from inr.viewers import InrAlignViewer, InrReportViewer, InrTomogramViewer
from inr.wizards import InrThicknessWizard

SIZE, PIXEL_A, AXIS_DEG, BINNING = 96, 10.0, 5.0, 2
SIMULATED = f"--size {SIZE} {SIZE} --thickness 30 --tilt-step 8 --snr 10 --shifts 4 --warp 1 --beads 4 --overwrite"
TILTS = 15
MAX_ERROR_PX = 0.7
DISABLED = 2  # index in the stack, from 0

INFER_DOUBLE = """#!/bin/sh
# stands in for inr-infer where the engine has no weights or no such program: inr-recon takes the same options
exec inr-recon "$@"
"""


def engine(*words):
    """Run a program of the engine, here."""
    command = f"{Plugin.getActivation()} && " + " ".join(shlex.quote(str(word)) for word in words)
    done = subprocess.run(["bash", "-c", command], env=Plugin.getEnviron(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class TestInrWorkflow(BaseTest):
    @classmethod
    def setUpClass(cls):
        pw.Config.getDomain().getPlugins()
        problems = Plugin.validateInstallation()
        assert not problems, problems
        setupTestProject(cls)
        cls.raw, cls.truth = os.path.abspath("raw"), os.path.abspath("truth")
        os.makedirs(cls.raw)
        engine("inr-simulate", "-o", cls.truth, "--base", "TS_01", "--tilt-axis", AXIS_DEG, *SIMULATED.split())
        for ending in (".mrc", ".rawtlt"):
            shutil.copy(os.path.join(cls.truth, "TS_01" + ending), cls.raw)
        # nothing is recorded in the second one
        with mrcfile.open(os.path.join(cls.raw, "TS_01.mrc")) as mrc:
            blank = np.zeros_like(mrc.data)
        with mrcfile.new(os.path.join(cls.raw, "TS_02.mrc")) as mrc:
            mrc.set_data(blank)
        shutil.copy(os.path.join(cls.raw, "TS_01.rawtlt"), os.path.join(cls.raw, "TS_02.rawtlt"))
        cls._double_for_infer()
        cls.imported = cls._run_import()
        cls.align = cls._run_align()

    @classmethod
    def _double_for_infer(cls):
        call = f"{Plugin.getActivation()} && command -v inr-infer"
        if subprocess.run(["bash", "-c", call], env=Plugin.getEnviron(), capture_output=True).returncode == 0:
            return
        folder = os.path.abspath("double")
        os.makedirs(folder)
        with open(os.path.join(folder, "inr-infer"), "w") as file:
            file.write(INFER_DOUBLE)
        os.chmod(file.name, 0o755)
        os.environ[INR_ENV_ACTIVATION] = f"{Plugin.getActivation()} && export PATH=$PATH:{shlex.quote(folder)}"
        Plugin._vars[INR_ENV_ACTIVATION] = os.environ[INR_ENV_ACTIVATION]

    @classmethod
    def _run_import(cls):
        prot = cls.newProtocol(
            ProtImportTs,
            filesPath=cls.raw,
            filesPattern="{TS}.mrc",
            anglesFrom=2,  # the .rawtlt beside the stack
            voltage=300,
            magnification=50000,
            samplingRate=PIXEL_A,
            doseInitial=0,
            dosePerFrame=3,
            tiltAxisAngle=AXIS_DEG,
        )
        cls.launchProtocol(prot)
        return prot

    @classmethod
    def _run_align(cls):
        prot = cls.newProtocol(
            ProtInrAlign,
            fast=True,
            makeTomograms=True,
            useGpu=False,
            binning=BINNING,
            numberOfThreads=3,
            binThreads=1,
            objLabel="align",
        )
        prot.inputSetOfTiltSeries.set(cls.imported)
        prot.inputSetOfTiltSeries.setExtended(ProtImportTs.OUTPUT_NAME)
        assert prot.validate() == [], prot.validate()
        cls.launchProtocol(prot)
        return prot

    def launch(self, protocol_class, **values):
        prot = self.newProtocol(protocol_class, numberOfThreads=3, binThreads=1, **values)
        prot.inputSetOfTiltSeries.set(self.align)
        prot.inputSetOfTiltSeries.setExtended("TiltSeries")
        self.assertEqual(prot.validate(), [])
        self.launchProtocol(prot)
        return prot

    # -------------------------------------------------------------------------------------------------------------

    def test_1_align(self):
        aligned = self.align.TiltSeries
        self.assertEqual(sorted(aligned.getTSIds()), ["TS_01"])
        self.assertTrue(aligned.hasAlignment() and not aligned.interpolated() and aligned.isStreamClosed())
        for tilt_series in aligned.iterItems():
            series = read_series(tilt_series)
            self.assertEqual([view.order for view in series.views], list(range(1, TILTS + 1)))
            self.assertAlmostEqual(tilt_series.getAcquisition().getTiltAxisAngle(), AXIS_DEG, delta=1.5)
            # from the set alone, through our conventions, against the truth
            written = write_alignment(series, f"compare/{series.ts_id}")
            truth = os.path.join(self.truth, f"{series.ts_id}_truth.json")
            engine("inr-compare", written, truth, "-o", f"compare/{series.ts_id}/error")
            with open(f"compare/{series.ts_id}/error.json") as file:
                error = json.load(file)
            print(series.ts_id, {k: v for k, v in error.items() if not isinstance(v, (list, dict))})
            self.assertLess(error["rms_px"], MAX_ERROR_PX)

    def test_1_align_failed(self):
        failed = self.align.FailedTiltSeries
        self.assertEqual(list(failed.getTSIds()), ["TS_02"])
        for tilt_series in failed.iterItems():
            self.assertEqual(tilt_series.getSize(), TILTS)
        summary = "\n".join(self.align.summary())
        self.assertIn("TS_02 failed", summary)
        self.assertIn("inr-align: ", summary)
        self.assertIn("TS_01: residual", summary)

    def test_1_align_tomograms(self):
        self.check_tomograms(self.align.Tomograms, halves=False)

    def test_1_environment(self):
        """The program runs in its own environment, without GPU unless asked for, with its share of the cores."""
        with open(self.align.getStdoutLog()) as file:
            log = file.read()
        self.assertIn("CUDA_VISIBLE_DEVICES= inr-align", log)
        self.assertIn("OMP_NUM_THREADS=1", log)

    def test_2_reconstruct(self):
        self._disable(DISABLED)
        prot = self.launch(ProtInrReconstruct, binning=BINNING, halves=True, gpuList="7", useGpu=True)
        self.check_tomograms(prot.Tomograms, halves=True)
        with open(prot.log("TS_01")) as file:
            call = file.readline()
        with open(prot.getStdoutLog()) as file:
            log = file.read()
        self.assertIn(f"--exclude {DISABLED}", call)
        self.assertIn(self.align.folder("TS_01"), call, "the run with its local motion is found again")
        self.assertIn("CUDA_VISIBLE_DEVICES=7 inr-recon", log)
        (view,) = InrTomogramViewer(project=self.proj)._visualize(prot)
        self.check_page(view.path, "TS_01/TS_01_tomogram_live.png")
        type(self).reconstructed = prot

    def test_3_report(self):
        prot = self.newProtocol(ProtInrReport, numberOfThreads=3, binThreads=1)
        for name, source, output in (
            ("inputSetOfTiltSeries", self.align, "TiltSeries"),
            ("inputTomograms", self.reconstructed, "Tomograms"),
        ):
            getattr(prot, name).set(source)
            getattr(prot, name).setExtended(output)
        self.assertEqual(prot.validate(), [])
        self.launchProtocol(prot)
        self.assertEqual(prot.FSCs.getSize(), 1)
        for curve in prot.FSCs.iterItems():
            frequency, value = curve.getData()
            self.assertEqual(len(frequency), len(value))
            self.assertGreater(value[0], 0.5)
        summary = "\n".join(prot.summary())
        self.assertIn("half maps agree to", summary)
        (view,) = InrReportViewer(project=self.proj)._visualize(prot)
        self.check_page(view.path, "TS_01/TS_01_report.html")
        self.assertGreater(os.path.getsize(prot.report("TS_01")), 50_000)

    def test_4_infer_with_ctf(self):
        self._add_ctf()
        prot = self.newProtocol(
            ProtInrInfer, useGpu=False, binning=BINNING, halves=False, numberOfThreads=3, binThreads=1
        )
        for name, output in (("inputSetOfTiltSeries", "TiltSeries"), ("inputSetOfCtfTomoSeries", "CTFTomoSeries")):
            getattr(prot, name).set(self.align)
            getattr(prot, name).setExtended(output)
        self.assertEqual(prot.validate(), [])
        self.launchProtocol(prot)
        self.check_tomograms(prot.Tomograms, halves=False)
        self.assertTrue(prot.Tomograms.ctfCorrected())
        with open(prot.log("TS_01")) as file:
            self.assertIn(f"--ctf {prot.folder('TS_01', 'TS_01_ctf.txt')}", file.readline())
        rows = np.loadtxt(prot.folder("TS_01", "TS_01_ctf.txt"))
        self.assertEqual(rows[:, 1].tolist(), [20000.0 + order for order in range(1, TILTS + 1)])

    def test_5_pictures_and_thickness(self):
        (view,) = InrAlignViewer(project=self.proj)._visualize(self.align)
        self.check_page(view.path, "TS_01/TS_01_alignment.png", "TS_01/TS_01_residual.png")
        with open(view.path) as file:
            self.assertIn("inr-align: ", file.read(), "why the other one failed")
        form = SimpleNamespace(protocol=self.newProtocol(ProtInrReconstruct), values={})
        form.setVar = form.values.__setitem__
        form.protocol.inputSetOfTiltSeries.set(self.align)
        form.protocol.inputSetOfTiltSeries.setExtended("TiltSeries")
        InrThicknessWizard().show(form)
        self.assertTrue(15 < form.values["thickness"] < 45, form.values)

    def test_6_alignment_of_others(self):
        """Matrices that no run of ours made are used as they are; nothing is borrowed from a run."""
        aligned = self.align.TiltSeries
        for tilt_series in aligned.iterItems():
            series = read_series(tilt_series)
            self.assertIsNotNone(find_run(series))
            for view in series.views:
                view.matrix[0, 2] += 1.0
            self.assertIsNone(find_run(series))

    # -------------------------------------------------------------------------------------------------------------

    def check_tomograms(self, tomograms, halves):
        self.assertEqual(sorted(tomograms.getTSIds()), ["TS_01"])
        self.assertAlmostEqual(tomograms.getSamplingRate(), PIXEL_A * BINNING)
        for tomogram in tomograms.iterItems():
            nx, ny, nz = tomogram.getDim()
            self.assertEqual((nx, ny), (SIZE // BINNING, SIZE // BINNING))
            self.assertLess(nz, nx)
            self.assertEqual(tomogram.hasHalfMaps(), halves)
            for path in [tomogram.getFileName(), *(tomogram.getHalfMaps(asList=True) if halves else [])]:
                with mrcfile.open(path) as mrc:
                    self.assertGreater(mrc.data.std(), 0)
                    self.assertAlmostEqual(float(mrc.voxel_size.x), PIXEL_A * BINNING, places=3)
            x, y, z = tomogram.getShiftsFromOrigin()
            self.assertAlmostEqual(x, -nx / 2 * PIXEL_A * BINNING)
            self.assertAlmostEqual(z, -nz / 2 * PIXEL_A * BINNING)
            acquisition = tomogram.getAcquisition()
            self.assertLess(acquisition.getAngleMin(), -50)
            self.assertGreater(acquisition.getAngleMax(), 50)

    def check_page(self, page, *names):
        """A page refers to files, and they are there."""
        with open(page) as file:
            text = file.read()
        for name in names:
            self.assertIn(f'="{name}"', text)
            self.assertTrue(os.path.isfile(os.path.join(os.path.dirname(page), name)), name)

    def _add_ctf(self):
        """A CTF for every image, as another output of the align protocol."""
        whole = SetOfCTFTomoSeries.create(self.align._getPath(), template="ctf")
        whole.setSetOfTiltSeries(self.align.TiltSeries)
        series = CTFTomoSeries(tsId="TS_01")
        whole.append(series)
        for order in range(1, TILTS + 1):
            ctf = CTFTomo(index=order, acqOrder=order)
            ctf.setStandardDefocus(20000.0 + order, 20000.0, 0.0)
            series.append(ctf)
        series.write(properties=False)
        whole.update(series)
        whole.write()
        self.align._defineOutputs(CTFTomoSeries=whole)
        self.proj._storeProtocol(self.align)

    def _disable(self, index):
        """Disable an image of the first series in the aligned set, as the viewer does."""
        aligned = self.align.TiltSeries
        tilt_series = aligned.getItem("_tsId", "TS_01")
        for image in list(image.clone() for image in tilt_series.iterItems()):
            if image.getIndex() == index + 1:
                image.setEnabled(False)
                tilt_series.update(image)
        tilt_series.write()
        aligned.update(tilt_series)
        aligned.write()
        aligned.close()
