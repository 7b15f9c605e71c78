"""Charts that only the page has; each writes ``path`` (PNG or SVG by its ending) and returns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from inrtomo.report.figures import save
from inrtomo.report.movie import Movie
from inrtomo.report.run import Run

Array = NDArray[np.float64]


def motion(run: Run, order: NDArray[np.int64] | None, path: Path) -> Path:
    """Shifts with error bars, rotation and tilt, against tilt and, where it is known, acquisition order."""
    a = run.alignment
    against: list[tuple[Array, str]] = [(np.asarray(a.tilt_deg), "tilt angle (deg)")]
    if order is not None:
        against.append((order.astype(np.float64) + 1, "image in order of acquisition"))
    figure = Figure(figsize=(4.4 * len(against), 6.6), layout="constrained")
    grid = figure.subplots(3, len(against), sharex="col", sharey="row", squeeze=False)
    for (x, label), (top, middle, bottom) in zip(against, grid.T, strict=True):
        for axis, name in enumerate("xy"):
            _points(top, run, x, a.shift_px[:, axis], f"C{axis}", name, run.sigma_shift_px[:, axis])
        _points(middle, run, x, np.asarray(a.rotation_deg), "C2", "tilt axis")
        _points(bottom, run, x, a.tilt_deg - run.nominal_tilt_deg, "C3", "refined - nominal")
        if np.any(a.x_tilt_deg):
            _points(bottom, run, x, np.asarray(a.x_tilt_deg), "C4", "x-axis tilt")
        bottom.set_xlabel(label)
    for axes, label in zip(grid[:, 0], ("shift (px)", "tilt axis (deg)", "tilt (deg)"), strict=True):
        axes.set_ylabel(label)
    for axes in (grid[0, 0], grid[2, 0]):
        axes.legend(loc="best", fontsize=9)
    return save(figure, path)


def agreement(run: Run, displacement_px: Array | None, path: Path) -> Path:
    """Residual of the tracks of every tilt, and how far each image lies from where the others want it."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    tilt = np.asarray(run.alignment.tilt_deg)
    if np.isfinite(run.residual_px).any():
        _points(axes, run, tilt, run.residual_px, "C0", "residual of the tracks")
    if displacement_px is not None and np.isfinite(displacement_px).any():
        _points(axes, run, tilt, displacement_px, "C3", "off from its prediction by the others")
    axes.set(xlabel="tilt angle (deg)", ylabel="px", ylim=(0, None))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=9)
    return save(figure, path)


def tracks(run: Run, path: Path) -> Path:
    """Residual of every track: where in the field of view, and how many of which size."""
    x, y, residual = run.tracks_px.T
    figure = Figure(figsize=(9, 3.9), layout=ConstrainedLayoutEngine(wspace=0.08))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.15, 1]})
    top = float(np.nanpercentile(residual, 98))
    dots = left.scatter(x, y, c=residual, s=22, vmin=0, vmax=top, cmap="viridis")
    figure.colorbar(dots, ax=left, label="residual (px)", extend="max")
    left.set(xlabel="x (px)", ylabel="y (px)", aspect="equal")
    right.hist(np.clip(residual, 0, 1.5 * top), bins=30, color="C0")
    right.axvline(float(np.nanmedian(residual)), color="0.3", linewidth=1, linestyle=":")
    right.set(xlabel=f"residual (px), median {np.nanmedian(residual):.2f}", ylabel="number of tracks", xlim=(0, None))
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    return save(figure, path)


def straight_lines(movie: Movie, tilt_deg: Array, path: Path) -> Path:
    """Profiles along the tilt axis of all tilts, before and after: lines of an aligned series do not waver."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rows = movie.profiles_after.shape[1]
    half = rows * movie.bin / 2
    shown = ((movie.profiles_before, "raw"), (movie.profiles_after, "aligned"))
    for axes, (lines, title) in zip(panels, shown, strict=True):
        extent = (0, len(lines), -half, half)
        axes.imshow(
            lines.T, cmap="gray", vmin=-2.5, vmax=2.5, origin="lower", extent=extent, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        at = np.unique(np.linspace(0, len(lines) - 1, 7).round().astype(int))
        axes.set_xticks(at + 0.5, [str(round(float(tilt_deg[movie.tilts[k]]))) for k in at])
        axes.set(title=title, xlabel="tilt angle (deg)")
    panels[0].set_ylabel("y, along the tilt axis (px)")
    return save(figure, path)


def thickness(height_px: Array, profile: Array, thickness_px: float, what: str, pixel_nm: float, path: Path) -> Path:
    """Profile of a volume against height, with the surfaces of the specimen."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    z = height_px * pixel_nm
    half = thickness_px * pixel_nm / 2
    axes.axvspan(-half, half, color="C0", alpha=0.12, label=f"specimen, {2 * half:.0f} nm")
    axes.plot(z, profile / max(float(np.max(profile)), 1e-30), color="C0")
    axes.set(xlabel="height z (nm)", ylabel=what, ylim=(0, None), xlim=(z[0], z[-1]))
    axes.legend(loc="best", fontsize=9)
    axes.grid(alpha=0.3)
    return save(figure, path)


def _points(axes: Axes, run: Run, x: Array, values: Array, color: str, label: str, sigma: Array | None = None) -> None:
    """Points joined in order of ``x``, with error bars where known; excluded tilts hollow and not joined."""
    order = np.argsort(x, kind="stable")
    excluded = np.isin(order, list(run.alignment.excluded))
    used, left_out = order[~excluded], order[excluded]
    bars = None if sigma is None or not np.isfinite(sigma).any() else sigma[used]
    axes.errorbar(x[used], values[used], yerr=bars, color=color, marker=".", linewidth=1, capsize=2, label=label)
    axes.plot(x[left_out], values[left_out], color=color, marker="o", markerfacecolor="none", linestyle="none")
    axes.grid(alpha=0.3)
