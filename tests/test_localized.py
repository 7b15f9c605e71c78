"""The localized MLP's features: patches against maps, back-projection, geometry, noise, scaling, blocks, slabs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.localized.bank import COVERAGE, FINE, PYRAMID, SCALES, Scale, n_features
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.by_torch import fetched
from inrtomo.localized.inference import inferred_slabs, outside_range, slab_rows
from inrtomo.localized.network import Architecture, LocalizedMlp
from inrtomo.localized.patches import patch_features
from inrtomo.localized.sampling import sampled
from inrtomo.localized.scaling import block_features, measured_scaling, rows_seen
from inrtomo.localized.symmetry import mirror_signs
from inrtomo.localized.tilts import FilteredTilts, filtered_tilts
from inrtomo.localized.weights import load_weights, shipped_weights
from inrtomo.reconstruct.fbp import fbp_volume
from inrtomo.reconstruct.slabs import joined

TILT_DEG = np.array([-58.0, -40.0, -25.0, -11.0, 0.0, 7.0, 20.0, 38.0, 52.0])


@contextmanager
def noise_series(
    size: tuple[int, int] = (48, 44), x_tilt_deg: float = 0.0, smooth: float = 0.0, height: int = 16
) -> Iterator[FilteredTilts]:
    """Noise images, raw size (nx, ny), of a series with uneven angles."""
    nx, ny = size
    images = np.random.default_rng(1).standard_normal((len(TILT_DEG), ny, nx)).astype(np.float32)
    images = gaussian_filter(images, (0, smooth, smooth)) if smooth else images
    alignment = replace(Alignment.identity(TILT_DEG, size), x_tilt_deg=np.full(len(TILT_DEG), x_tilt_deg))
    with filtered_tilts(images, alignment, height) as tilts:
        yield tilts


def features(tilts: FilteredTilts, scale: Scale, points: np.ndarray) -> np.ndarray:
    points = points.astype(np.float32)
    return fetched(sampled(tilts, tilts.maps([scale], rows_seen(tilts, points))[0], points))


def some_points(count: int = 6, reach: float = 5.0) -> np.ndarray:
    return np.random.default_rng(2).uniform(-reach, reach, (count, 3))


@pytest.mark.parametrize("x_tilt_deg", [0.0, 4.0])
@pytest.mark.parametrize("order", [0, 2])
def test_maps_read_by_interpolation_are_patches_cut_voxel_by_voxel(order: int, x_tilt_deg: float) -> None:
    """Closer and closer as maps get finer: what is left is linear interpolation."""
    errors = []
    with noise_series(x_tilt_deg=x_tilt_deg) as tilts:
        points = some_points(4)
        for step in (1.0, 0.5, 0.25):
            scale = Scale(2.0, order, step)
            exact = np.stack([patch_features(tilts, scale, point) for point in points])
            error = np.abs(features(tilts, scale, points) - exact).max(axis=0)
            errors.append(float((error / np.sqrt((exact**2).mean(axis=0))).max()))
    assert errors[2] < 0.03 and errors[2] < 0.5 * errors[1] < 0.5 * errors[0], errors


@pytest.mark.parametrize("scale", (FINE, *PYRAMID), ids=lambda scale: f"sigma {scale.sigma:g}")
def test_maps_as_the_network_sees_them_are_patches_cut_voxel_by_voxel(scale: Scale) -> None:
    """White noise is the worst case for linear interpolation between a map's samples."""
    with noise_series() as tilts:
        points = some_points(20)
        exact = np.stack([patch_features(tilts, scale, point) for point in points])
        error = features(tilts, scale, points) - exact
    assert np.sqrt((error**2).mean()) < 0.12 * np.sqrt((exact**2).mean())


def test_kernels_are_gaussian_derivatives() -> None:
    x = np.linspace(-9, 9, 37)
    scale = Scale(2.0, 2, 1.0)
    gauss = np.exp(-(x**2) / 8) / np.sqrt(8 * np.pi)
    for order, expected in enumerate((gauss, -x / 2 * gauss, (x**2 / 4 - 1) * gauss)):
        np.testing.assert_allclose(scale.kernel(x, order, interpolated=False), expected, atol=1e-6)


def test_the_finest_feature_is_the_back_projection() -> None:
    images = gaussian_filter(np.random.default_rng(3).standard_normal((9, 40, 40)), (0, 1.5, 1.5)).astype(np.float32)
    alignment = Alignment.identity(TILT_DEG, (40, 40))
    volume = fbp_volume(images, alignment, 12, "ramp")
    with filtered_tilts(images, alignment, 12) as tilts:
        z, y, x = np.meshgrid(np.arange(3, 9), np.arange(10, 30), np.arange(10, 30), indexing="ij")
        points = np.stack([x.ravel() - 19.5, y.ravel() - 19.5, z.ravel() - 5.5], axis=1)
        found = features(tilts, FINE, points)[:, 0]
    expected = volume[z, y, x].ravel()
    assert np.corrcoef(found, expected)[0, 1] > 0.995
    assert found.std() == pytest.approx(expected.std(), rel=0.15)  # the finest is smoothed by half a px


