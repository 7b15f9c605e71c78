"""Buttons in the forms that fill in what is known already: the tilt axis, and the thickness of the sample."""

from __future__ import annotations

import math

from pyworkflow.wizard import Wizard

from .local_motion import find_run
from .protocols import ProtInrAlign, ProtInrInfer, ProtInrReconstruct
from .series_files import read_series

NM_IN_A = 10.0


class InrTiltAxisWizard(Wizard):
    """The tilt axis of the acquisition, to be changed by hand from there."""

    _targets = [(ProtInrAlign, ["tiltAxis"])]

    def show(self, form, *params):
        tilt_series = form.protocol.inputSetOfTiltSeries.get()
        axis = None if tilt_series is None else tilt_series.getAcquisition().getTiltAxisAngle()
        if axis is not None:
            form.setVar("tiltAxis", round(axis, 3))


class InrThicknessWizard(Wizard):
    """A thickness for all tomograms: that of the thickest specimen that ``inr-align`` found, in nm."""

    _targets = [(ProtInrReconstruct, ["thickness"]), (ProtInrInfer, ["thickness"])]

    def show(self, form, *params):
        tilt_series = form.protocol.inputSetOfTiltSeries.get()
        if tilt_series is None:
            return
        runs = [find_run(read_series(each)) for each in tilt_series.iterItems()]
        found = [run.specimen_px * run.sampling_A / NM_IN_A for run in runs if run is not None]
        if found:
            form.setVar("thickness", math.ceil(max(found)))
