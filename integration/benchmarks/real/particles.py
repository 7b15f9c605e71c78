"""Part ``particles``: ribosomes sought in the back-projections, and every method's tomogram at the places found.

Places and orientations are found where the correlation with the template is highest, noise included: the volume they
are found in has that noise on its side, and others made from the same images have some of it. Of methods, therefore, a
second set of columns: places found in the back-projection of odd tilts, correlations in volumes of even tilts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.geometry import centre_index
from inrtomo.metrics.conventions import HALF_MAPS
from inrtomo.report.figures import DPI
from integration.benchmarks.real.averages import average, half_averages_fsc, template_fsc
from integration.benchmarks.real.cache import cached, digest
from integration.benchmarks.real.case import Case
from integration.benchmarks.real.matching import (
    Template,
    correlation_at,
    match,
    orientations,
    peaks,
    read_template,
)
from integration.benchmarks.real.tables import Column, Record, table, write_results
from integration.benchmarks.real.volumes import EVEN, ODD, odd_and_even, volume

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Ints = NDArray[np.int64]

BEST = 100
KNOWN = 200  # places that random ones keep away from
RANDOM_EACH = 4  # random places for every particle
AWAY = (2.0, 5.0)  # radii of the template from a particle to its random places

OF_ALIGNMENTS: tuple[Column, ...] = (
    (f"mean of the {BEST} best", "best", "{:.4f}"),
    ("± SE", "best_se", "{:.4f}"),
    ("at the same places", "paired", "{:.4f}"),
    ("less the first row's", "paired_difference", "{:+.4f}"),
    ("± SE", "paired_se", "{:.4f}"),
)
OF_METHODS: tuple[Column, ...] = (
    ("CC, measured region", "measured", "{:.3f}"),
    ("z", "measured_z", "{:.2f}"),
    ("CC, all", "whole", "{:.3f}"),
    ("z", "whole_z", "{:.2f}"),
    ("halves of particles: mean FSC", "fsc_mean", "{:.3f}"),
    ("FSC 0.143 (Å)", "fsc_A", "{:.0f}"),
    ("mean FSC at random places", "random_fsc_mean", "{:.3f}"),
    ("found in odd, seen in even tilts: CC, measured", "crossed_measured", "{:.3f}"),
    ("z", "crossed_measured_z", "{:.2f}"),
    ("CC, all", "crossed_whole", "{:.3f}"),
    ("z", "crossed_whole_z", "{:.2f}"),
    ("their average against the template: mean FSC", "crossed_template_fsc_mean", "{:.3f}"),
)


@dataclass(frozen=True)
class Match:
    """The best correlation at every voxel of a volume.

    Attributes:
        scores, which: as `matching.match` gives them.
    """

    scores: F32
    which: NDArray[np.uint16]

    def best_places(self, template: Template, number: int) -> Ints:
        """Index (z, y, x) of the highest, a molecule's radius apart."""
        return peaks(self.scores, template.radius, number)


def run(case: Case) -> str:
    """The tables, for the screen; all numbers go to ``particles.json``."""
    rotations = orientations()
    alignments = _of_alignments(case, rotations)
    methods = _of_methods(case, rotations)
    text = table(f"correlation with {case.template.stem}", alignments, OF_ALIGNMENTS)
    text += "\n" + table(f"along {case.alignments[0][0]}", methods, OF_METHODS)
    write_results(case.work, "particles", {"alignments": alignments, "methods": methods}, text)
    return text


def template_for(case: Case, alignment: Alignment, tilt_deg: Array | None = None) -> Template:
    """The template as the tilts of an alignment of the common frame, or some of them, measure it."""
    tilts = alignment.included
    angles = alignment.tilt_deg[tilts] if tilt_deg is None else tilt_deg
    lean = float(alignment.x_tilt_deg[tilts].mean())
    return read_template(case.template, case.voxel_A, case.template_low_pass_A, angles, lean)


