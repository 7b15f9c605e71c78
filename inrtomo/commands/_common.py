"""What every command shares: errors as one sentence, printed defaults, option types, a progress line."""

from __future__ import annotations

import errno
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TextIO

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from inrtomo import __version__
from inrtomo.errors import InputError
from inrtomo.io.names import shown

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

PLAIN_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)

LOG_INTERVAL_S = 5.0
TERMINAL_INTERVAL_S = 0.1
LOG_WIDTH = 1000  # characters; on a terminal its own
NOTE = "note"


class OneSentence(click.ClickException):
    """An end with ``inr-x: sentence`` on stderr and an exit status, without a traceback."""

    def __init__(self, program: str, sentence: str, exit_code: int = EXIT_BAD_INPUT) -> None:
        super().__init__(sentence)
        self.program = program
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: TextIO | None = None) -> None:  # type: ignore[override]
        # a name in it may have line breaks, or what a terminal obeys
        click.echo(f"{self.program}: {shown(self.message)}", file=file, err=file is None)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a batch system sends before it kills: clean up as after Ctrl-C."""


class Program(click.Command):
    """A click command that ends every foreseeable failure with one sentence.

    Exit status: 0 complete result, 2 bad input or an output that cannot be written, 130 Ctrl-C, 143 SIGTERM.
    """

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        for param in self.params:
            param.type = _plain_numbers(param.type)

    @property
    def program(self) -> str:
        return self.name or "inrtomo"

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run as ``prog_name``, by default under the command's own name however it was started."""
        with _sigterm_as_exception():
            return super().main(args, prog_name or self.program, **extra)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with self._one_sentence():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with self._one_sentence():
            return super().invoke(ctx)

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except click.UsageError as error:
            hint = f"see {self.program} --help"
            message = " ".join(error.format_message().split())  # click lists choices on lines of their own
            raise OneSentence(self.program, f"{message.rstrip('.')}; {hint}") from None
        except InputError as error:
            raise OneSentence(self.program, str(error)) from None
        except Terminated:
            raise OneSentence(self.program, "terminated", EXIT_TERMINATED) from None
        except KeyboardInterrupt:
            raise OneSentence(self.program, "interrupted", EXIT_INTERRUPTED) from None
        except MemoryError:
            raise OneSentence(self.program, "not enough memory; bin the stack or use a machine with more") from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not be loaded
                raise
            full = "not enough memory on the GPU; bin, take a GPU with more, or use --device cpu"
            raise OneSentence(self.program, full) from None
        except EOFError as error:
            # ours to explain; click would say "Aborted!" as if somebody had pressed Ctrl-D
            raise RuntimeError(f"unexpected end of a file: {error}") from error
        except OSError as error:
            sentence = os_error_sentence(error)
            if sentence is None:
                raise
            raise OneSentence(self.program, sentence) from None


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], Program]:
    """``@command("inr-x")`` on a click callback: a `Program` with ``--version``."""

    def decorate(callback: Callable[..., Any]) -> Program:
        with_version = click.version_option(__version__, "--version", prog_name=name)(callback)
        return click.command(name, cls=Program, **attributes)(with_version)

    return decorate


def os_error_sentence(error: OSError) -> str | None:
    """What a user can do about a failed file operation; None where the error is not of that kind."""
    what = {
        errno.ENOSPC: "the disk is full; free some space or write elsewhere",
        errno.EDQUOT: "your disk quota is used up; free some space or write elsewhere",
        errno.EACCES: "no permission; change it or use another place",
        errno.EPERM: "no permission; change it or use another place",
        errno.EROFS: "the file system is read-only; write elsewhere",
        errno.ENOENT: "no such file or folder",
        errno.ENOTDIR: "part of this path is a file, not a folder; give another path",
        errno.EISDIR: "is a folder; give the name of a file",
        errno.ENAMETOOLONG: "the name is too long; give a shorter one",
        errno.EFBIG: "the file would be larger than allowed here; raise the limit or write elsewhere",
        errno.EIO: "the disk reported an error; check it",
    }.get(error.errno or 0)
    if error.errno is None and "requested and" in str(error):
        # numpy's tofile says "1000 requested and 500 written" and no more
        what = "the disk is full or a size limit reached; free some space or write elsewhere"
    if what is None:
        return None
    return f"{error.filename}: {what}" if error.filename else what


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, so that temporary files are removed; main thread only."""

    def raise_terminated(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Plain(click.ParamType):
    """Mixin: a number as people write it, where Python takes ``nan``, ``1_000`` and digits of other scripts too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not PLAIN_NUMBER.fullmatch(value.strip()):
            self.fail(f"{value!r} is not a number; write it as 2.5", param, ctx)
        return super().convert(value, param, ctx)


class _Float(_Plain, click.types.FloatParamType):
    pass


class _FloatRange(_Plain, click.FloatRange):
    pass


class _Int(_Plain, click.types.IntParamType):
    pass


class _IntRange(_Plain, click.IntRange):
    pass


def _plain_numbers(kind: click.ParamType) -> click.ParamType:
    """The type of an option, for numbers one that takes plain ones alone."""
    if type(kind) is click.FloatRange:
        return _FloatRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    if type(kind) is click.IntRange:
        return _IntRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    if type(kind) is click.types.FloatParamType:
        return _Float()
    return _Int() if type(kind) is click.types.IntParamType else kind


