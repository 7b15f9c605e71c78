"""Picture of Fourier shell or ring curves with their thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inrtomo.io.files import atomic_path
from inrtomo.metrics.conventions import HALF_MAPS, REFERENCE
from inrtomo.metrics.shells import ShellCorrelation

DPI = 120
COLORS = {"unmasked": "0.6", "masked": "C0", "randomised": "C3", "corrected": "black"}
SINGLE_SHOWN = 50
WIDTHS = 4.0, 1.2
"""Of the first and the last line drawn: curves that agree lie upon each other, and those below are still seen."""
ROOM = 0.02
"""Beyond the last shell, as a share of the axis: a curve that ends there, or a crossing, is not taken for the frame."""


def fsc_plot(
    curves: Mapping[str, ShellCorrelation],
    main: str,
    threshold: float,
    path: str | Path,
    *,
    single: Sequence[ShellCorrelation] = (),
    title: str = "",
) -> Path:
    """Curves over frequency: those of the whole of Fourier space left, those of its parts (if any) right.

    Args:
        curves: by name; main: the one whose crossing of ``threshold`` is marked.
        single: curves of single images, drawn thin behind the others, evenly spread if there are many.

    Writes ``path`` (PNG or SVG by its ending; an older one is replaced) and returns it.
    """
    whole = {name: curve for name, curve in curves.items() if name == main or name in COLORS}
    parts = {name: curve for name, curve in curves.items() if name not in whole}
    figure = Figure(figsize=(9.5 if parts else 5.5, 5), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2 if parts else 1, squeeze=False, sharey=True)[0])
    for k in np.unique(np.linspace(0, len(single) - 1, min(len(single), SINGLE_SHOWN)).astype(int)):
        panels[0].plot(single[k].frequency_per_A, single[k].correlation, color="0.85", linewidth=0.7)
    _draw(panels[0], whole)
    _mark_crossing(panels[0], curves[main], threshold)
    if parts:
        _draw(panels[1], {f"cone about {name}" if len(name) == 1 else name: curve for name, curve in parts.items()})
    lowest = min(float(np.nanmin(curve.correlation)) for curve in curves.values())
    for panel, text in zip(panels, ("all directions", "parts of Fourier space, under the mask"), strict=False):
        _axes(panel, float(curves[main].frequency_per_A[-1]), text)
        panel.set_ylim(min(lowest - 0.02, -0.1), 1.06)
    panels[0].set_ylabel("correlation")
    figure.suptitle(title, fontsize=10, parse_math=False)
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=DPI)
    return Path(path)


def _draw(axes: Axes, curves: Mapping[str, ShellCorrelation]) -> None:
    """Broad lines below, thin ones on top."""
    widths = np.linspace(*WIDTHS, len(curves)) if len(curves) > 1 else WIDTHS[1:]
    for (name, curve), width in zip(curves.items(), widths, strict=True):
        color = COLORS.get(name, "black" if len(curves) == 1 else None)
        axes.plot(curve.frequency_per_A, curve.correlation, color=color, linewidth=width, label=name)


def _mark_crossing(axes: Axes, curve: ShellCorrelation, threshold: float) -> None:
    """A line where the curve crosses the threshold; a sentence in the legend where it does not."""
    resolution = curve.resolution_A(threshold)
    if not np.isfinite(resolution):
        axes.plot([], [], " ", label=f"never above {threshold:g}")
        return
    at_nyquist = resolution <= 1 / curve.frequency_per_A[-1]
    what = f"never below {threshold:g}: {resolution:.1f} Å" if at_nyquist else f"{resolution:.1f} Å at {threshold:g}"
    axes.axvline(1 / resolution, color="C2", linewidth=1, label=what)


def _axes(axes: Axes, nyquist_per_A: float, title: str) -> None:
    """Thresholds, limits, and frequencies labelled by their resolution."""
    for level in (HALF_MAPS, REFERENCE):
        axes.axhline(level, color="0.4", linewidth=0.8, linestyle=":")
        axes.text(ROOM / 2, level, f"{level:g}", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    axes.axhline(0, color="0.3", linewidth=0.8)
    ticks = nyquist_per_A * np.arange(1, 6) / 5
    axes.set_xticks(ticks, [f"1/{1 / tick:.3g}" for tick in ticks])
    axes.set(title=title, xlabel="frequency (1/Å)", xlim=(0, (1 + ROOM) * nyquist_per_A))
    axes.grid(alpha=0.3)
    # below, where it hides no curve
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=9, frameon=False)
