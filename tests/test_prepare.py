"""Preparation: polarity, unusable tilts, hot pixels, binning, restoration."""

from __future__ import annotations

import numpy as np
import pytest
from alignment_phantom import blob_series  # type: ignore[import-not-found]

from inrtomo.align import joint
from inrtomo.align.prepare import (
    PrepareSettings,
    find_defocus,
    fourier_crop,
    noise_sd,
    prepare,
    restore,
    unusable_tilts,
)
from inrtomo.ctf import ctf_2d
from inrtomo.errors import InputError
from inrtomo.gpu.pixels import DevicePixelWork


def test_polarity_is_found_and_can_be_given() -> None:
    images, truth = blob_series(size=(96, 80), n_blobs=150)
    bright = prepare(images, truth.tilt_deg, settings=PrepareSettings(restore=False))
    dark = prepare(-images, truth.tilt_deg, settings=PrepareSettings(restore=False))
    assert (bright.polarity, dark.polarity) == (1, -1)
    np.testing.assert_allclose(bright.images, dark.images, atol=1e-4)
    given = prepare(images, truth.tilt_deg, settings=PrepareSettings(polarity=-1, restore=False))
    assert given.polarity == -1 and np.corrcoef(given.images[3].ravel(), images[3].ravel())[0, 1] < -0.9


def test_units_are_the_noise() -> None:
    images, truth = blob_series(noise_sd=0.5)
    prepared = prepare(5 * images + 3, truth.tilt_deg, settings=PrepareSettings(restore=False))
    assert prepared.noise_sd == pytest.approx(1.0, abs=0.05)
    assert np.abs(np.median(prepared.images, axis=(1, 2))).max() < 0.1
    # input = background + gain * images
    back = prepared.background[4] + prepared.gain[4] * prepared.images[4]
    assert np.median(np.abs(back - (5 * images[4] + 3))) < 1e-3


