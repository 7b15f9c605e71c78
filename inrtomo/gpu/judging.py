"""What residuals cost on a device, pixel by pixel, and the slope of that: `inrtomo.losses` in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.losses import FEWEST, HUBER_DELTA

Tensor = torch.Tensor
Judge = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Loss of every residual ``(n, rows, cols)`` of a batch of tilts, and its derivative."""


def judge_of(kind: str) -> Judge:
    """For ``"l1"``, ``"l2"`` and ``"huber"``, in units of the noise; see `inrtomo.losses.Loss`."""
    return {"l1": _absolute, "l2": _square, "huber": _huber}[kind]


def _absolute(residual: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    return residual.abs(), residual.sign()


def _square(residual: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    return 0.5 * residual**2, residual


def _huber(residual: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    size = residual.abs()
    far = HUBER_DELTA * (size - 0.5 * HUBER_DELTA)
    return torch.where(size <= HUBER_DELTA, 0.5 * residual**2, far), residual.clamp(-HUBER_DELTA, HUBER_DELTA)


class CountJudge:
    """As `inrtomo.losses.CountLoss`, with the images of all tilts at hand.

    Args:
        kind: ``"poisson"`` or ``"heteroscedastic"``.
        images: ``(n_tilts, rows, cols)``, noise sd 1 at the background.
        contrast: gain over background ``(n_tilts,)``.
        read: part of the variance that is read noise, ``(n_tilts,)``.
    """

    def __init__(self, kind: str, images: Tensor, contrast: NDArray[Any], read: NDArray[Any]) -> None:
        self._images = images
        self._judge = {"poisson": self._poisson, "heteroscedastic": self._heteroscedastic}[kind]
        self._contrast, self._read = (
            torch.tensor(np.asarray(values), dtype=images.dtype, device=images.device)[:, None, None]
            for values in (contrast, read)
        )

    def __call__(self, residual: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return self._judge(residual, self._images[part], self._contrast[part], self._read[part])

    def _poisson(self, residual: Tensor, image: Tensor, contrast: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        seen = 1 + contrast * image
        expected = seen + contrast * residual
        floor, seen = expected.clamp_min(FEWEST), seen.clamp_min(0)
        more, below = floor - seen, expected - floor
        # m - c + c log(c / m), where c is not 0, without the difference of nearly equal terms
        ratio = more / torch.where(seen > 0, seen, 1)
        value = torch.where(seen > 0, seen * (ratio - torch.log1p(ratio)), floor)
        first, second = more / floor, seen / floor**2
        value = value + first * below + 0.5 * second * below**2
        return value / contrast**2, (first + second * below) / contrast

    def _heteroscedastic(
        self, residual: Tensor, image: Tensor, contrast: Tensor, read: Tensor
    ) -> tuple[Tensor, Tensor]:
        shot, expected = 1 - read, 1 + contrast * (image + residual)
        variance = read + shot * expected.clamp_min(FEWEST)
        square = residual**2 / variance
        grows = 0.5 * (1 - square) / variance * shot * contrast
        return 0.5 * (square + variance.log()), residual / variance + torch.where(expected > FEWEST, grows, 0)
