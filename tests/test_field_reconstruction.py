"""A field fitted with the alignment known: what it finds, that slabs leave no seams, what is kept, and its picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.fields.tensor import TensorField
from inrtomo.geometry import centred_coordinates, specimen_to_aligned
from inrtomo.metrics.volume import cc
from inrtomo.reconstruct import field
from inrtomo.reconstruct.field import (
    FieldFit,
    FieldSettings,
    Priors,
    Recording,
    reconstruct_field,
)
from inrtomo.reconstruct.field_stage import FieldStage
from inrtomo.reconstruct.live import LiveView, central_slices
from tests.alignment_phantom import blob_series

TILTS = np.arange(-60.0, 61.0, 6.0)
THICK = 14


def points(centres, x_tilt_deg=0.0, size=(32, 28), noise=0.0, sigma=1.6, seed=0):
    """Images of Gaussian blobs at ``centres`` ``(n, 3)`` (x, y, z), their weights, and the alignment."""
    nx, ny = size
    shift = np.random.default_rng(seed).uniform(-1.5, 1.5, (len(TILTS), 2))
    alignment = replace(
        Alignment.identity(TILTS, size, 0.0, 10.0), shift_px=shift, x_tilt_deg=np.full(len(TILTS), x_tilt_deg)
    )
    x, y = centred_coordinates(nx), centred_coordinates(ny)
    images = np.zeros((len(TILTS), ny, nx), dtype=np.float32)
    for m, tilt in enumerate(TILTS):
        p = specimen_to_aligned(np.asarray(centres, float), tilt, x_tilt_deg) - shift[m]
        for px, py in p:
            images[m] += np.exp(-((x - px) ** 2 + (y[:, None] - py) ** 2) / (2 * sigma**2))
    noise_of = np.random.default_rng(seed + 1)
    images += (max(noise, 0.02) * noise_of.standard_normal(images.shape)).astype(np.float32)
    return images, np.ones_like(images), alignment


def blobs(centres, shape, sigma=1.6):
    """Their density per px of path ``[z, y, x]``."""
    z, y, x = np.meshgrid(*(centred_coordinates(n) for n in shape), indexing="ij")
    total = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * sigma**2)) for a, b, c in centres)
    return (total / np.sqrt(2 * np.pi * sigma**2)).astype(np.float32)


CENTRES = [(3.0, -4.0, 2.0), (-7.0, 5.0, -2.0), (0.5, 7.5, 0.0)]
QUICK = FieldSettings(steps=(40, 16), priors=Priors(0.1, 0.1))


@pytest.mark.parametrize("x_tilt_deg", [0.0, 8.0])
def test_points_are_found_where_they_are_with_their_density(x_tilt_deg):
    images, weight, alignment = points(CENTRES, x_tilt_deg)
    found = reconstruct_field(images, weight, alignment, THICK, replace(QUICK, held_out=0.0))
    truth = blobs(CENTRES, (THICK, 28, 32))
    assert found.volume.shape == truth.shape
    assert found.volume.min() >= 0
    assert cc(found.volume, truth) > 0.93
    z, y, x = np.meshgrid(*(centred_coordinates(n) for n in truth.shape), indexing="ij")
    peak = np.maximum(found.volume - 0.1 * found.volume.max(), 0)
    for a, b, c in CENTRES:
        near = peak * ((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 < 36)
        off = [(near * (axis - at)).sum() / near.sum() for axis, at in ((x, a), (y, b), (z, c))]
        assert np.abs(off).max() < 0.08, off
    slope = np.polyfit(truth.ravel(), found.volume.ravel(), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.2)


def centre_of_blob(volume, near, reach=5.0):
    """Centre (x, y, z) of the Gaussian, as wide along each axis as it likes, that fits a volume best near a point."""
    z, y, x = np.meshgrid(*(centred_coordinates(n) for n in volume.shape), indexing="ij")
    at = np.stack([x, y, z], axis=-1)
    inside = ((at - near) ** 2).sum(axis=-1) < reach**2

    def misfit(p):
        return p[0] * np.exp(-(((at[inside] - p[1:4]) / p[4:]) ** 2).sum(axis=-1) / 2) - volume[inside]

    return least_squares(misfit, [volume.max(), *near, 1.6, 1.6, 1.6]).x[1:4]


@pytest.mark.parametrize("field", ["hash", "tensor", "voxel"])
def test_a_point_lands_within_two_hundredths_of_a_pixel(field):
    """At one scale: coarse ones before it, and too few steps, leave up to 0.05 px along z in what no tilt sees.

    A coordinate network (mlp) takes minutes for as many steps, and is 0.036 px off along z after them.
    """
    point = np.array([0.3, 0.2, 0.4])
    images, weight, alignment = points([point], size=(32, 32))
    settings = FieldSettings(field, steps=(200,), priors=Priors(0.0, 0.0), held_out=0.0)
    volume = reconstruct_field(images, weight, alignment, 16, settings).volume
    np.testing.assert_allclose(centre_of_blob(volume, point), point, atol=0.02)


def gradient(fit, n_slabs):
    """Gradient of the field's parameters in one step, the lattice taken in so many slabs."""
    stage = FieldStage(fit, fit.settings.schedule[-1])
    rows = stage.lattice.shape[2]
    edges = np.linspace(0, rows, n_slabs + 1).round().astype(int)
    stage.slabs = [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    stage.n_batch = len(TILTS) if n_slabs == 1 else 5
    fit.field.zero_grad()
    losses = stage.accumulate(False)[1:]
    return fit.field.grad.copy(), losses


def test_slabs_give_the_gradient_of_the_whole_lattice():
    images, weight, alignment = points(CENTRES, 5.0)
    fit = FieldFit(images, weight, alignment, THICK, FieldSettings(steps=(4,)), 0, Recording())
    whole, loss = gradient(fit, 1)
    for n_slabs in (2, 5):
        parts, loss_of_parts = gradient(fit, n_slabs)
        np.testing.assert_allclose(parts, whole, atol=2e-4 * np.abs(whole).max())
        assert loss_of_parts == pytest.approx(loss, rel=1e-5)


def test_memory_is_divided_and_no_seams_are_left():
    images, alignment = blob_series((32, 64), TILTS, noise_sd=0.5, slab_px=THICK, n_blobs=120)
    weight = np.ones_like(images)
    settings = FieldSettings(steps=(20, 10))
    plenty = reconstruct_field(images, weight, alignment, THICK, settings).volume
    slabs = []

    def look(fit, fraction):
        slabs.append(fit.stage_now.slabs)

    little = replace(settings, memory_bytes=2.6e7)
    bounded = reconstruct_field(images, weight, alignment, THICK, little, look).volume
    assert len(slabs[-1]) > 2
    assert cc(bounded, plenty) > 0.99
    step = np.abs(np.diff(bounded, axis=1)).mean(axis=(0, 2))
    lattice_first = slabs[-1][0].start - 4  # rows of the lattice before the volume's
    seams = [r.stop + lattice_first - 1 for r in slabs[-1][:-1] if 0 < r.stop + lattice_first < len(step)]
    inside = np.delete(step, seams)
    assert abs(step[seams].mean() - inside.mean()) < 2 * inside.std() / np.sqrt(len(seams))
    with pytest.raises(InputError, match="--memory"):
        reconstruct_field(images, weight, alignment, THICK, replace(settings, memory_bytes=1e6))


def test_what_predicts_held_out_pixels_best_is_kept():
    images, weight, alignment = points(CENTRES, noise=1.5)
    clean = points(CENTRES)[0]
    settings = FieldSettings(steps=(10, 40), priors=Priors(0.0, 0.0))
    held = reconstruct_field(images, weight, alignment, THICK, settings)
    last = [row[3] for row in held.losses[0] if row[0] == 1]
    assert held.held_out_loss == min(last)
    assert len(last) < 40 or last[-1] >= held.held_out_loss
    checked = reconstruct_field(images, weight, alignment, THICK, settings, recording=Recording(check=clean))
    assert checked.fits[0].held_blocks.sum() == 0
    assert checked.held_out_loss == min(row[3] for row in checked.losses[0] if row[0] == 1)


def test_average_says_how_far_initialisations_differ():
    images, weight, alignment = points(CENTRES, noise=0.3)
    found = reconstruct_field(images, weight, alignment, THICK, FieldSettings(steps=(8,), average=2))
    one, two = (np.concatenate([s for _, s in fit.slabs(7)], axis=1) for fit in found.fits)
    np.testing.assert_allclose(found.volume, (one + two) / 2, atol=1e-5)
    np.testing.assert_allclose(found.uncertainty, np.abs(one - two) / 2, atol=1e-5)
    assert found.uncertainty.max() > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"field": "voxel"},
        {"field": "mlp", "steps": (5,)},
        {"field": "siren", "steps": (5,)},
        {"field": "tensor", "priors": Priors(boundary=1.0)},
        {"priors": Priors(wedge=0.4, isotropic=0.4)},
        {"loss": "huber"},
    ],
    ids=lambda s: "-".join(map(str, s.values()))[:24],
)
def test_every_field_and_prior_lowers_the_loss(settings):
    images, weight, alignment = points(CENTRES[:1], size=(16, 16))
    found = reconstruct_field(images, weight, alignment, 4, FieldSettings(**({"steps": (12, 4)} | settings)))
    losses = np.array(found.losses[0])
    assert np.isfinite(losses).all() and np.isfinite(found.volume).all()
    assert losses[losses[:, 0] == losses[0, 0], 2].min() < losses[0, 2]


