"""A tilt axis, tilt angles or an overlap that do not fit the images are noticed, and good ones are left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from alignment_phantom import blob_series  # type: ignore[import-not-found]

from inrtomo.align.coarse import working_images
from inrtomo.align.pipeline import align_series
from inrtomo.align.prepare import Prepared, PrepareSettings, prepare
from inrtomo.align.settings import AlignSettings
from inrtomo.align.start_check import (
    AxisCheck,
    StartCheck,
    axis_doubt,
    between_axes,
    check_axis,
    hand_doubt,
    order_doubt,
    overlap_doubt,
    small_images,
    wrong_start,
)
from inrtomo.alignment import Alignment
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.imod import write_angles
from inrtomo.metrics.alignment import compare_alignments
from inrtomo.tiltseries import open_tilt_series
from tests.running import Inr, run_command

PLAIN = PrepareSettings(restore=False)


def prepared_blobs(axis_deg: float, seed: int = 0) -> tuple[Prepared, np.ndarray, Alignment]:
    """Prepared images of a series of blobs, the small ones of the check, and the truth."""
    images, truth = blob_series(axis_deg=axis_deg, shift_px=6, noise_sd=0.6, seed=seed)
    prepared = prepare(images, truth.tilt_deg, settings=PLAIN)
    return prepared, small_images(working_images(prepared)[0]), truth


@pytest.mark.parametrize("axis", [-4.0, 41.0, 86.0, -150.0])
def test_the_axis_of_the_images_is_found_from_any_other(axis: float) -> None:
    prepared, images, truth = prepared_blobs(axis)
    for off in (0.0, -6.0):
        assert check_axis(images, truth.tilt_deg, prepared.included, axis + off).fits
    for off in (90.0, 50.0, -30.0):
        found = check_axis(images, truth.tilt_deg, prepared.included, axis + off)
        assert not found.fits and abs(between_axes(found.best_deg, axis)) < 5
        # on the side of the one that was asked about: the hand stays where it is known
        assert abs((found.best_deg - found.axis_deg + 180) % 360 - 180) <= 90
        assert found.direction_is_known == (abs(off) < 45)


def test_which_way_an_axis_points_is_nothing_images_tell() -> None:
    prepared, images, truth = prepared_blobs(10.0)
    assert check_axis(images, truth.tilt_deg, prepared.included, -170.0).fits


@pytest.mark.parametrize(("one", "other", "between"), [(0, 10, 10), (175, -5, 0), (86, -86, 8), (-4, 86, -90)])
def test_angle_between_axes(one: float, other: float, between: float) -> None:
    assert between_axes(one, other) == pytest.approx(between)


def acquisition_order(tilt_deg: np.ndarray) -> np.ndarray:
    return np.array(sorted(range(len(tilt_deg)), key=lambda i: (abs(tilt_deg[i]), tilt_deg[i])))


def test_angles_in_another_order_are_noticed() -> None:
    prepared, images, truth = prepared_blobs(0.0)
    tilt, used = truth.tilt_deg, prepared.included
    order = acquisition_order(tilt)
    assert order_doubt(images, tilt, used) is None
    assert order_doubt(images, -tilt, used) is None  # the mirrored specimen: no images tell
    assert order_doubt(images[order], tilt[order], used) is None  # a dose-symmetric stack with its own angles
    wrong = {
        "sorted angles of a dose-symmetric stack": (images[order], tilt),
        "angles in order of acquisition of a sorted stack": (images, tilt[order]),
        "without their sign": (images, np.abs(tilt)),
        "shuffled": (images, np.random.default_rng(1).permutation(tilt)),
    }
    for name, (stack, angles) in wrong.items():
        doubt = order_doubt(stack, angles, used)
        assert doubt is not None and "--tilt-angles" in doubt, name


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_flat_specimen_shows_the_same_at_the_opposite_angle(noise: float) -> None:
    """No points above or below the axis: a tilt and its opposite are one projection, which is no wrong order."""
    prepared, images, truth = prepared_blobs(0.0)
    tilt, used = truth.tilt_deg, prepared.included
    same = np.array([int(np.abs(tilt - abs(angle)).argmin()) for angle in tilt])
    flat = images[same] + noise * images.std() * np.random.default_rng(0).normal(size=images.shape)
    flat = flat.astype(np.float32)
    assert order_doubt(flat, tilt, used) is None
    assert order_doubt(flat, np.random.default_rng(1).permutation(tilt), used) is not None


@pytest.mark.parametrize("normal", [6.0, -10.0])
def test_a_flat_specimen_that_is_inclined_shows_the_same_from_both_sides_of_its_normal(normal: float) -> None:
    """A lamella: what mirrors its projections is its normal, not zero tilt."""
    prepared, images, truth = prepared_blobs(0.0)
    tilt, used = truth.tilt_deg, prepared.included
    one_side = normal - np.sign(normal) * np.abs(tilt - normal)
    flat = images[[int(np.abs(tilt - angle).argmin()) for angle in one_side]]
    assert order_doubt(flat, tilt, used) is None
    assert order_doubt(flat, np.random.default_rng(1).permutation(tilt), used) is not None


def test_nothing_is_said_of_noise_and_of_few_images() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(31, 64, 64)).astype(np.float32)
    tilt = np.linspace(-60, 60, 31)
    assert order_doubt(images, tilt, np.arange(31)) is None
    assert check_axis(images, tilt, np.arange(31), 30.0).fits
    assert order_doubt(images[:5], tilt[:5], np.arange(5)) is None
    assert check_axis(images[:5], tilt[:5], np.arange(5), 30.0).fits


@pytest.mark.parametrize("axis", [0.0, 90.0])
def test_overlap_is_that_of_two_rectangles(axis: float) -> None:
    """Images of 100 x 50 px moved by 30 px along the raw y share 0.4 of a view, along the raw x 0.7."""
    start = Alignment.identity(np.array([-3.0, 0.0, 3.0]), (100, 50), axis)
    for raw, share in (((0.0, 30.0), 0.4), ((30.0, 0.0), 0.7)):
        shift = np.zeros((3, 2))
        shift[2] = start.linear[2] @ raw
        doubt = overlap_doubt(replace(start, shift_px=shift))
        assert (doubt is not None) == (share < 0.5)
        assert doubt is None or ("images 1 and 2" in doubt and f"{share:.0%}" in doubt)


def test_a_wrong_axis_that_the_tracks_put_right_is_no_fault_of_the_result() -> None:
    result = Alignment.identity(np.array([-3.0, 0.0, 3.0]), (64, 64), -3.0)
    off = StartCheck(AxisCheck(12.0, -4.0, 9.0), None)
    assert wrong_start(off, result) == []
    (sentence,) = wrong_start(StartCheck(AxisCheck(86.0, -4.0, 9.0), None), replace(result, linear=start_at(88.0)))
    assert "88.0" in sentence and "-4.0" in sentence and "--tilt-axis auto" in sentence
    assert wrong_start(StartCheck(AxisCheck(86.0, -4.0, 2.0), None), replace(result, linear=start_at(88.0))) == []
    # refined to within the reach of the tracks, and not to what fits: no failure, and not to be called good either
    off = StartCheck(AxisCheck(11.0, -5.9, 8.0), None)
    part_way = replace(result, linear=start_at(2.1))
    assert wrong_start(off, part_way) == []
    doubt = axis_doubt(off, part_way)
    assert doubt is not None and all(word in doubt for word in ("11.0", "2.1", "-5.9", "--tilt-axis auto"))
    assert axis_doubt(off, replace(result, linear=start_at(-4.0))) is None
    assert axis_doubt(StartCheck(AxisCheck(11.0, -5.9, 2.0), None), part_way) is None


def test_an_axis_against_the_recorded_one_is_the_other_hand() -> None:
    result = Alignment.identity(np.array([-3.0, 0.0, 3.0]), (64, 64), 176.0)
    doubt = hand_doubt(-4.0, "ts.mdoc", result)
    assert doubt is not None and all(word in doubt for word in ("176.0", "-4.0", "ts.mdoc", "--tilt-axis"))
    for recorded in (None, 170.0, 86.0, -100.0, -184.0):
        assert hand_doubt(recorded, "ts.mdoc", result) is None


def start_at(axis_deg: float) -> np.ndarray:
    return Alignment.identity(np.array([-3.0, 0.0, 3.0]), (64, 64), axis_deg).linear


@pytest.mark.parametrize(
    ("told", "is_recorded", "ambiguous"),
    [(0.0, True, False), (25.0, True, False), (90.0, True, True), (None, False, True)],
)
def test_the_hand_is_known_unless_the_axis_is_a_guess(
    tiny_series: Path, told: float | None, is_recorded: bool, ambiguous: bool
) -> None:
    """A recorded axis that is 25 degrees off says where the axis points, one that is 90 degrees off does not."""
    series = open_tilt_series(tiny_series / "ts.mrc")
    result = align_series(series, AlignSettings(axis_deg=told, axis_is_recorded=is_recorded, fast=True))
    assert result.axis_ambiguous is ambiguous
    assert abs(between_axes(float(np.median(result.alignment.rotation_deg)), 0.0)) < 2
    assert result.wrong_start == []
    assert any("does not fit the images" in note for note in result.notes) == (told in (25.0, 90.0))


@pytest.fixture(scope="module")
def axis_off(tiny_series: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of ``inr-align --tilt-axis 90`` of a series whose axis is at 0."""
    out = tmp_path_factory.mktemp("axis")
    done = run_command("align", tiny_series / "ts.mrc", "-o", out, "--fast", "--tilt-axis", 90, "--strict")
    (out / "said").write_text(f"{done.exit_code}\n{done.output}")
    return out


