"""Fixtures shared by the tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Measured series and other programs' files beside the checkout, or a skip where they are not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data (measured tilt series and golden files), which is not here")
    return folder