@pytest.mark.parametrize("loss", ["poisson", "heteroscedastic"])
def test_counts_are_fitted_by_their_own_law(loss):
    images, weight, alignment = points(CENTRES, size=(24, 20))
    counts = np.random.default_rng(3).poisson(200 * np.exp(-0.5 * images)).astype(np.float32)
    background, gain = np.full(len(TILTS), 200.0), np.full(len(TILTS), -100.0)
    recording = Recording(background=background, gain=gain)
    data = ((counts - 200) / -100).astype(np.float32)
    settings = FieldSettings(steps=(30, 12), loss=loss)
    found = reconstruct_field(data, weight, alignment, THICK, settings, recording=recording)
    assert cc(found.volume, blobs(CENTRES, (THICK, 20, 24))) > 0.6


def test_live_picture_shows_the_slices_of_the_volume(tmp_path):
    images, weight, alignment = points(CENTRES)
    seen = {}
    view = LiveView(tmp_path / "live.png", 10.0, "test")

    def on_step(fit, fraction):
        view(fit)
        seen["slices"] = central_slices(fit)

    volume = reconstruct_field(images, weight, alignment, THICK, QUICK, on_step).volume
    top, front, side = seen["slices"]
    assert top.shape == volume.shape[1:] and front.shape == volume[:, 0].shape and side.shape == volume[:, :, 0].shape
    assert cc(top[None], volume[6:8].mean(0)[None]) > 0.7
    assert cc(front[None], volume[:, 13:15].mean(1)[None]) > 0.7
    assert (tmp_path / "live.png").stat().st_size > 1000


