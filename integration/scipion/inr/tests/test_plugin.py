"""What Scipion finds of the plugin, its template, its installer, and how it chooses GPUs."""

import os
import re
import subprocess
import sys
import zipfile

import pytest
import pyworkflow as pw
from pyworkflow.project import Manager

import inr
from inr import Plugin, constants, engine, protocols

NAMES = ("ProtInrAlign", "ProtInrReconstruct", "ProtInrInfer", "ProtInrReport")


@pytest.fixture(scope="module")
def domain():
    found = pw.Config.getDomain()
    assert "inr" in found.getPlugins()
    return found


def test_everything_is_discovered(domain):
    assert set(NAMES) <= set(domain.getProtocols())
    assert {"InrTiltAxisWizard", "InrThicknessWizard"} <= set(domain.getWizards())
    assert {"InrAlignViewer", "InrTomogramViewer", "InrReportViewer"} <= set(domain.getViewers())
    for name in NAMES:
        protocol = domain.getProtocols()[name]
        assert protocol.worksInStreaming() and protocol.getClassPackageName() == "inr"
        assert protocol().getDefinition() is not None
    for key in [*inr._references, *protocols.ProtInrInfer()._citations()]:
        assert key in inr._bibtex, key


def test_tree_names_protocols_that_exist():
    folder = os.path.dirname(inr.__file__)
    with open(os.path.join(folder, "protocols.conf")) as file:
        assert sorted(re.findall(r'"value": "(\w+)"', file.read())) == sorted(NAMES)


def test_template_makes_a_workflow(domain, tmp_path):
    (template,) = inr.Plugin().getTemplates()
    project = Manager().createProject("template")
    path = tmp_path / "workflow.json"
    path.write_text(template.content)
    made = project.loadProtocols(str(path)).values()
    by_name = {protocol.getClassName(): protocol for protocol in made}
    assert set(by_name) == {"ProtImportTs", "ProtInrAlign", "ProtInrReconstruct", "ProtInrReport"}
    assert by_name["ProtInrReconstruct"].inputSetOfTiltSeries.getExtended() == constants.TILT_SERIES
    assert by_name["ProtInrReport"].inputTomograms.getObjValue() is by_name["ProtInrReconstruct"]


def test_wizard_fills_in_the_axis(domain):
    from tomo.objects import SetOfTiltSeries, TomoAcquisition

    from inr.wizards import InrTiltAxisWizard

    class Form:
        protocol = protocols.ProtInrAlign()
        values = {}

        def setVar(self, name, value):
            self.values[name] = value

    form = Form()
    InrTiltAxisWizard().show(form)
    assert form.values == {}, "nothing is known without tilt series"
    tilt_series = SetOfTiltSeries(filename=":memory:")
    tilt_series.setAcquisition(TomoAcquisition(tiltAxisAngle=84.1234567))
    form.protocol.inputSetOfTiltSeries.set(tilt_series)
    InrTiltAxisWizard().show(form)
    assert form.values == {"tiltAxis": 84.123}


# --- environment ---------------------------------------------------------------------------------------------------


@pytest.fixture
def activation(monkeypatch):
    def use(text):
        monkeypatch.setitem(Plugin._vars, constants.INR_ENV_ACTIVATION, text)
        monkeypatch.setattr(Plugin, "_found", False)

    return use


def test_an_activation_that_does_not_work_is_named(domain, activation):
    activation("export PATH=/nowhere")
    first, second = Plugin.validateInstallation()
    assert "/nowhere" in first and constants.INR_ENV_ACTIVATION in second


def test_activation(domain, activation, monkeypatch):
    activation("module load inrtomo &&")
    assert Plugin.getActivation() == "module load inrtomo"
    monkeypatch.setattr(Plugin, "_condaActivationCmd", 'eval "$(conda shell.bash hook)" &&')
    activation("conda activate inrtomo")
    assert Plugin.getActivation() == 'eval "$(conda shell.bash hook)" && conda activate inrtomo'
    activation("")
    assert Plugin.getActivation().endswith("/inrtomo-0.1.0/env/bin:$PATH")
    monkeypatch.setenv("PYTHONPATH", "/scipion")
    assert "PYTHONPATH" not in Plugin.getEnviron()


class Binaries:
    """What `scipion3 installb` hands to `defineBinaries`."""

    def addPackage(self, name, **options):
        self.name, self.options = name, options


