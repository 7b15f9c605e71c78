"""One self-contained page about a run of ``inr-align``: everything embedded, nothing fetched.

Beside the page come the same numbers as JSON, and one row of them for a table over many series.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from inrtomo import __version__
from inrtomo.align.detector import find_defects
from inrtomo.align.placed_field import PlacedField
from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.geometry import centred_coordinates
from inrtomo.io.files import read_text
from inrtomo.io.mrc import open_stack
from inrtomo.metrics.shells import ShellCorrelation
from inrtomo.report import charts, figures
from inrtomo.report.consistency import Consistency, consistency_of
from inrtomo.report.fsc import fsc_plot
from inrtomo.report.movie import Movie, make_movie
from inrtomo.report.run import Run
from inrtomo.report.verdict import RULE, Evidence, Verdict, judge
from inrtomo.tiltseries import TiltSeries

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Progress = Callable[[str, float], None]

DENSITY_PX = 256
"""Longer side of the density as it is drawn; its profile is taken from the same voxels."""
PROFILE_SECTIONS = 64
"""Sections of a tomogram read for its profile."""
FLAG_OF_MEDIAN = 3.0
"""A tilt is flagged where it is off, or its tracks are, by this many medians over the tilts."""


@dataclass(frozen=True)
class Picture:
    """An embedded picture: heading, what to look for, and its data URI."""

    title: str
    caption: str
    source: str


@dataclass(frozen=True)
class Report:
    """A page and its numbers.

    Attributes:
        html: the page; values: the numbers on it, for JSON; row: one line of a table over series.
        verdict: what it says at its top; left_out: what could not be shown, and why.
    """

    html: str
    values: dict[str, Any]
    row: dict[str, Any]
    verdict: Verdict
    left_out: list[str]


@dataclass
class _Pictures:
    """Pictures drawn to a temporary folder and kept as data URIs."""

    folder: Path
    drawn: list[Picture] = field(default_factory=list)

    def add(self, title: str, caption: str, draw: Callable[[Path], object], ending: str = ".svg") -> None:
        path = self.folder / f"{len(self.drawn)}{ending}"
        draw(path)
        kind = {".svg": "image/svg+xml", ".png": "image/png"}[ending]
        self.drawn.append(Picture(title, caption, _data_uri(path.read_bytes(), kind)))


def make_report(
    run: Run,
    series: TiltSeries | None,
    tomogram: Path | None = None,
    fsc: Path | None = None,
    left_out: tuple[str, ...] = (),
    progress: Progress = lambda task, fraction: None,
) -> Report:
    """Build the page of a run.

    Args:
        run: see `read_run`.
        series: its raw images, for the movie, the consistency of the tilts and the order of acquisition.
        tomogram: sliced instead of the fitted density.
        fsc: ``PREFIX.json`` of ``inr-fsc``.
        left_out: what is missing already, and why.
        progress: called with what is being made and the fraction of the page that is done.

    Raises:
        InputError: a tomogram, field or FSC file that cannot be read.
    """
    missing = list(left_out)
    curves = None if fsc is None else _read_fsc(fsc)
    tomogram = tomogram or run.beside("_rec.mrc")
    volume = None if tomogram is None else _open_tomogram(tomogram, run)
    movie: Movie | None = None
    found: Consistency | None = None
    if series is not None:
        progress("defects", 0.0)
        defects = find_defects(series)
        if defects.any:
            series.repair = defects.repaired
        progress("movie", 0.0)
        movie = make_movie(series.image, run.alignment)
        progress("consistency", 0.2)
        found = consistency_of(series.image, run.alignment, run.thickness_px)
    evidence = Evidence.of(run, found)
    verdict = judge(evidence)
    progress("pictures", 0.7)
    with _drawing() as pictures:
        if movie is not None:
            tilt = np.asarray(run.alignment.tilt_deg)
            pictures.add(
                "Profiles along the tilt axis",
                "Each column is one tilt, averaged across the axis. Aligned, structures make lines that do not waver.",
                lambda path: charts.straight_lines(movie, tilt, path),
                ".png",
            )
        density = _draw_density(run, volume, pictures, missing)
        order = None if series is None else series.order
        _draw_motion(run, found, order, pictures, missing)
        if curves is not None:
            pictures.add("Fourier shell correlation", curves.caption, curves.draw)
    numbers = _numbers(run, evidence, None if curves is None else curves.resolution_A)
    flagged = _flagged(run, found, order)
    values = {
        "series": run.base,
        "verdict": verdict.word,
        "reasons": verdict.reasons,
        "rule": RULE,
        **numbers,
        "flagged_tilts": flagged,
        "per_tilt": _per_tilt(run, found, order),
        "tracks_px": run.tracks_px.tolist(),
        "thickness_profile": density,
        "losses": [{"bin": int(b), "fitted": f, "held_out": h} for b, f, h in run.losses.tolist()],
        "guard": run.values.get("guard"),
        "notes": run.values.get("notes", []),
        "left_out": missing,
        "command": run.values.get("command"),
        "versions": {**(run.values.get("versions") or {}), "inr-report": __version__},
        "align_json": str(run.json),
    }
    progress("page", 0.95)
    html = _render(
        run=run,
        verdict=verdict,
        rule=RULE,
        cards=_cards(run, numbers),
        flagged=flagged,
        pictures=pictures.drawn,
        movie=None if movie is None else _movie_data(run, movie, order),
        left_out=missing,
        values=_plain(values),
        version=__version__,
    )
    return Report(html, _plain(values), _row(run, verdict, numbers), verdict, missing)


def csv_row(row: dict[str, Any]) -> str:
    """A table of one row, with its head."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(row)
    writer.writerow(["" if value is None else value for value in row.values()])
    return stream.getvalue()


