"""A folder into which a microscope writes: which of its stacks are complete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from inrtomo.batch.manifest import HALF_ENDS, Series, name_stacks, stacks_in
from inrtomo.errors import InputError
from inrtomo.io.names import MAX_NAME_BYTES
from inrtomo.tiltseries import open_tilt_series

LOOK_S = 5.0


class Watch:
    """A stack is complete when its size has stayed the same for ``settle_s`` and its angles are there, one an image.

    ``idle_s``: without anything new for so long it is over; None: never. ``has_angles``: they are given to all alike.
    """

    def __init__(
        self, folder: Path, known: Mapping[str, str], settle_s: float, idle_s: float | None, has_angles: bool = False
    ) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the one that the microscope writes to")
        self.folder, self.settle_s, self.idle_s, self.has_angles = folder, settle_s, idle_s, has_angles
        self.unready: dict[Path, str] = {}
        """Stacks seen that are not complete, and what they wait for."""
        self._names = dict(known)
        self._seen: dict[Path, tuple[int, float]] = {}  # size, and since when (monotonic)
        self._given: set[Path] = set()
        self._looked = -LOOK_S
        self._changed = time.monotonic()

    def __call__(self) -> list[Series] | None:
        """Series that are complete since the last call; None when it is over."""
        now = time.monotonic()
        if now - self._looked < min(LOOK_S, self.settle_s):
            return []
        self._looked = now
        # odd or even frames are no series of their own, whether or not the full stack is there yet
        stacks = [path.absolute() for path in stacks_in(self.folder) if not path.stem.endswith(HALF_ENDS)]
        ready = [path for path in stacks if path not in self._given and self._is_complete(path, now)]
        self._given.update(ready)
        if ready:
            self._changed = now
        elif self.idle_s is not None and now - self._changed > self.idle_s:
            return None
        for path in [path for path in ready if len(path.stem.encode(errors="replace")) > MAX_NAME_BYTES]:
            ready.remove(path)
            self.unready[path] = f"its name has more than {MAX_NAME_BYTES} bytes; shorten it"
        names = name_stacks(ready, self._names)
        self._names |= {str(path): name for path, name in names.items()}
        return [Series(name, str(path)) for path, name in names.items()]

    def _is_complete(self, path: Path, now: float) -> bool:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        before, since = self._seen.get(path, (-1, now))
        if size != before:
            self._seen[path], self._changed = (size, now), now
            self.unready[path] = "is being written"
            return False
        if now - since < self.settle_s:
            return False
        if not self.has_angles:
            try:
                open_tilt_series(path)
            except InputError as error:
                self.unready[path] = str(error)
                return False
            except OSError as error:
                self.unready[path] = f"cannot be read: {error}"
                return False
        self.unready.pop(path, None)
        return True
