"""GPU backend: the kernels of `inrtomo.gpu`; on the CPU, in Triton's interpreter, with ``TRITON_INTERPRET=1``."""

from __future__ import annotations

import torch

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid
from inrtomo.fields.kernels.device import ArrayKernels
from inrtomo.gpu.hash_field import HashField


class Kernels(ArrayKernels):
    """Float32 throughout, to be compared with; fits decode in half precision."""

    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(HashField(grid, decoder, scale, device, half=False))
