"""Every number that says how alike a volume is to the truth, on the truth's grey scale.

A tomogram is known up to a factor and a constant, so PSNR, SSIM, VIF and ENL are of the volume after that affine map of
its grey values which brings it closest to the truth; CC and CNR do not depend on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from inrtomo.metrics.fsc import central_region
from inrtomo.metrics.image_quality import VIF_SMALLEST_SIDE, cnr, enl, psnr, ssim, vif
from inrtomo.metrics.volume import best_isotropic_filter_cc, cc

F32 = NDArray[np.float32]
Volume = NDArray[Any]

SSIM_SMALLEST_SIDE = 11
"""Its window."""


def on_grey_scale(volume: Volume, truth: Volume) -> F32:
    """The volume times a constant plus another, those that bring it closest to the truth (least squares)."""
    centred = volume - volume.mean(dtype=np.float64)
    size = float((centred**2).sum(dtype=np.float64))
    slope = float((centred * truth).sum(dtype=np.float64)) / size if size > 0 else 0.0
    return np.asarray(slope * centred + truth.mean(dtype=np.float64), dtype=np.float32)


def likeness(volume: Volume, truth: Volume) -> dict[str, float | None]:
    """CC, CC after the best filter, PSNR, SSIM, VIF, CNR and ENL of a volume ``[z, y, x]`` that lies over the truth.

    In the `central_region`. Regions of CNR and ENL are the truth's own: particles are what lies above Otsu's threshold
    of it, and the background is the rest. None where a side is too small for a measure. Raises ValueError for
    different shapes.
    """
    where = central_region(truth.shape)
    known = np.ascontiguousarray(truth[where])
    seen = on_grey_scale(volume[where], known)
    particles = known > threshold_otsu(known)
    return {
        "cc": cc(volume, truth),
        "cc_after_best_filter": best_isotropic_filter_cc(volume, truth),
        "psnr_db": psnr(seen, known),
        "ssim": ssim(seen, known) if min(known.shape) >= SSIM_SMALLEST_SIDE else None,
        "vif": vif(seen, known) if min(known.shape[1:]) >= VIF_SMALLEST_SIDE else None,
        "cnr": cnr(seen, particles, ~particles),
        "enl": enl(seen, ~particles),
    }
