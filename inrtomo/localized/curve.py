"""The learning curve, as numbers and as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from inrtomo.io.files import write_text
from inrtomo.localized.training import State
from inrtomo.report.figures import save

HEADER = "step,training_loss,held_out_loss,best_held_out_loss,seconds"


def write_curve(state: State, base: Path) -> None:
    """``BASE.csv`` and ``BASE.png``, replaced as a whole."""
    lines = [HEADER, *(f"{n},{a:.6g},{b:.6g},{c:.6g},{t:.1f}" for n, a, b, c, t in state.curve)]
    write_text(base.with_suffix(".csv"), "\n".join(lines) + "\n", overwrite=True)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row[0] for row in state.curve]
    # points too: of a short run there is one loss in training, and no line through it
    axes.plot(steps, [row[1] for row in state.curve], ".-", color="0.6", label="training: squared error / variance")
    axes.plot(steps, [row[2] for row in state.curve], ".-", color="tab:blue", label="held out: 1 - CC²")
    axes.plot(state.best_step, state.best, "o", color="tab:red", label="kept")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    save(figure, base.with_suffix(".png"))
