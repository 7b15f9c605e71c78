"""What an installation is like: how fast commands start, and that the recipes in ``integration/containers`` work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from inrtomo import __version__, _kernels
from inrtomo.commands import recon
from inrtomo.losses import COUNT_KINDS, KINDS
from inrtomo.reconstruct.ctf_correction import MODES
from inrtomo.reconstruct.field import FIELDS, FieldSettings
from inrtomo.reconstruct.sart_tv import SartTvSettings
from inrtomo.reconstruct.sirt import SirtSettings
from tests.running import ROOT, run_command
from tests.test_commands import NAMES

CONTAINERS = ROOT / "integration" / "containers"
DEFINITION = CONTAINERS / "inrtomo.def"
SECTIONS = {"arguments", "labels", "help", "files", "post", "environment", "runscript", "test"}
SLOW_TO_LOAD = ("torch", "numba", "matplotlib", "scipy", "pandas", "skimage", "mdocfile", "starfile")
HELP = """
import importlib, sys
from click.testing import CliRunner
for name in {names}:
    command = importlib.import_module("inrtomo.commands." + name).main
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0, name
    print(name, *(module for module in {slow} if module in sys.modules))
"""


def test_help_loads_nothing_slow() -> None:
    """All commands in one process, so the first that is named wrongly here is the one to look at."""
    code = HELP.format(names=NAMES, slow=SLOW_TO_LOAD)
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == NAMES


def test_alignment_pipeline_does_without_torch() -> None:
    """Only networks need it, and it takes longer to load than everything else together."""
    code = "import sys, inrtomo.align.pipeline, inrtomo.commands._recon_run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_kernels_have_a_place_where_neither_the_package_nor_the_home_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # what lies below a file cannot be written, by root neither
    monkeypatch.setattr(_kernels, "__file__", str(tmp_path / "file" / "inrtomo" / "_kernels.py"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def found(home: Path) -> str:
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("NUMBA_CACHE_DIR", "")
        _kernels.find_place()
        return os.environ["NUMBA_CACHE_DIR"]

    assert found(tmp_path / "new") == ""  # numba's own choice
    own = found(tmp_path / "file")
    assert (
        own == found(tmp_path / "file") and Path(own).parent == tmp_path and Path(own).stat().st_mode & 0o777 == 0o700
    )
    Path(own).chmod(0o777)  # where anybody could have put anything into it
    assert found(tmp_path / "file") != own
    code = "from inrtomo.simulate import rays; print(rays._march._cache.cache_path)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(str(tmp_path))


def test_defaults_in_the_help_of_recon_are_those_of_its_methods() -> None:
    assert recon.CTF_MODES == MODES and recon.FIELDS == FIELDS
    assert set(recon.LOSSES) == {*KINDS, *COUNT_KINDS}
    field, sirt = FieldSettings(), SirtSettings()
    assert recon.PRIORS == asdict(field.priors)
    assert (recon.SIRT_ITERATIONS, recon.SART_TV_ITERATIONS) == (sirt.iterations, SartTvSettings().iterations)
    said: dict[str, Any] = {parameter.name or "": parameter.default for parameter in recon.main.params}
    assert (said["field_kind"], said["loss"], said["seed"]) == (field.field, field.loss, field.seed)
    assert said["subsets"] == sirt.subsets


def run(script: str, *args: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a recipe of ``integration/containers`` with the Python of the tests."""
    env = {**os.environ, "PYTHON": sys.executable, **(environment or {})}
    call = [str(CONTAINERS / script), *map(str, args)]
    return subprocess.run(call, env=env, capture_output=True, text=True, timeout=3000)


