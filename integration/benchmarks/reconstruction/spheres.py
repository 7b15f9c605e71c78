"""Hollow spheres, +-60 degrees: what the Fourier penalty gains, slice by slice, and with counted electrons.

After the missing-wedge coordinate network's report (its figures 7, 8, 10 and 11); specimen 8 times smaller, as in its
figure 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from integration.benchmarks.reconstruction.ellipsoids import hollow_spheres
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, Record
from integration.benchmarks.reconstruction.methods import Imaged, reconstruct
from integration.benchmarks.reconstruction.scores import image_scores

F32 = NDArray[np.float32]

SIZE = 128
TILTS = 60
FEW_TILTS = 21  # as sparse for this slab, nearly, as 60 are for one of full size: its Crowther frequency is 0.15 per px
BACKGROUND_NOISE = 0.01  # of the highest projection; without any, weights in units of noise mean nothing
POISSON = (0.1, 0.3, 1.0)
METHODS = ("FBP", "SIRT", "SART+TV", "hash", "hash+wedge", "siren", "siren+wedge")
OF_POISSON = ("FBP", "hash", "hash+wedge")

COLUMNS: tuple[Column, ...] = (
    ("PSNR (dB)", "psnr", "{:.2f}"),
    ("SSIM", "ssim", "{:.3f}"),
    ("VIF", "vif", "{:.3f}"),
    ("mean FRC", "frc_mean", "{:.3f}"),
    ("FRC 0.5 (voxels)", "frc_px", "{:.2f}"),
    ("CC", "cc", "{:.3f}"),
    ("PSNR of y: least", "psnr_least", "{:.1f}"),
    ("most", "psnr_most", "{:.1f}"),
    ("sd", "psnr_sd", "{:.2f}"),
    ("SSIM of y: least", "ssim_least", "{:.3f}"),
    ("most", "ssim_most", "{:.3f}"),
    ("sd", "ssim_sd", "{:.3f}"),
    ("processor time (s)", "job_cpu_s", "{:.0f}"),
)


def jobs(options: Options) -> Iterator[Job]:
    """Every method without counting noise, with all and with few tilts, then some at every level of it."""
    size = options.size or SIZE
    variants = [(TILTS, 0.0, METHODS), (FEW_TILTS, 0.0, METHODS), *((TILTS, level, OF_POISSON) for level in POISSON)]
    for seed in options.seeds:
        for tilts, level, own in variants:
            for name in options.methods or own:
                what = f"{size} px, {tilts} tilts, {name}, Poisson {level:g}"
                yield Job(what, seed, _job(name, size, tilts, seed, level))


def _job(name: str, size: int, tilts: int, seed: int, level: float) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        truth, series = phantom(size, tilts, seed)
        series = replace(series, images=counted(series.images, level, seed))
        scores = image_scores(reconstruct(name, series, seed), truth)
        for key in ("psnr", "ssim"):
            of_y = np.array(scores[f"{key}_of_y"])
            of_y = of_y[np.isfinite(of_y)]
            scores |= {f"{key}_least": of_y.min(), f"{key}_most": of_y.max(), f"{key}_sd": of_y.std()}
        specimen = "hollow spheres, " + " x ".join(str(n) for n in truth.shape[::-1])
        return [{"table": f"{specimen}, {tilts} tilts, Poisson level {level:g}", "row": name, **scores}]

    return run


@lru_cache(maxsize=2)
def phantom(size: int, tilts: int, seed: int) -> tuple[F32, Imaged]:
    """Truth ``[z, y, x]`` of a slab a quarter as high as it is wide, and its images with weak noise."""
    shape = size // 4, size, size
    tilt_deg = np.linspace(-60, 60, tilts)
    spheres = hollow_spheres(seed, shape)
    images = spheres.images(tilt_deg, (size, size))
    noise = np.random.default_rng((seed, 1)).standard_normal(images.shape, dtype=np.float32)
    images += np.float32(BACKGROUND_NOISE * images.max()) * noise
    return spheres.volume(shape), Imaged(images, Alignment.identity(tilt_deg, (size, size)), shape[0])


def counted(images: F32, level: float, seed: int) -> F32:
    """Images as counts, ``1 / level^2`` at the highest pixel, so that the noise there is ``level`` of the signal."""
    if level == 0:
        return images
    quantum = float(images.max()) * level**2
    counts = np.random.default_rng((seed, 2)).poisson(np.maximum(images, 0) / quantum)
    return np.asarray(counts * quantum, dtype=np.float32)
