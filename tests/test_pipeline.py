"""The whole pipeline on small simulated series, against the alignment they were made with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from alignment_phantom import blob_series  # type: ignore[import-not-found]

from inrtomo.align.joint import HELD_BLOCK_PX, JointSettings, blocks_to_hold_out
from inrtomo.align.pipeline import (
    AlignResult,
    AlignSettings,
    _Run,
    align_series,
    merged,
    with_harmless_lines,
    working_bin,
)
from inrtomo.align.placed_field import PlacedField
from inrtomo.align.prepare import PixelWork, PrepareSettings, prepare
from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.mrc import read_volume
from inrtomo.metrics.alignment import compare_alignments
from inrtomo.metrics.volume import cc, translation_between
from inrtomo.simulate import SimulationSettings, simulate, write_simulation
from inrtomo.tiltseries import TiltSeries, open_tilt_series

THICKNESS = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of 25 tilts with one blank, specimen wider than the view, axis 3 degrees off what is told."""
    settings = SimulationSettings(
        size=(112, 112), thickness_px=THICKNESS, tilt_step_deg=5.0, snr_db=5.0, warp_max_px=1.0, shift_px=5.0,
        axis_deg=85.0, rotation_jitter_deg=0.2, beads=4, blanks=1, slab_tilt_deg=(4.0, 0.0), seed=4,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("series")
    write_simulation(simulate(settings), path, "ts")
    return path


@pytest.fixture(scope="module")
def truth(folder: Path) -> Alignment:
    return read_alignment(folder / "ts_truth.json")


def opened(folder: Path) -> TiltSeries:
    return open_tilt_series(folder / "ts.mrc")


@pytest.fixture(scope="module")
def fast(folder: Path) -> AlignResult:
    return align_series(opened(folder), AlignSettings(axis_deg=84.0, fast=True))


@pytest.fixture(scope="module")
def joint(folder: Path) -> AlignResult:
    return align_series(opened(folder), AlignSettings(axis_deg=84.0))


def test_fast_finds_the_alignment(fast: AlignResult, truth: Alignment) -> None:
    error = compare_alignments(fast.alignment, truth, THICKNESS)
    assert error.rms_px < 0.8
    assert fast.losses == [] and fast.verdict is None
    assert fast.residual_rms_px is not None and fast.residual_rms_px < 1.0


def test_the_survey_finds_thickness_and_slope_by_itself(fast: AlignResult) -> None:
    """Without a joint fit after it: the slab is 36 px thick and was turned by +4 degrees about y. A density that has
    only begun to gather is still spread over the whole slab, and level."""
    assert fast.levelling["tilt_offset_deg"] == pytest.approx(4.0, abs=1.8)
    assert abs(fast.levelling["x_tilt_deg"]) < 1.2
    assert 0.65 * THICKNESS < fast.thickness_px < 1.4 * THICKNESS


def test_tracks_see_nothing_of_what_is_held_out() -> None:
    """Whatever stands in held-out pixels, images for the tracks are the same; pixels beside them are left alone."""
    random = np.random.default_rng(0)
    images, truth = blob_series(size=(96, 80), tilts=np.arange(-60.0, 61.0, 10.0))
    prepared = prepare(images, truth.tilt_deg, settings=PrepareSettings(polarity=1, restore=False))
    settings = JointSettings(held_out=0.25, seed=3)
    run: Any = SimpleNamespace(joint_settings=settings, work=PixelWork())
    seen = _Run.without_held_out(run, prepared).images
    blocks = blocks_to_hold_out(prepared.images.shape, settings.held_out, settings.seed)
    hidden = blocks.repeat(HELD_BLOCK_PX, axis=1).repeat(HELD_BLOCK_PX, axis=2)[:, :80, :96]
    assert 0.1 < hidden.mean() < 0.4
    spoilt = np.where(hidden, 1e3 * random.normal(size=hidden.shape).astype(np.float32), prepared.images)
    again = _Run.without_held_out(run, replace(prepared, images=spoilt)).images
    np.testing.assert_array_equal(again, seen)
    np.testing.assert_array_equal(seen[~hidden], prepared.images[~hidden])
    assert np.abs(seen[hidden]).max() < np.abs(prepared.images).max()


def test_joint_fit_is_better_than_tracks(fast: AlignResult, joint: AlignResult, truth: Alignment) -> None:
    error = compare_alignments(joint.alignment, truth, THICKNESS)
    assert error.rms_px < 0.4
    assert error.rms_px < compare_alignments(fast.alignment, truth, THICKNESS).rms_px


def test_warp_adds_to_the_best_linear_part(joint: AlignResult, truth: Alignment) -> None:
    """The ``.xf`` alone is no worse than the truth's linear part could be by much, and the warp improves on it."""
    linear = compare_alignments(joint.alignment.without_warp(), truth, THICKNESS).rms_px
    assert compare_alignments(joint.alignment, truth, THICKNESS).rms_px < linear
    assert linear < 1.25 * compare_alignments(truth.folded().without_warp(), truth, THICKNESS).rms_px + 0.1


def test_blank_is_found_and_no_good_tilt_lost(joint: AlignResult, folder: Path, truth: Alignment) -> None:
    assert set(joint.alignment.excluded) == set(truth.excluded)
    blank = next(iter(joint.alignment.excluded))
    near = [blank - 1, blank + 1]
    between = joint.alignment.shift_px[near]
    assert (joint.alignment.shift_px[blank] >= between.min(axis=0) - 1e-6).all()
    assert (joint.alignment.shift_px[blank] <= between.max(axis=0) + 1e-6).all()


def test_specimen_is_levelled(joint: AlignResult) -> None:
    """The slab was turned by 4 degrees about y: its angle is found, whichever sign the simulator gives it."""
    assert abs(abs(joint.levelling["tilt_offset_deg"]) - 4.0) < 2.0
    assert abs(joint.levelling["x_tilt_deg"]) < 2.0
    assert 0.6 * THICKNESS < joint.thickness_px < 1.6 * THICKNESS


@pytest.mark.slow
def test_no_level_keeps_the_frame_of_the_start(joint: AlignResult, folder: Path, truth: Alignment) -> None:
    """Started from the truth and not levelled, the result needs no motion of the specimen to agree with it."""
    start = replace(truth.folded(), excluded={})
    kept = align_series(opened(folder), AlignSettings(axis_deg=85.0, start=start, level=False, fast=False))
    error = compare_alignments(kept.alignment, truth, THICKNESS)
    assert error.rms_px < 0.5
    assert np.abs(error.motion.translation_px).max() < 0.7
    assert np.abs(error.motion.rotation_deg).max() < 0.7
    np.testing.assert_allclose(kept.alignment.tilt_deg, start.tilt_deg, atol=1e-9)


def test_the_record_is_complete(joint: AlignResult) -> None:
    assert {"prepare", "coarse", "tracks", "survey", "joint fit", "guard", "total"} <= joint.seconds.keys()
    assert joint.peak_memory_bytes > 1e7
    assert joint.verdict is not None and joint.verdict.chosen in ("linear", "warp")
    assert len(joint.losses) > 10


def test_working_bin() -> None:
    assert working_bin((512, 400), 640) == 1
    assert working_bin((4096, 4096), 640) == 7


@pytest.mark.slow
def test_large_images_are_binned(folder: Path, truth: Alignment) -> None:
    """Worked on at half the size, the alignment still is in raw px."""
    found = align_series(opened(folder), AlignSettings(axis_deg=84.0, fast=True, working_size=64))
    assert found.working_bin == 2 and found.alignment.image_size == truth.image_size
    assert compare_alignments(found.alignment, truth, THICKNESS).rms_px < 1.2


def test_start_of_another_series_is_refused(folder: Path) -> None:
    other = Alignment.identity(np.arange(-60.0, 61.0, 10.0), (112, 112))
    with pytest.raises(InputError, match="13 images"):
        align_series(opened(folder), AlignSettings(start=other))


def random_alignment(n: int = 7) -> Alignment:
    rng = np.random.default_rng(0)
    nodes = np.linspace(-50, 50, 5)
    base = Alignment.identity(np.linspace(-60, 60, n), (100, 100), 20.0)
    warp = LocalWarp(nodes, nodes, rng.normal(size=(n, 5, 5, 2)))
    return replace(base, shift_px=rng.normal(size=(n, 2)), warp=warp)


def test_a_part_put_back_changes_nothing_else() -> None:
    whole, indices = random_alignment(), np.array([0, 2, 3, 6])
    again = merged(whole, whole.subset(indices), indices)
    np.testing.assert_array_equal(again.shift_px, whole.shift_px)
    assert again.warp is not None and whole.warp is not None
    np.testing.assert_array_equal(again.warp.vectors[indices], whole.warp.vectors[indices])


def test_excluded_images_get_a_line_between_their_neighbours() -> None:
    whole = replace(random_alignment(), excluded={0: "blank", 3: "blank"})
    out = with_harmless_lines(whole)
    np.testing.assert_allclose(out.shift_px[3], whole.shift_px[[2, 4]].mean(axis=0))
    np.testing.assert_allclose(out.shift_px[0], whole.shift_px[1])
    np.testing.assert_allclose(out.rotation_deg, 20.0)
    assert out.warp is not None and not out.warp.vectors[[0, 3]].any()


@pytest.mark.parametrize("level", [True, False])
def test_the_field_lies_where_the_alignment_says(folder: Path, truth: Alignment, tmp_path: Path, level: bool) -> None:
    """Through its file, the density is on top of the true specimen once the alignments' rigid motion is applied."""
    result = align_series(opened(folder), AlignSettings(axis_deg=84.0, level=level, warp="none"))
    assert result.field is not None
    PlacedField(result.field, *result.field_to_result, result.working_bin).save(tmp_path / "field.npz")
    motion = compare_alignments(result.alignment, truth, THICKNESS).motion
    specimen, _ = read_volume(folder / "ts_truth.mrc")
    field = PlacedField.load(tmp_path / "field.npz")
    placed = field.volume(specimen.shape, motion.rotation, motion.translation_px)
    assert cc(placed, specimen) > 0.75
    assert np.abs(translation_between(placed, specimen)).max() < 0.6