def definition() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Header and sections (lines) of the Apptainer definition."""
    header: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in DEFINITION.read_text().splitlines():
        if line.startswith("%"):
            lines = sections.setdefault(line[1:].strip(), [])
        elif lines is not None:
            lines.append(line)
        elif line and not line.startswith("#"):
            key, _, value = line.partition(":")
            header[key] = value.strip()
    return header, sections


def test_the_apptainer_definition_is_one(tmp_path: Path) -> None:
    """As far as can be seen without Apptainer: its parts, the files it copies, the syntax of its scripts."""
    header, sections = definition()
    assert header == {"Bootstrap": "docker", "From": "python:3.12-slim-bookworm"} and set(sections) == SECTIONS
    names = [line.split()[0] for line in sections["files"] if line.strip()]
    assert all((ROOT / name).exists() for name in names)
    # what setup.cfg reads has to be among them
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "inrtomo"} == set(names)
    defaults = [line.split("=")[0].strip() for line in sections["arguments"] if "=" in line]
    used = re.findall(r"\{\{ (\w+) \}\}", DEFINITION.read_text())
    assert set(used) == set(defaults)
    for name in ("post", "environment", "runscript", "test"):
        checked = subprocess.run(["sh", "-n"], input="\n".join(sections[name]), text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_module_files_are_of_this_version() -> None:
    for name in ("inrtomo.lua", "inrtomo.tcl"):
        text = (CONTAINERS / "modulefiles" / name).read_text()
        assert set(re.findall(r"\d+\.\d+\.\d+", text)) == {__version__}
        assert text.isascii()  # Tcl and Lua read it in whatever encoding the node has


@pytest.mark.skipif(shutil.which("tclsh") is None, reason="needs tclsh")
def test_the_tcl_module_file() -> None:
    """Read by Tcl with stand-ins for the commands of Environment Modules, which write down what they are asked for."""
    commands = "module-whatis conflict prepend-path"
    stand_ins = "".join(f"proc {name} args {{ puts [list {name} {{*}}$args] }}\n" for name in commands.split())
    code = f"{stand_ins}source {CONTAINERS / 'modulefiles' / 'inrtomo.tcl'}\nModulesHelp\n"
    done = subprocess.run(["tclsh"], input=code, text=True, capture_output=True, check=True)
    assert "conflict inrtomo" in done.stdout.splitlines()
    assert f"prepend-path PATH /opt/apps/inrtomo/{__version__}/commands" in done.stdout.splitlines()
    assert "NUMBA_CACHE_DIR" in done.stderr


@pytest.mark.skipif(shutil.which("lua") is None, reason="needs lua")
def test_the_lua_module_file() -> None:
    """The same for Lmod."""
    stand_ins = "function help() end whatis, conflict = help, help\nfunction pathJoin(a, b) return a .. '/' .. b end\n"
    stand_ins += "function prepend_path(name, value) print(name, value) end\n"
    code = stand_ins + (CONTAINERS / "modulefiles" / "inrtomo.lua").read_text()
    done = subprocess.run(["lua", "-"], input=code, text=True, capture_output=True, check=True)
    assert done.stdout.split() == ["PATH", f"/opt/apps/inrtomo/{__version__}/commands"]


def test_recipes_touch_nothing_that_is_there(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for script in ("make-venv", "make-wheelhouse"):
        refused = run(script, kept)
        assert refused.returncode == 2 and "exists already" in refused.stderr
    refused = run("make-venv", tmp_path / "new", kept)
    assert refused.returncode == 2 and "no wheel of inrtomo" in refused.stderr
    failed = run("make-venv", tmp_path / "new", environment={"PYTHON": "/no/such/python"})
    assert failed.returncode != 0 and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_an_install_without_a_network(tmp_path: Path) -> None:
    """Wheels made here, installed where no index can be reached, and the definition's own test run with the result."""
    house, prefix = tmp_path / "wheelhouse", tmp_path / "apps" / "inrtomo"
    made = run("make-wheelhouse", house)
    assert made.returncode == 0, made.stdout + made.stderr
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=house, capture_output=True, text=True)
    assert sums.returncode == 0, sums.stdout
    wheels = [path.name.split("-")[0] for path in house.glob("*.whl")]
    assert len(set(wheels)) == len(wheels), "two versions of a package: the one not asked for would be installed"
    if list(house.glob("torch-*+cpu-*.whl")):
        assert not [name for name in wheels if name.startswith("nvidia")]
    nowhere = "http://127.0.0.1:9"
    offline = {"PIP_INDEX_URL": nowhere, "http_proxy": nowhere, "https_proxy": nowhere, "PIP_FIND_LINKS": ""}
    installed = run("make-venv", prefix, house, environment=offline)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    check = subprocess.run([prefix / "bin" / "python", "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    commands = sorted(path.name for path in (prefix / "commands").iterdir())
    assert commands == [f"inr-{name}" for name in NAMES]
    # as on a cluster: nothing of the checkout or of these tests' environment in sight
    environment = {"PATH": f"{prefix / 'commands'}:/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    script = "\n".join(definition()[1]["test"])
    ran = subprocess.run(["sh"], input=script, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apptainer") is None, reason="needs Apptainer")
def test_the_apptainer_image(tmp_path: Path) -> None:
    """Built of the definition, whose own test is part of that; then it aligns a series that lies outside of it."""

    def apptainer(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["apptainer", *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=3000)

    image, series = tmp_path / "image", tmp_path / "series"
    built = apptainer("build", "--sandbox", image, DEFINITION)  # a folder: compressing it takes longer than all else
    if "conveyor failed to get" in built.stderr:
        pytest.skip(f"the base image cannot be fetched: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stdout + built.stderr
    simulated = run_command("simulate", "-o", series, "--base", "ts", "--size", 96, 96, "--thickness", 30, "--warp", 0)
    assert simulated.exit_code == 0, simulated.output
    args = (series / "ts.mrc", "-o", tmp_path / "out", "--tilt-axis", 0, "--fast")
    aligned = apptainer("run", "--bind", tmp_path, image, "inr-align", *args)
    assert aligned.returncode == 0, aligned.stdout + aligned.stderr
    angles, transforms = (path.read_text().splitlines() for path in (series / "ts.rawtlt", tmp_path / "out" / "ts.xf"))
    assert len(transforms) == len(angles)
    shutil.rmtree(image)  # more than a gigabyte, which pytest would keep
