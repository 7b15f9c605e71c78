"""Whole commands with ``--device cuda`` where there is no GPU: on a device that torch keeps apart from the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import fake_gpu
from tests.running import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(fake_gpu.unavailable()), reason=fake_gpu.unavailable()),
]


@pytest.mark.parametrize("name", ["device", "commands", "fits"])
def test_on_a_fake_gpu(name: str) -> None:
    """In a process of its own: torch cannot be rid of the device again, nor take it once it has differentiated."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", "-p", "tests.fake_gpu"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "fake_gpu" / f"{name}.py")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
