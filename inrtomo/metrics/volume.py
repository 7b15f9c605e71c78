"""How alike two volumes are, as a number: correlation, as they are and after the best a filter could do.

Volumes are ``[z, y, x]`` of any sides, cubic or not. Curves over frequency are in `inrtomo.metrics.fsc`, measures of
images and volumes in `inrtomo.metrics.image_quality`, laying one volume over the other first in
`inrtomo.metrics.registration`; the names of all are here too. All numbers at once: `inrtomo.metrics.likeness`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.metrics.fsc import central_region, fsc, transforms
from inrtomo.metrics.image_quality import cnr, enl, psnr, ssim, vif
from inrtomo.metrics.registration import resampled, same_shape, translated, translation_between

__all__ = [
    "best_isotropic_filter_cc",
    "cc",
    "central_region",
    "cnr",
    "enl",
    "fsc",
    "psnr",
    "resampled",
    "ssim",
    "translated",
    "translation_between",
    "vif",
]
"""With what nearly every comparison of volumes needs from the modules beside."""

Volume = NDArray[Any]


def cc(a: Volume, b: Volume, region: tuple[slice, ...] | None = None) -> float:
    """Pearson correlation of the voxels of two volumes, in a region (`central_region` by default).

    0 where either is constant. Raises ValueError for different shapes.
    """
    same_shape(a, b)
    where = central_region(np.shape(a)) if region is None else region
    x, y = (np.asarray(v[where], dtype=np.float64) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / size) if size > 0 else 0.0


def best_isotropic_filter_cc(volume: Volume, truth: Volume, region: tuple[slice, ...] | None = None) -> float:
    """Correlation with the truth that the best filter depending on frequency alone could give a volume.

    The filter is the Wiener filter of every shell, made with the truth (never below zero), so this is a bar for a
    denoised volume to pass, not a result. A volume is seen under the same soft edge as in `fsc`.
    """
    shells, x, y = transforms(volume, truth, region)
    cross, power, power_truth = (shells.total(v) for v in ((x * np.conj(y)).real, np.abs(x) ** 2, np.abs(y) ** 2))
    explained = np.divide(np.maximum(cross, 0) ** 2, power, out=np.zeros_like(cross), where=power > 0)
    total = power_truth.sum()
    return float(np.sqrt(explained.sum() / total)) if total > 0 else 0.0
