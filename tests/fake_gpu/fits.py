"""The fits that the GPU's benchmark checks, on the GPU of `tests.fake_gpu`: steps are recorded and replayed.

Not collected by itself; `tests.test_on_a_fake_gpu` runs it in a process of its own.
"""

from __future__ import annotations

import pytest

from inrtomo.gpu import operations
from integration.benchmarks.gpu import fits, run


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels and steps, and kernels in plain torch, which the device checks."""
    monkeypatch.setattr(operations, "has_triton", lambda device: False)
    monkeypatch.setattr(fits, "SIZE", 24)
    monkeypatch.setattr(fits, "STEPS", (3, 3))
    monkeypatch.setattr(fits, "THICKNESS_PX", 10)


def test_fits_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LOSSES_APART", 1e-3)
    assert len(run.check_fits("cuda:0")) == len(fits.CASES)


def test_fits_that_are_not_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "CASES", {"hash": {}})
    monkeypatch.setattr(run, "LOSSES_APART", 0.0)
    with pytest.raises(SystemExit, match="check failed: losses of a fit, hash"):
        run.check_fits("cuda:0")
