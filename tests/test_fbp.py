"""Weighted back-projection: points land where they are, with their density, whatever the geometry."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import axis_rotation, centred_coordinates, specimen_to_aligned
from inrtomo.reconstruct import fbp
from inrtomo.reconstruct.fbp import FbpSettings, fbp_sections, fbp_volume
from inrtomo.reconstruct.filters import FILTERS, RadialFilter, angular_weights, ramp_of_line

SIGMA = 2.0
POINTS = np.array([[9.3, -11.6, 5.2], [-14.7, 8.4, -6.9], [0.4, 0.7, -0.3]])  # x, y, z from the centre


def blob_images(alignment: Alignment, points: np.ndarray = POINTS, sigma: float = SIGMA) -> np.ndarray:
    """Exact line integrals of unit-height Gaussian blobs, at the deformed coordinates of every raw pixel."""
    nx, ny = alignment.image_size
    p = np.stack(np.meshgrid(centred_coordinates(nx), centred_coordinates(ny)), axis=-1)
    images = np.zeros((alignment.n_tilts, ny, nx))
    for m in range(alignment.n_tilts):
        u = alignment.raw_to_aligned(m, p)
        for at in specimen_to_aligned(points, float(alignment.tilt_deg[m]), float(alignment.x_tilt_deg[m])):
            images[m] += np.sqrt(2 * np.pi) * sigma * np.exp(-((u - at) ** 2).sum(axis=-1) / (2 * sigma**2))
    return images.astype(np.float32)


def position_and_height(volume: np.ndarray, near: np.ndarray, voxel: float = 1.0) -> tuple[np.ndarray, float]:
    """Centre (x, y, z, px from the volume's centre) and height of the blob near a point: a Gaussian's log is a
    parabola, fitted by least squares over the core."""
    centre = (np.array(volume.shape[::-1]) - 1) / 2
    index = np.round(near / voxel + centre).astype(int)
    reach = 2
    cut = volume[tuple(slice(i - reach, i + reach + 1) for i in index[::-1])].astype(np.float64)
    z, y, x = np.meshgrid(*(np.arange(-reach, reach + 1),) * 3, indexing="ij")
    design = np.stack([np.ones(x.size), *(a.ravel() for a in (x, y, z, x * x, y * y, z * z, x * y, x * z, y * z))], 1)
    fit = np.linalg.lstsq(design * cut.ravel()[:, None], np.log(cut.ravel()) * cut.ravel(), rcond=None)[0]
    quadratic = np.array([[2 * fit[4], fit[7], fit[8]], [fit[7], 2 * fit[5], fit[9]], [fit[8], fit[9], 2 * fit[6]]])
    offset = np.linalg.solve(quadratic, -fit[1:4])
    height = np.exp(fit[0] + fit[1:4] @ offset / 2)
    return (index + offset - centre) * voxel, float(height)


def series(
    tilts: np.ndarray, size: tuple[int, int] = (64, 60), axis_deg: float = 3.0, x_tilt: np.ndarray | float = 0.0
) -> Alignment:
    """An alignment with shifts, a rotation for every image and local motion of about a pixel."""
    rng = np.random.default_rng(1)
    n = len(tilts)
    linear = np.stack([axis_rotation(axis_deg + jitter) for jitter in rng.uniform(-1, 1, n)])
    x, y = (np.linspace(-s / 2, s / 2, 5) for s in size)
    warp = LocalWarp(x, y, rng.uniform(-1, 1, (n, 5, 5, 2)))
    return Alignment(
        tilts, linear, rng.uniform(-3, 3, (n, 2)), size, 10.0, warp, np.broadcast_to(x_tilt, n).astype(float)
    )


@pytest.mark.parametrize("name", FILTERS)
def test_the_radial_cutoff_falls_off_as_that_of_imod(name: str) -> None:
    """By e at CUTOFF + FALLOFF, not by sqrt(e) as its manual's standard deviation would have it."""
    tilts = np.arange(-60.0, 61, 10)
    cut = RadialFilter(name, cutoff=0.25, falloff=0.125).weights(tilts, 64, 20.0)
    whole = RadialFilter(name).weights(tilts, 64, 20.0)
    np.testing.assert_allclose(cut[:, :17], whole[:, :17])
    expected = whole[:, 16:17] * np.exp(-((np.arange(17) / 8) ** 2))  # 16 / 64 = CUTOFF, 8 / 64 = FALLOFF
    np.testing.assert_allclose(cut[:, 16:], expected, rtol=1e-12)


@pytest.mark.parametrize("x_tilt", [(0, 0), (4, 4), (2, 5)], ids=["no x-tilt", "common", "every tilt its own"])
@pytest.mark.parametrize("axis_deg", [3.0, 86.3])
def test_points_land_within_two_hundredths_of_a_pixel(axis_deg: float, x_tilt: tuple[float, float]) -> None:
    tilts = np.arange(-60, 61, 3.0)
    alignment = series(tilts, axis_deg=axis_deg, x_tilt=np.linspace(*x_tilt, len(tilts)))
    volume = fbp_volume(blob_images(alignment), alignment, 30)
    assert volume.shape == ((30, 60, 64) if axis_deg < 45 else (30, 64, 60))
    for point in POINTS:
        found, _ = position_and_height(volume, point)
        np.testing.assert_allclose(found, point, atol=0.02)


@pytest.mark.parametrize("filter", ["ramp", "exact"])
def test_density_comes_back_when_all_angles_are_there(filter: str) -> None:
    alignment = series(np.arange(-90, 90, 3.0))
    volume = fbp_volume(blob_images(alignment), alignment, 30, filter)
    for point in POINTS:
        assert position_and_height(volume, point)[1] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("size", [(64, 60), (65, 61)])
def test_binned_points_land_and_keep_their_density(size: tuple[int, int]) -> None:
    alignment = series(np.arange(-90, 90, 2.0), size)
    points = 0.8 * POINTS[:2]
    volume = fbp_volume(blob_images(alignment, points, sigma=4.0), alignment, 30, "ramp", bin=2)
    assert volume.shape == (15, 30, 32)
    for point in points:
        found, height = position_and_height(volume, point, voxel=2.0)
        np.testing.assert_allclose(found, point, atol=0.02)
        assert height == pytest.approx(1.0, abs=0.04)


def test_uneven_angles_do_not_change_densities() -> None:
    rng = np.random.default_rng(5)
    tilts = np.sort(np.concatenate([rng.uniform(-90, 90, 60), np.linspace(20, 50, 60)]))
    alignment = Alignment.identity(tilts, (64, 60))
    volume = fbp_volume(blob_images(alignment), alignment, 30, "ramp")
    for point in POINTS:
        found, height = position_and_height(volume, point)
        np.testing.assert_allclose(found, point, atol=0.05)
        assert height == pytest.approx(1.0, abs=0.1)


def test_excluded_images_are_not_read() -> None:
    tilts = np.arange(-60, 61, 3.0)
    alignment = series(tilts)
    images = blob_images(alignment)
    kept = [m for m in range(len(tilts)) if m not in (3, 20)]
    excluding = Alignment(
        tilts, alignment.linear, alignment.shift_px, alignment.image_size, 10.0, alignment.warp,
        excluded={3: "dark", 20: "blank"},
    )  # fmt: skip
    assert alignment.warp is not None
    without = Alignment(
        tilts[kept], alignment.linear[kept], alignment.shift_px[kept], alignment.image_size, 10.0,
        LocalWarp(alignment.warp.x, alignment.warp.y, alignment.warp.vectors[kept]),
    )  # fmt: skip
    expected = fbp_volume(images[kept], without, 20)
    images[[3, 20]] = np.nan
    np.testing.assert_array_equal(fbp_volume(images, excluding, 20), expected)


@pytest.mark.parametrize("x_tilt", [0.0, 4.0])
def test_slabs_and_orientations_are_the_same_volume(x_tilt: float, monkeypatch: pytest.MonkeyPatch) -> None:
    alignment = series(np.arange(-60, 61, 6.0), x_tilt=x_tilt)
    images = blob_images(alignment)
    whole = fbp_volume(images, alignment, 21)
    monkeypatch.setattr(fbp, "ROWS_AT_A_TIME", 7)
    settings = FbpSettings(21, memory_bytes=100_000)  # so little that lines go to a scratch file
    xyz = np.stack(list(fbp_sections(lambda i: images[i], alignment, settings, "xyz")))
    imod = np.stack(list(fbp_sections(lambda i: images[i], alignment, settings, "imod")))
    assert imod.shape == (60, 21, 64)
    np.testing.assert_allclose(xyz, whole, atol=1e-5)
    np.testing.assert_allclose(imod.transpose(1, 0, 2)[::-1], whole, atol=1e-5)


def test_a_flat_slab_wider_than_the_view_stays_flat() -> None:
    tilts = np.arange(-60, 61, 3.0)
    alignment = Alignment.identity(tilts, (96, 16))
    rng = np.random.default_rng(0)
    images = 100 / np.cos(np.deg2rad(tilts))[:, None, None] + rng.normal(size=(len(tilts), 16, 96)) * 1e-3
    volume = fbp_volume(images.astype(np.float32), alignment, 20, "ramp")
    assert np.abs(volume[:, :, 5:-5]).max() < 0.01  # nothing of 100 / 20 px of density leaks in from the edges


def test_weights_share_the_half_circle() -> None:
    assert angular_weights(np.arange(-90, 90, 2.0)).sum() == pytest.approx(np.pi)
    np.testing.assert_allclose(angular_weights(np.array([10.0, -10.0, 0.0])), np.deg2rad(10))
    np.testing.assert_allclose(angular_weights(np.array([0.0, 10.0, 10.0, 20.0])), np.deg2rad([10, 5, 5, 10]))
    with pytest.raises(ValueError, match="two or more"):
        angular_weights(np.array([3.0, 3.0]))


def test_filters() -> None:
    tilts, length = np.arange(-60, 61, 2.0), 200
    f = np.fft.rfftfreq(length)
    np.testing.assert_allclose(ramp_of_line(length)[10:], f[10:], rtol=0.02)
    ramp = RadialFilter("ramp").weights(tilts, length, 40)
    np.testing.assert_allclose(ramp[30], np.deg2rad(2) * ramp_of_line(length))
    for name in FILTERS:
        weights = RadialFilter(name).weights(tilts, length, 40)
        assert weights.shape == (len(tilts), length // 2 + 1)
        assert (weights >= 0).all()
    exact = RadialFilter("exact").weights(tilts, length, 40)[30]
    np.testing.assert_allclose(exact[20:60], ramp[30, 20:60], rtol=0.05)
    assert exact[-1] <= 1 / 40 + 1e-12
    cut = RadialFilter("ramp", cutoff=0.25, falloff=0.05).weights(tilts, length, 40)[30]
    np.testing.assert_allclose(cut[f <= 0.25], ramp[30][f <= 0.25])
    np.testing.assert_allclose(cut[np.argmin(abs(f - 0.35))], ramp[30][np.argmin(abs(f - 0.25))] * np.exp(-4))
    sirt = RadialFilter("sirt-like", iterations=10_000).weights(tilts, length, 40)
    np.testing.assert_allclose(sirt, ramp, atol=1e-4 * ramp.max())
