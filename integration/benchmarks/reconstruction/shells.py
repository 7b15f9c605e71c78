"""Random ellipsoid shells, -70 to 69.5 degrees by 1.5, Gaussian noise: the table of the tensorial density fields.

Adaptive TensorDF's figure 4 (noise), tables 1 and 2 (sizes of the factors) and 4 (what its priors and its quadtree
do, there on real series by CNR and ENL). Volume in 0..1; projections are density times path in voxels over the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from integration.benchmarks.reconstruction.ellipsoids import ellipsoid_shells
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, Record
from integration.benchmarks.reconstruction.methods import (
    FIELDS,
    OF_TENSORS,
    ONE_NODE,
    Fitted,
    Imaged,
    fitted_volume,
    reconstruct,
    sart_tv,
)
from integration.benchmarks.reconstruction.scores import image_scores

F32 = NDArray[np.float32]

SIZE = 64
TILT_DEG = np.arange(-70, 69.6, 1.5)
NOISE = (0.01, 0.04, 0.08, 0.12)
METHODS = ("FBP", "SIRT", "SART+TV", "SART+TV best", "hash", "tensor")
VARIATIONS = (0.25, 0.5, 1.0, 2.0, 4.0)
SWEPT_AT = 0.08
ABLATIONS: dict[str, Fitted] = {
    "all": FIELDS["tensor"],
    "no IFP": Fitted("tensor", replace(OF_TENSORS, isotropic=0.0)),
    "no TV": Fitted("tensor", replace(OF_TENSORS, variation=0.0)),
    "no boundary consistency": Fitted("tensor", replace(OF_TENSORS, boundary=0.0)),
    "no quadtree": Fitted("tensor", replace(OF_TENSORS, boundary=0.0), plane=ONE_NODE),
    "no quadtree, IFP, TV": Fitted("tensor", replace(OF_TENSORS, variation=0.0, isotropic=0.0, boundary=0.0), ONE_NODE),
}
PLANES = (10, 14, 18, 22, 26, 30)
FEATURES = (4, 8, 12, 16, 20, 24)

COLUMNS: tuple[Column, ...] = (
    ("PSNR (dB)", "psnr", "{:.2f}"),
    ("SSIM", "ssim", "{:.3f}"),
    ("VIF", "vif", "{:.3f}"),
    ("CC", "cc", "{:.3f}"),
    ("weight", "variation", "{:g}"),
    ("processor time (s)", "job_cpu_s", "{:.0f}"),
)


def jobs(options: Options) -> Iterator[Job]:
    """Noise levels, then ablations and sizes at one of them."""
    size = options.size or SIZE
    for seed in options.seeds:
        for noise in NOISE:
            for name in options.methods or METHODS:
                yield Job(f"{size} px, {name}, noise {noise:g}", seed, _of_method(name, size, seed, noise))
    if options.methods:
        return
    tables = {
        "ablations": ABLATIONS,
        "plane": {f"plane {n}": replace(FIELDS["tensor"], plane=n) for n in PLANES},
        "features": {f"{n} features": replace(FIELDS["tensor"], features=n) for n in FEATURES},
    }
    for table, variants in tables.items():
        for seed in options.seeds:
            for row, fitted in variants.items():
                yield Job(f"{size} px, {table}, {row}", seed, _of_variant(table, row, fitted, size, seed))


def _of_method(name: str, size: int, seed: int, noise: float) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        truth, series = phantom(size, seed, noise)
        head = {"table": _title(size, noise), "row": name}
        if name != "SART+TV best":
            return [{**head, **image_scores(reconstruct(name, series, seed), truth)}]
        tried = [{"variation": v, **image_scores(sart_tv(series, v), truth)} for v in VARIATIONS]
        return [{**head, **max(tried, key=lambda scores: scores["psnr"])}]

    return run


def _of_variant(table: str, row: str, fitted: Fitted, size: int, seed: int) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        truth, series = phantom(size, seed, SWEPT_AT)
        head = {"table": f"tensor, {table}: {_title(size, SWEPT_AT)}", "row": row}
        return [{**head, **image_scores(fitted_volume(series, fitted, seed), truth)}]

    return run


def _title(size: int, noise: float) -> str:
    return f"shells, {size} x {size} x {size}, noise sd {noise:g} (density x voxels / {size})"


@lru_cache(maxsize=2)
def phantom(size: int, seed: int, noise: float) -> tuple[F32, Imaged]:
    """Truth ``[z, y, x]`` and images; these in density x px of path, so the noise is ``noise * size``."""
    shells = ellipsoid_shells(seed, size)
    images = shells.images(TILT_DEG, (size, size))
    white = np.random.default_rng((seed, 1)).standard_normal(images.shape, dtype=np.float32)
    images += np.float32(noise * size) * white
    return shells.volume((size, size, size)), Imaged(images, Alignment.identity(TILT_DEG, (size, size)), size)
