"""Every command: help, version, exit status, and what is shared between them."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from inrtomo import __version__
from inrtomo.commands import _common
from inrtomo.commands._common import TILT_AXIS, TILT_LIST, Program, Progress, command, echo_defaults, os_error_sentence
from inrtomo.errors import InputError
from tests.running import ROOT, Inr, assert_refused


def entry_points() -> dict[str, str]:
    """Program -> ``module:function``, as the package declares them."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(tuple(part.strip() for part in line.split("=")) for line in lines)  # type: ignore[misc]


NAMES = sorted(name.removeprefix("inr-") for name in entry_points())


@pytest.mark.parametrize("name", NAMES)
def test_entry_point_launcher_and_module_go_together(name: str) -> None:
    assert entry_points()[f"inr-{name}"] == f"inrtomo.commands.{name}:main"
    assert os.access(ROOT / "bin" / f"inr-{name}", os.X_OK)
    assert (ROOT / "inrtomo" / "commands" / f"{name}.py").is_file()


def test_no_command_is_forgotten() -> None:
    modules = {p.stem for p in (ROOT / "inrtomo" / "commands").glob("[a-z]*.py")}
    launchers = {p.name.removeprefix("inr-") for p in (ROOT / "bin").glob("inr-*")}
    assert modules == launchers == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_and_version(inr: Inr, name: str) -> None:
    shown = inr(name, "--help")
    assert shown.exit_code == 0 and shown.stdout.startswith(f"Usage: inr-{name} ")
    assert inr(name, "--version").stdout.strip() == f"inr-{name}, version {__version__}"


@pytest.mark.parametrize("name", NAMES)
def test_wrong_use_is_one_sentence(inr: Inr, name: str) -> None:
    assert_refused(inr(name), f"inr-{name} --help")
    assert_refused(inr(name, "--no-such-option"), "--no-such-option")


@pytest.mark.parametrize("name", NAMES)
def test_launchers_work_from_anywhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "inrtomo.py").write_text("raise SystemExit('a file of the working folder was imported')\n")
    link = tmp_path / f"inr-{name}"
    link.symlink_to(ROOT / "bin" / f"inr-{name}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # without a .venv, python3 is used
    for program in (ROOT / "bin" / f"inr-{name}", link):
        shown = subprocess.run(
            [program, "--version"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert shown.stdout.strip() == f"inr-{name}, version {__version__}", shown.stderr


# What commands share -------------------------------------------------------------------------------------------------


def failing(error: BaseException) -> Program:
    @command("inr-x")
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("ts.mrc: is blank; use another"), 2, ["ts.mrc: is blank; use another"]),
        (OSError(errno.ENOSPC, "No space left on device", "/data/a.mrc"), 2, ["/data/a.mrc", "disk is full"]),
        (OSError("4096 requested and 1000 written"), 2, ["disk is full"]),
        (OSError(errno.EFBIG, "File too large"), 2, ["larger than allowed"]),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), 2, ["/data", "permission"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "ts.mrc"), 2, ["ts.mrc", "no such file"]),
        (MemoryError(), 2, ["memory"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (_common.Terminated(), 143, ["terminated"]),
    ],
)
def test_foreseeable_failures(error: BaseException, status: int, words: list[str]) -> None:
    assert_refused(CliRunner().invoke(failing(error), []), *words, status=status)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    for error in (ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor")):
        assert CliRunner().invoke(failing(error), []).exception is error
    assert isinstance(CliRunner().invoke(failing(EOFError("no data")), []).exception, RuntimeError)
    assert os_error_sentence(OSError("odd")) is None


def test_tilt_axis_and_tilt_lists() -> None:
    seen: dict[str, object] = {}

    @command("inr-x")
    @click.option("--tilt-axis", type=TILT_AXIS)
    @click.option("--exclude", type=TILT_LIST, default=())
    def main(**options: object) -> None:
        seen.update(options)

    def run(*args: str) -> int:
        seen.clear()
        return CliRunner().invoke(main, args).exit_code

    assert run("--tilt-axis", "-4.3", "--exclude", "7-9, 3,3") == 0
    assert seen == {"tilt_axis": -4.3, "exclude": (3, 7, 8, 9)}
    assert run("--tilt-axis", "auto") == 0 and seen == {"tilt_axis": "auto", "exclude": ()}
    for bad in ("", "-1", "1-", "5-3", "a", "1,,2", "3 5", "1.5", "²"):
        assert run("--exclude", bad) == 2, bad
    for bad in ("", "Auto", "361", "nan", "inf"):
        assert run("--tilt-axis", bad) == 2, bad
    assert "DEG|auto" in CliRunner().invoke(main, ["--help"]).stdout


def test_defaults_are_one_line_each_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    echo_defaults([("pixel size", "10 Å", "header of ts.mrc"), ("tilt angles", "-60 to 60", "x" * 90 + " [bold]")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split() == ["pixel", "size", "10", "Å", "header", "of", "ts.mrc"]
    assert lines[1].rstrip().endswith("[bold]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_and_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(_common.time, "monotonic", lambda: now[0])
    for stream, lines in ((Terminal(), 40), (io.StringIO(), 4)):
        with Progress("joint fit", stream) as progress:
            for step in range(1, 41):
                now[0] += 0.5
                progress(step / 80, scale="bin 4", loss=1.25)
        text = stream.getvalue()
        assert text.count("bin 4  loss 1.25") == lines
        assert "joint fit  50 %  bin 4  loss 1.25  20 s left" in text
        assert text.endswith("joint fit done in 20 s\n")
        assert text.count("\n") == (1 if stream.isatty() else lines + 1)


def test_time_left_is_by_the_speed_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither preparation before the first report nor a slow beginning counts for ever."""
    now = [0.0]
    monkeypatch.setattr(_common.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with Progress("field", log) as progress:
        now[0] = 100.0
        progress(0.1)
        assert "left" not in log.getvalue()
        for _ in range(10):  # 1 % in 10 s, then 1 % in 1 s
            now[0] += 10
            progress(0.1 + 0.01 * (now[0] - 100) / 10)
        assert log.getvalue().splitlines()[-1].endswith(" 13 min 20 s left")
        begun = now[0]
        while now[0] < 250:
            now[0] += 1
            progress(0.2 + 0.01 * (now[0] - begun))
        assert 30 <= int(log.getvalue().splitlines()[-1].split()[-3]) <= 90 or "1 min" in log.getvalue()


def test_progress_says_nothing_of_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    with Progress("tracks", log) as progress:
        progress(0.5)
    assert log.getvalue() == ""
    with pytest.raises(ValueError), Progress("tracks", Terminal()) as progress:
        raise ValueError
    assert [_common._duration(s) for s in (7, 185, 7801)] == ["7 s", "3 min 05 s", "2 h 10 min"]