def test_a_given_axis_is_kept_and_the_result_called_failed(axis_off: Path, tiny_series: Path, inr: Inr) -> None:
    status, _, said = (axis_off / "said").read_text().partition("\n")
    assert status == "1" and "tilt axis 90.0° does not fit the images" in said and "--tilt-axis auto" in said
    values = json.loads((axis_off / "ts_align.json").read_text())
    assert values["verdict"] == "failed" and values["tilt_axis_ambiguous"] is False
    assert abs(values["tilt_axis_deg"]) > 60 and any("tilt axis" in reason for reason in values["reasons"])
    # whoever looks at the folder later is told the same
    again = inr("align", tiny_series / "ts.mrc", "-o", axis_off, "--fast", "--tilt-axis", 90, "--strict", "--resume")
    assert again.exit_code == 1 and "complete already" in again.output
    report = inr("report", axis_off, "-o", axis_off / "page")
    assert (
        f"failed: {'; '.join(values['reasons'])}" in report.output and f"failed: {'; '.join(values['reasons'])}" in said
    )


def test_angles_of_the_other_sign_are_held_against_the_record(tiny_series: Path, tmp_path: Path, inr: Inr) -> None:
    series = open_tilt_series(tiny_series / "ts.mrc")
    assert "other angles" not in series.sources
    write_angles(tmp_path / "turned.tlt", -series.tilt_deg)
    turned = tmp_path / "turned.tlt"
    assert "opposite sign" in open_tilt_series(tiny_series / "ts.mrc", turned).sources["other angles"]
    swapped = series.tilt_deg.copy()
    swapped[[4, 5]] = swapped[[5, 4]]
    write_angles(tmp_path / "swapped.tlt", swapped)
    said = open_tilt_series(tiny_series / "ts.mrc", tmp_path / "swapped.tlt").sources["other angles"]
    assert "another order" in said and "image 4:" in said
    done = inr("align", tiny_series / "ts.mrc", "-o", tmp_path / "out", "--fast", "--strict", "--tilt-angles", turned)
    assert done.exit_code == 0 and "opposite sign" in done.output
    assert json.loads((tmp_path / "out/ts_align.json").read_text())["verdict"] == "check"


def test_a_good_series_is_called_good(tiny_series: Path, tmp_path: Path, inr: Inr) -> None:
    done = inr("align", tiny_series / "ts.mrc", "-o", tmp_path / "out", "--fast", "--strict")
    assert done.exit_code == 0, done.output
    values = json.loads((tmp_path / "out/ts_align.json").read_text())
    assert values["verdict"] == "good" and values["wrong_start"] == values["doubts"] == []
    assert values["tilt_axis_ambiguous"] is False
    assert f"good: {'; '.join(values['reasons'])}" in done.output
    truth, found = read_alignment(tiny_series / "ts_truth.json"), read_alignment(tmp_path / "out")
    assert compare_alignments(truth, found, 30.0).rms_px < 1