def counts_series(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, truth = blob_series(noise_sd=0.0, seed=seed)
    rng = np.random.default_rng(seed)
    dose = 200 * np.exp(-0.4 / np.cos(np.deg2rad(truth.tilt_deg)))
    return rng.poisson(dose[:, None, None] * (1 - 0.06 * images).clip(0)).astype(np.float32), truth.tilt_deg


def test_blank_and_dark_tilts_are_found_and_no_other() -> None:
    images, tilts = counts_series()
    assert prepare(images, tilts).excluded == {}
    rng = np.random.default_rng(1)
    images[5] = rng.poisson(4, images[5].shape)
    images[20] = rng.poisson(3, images[20].shape)
    prepared = prepare(images, tilts)
    assert sorted(prepared.excluded) == [5, 20]
    assert not prepared.weight[[5, 20]].any() and prepared.weight[6].mean() > 0.9
    assert prepared.counts and prepared.polarity == -1


TILTS = np.arange(-60.0, 61.0, 3.0)


@pytest.mark.parametrize(("which", "left", "lost"), [("dark", 0.37, 0.33), ("blank", 0.42, 0.38)])
def test_limits_of_dark_and_blank_tilts(which: str, left: float, lost: float) -> None:
    """A tilt may have 0.35 of its neighbours' counts and 0.4 of their texture: a grid bar over part of the view, or a
    weak exposure, is of use; less is not."""
    plain = np.full(len(TILTS), 100.0)
    for share, expected in ((left, []), (lost, [17])):
        spoilt = plain.copy()
        spoilt[17] *= share
        median, texture = (spoilt, plain) if which == "dark" else (plain, spoilt)
        found = unusable_tilts(median, texture, TILTS, counts=True)
        assert sorted(found) == expected
        assert all(reason.startswith(which) for reason in found.values())
    assert unusable_tilts(0.1 * plain * (1 + (TILTS > 0)), plain, TILTS, counts=False) == {}  # no counts: units of any


def test_a_series_recorded_in_two_branches_loses_no_tilt() -> None:
    """Of a thick specimen (1.5 mean free paths) the counts fall to 0.22 at 60 degrees; neighbours are those in tilt,
    not those in the stack, where 60 degrees is followed by -3."""
    branches = np.concatenate([np.arange(0.0, 61.0, 3.0), np.arange(-3.0, -61.0, -3.0)])
    for tilts in (branches, TILTS, np.random.default_rng(0).permutation(TILTS)):
        counts = np.exp(-1.5 / np.cos(np.deg2rad(tilts)))
        assert unusable_tilts(counts, counts, tilts, counts=True) == {}
        one = int(np.flatnonzero(tilts == -30)[0])
        counts[one] *= 0.2
        assert sorted(unusable_tilts(counts, counts, tilts, counts=True)) == [one]


def test_two_bad_neighbours_do_not_hide_each_other() -> None:
    counts = np.full(len(TILTS), 100.0)
    counts[[10, 11, 12]] = 5.0
    assert sorted(unusable_tilts(counts, np.full(len(TILTS), 1.0), TILTS, counts=True)) == [10, 11, 12]
    texture = np.full(len(TILTS), 1.0)
    texture[[0, -1]] = 0.0
    assert sorted(unusable_tilts(np.full(len(TILTS), 100.0), texture, TILTS, counts=False)) == [0, len(TILTS) - 1]


def test_empty_image_in_a_series_of_any_units_is_found() -> None:
    images, truth = blob_series(noise_sd=0.2)
    images[0] = 0.0
    assert sorted(prepare(images, truth.tilt_deg).excluded) == [0]


def test_all_blank_is_refused() -> None:
    with pytest.raises(InputError, match="at least 3"):
        prepare(np.zeros((5, 32, 32), dtype=np.float32), np.arange(5.0))


def test_bad_pixels_do_not_matter() -> None:
    images, truth = blob_series(size=(96, 96))
    clean = prepare(images, truth.tilt_deg, settings=PrepareSettings(restore=False))
    spoilt = images.copy()
    spoilt[3, 40, 41] = 1e6
    spoilt[4, 10, 10] = np.nan
    spoilt[5, :, -4:] = spoilt[5].mean()
    found = prepare(spoilt, truth.tilt_deg, settings=PrepareSettings(restore=False))
    assert np.isfinite(found.images).all() and found.images[3].max() < 2 * clean.images[3].max()
    assert not found.weight[5, :, -4:].any() and found.weight[5, :, :-5].any()


def test_binning_keeps_the_centre_and_the_values() -> None:
    ny, nx = 65, 90
    y, x = np.mgrid[:ny, :nx]
    image = np.exp(-((x - (nx - 1) / 2 - 6) ** 2 + (y - (ny - 1) / 2 + 4) ** 2) / (2 * 6.0**2)).astype(np.float32)
    small = fourier_crop(image, 2)
    my, mx = small.shape
    assert (my, mx) == (32, 45)
    y, x = np.mgrid[:my, :mx]
    wanted = np.exp(-((2 * (x - (mx - 1) / 2) - 6) ** 2 + (2 * (y - (my - 1) / 2) + 4) ** 2) / (2 * 6.0**2))
    assert np.abs(small - wanted).max() < 5e-3


def test_restoration_undoes_the_transfer_function_where_it_passes() -> None:
    images, _ = blob_series(noise_sd=0.0)
    image = images[10] - np.median(images[10])
    h = ctf_2d(image.shape, 10.0, 25000.0)
    seen = np.fft.irfft2(np.fft.rfft2(image) * h, s=image.shape).astype(np.float32)
    back = restore(seen, 10.0, 25000.0)
    inner = (slice(24, -24), slice(24, -24))
    before = np.corrcoef(seen[inner].ravel(), image[inner].ravel())[0, 1]
    after = np.corrcoef(back[inner].ravel(), image[inner].ravel())[0, 1]
    assert after > 0.95 and after > before + 0.05


def test_defocus_is_recognised_in_the_power_spectrum() -> None:
    images, _ = blob_series(
        noise_sd=0.0, n_blobs=800, size=(192, 192), tilts=np.arange(-20.0, 21.0, 4.0), widths_px=(0.8, 3.0)
    )
    rng = np.random.default_rng(0)
    noise = 0.05 * rng.standard_normal(images.shape)
    h = ctf_2d(images.shape[1:], 10.0, 25000.0)
    seen = np.fft.irfft2(np.fft.rfft2(images) * h, s=images.shape[1:])
    assert find_defocus((images + noise).astype(np.float32), 10.0) is None
    found = find_defocus((seen + noise).astype(np.float32), 10.0)
    assert found is not None and found == pytest.approx(25000.0, rel=0.35)


def test_noise_sd_of_few_counts_is_theirs() -> None:
    counts = np.random.default_rng(0).poisson(0.05, (3, 100, 100)).astype(np.float32)
    for unit in (1.0, 0.1):  # in which differences of equal counts are zero but for rounding
        images = np.float32(unit) * counts + np.float32(0.3)
        assert noise_sd(images[0]) == pytest.approx(unit * np.sqrt(0.05), rel=0.1)
        np.testing.assert_allclose(joint.noise_sd(images), unit * np.sqrt(0.05), rtol=0.1)
    assert DevicePixelWork("cpu").noise_sd(counts[0]) == pytest.approx(noise_sd(counts[0]), rel=1e-5)
    assert noise_sd(np.zeros((20, 20), np.float32)) == 0.0


def test_noise_sd_is_not_misled_by_smooth_signal() -> None:
    images, _ = blob_series(noise_sd=0.2)
    assert noise_sd(images[5]) == pytest.approx(0.2, rel=0.1)