def test_order_and_repetition_of_tilts_do_not_matter() -> None:
    images = np.random.default_rng(4).standard_normal((9, 32, 32)).astype(np.float32)
    points = some_points()
    found = []
    for picked in (np.arange(9), np.random.default_rng(5).permutation(9), np.append(np.arange(9), [2, 2, 7])):
        with filtered_tilts(images[picked], Alignment.identity(TILT_DEG[picked], (32, 32)), 10) as tilts:
            found.append(np.concatenate([features(tilts, s, points) for s in (PYRAMID[1], COVERAGE)], axis=1))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4 * np.abs(found[0]).max())
    np.testing.assert_allclose(found[2], found[0], atol=1e-4 * np.abs(found[0]).max())


def test_a_point_seen_through_shifts_rotation_local_warp_and_x_tilt_is_where_it_is() -> None:
    random = np.random.default_rng(6)
    n, size = len(TILT_DEG), (64, 60)
    x, y = np.linspace(-32, 32, 5), np.linspace(-30, 30, 5)
    alignment = Alignment.identity(TILT_DEG, size, axis_deg=3.0)
    alignment = replace(
        alignment,
        shift_px=random.uniform(-4, 4, (n, 2)),
        x_tilt_deg=np.full(n, 5.0),
        warp=LocalWarp(x, y, random.normal(scale=1.0, size=(n, 5, 5, 2)), "bicubic"),
    )
    point = np.array([4.3, -6.2, 3.4])
    rows, columns = np.arange(60) - 29.5, np.arange(64) - 31.5
    images = np.empty((n, 60, 64), dtype=np.float32)
    for m in range(n):
        px, py = alignment.specimen_to_raw(m, point)
        images[m] = np.exp(-((columns - px) ** 2 + (rows[:, None] - py) ** 2) / (2 * 1.5**2))
    with filtered_tilts(images, alignment, 24) as tilts:
        offsets = np.stack(np.meshgrid(*3 * [np.arange(-2, 2.1, 0.5)], indexing="ij"), axis=-1).reshape(-1, 3)
        values = features(tilts, PYRAMID[0], point + offsets)[:, 0]
    best = np.average(offsets, axis=0, weights=np.maximum(values - 0.7 * values.max(), 0))
    assert np.abs(best[:2]).max() < 0.1 and abs(best[2]) < 0.3, best


def test_torch_does_what_numba_does() -> None:
    """``cpu:0`` is torch's name of the CPU; ``cpu`` is compiled code."""
    points, blocks = some_points(50, 30.0).astype(np.float32), Blocks.of("haar")  # some of them outside the maps
    with noise_series(x_tilt_deg=2.0) as tilts:
        a, b = (block_features(tilts, points, blocks, device) for device in ("cpu", "cpu:0"))
    size = np.abs(a).max(axis=0)
    np.testing.assert_allclose(b / size, a / size, atol=2e-4)


def test_a_slab_is_inferred_by_torch_as_by_numba() -> None:
    """Features stay where the maps are until the network has made densities of them."""
    model, _ = load_weights(shipped_weights())
    shape = (16, 44, 48)
    with noise_series(smooth=1.5) as tilts:
        scaling = measured_scaling(tilts, shape, 10.0)
        exact = joined(inferred_slabs(tilts, shape, scaling, model, 2**28), shape)
        found = joined(inferred_slabs(tilts, shape, scaling, model, 2**28, "cpu:0"), shape)
    np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_a_specimen_changes_signs_alone(axis: int) -> None:
    """Axes x, y, z; an unsymmetric tilt range."""
    images = np.random.default_rng(11).standard_normal((9, 30, 34)).astype(np.float32)
    seen = {0: images[:, :, ::-1], 1: images[:, ::-1], 2: images}[axis]
    tilt_deg = TILT_DEG if axis == 1 else -TILT_DEG
    points, blocks = some_points().astype(np.float32), Blocks.of("haar")
    mirrored = np.where(np.arange(3) == axis, -points, points).astype(np.float32)
    with filtered_tilts(images, Alignment.identity(TILT_DEG, (34, 30)), 10) as tilts:
        found = block_features(tilts, points, blocks)
    with filtered_tilts(np.ascontiguousarray(seen), Alignment.identity(tilt_deg, (34, 30)), 10) as tilts:
        again = block_features(tilts, mirrored, blocks)
    of_features, of_target = mirror_signs(blocks)
    which = 1 << (2 - axis)
    likeness = (again * found * of_features[which]).sum(axis=0) / (found**2).sum(axis=0)
    # not 1 for all, since the samples of mirrored maps lie elsewhere
    assert likeness.min() > 0.5 and np.median(np.abs(likeness - 1)) < 0.02, likeness
    volume = np.random.default_rng(12).standard_normal((2, 2, 2)).astype(np.float32)
    corner = np.zeros((1, 3), dtype=np.int64)
    turned = np.ascontiguousarray(np.flip(volume, axis=2 - axis))
    np.testing.assert_allclose(blocks.cut(turned, corner), blocks.cut(volume, corner) * of_target[which], atol=1e-6)


