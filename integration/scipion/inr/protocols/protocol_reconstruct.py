"""Tomograms by ``inr-recon``."""

from __future__ import annotations

import pyworkflow.protocol.params as params

from .protocol_volumes import ProtInrVolumes

METHODS = ("fbp", "sirt", "sart-tv", "field")
FIELD = METHODS.index("field")
CTF_MODES = ("flip", "wiener")


class ProtInrReconstruct(ProtInrVolumes):
    """Reconstructs tomograms along the rays of the alignment, local motion included.

    The tilt series may have been aligned by any program. If *inr - align tilt series* of this project made the
    alignment, its local motion and x-axis tilt are found and used, also where the set was filtered or binned since.
    """

    _label = "reconstruct tomograms"
    PROGRAM = "inr-recon"

    def _defineParams(self, form):
        self._defineInput(form, "The contrast transfer function is undone in strips, or inside the fit of field.")
        form.addParam(
            "ctfMode",
            params.EnumParam,
            choices=list(CTF_MODES),
            default=0,
            condition=f"inputSetOfCtfTomoSeries and method != {FIELD}",
            expertLevel=params.LEVEL_ADVANCED,
            label="CTF correction",
            help="Flip phases, or a Wiener filter.",
        )
        form.addSection(label="Tomograms")
        form.addParam(
            "method",
            params.EnumParam,
            choices=list(METHODS),
            default=0,
            label="Method",
            help="fbp: weighted back-projection, fast. sirt, sart-tv: iterations. field: a non-negative density, held "
            "by an implicit neural representation and fitted to the raw images: most alike the truth, slow.",
        )
        self._defineTomogramParams(form)
        self._defineMoreOptions(form, self.PROGRAM)
        self._defineMachine(form, gpu=True)

    def ownArguments(self, ctf):
        method = self.method.get()
        words = ["--method", METHODS[method]]
        if ctf and method != FIELD:
            words += ["--ctf-mode", CTF_MODES[self.ctfMode.get()]]
        return words

    def _methods(self):
        return [f"Tomograms were reconstructed with inr-recon (inrtomo), method {METHODS[self.method.get()]}."]
