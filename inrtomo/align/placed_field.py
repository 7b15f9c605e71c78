"""A fitted density and where it lies: ``BASE_field.npz``, a field in its fit's frame and the way to the specimen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.fields import DensityField, load_field
from inrtomo.geometry import centred_coordinates
from inrtomo.io.files import atomic_path
from inrtomo.io.npz import read_npz

F32 = NDArray[np.float32]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class PlacedField:
    """A density field, and the motion from its frame to the specimen of an alignment.

    Attributes:
        field: in working px and the frame of the tilt axis that the joint fit had.
        rotation, translation_px: a point F of the field is ``rotation @ F + translation_px`` in the specimen.
        raw_px: raw px in a working px.
    """

    field: DensityField
    rotation: Array
    translation_px: Array
    raw_px: int

    def save(self, path: Path) -> None:
        """Write plain arrays to an ``.npz`` file, which `load_field` reads as well; an older one is replaced."""
        place = {"rotation": self.rotation, "translation_px": self.translation_px, "raw_px": np.array(self.raw_px)}
        with atomic_path(path, overwrite=True) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, allow_pickle=False, **self.field.state_dict(), **place)

    @classmethod
    def load(cls, path: Path) -> PlacedField:
        """Read what `save` wrote. Raises InputError for anything else."""
        field = load_field(path)
        try:
            arrays = read_npz(path)
            rotation, translation, raw_px = (arrays[k] for k in ("rotation", "translation_px", "raw_px"))
            return cls(field, rotation.reshape(3, 3), translation.reshape(3), int(raw_px))
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}: does not say where the density lies ({error}); make it again") from error

    def volume(self, shape: tuple[int, int, int], rotation: Array | None = None, shift_px: Array | None = None) -> F32:
        """Density ``[z, y, x]`` on voxels of one raw px around the specimen's centre; 0 beyond the field's box.

        The voxel at X is read where ``rotation @ X + shift_px`` (raw px) is.
        """
        turn = np.eye(3) if rotation is None else rotation
        move = np.zeros(3) if shift_px is None else shift_px
        box = np.array(self.field.config["box"]).reshape(3, 2)
        z, y, x = (centred_coordinates(n) for n in shape)
        out = np.zeros(shape, dtype=np.float32)
        plane = np.stack([a.ravel() for a in np.meshgrid(x, y, [0.0])], axis=1)
        for k, height in enumerate(z):
            specimen = ((plane + [0.0, 0.0, height]) @ turn.T + move) / self.raw_px
            points = (specimen - self.translation_px) @ self.rotation
            inside = np.all((points >= box[:, 0]) & (points <= box[:, 1]), axis=1)
            section = out[k].reshape(-1)
            section[inside] = self.field.points(points[inside])
        return out