# --- numbers -------------------------------------------------------------------------------------------------------


def _numbers(run: Run, evidence: Evidence, resolution_A: float | None) -> dict[str, Any]:
    """One number a name; lengths in raw px unless the name says otherwise."""
    a, values = run.alignment, run.values
    use = a.included
    sigma = run.sigma_shift_px[use]
    pixel = a.pixel_size_A
    return {
        "tilts": a.n_tilts,
        "excluded_tilts": len(a.excluded),
        "tilt_range_deg": [float(a.tilt_deg[use].min()), float(a.tilt_deg[use].max())],
        "image_size": list(a.image_size),
        "pixel_size_A": pixel,
        "tilt_axis_deg": float(np.median(a.rotation_deg[use])),
        "tilt_axis_ambiguous": bool(values.get("tilt_axis_ambiguous")),
        "x_tilt_deg": float(np.median(a.x_tilt_deg[use])),
        "tilt_offset_deg": float(np.median((a.tilt_deg - run.nominal_tilt_deg)[use])),
        "thickness_px": run.thickness_px,
        "thickness_nm": None if pixel is None else run.thickness_px * pixel / 10,
        "largest_shift_px": float(np.linalg.norm(a.shift_px[use], axis=1).max()),
        "largest_local_motion_px": max(_local_motion(a, int(m)) for m in use),
        "median_sigma_shift_px": float(np.median(sigma)) if np.isfinite(sigma).all() else None,
        "residual_rms_px": values.get("residual_rms_px"),
        "tracks": len(run.tracks_px) or None,
        "held_out_loss": values.get("held_out_loss"),
        "guard_chose": (values.get("guard") or {}).get("chosen"),
        "disagreement_px": evidence.disagreement_px,
        "disagreement_compared_px": evidence.disagreement,
        "recognised_patches": evidence.recognised,
        "resolution_A": resolution_A,
        "seconds": (values.get("seconds") or {}).get("total"),
        "peak_memory_GiB": (values.get("peak_memory_bytes") or 0) / 2**30 or None,
    }


def _row(run: Run, verdict: Verdict, numbers: dict[str, Any]) -> dict[str, Any]:
    """Columns for a facility's table. The first five are named and meant as in AreTomo3's TiltSeries_Metrics.csv."""
    n = numbers
    row = {
        "Tilt_Series": run.base,
        "Thickness(Pix)": run.thickness_px,
        "Tilt_Axis": n["tilt_axis_deg"],
        "Global_Shift(Pix)": n["largest_shift_px"],
        "Pix_Size(A)": n["pixel_size_A"],
        "Verdict": verdict.word,
        "Reasons": "; ".join(verdict.reasons),
        "Tilts": n["tilts"],
        "Tilts_Excluded": n["excluded_tilts"],
        "Disagreement(Pix)": n["disagreement_px"],
        "Recognised_Patches": n["recognised_patches"],
        "Residual(Pix)": n["residual_rms_px"],
        "Held_Out_Loss": n["held_out_loss"],
        "Local_Motion(Pix)": n["largest_local_motion_px"],
        "Sigma_Shift(Pix)": n["median_sigma_shift_px"],
        "Tilt_Offset(Deg)": n["tilt_offset_deg"],
        "X_Tilt(Deg)": n["x_tilt_deg"],
        "Resolution(A)": n["resolution_A"],
        "Seconds": n["seconds"],
        "Version": (run.values.get("versions") or {}).get("inrtomo"),
    }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in _plain(row).items()}


