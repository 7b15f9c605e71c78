"""The picture of Fourier shell curves: nothing lies over a curve, and curves that agree are all seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from inrtomo.metrics.shells import ShellCorrelation
from inrtomo.report.fsc import fsc_plot

FREQUENCY = np.arange(1, 17) / 160
WHOLE, PARTS = ("unmasked", "masked", "randomised", "corrected"), ("x", "y", "z", "measured", "wedge")


def curve(value: float) -> ShellCorrelation:
    return ShellCorrelation(FREQUENCY, np.full(16, value), np.full(16, 100.0))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return figures


@pytest.mark.parametrize("parts", [(), PARTS[:3], PARTS])
@pytest.mark.parametrize(("value", "said"), [(1.0, "never below 0.143: 10.0 Å"), (0.05, "never above 0.143")])
def test_curves_are_seen(drawn: list[Figure], tmp_path: Path, parts: tuple[str, ...], value: float, said: str) -> None:
    fsc_plot({name: curve(value) for name in (*WHOLE, *parts)}, "corrected", 0.143, tmp_path / "a.png")
    figure = drawn[0]
    figure.draw_without_rendering()  # saved at another resolution than its own
    assert len(figure.axes) == (2 if parts else 1)
    for axes, names in zip(figure.axes, (WHOLE, parts), strict=False):
        legend = axes.get_legend()
        assert legend is not None
        box, frame = Bbox.union([text.get_window_extent() for text in legend.get_texts()]), axes.get_window_extent()
        assert box.y1 < frame.y0 and box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.x1
        lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 16]
        widths = [line.get_linewidth() for line in lines]
        assert len(lines) == len(names) and widths == sorted(set(widths), reverse=True)
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert left < FREQUENCY[0] and FREQUENCY[-1] < right and low < value < high - 0.02
    assert said in figure.axes[0].get_legend_handles_labels()[1]
