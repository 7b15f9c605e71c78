"""Preparation, coarse correlation and tracks in torch on the CPU, against the same stages in numpy, scipy and numba.

Pixels agree to float32's rounding, shifts to 0.01 px. Only the float32 transforms and filters differ; what stands on a
threshold (a hot pixel, a track at the image's edge) may fall on the other side, and none here does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment_phantom import blob_series  # type: ignore[import-not-found]

from inrtomo.align import bundle, coarse, pipeline, tracks
from inrtomo.align.fast import ON_CPU, fast_alignment_of, work_on
from inrtomo.align.prepare import PrepareSettings, find_defocus, prepare
from inrtomo.align.settings import AlignSettings
from inrtomo.gpu.bundle import conjugate_gradients
from inrtomo.gpu.early import DeviceWork
from inrtomo.gpu.pixels import cropping_matrix, quantile
from inrtomo.io.mrc import write_stack
from inrtomo.tiltseries import open_tilt_series

TORCH = DeviceWork("cpu", 1e9)
TILTS = np.arange(-60.0, 61.0, 8.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def image():
    """Odd and even side, gold, a hot pixel, one that is no number, dead borders."""
    rng = np.random.default_rng(0)
    out = rng.normal(300, 17, (93, 84)).astype(np.float32)
    y, x = np.mgrid[:93, :84]
    for at in ((30, 40), (70, 20)):
        out -= 200 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 8).astype(np.float32)
    out[50, 60], out[10, 20], out[10, 21], out[:, :3], out[-2:] = 2000, np.nan, np.inf, 7, 0
    return out


def counts(**settings):
    """A series of camera counts, protein dark, with what preparation has to deal with."""
    images, truth = blob_series((104, 96), TILTS, axis_deg=10.0, n_blobs=250, **settings)
    images = (800 - 40 * images).astype(np.float32)
    images[3, 5, 7], images[4, :, :5], images[6, 8, 8], images[-1] = 5000, 0, np.nan, 3
    return images, truth


def close(found, wanted, part):
    """To ``part`` of the spread of what is wanted."""
    assert np.abs(found - wanted).max() <= part * np.std(wanted)


def test_bad_pixels_and_borders(image):
    (found, dead), (wanted, wanted_dead) = TORCH.cleaned(image), ON_CPU.cleaned(image)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(dead, wanted_dead)
    assert dead.any() and (found != np.nan_to_num(image)).sum() == 3
    nothing = np.full((9, 8), np.nan, dtype=np.float32)
    np.testing.assert_array_equal(TORCH.cleaned(nothing)[0], ON_CPU.cleaned(nothing)[0])


def test_filters_of_an_image(image):
    flat = ON_CPU.cleaned(image)[0] - 300
    close(TORCH.blurred(flat, 8.0), ON_CPU.blurred(flat, 8.0), 1e-5)
    close(TORCH.between(flat, 2.0, 16.0), ON_CPU.between(flat, 2.0, 16.0), 1e-5)
    for factor in (1, 2, 5):
        close(TORCH.fourier_crop(flat, factor), ON_CPU.fourier_crop(flat, factor), 1e-5)
    optics = PrepareSettings()
    for defocus in (2e4, 3e4):
        close(TORCH.restore(flat, 12.0, defocus, optics), ON_CPU.restore(flat, 12.0, defocus, optics), 1e-4)
    close(TORCH.band_pass(flat[None], 40.0, 5.0), ON_CPU.band_pass(flat[None], 40.0, 5.0), 1e-5)
    close(TORCH.coefficients(flat[None]).cpu().numpy(), ON_CPU.coefficients(flat[None]), 1e-5)
    window = np.hanning(93)[:, None] * np.hanning(84)
    close(TORCH.mean_power(flat[None], window), ON_CPU.mean_power(flat[None], window), 1e-5)


def test_numbers_of_an_image(image):
    flat = 300 - ON_CPU.cleaned(image)[0]
    assert TORCH.noise_sd(flat) == pytest.approx(ON_CPU.noise_sd(flat), rel=1e-5)
    assert TORCH.texture(flat) == pytest.approx(ON_CPU.texture(flat), rel=1e-4)
    gold = ON_CPU.gold_mask(flat)
    assert 20 < gold.sum() < 2000
    np.testing.assert_array_equal(TORCH.gold_mask(flat), gold)


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_quantiles(n):
    values = np.random.default_rng(n).normal(size=n).astype(np.float32)
    for part in (0.0, 0.3, 0.5, 0.9995, 1.0):
        assert float(quantile(torch.tensor(values), part)) == pytest.approx(np.quantile(values, part), abs=1e-6)


def test_cropping_keeps_a_wave_that_fits():
    at = np.arange(30) - 14.5
    read = (np.arange(10) - 4.5) * 3
    wave = np.cos(2 * np.pi * at * 3 / 30 + 0.3)
    np.testing.assert_allclose(cropping_matrix(30, 3) @ wave, np.cos(2 * np.pi * read * 3 / 30 + 0.3), atol=1e-12)
    np.testing.assert_allclose(cropping_matrix(30, 3) @ np.cos(2 * np.pi * at * 7 / 30), 0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"bin": 2}, {"defocus_A": tuple(np.linspace(2e4, 3e4, len(TILTS)))}])
def test_prepared_images_are_the_same(settings):
    images, truth = counts()
    ours, other = (
        prepare(images, truth.tilt_deg, 10.0, PrepareSettings(**settings), {2: "by hand"}, work=work)
        for work in (ON_CPU, TORCH)
    )
    assert np.abs(other.images - ours.images).max() < 2e-3  # of the noise
    assert ours.restored_defocus_A is not None
    np.testing.assert_array_equal(other.weight, ours.weight)
    np.testing.assert_array_equal(other.gold, ours.gold)
    np.testing.assert_allclose(other.noise_sd, ours.noise_sd, rtol=1e-5)
    assert other.excluded.keys() == ours.excluded.keys() == {2, len(TILTS) - 1}
    assert other.notes == ours.notes


def test_the_defocus_found_is_the_same():
    images, _ = counts()
    assert find_defocus(images[:-1], 10.0, work=TORCH) == find_defocus(images[:-1], 10.0)


def test_correlation_finds_the_same_shifts():
    images, truth = counts(shift_px=8, noise_sd=1.0)
    prepared = prepare(images, truth.tilt_deg, 10.0)
    ours, other = (
        coarse.coarse_alignment(prepared, truth.tilt_deg, 10.0, work=work).shift_px for work in (ON_CPU, TORCH)
    )
    assert np.abs(other - ours).max() < 0.01 < 5 < np.abs(ours).max()


def test_the_axis_found_is_the_same():
    images, truth = blob_series((80, 96), TILTS, axis_deg=30.0, shift_px=3, n_blobs=150)
    ours, other = (coarse.find_axis(images, truth.tilt_deg, work) for work in (ON_CPU, TORCH))
    assert other == pytest.approx(ours, abs=1e-3)


@pytest.fixture(scope="module")
def followed():
    """Tracks at work, one round in, some views left out."""
    images, truth = blob_series((128, 112), TILTS, axis_deg=10.0, shift_px=3, noise_sd=0.5, warp_px=1.0)
    prepared = prepare(images, truth.tilt_deg, settings=PrepareSettings(restore=False))
    start = replace(truth, linear=truth.linear @ np.array([[1.01, 0.02], [-0.015, 0.99]]))
    out = tracks._Followed.start(prepared, start, np.arange(len(TILTS)), tracks.TrackSettings(step=20.0), ON_CPU)
    out.improve(40.0, 16.0)
    out.rejected[::5, 3] = True
    return out


def on_torch(followed, memory_bytes=1e9):
    """The same state, worked on in torch."""
    other = object.__new__(tracks._Followed)
    other.__dict__.update(followed.__dict__)
    other.work = DeviceWork("cpu", memory_bytes)
    other.coefficients = torch.tensor(followed.coefficients)
    return other


@pytest.mark.parametrize("memory_bytes", [1e9, 1.0])
def test_views_are_read_the_same(followed, memory_bytes):
    (_, ours, ours_seen), (_, other, seen) = followed._views(7.0), on_torch(followed, memory_bytes)._views(7.0)
    np.testing.assert_array_equal(seen, ours_seen)
    assert 0.3 < seen.mean() < 1
    close(other.numpy()[seen], ours[seen], 1e-5)


def test_sums_over_views_are_the_same(followed):
    _, views, seen = followed._views(7.0)
    given, pairs = torch.tensor(views, device=TORCH.device), [(0, 1), (3, 2)]
    np.testing.assert_allclose(TORCH.shared(given, seen, pairs), ON_CPU.shared(views, seen, pairs), rtol=1e-9)
    np.testing.assert_allclose(TORCH.power(given, seen), ON_CPU.power(views, seen), rtol=1e-9)
    weight = np.random.default_rng(0).random(views.shape[1:])
    np.testing.assert_allclose(TORCH.weighted_power(given, weight), ON_CPU.weighted_power(views, weight), rtol=1e-9)


@pytest.mark.parametrize("with_determinant", [False, True])
def test_the_likelihood_is_the_same(followed, with_determinant):
    band, views, seen = followed._views(7.0)
    kappa = tracks.overlap(band, TILTS, followed.window, 40.0)
    spectra = tracks.estimate_spectra(views, seen, band, TILTS, kappa, 7.0)
    strength = tracks.strengths(views, seen, spectra)
    assert len(np.unique(strength)) > 1
    given = band, TILTS, kappa, spectra, followed.window, strength, with_determinant
    on_device = torch.tensor(views, device=TORCH.device)
    ours, other = ON_CPU.likelihood(views, seen, *given), TORCH.likelihood(on_device, seen, *given)
    for name in ("gradient", "information", "misfit", "value"):
        wanted, found = getattr(ours, name), getattr(other, name)
        np.testing.assert_allclose(found, wanted, atol=1e-8 * np.nanmax(np.abs(wanted)), err_msg=name)


def test_the_bundle_takes_the_same_step(followed):
    found, _ = followed._likelihood(40.0, 10.0)
    given = (
        found.gradient, found.information, followed.positions(), TILTS, followed.motion, followed.model,
        np.full(len(followed.points), 7.0),
    )  # fmt: skip
    for largest_px in (2.0, 1e-3):
        ours, other = bundle.solve(*given, largest_px), TORCH.solve(*given, largest_px)
        np.testing.assert_allclose(other.coefficients, ours.coefficients, atol=1e-6)
        assert other.axis_rad == pytest.approx(ours.axis_rad, abs=1e-8)
        np.testing.assert_allclose(other.height, ours.height, atol=1e-5)
        assert np.abs(ours.coefficients - followed.motion.coefficients).max() > 1e-5


def test_conjugate_gradients_stop_at_the_tolerance():
    rng = np.random.default_rng(0)
    half = torch.tensor(rng.normal(size=(40, 40)))
    matrix, right = half @ half.T + 0.1 * torch.eye(40), torch.tensor(rng.normal(size=40))
    products = []

    def product(vector):
        products.append(vector)
        return matrix @ vector

    found = conjugate_gradients(product, right, lambda vector: vector / matrix.diagonal())
    assert 1e-6 < (matrix @ found - right).norm() / right.norm() <= bundle.CG_TOLERANCE
    assert len(products) < bundle.CG_STEPS
    assert not conjugate_gradients(product, 0 * right, lambda vector: vector).any()


@pytest.mark.parametrize("axis_deg", [10.0, pytest.param(None, marks=pytest.mark.slow)])
def test_fast_alignments_are_the_same(axis_deg):
    images, truth = blob_series((128, 112), TILTS, axis_deg=10.0, shift_px=5, noise_sd=0.5, warp_px=1.0)
    settings = PrepareSettings(restore=False)
    (ours, one), (other, two) = (
        fast_alignment_of(images, truth.tilt_deg, axis_deg, prepare_settings=settings, work=work)
        for work in (ON_CPU, TORCH)
    )
    assert np.abs(other.shift_px - ours.shift_px).max() < 0.01
    assert np.abs(other.rotation_deg - ours.rotation_deg).max() < 0.01
    assert ours.warp is not None and other.warp is not None
    np.testing.assert_allclose(other.warp.vectors, ours.warp.vectors, atol=0.01)
    assert two.tracks.slab_px == pytest.approx(one.tracks.slab_px, rel=1e-3)
    np.testing.assert_allclose(two.tracks.residual_per_tilt, one.tracks.residual_per_tilt, atol=0.01)


@pytest.mark.slow
def test_a_whole_run_is_the_same_and_may_go_on_elsewhere(tmp_path, monkeypatch):
    images, truth = counts(shift_px=4)
    write_stack(tmp_path / "ts.mrc", np.nan_to_num(images), 10.0)
    np.savetxt(tmp_path / "ts.rawtlt", TILTS)
    series = open_tilt_series(tmp_path / "ts.mrc")
    settings, found, inputs = AlignSettings(axis_deg=10.0, fast=True, working_size=64), [], []
    for work in (ON_CPU, TORCH):
        monkeypatch.setattr(pipeline, "work_on", lambda device, memory_bytes, work=work: work)
        found.append(pipeline.align_series(series, settings))
        inputs.append(pipeline.usable_images(series, 2, work))
    assert found[0].working_bin == 2
    used = found[0].alignment.included
    assert np.abs(found[1].alignment.shift_px - found[0].alignment.shift_px)[used].max() < 0.02
    assert found[1].notes == found[0].notes
    assert inputs[1][1] == inputs[0][1]
    close(inputs[1][0], inputs[0][0], 1e-5)


def test_the_cpu_is_what_it_always_was():
    assert work_on("cpu", 1e9) is ON_CPU
