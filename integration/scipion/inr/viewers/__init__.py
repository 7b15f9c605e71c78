"""Opens a page in the browser: pictures of an alignment, slices of tomograms, the report."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path

from pyworkflow.viewer import DESKTOP_TKINTER, MessageView, View, Viewer

from ..pages import align_page, report_page, tomogram_page
from ..protocols import ProtInrAlign, ProtInrInfer, ProtInrReconstruct, ProtInrReport


class PageView(View):
    """A page in the user's browser; says where the page lies when there is no browser."""

    def __init__(self, path, tkParent=None):
        View.__init__(self)
        self.path = path
        self._tkParent = tkParent

    def show(self):
        if not webbrowser.open(Path(self.path).resolve().as_uri()):
            MessageView(f"No browser could be started. The page is {os.path.abspath(self.path)}", "inrtomo",
                        tkParent=self._tkParent).show()  # fmt: skip


class InrAlignViewer(Viewer):
    """Slices, shifts, residuals, local motion and loss of every series."""

    _environments = [DESKTOP_TKINTER]
    _targets = [ProtInrAlign]
    _name = "Pictures of the alignment"

    def _visualize(self, obj, **kwargs):
        return [PageView(align_page(obj), self._tkRoot)]


class InrTomogramViewer(Viewer):
    """Central slices of every tomogram."""

    _environments = [DESKTOP_TKINTER]
    _targets = [ProtInrReconstruct, ProtInrInfer]
    _name = "Central slices"

    def _visualize(self, obj, **kwargs):
        return [PageView(tomogram_page(obj), self._tkRoot)]


class InrReportViewer(Viewer):
    """Verdicts of all series, with links to their pages."""

    _environments = [DESKTOP_TKINTER]
    _targets = [ProtInrReport]
    _name = "Report"

    def _visualize(self, obj, **kwargs):
        return [PageView(report_page(obj), self._tkRoot)]
