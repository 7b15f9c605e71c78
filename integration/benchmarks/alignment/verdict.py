"""Is the verdict of ``inr-report`` right? It is held against the true error of the benchmark's alignments.

    python -m integration.benchmarks.alignment.verdict WORK

WORK is a folder in which `run.py` left ``series`` and ``runs``. Judged are the results of inr-align and of
cross-correlation found there and, because these hardly ever fail, alignments that are wrong on purpose: none at all,
and the truth with shifts, axis, some tilts or the order of the images spoiled. The true error is RMS px after rigid
motion and slice gauge; up to 1 px ought to be called good and more than 3 px failed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from scipy.stats import spearmanr

from inrtomo.alignment import Alignment
from inrtomo.geometry import axis_rotation
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.io.mrc import open_stack
from inrtomo.metrics.alignment import compare_alignments
from inrtomo.report.consistency import consistency_of
from inrtomo.report.verdict import CHECK, FAILED, GOOD, Evidence, judge
from inrtomo.truth import TruePoints

WORDS = (GOOD, CHECK, FAILED)
GOOD_ERROR_PX = 1.0
FAILED_ERROR_PX = 3.0


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option("--series", "names", default="*", help="Folders of WORK/series, such as S1_0 or S*_0.")
@click.option("--spoiled/--no-spoiled", default=True, help="Judge alignments that are wrong on purpose, too.")
def main(work: Path, names: str, spoiled: bool) -> None:
    """Print verdict against true error for the alignments in WORK."""
    counts: Counter[tuple[str, str]] = Counter()
    errors, disagreements = [], []
    for folder in sorted((work / "series").glob(names)):
        name = folder.name.rpartition("_")[0]
        meta = json.loads((folder / f"{name}_truth.json").read_text(encoding="utf-8"))
        truth, thickness, blanks = alignment_from_dict(meta), float(meta["thickness_px"]), meta["blanks"]
        points = TruePoints.from_dict(meta)
        stack = open_stack(folder / f"{name}.mrc")
        found = [*_results(work / "runs" / folder.name, name), *(_spoiled(truth) if spoiled else ())]
        for label, alignment in found:
            # blank tilts that a method used are a fault of their own, which the benchmark lists
            judged = replace(alignment, excluded={**alignment.excluded, **dict.fromkeys(blanks, "blank")})
            error = compare_alignments(judged, truth, thickness, known=points).gauge_free.rms_px
            evidence = Evidence.of_alignment(judged, consistency_of(stack.image, judged, thickness))
            verdict = judge(evidence)
            true = GOOD if error <= GOOD_ERROR_PX else FAILED if error > FAILED_ERROR_PX else CHECK
            counts[true, verdict.word] += 1
            errors.append(error)
            off = evidence.disagreement if evidence.disagreement is not None else np.nan
            disagreements.append(off)
            click.echo(
                f"{folder.name:6s} {label:22s} error {error:6.2f} px  disagreement {off:5.2f} px  recognised "
                f"{evidence.recognised or 0:4.0%}  {verdict.word:6s} {'' if true == verdict.word else f'(is {true})'}"
            )
    click.echo(f"\n{'':24s}{''.join(f'{word:>8s}' for word in WORDS)}   <- verdict")
    for true in WORDS:
        click.echo(f"truth {true:18s}{''.join(f'{counts[true, word]:8d}' for word in WORDS)}")
    right = sum(counts[word, word] for word in WORDS)
    known = np.isfinite(disagreements)
    rank = spearmanr(np.array(errors)[known], np.array(disagreements)[known]).statistic
    click.echo(f"{right} of {len(errors)} right; rank correlation of disagreement and true error {rank:.2f}")


def _results(runs: Path, name: str) -> Iterator[tuple[str, Alignment]]:
    """What the benchmark's methods found."""
    for path in sorted(runs.glob(f"*/{name}_align.json")):
        yield path.parent.name, alignment_from_dict(json.loads(path.read_text(encoding="utf-8"))["alignment"])
    if (path := runs / "correlation.json").is_file():
        yield "correlation", alignment_from_dict(json.loads(path.read_text(encoding="utf-8")))


def _spoiled(truth: Alignment) -> Iterator[tuple[str, Alignment]]:
    """Alignments with a fault, from slight to hopeless."""
    rng = np.random.default_rng(0)
    n = truth.n_tilts
    axis = float(np.median(truth.rotation_deg))
    yield "no alignment", Alignment.identity(truth.tilt_deg, truth.image_size, axis, truth.pixel_size_A)
    for px in (1.0, 4.0):
        yield f"shifts {px:g} px off", replace(truth, shift_px=truth.shift_px + px * rng.normal(size=(n, 2)))
    some = rng.choice(n, max(1, n // 8), replace=False)
    shift = truth.shift_px.copy()
    shift[some] += 8 * rng.normal(size=(len(some), 2))
    yield "every 8th tilt 8 px off", replace(truth, shift_px=shift)
    for degrees in (3.0, 20.0):
        turned = np.einsum("ij,mjk->mik", axis_rotation(degrees), truth.linear)
        yield f"axis {degrees:g} deg off", replace(truth, linear=turned, warp=None)
    order = np.argsort(np.abs(truth.tilt_deg), kind="stable")
    yield "angles in wrong order", replace(truth, tilt_deg=truth.tilt_deg[order])


if __name__ == "__main__":
    main()
