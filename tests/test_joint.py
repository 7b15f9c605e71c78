"""The joint fit on a tiny series: errors put into the alignment leave, whatever the models; states go on exactly."""

from dataclasses import replace

import numpy as np
import pytest
from alignment_phantom import blob_series  # type: ignore[import-not-found]

from inrtomo.align.joint import JointFit, JointSettings, Scale, noise_sd, scaled_data, standardised
from inrtomo.alignment import Alignment
from inrtomo.metrics.alignment import compare_alignments
from inrtomo.projection import Lattice, project, read_at

SIZE, THICK = 48, 20
TILTS = np.arange(-60.0, 61, 6)
SCHEDULE = (Scale(bin=2, steps=60, motion_from=20, warp_from=None), Scale(bin=1, steps=40, motion_from=5, warp_from=10))
SHORT = (Scale(bin=2, steps=12, motion_from=4, warp_from=6),)


@pytest.fixture(scope="module")
def series():
    """Blobs projected by the lattice projector, shifted, with noise; and an alignment off by about a px."""
    rng = np.random.default_rng(0)
    lattice = Lattice.covering(70, 40, THICK / 2, 1.0)
    z, x, y = np.meshgrid(
        *(o + np.arange(n) for o, n in zip(lattice.origin, lattice.shape, strict=True)), indexing="ij"
    )
    density = np.zeros(lattice.shape, np.float32)
    for _ in range(60):
        cx, cy, cz = rng.uniform(-60, 60), rng.uniform(-36, 36), rng.uniform(-7, 7)
        density += np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * 2.0**2)).astype(np.float32)
    truth = Alignment.identity(TILTS, (SIZE, SIZE), 0.0, 10.0)
    truth = replace(truth, shift_px=rng.uniform(-3, 3, size=(len(TILTS), 2)))
    ideal = project(density, lattice, TILTS, 81)
    at = np.arange(SIZE) - (SIZE - 1) / 2
    u = (at[None, None, :] + truth.shift_px[:, :1, None] + 40).repeat(SIZE, axis=1).astype(np.float32)
    v = (at[None, :, None] + truth.shift_px[:, 1:, None] - lattice.origin[2]).repeat(SIZE, axis=2).astype(np.float32)
    images, _, _ = read_at(ideal, u, v)
    images = (images + 0.3 * images.std() * rng.normal(size=images.shape)).astype(np.float32)
    start = replace(truth, shift_px=truth.shift_px + rng.normal(size=truth.shift_px.shape))
    return images, truth, start


def fit(series, **settings):
    images, _, start = series
    return JointFit(images, np.ones_like(images), start, THICK + 4, JointSettings(levels=4, **settings))


@pytest.mark.parametrize("field", ["hash", "voxel"])
def test_errors_leave(series, field):
    _, truth, start = series
    before = compare_alignments(start, truth, THICK).rms_px
    result = fit(series, schedule=SCHEDULE, field=field, warp="none").run()
    after = compare_alignments(result.alignment, truth, THICK).rms_px
    assert before > 0.8
    assert after < 0.25, f"{before:.2f} -> {after:.2f} px"


@pytest.mark.parametrize(
    "settings",
    [
        {"field": "mlp", "schedule": (replace(SHORT[0], steps=5),)},
        {"warp": "network"},
        {"warp": "bilinear"},
        {"loss": "l1"},
        {"loss": "huber"},
        {"penalty": (0.1, 0.1, 0.1)},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_every_model_lowers_the_loss(series, settings):
    losses = np.array(fit(series, **({"schedule": SHORT} | settings)).run().losses)
    assert np.isfinite(losses).all()
    assert losses[-1, 2] < losses[0, 2]


def test_batches_change_nothing(series):
    one = fit(series, schedule=SHORT).run()
    many = fit(series, schedule=SHORT, memory_bytes=1.0).run()
    np.testing.assert_allclose(many.alignment.shift_px, one.alignment.shift_px, atol=5e-3)
    np.testing.assert_allclose([row[2] for row in many.losses], [row[2] for row in one.losses], rtol=1e-3)


def test_goes_on_from_a_saved_state(series):
    whole = fit(series, schedule=SHORT)
    saved = {}

    def keep(state):
        if state.done_steps == 7:
            saved.update({k: np.array(v) for k, v in state.state_dict().items()})

    expected = whole.run(keep)
    again = fit(series, schedule=SHORT)
    again.load_state_dict(saved)
    result = again.run()
    np.testing.assert_allclose(result.alignment.shift_px, expected.alignment.shift_px, atol=1e-3)
    assert len(result.losses) == len(expected.losses)


def test_held_out_pixels_are_never_fitted(series):
    """Spoilt after the images' statistics are taken, they change the held-out loss and nothing else."""
    results = []
    for spoil in (0.0, 3.0):
        joint = fit(series, schedule=SHORT, held_out=0.1)
        stage = joint.stage(SHORT[0])
        stage.data.images[stage.data.held > 0] += spoil
        for step in range(SHORT[0].steps):
            stage.step(step)
        results.append((joint.field.parameters().copy(), joint.motion.alignment.shift_px, joint.losses))
    (clean, clean_shift, clean_losses), (spoilt, spoilt_shift, spoilt_losses) = results
    np.testing.assert_array_equal(spoilt, clean)
    np.testing.assert_array_equal(spoilt_shift, clean_shift)
    assert spoilt_losses[-1][2] == clean_losses[-1][2]
    assert spoilt_losses[-1][3] > clean_losses[-1][3] + 1


def test_every_tilt_has_its_own_noise():
    """Dim tilts are noisier: each is measured in its own noise, which is what a residual weighs."""
    true = np.array([0.5, 1.0, 2.0, 8.0])
    rng = np.random.default_rng(0)
    images = (true[:, None, None] * rng.normal(size=(4, 96, 96)) + 7).astype(np.float32)
    np.testing.assert_allclose(noise_sd(images), true, rtol=0.05)
    for factor in (1, 2):
        binned, noise = standardised(images.copy(), factor)
        np.testing.assert_allclose(noise, true / factor, rtol=0.1)
        np.testing.assert_allclose(binned.std(axis=(1, 2)), 1, rtol=0.1)
        np.testing.assert_allclose(np.median(binned, axis=(1, 2)), 0, atol=0.01)
    data = scaled_data(images, np.ones_like(images), 1, np.zeros((4, 6, 6), bool))
    np.testing.assert_allclose(data.noise_of_tilt, true, rtol=0.05)
    assert data.noise == pytest.approx(1.5, rel=0.05)


def test_amplitude_of_every_tilt_is_found():
    """Projections scaled by 0.6 to 1.6 under noise of one size; only ratios mean anything."""
    signal, truth = blob_series(
        size=(SIZE, SIZE), tilts=TILTS, shift_px=0.0, noise_sd=0.0, slab_px=16.0, n_blobs=120, seed=3
    )
    rng = np.random.default_rng(4)
    gain = rng.uniform(0.6, 1.6, len(TILTS))
    images = (gain[:, None, None] * signal + 0.2 * rng.normal(size=signal.shape)).astype(np.float32)
    schedule = (Scale(bin=2, steps=40, motion_from=5, warp_from=None),)
    settings = JointSettings(levels=4, schedule=schedule, warp="none", field="voxel")
    found = JointFit(images, np.ones_like(images), truth, THICK, settings).run().gain
    slope, _ = np.polyfit(np.log(gain), np.log(found), 1)  # of a fit this short, some of the way is left to go
    assert 0.3 < slope < 1.1
    assert np.std(np.log(found) - slope * np.log(gain)) < 0.1
