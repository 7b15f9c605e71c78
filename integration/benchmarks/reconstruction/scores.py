"""Numbers for a reconstruction of a known specimen; what each means is in the README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.metrics.conventions import HALF_MAPS
from inrtomo.metrics.fsc import central_region, frc, transforms
from inrtomo.metrics.image_quality import VIF_SMALLEST_SIDE, psnr, ssim, vif
from inrtomo.metrics.likeness import on_grey_scale
from inrtomo.metrics.registration import translated, translation_between
from inrtomo.metrics.shells import ShellCorrelation
from inrtomo.metrics.volume import best_isotropic_filter_cc, cc
from inrtomo.reconstruct.wedge import measured_region

F32 = NDArray[np.float32]
Array = NDArray[np.float64]


def image_scores(volume: F32, truth: F32) -> dict[str, Any]:
    """PSNR, SSIM, VIF, FRC and CC of volumes ``[z, y, x]`` that lie over each other, on the truth's grey scale."""
    seen = on_grey_scale(volume, truth)
    span = float(np.ptp(truth))
    across, true_across = (np.ascontiguousarray(v.transpose(1, 0, 2)) for v in (seen, truth))
    rings = frc(across, true_across, 1.0)[0]
    pairs = [(a, b) for a, b in zip(across, true_across, strict=True)]
    return {
        "psnr": psnr(seen, truth, span),
        "ssim": ssim(seen, truth, span),
        "vif": vif(seen, truth, span) if min(truth.shape[1:]) >= VIF_SMALLEST_SIDE else None,
        "frc_mean": rings.mean(),
        "frc_px": finite(rings.resolution_A(0.5)),
        "cc": cc(volume, truth, (slice(None),) * 3),
        "psnr_of_y": [round(psnr(a, b, span), 3) for a, b in pairs],
        "ssim_of_y": [round(ssim(a, b, span), 4) for a, b in pairs],
        "frc": np.round(rings.correlation, 4).tolist(),
    }


def volume_scores(
    volume: F32, truth: F32, pixel_size_A: float, tilt_deg: Sequence[float] | Array, bar: Array | None = None
) -> dict[str, Any]:
    """CC and FSC of a volume against the true specimen, after the best translation.

    Args:
        tilt_deg: of the tilts used.
        bar: FSC of every shell that is to be surpassed up to where it first falls below 0.143.
    """
    shift = translation_between(volume, truth)
    volume = translated(volume, shift)
    shells, x, y = transforms(volume, truth)
    nz, ny, nx = (part.stop - part.start for part in central_region(truth.shape))
    measured = np.broadcast_to(measured_region((nz, ny, nx), np.asarray(tilt_deg)) >= 0.5, x.shape)
    every, inside, wedge = shells.correlation(x, y, pixel_size_A, (None, measured, ~measured))
    scores: dict[str, Any] = {
        "cc": cc(volume, truth),
        "best_filter_cc": best_isotropic_filter_cc(volume, truth),
        "fsc_mean": every.mean(),
        "fsc_measured": inside.mean(),
        "fsc_wedge": wedge.mean(),
        "resolution_A": finite(every.resolution_A(0.5)),
        "registered_by_px": shift.tolist(),
        "fsc": np.round(every.correlation, 4).tolist(),
    }
    if bar is not None:
        reach = up_to_crossing(bar)
        lead = every.correlation[:reach] - bar[:reach]
        scores |= {"shells_above": float((lead > 0).mean()), "worst_shell": float(lead.min()), "shells": reach}
    return scores


def up_to_crossing(curve: Array) -> int:
    """How many shells there are before an FSC first falls below 0.143, at least one."""
    below = np.flatnonzero(np.asarray(curve) < HALF_MAPS)
    return max(1, int(below[0])) if len(below) else len(curve)


def half_fsc(a: F32, b: F32, pixel_size_A: float) -> ShellCorrelation:
    """FSC of two halves ``[z, y, x]``, in the middle of the view."""
    shells, x, y = transforms(a, b)
    return shells.correlation(x, y, pixel_size_A)[0]


def finite(value: float) -> float | None:
    """For JSON: None for a curve that never rises above the threshold."""
    return value if np.isfinite(value) else None
