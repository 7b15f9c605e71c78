"""Fits whose stages are those of a device, in plain torch on the CPU."""

from __future__ import annotations

from inrtomo.align.joint import JointFit, Scale
from inrtomo.gpu.field_stage import DeviceFieldStage
from inrtomo.gpu.fit import DeviceStage
from inrtomo.reconstruct.field import FieldFit


class OnTorch(JointFit):
    """An alignment."""

    def stage(self, scale: Scale) -> DeviceStage:
        return DeviceStage(self, scale)


class FieldOnTorch(FieldFit):
    """A reconstruction."""

    def stage(self, scale: Scale) -> DeviceFieldStage:
        return DeviceFieldStage(self, scale)
