"""Hash grid and decoder by tinycudann, behind the interface of `hash_field.HashField`: a second implementation.

Its tables, hash and parameters are laid out in its own way, so its parameters are not ours: they are one flat tensor,
the decoder's first, handed in as ``tables`` with ``weights`` empty. Its grids are cubes over the box's longest side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid

F32 = NDArray[np.float32]
Tensor = torch.Tensor

FUSED_WIDTHS = (16, 32, 64, 128)


class TinyCudaField:
    """Densities and gradients at points; arguments as of `hash_field.HashField`.

    Raises:
        InputError: tinycudann is not installed.
    """

    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float, device: str) -> None:
        tcnn = _tinycudann()
        self.grid, self.decoder, self.scale, self.device = grid, decoder, float(scale), device
        extent = grid.upper - grid.origin
        self._origin, self._upper = (torch.tensor(v, device=device) for v in (grid.origin, grid.upper))
        self._longest = float(extent.max())
        encoding = {
            "otype": "HashGrid", "n_levels": grid.levels, "n_features_per_level": grid.features,
            "log2_hashmap_size": grid.log2_table, "per_level_scale": grid.growth,
            "base_resolution": max(2, round(self._longest / float(grid.spacing[0]))),
        }  # fmt: skip
        widths = decoder.sizes[1:-1]
        fused = bool(widths) and set(widths) <= set(FUSED_WIDTHS)
        network = {
            "otype": "FullyFusedMLP" if fused else "CutlassMLP", "activation": "ReLU", "output_activation": "None",
            "n_neurons": widths[0] if widths else 16, "n_hidden_layers": len(widths),
        }  # fmt: skip
        self._module = tcnn.NetworkWithInputEncoding(3, 1, encoding, network).to(device)
        self.n_parameters = self.n_tables = int(self._module.params.numel())

    def points(self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32) -> Tensor:
        """Density ``(N,)``; all levels are on."""
        self._module.params.data = tables.detach()
        with torch.no_grad():
            return self._density(zxy, level_weights)

    def points_backward(
        self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32, grad: Tensor, grad_tables: Tensor,
        grad_weights: Tensor,
    ) -> Tensor:  # fmt: skip
        """Add the parameters' gradient to ``grad_tables``; that of the points ``(N, 3)``."""
        self._module.params.data = tables.detach()
        points = zxy.detach().requires_grad_()
        by_parameters, by_points = torch.autograd.grad(
            self._density(points, level_weights), (self._module.params, points), grad
        )
        grad_tables += by_parameters
        return by_points

    def _density(self, zxy: Tensor, level_weights: F32) -> Tensor:
        if np.any(level_weights != 1):
            raise ValueError("tinycudann's encoding has no weights of levels")
        inside = torch.minimum(torch.maximum(zxy, self._origin), self._upper)
        value = self._module((inside - self._origin) / self._longest)[:, 0].float()
        return self.scale * torch.nn.functional.softplus(value)


def _tinycudann() -> Any:
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # OSError: it is there, but no driver or no GPU that it was built for
        raise InputError(
            f"tinycudann cannot be used ({error}); build it with the CUDA compiler from "
            "https://github.com/NVlabs/tiny-cuda-nn, folder bindings/torch"
        ) from error
    return tinycudann
