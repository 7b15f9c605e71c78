"""The tilts of a lattice as the projectors take them: tensors on the device, made once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.projection import Lattice

Array = NDArray[np.float64]


class TiltGeometry:
    """Rays of some tilts through the planes of a lattice, lengths in lattice steps; rows y do not matter.

    Attributes:
        places: ``(tilts, nz)``: ``z sin t``.
        angles: ``(tilts, 4)``: cos t; 1 / m with m = max(|cos t|, |sin t|); how many voxels along x lie under the hat
            of a ray; half the width of that.
        x0, u0: of the first voxel and the first ray.
    """

    def __init__(self, lattice: Lattice, tilt_deg: Array, n_u: int, device: str) -> None:
        tilt = np.deg2rad(np.asarray(tilt_deg, dtype=np.float64))
        nz, nx, _ = lattice.shape
        z = lattice.origin[0] / lattice.spacing + np.arange(nz)
        widest = np.maximum(np.abs(np.cos(tilt)), np.abs(np.sin(tilt)))
        half = widest / np.maximum(np.abs(np.cos(tilt)), 1e-6)
        taps = np.minimum(np.ceil(2 * half - 1e-6), nx)
        self.device, self.n_u, self.n_tilts = device, n_u, len(tilt)
        self.x0, self.u0 = lattice.origin[1] / lattice.spacing, -(n_u - 1) / 2
        self.places = torch.tensor(np.sin(tilt)[:, None] * z, dtype=torch.float32, device=device)
        columns = np.stack([np.cos(tilt), 1 / widest, taps, half], axis=1)
        self.angles = torch.tensor(columns, dtype=torch.float32, device=device)
        self.every = torch.arange(len(tilt), dtype=torch.int32, device=device)
