"""What somebody meets who has just cloned the repository: a new virtual environment, and bin/quickstart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inrtomo import __version__
from tests.running import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked, as it stands in this checkout, in a path with a space."""
    folder = tmp_path_factory.mktemp("new") / "my checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def newcomer(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PYTHON"] = str(Path(sys.base_prefix) / "bin" / "python3")
    return subprocess.run(args, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)


def test_quickstart(checkout: Path) -> None:
    shown = newcomer(checkout, "bin/quickstart")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    pictures = re.findall(r"(?m)^  (\S+\.png)$", shown.stdout)
    assert pictures and all((checkout / name).stat().st_size > 5000 for name in pictures)
    for name in ("ts_rec.mrc", "align/ts.xf", "align/ts_align.json"):
        assert (checkout / "quickstart-out" / name).is_file(), name
    again = newcomer(checkout, "bin/quickstart")
    assert again.returncode == 0, "a second run: " + again.stdout + again.stderr


def test_no_python(checkout: Path) -> None:
    """Without any Python that is new enough: one sentence that says what to install."""
    shutil.copytree(checkout / "bin", checkout / "bare" / "bin", symlinks=True)
    tools = checkout / "bare" / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "basename", "uname", "cksum", "cat"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(checkout / name, checkout / "bare")
    shown = subprocess.run(
        [checkout / "bare" / "bin" / "quickstart"], env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert shown.returncode == 1
    assert "no Python 3.10 or newer" in shown.stderr


def test_installed_from_a_wheel(checkout: Path, tmp_path: Path) -> None:
    """The wheel holds every module and its metadata is right; commands work without the checkout."""
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        assert newcomer(checkout, "bin/quickstart").returncode == 0
    wheel = newcomer(checkout, str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), ".")
    assert wheel.returncode == 0, wheel.stderr
    (path,) = tmp_path.glob("inrtomo-*.whl")
    assert path.name.startswith(f"inrtomo-{__version__}-py3-none-any")
    unpacked = tmp_path / "site"
    shutil.unpack_archive(path, unpacked, "zip")
    modules = {p.relative_to(checkout) for p in (checkout / "inrtomo").rglob("*.py")}
    assert {p.relative_to(unpacked) for p in (unpacked / "inrtomo").rglob("*.py")} == modules
    metadata = next(unpacked.glob("*.dist-info/METADATA")).read_text()
    assert "Requires-Python: >=3.10" in metadata and "Requires-Dist: torch>=2.6" in metadata