def _of_alignments(case: Case, rotations: Array) -> list[Record]:
    found: list[tuple[str, Match, Array]] = []
    for name, variant, alignment in case.variants():
        placed = case.placed(alignment)
        label = f"{name}, {variant}"
        matched = _matched(case, placed.alignment, rotations, label)
        # a place in the common frame -> index in this volume, for the turn about z that no alignment takes up
        found.append((label, matched, np.concatenate([placed.motion.rotation.ravel(), placed.motion.translation_px])))
    template = template_for(case, case.placed(case.alignments[0][1]).alignment)
    together = np.mean([match.scores for _, match, _ in found], axis=0)
    places = peaks(together, template.radius, BEST)
    shape = together.shape
    first: Array | None = None
    rows = []
    for label, matched, motion in found:
        own = matched.scores[tuple(matched.best_places(template, BEST).T)]
        here = moved(places, motion[:9].reshape(3, 3), motion[9:] / case.bin, shape)
        paired = np.array([_highest_near(matched.scores, place) for place in here])
        first = paired if first is None else first
        difference = paired - first
        rows.append(
            {
                "row": label,
                "best": float(own.mean()),
                "best_se": float(own.std(ddof=1) / np.sqrt(len(own))),
                "paired": float(paired.mean()),
                "paired_difference": float(difference.mean()),
                "paired_se": float(difference.std(ddof=1) / np.sqrt(len(difference))),
                "scores": own.tolist(),
            }
        )
    return rows


def moved(places: Ints, rotation: Array, translation: Array, shape: tuple[int, ...]) -> Array:
    """Indices (z, y, x) of places ``(n, 3)`` after a motion of the specimen given in (x, y, z) voxels."""
    centre = np.array([centre_index(n) for n in shape])
    return np.asarray(((places - centre)[:, ::-1] @ rotation.T + translation)[:, ::-1] + centre)


def _highest_near(scores: F32, place: Array) -> float:
    """Within a voxel of a place."""
    low = np.round(place).astype(int) - 1
    return float(scores[tuple(slice(max(0, int(a)), int(a) + 3) for a in low)].max())


def _matched(case: Case, alignment: Alignment, rotations: Array, label: str, tilt_deg: Array | None = None) -> Match:
    """The template matched in the back-projection along an alignment of the common frame (of some tilts)."""
    template = template_for(case, alignment, tilt_deg)
    about = [case.image_file(), case.template, alignment, case.thickness_px, case.bin, case.template_low_pass_A]

    def make() -> dict[str, NDArray[np.generic]]:
        case.say(f"particles: {label}")
        density = volume(case, "FBP", ODD) if tilt_deg is not None else case.back_projection(alignment)
        scores, which = match(density, template, rotations)
        return {"scores": scores, "which": which}

    name = digest(*about, rotations, template.tilt_deg, template.radius)
    kept = cached(case.work, "matches", name, make)
    return Match(kept["scores"], kept["which"])


def _of_methods(case: Case, rotations: Array) -> list[Record]:
    alignment = case.placed(case.alignments[0][1]).alignment
    odd, even = odd_and_even(alignment)
    of_odd = _matched(case, alignment, rotations, "odd tilts", odd)
    whole = _Sought(_matched(case, alignment, rotations, "all tilts"), template_for(case, alignment), rotations)
    crossed = _Sought(of_odd, template_for(case, alignment, even), rotations)
    template, places, turns = whole.template, whole.places, whole.turns
    rows: list[Record] = []
    averages: dict[str, F32] = {}
    for method in case.methods:
        density = volume(case, method)
        row: Record = {"row": method}
        for key, sought, values in (("", whole, density), ("crossed_", crossed, volume(case, method, EVEN))):
            for part in ("measured", "whole"):
                row |= {f"{key}{part}{end}": v for end, v in zip(("", "_z"), sought.scores(values, part), strict=True)}
        curve = half_averages_fsc(density, template, places, turns)
        control = half_averages_fsc(density, template, whole.random_alone, whole.turns_at_random)
        row |= {
            "fsc_mean": curve.mean(),
            "fsc_A": curve.resolution_A(HALF_MAPS),
            "fsc": curve.correlation.tolist(),
            "random_fsc_mean": control.mean(),
            "random_fsc": control.correlation.tolist(),
            "frequency_per_A": curve.frequency_per_A.tolist(),
        }
        detail = template_fsc(volume(case, method, EVEN), crossed.template, crossed.places, crossed.turns)
        row |= {"crossed_template_fsc_mean": detail.mean(), "crossed_template_fsc": detail.correlation.tolist()}
        averages[method] = average(density, template, places, turns)
        rows.append(row)
    averages[case.template.stem] = template.turned(np.eye(3))
    draw_averages(averages, case.work / "particle_averages.png")
    draw_places(case, places, case.work / "particles.png")
    return rows


