"""Tomograms by ``inr-infer``: a trained network instead of a fit."""

from __future__ import annotations

import os

import pyworkflow.protocol.params as params

from .protocol_volumes import ProtInrVolumes


class ProtInrInfer(ProtInrVolumes):
    """Denoised tomograms in seconds to minutes, by a network that was trained beforehand.

    Every voxel is a function of small patches around its projections in the filtered tilts. Nothing is trained here:
    the weights come with the engine, or from `inr-train`. What the network shows in the missing wedge, and much of what
    it shows at low signal, is what the specimens look like on which it was trained, not a measurement.
    """

    _label = "infer tomograms"
    PROGRAM = "inr-infer"

    def _defineParams(self, form):
        self._defineInput(form, "The phases are flipped before.")
        form.addParam(
            "weights",
            params.FileParam,
            allowsNull=True,
            label="Weights (optional)",
            help="Of inr-train, with their card beside them. Empty: those that come with the engine.",
        )
        form.addSection(label="Tomograms")
        self._defineTomogramParams(form)
        self._defineMoreOptions(form, self.PROGRAM)
        self._defineMachine(form, gpu=True)

    def ownArguments(self, ctf):
        return ["--weights", self.weights.get()] if self.weights.get() else []

    def _validate(self):
        errors = super()._validate()
        if self.weights.get() and not os.path.isfile(self.weights.get()):
            errors.append(f"There is no file {self.weights.get()}; give the weights of inr-train, or none.")
        return errors

    def _citations(self):
        return ["Kishore2025Localized"]

    def _methods(self):
        return ["Tomograms were inferred with the localized network of inr-infer (inrtomo)."]
