"""Measures of images and volumes against the truth (PSNR, SSIM, VIF) or against themselves (CNR, ENL).

Those against the truth need both on one grey scale and laid over each other. CNR and ENL need no truth and reward any
smoothing, so they are never to be reported alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from inrtomo.metrics.registration import same_shape

Image = NDArray[Any]
Bools = NDArray[np.bool_]

VIF_NOISE_VARIANCE = 2.0 / 255**2
"""Of the visual system, for images from 0 to 1: Sheikh & Bovik's 2 for grey levels 0 to 255."""
VIF_SMALLEST_SIDE = 41
"""Four scales of a pyramid fit into no smaller image."""


def psnr(image: Image, truth: Image, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio, dB: ``10 log10(data_range^2 / mean((image - truth)^2))``; inf for equal ones.

    Args:
        image, truth: of any one shape.
        data_range: of the grey scale; that of the truth if None.

    Raises:
        ValueError: different shapes, or a constant truth and no range.
    """
    span = _data_range(image, truth, data_range)
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(_float(truth), _float(image), data_range=span))


def ssim(image: Image, truth: Image, data_range: float | None = None) -> float:
    """Structural similarity (Wang et al. 2004), mean over an image or, with a window of three dimensions, a volume.

    In a Gaussian window of standard deviation 1.5 around every voxel, with means m, variances v and covariance c,
    ``(2 mx my + (0.01 L)^2)(2 c + (0.03 L)^2) / (mx^2 + my^2 + (0.01 L)^2) / (vx + vy + (0.03 L)^2)``, L the data
    range (the truth's if None). 1 for equal ones. Raises ValueError as `psnr`, and for sides below 11.
    """
    span = _data_range(image, truth, data_range)
    value = structural_similarity(
        _float(truth), _float(image), data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(value)


def vif(image: Image, truth: Image, data_range: float | None = None) -> float:
    """Visual information fidelity in the pixel domain (Sheikh & Bovik 2006, VIFp), mean over the images of a stack.

    What the image tells of the truth over what the truth tells of itself, at four scales, through a channel with
    noise of variance n: ``sum log(1 + g^2 s / (v + n)) / sum log(1 + s / n)`` with, in Gaussian windows, s the
    truth's variance, g the factor of the best fit of the image to the truth and v the variance it leaves. 1 for equal
    ones, 0 for unrelated ones; more contrast than the truth has gives more than 1.

    Args:
        image, truth: ``(y, x)`` or a stack or volume ``(n, y, x)``, seen plane by plane.
        data_range: of the grey scale, which sets n; that of the truth if None.

    Raises:
        ValueError: different shapes, sides below 41, or a constant truth and no range.
    """
    span = _data_range(image, truth, data_range)
    if min(np.shape(truth)[-2:]) < VIF_SMALLEST_SIDE:
        raise ValueError(f"VIF needs images of at least {VIF_SMALLEST_SIDE} x {VIF_SMALLEST_SIDE} pixels")
    import torch  # takes seconds to load, which nothing else here needs
    from torchmetrics.functional.image import visual_information_fidelity

    low = np.min(truth)
    values = []
    for one, two in zip(*(_float(v).reshape(-1, *np.shape(v)[-2:]) for v in (image, truth)), strict=True):
        if np.ptp(two) > 0:  # a plane of the truth without any contrast has nothing to tell
            x, y = (torch.from_numpy((plane - low) / span)[None, None] for plane in (one, two))
            values.append(float(visual_information_fidelity(x, y, VIF_NOISE_VARIANCE)))
    return float(np.mean(values))


def cnr(image: Image, feature: Bools, background: Bools) -> float:
    """Contrast-to-noise ratio of two regions, ``|mean_f - mean_b| / sqrt(var_f + var_b)``.

    Args:
        image: of any shape; feature, background: masks of that shape.

    Raises:
        ValueError: a region without voxels.
    """
    inside, outside = _region(image, feature), _region(image, background)
    spread = float(np.sqrt(inside.var() + outside.var()))
    difference = abs(float(inside.mean() - outside.mean()))
    return difference / spread if spread > 0 else (float("inf") if difference else 0.0)


def enl(image: Image, region: Bools) -> float:
    """Equivalent number of looks of a region that should be uniform, ``mean^2 / var``; inf where it is constant.

    It depends on where zero is: compare images on one grey scale only. Raises ValueError for a region without voxels.
    """
    values = _region(image, region)
    variance = float(values.var())
    return float(values.mean()) ** 2 / variance if variance > 0 else float("inf")


def _float(image: Image) -> Image:
    """Float32 or float64, as the libraries take it."""
    return np.asarray(image, dtype=np.float64 if np.asarray(image).dtype == np.float64 else np.float32)


def _data_range(image: Image, truth: Image, given: float | None) -> float:
    same_shape(image, truth)
    span = float(np.ptp(truth)) if given is None else given
    if not span > 0:
        raise ValueError("the truth is constant; give the data range")
    return span


def _region(image: Image, mask: Bools) -> NDArray[np.float64]:
    same_shape(image, mask)
    values = np.asarray(image)[np.asarray(mask, dtype=bool)].astype(np.float64)
    if not values.size:
        raise ValueError("a region without voxels")
    return values
