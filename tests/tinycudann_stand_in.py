"""A stand-in for tinycudann's Python module, in torch on the CPU, by its conventions.

Of its bindings: constructors ``Encoding(n_inputs, config)``, ``Network(n_inputs, n_outputs, config)`` and
``NetworkWithInputEncoding(n_inputs, n_outputs, encoding, network)``; one flat float32 ``params``, the network's first;
inputs float32, parameters and outputs in half precision, batches padded to 256, gradients multiplied by 128 in half
precision on their way back. Of its grids: position ``x * scale + 1/2``, ``scale = base * growth^level - 1``, levels of
at most ``2^log2_hashmap_size`` vertices dense with x fastest, others hashed; features of a vertex lie together. Of its
networks: matrices ``(out, in)`` by rows without offsets, inputs and outputs padded to 16, the inputs of a network of
its own by ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch

PRECISION: dict[str, torch.dtype] = {"of": torch.half}  # float where it was built without half precision
BATCHES: list[int] = []  # rows of every call
LOSS_SCALE = 128.0
PRIMES = 1, 2654435761, 805459861


class _LossScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.to(PRECISION["of"])

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> torch.Tensor:
        assert slopes[0].dtype == PRECISION["of"]
        return (slopes[0] * LOSS_SCALE).float() / LOSS_SCALE


class _Module(torch.nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int, n_params: int) -> None:
        super().__init__()
        self.n_input_dims, self.n_output_dims = n_inputs, n_outputs
        generator = torch.Generator().manual_seed(1337)
        self.params = torch.nn.Parameter(1e-4 * torch.rand(n_params, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == self.n_input_dims and self.params.dtype == torch.float32
        BATCHES.append(len(x))
        padded = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % 256)).float()
        made = self.evaluated(padded, self.params.to(PRECISION["of"]).float())
        return _LossScale.apply(made)[: len(x), : self.n_output_dims]

    def evaluated(self, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Encoding(_Module):
    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any]) -> None:
        c = encoding_config
        assert c["otype"] == "HashGrid" and n_input_dims == 3
        self.features, self.scales, self.sizes = c["n_features_per_level"], [], []
        for level in range(c["n_levels"]):
            scale = c["base_resolution"] * c["per_level_scale"] ** level - 1
            vertices = -(-((math.ceil(scale) + 1) ** 3) // 8) * 8
            self.scales.append(scale)
            self.sizes.append(min(vertices, 1 << c["log2_hashmap_size"]))
        super().__init__(3, c["n_levels"] * self.features, sum(self.sizes) * self.features)

    def evaluated(self, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        assert bool((x >= 0).all()) and bool((x <= 1).all())
        out, start = [], 0
        for scale, size in zip(self.scales, self.sizes, strict=True):
            table = params[start * self.features : (start + size) * self.features].reshape(size, self.features)
            start += size
            place = x * scale + 0.5
            cell = place.detach().floor()
            fraction, cell = place - cell, cell.long()
            width = math.ceil(scale) + 1
            total = torch.zeros(())
            for corner in range(8):
                steps = torch.tensor([corner >> k & 1 for k in range(3)])
                weight = torch.where(steps == 1, fraction, 1 - fraction).prod(dim=1)
                at = cell + steps
                if width**3 <= size:
                    index = at[:, 0] + width * (at[:, 1] + width * at[:, 2])
                else:
                    hashed = [(axis * prime) & 0xFFFFFFFF for axis, prime in zip(at.T, PRIMES, strict=True)]
                    index = hashed[0] ^ hashed[1] ^ hashed[2]
                total = total + weight[:, None] * table[index % size]
            out.append(total)
        return torch.cat(out, dim=1)


class Network(_Module):
    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any]) -> None:
        c = network_config
        fused, hidden = c["otype"] == "FullyFusedMLP", c["n_hidden_layers"]
        assert c["activation"] == "ReLU" and c["output_activation"] == "None"
        if fused and (hidden < 1 or c["n_neurons"] not in (16, 32, 64, 128)):
            raise RuntimeError("FullyFusedMLP requires at least 1 hidden layer, of 16 to 128 neurons")
        wide = (n_input_dims + 15) // 16 * 16, *[c["n_neurons"]] * hidden, (n_output_dims + 15) // 16 * 16
        self.shapes = list(zip(wide[1:], wide[:-1], strict=True))
        super().__init__(n_input_dims, n_output_dims, sum(o * i for o, i in self.shapes))

    def evaluated(self, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        value = torch.nn.functional.pad(x, (0, self.shapes[0][1] - x.shape[1]), value=1.0)
        value = value.to(PRECISION["of"]).float()
        at = 0
        for k, (o, i) in enumerate(self.shapes):
            value = (torch.relu(value) if k else value) @ params[at : at + o * i].reshape(o, i).T
            at += o * i
        return value


class NetworkWithInputEncoding(_Module):
    def __init__(
        self, n_input_dims: int, n_output_dims: int, encoding_config: dict[str, Any], network_config: dict[str, Any]
    ) -> None:
        encoding = Encoding(n_input_dims, encoding_config)
        network = Network(encoding.n_output_dims, n_output_dims, network_config)
        self.first = network.params.numel()
        super().__init__(n_input_dims, n_output_dims, self.first + encoding.params.numel())
        self.network, self.encoding = [network], [encoding]  # in lists: their own params are no part of this

    def evaluated(self, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        features = self.encoding[0].evaluated(x, params[self.first :])
        return self.network[0].evaluated(features, params[: self.first])
