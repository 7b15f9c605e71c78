"""The Snakemake workflow in ``integration/pipelines``: its plan where Snakemake is installed, and all of it if slow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import ROOT

SNAKEFILE = ROOT / "integration" / "pipelines" / "snakemake" / "Snakefile"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("snakemake") is None, reason="needs snakemake on the PATH"),
]


def test_from_stacks_to_resolutions(tiny_series: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("ts1", "ts2"):
        for ending in (".mrc", ".rawtlt"):
            (raw / f"{name}{ending}").write_bytes((tiny_series / f"ts{ending}").read_bytes())
    environment = {**os.environ, "PATH": f"{ROOT / 'bin'}:{os.environ['PATH']}"}
    config = ["raw=raw", "out=made", "axis=0", "align=--fast", "recon=--bin 2"]
    call = ["snakemake", "--snakefile", str(SNAKEFILE), "--cores", "1", "--config", *config]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    for name in ("ts1", "ts2"):
        assert json.loads((tmp_path / "made" / "fsc" / f"{name}.json").read_text())["curve"] == "corrected"
    again = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert "Nothing to be done" in again.stdout + again.stderr
