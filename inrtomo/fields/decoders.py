"""Decoders: what turns features into one number, before the softplus that makes it a density.

A decoder is a stack of affine layers with ReLU between; its parameters are flat, layer by layer, the matrix
``(out, in)`` then the offsets ``(out,)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

HIDDEN_OFFSET = 0.1  # units start open, so the decoder starts linear


@dataclass(frozen=True)
class Decoder:
    """Layer widths from the features to 1; ``trainable`` is False for fixed weights."""

    sizes: tuple[int, ...]
    trainable: bool = True

    @property
    def n_weights(self) -> int:
        return sum((i + 1) * o for i, o in pairwise(self.sizes))

    @property
    def n_parameters(self) -> int:
        return self.n_weights if self.trainable else 0

    def layers(self, weights: F32) -> list[tuple[F32, F32]]:
        """Views ``(matrix (out, in), offsets (out,))`` of flat weights."""
        out, at = [], 0
        for i, o in pairwise(self.sizes):
            out.append((weights[at : at + i * o].reshape(o, i), weights[at + i * o : at + (i + 1) * o]))
            at += (i + 1) * o
        return out

    def initial(self, seed: int, output: float) -> F32:
        """Initial weights; the decoder of zero features gives about ``output``."""
        rng = np.random.default_rng([seed, 1])
        weights = np.zeros(self.n_weights, dtype=np.float32)
        layers = self.layers(weights)
        value = np.zeros(self.sizes[0])
        for k, (matrix, offsets) in enumerate(layers):
            last = k == len(layers) - 1
            if self.trainable:
                gain = 1.0 if last else 2.0
                matrix[:] = rng.normal(scale=np.sqrt(gain / matrix.shape[1]), size=matrix.shape)
            else:
                matrix[:] = 1.0
            offsets[:] = output - (matrix @ value) if last else HIDDEN_OFFSET
            value = np.maximum(matrix @ value + offsets, 0.0)
        return weights


def mlp(n_features: int, width: int = 16, hidden: int = 1) -> Decoder:
    """Small perceptron with ``hidden`` ReLU layers."""
    return Decoder((n_features, *[width] * hidden, 1))


def linear(n_features: int) -> Decoder:
    """Weighted sum with an offset."""
    return Decoder((n_features, 1))


def total(n_features: int) -> Decoder:
    """Plain sum: with one feature a level, a multi-resolution voxel pyramid."""
    return Decoder((n_features, 1), trainable=False)
