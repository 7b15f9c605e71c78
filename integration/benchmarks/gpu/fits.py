"""Fits with all that they can have, a few steps of each on the CPU and on the device: do their losses agree?

Steps on a device are recorded as CUDA graphs, with automatic differentiation, Fourier transforms and random points in
them; from the third step of a kind on they are replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from inrtomo.alignment import Alignment
from inrtomo.reconstruct.ctf_correction import CtfOperator
from inrtomo.reconstruct.field import FieldFit, FieldSettings, Priors, Recording
from inrtomo.simulate import SimulationSettings, simulate

SIZE, THICKNESS_PX = 96, 24
STEPS = (8, 6)
DEFOCUS_A = 2e4
BACKGROUND, GAIN = 60.0, -6.0  # counts, for losses of counts
CASES: dict[str, dict[str, Any]] = {
    "hash": {},
    "voxel": {"field": "voxel", "loss": "huber"},
    "tensor": {"field": "tensor", "priors": Priors(boundary=1.0)},
    "mlp": {"field": "mlp"},
    "siren": {"field": "siren"},
    "Fourier priors": {"priors": Priors(wedge=1.6, isotropic=1.0)},
    "Poisson's law": {"loss": "poisson"},
    "read noise and counts": {"loss": "heteroscedastic"},
    "transfer function": {},
}


def fits(device: str) -> Iterator[tuple[str, float]]:
    """How far the losses of a reconstruction's steps are apart, relatively, at the worst."""
    series = simulate(
        SimulationSettings(size=(SIZE, SIZE), thickness_px=THICKNESS_PX, tilt_step_deg=6, beads=0, seed=1)
    )
    images = np.asarray(series.images, dtype=np.float32)
    images = -(images - images.mean(axis=(1, 2), keepdims=True)) / images.std()
    for name, options in CASES.items():
        losses = [_losses(images, series.alignment, name, options, where) for where in ("cpu", device)]
        yield name, float(np.max(np.abs(losses[1] / losses[0] - 1)))


def _losses(
    images: np.ndarray[Any, Any], alignment: Alignment, name: str, options: dict[str, Any], device: str
) -> np.ndarray[Any, Any]:
    """Of fitted and of held-out pixels ``(steps, 2)``."""
    n = len(images)
    transfer = partial(CtfOperator, alignment, DEFOCUS_A, pixel_size_A=8.0) if name == "transfer function" else None
    counts = {"background": np.full(n, BACKGROUND), "gain": np.full(n, GAIN), "read": np.full(n, 0.2)}
    settings = FieldSettings(steps=STEPS, device=device, **options)
    recording = Recording(transfer, **(counts if "loss" in options else {}))
    fit = FieldFit(images, np.ones_like(images), alignment, THICKNESS_PX, settings, 0, recording)
    fit.optimise()
    return np.array(fit.losses)[:, 2:]
