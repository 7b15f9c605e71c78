"""What ``inr-train --pairs`` learns from: a list's series as inference sees them, within bounded memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from inrtomo.alignment import Alignment
from inrtomo.commands import _infer_run, _listed_pairs
from inrtomo.commands._listed_pairs import OPTIONAL, for_validation, listed_pair, listed_rows
from inrtomo.commands._train_run import Run
from inrtomo.commands.train import Options, main
from inrtomo.errors import InputError
from inrtomo.io.mrc import read_volume, write_volume
from inrtomo.localized import samples
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.inference import MAPS_SHARE
from inrtomo.localized.pairs import Pair
from inrtomo.localized.samples import Samples, pair_samples
from inrtomo.localized.tilts import FilteredTilts
from inrtomo.localized.training import Pool
from tests.listing import copied_series, write_list
from tests.running import Inr, assert_refused

LITTLE_LIKE = 20.0  # noise per signal that leaves a reference with little likeness


def noise_pair(x_tilt_deg: float) -> Pair:
    """Of 128 rows."""
    random, n = np.random.default_rng(1), 5
    images = random.standard_normal((n, 128, 40)).astype(np.float32)
    alignment = Alignment.identity(np.linspace(-50, 50, n), (40, 128))
    alignment = replace(alignment, x_tilt_deg=np.full(n, x_tilt_deg), shift_px=random.normal(size=(n, 2)))
    return Pair(images, alignment, random.standard_normal((12, 128, 40)).astype(np.float32), 10.0, {})


def taken(pair: Pair) -> Samples:
    return pair_samples(pair, Blocks.of("haar"), np.random.default_rng(2), 700)


@pytest.mark.parametrize("x_tilt_deg", [0.0, 8.0])
def test_samples_are_the_same_within_any_memory(x_tilt_deg: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    maps = FilteredTilts.maps

    def counted(*given: Any) -> list[Any]:
        found = maps(*given)
        made.append(sum(m.values.nbytes for m in found))
        return found

    pair = noise_pair(x_tilt_deg)
    monkeypatch.setattr(FilteredTilts, "maps", counted)
    whole, all_at_once = taken(pair), max(made)
    made.clear()
    monkeypatch.setattr(samples, "MEMORY_BYTES", all_at_once / MAPS_SHARE / 1.8)
    banded = taken(pair)
    assert len(made) > 2 and max(made) < all_at_once / 1.8
    np.testing.assert_array_equal(banded.target, whole.target)
    np.testing.assert_array_equal(banded.condition, whole.condition)
    assert banded.variance == whole.variance
    # half floats of values that vectorised code may round otherwise in another place
    np.testing.assert_allclose(banded.features.astype(float), whole.features.astype(float), rtol=2e-3, atol=1e-4)


def test_pixels_that_say_nothing_are_not_learnt_from() -> None:
    pair = noise_pair(0.0)
    weight = np.ones_like(pair.images)
    weight[:, 30:40, 10:30] = 0
    dead = np.where(weight > 0, pair.images, 50).astype(np.float32)
    seen = taken(replace(pair, weight=weight)).features
    np.testing.assert_array_equal(taken(replace(pair, images=dead, weight=weight)).features, seen)
    assert not np.array_equal(taken(replace(pair, images=dead)).features, seen)


# --- lists ---------------------------------------------------------------------------------------------------------


def listed_stacks(folder: Path, *stacks: str) -> Path:
    """A list of files that are there and empty."""
    for name in {"a.json", "ref.mrc", *stacks}:
        (folder / name).touch()
    return write_list(folder / "l.star", *({"Stack": s, "Alignment": "a.json", "Reference": "ref.mrc"} for s in stacks))


def test_a_stack_is_for_training_or_for_validation_whatever_it_is_called(tmp_path: Path) -> None:
    stacks = [f"{k}.mrc" for k in range(8)]
    path = listed_stacks(tmp_path, "7.mrc", *stacks[:7], "./6.mrc", "7.mrc")
    apart = for_validation(path, listed_rows(path))
    assert apart == [False] * 6 + [True] * 3 + [False]  # two of eight: 5 and 6, the latter twice
    (tmp_path / "same.mrc").symlink_to("0.mrc")
    with pytest.raises(InputError, match="1 tilt series; at least two different"):
        listed_rows(listed_stacks(tmp_path, "0.mrc", "./0.mrc", "same.mrc"))


def options(folder: Path, *words: object) -> Options:
    """What the command line makes of these."""
    context = main.make_context("inr-train", ["-o", str(folder / "out"), "--device", "cpu", *map(str, words)])
    return Options(**context.params)


def test_no_listed_pair_is_dropped(inr: Inr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listed_stacks(tmp_path, *(f"{k}.mrc" for k in range(15)))
    small = pair_samples(noise_pair(0.0), Blocks.of("haar"), np.random.default_rng(0), 2)
    pair = replace(noise_pair(0.0), facts={"likeness": 0.9})
    monkeypatch.setattr(_listed_pairs, "listed_pair", lambda *given: pair)
    monkeypatch.setattr("inrtomo.localized.cache.pair_samples", lambda *given: small)
    run = Run(replace(options(tmp_path, "--pairs", path), cache_pairs=8))
    with run.data():
        pool = Pool(run.cache, run.settings.pool, Blocks.of("haar"))
        pool.refill()
    assert len(pool._held) == len(run.cache.paths()) == 12 and len(run.held_out.paths()) == 3
    assert_refused(inr("train", "-o", tmp_path, "--pairs", path, "--cache-pairs", 700), "--cache-pairs", "--simulate")


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("PixelSize", "ten", "inrPixelSize: 'ten' is not a number of Å"),
        ("PixelSize", "-3", "inrPixelSize: '-3' is not a number of Å"),
        ("PixelSize", "nan", "inrPixelSize: 'nan' is not a number of Å"),
        ("Voltage", "3", "inrVoltage: '3' is not a voltage in kV .60"),
        ("Ctf", "25000", "inrCtf 25000: must be from 0.1 to 20 um"),
        ("Ctf", "ctf.txt", "ctf.txt .inrCtf. does not exist"),
        ("Reference", "1.mrc", "1.mrc: is its own reference"),
    ],
)
def test_a_list_is_checked_before_time_goes_into_it(column: str, value: str, word: str, tmp_path: Path) -> None:
    listed_stacks(tmp_path, "0.mrc", "1.mrc")
    rows = [{"Stack": f"{k}.mrc", "Alignment": "a.json", "Reference": "ref.mrc", column: "none"} for k in range(2)]
    if column == "Reference":
        rows[0][column] = "ref.mrc"
    good = dict(rows[0])
    rows[1][column] = value
    with pytest.raises(InputError, match=word):
        listed_rows(write_list(tmp_path / "l.star", good, rows[1]))


# --- pairs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def series(tiny_series: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_series, tmp_path / "series"))


def row(reference: str = "ts_truth.mrc", **values: str) -> dict[str, str]:
    given = {"inrStack": "ts.mrc", "inrAlignment": "ts_truth.json", "inrReference": reference}
    return dict.fromkeys(OPTIONAL, "") | given | values


class Seen(Exception):
    """What inference sees."""


@pytest.mark.parametrize("ctf", ["", "2.5", "ctf.txt"])
def test_training_sees_images_as_inference_does(
    ctf: str, inr: Inr, series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(
        images: Any, alignment: Any, height: int, memory: Any, folder: Any, report: Any, weight: Any, d: str
    ) -> Any:
        raise Seen(images, weight)

    monkeypatch.setattr(_infer_run, "filtered_tilts", stop)
    (series / "ctf.txt").write_text("".join(f"{k + 1} 21000 20000 30 0 0 0\n" for k in range(21)))
    more = () if not ctf else ("--ctf", series / ctf if ctf.endswith("txt") else ctf, "--voltage", 200)
    given = series / "ts.mrc", series / "ts_truth.json", "-o", series / "o.mrc", "--device", "cpu"
    with pytest.raises(Seen) as seen:
        inr("infer", *given, *more)
    images, weight = seen.value.args
    pair = listed_pair(series / "l.star", row(inrCtf=ctf, inrVoltage="200" if ctf else ""), "xyz")
    np.testing.assert_array_equal(pair.images, images)
    np.testing.assert_array_equal(pair.weight, weight)
    if ctf:
        assert not np.allclose(listed_pair(series / "l.star", row(), "xyz").images, images, atol=0.1)


def test_a_pixel_size_that_no_header_says_is_asked_for_by_the_column(series: Path) -> None:
    with mrcfile.open(series / "ts.mrc", "r+") as file:
        file.voxel_size = 0
    for path in (series / "ts.mrc.mdoc",):
        path.unlink()
    alignment = (series / "ts_truth.json").read_text().replace('"pixel_size_A": 10.0', '"pixel_size_A": null')
    (series / "ts_truth.json").write_text(alignment)
    with pytest.raises(InputError, match="no pixel size; give the column inrPixelSize in .*l.star"):
        listed_pair(series / "l.star", row(), "xyz")
    assert listed_pair(series / "l.star", row(inrPixelSize="12.5"), "xyz").pixel_size_A == 12.5


def test_a_reference_of_something_else_is_refused(series: Path) -> None:
    truth, _ = read_volume(series / "ts_truth.mrc")
    assert listed_pair(series / "l.star", row(), "xyz").facts["likeness"] > 0.6
    images = mrcfile.read(series / "ts.mrc").astype(np.float32)
    wrong = {
        "turned": np.rot90(truth, axes=(1, 2)),
        "stack": images,
        "flat": np.broadcast_to(truth.mean(0), truth.shape),
    }
    for name, volume in wrong.items():
        write_volume(series / f"{name}.mrc", np.ascontiguousarray(volume, dtype=np.float32), 10.0)
        with pytest.raises(InputError, match=f"{name}.mrc: is nothing like"):
            listed_pair(series / "l.star", row(f"{name}.mrc"), "xyz")


def test_how_like_its_series_a_reference_is_is_said(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listed_pairs, "LISTED_BLOCKS", 50)
    again = copied_series(series / "ts.mrc").name
    truth, _ = read_volume(series / "ts_truth.mrc")
    noise = np.random.default_rng(0).normal(0, 1, truth.shape).astype(np.float32)
    write_volume(series / "noisy.mrc", truth + LITTLE_LIKE * truth.std() * noise, 10.0)
    given = [{"Stack": s, "Alignment": "ts_truth.json", "Reference": r}
             for s, r in (("ts.mrc", "ts_truth.mrc"), (again, "noisy.mrc"))]  # fmt: skip
    path = write_list(series / "l.star", *given)
    run = Run(options(series, "--pairs", path, "--orientation", "xyz"))
    said: list[str] = []
    monkeypatch.setattr("click.echo", said.append)
    with run.data():
        pass
    assert "ts.mrc: for training; its reference" in said[0] and "look at both" not in said[0]
    assert "for validation" in said[1] and "look at both" in said[1]
