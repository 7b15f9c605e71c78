"""Running commands in tests: in this process or as one of their own, and what a refusal looks like."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parent.parent

Inr = Callable[..., Result]
"""``inr("align", "a.mrc", "-o", folder)`` -> exit status, stdout, stderr of ``inr-align a.mrc -o folder``."""


def run_command(name: str, *args: object) -> Result:
    """Run ``inr-NAME ARGS`` in this process; an exception other than the exit itself is the test's failure."""
    command = importlib.import_module(f"inrtomo.commands.{name}").main
    result = CliRunner().invoke(command, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start_command(name: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """Start ``inr-NAME ARGS`` as a process of its own, from this checkout, with its output in pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = f"from inrtomo.commands.{name} import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def assert_refused(result: Result, *words: str, status: int = 2) -> None:
    """The command ended with the status, one sentence on stderr that says all ``words``, and no traceback."""
    said = result.stderr
    assert result.exit_code == status, result.output
    sentences = [line for line in said.splitlines() if line.startswith("inr-")]
    assert len(sentences) == 1 and "Traceback" not in said, said
    assert said.splitlines()[-1] == sentences[0], said
    for word in words:
        assert word.lower() in sentences[0].lower(), f"{word!r} is missing in: {sentences[0]}"
