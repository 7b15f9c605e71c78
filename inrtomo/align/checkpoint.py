"""A run's state on disk, so that a killed run goes on where it was.

One ``.npz`` file, replaced by rename: whenever the machine stops, the file is the last complete state.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.files import atomic_path
from inrtomo.io.npz import read_npz

FORMAT = 2
SAVE_EVERY_S = 15.0
SAVE_COST = 0.05  # of the time, at most,
LATEST_S = 50.0  # unless that would lose a minute


@dataclass
class Checkpoint:
    """State of a run: finished stages as JSON-able values, and arrays.

    Args:
        path: the file; None keeps everything in memory only.
        identity: what has to be the same for a state to be of use (input fingerprint, settings), JSON-able.
    """

    path: Path | None
    identity: dict[str, Any]
    stages: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    _saved_at: float = field(default_factory=time.monotonic)
    _took_s: float = 0.0

    @classmethod
    def resume(cls, path: Path, identity: dict[str, Any]) -> Checkpoint:
        """Read the state in ``path``; it has to be of a run with the same identity.

        Raises:
            InputError: unreadable file, or another input or other settings (named).
        """
        try:
            arrays = read_npz(path)
            head = dict(json.loads(str(arrays.pop("__head__"))))
            before, stages = dict(head.get("identity", {})), dict(head.get("stages", {}))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: not a checkpoint ({error}); start anew with --overwrite") from None
        now = json.loads(json.dumps(identity))
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if head.get("format") != FORMAT:
            raise InputError(f"{path}: written by another version of inrtomo; start anew with --overwrite")
        if changed:
            raise InputError(
                f"{path}: belongs to a run with other {', '.join(changed)}; give the same ones, or start "
                "anew with --overwrite"
            )
        return cls(path, identity, stages, arrays)

    @classmethod
    def begun(cls, path: Path | None, identity: dict[str, Any], resume: bool) -> Checkpoint:
        """The state in ``path`` where a run is to go on and there is one (as `resume`), else an empty one."""
        if resume and path is not None and path.exists():
            return cls.resume(path, identity)
        return cls(path, identity)

    def save(self) -> None:
        """Write the state; replaces the file by rename."""
        begun = self._saved_at = time.monotonic()
        if self.path is None:
            return
        head = json.dumps({"format": FORMAT, "identity": self.identity, "stages": self.stages})
        with atomic_path(self.path, overwrite=True) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, allow_pickle=False, __head__=np.array(head), **self.arrays)
        self._saved_at = time.monotonic()
        self._took_s = self._saved_at - begun

    @property
    def is_due(self) -> bool:
        """Whether the last save is long enough ago; never where there is nothing to save to."""
        wait = min(max(SAVE_EVERY_S, self._took_s / SAVE_COST), LATEST_S)
        return self.path is not None and time.monotonic() - self._saved_at >= wait

    def part(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The arrays stored under ``prefix.``, without it."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.arrays.items() if name.startswith(start)}

    def set_part(self, prefix: str, values: Mapping[str, NDArray[Any]] | None) -> None:
        """Replace the arrays under ``prefix.``; None removes them."""
        self.arrays = {name: v for name, v in self.arrays.items() if not name.startswith(f"{prefix}.")}
        for name, value in (values or {}).items():
            self.arrays[f"{prefix}.{name}"] = value


def check_unfinished(path: Path, resume: bool, overwrite: bool) -> None:
    """Refuse (InputError) to leave the state of an unfinished run behind, unless told what to do with it."""
    if path.exists() and not (resume or overwrite):
        raise InputError(f"{path}: an unfinished run; --resume goes on with it, --overwrite starts anew")


class Fingerprint:
    """Hash of a series: shape ``(n, ny, nx)``, angles, and every image's pixels (every seventh of them)."""

    def __init__(self, shape: tuple[int, ...], tilt_deg: NDArray[np.float64]) -> None:
        self._digest = hashlib.sha256(repr((tuple(shape), np.round(tilt_deg, 4).tolist())).encode())

    def add(self, image: NDArray[Any]) -> None:
        """The next raw image; not a binned one, which another device would give with other last digits."""
        self._digest.update(np.ascontiguousarray(image.ravel()[::7], dtype=np.float32).tobytes())

    @property
    def text(self) -> str:
        """24 hexadecimal digits."""
        return self._digest.hexdigest()[:24]


class Stopped(Exception):
    """A signal was noted and the state is saved: leave the loop."""


class Interrupts:
    """Ctrl-C and SIGTERM held back until a moment when the state is whole."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def held_back(self) -> Iterator[Interrupts]:
        """Within the block a first signal is only noted (a second one acts at once).

        The loop inside looks at `received`, saves, and raises `Stopped`; the signal then has its usual effect.
        """

        def note(number: int, frame: FrameType | None) -> None:
            if self.received is not None:
                signal.signal(number, before[number])
                signal.raise_signal(number)
            self.received = number

        before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup: stays ignored
                    before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: signals go elsewhere
            pass
        try:
            yield self
        except Stopped:
            pass
        finally:
            for restored, handler in before.items():
                signal.signal(restored, handler)
        if self.received is not None:
            noted, self.received = self.received, None
            signal.raise_signal(noted)