@pytest.mark.parametrize("seed", range(4))
def test_losses_known_a_step_late_lead_to_the_same_parameters(seed: int) -> None:
    """A device tells the loss of a step after it was given the next one, which then counts for nothing."""

    def searched(late: int) -> tuple[list[Any], float]:
        random = [np.random.default_rng([seed, rate]).uniform(size=60) - rate for rate in range(len(field.RATES))]
        told: list[tuple[int, int, float, float]] = []
        asked: list[tuple[int, int, float, float]] = []
        search, step, best = field.Search(None, np.inf), 0, []
        while search.rate < len(field.RATES):
            search.waiting.append((search.rate, step))
            asked.append((1, step, 0.0, float(random[search.rate][step])))
            told.extend(asked[len(told) : len(asked) - late])
            search.judge(told)
            step += 1
            if search.is_over:
                told.extend(asked[len(told) :])
                best.append(search.best)
                search.slow_down(told)
                step = 0
        return best, search.lowest

    assert searched(1) == searched(0)
    assert [rate for rate, _ in searched(0)[0]] == [0, 1, 2]


def test_memory_bounds_the_nodes_of_a_tensor_field() -> None:
    """Noise splits everything: with little memory only so many nodes, and the fit still comes to its end."""
    tilts, size = np.arange(-60.0, 61, 8), 96
    images = np.random.default_rng(0).normal(scale=3, size=(len(tilts), size, size)).astype(np.float32)
    alignment = Alignment.identity(tilts, (size, size), 0.0, 10.0)

    def nodes(memory_bytes: float) -> int:
        settings = FieldSettings("tensor", memory_bytes=memory_bytes, steps=(4, 4))
        (fit,) = reconstruct_field(images, np.ones_like(images), alignment, 24.0, settings).fits
        assert isinstance(fit.field, TensorField)
        return len(fit.field.grid.tree.leaves)

    with pytest.raises(InputError, match=r"--memory 0.00466G: too little for this field, which needs 0.1G"):
        nodes(5e6)
    few, all_of_them = nodes(2.6e7), nodes(4e9)
    assert 4 <= few < 0.7 * all_of_them
