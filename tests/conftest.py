"""Fixtures shared by the tests: measured data beside the checkout, a tiny series, commands run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import ROOT, Inr, run_command


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Measured series and other programs' files beside the checkout, or a skip where they are not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data (measured tilt series and golden files), which is not here")
    return folder


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in plain torch: Triton's interpreter would take hours."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def inr() -> Inr:
    return run_command


@pytest.fixture(scope="session")
def tiny_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ts.mrc`` (96 x 96 px, 21 tilts, bright protein, 10 Å/px, axis at 0), its angles and truth."""
    folder = tmp_path_factory.mktemp("tiny")
    options = "--size 96 96 --thickness 30 --tilt-step 6 --snr 10 --shifts 4 --warp 0 --beads 4 --seed 1 --base ts"
    result = run_command("simulate", "-o", folder, *options.split())
    assert result.exit_code == 0, result.output
    return folder
