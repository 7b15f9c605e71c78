"""The simulator against geometry and physics worked out independently."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mdocfile
import mrcfile
import numpy as np
import pytest
from scipy import ndimage

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.ctf import ctf_1d, ctf_2d, electron_wavelength_A
from inrtomo.errors import InputError
from inrtomo.geometry import axis_rotation
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.simulate import Simulation, SimulationSettings, simulate, write_simulation
from inrtomo.simulate.acquisition import aligned_view, dose_symmetric_order, gauge_fields, random_warp, tilt_scheme
from inrtomo.simulate.rays import aligned_positions, project_specimen
from inrtomo.simulate.specimen import make_specimen

SMALL = SimulationSettings(size=(64, 48), thickness_px=24, tilt_step_deg=10, beads=2, vesicles=1, seed=3)


@pytest.fixture(scope="module")
def small() -> Simulation:
    return simulate(SMALL)


def warped_alignment(size: tuple[int, int], axis_deg: float) -> Alignment:
    """Five tilts with everything: rotation, shifts, 1 px of local motion."""
    rng = np.random.default_rng(1)
    tilts = np.array([-60.0, -25.0, 0.0, 31.0, 60.0])
    half = max(size) / 2
    nodes = np.linspace(-half, half, 5)
    return Alignment(
        tilts,
        np.stack([axis_rotation(axis_deg + d) for d in rng.uniform(-0.5, 0.5, 5)]),
        rng.uniform(-4, 4, (5, 2)),
        size,
        10.0,
        LocalWarp(nodes, nodes, rng.uniform(-0.8, 0.8, (5, 5, 5, 2))),
    )


@pytest.mark.parametrize("axis_deg", [0.0, -4.3, 86.3])
@pytest.mark.parametrize("size", [(96, 80), (81, 96)])
def test_a_point_lands_where_the_alignment_says(axis_deg: float, size: tuple[int, int]) -> None:
    alignment = warped_alignment(size, axis_deg)
    point = np.array([9.3, -7.6, 5.2])  # x, y, z
    shape = (41, 120, 120)
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    blob = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2) / (2 * 1.5**2))
    for m in range(alignment.n_tilts):
        image = project_specimen(blob.astype(np.float32), alignment, m)
        row, col = ndimage.center_of_mass(image)
        found = np.array([col - (size[0] - 1) / 2, row - (size[1] - 1) / 2])
        assert np.abs(found - alignment.specimen_to_raw(m, point)).max() < 0.05


def test_a_uniform_slab_is_as_thick_as_the_ray_through_it_is_long() -> None:
    slab = np.zeros((30, 40, 300), dtype=np.float32)
    slab[5:25] = 1
    alignment = Alignment.identity(np.array([-60.0, 0.0, 45.0]), (20, 20))
    for m, tilt in enumerate(alignment.tilt_deg):
        image = project_specimen(slab, alignment, m)
        assert np.allclose(image, 20 / np.cos(np.deg2rad(tilt)), rtol=1e-2)


def test_a_margin_only_adds_pixels_around() -> None:
    density = np.random.default_rng(0).random((12, 60, 60), dtype=np.float32)
    alignment = warped_alignment((30, 26), 10.0)
    assert np.allclose(
        project_specimen(density, alignment, 1),
        project_specimen(density, alignment, 1, margin=5)[5:-5, 5:-5],
        atol=1e-4,
    )


def test_compiled_warp_inversion_is_the_alignments_own() -> None:
    alignment = warped_alignment((70, 50), 86.3)
    x, y = np.linspace(-50, 50, 23), np.linspace(-40, 40, 17)
    points = np.stack(np.meshgrid(x, y), axis=-1)
    for m in range(alignment.n_tilts):
        assert np.abs(aligned_positions(alignment, m, x, y) - alignment.raw_to_aligned(m, points)).max() < 1e-5


@pytest.mark.parametrize("counts", [False, True])
def test_snr_is_the_stated_one(counts: bool) -> None:
    settings = replace(SMALL, size=(96, 96), snr_db=-5.0, counts=counts)
    result = simulate(settings)
    noise = result.images - result.signal
    measured = 10 * np.log10(result.signal.var(axis=(1, 2)).mean() / noise.var(axis=(1, 2)).mean())
    assert measured == pytest.approx(-5.0, abs=0.1)


def test_halves_are_independent_and_make_the_whole(small: Simulation) -> None:
    assert np.allclose((small.odd + small.even) / 2, small.images, atol=1e-4)
    a, b = small.odd - small.signal, small.even - small.signal
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert a.var() == pytest.approx(2 * small.meta["noise_variance"], rel=0.05)
    counted = simulate(replace(SMALL, counts=True))
    assert np.array_equal(counted.odd + counted.even, counted.images)


def test_additive_series_show_protein_bright_and_counts_dark() -> None:
    bright = simulate(replace(SMALL, snr_db=None))
    dark = simulate(replace(SMALL, counts=True, snr_db=10.0))
    for m in range(len(bright.images)):
        assert np.corrcoef(bright.images[m].ravel(), dark.images[m].ravel())[0, 1] < -0.5


def test_counts_fall_with_tilt_as_the_path_grows() -> None:
    settings = replace(SMALL, counts=True, snr_db=-20.0, thickness_px=30, mean_free_path_nm=100.0)
    result = simulate(settings)
    means = result.images.mean(axis=(1, 2))
    flat, steep = len(means) // 2, 0
    assert means[steep] / means[flat] == pytest.approx(np.exp(-0.3 * (2 - 1)), rel=0.03)


def test_blank_tilts_hold_no_specimen_and_are_named() -> None:
    for counts in (False, True):
        result = simulate(replace(SMALL, blanks=2, counts=counts))
        blank = result.meta["blanks"]
        assert len(blank) == 2 and sorted(result.alignment.excluded) == blank
        assert np.abs(result.tilt_deg[blank]).min() > 0
        assert np.ptp(result.signal[blank], axis=(1, 2)).max() == 0
        if counts:
            good = np.setdiff1d(np.arange(len(result.images)), blank)
            assert result.images[blank].mean() < 0.1 * result.images[good].mean()


def test_too_many_blanks_are_refused() -> None:
    with pytest.raises(InputError, match="blank tilts"):
        simulate(replace(SMALL, blanks=11))


def test_dose_symmetric_order_alternates_outwards() -> None:
    order = dose_symmetric_order(4)
    in_time = np.argsort(order) - 4
    assert in_time.tolist() == [0, 1, -1, -2, 2, 3, -3, -4, 4]


def test_tilt_angles_are_rising_and_uneven_on_request() -> None:
    rng = np.random.default_rng(0)
    even, order = tilt_scheme(replace(SMALL, tilt_step_deg=2), rng)
    assert np.allclose(even, np.arange(-60, 61, 2)) and np.array_equal(order, np.arange(61))
    uneven, _ = tilt_scheme(replace(SMALL, tilt_step_deg=2, uneven_tilt_deg=0.5), rng)
    assert (np.diff(uneven) > 0).all() and 0.05 < np.abs(uneven - even).max() <= 0.5


def test_nominal_angles_differ_from_the_true_ones_by_the_offset() -> None:
    result = simulate(replace(SMALL, tilt_offset_deg=1.5))
    assert np.allclose(result.alignment.tilt_deg - result.tilt_deg, 1.5)


def test_drift_is_a_walk_in_acquisition_order() -> None:
    settings = replace(SMALL, scheme="dose-symmetric", tilt_step_deg=1, shift_px=0, drift_px=3, warp_max_px=0)
    result = simulate(replace(settings, beads=0, vesicles=0, crowding=0.01))
    in_time = result.alignment.shift_px[np.argsort(result.order)]
    assert np.allclose(in_time[0], 0)
    assert np.diff(in_time, axis=0).std() == pytest.approx(3, rel=0.2)


def test_rotation_jitter_stays_about_the_true_axis() -> None:
    result = simulate(replace(SMALL, axis_deg=86.3, rotation_jitter_deg=0.3))
    off = result.alignment.rotation_deg - 86.3
    assert np.abs(off).max() <= 0.3 and np.abs(off).max() > 0.1


def test_warp_has_the_stated_maximum_and_no_gauge() -> None:
    settings = replace(SMALL, size=(64, 96), axis_deg=86.0, warp_max_px=1.5)
    tilts = np.arange(-60.0, 61.0, 6.0)
    warp = random_warp(settings, tilts, np.random.default_rng(5))
    width, height = aligned_view(settings)
    assert (width, height) == (96, 64)
    x, y = np.linspace(-width / 2, width / 2, 33), np.linspace(-height / 2, height / 2, 33)
    moved = np.stack([warp.on_lattice(m, x, y) for m in range(len(tilts))])
    assert np.linalg.norm(moved, axis=-1).max() == pytest.approx(1.5, rel=0.02)
    assert np.abs(moved.mean(axis=0)).max() < 1e-9
    fields = gauge_fields(tilts, x, y).reshape(26, -1)
    coefficients, *_ = np.linalg.lstsq(fields.T, moved.ravel(), rcond=None)
    assert np.linalg.norm(fields.T @ coefficients) < 0.03 * np.linalg.norm(moved)


def test_truth_survives_the_disk(small: Simulation, tmp_path: Path) -> None:
    write_simulation(small, tmp_path, "s")
    truth = json.loads((tmp_path / "s_truth.json").read_text())
    again = alignment_from_dict(truth)
    assert again.warp is not None and again.image_size == (64, 48)
    points = np.random.default_rng(0).uniform(-25, 25, (50, 3))
    for m in range(again.n_tilts):
        assert np.abs(again.specimen_to_raw(m, points) - small.alignment.specimen_to_raw(m, points)).max() < 1e-9
    assert {"seed", "settings", "snr_db", "blanks", "order", "beads_px"} <= set(truth)


def test_beads_are_where_the_truth_says_in_volume_and_images() -> None:
    for size, axis_deg in (((64, 48), 0.0), ((49, 72), 86.3), ((72, 49), 86.3)):
        bare = replace(SMALL, size=size, snr_db=None, crowding=0, vesicles=0, beads=1)
        result = simulate(replace(bare, axis_deg=axis_deg, warp_max_px=0.3, shift_px=3))
        bead = np.array(result.meta["beads_px"][0])
        centre = (np.array(result.volume.shape) - 1) / 2
        near = np.array(bead[::-1] + centre)
        if (near[1:] > 6).all() and (near[1:] < np.array(result.volume.shape[1:]) - 7).all():
            assert np.abs(np.array(ndimage.center_of_mass(result.volume)) - near).max() < 0.05
        m = len(result.images) // 2
        seen = result.alignment.specimen_to_raw(m, bead)
        room = np.array(size) / 2 - 7
        if (np.abs(seen) < room).all():
            found = np.array(ndimage.center_of_mass(result.images[m]))[::-1] - (np.array(size) - 1) / 2
            assert np.abs(found - seen).max() < 0.05


def test_a_wide_specimen_is_twice_the_view_and_overlaps_nothing() -> None:
    settings = replace(SMALL, axis_deg=86.0)
    specimen = make_specimen(settings, np.random.default_rng(0))
    assert specimen.density.shape[1:] == (64 + 32, 2 * 48)
    # gold overlapping gold would double the density
    assert specimen.density.max() < 6 and specimen.molecules > 5
    flat = make_specimen(replace(settings, wide=False), np.random.default_rng(0))
    assert flat.density.shape[1:] == (64, 48)


def test_a_tilted_slab_rises_as_told() -> None:
    settings = replace(SMALL, size=(96, 96), slab_tilt_deg=(8.0, -5.0), beads=0, vesicles=0, crowding=0.05)
    density = make_specimen(settings, np.random.default_rng(0)).density
    z, y, x = np.nonzero(density > 0.3)
    design = np.stack([x, y, np.ones(len(x))], axis=1)
    slope_x, slope_y, _ = np.linalg.lstsq(design, z, rcond=None)[0]
    # the normal (sin b cos a, -sin a, cos b cos a) gives the slopes
    assert np.rad2deg(np.arctan(-slope_x)) == pytest.approx(8.0, abs=1.5)
    assert np.rad2deg(np.arctan(slope_y * np.cos(np.deg2rad(8)))) == pytest.approx(-5.0, abs=1.5)


def test_procedural_scenery_can_be_asked_for() -> None:
    rng = np.random.default_rng(0)
    bare = replace(SMALL, size=(96, 96), crowding=0, beads=0, vesicles=0)
    for extra in ({"membranes": 1}, {"filaments": 2}, {"vesicles": 2}):
        density = make_specimen(replace(bare, **extra), rng).density  # type: ignore[arg-type]
        assert (density > 0.3).sum() > 100


def test_molecules_from_a_folder(shared_data: Path) -> None:
    settings = replace(SMALL, size=(128, 96), thickness_px=50, densities=shared_data / "densities", beads=0, vesicles=0)
    specimen = make_specimen(settings, np.random.default_rng(0))
    assert specimen.molecules > 20 and specimen.density.max() < 1.5 and specimen.density.min() >= 0


def test_a_folder_without_densities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        make_specimen(replace(SMALL, densities=tmp_path), np.random.default_rng(0))


def test_ctf_against_textbook_numbers() -> None:
    assert electron_wavelength_A(300) == pytest.approx(0.019687, abs=2e-6)
    assert ctf_1d(0.0, 25000.0) == pytest.approx(0.07)
    # first zero of a pure phase object without spherical aberration: k^2 = 1 / (wavelength * defocus)
    zero = 1 / np.sqrt(electron_wavelength_A(300) * 25000.0)
    assert ctf_1d(zero, 25000.0, cs_mm=0.0, amplitude_contrast=0.0) == pytest.approx(0, abs=1e-9)
    plane = ctf_2d((32, 48), 10.0, 25000.0)
    assert plane.shape == (32, 25)
    assert plane[0, 7] == pytest.approx(float(ctf_1d(7 / 480, 25000.0)))
    assert plane[-3, 0] == pytest.approx(float(ctf_1d(3 / 320, 25000.0)))


def test_ctf_takes_low_frequencies_away() -> None:
    plain, phase = (simulate(replace(SMALL, snr_db=None, defocus_um=d)) for d in (None, 2.0))
    ratio = phase.signal.mean() / plain.signal.mean()
    assert 0.03 < ratio < 0.25  # 0.07 at zero frequency, a little more through the edges


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    settings = replace(SMALL, tilt_step_deg=20, counts=True, defocus_um=2.0, uneven_tilt_deg=0.3, drift_px=1.0)
    for name in ("a", "b"):
        write_simulation(simulate(settings), tmp_path / name, "t")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["t.mrc", "t.mrc.mdoc", "t.rawtlt", "t_even.mrc", "t_odd.mrc", "t_truth.json", "t_truth.mrc"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_stack_headers_and_mdoc_say_what_a_microscope_would(small: Simulation, tmp_path: Path) -> None:
    write_simulation(small, tmp_path, "s")
    with mrcfile.open(tmp_path / "s.mrc") as file:
        assert file.is_image_stack() and file.data.shape == (13, 48, 64)
        assert float(file.voxel_size.x) == pytest.approx(10)
    assert mrcfile.validate(tmp_path / "s_truth.mrc")
    table = mdocfile.read(tmp_path / "s.mrc.mdoc")
    assert np.allclose(table["TiltAngle"], small.tilt_deg, atol=1e-3)
    assert np.allclose(table["PriorRecordDose"], 3 * small.order)


def test_impossible_settings_are_one_sentence() -> None:
    for wrong, word in (
        ({"size": (8, 64)}, "image size"),
        ({"tilt_range_deg": 90.0}, "tilt range"),
        ({"crowding": 0.9}, "crowding"),
        ({"beads": -1}, "negative"),
    ):
        with pytest.raises(InputError, match=word):
            replace(SMALL, **wrong)  # type: ignore[arg-type]
