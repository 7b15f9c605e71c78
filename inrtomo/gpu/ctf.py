"""Undoing the transfer function of a tilted image in torch: `inrtomo.reconstruct.ctf_correction` on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.geometry import centred_coordinates
from inrtomo.reconstruct.ctf_correction import TiltedView, frequencies

F32 = NDArray[np.float32]


def gathered(view: TiltedView, image: F32, noise: Callable[[F32], F32 | None], device: str) -> F32:
    """As `TiltedView.gather`.

    Args:
        noise: power over that of the signal at frequencies (1/Å), to restore amplitudes; None turns signs alone.
    """

    def sent(values: NDArray[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    rows, columns = view.mirror
    padded, (height, width) = sent(image[rows][:, columns]), view.box
    offset, slope = (sent(part) for part in view.phase(view.box))
    ratio = noise(frequencies(view.box, view.pixel_size_A).astype(np.float32))
    added = None if ratio is None else sent(ratio)
    y, x = (torch.tensor(centred_coordinates(n), device=device) for n in view.shape)
    out, (nodes, spacing) = torch.zeros(view.shape, device=device), view.nodes
    last, spectrum = None, padded
    for node, (part_y, part_x) in zip(nodes.tolist(), view.windows, strict=True):
        box = slice(part_y.start, part_y.start + height), slice(part_x.start, part_x.start + width)
        if box != last:  # strips of an oblique axis may share a box
            last, spectrum = box, torch.fft.rfft2(padded[box])
        ctf = torch.sin(offset + slope * float(np.float32(view.defocus_A + node)))
        gain = torch.where(ctf < 0, -1.0, 1.0) if added is None else ctf / (ctf * ctf + added)
        filtered = torch.fft.irfft2(spectrum * gain, s=view.box)
        change = view.gradient[1] * y[part_y, None] + view.gradient[0] * x[part_x]
        weight = (0.5 + (0.5 - (change - node).abs() / spacing) / view.fade).clamp(0, 1).float()
        out[part_y, part_x] += weight * filtered[view.inside(part_y, part_x)]
    return np.asarray(out.cpu().numpy())
