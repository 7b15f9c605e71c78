"""Part ``beads``: how well beads fit one point each under an alignment, how the specimen lies, how sharp they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inrtomo.geometry import centre_index
from inrtomo.report.figures import DPI
from integration.benchmarks.real.bead_fits import FREEDOMS, BeadFit, bead_planes, fit_points, with_freedom
from integration.benchmarks.real.bead_widths import bead_width
from integration.benchmarks.real.cache import cached, digest
from integration.benchmarks.real.case import Case
from integration.benchmarks.real.tables import Column, Record, table, write_results

Array = NDArray[np.float64]

COLUMNS: tuple[Column, ...] = (
    ("RMS (px)", "rms_px", "{:.3f}"),
    ("corrected", "corrected_rms_px", "{:.3f}"),
    ("median tilt", "median_tilt_px", "{:.2f}"),
    ("worst tilt", "worst_tilt_px", "{:.2f}"),
    ("first tilts", "first_px", "{:.1f}"),
    ("last tilts", "last_px", "{:.1f}"),
    ("planes' slope about y, x (°)", "slopes_deg", "{:+.2f}"),
    ("separation (px)", "separation_px", "{:.1f}"),
    ("mean bead's width x, y, z (px)", "width_px", "{:.2f}"),
    ("its rim", "rim_px", "{:.2f}"),
)
FITTED: tuple[Column, ...] = tuple((name, name, "{:.3f}") for name in FREEDOMS)


def run(case: Case) -> str:
    """The tables, for the screen; all numbers go to ``beads.json``."""
    tracks = case.beads
    n_all, n = len(case.all_beads.raw_px), len(tracks.raw_px)
    rows: list[Record] = []
    fits: dict[str, BeadFit] = {}
    for name, variant, alignment in case.variants():
        fit = fit_points(alignment, tracks)
        label = f"{name}, {variant}"
        fits[label] = fit
        placed = case.placed(alignment)
        name_of_widths = digest(case.stack, case.axis_deg, placed.alignment, placed.points_px, case.thickness_px)
        case.say(f"beads: {label}")
        width = cached(
            case.work,
            "widths",
            name_of_widths,
            lambda placed=placed: {  # type: ignore[misc]
                "px": bead_width(case.series.images, placed.alignment, placed.points_px, case.thickness_px)
            },
        )["px"]
        rows.append({"row": label, **_of_fit(fit), "width_px": width[0].tolist(), "rim_px": width[1].tolist()})
        more = {freedom: with_freedom(alignment, tracks, fit, freedom) for freedom in FREEDOMS}
        rows[-1]["fitted"] = {
            key: {"rms_px": f.rms_px, "corrected_rms_px": f.corrected_rms_px, "parameters": f.freedom}
            for key, f in more.items()
        }
    text = f"{n} beads found in all {tracks.raw_px.shape[1]} images ({n_all} in most)\n\n"
    text += table("distance from the projections of a bead's best point", rows, COLUMNS)
    fitted = [{"row": row["row"], **{k: v["corrected_rms_px"] for k, v in row["fitted"].items()}} for row in rows]
    text += "\n" + table("RMS (px, corrected for what was fitted) with more freedom for every tilt", fitted, FITTED)
    values = {"rows": rows, "tilt_deg": case.series.tilt_deg, "raw_px": tracks.raw_px, "radius_px": tracks.radius_px}
    write_results(case.work, "beads", values, text)
    draw_tracks(case, case.work / "bead_tracks.png")
    draw_residuals(case.series.tilt_deg, fits, case.work / "bead_residuals.png")
    return text


def _of_fit(fit: BeadFit) -> Record:
    per_tilt = fit.per_tilt_px
    planes = bead_planes(fit.points_px)
    lie: Record = {}
    if planes is not None:
        lie = {
            "slopes_deg": planes.slopes_deg.tolist(),
            "separation_px": planes.separation_px,
            "plane_rest_px": planes.rest_px,
            "upper": planes.upper.tolist(),
        }
    return {
        "rms_px": fit.rms_px,
        "corrected_rms_px": fit.corrected_rms_px,
        "median_tilt_px": float(np.median(per_tilt)),
        "worst_tilt_px": float(per_tilt.max()),
        "first_px": per_tilt[:3].tolist(),
        "last_px": per_tilt[-3:].tolist(),
        "per_tilt_px": per_tilt.tolist(),
        "per_bead_px": fit.per_bead_px.tolist(),
        "points_px": fit.points_px.tolist(),
        **lie,
    }


def draw_tracks(case: Case, path: Path) -> None:
    """The steepest and the flattest image with their beads, and every bead's path."""
    images, tracks = case.series.images, case.all_beads
    order = [0, int(np.argmin(np.abs(case.series.tilt_deg))), len(images) - 1]
    figure = Figure(figsize=(18, 6), layout="constrained")
    for axes, m in zip(figure.subplots(1, 3), order, strict=True):
        image = images[m]
        low, high = np.percentile(image, (0.5, 99.8))
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
        offset = np.array([centre_index(n) for n in image.shape[::-1]])
        for k, bead in enumerate(tracks.raw_px + offset):
            axes.plot(*bead.T, color="tab:cyan", linewidth=0.4)
            axes.plot(*bead[m], "o", markersize=9, markerfacecolor="none", color="tab:orange")
            axes.annotate(str(k), bead[m], (5, 5), textcoords="offset points", color="tab:orange")
        axes.set_title(f"{case.series.tilt_deg[m]:.0f}°")
        axes.set_xlim(0, image.shape[1])
        axes.set_ylim(0, image.shape[0])
    figure.savefig(path, dpi=DPI)


def draw_residuals(tilt_deg: Array, fits: dict[str, BeadFit], path: Path) -> None:
    """RMS distance of every tilt, a line an alignment."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for label, fit in fits.items():
        axes.plot(tilt_deg, fit.per_tilt_px, marker=".", label=f"{label}: {fit.rms_px:.2f} px")
    axes.set_xlabel("tilt (°)")
    axes.set_ylabel("RMS distance of beads (px)")
    axes.set_ylim(0)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=DPI)
