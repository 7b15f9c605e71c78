"""What the plugin adds to Scipion's tree: align, reconstruct, infer, report."""

from .protocol_align import ProtInrAlign
from .protocol_infer import ProtInrInfer
from .protocol_reconstruct import ProtInrReconstruct
from .protocol_report import ProtInrReport

__all__ = ["ProtInrAlign", "ProtInrInfer", "ProtInrReconstruct", "ProtInrReport"]