def test_noise_of_a_feature_is_known_beforehand() -> None:
    with noise_series((96, 96)) as tilts:
        points = np.random.default_rng(7).uniform(-1, 1, (3000, 3)) * [30, 40, 6]
        for scale in PYRAMID[:3]:
            first = features(tilts, Scale(scale.sigma, 0, scale.step), points)[:, 0]
            assert first.std() == pytest.approx(tilts.noise_of(scale), rel=0.15)


def test_features_and_density_are_free_of_the_images_units() -> None:
    images = np.random.default_rng(8).standard_normal((9, 40, 40)).astype(np.float32)
    alignment, shape = Alignment.identity(TILT_DEG, (40, 40)), (12, 40, 40)
    points, blocks = some_points().astype(np.float32), Blocks.of("haar")
    seen = []
    for factor in (1.0, 250.0):
        with filtered_tilts(images * np.float32(factor), alignment, 12) as tilts:
            scaling = measured_scaling(tilts, shape, 10.0)
            seen.append((scaling, scaling.scaled(block_features(tilts, points, blocks), 8)))
    assert seen[0][1].shape == (6, n_features(8))
    np.testing.assert_allclose(seen[1][1], seen[0][1], atol=1e-3)
    np.testing.assert_allclose(seen[1][0].condition, seen[0][0].condition, atol=1e-3)
    assert seen[1][0].unit == pytest.approx(250 * seen[0][0].unit, rel=1e-3)


@pytest.mark.parametrize("output", ["haar", "pixel"])
def test_blocks_are_cut_and_joined(output: str) -> None:
    blocks = Blocks.of(output)
    volume = np.random.default_rng(9).standard_normal((4, 6, 8)).astype(np.float32)
    np.testing.assert_allclose(blocks.transform @ blocks.transform.T, np.eye(blocks.size), atol=1e-6)
    counts = 4 // blocks.edge, 6 // blocks.edge, 8 // blocks.edge
    corners = np.stack(np.meshgrid(*(np.arange(c) * blocks.edge for c in counts), indexing="ij"), axis=-1)
    coefficients = blocks.cut(volume, corners.reshape(-1, 3))
    np.testing.assert_allclose(blocks.joined(coefficients, counts), volume, atol=1e-5)
    np.testing.assert_allclose(blocks.offsets.mean(axis=0), 0)
    assert tuple(blocks.offsets[-1] - blocks.offsets[0]) == 3 * (blocks.edge - 1,)


def random_model(output: str) -> LocalizedMlp:
    torch.manual_seed(0)
    model = LocalizedMlp(Architecture(output, width=16, depth=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(("output", "x_tilt_deg"), [("haar", 0.0), ("haar", 3.0), ("pixel", 0.0)])
def test_no_seams_whatever_the_memory(output: str, x_tilt_deg: float) -> None:
    """Odd sizes, so that the last block reaches beyond the volume."""
    shape, model = (7, 15, 17), random_model(output)
    with noise_series((17, 15), x_tilt_deg, height=7) as tilts:
        scaling = measured_scaling(tilts, shape, 10.0)
        volumes, slabs = [], []
        for memory in (2**30, 2**10):
            parts = list(inferred_slabs(tilts, shape, scaling, model, memory))
            slabs.append(len(parts))
            volumes.append(joined(parts, shape))
    assert slabs == [1, -(-15 // model.architecture.blocks.edge)]
    np.testing.assert_allclose(volumes[1], volumes[0], atol=1e-4 * np.abs(volumes[0]).max())


def test_memory_bounds_the_maps_of_a_slab() -> None:
    with noise_series((64, 200)) as tilts:
        rows = slab_rows(tilts, 16, Blocks.of("haar"), 2**25) * 2
        maps = tilts.maps(SCALES, (-rows / 2, rows / 2))
        assert 1 < rows < 200
        assert sum(m.values.nbytes for m in maps) < 2**25


def test_what_lies_outside_training_is_told_in_a_users_words() -> None:
    with noise_series() as tilts:
        scaling = measured_scaling(tilts, (16, 44, 48), 3.0)
    known = {"pixel size": [-0.7, 0.7], "tilt range": [0.7, 1.1], "thickness": [18.0, 80.0]}
    said = outside_range(scaling, 200.0, known)
    assert len(said) == 2 and "3 Å/voxel (trained on 4.97 Å/voxel to 20.1" in said[0] and "200 voxels thick" in said[1]
    assert outside_range(scaling, 40.0, {"thickness": [18.0, 80.0]}) == []
