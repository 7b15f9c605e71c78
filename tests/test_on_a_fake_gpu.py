"""Whole commands with ``--device cuda`` where there is no GPU: on a device that torch keeps apart from the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import fake_gpu
from tests.fake_gpu import stages
from tests.running import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(fake_gpu.unavailable()), reason=fake_gpu.unavailable()),
]

RUNS = {
    "device": ("tests.fake_gpu", "fake_gpu/device"),
    "commands": ("tests.fake_gpu", "fake_gpu/commands"),
    "fits": ("tests.fake_gpu", "fake_gpu/fits"),
    "kernels": ("tests.fake_gpu", "fake_gpu/kernels"),
    "stages": ("tests.fake_gpu.stages", *stages.FILES),
}


@pytest.mark.parametrize(("plugin", "names"), [(plugin, names) for plugin, *names in RUNS.values()], ids=RUNS.keys())
def test_on_a_fake_gpu(plugin: str, names: list[str]) -> None:
    """In a process of its own: torch cannot be rid of the device again, nor take it once it has differentiated."""
    files = [str(ROOT / "tests" / f"{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin]
    done = subprocess.run(
        [*command, *files],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