def wheel(folder):
    """A package with an inr-align that prints its version: nothing to download and nothing to build."""
    path = folder / "standin-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("standin.py", "def main():\n    print('inr-align 0.1.0')\n")
        archive.writestr("standin-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: standin\nVersion: 0\n")
        archive.writestr("standin-0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("standin-0.dist-info/entry_points.txt", "[console_scripts]\ninr-align = standin:main\n")
        archive.writestr("standin-0.dist-info/RECORD", "")
    return str(path)


@pytest.mark.parametrize("given", [True, False])
def test_installer(domain, tmp_path, monkeypatch, given):
    """The commands for `installb` make an environment with inr-align in it, or say that no source is known."""
    monkeypatch.setitem(Plugin._vars, constants.INR_SOURCE, wheel(tmp_path) if given else "")
    binaries = Binaries()
    Plugin.defineBinaries(binaries)
    ((command, flag),) = binaries.options["commands"]
    folder = tmp_path / "inrtomo-0.1.0"
    folder.mkdir()
    environment = {**os.environ, "TORCH": "", "PYTHON": sys.executable}
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    if not given:
        assert done.returncode != 0 and constants.INR_SOURCE in done.stderr and not (folder / flag).exists()
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "inr-align 0.1.0" and (folder / flag).exists()
    monkeypatch.setitem(Plugin._vars, constants.INR_HOME, str(folder))
    monkeypatch.setitem(Plugin._vars, constants.INR_ENV_ACTIVATION, "")
    monkeypatch.setattr(Plugin, "_found", False)
    assert Plugin.validateInstallation() == [], "what was installed is what the protocols start"


# --- GPUs and failures ---------------------------------------------------------------------------------------------


class Step:
    """As much of a protocol as `visible_gpus` asks."""

    def __init__(self, slot=(), uses=True, queue=False, queue_for_steps=False):
        self.slot, self.uses, self.queue, self.queue_for_steps = list(slot), uses, queue, queue_for_steps
        self._stepsExecutor = self

    def usesGpu(self):
        return self.uses

    def useQueue(self):
        return self.queue

    def useQueueForSteps(self):
        return self.queue_for_steps

    def getGpuList(self):
        return self.slot


@pytest.mark.parametrize(
    ("step", "set_by_queue", "expected"),
    [
        (Step([2]), "", "2"),
        (Step([0, 3]), "", "0,3"),
        (Step([1], uses=False), "", ""),
        (Step([0], queue=True, queue_for_steps=True), "", None),  # the queue of the step's job chooses
        (Step([1], queue=True), "4,6", "6"),  # the second one of those the queue gave to the protocol
        (Step([1], queue=False), "4,6", "1"),
        (Step([99]), "", ""),  # Scipion's void GPU
    ],
)
def test_gpus(monkeypatch, step, set_by_queue, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", set_by_queue)
    assert engine.visible_gpus(step) == expected


class Running(Step):
    """As much of a protocol as `run_program` needs, with Scipion's own way of running a command."""

    def getBinThreads(self):
        return 2

    def runJob(self, program, arguments, env=None, numberOfMpi=1, executable=None):
        from pyworkflow.utils.process import runJob

        runJob(None, program, arguments, numberOfMpi, env=env, executable=executable)


def test_a_failing_program_says_why_in_its_own_words(domain, activation, tmp_path):
    programs = tmp_path / "bin dir"
    programs.mkdir()
    for name, text in (
        ("inr-refuses", "echo working; echo 'inr-refuses: ts.mrc: is no stack; give another' >&2; exit 2"),
        ("inr-breaks", "echo 'no space left on device'; exit 1"),
        ("inr-writes", 'echo "$OMP_NUM_THREADS [$CUDA_VISIBLE_DEVICES]" > "$2"'),
        ("inr-silent", "exit 0"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    activation(f"export PATH='{programs}':$PATH")
    out, log = str(tmp_path / "a file"), str(tmp_path / "log.txt")
    for name, words in (
        ("inr-refuses", "inr-refuses: ts.mrc: is no stack; give another"),
        ("inr-breaks", "inr-breaks: no space left on device"),
        ("inr-missing", "inr-missing is not in the engine's environment"),
        ("inr-silent", "inr-silent: ended without a result"),  # a queue does not tell how a job ended
    ):
        with pytest.raises(engine.EngineError) as raised:
            engine.run_program(Running(), name, ["-o", out], out, log)
        assert str(raised.value).startswith(words)
    engine.run_program(Running([3]), "inr-writes", ["-o", out], out, log)
    with open(out) as file:
        assert file.read() == "2 [3]\n"
