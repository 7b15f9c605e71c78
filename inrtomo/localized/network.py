"""The network: features of a block and the condition of its series in, coefficients of the block's density out.

    density = gain(c) * (sum_e gate_e(c) W_e x  +  mlp(asinh x, c))

The first term is a learned linear filter of the back-projection, mixed from a few for the condition at hand; training
starts at the least-squares one, so that the network is never worse than a filtered back-projection. The second is what
no filter can do. It sees features on a compressed scale, since gold is ten times denser than anything else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inrtomo.localized.bank import BANK_VERSION, n_features
from inrtomo.localized.blocks import OUTPUTS, Blocks
from inrtomo.localized.scaling import CONDITIONS

F32 = NDArray[np.float32]

RIDGE = 1e-3  # of the mean variance of the features
BATCH = 16384
MAX_LOG_GAIN = 5.0


@dataclass(frozen=True)
class Architecture:
    """Attributes:
    output: ``haar``: blocks of 2 x 2 x 2 voxels by their wavelet transform; ``pixel``: single voxels.
    width, depth: of the MLP's hidden layers, and how many.
    filters: linear filters that are mixed.
    bank: version of the features.
    """

    output: str = "haar"
    width: int = 160
    depth: int = 2
    filters: int = 6
    bank: int = BANK_VERSION

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"unknown output {self.output!r}; use one of {', '.join(OUTPUTS)}")

    @property
    def blocks(self) -> Blocks:
        return Blocks.of(self.output)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class LocalizedMlp(nn.Module):
    """See the module's docstring; units are those of `scaling.Scaling`."""

    feature_sd: Tensor
    condition_mean: Tensor
    condition_sd: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        size, n = a.blocks.size, n_features(a.blocks.size)
        self.register_buffer("feature_sd", torch.ones(n))
        self.register_buffer("condition_mean", torch.zeros(len(CONDITIONS)))
        self.register_buffer("condition_sd", torch.ones(len(CONDITIONS)))
        self.gain = nn.Linear(len(CONDITIONS), 1)
        self.gate = nn.Linear(len(CONDITIONS), a.filters)
        self.filters = nn.Parameter(torch.zeros(a.filters, size, n))
        self.first = nn.Linear(n, a.width)
        self.hidden = nn.ModuleList(nn.Linear(a.width, a.width) for _ in range(a.depth - 1))
        self.of_condition = nn.ModuleList(nn.Linear(len(CONDITIONS), 2 * a.width) for _ in range(a.depth))
        self.last = nn.Linear(a.width, size)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Coefficients ``(n, block size)`` from features ``(n, n_features)`` and conditions ``(n, n_conditions)``."""
        c = (condition - self.condition_mean) / self.condition_sd
        x = features / self.feature_sd
        gates = torch.softmax(self.gate(c), dim=1)
        each = (x @ self.filters.flatten(0, 1).T).unflatten(1, self.filters.shape[:2])
        linear = (gates[:, :, None] * each).sum(dim=1)
        h = torch.asinh(x)
        for layer, of_condition in zip([self.first, *self.hidden], self.of_condition, strict=True):
            scale, shift = of_condition(c).chunk(2, dim=1)
            new = nn.functional.silu(layer(h) * (1 + scale) + shift)
            h = new if layer is self.first else h + new
        return torch.exp(self.log_gain(c)) * (linear + self.last(h))

    def log_gain(self, c: Tensor) -> Tensor:
        """Logarithm of the density's size, from the condition brought to mean 0 and sd 1."""
        with torch.autocast(c.device.type, enabled=False):  # half precision of a logarithm is percents of the size
            gain: Tensor = self.gain(c)
        return gain.clamp(-MAX_LOG_GAIN, MAX_LOG_GAIN)

    @torch.no_grad()
    def start(self, features: F32, target: F32, condition: F32, variance: F32) -> None:
        """Set scales from a sample of the data and the linear filters to the least-squares one.

        Args:
            features, target, condition: as `forward` has them, a row a block.
            variance: of the voxels of each block's series, ``(n,)``.
        """
        squares = np.minimum(np.abs(features), np.percentile(np.abs(features), 99.9, axis=0)) ** 2
        self.feature_sd.copy_(torch.from_numpy(np.sqrt(squares.mean(axis=0)) + 1e-6))
        self.condition_mean.copy_(torch.from_numpy(condition.mean(axis=0)))
        self.condition_sd.copy_(torch.from_numpy(condition.std(axis=0) + 1e-2))
        c = ((condition - condition.mean(axis=0)) / (condition.std(axis=0) + 1e-2)).astype(np.float64)
        design = np.column_stack([c, np.ones(len(c))])
        fit = np.linalg.solve(design.T @ design + 1e-2 * len(c) * np.eye(design.shape[1]),
                              design.T @ (0.5 * np.log(variance)))  # fmt: skip
        self.gain.weight.copy_(torch.from_numpy(fit[:-1].astype(np.float32))[None])
        self.gain.bias.copy_(torch.from_numpy(fit[-1:].astype(np.float32)))
        size = np.exp(np.clip(design @ fit, -MAX_LOG_GAIN, MAX_LOG_GAIN))
        weight = size / np.sqrt(variance)  # errors count in units of the series' own variance
        x = features / self.feature_sd.numpy() * weight[:, None]
        y = target / np.sqrt(variance)[:, None]
        normal = (x.T @ x).astype(np.float64)
        normal += RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
        best = np.linalg.solve(normal, (x.T @ y).astype(np.float64)).T.astype(np.float32)
        self.filters.copy_(torch.from_numpy(best)[None].expand_as(self.filters))


@torch.no_grad()
def densities(model: LocalizedMlp, features: F32 | Tensor, condition: F32, device: str = "cpu") -> F32:
    """Coefficients ``(n, block size)`` of blocks of one series, in batches.

    In float32 on a GPU too: filters whose parts nearly cancel would lose percents of the density in half precision.
    """
    c = torch.from_numpy(np.asarray(condition, dtype=np.float32)).to(device)[None]
    out = torch.empty((len(features), model.architecture.blocks.size), device=device)
    for i in range(0, len(features), BATCH):
        x = torch.as_tensor(features[i : i + BATCH], device=device)
        out[i : i + BATCH] = model(x, c.expand(len(x), -1))
    return np.asarray(out.cpu().numpy())
