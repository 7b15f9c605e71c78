"""Series are processed as they come in: once each, when every connected set has them, and those left over are named."""

import threading

import pytest
import pyworkflow as pw

from inr.protocols import ProtInrAlign


class GrowingSet:
    """A set that an earlier protocol is still adding to: what it holds each time it is read, open until the last."""

    def __init__(self, *looks):
        self.looks, self.at = looks, -1

    def isStreamOpen(self):
        return self.at < len(self.looks) - 1

    def loadAllProperties(self):
        self.at += 1

    def getTSIds(self):
        return self.looks[self.at]


class Recorded(ProtInrAlign):
    """Notes the steps instead of storing them."""

    def __init__(self, sets, done=(), **kwargs):
        super().__init__(**kwargs)
        self.sets, self.done, self.steps, self._lock = sets, done, [], threading.RLock()

    def inputs(self):
        return self.sets

    def _prepareOutputs(self):
        return list(self.done)

    def _streamingSleepOnWait(self):
        self.steps.append(("wait",))

    def _insertFunctionStep(self, function, *arguments, prerequisites=(), needsGPU=False):
        self.steps.append((function.__name__, *arguments, tuple(prerequisites), needsGPU))
        return len(self.steps)


@pytest.fixture(scope="module", autouse=True)
def domain():
    pw.Config.getDomain().getProtocols()


def names(steps, which):
    return [step[1] for step in steps if step[0] == which]


def test_series_come_one_by_one():
    prot = Recorded([GrowingSet(["a"], ["a"], ["a", "b", "c"])])
    prot.useGpu.set(True)
    prot.stepsGeneratorStep()
    assert [step[0] for step in prot.steps if step[0] != "outputStep"] == [
        "processStep", "wait", "wait", "processStep", "processStep", "closeStep",
    ]  # fmt: skip
    assert names(prot.steps, "processStep") == names(prot.steps, "outputStep") == ["a", "b", "c"]
    outputs = [k + 1 for k, step in enumerate(prot.steps) if step[0] == "outputStep"]
    assert prot.steps[-1] == ("closeStep", tuple(outputs), False)
    for step in prot.steps:
        if step[0] == "processStep":
            assert step[2:] == ((), True), "no series waits for another, and it takes a GPU"
        if step[0] == "outputStep":
            assert prot.steps[step[2][0] - 1][:2] == ("processStep", step[1]) and step[3] is False


def test_a_series_waits_for_its_ctf():
    prot = Recorded([GrowingSet(["a", "b", "c"]), GrowingSet([], ["b"], ["b", "a"])])
    prot.useGpu.set(False)
    prot.stepsGeneratorStep()
    assert names(prot.steps, "processStep") == ["b", "a"]
    assert names(prot.steps, "lackStep") == ["c"]
    assert not any(step[-1] for step in prot.steps if step[0] == "processStep"), "no GPU, so all threads are used"


def test_going_on_leaves_out_what_is_done():
    prot = Recorded([GrowingSet(["a", "b"])], done=["a"])
    prot.stepsGeneratorStep()
    assert names(prot.steps, "processStep") == ["b"]