def _cards(run: Run, n: dict[str, Any]) -> list[tuple[str, str]]:
    """What stands in large type under the verdict: (what, value with its unit)."""
    pixel = n["pixel_size_A"]

    def px(value: float | None, digits: int = 2) -> str:
        if value is None or not np.isfinite(value):
            return "–"
        return f"{value:.{digits}f} px" + ("" if pixel is None else f" ({value * pixel:.{digits - 1}f} Å)")

    axis = f"{n['tilt_axis_deg']:.2f}°" + (" or 180° from it" if n["tilt_axis_ambiguous"] else "")
    nm = n["thickness_nm"]
    cards = [
        ("tilts used", f"{n['tilts'] - n['excluded_tilts']} of {n['tilts']}"),
        ("range", "{:.1f}° to {:.1f}°".format(*n["tilt_range_deg"])),
        ("image", "{} × {} px".format(*n["image_size"]) + ("" if pixel is None else f", {pixel:.4g} Å/px")),
        ("tilt axis", axis),
        ("specimen", f"{n['thickness_px']:.0f} px" + ("" if nm is None else f" ({nm:.0f} nm)")),
        ("largest shift", px(n["largest_shift_px"], 1)),
        ("local motion, up to", px(n["largest_local_motion_px"])),
        ("disagreement of the tilts", px(n["disagreement_px"])),
        ("residual of the tracks", px(n["residual_rms_px"])),
        ("error bar of a shift", px(n["median_sigma_shift_px"])),
        ("held-out loss", "–" if n["held_out_loss"] is None else f"{n['held_out_loss']:.4f}"),
        ("time", "–" if n["seconds"] is None else f"{n['seconds']:.0f} s"),
    ]
    if n["resolution_A"] is not None:
        cards.insert(-1, ("resolution", f"{n['resolution_A']:.1f} Å"))
    return [(what, value) for what, value in cards if value != "–"]


def _per_tilt(run: Run, found: Consistency | None, order: NDArray[np.int64] | None) -> list[dict[str, Any]]:
    a = run.alignment
    off = None if found is None else found.per_tilt_px
    return [
        {
            "tilt": m,
            "acquired": None if order is None else int(order[m]) + 1,
            "tilt_deg": float(a.tilt_deg[m]),
            "nominal_tilt_deg": float(run.nominal_tilt_deg[m]),
            "rotation_deg": float(a.rotation_deg[m]),
            "x_tilt_deg": float(a.x_tilt_deg[m]),
            "shift_px": a.shift_px[m].tolist(),
            "sigma_shift_px": run.sigma_shift_px[m].tolist(),
            "residual_px": float(run.residual_px[m]),
            "disagreement_px": None if off is None else float(off[m]),
            "local_motion_px": _local_motion(a, m),
            "excluded": a.excluded.get(m),
        }
        for m in range(a.n_tilts)
    ]


def _local_motion(a: Alignment, tilt: int) -> float:
    """Longest arrow of the picture of local motion: over the field of view, not over the whole grid of nodes."""
    if a.warp is None:
        return 0.0
    x, y = (np.linspace(-n / 2, n / 2, figures.ARROW_GRID) for n in a.aligned_size)
    return float(np.linalg.norm(a.warp.on_lattice(tilt, x, y), axis=-1).max())


def _flagged(run: Run, found: Consistency | None, order: NDArray[np.int64] | None) -> list[dict[str, Any]]:
    """Tilts that were left out, and used ones that stand out, with the reason."""
    why: dict[int, list[str]] = {m: [f"left out: {reason}"] for m, reason in run.alignment.excluded.items()}
    used = run.alignment.included
    measures = [(run.residual_px, "residual of its tracks")]
    if found is not None:
        measures.append((found.per_tilt_px, "off from its prediction by the others"))
        for m in used[~found.found[used].any(axis=(1, 2))]:
            why.setdefault(int(m), []).append("not recognised in its prediction by the others")
    for values, name in measures:
        if not np.isfinite(values[used]).any():
            continue
        median = float(np.nanmedian(values[used]))
        for m in used[np.nan_to_num(values[used]) > FLAG_OF_MEDIAN * median]:
            why.setdefault(int(m), []).append(f"{name}: {values[m]:.2f} px, median {median:.2f} px")
    return [
        {
            "tilt": int(m),
            "nominal_tilt_deg": float(run.nominal_tilt_deg[m]),
            "acquired": None if order is None else int(order[m]) + 1,
            "reason": "; ".join(why[m]),
        }
        for m in sorted(why)
    ]


