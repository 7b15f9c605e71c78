"""Damage for files, and what reading a damaged file may come to: something sound, or a sentence that names it.

Within bounds of memory and of the processor's time (not of the clock's: other programs may have it), so that neither
a lying header nor an endless loop goes unseen.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

from inrtomo.errors import InputError

EXAMPLES = 150
MOST_BYTES = 2**29
"""What reading a file of some kB may take beyond what the process has."""
MOST_S = 20.0
LIES = (0, 1, 7, -1, 1024, 65536, 2**31 - 1, -(2**31))

SEED = 0
"""The same damage in every run, so that a test fails for a change and not by chance; other seeds look for more."""

_settings = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """Decorate a test that takes damage from ``@given``."""
    return seed(SEED)(_settings(test))


WORDS = st.sampled_from(
    "0 1 -1 2 -4 255 1024 -2147483648 2147483647 65536 1e9 nan inf 1e39 -0 0x10 1_000 ١ ts.mrc a.xf ../.. /dev/zero "
    "[T ZValue = # _ loop_ data_ null true [] {} <a> </a> &amp; ' \" , : \0 é".split(" ")
)
DAMAGE = st.lists(
    st.tuples(st.sampled_from(["drop", "repeat", "replace", "cut", "swap"]), st.integers(0, 10**6), WORDS), max_size=8
)
BYTES = st.lists(st.tuples(st.sampled_from(["byte", "lie", "cut", "insert"]), st.integers(0, 10**9)), max_size=8)


def damaged(text: str, damage: list[tuple[str, int, str]]) -> str:
    """``text`` with words (or the space between them) dropped, repeated, replaced, swapped, or cut off from one on."""
    words = re.findall(r"\s+|[\w.+-]+|[^\s\w]", text)
    for kind, at, word in damage:
        if not words:
            break
        i = at % len(words)
        if kind == "cut":
            del words[i:]
        elif kind == "swap":
            j = (at // 7) % len(words)
            words[i], words[j] = words[j], words[i]
        else:
            words[i : i + 1] = {"drop": [], "repeat": [words[i]] * 2, "replace": [word]}[kind]
    return "".join(words)


def damaged_bytes(data: bytes, damage: list[tuple[str, int]]) -> bytes:
    """``data`` with bytes changed, whole numbers written over others, or everything after one cut off."""
    raw = bytearray(data)
    for kind, at in damage:
        i = at % max(1, len(raw))
        if kind == "cut":
            del raw[i:]
        elif kind == "byte":
            raw[i : i + 1] = bytes([(at // 256) % 256])
        elif kind == "insert":
            raw[i:i] = bytes(at % 5)
        else:
            raw[i : i + 4] = LIES[at % len(LIES)].to_bytes(4, sys.byteorder, signed=True)
    return bytes(raw)


@contextmanager
def read_or_refused(*names: str) -> Iterator[None]:
    """Within the block a file may be refused in one line that has one of the names; anything else fails the test."""
    try:
        with bounded():
            yield
    except InputError as error:
        said = str(error)
        assert any(name in said for name in names), said
        assert len(said.splitlines()) == 1 and len(said) < 1000, said


@contextmanager
def bounded() -> Iterator[None]:
    """MemoryError for more than `MOST_BYTES`, AssertionError after `MOST_S` of the processor's time."""

    def hangs(number: int, frame: FrameType | None) -> NoReturn:
        raise AssertionError(f"reading it takes more than {MOST_S:.0f} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, hangs)
    if sys.platform == "linux":  # the only one that keeps to it
        resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + MOST_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()
