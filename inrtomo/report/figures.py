"""Quick-look pictures (PNG or SVG, by the path's ending) of an alignment run, one function a picture, no display.

Every function writes ``path`` (by rename, when complete) and returns it. Excluded tilts are drawn hollow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.io.files import atomic_path

Array = NDArray[np.float64]

DPI = 120
CONTRAST_PERCENTILES = (0.5, 99.5)
"""Grey levels span these: a few beads must not decide the contrast."""
SLAB_PX = 5
"""Slices are means over this many planes: a single plane of a tomogram is mostly noise."""
ARROW_GRID = 9
"""Arrows along each axis of a warp picture."""
LONGEST_ARROW = 2.0
"""Length of the longest one, in distances between arrows: neighbours are seldom as long, and short ones show."""


def slices(volume: NDArray[Any], path: str | Path, title: str = "", pixel_size_A: float | None = None) -> Path:
    """The three central slices of a volume ``[z, y, x]``: seen from above, from the front and from the side."""
    top, front, side = (_central_slab(volume, axis) for axis in range(3))
    return draw_slices(top, front, side, path, title, pixel_size_A)


def draw_slices(
    top: NDArray[Any],
    front: NDArray[Any],
    side: NDArray[Any],
    path: str | Path,
    title: str = "",
    pixel_size_A: float | None = None,
) -> Path:
    """Three slices as one picture: ``[y, x]`` from above, ``[z, x]`` from the front and ``[z, y]`` from the side."""
    (height, width), depth = top.shape, front.shape[0]
    inches = 7.0 / max(width + depth, height + depth)
    figure = Figure(figsize=((width + depth) * inches + 1.2, (height + depth) * inches + 1.0), layout="constrained")
    grid = figure.subplots(2, 2, gridspec_kw={"width_ratios": [width, depth], "height_ratios": [height, depth]})
    low, high = np.percentile(top[np.isfinite(top)], CONTRAST_PERCENTILES) if np.isfinite(top).any() else (0.0, 1.0)
    scale, unit = (1.0, "px") if pixel_size_A is None else (pixel_size_A / 10, "nm")
    for axes, image, across, up in (
        (grid[0, 0], top, "x", "y"),
        (grid[1, 0], front, "x", "z"),
        (grid[0, 1], side.T, "z", "y"),
    ):
        half = [size * scale / 2 for size in image.shape]
        extent = (-half[1], half[1], -half[0], half[0])
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent, interpolation="nearest")
        axes.set(xlabel=f"{across} ({unit})", ylabel=f"{up} ({unit})")
    grid[1, 1].axis("off")
    figure.suptitle(title or "central slices", parse_math=False)
    return save(figure, path)


def alignment_plots(
    alignment: Alignment,
    path: str | Path,
    *,
    nominal_tilt_deg: Array | None = None,
    sigma_shift_px: Array | None = None,
    title: str = "",
) -> Path:
    """Shifts (with error bars ``sigma_shift_px`` ``(n_tilts, 2)`` when known), rotation and tilt against tilt angle."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    for axis, name in enumerate("xy"):
        sigma = None if sigma_shift_px is None else np.asarray(sigma_shift_px)[:, axis]
        _against_tilt(top, alignment, alignment.shift_px[:, axis], f"{name}", f"C{axis}", sigma)
    top.set_ylabel("shift (px)")
    top.legend(loc="best")
    _against_tilt(middle, alignment, np.asarray(alignment.rotation_deg), "", "C2")
    middle.set_ylabel("tilt axis (deg)")
    nominal = alignment.tilt_deg if nominal_tilt_deg is None else np.asarray(nominal_tilt_deg)
    _against_tilt(bottom, alignment, alignment.tilt_deg - nominal, "refined - nominal tilt", "C3")
    if np.any(alignment.x_tilt_deg):
        _against_tilt(bottom, alignment, alignment.x_tilt_deg, "x-axis tilt", "C4")
    bottom.set(xlabel="tilt angle (deg)", ylabel="tilt (deg)")
    bottom.legend(loc="best")
    figure.suptitle(title or "alignment", parse_math=False)
    return save(figure, path)


def residuals(alignment: Alignment, residual_px: Array, path: str | Path, title: str = "") -> Path:
    """Residual of every tilt, ``(n_tilts,)`` px (NaN where there is none), with the median as a line."""
    residual = np.asarray(residual_px, dtype=np.float64)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    _against_tilt(axes, alignment, residual, "", "C0")
    if np.isfinite(residual).any():
        median = float(np.nanmedian(residual))
        axes.axhline(median, color="0.5", linewidth=1, label=f"median {median:.2f} px")
        axes.legend(loc="best")
    axes.set(xlabel="tilt angle (deg)", ylabel="residual (px)", ylim=(0, None))
    figure.suptitle(title or "residual of every tilt", parse_math=False)
    return save(figure, path)


