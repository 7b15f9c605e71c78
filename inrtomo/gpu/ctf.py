"""The transfer function of tilted images in torch: `inrtomo.reconstruct.ctf_correction` on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.reconstruct.ctf_correction import TiltedView, frequencies

F32 = NDArray[np.float32]
Tensor = torch.Tensor
Gain = Callable[[Tensor], Tensor]  # CTF -> filter

POINTS_AT_ONCE = 2**22  # of the boxes that are transformed together


def gathered(view: TiltedView, image: F32, noise: Callable[[F32], F32 | None], device: str) -> F32:
    """As `TiltedView.gather`.

    Args:
        noise: power over that of the signal at frequencies (1/Å), to restore amplitudes; None turns signs alone.
    """
    ratio = noise(frequencies(view.box, view.pixel_size_A).astype(np.float32))
    added = None if ratio is None else torch.tensor(ratio, device=device)

    def gain(ctf: Tensor) -> Tensor:
        return torch.where(ctf < 0, -1.0, 1.0) if added is None else ctf / (ctf * ctf + added)

    sent = torch.tensor(image, dtype=torch.float32, device=device)
    return np.asarray(Strips(view, device).gather(sent, gain).cpu().numpy())


class TransferOnDevice:
    """`CtfOperator` of some tilts.

    All constants are made at once: nothing waits for the host, so that steps can be recorded as a CUDA graph.
    Mirrored margins are folded back with atomics on a GPU.

    Args:
        views: by tilt, see `CtfOperator.view`.
    """

    def __init__(self, views: dict[int, TiltedView], device: str) -> None:
        self._strips = {tilt: Strips(view, device) for tilt, view in views.items()}

    def apply(self, images: Tensor, tilts: Iterable[int]) -> Tensor:
        """Images ``(n, rows, cols)`` that the microscope makes of projections."""
        return torch.stack([self._strips[m].scatter(image, _ctf) for m, image in zip(tilts, images, strict=True)])

    def adjoint(self, images: Tensor, tilts: Iterable[int]) -> Tensor:
        """The transpose of `apply`."""
        return torch.stack([self._strips[m].gather(image, _ctf) for m, image in zip(tilts, images, strict=True)])


def _ctf(ctf: Tensor) -> Tensor:
    return ctf


class Strips:
    """A `TiltedView` with its constants on a device; strips are filtered together, `POINTS_AT_ONCE` at most."""

    def __init__(self, view: TiltedView, device: str) -> None:
        def sent(values: NDArray[Any]) -> Tensor:
            return torch.tensor(np.asarray(values, dtype=np.float32), device=device)

        (height, width), (nodes, self._spacing) = view.box, view.nodes
        self._view, self._device = view, device
        self._rows, self._columns = (torch.tensor(index, device=device) for index in view.mirror)
        self._offset, self._slope = (sent(part) for part in view.phase(view.box))
        self._defocus = sent(view.defocus_A + nodes)[:, None, None]
        # underfocus less that of a strip's centre, by the row and by the column of its box
        corners = np.array([(y.start, x.start) for y, x in view.windows])
        firsts = corners - view.margin - (np.array(view.shape) - 1) / 2
        self._along = sent(view.gradient[1] * (firsts[:, :1] + np.arange(height)) - nodes[:, None])[:, :, None]
        self._across = sent(view.gradient[0] * (firsts[:, 1:] + np.arange(width)))[:, None, :]
        at_once = max(1, POINTS_AT_ONCE // (height * width))
        self._some = [slice(first, min(first + at_once, len(nodes))) for first in range(0, len(nodes), at_once)]
        # of every strip: its window in the image, its box in the padded image, itself in its box
        self._places, self._insides = view.windows, [view.inside(y, x) for y, x in view.windows]
        self._boxes = [(slice(y, y + height), slice(x, x + width)) for y, x in corners.tolist()]

    def gather(self, image: Tensor, gain: Gain) -> Tensor:
        """As `TiltedView.gather`."""
        padded = image[self._rows][:, self._columns]
        out = torch.zeros(self._view.shape, device=self._device)
        for some in self._some:
            boxes = torch.stack([padded[box] for box in self._boxes[some]])
            filtered = self._filtered(boxes, some, gain) * self._weights(some)
            for strip, place, inside in zip(filtered, self._places[some], self._insides[some], strict=True):
                out[place] += strip[inside]
        return out

    def scatter(self, image: Tensor, gain: Gain) -> Tensor:
        """As `TiltedView.scatter`."""
        total = torch.zeros((len(self._rows), len(self._columns)), device=self._device)
        for some in self._some:
            boxes = torch.zeros((some.stop - some.start, *self._view.box), device=self._device)
            for box, place, inside in zip(boxes, self._places[some], self._insides[some], strict=True):
                box[inside] = image[place]
            filtered = self._filtered(boxes * self._weights(some), some, gain)
            for strip, box in zip(filtered, self._boxes[some], strict=True):
                total[box] += strip
        ny, nx = self._view.shape
        folded = torch.zeros((ny, len(self._columns)), device=self._device).index_add_(0, self._rows, total)
        return torch.zeros((ny, nx), device=self._device).index_add_(1, self._columns, folded)

    def _filtered(self, boxes: Tensor, some: slice, gain: Gain) -> Tensor:
        filtering = gain(torch.sin(self._offset + self._slope * self._defocus[some]))
        return torch.fft.irfft2(torch.fft.rfft2(boxes) * filtering, s=self._view.box)

    def _weights(self, some: slice) -> Tensor:
        """Shares of strips in what lies under their boxes."""
        change = (self._along[some] + self._across[some]).abs()
        return (0.5 + (0.5 - change / self._spacing) / self._view.fade).clamp(0, 1)
