"""Picture of the error between two alignments, against tilt and over the field of view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inrtomo.io.files import atomic_path
from inrtomo.metrics.alignment import AlignmentError

DPI = 120


def comparison(error: AlignmentError, path: str | Path, title: str = "") -> Path:
    """Error of every tilt, its mean along x and y with the smooth part, and where in the view the local part is.

    Writes ``path`` (PNG; an older one is replaced) and returns it.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.subplots(2, 2)
    order = np.argsort(error.tilt_deg, kind="stable")
    tilt = error.tilt_deg[order]
    total, free = error.rigid, error.gauge_free
    axes: Axes = grid[0, 0]
    axes.plot(tilt, total.per_tilt_px[order], color="0.6", marker=".", label=f"rigid removed: {total.rms_px:.3f} px")
    axes.plot(tilt, free.per_tilt_px[order], marker=".", label=f"and slice gauge: {free.rms_px:.3f} px")
    axes.plot(tilt, free.local_per_tilt_px[order], marker=".", label=f"its local part: {free.local_px:.3f} px")
    axes.set(title="RMS error of every tilt", xlabel="tilt angle (deg)", ylabel="px", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    limit = 1.1 * float(np.abs(free.shift_px).max(initial=1e-6))
    for axis, (panel, name) in enumerate(((grid[0, 1], "x (across the tilt axis)"), (grid[1, 0], "y (along it)"))):
        panel.axhline(0, color="0.7", linewidth=1)
        panel.plot(tilt, free.shift_px[order, axis], ".", label="A - B")
        panel.plot(tilt, free.smooth_shift_px[order, axis], label="smooth part")
        panel.set(title=f"mean shift along {name}", xlabel="tilt angle (deg)", ylabel="px", ylim=(-limit, limit))
        panel.legend()
        panel.grid(alpha=0.3)
    local = error.local_map
    panel = grid[1, 1]
    mesh = panel.pcolormesh(local.x, local.y, local.rms_px, shading="nearest", vmin=0)
    figure.colorbar(mesh, ax=panel, label="px")
    panel.set(title="local part over the image nearest zero tilt, RMS over tilts", xlabel="x (px)", ylabel="y (px)")
    panel.set_aspect("equal")
    figure.suptitle(title or "difference of alignments", fontsize=10, parse_math=False)
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return Path(path)