def warp_arrows(alignment: Alignment, path: str | Path, tilts: Sequence[int] | None = None, title: str = "") -> Path:
    """Local motion over the field of view of up to nine tilts (evenly spread unless named), arrows enlarged alike."""
    shown = list(_spread(alignment.included, 9) if tilts is None else tilts)
    half = np.array(alignment.aligned_size) / 2
    x, y = (np.linspace(-h, h, ARROW_GRID) for h in half)
    vectors = np.zeros((len(shown), ARROW_GRID, ARROW_GRID, 2))
    if alignment.warp is not None:
        vectors = np.stack([alignment.warp.on_lattice(tilt, x, y) for tilt in shown])
    longest = float(np.linalg.norm(vectors, axis=-1).max(initial=0.0))
    spacing = min(x[1] - x[0], y[1] - y[0])
    enlarged = LONGEST_ARROW * spacing / longest if longest > 0 else 1.0
    figure, panels = _panels(len(shown), half[1] / half[0])
    for axes, tilt, field in zip(panels, shown, vectors, strict=False):
        axes.quiver(x, y, *np.moveaxis(field, -1, 0), angles="xy", scale_units="xy", scale=1 / enlarged, width=0.006)
        axes.set(
            title=f"{alignment.tilt_deg[tilt]:.1f}°", xticks=[], yticks=[], aspect="equal",
            xlim=(-half[0] - spacing, half[0] + spacing), ylim=(-half[1] - spacing, half[1] + spacing),
        )  # fmt: skip
    figure.suptitle(
        f"{title or 'local motion'}: longest arrow {longest:.2f} px, drawn {enlarged:.0f} times enlarged",
        parse_math=False,
    )
    return save(figure, path)


def held_out_loss(
    steps: Sequence[float] | Array,
    held_out: Sequence[float] | Array,
    path: str | Path,
    *,
    fitted: Sequence[float] | Array | None = None,
    scale_starts: Sequence[tuple[float, str]] = (),
    title: str = "",
) -> Path:
    """Loss on held-out (and on fitted) pixels over the fit; ``scale_starts`` are (step, name) of its scales.

    Lines end with a scale: the next one's images are other ones, with other noise.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    ends = np.searchsorted(steps, [step for step, _ in scale_starts])
    ends = ends[(ends > 0) & (ends < len(steps))]
    broken = np.insert(np.asarray(steps, dtype=np.float64), ends, np.nan)
    axes.plot(broken, np.insert(np.asarray(held_out, dtype=np.float64), ends, np.nan), "C1", label="held-out pixels")
    if fitted is not None:
        below = np.insert(np.asarray(fitted, dtype=np.float64), ends, np.nan)
        axes.plot(broken, below, "C0", linewidth=1, label="fitted pixels")
    for step, name in scale_starts:
        axes.axvline(step, color="0.7", linewidth=1, linestyle=":")
        axes.annotate(
            name, (step, 1), xycoords=("data", "axes fraction"), xytext=(3, -3), textcoords="offset points", va="top",
            fontsize=8, color="0.4",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (noise variances)")
    axes.legend(loc="best")
    figure.suptitle(title or "held-out loss", parse_math=False)
    return save(figure, path)


def _against_tilt(
    axes: Axes, alignment: Alignment, values: Array, label: str, color: str, sigma: Array | None = None
) -> None:
    """Points joined in order of tilt; excluded tilts hollow and not joined."""
    order = np.argsort(alignment.tilt_deg, kind="stable")
    excluded = np.isin(order, list(alignment.excluded))
    used, left_out = order[~excluded], order[excluded]
    tilt = alignment.tilt_deg
    bars = None if sigma is None else sigma[used]
    axes.errorbar(tilt[used], values[used], yerr=bars, color=color, marker=".", linewidth=1, label=label or None)
    axes.plot(tilt[left_out], values[left_out], color=color, marker="o", markerfacecolor="none", linestyle="none")
    axes.grid(alpha=0.3)


def _central_slab(volume: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Mean of the central planes across ``axis``; reads no more of a memory-mapped volume than these."""
    size = volume.shape[axis]
    thick = min(SLAB_PX, size)
    first = (size - thick) // 2
    planes = volume[(slice(None),) * axis + (slice(first, first + thick),)]
    return np.asarray(planes, dtype=np.float32).mean(axis=axis, dtype=np.float32)


def _spread(indices: NDArray[Any] | Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the indices, evenly spread, ends included."""
    picks = np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int))
    return [int(indices[i]) for i in picks]


def _panels(count: int, height_over_width: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of the given shape, three in a row."""
    columns = min(3, max(count, 1))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(3 * columns, (3 * height_over_width + 0.3) * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.axis("off")
    return figure, panels


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure; an older picture of the same name is replaced (commands check their outputs before)."""
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=DPI, metadata={"Date": None})
    return Path(path)
