"""Numbers on their way between host and device, for which neither waits."""

from __future__ import annotations

import torch


class OnItsWay:
    """A copy of a device's small tensor as it will be once all that was asked for so far is done.

    Asking for its `numbers` waits for that and for nothing that was asked for later.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._copy.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))
        else:
            self._copy = values.clone()

    def numbers(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._copy.tolist()
        return values


def fill(target: torch.Tensor, values: torch.Tensor) -> None:
    """Set a device's tensor to the host's numbers once all that was asked for before is done."""
    if target.is_cuda:
        # from other memory CUDA would have the host wait for the device
        target.copy_(values.pin_memory(), non_blocking=True)
    else:
        target.copy_(values)
