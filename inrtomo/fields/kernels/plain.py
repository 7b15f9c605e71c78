"""Plain torch backend on the CPU: float32, automatic differentiation; what the GPU's kernels are measured against."""

from __future__ import annotations

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid
from inrtomo.fields.kernels.device import ArrayKernels
from inrtomo.gpu.plain_field import PlainField


class Kernels(ArrayKernels):
    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float) -> None:
        super().__init__(PlainField(grid, decoder, scale, "cpu"))