class _TiltAxis(click.ParamType):
    """Degrees in IMOD's sense, or ``auto``."""

    name = "DEG|auto"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name  # click would write AUTO, which is not accepted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if isinstance(value, float) or value == "auto":
            return value
        degrees = float(value) if PLAIN_NUMBER.fullmatch(str(value).strip()) else float("nan")
        if not -360.0 <= degrees <= 360.0:
            self.fail(f"{value!r} is not an angle in degrees; give -360 to 360, or auto to search for it", param, ctx)
        return degrees


class _TiltList(click.ParamType):
    """``3,7-9`` -> (3, 7, 8, 9): stack indices counted from 0, as in ``BASE_align.json``."""

    name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        indices: set[int] = set()
        for part in str(value).split(","):
            first, dash, last = (word.strip() for word in part.partition("-"))
            if not (first + last).isascii() or not first.isdecimal() or (dash and not last.isdecimal()):
                self.fail(f"{value!r} is not a list of tilts; write it as 3,7-9, counting from 0", param, ctx)
            low, high = int(first), int(last or first)
            if high < low:
                self.fail(f"{part.strip()!r} runs backwards; write {high}-{low}", param, ctx)
            indices.update(range(low, high + 1))
        return tuple(sorted(indices))


class _Memory(click.ParamType):
    """``4G``, ``500M`` or plain GiB -> bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        unit = {"M": 2.0**20, "G": 2.0**30, "T": 2.0**40}.get(text[-1:], 0.0)
        number = text[:-1] if unit else text
        size = float(number) * (unit or 2.0**30) if PLAIN_NUMBER.fullmatch(number) else 0.0
        if not 0 < size < float("inf"):
            self.fail(f"{value!r} is not a size of memory; write it as 4G or 500M", param, ctx)
        return size


MEMORY = _Memory()
TILT_AXIS = _TiltAxis()
TILT_LIST = _TiltList()


def device_option(default: str = "cpu", more: str = "") -> Callable[[Any], Any]:
    """``--device``; ``more`` goes on with its help."""
    said = f"What computes; auto takes a GPU if there is one{more}."
    return click.option("--device", default=default, metavar="auto|cpu|cuda[:N]", help=said)


def typed_options(context: click.Context) -> set[str]:
    """Names of the options that were on the command line."""
    return {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}


def echo_defaults(rows: Iterable[tuple[str, object, str]]) -> None:
    """Print (what, value, where it came from) as a table: every value a run uses that was not typed in.

    Those called ``note`` are sentences: they follow as lines of their own, since a table would cut them off.
    """
    rows = list(rows)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="left")
    table.add_column()
    for what, value, source in rows:
        if what != NOTE:
            table.add_row(what, shown(str(value)), shown(source))
    if table.row_count:
        # a log has no width: let no line be broken there
        width = None if sys.stdout.isatty() else LOG_WIDTH
        Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False).print(table)
    for what, value, _ in rows:
        if what == NOTE:
            click.echo(f"{NOTE}: {shown(str(value))}")


class Progress:
    """Loss, current scale and time left: one line rewritten on a terminal, a plain line every 5 s in a log.

    Use::

        with Progress("joint fit") as progress:
            progress(fraction, scale="bin 4", loss=0.93)   # fraction of the work done, 0..1
    """

    def __init__(self, task: str, stream: TextIO | None = None) -> None:
        self.task = task
        self.stream = stream or sys.stderr
        self.on_terminal = self.stream.isatty()
        self.interval_s = TERMINAL_INTERVAL_S if self.on_terminal else LOG_INTERVAL_S
        self._start = self._shown = time.monotonic()
        self._seen: list[tuple[float, float]] = []  # when what fraction was done
        self._line_open = False

    def __enter__(self) -> Progress:
        self._start = self._shown = time.monotonic()
        return self

    def __call__(
        self, fraction: float, *, scale: str = "", loss: float | None = None, held_out: float | None = None
    ) -> None:
        """Report the fraction of the work done; prints only when the last line is old enough."""
        now = time.monotonic()
        if not self._seen:
            self._seen.append((now, fraction))
        if now - self._shown < self.interval_s:
            return
        self._shown = now
        parts = [f"{self.task} {100 * fraction:3.0f} %"]
        if scale:
            parts.append(scale)
        if loss is not None:
            parts.append(f"loss {loss:.5g}")
        if held_out is not None:
            parts.append(f"held-out loss {held_out:.5g}")
        left = self._left_s(now, fraction)
        if left is not None:
            parts.append(f"{_duration(left)} left")
        self._write("  ".join(parts))

    def _left_s(self, now: float, fraction: float) -> float | None:
        """Time left at the speed since half of the time so far; None before anything was seen to move.

        What came before the first report is preparation, and scales differ in how well they keep to their share.
        """
        while len(self._seen) > 1 and self._seen[1][0] < (self._start + now) / 2:
            self._seen.pop(0)
        then, before = self._seen[0]
        self._seen.append((now, fraction))
        return (1 - fraction) * (now - then) / (fraction - before) if fraction > before else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.monotonic() - self._start
        if self._line_open:
            self.stream.write("\r\x1b[K")
            self._line_open = False
        if kind is None and (self.on_terminal or elapsed >= self.interval_s):
            self.stream.write(f"{self.task} done in {_duration(elapsed)}\n")
        self.stream.flush()

    def _write(self, line: str) -> None:
        if self.on_terminal:
            self.stream.write(f"\r\x1b[K{line}")
            self._line_open = True
        else:
            self.stream.write(f"{line}\n")
        self.stream.flush()


def _duration(seconds: float) -> str:
    """``7 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
