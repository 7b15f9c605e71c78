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

HIDDEN_OFFSET = 0.3  # units start open, so the decoder starts linear


@dataclass(frozen=True)
class Decoder:
    """Layer widths from the features to 1.

    Attributes:
        sizes: number of features, widths of the hidden layers, 1.
        trainable: False for fixed weights, a plain sum.
        start: ``"sum"``: random positive weights, so that at first the features are about added up, each counting
            ``1 / share``; the field then learns like a voxel pyramid and bends later (twice as fast as a random
            start, and to a better density). ``"random"``: the usual signed start.
    """

    sizes: tuple[int, ...]
    trainable: bool = True
    start: str = "sum"
    share: int = 1

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
            fan_in = matrix.shape[1]
            if not self.trainable:
                matrix[:] = 1.0
            elif self.start == "sum":
                matrix[:] = np.abs(rng.normal(size=matrix.shape))
                gain = matrix.mean() * (fan_in if k > 0 else self.share)
                matrix /= gain
            else:
                matrix[:] = rng.normal(scale=np.sqrt((1.0 if last else 2.0) / fan_in), size=matrix.shape)
            offsets[:] = output - (matrix @ value) if last else HIDDEN_OFFSET
            value = np.maximum(matrix @ value + offsets, 0.0)
        return weights


def mlp(n_features: int, width: int = 16, hidden: int = 1, *, share: int = 1, start: str = "sum") -> Decoder:
    """Small perceptron with ``hidden`` ReLU layers; ``share``: features of a level, which begin as equals."""
    return Decoder((n_features, *[width] * hidden, 1), start=start, share=share)


def linear(n_features: int, share: int = 1) -> Decoder:
    """Weighted sum with an offset."""
    return Decoder((n_features, 1), share=share)


def total(n_features: int) -> Decoder:
    """Plain sum: with one feature a level, a multi-resolution voxel pyramid."""
    return Decoder((n_features, 1), trainable=False)