class _Sought:
    """Places found in one volume, random ones around them, and what volumes of the same frame have there.

    Args:
        matched: what was found in the one volume.
        template: as the tilts of the others measure it.
    """

    def __init__(self, matched: Match, template: Template, rotations: Array) -> None:
        self.template = template
        self.places, self.random, around = places_in(matched, template)
        self.turns = rotations[matched.which[tuple(self.places.T)]]
        self._turns_around = self.turns[around]
        # as many random places as particles, in the orientations that suit them best: what choosing alone brings
        _, first = np.unique(around, return_index=True)
        self.random_alone = self.random[first]
        self.turns_at_random = rotations[matched.which[tuple(self.random_alone.T)]]

    def scores(self, values: F32, part: str) -> tuple[float, float]:
        """Mean correlation at the places, of what is ``measured`` or of the ``whole``, and its z-score."""
        measured = part == "measured"
        at = correlation_at(values, self.template, self.places, self.turns, measured=measured)
        background = correlation_at(values, self.template, self.random, self._turns_around, measured=measured)
        return float(at.mean()), z_score(at, background)


def z_score(values: Array, background: Array) -> float:
    """Mean of values over that of a background, in standard deviations of the background."""
    return float((values.mean() - background.mean()) / background.std(ddof=1))


def places_in(matched: Match, template: Template, seed: int = 0) -> tuple[Ints, Ints, Ints]:
    """The best places ``(n, 3)`` in a volume, and random ones around them that hold none of the known, and
    around which of the best each random one lies.

    Random places lie in the particles' own surroundings, so that they differ from these in nothing but the particle.
    """
    known = matched.best_places(template, KNOWN)
    places = known[:BEST]
    generator = np.random.default_rng(seed)
    random: list[NDArray[np.int64]] = []
    around: list[int] = []
    for k, place in enumerate(places):
        for _ in range(RANDOM_EACH):
            for _ in range(100):
                direction = generator.standard_normal(3)
                step = direction / np.linalg.norm(direction) * generator.uniform(*AWAY) * template.radius
                there = np.round(place + step).astype(np.int64)
                inside = (there >= 0).all() and (there < matched.scores.shape).all()
                if not inside or matched.scores[tuple(there)] <= -1:
                    continue
                if (((known - there) ** 2).sum(axis=1) >= (1.5 * template.radius) ** 2).all():
                    random.append(there)
                    around.append(k)
                    break
    return places, np.array(random, dtype=np.int64).reshape(-1, 3), np.array(around, dtype=np.int64)


def draw_averages(averages: dict[str, F32], path: Path) -> None:
    """Middle sections (above: across z, below: across y) of averages and of the template."""
    figure = Figure(figsize=(2.2 * len(averages), 4.8), layout="constrained")
    for column, (name, box) in zip(figure.subplots(2, len(averages)).T, averages.items(), strict=True):
        middle = len(box) // 2
        for axes, image in zip(column, (box[middle], box[:, middle]), strict=True):
            axes.imshow(image, cmap="gray", origin="lower", interpolation="bicubic")
            axes.axis("off")
        column[0].set_title(name)
    figure.savefig(path, dpi=DPI)


def draw_places(case: Case, places: Ints, path: Path) -> None:
    """Places near the middle height in a section of every method's tomogram."""
    figure = Figure(figsize=(6 * len(case.methods), 6), layout="constrained")
    for axes, method in zip(np.ravel(figure.subplots(1, len(case.methods))), case.methods, strict=True):
        density = volume(case, method)
        middle = len(density) // 2
        image = density[middle - 2 : middle + 3].mean(axis=0)
        low, high = np.percentile(image, (0.5, 99.5))
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
        near = places[np.abs(places[:, 0] - middle) <= 5]
        axes.plot(near[:, 2], near[:, 1], "o", markersize=16, markerfacecolor="none", color="tab:orange")
        axes.set_title(method)
        axes.axis("off")
    figure.savefig(path, dpi=DPI)
