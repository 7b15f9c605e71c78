"""The stages before the joint fit on a device: `inrtomo.align.fast.Work` in torch."""

from __future__ import annotations

from inrtomo.align.fast import Work
from inrtomo.gpu.correlation import DeviceCorrelationWork
from inrtomo.gpu.tracks import DeviceTrackWork


class DeviceWork(DeviceCorrelationWork, DeviceTrackWork, Work):
    """Preparation, correlation and tracks."""
