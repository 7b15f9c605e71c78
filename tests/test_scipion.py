"""The Scipion plugin's own tests, in a Python 3.10 with the real Scipion: slow, and skipped where that cannot be had.

Scipion and its plugins (700 MB) go to ``.venv-scipion`` once: half a minute, or as much as 20 where others use the
processor, too. From Python 3.11 on Scipion's own import of tilt series hangs.
``PYTHON310`` names an interpreter that is not on the PATH.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

PLUGIN = ROOT / "integration" / "scipion"
VENV = ROOT / ".venv-scipion"
TOOLS = ("pip", "install", "--quiet", "--disable-pip-version-check")

pytestmark = pytest.mark.slow


def find_python310() -> str:
    """A Python 3.10 with what a virtual environment and Scipion need; skips where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [os.environ.get("PYTHON310"), shutil.which("python3.10"), *sorted(pyenv.glob("3.10.*/bin/python3.10"))]
    check = "import sys, venv, ensurepip, tkinter; sys.exit(sys.version_info[:2] != (3, 10))"
    for candidate in filter(None, map(str, filter(None, candidates))):
        if subprocess.run([candidate, "-c", check], capture_output=True).returncode == 0:
            return candidate
    pytest.skip("needs Python 3.10 with venv and tkinter (as python3.10 on the PATH, in ~/.pyenv, or by PYTHON310)")


@pytest.fixture(scope="module")
def scipion_python() -> str:
    """Interpreter of ``.venv-scipion``, made anew when what the plugin requires has changed."""
    python = VENV / "bin" / "python"
    stamp = VENV / "installed"
    wanted = hashlib.sha256((PLUGIN / "pyproject.toml").read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        subprocess.run([find_python310(), "-m", "venv", "--clear", VENV], check=True)
        for what in (["wheel", "setuptools>=61,<81", "pytest"], ["--editable", str(PLUGIN)]):
            # the plugin is built without an environment of its own: one more download, and nothing gained
            isolation = ["--no-build-isolation"] if "--editable" in what else []
            installed = subprocess.run([python, "-m", *TOOLS, *isolation, *what], capture_output=True, text=True)
            if installed.returncode != 0:
                pytest.skip(f"Scipion cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
        stamp.write_text(wanted)
    return str(python)


def test_plugin_in_a_headless_scipion(scipion_python: str) -> None:
    """Its conventions, files, protocols, viewers and installer; import, align, reconstruct, report and infer."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "SCIPION_HOME")}
    engine = shlex.quote(str(Path(sys.executable).parent))
    environment["INR_ENV_ACTIVATION"] = f"export PATH={engine}:$PATH"
    environment["MPLBACKEND"] = "Agg"
    done = subprocess.run(
        [scipion_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "inr/tests"],
        cwd=PLUGIN, env=environment, capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]