# --- pictures ------------------------------------------------------------------------------------------------------


@contextmanager
def _drawing() -> Iterator[_Pictures]:
    # text stays text: small files, and what is written can be searched and copied; equal runs have equal pages
    style: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "inrtomo"}
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(style):
        yield _Pictures(Path(folder))


def _draw_motion(
    run: Run, found: Consistency | None, order: NDArray[np.int64] | None, pictures: _Pictures, missing: list[str]
) -> None:
    a = run.alignment
    bars = "Bars are standard errors. " if np.isfinite(run.sigma_shift_px).any() else ""
    if not bars:
        missing.append("error bars of the shifts: inr-align was run without --error-bars")
    if order is None:
        missing.append("plots against acquisition order: no .mdoc beside the stack says it")
    pictures.add(
        "Shift, rotation and tilt",
        f"{bars}Hollow points are tilts that were left out. Jumps between neighbours in order of acquisition are "
        "real (tracking, drift); a single point off both curves is suspicious.",
        lambda path: charts.motion(run, order, path),
    )
    off = None if found is None else found.per_tilt_px
    pictures.add(
        "Residual of every tilt",
        "Residual: how far the tracks' views lie from where the other tilts put them. Off: how far patches of the "
        "aligned image lie from their prediction by the neighbouring tilts.",
        lambda path: charts.agreement(run, off, path),
    )
    if len(run.tracks_px):
        pictures.add(
            "Residual of every track",
            "Tracks of a bad corner share a cause: local motion, an edge, a shadow.",
            lambda path: charts.tracks(run, path),
        )
    else:
        missing.append("residual of every track: the JSON holds none")
    if a.warp is not None:
        pictures.add(
            "Local motion",
            "What shifts and rotations leave, in nine tilts. Neighbouring tilts of a good fit look alike or change "
            "gradually in order of acquisition.",
            lambda path: figures.warp_arrows(a, path),
        )
    if len(run.losses):
        bins, fitted, held = run.losses.T
        starts = np.flatnonzero(np.diff(bins, prepend=0))
        pictures.add(
            "Held-out loss",
            "The joint fit never sees the held-out pixels. Within a bin their loss should fall with that of the fitted "
            "ones; a rise is overfitting.",
            lambda path: figures.held_out_loss(
                np.arange(len(held), dtype=np.float64), held, path, fitted=fitted, title=" ",
                scale_starts=[(float(k), f"bin {int(bins[k])}") for k in starts],
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class _Tomogram:
    """A file as ``[z, y, x]``, memory-mapped, and raw px per voxel."""

    name: str
    volume: NDArray[Any]
    voxel_px: float


def _open_tomogram(path: Path, run: Run) -> _Tomogram:
    """A tomogram as IMOD's tilt writes it or upright: z is the shorter of the file's first two sides."""
    stack = open_stack(path)
    data: NDArray[Any] = np.memmap(
        stack.path, dtype=stack.header.dtype, mode="r", offset=stack.header.offset, shape=stack.shape
    )
    if stack.header.rows_from_top:
        data = data[:, ::-1]
    volume = data[:, ::-1].transpose(1, 0, 2) if stack.shape[1] < stack.shape[0] else data
    voxel_px = run.alignment.aligned_size[0] / volume.shape[2]
    if stack.pixel_size_A and run.alignment.pixel_size_A:
        voxel_px = stack.pixel_size_A / run.alignment.pixel_size_A
    return _Tomogram(path.name, volume, voxel_px)


def _draw_density(
    run: Run, tomogram: _Tomogram | None, pictures: _Pictures, missing: list[str]
) -> dict[str, Any] | None:
    """Slices and profile of the tomogram, else of the fitted density; the profile against height."""
    pixel = run.alignment.pixel_size_A
    volume: NDArray[Any]
    voxel_px: float
    if tomogram is not None:
        volume, voxel_px, name = tomogram.volume, tomogram.voxel_px, tomogram.name
        profile = _spread_of_sections(volume)
        what = "spread of the sections"
    elif (field_path := run.beside("_field.npz")) is not None:
        voxel_px = -(-max(run.alignment.image_size) // DENSITY_PX)
        nx, ny = run.alignment.aligned_size
        height = int(run.values.get("tomogram_height_px") or 1.3 * run.thickness_px)
        shape = (max(1, height // voxel_px), ny // voxel_px, nx // voxel_px)
        volume = PlacedField.load(field_path).volume(shape, voxel_px * np.eye(3))
        profile = np.asarray(volume, dtype=np.float64).mean(axis=(1, 2))
        what, name = "mean density", "density of the fit"
    else:
        missing.append("slices and thickness profile: no tomogram and no fitted density; --tomogram names one")
        return None
    nm = 0.1 * (pixel or 1.0)
    z: Array = centred_coordinates(len(profile)) * voxel_px
    pictures.add(
        f"Slices: {name}",
        "Central sections from above, from the front and from the side. Structures smeared along z are the missing "
        "wedge; smeared or doubled ones from above are misalignment.",
        lambda out: figures.slices(volume, out, " ", None if pixel is None else voxel_px * pixel),
        ".png",
    )
    pictures.add(
        "Thickness",
        "The specimen should stand out of an empty margin on either side.",
        lambda out: charts.thickness(z, profile, run.thickness_px, what, nm, out),
    )
    return {"of": name, "height_px": z.tolist(), what.replace(" ", "_"): profile.tolist()}


def _spread_of_sections(volume: NDArray[Any]) -> Array:
    """Standard deviation of every section across z, from a subset of its rows; beads count no more than protein."""
    step = max(1, volume.shape[1] // PROFILE_SECTIONS)
    rows = np.asarray(volume[:, ::step], dtype=np.float32)
    low, high = np.percentile(rows, (1, 99))
    return np.asarray(np.clip(rows, low, high).std(axis=(1, 2)), dtype=np.float64)


@dataclass(frozen=True)
class _Fsc:
    """Curves of ``inr-fsc`` by name, and what they say."""

    curves: dict[str, ShellCorrelation]
    main: str
    threshold: float
    convention: str
    resolution_A: float | None

    @property
    def caption(self) -> str:
        said = "never above the threshold" if self.resolution_A is None else f"{self.resolution_A:.1f} Å"
        return f"{self.convention}: {said} at {self.threshold:g}."

    def draw(self, path: Path) -> Path:
        return fsc_plot(self.curves, self.main, self.threshold, path, title=" ")


def _read_fsc(path: Path) -> _Fsc:
    """``PREFIX.json`` of ``inr-fsc``; InputError for anything else."""
    try:
        values = json.loads(read_text(path))
        frequency = np.array(values["frequency_per_A"], dtype=np.float64)
        curves = {
            name: ShellCorrelation(
                frequency,
                np.array([np.nan if v is None else v for v in curve["correlation"]], dtype=np.float64),
                np.array(curve["components"], dtype=np.float64),
            )
            for name, curve in values["curves"].items()
        }
        resolution = values["resolution_A"]
        if any(curve.correlation.shape != frequency.shape for curve in curves.values()) or not len(frequency):
            raise ValueError
        curves[values["curve"]].resolution_A(float(values["threshold"]))
        return _Fsc(
            curves, values["curve"], float(values["threshold"]), str(values["convention"]),
            None if resolution is None else float(resolution),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: is no result of inr-fsc; give its PREFIX.json") from None


# --- page ----------------------------------------------------------------------------------------------------------


def _movie_data(run: Run, movie: Movie, order: NDArray[np.int64] | None) -> dict[str, Any]:
    """What the page's script shows: frames as data URIs and a line about each."""
    a = run.alignment
    labels = []
    for m in map(int, movie.tilts):
        when = "" if order is None else f", acquired as {order[m] + 1}"
        out = f" – left out: {a.excluded[m]}" if m in a.excluded else ""
        labels.append(f"{a.tilt_deg[m]:+.1f}° (image {m}{when}){out}")
    return {
        "before": [_data_uri(frame, "image/jpeg") for frame in movie.before],
        "after": [_data_uri(frame, "image/jpeg") for frame in movie.after],
        "labels": labels,
        "start": int(np.argmin(np.abs(a.tilt_deg[movie.tilts]))),
    }


def _render(**names: Any) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = resources.files("inrtomo.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(**names)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _plain(value: Any) -> Any:
    """Values that JSON knows: no NaN."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
