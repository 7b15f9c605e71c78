"""Tracks and bundle adjustment: accuracy on a known series, derivatives of the likelihood, bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
from alignment_phantom import blob_series, rigid_error  # type: ignore[import-not-found]

from inrtomo.align import tracks as tr
from inrtomo.align import windows
from inrtomo.align.fast import fast_alignment_of
from inrtomo.align.prepare import PrepareSettings

PLAIN = PrepareSettings(restore=False)


def test_bundle_improves_on_correlation_and_refines_the_axis() -> None:
    images, truth = blob_series(axis_deg=86.5, shift_px=8, noise_sd=0.5)
    found, report = fast_alignment_of(images, truth.tilt_deg, 85.0, prepare_settings=PLAIN)
    assert rigid_error(found, truth) < 0.45 < rigid_error(report.coarse, truth)
    assert report.tracks.axis_deg == pytest.approx(86.5, abs=0.25)
    assert np.isfinite(report.tracks.residual_per_tilt).all()
    assert report.tracks.residual_rms < 1.0


def test_local_motion_is_followed() -> None:
    images, truth = blob_series(size=(192, 160), shift_px=4, noise_sd=0.2, warp_px=2.0, n_blobs=1200)
    rigid, local = (
        fast_alignment_of(
            images, truth.tilt_deg, 0.0, prepare_settings=PLAIN, track_settings=tr.TrackSettings(nodes=nodes)
        )[0]
        for nodes in (0, 5)
    )
    assert rigid_error(local, truth) < 0.75 * rigid_error(rigid, truth)


def test_unknown_axis_is_found_and_flagged() -> None:
    images, truth = blob_series(axis_deg=20.0, shift_px=4, noise_sd=0.3)
    found, report = fast_alignment_of(images, truth.tilt_deg, None, prepare_settings=PLAIN)
    assert report.axis_ambiguous
    assert abs((report.tracks.axis_deg - 20.0 + 90) % 180 - 90) < 1.0
    assert any("mirrored" in note for note in report.notes)


def test_excluded_tilts_have_no_residual() -> None:
    images, truth = blob_series(shift_px=3)
    images[4] = 0
    _, report = fast_alignment_of(images, truth.tilt_deg, 0.0, prepare_settings=PLAIN)
    assert list(report.prepared.excluded) == [4]
    assert np.isnan(report.tracks.residual_px[:, 4]).all() and not report.tracks.used[:, 4].any()


def test_gradient_is_the_slope_of_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    tilts = np.array([-40.0, -10.0, 5.0, 30.0])
    window = windows.Window(16, 2.0)
    band = windows.Band.of(window, 40.0, 8.0)
    views = rng.standard_normal((2, 4, len(band.kx))) + 1j * rng.standard_normal((2, 4, len(band.kx)))
    valid = np.array([[True, True, True, True], [True, True, False, True]])
    kappa = windows.overlap(band, tilts, window, 30.0)
    radius = band.radius_in(tilts)
    spectra = windows.Spectra(1 / (0.1 + radius), np.where(radius < 0.2, 0.5, np.inf))

    def value(moves: np.ndarray) -> np.ndarray:
        kx = 2 * np.pi * band.kx[None] / np.cos(np.deg2rad(tilts))[:, None]
        phase = np.exp(1j * (kx * moves[:, :1] + 2 * np.pi * band.ky[None] * moves[:, 1:]))
        return windows.likelihood(views * phase[None], valid, band, tilts, kappa, spectra, window).value

    found = windows.likelihood(views, valid, band, tilts, kappa, spectra, window)
    for tilt, axis in ((0, 0), (1, 1), (3, 0)):
        move = np.zeros((4, 2))
        move[tilt, axis] = 1e-4
        slope = (value(move) - value(-move)) / 2e-4
        np.testing.assert_allclose(found.gradient[:, tilt, axis], slope, rtol=1e-5, atol=1e-6)
    assert not found.gradient[1, 2].any()
    # information is a covariance's inverse: symmetric and not negative
    for matrix in found.information.reshape(-1, 4, 4):
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
        assert np.linalg.eigvalsh(matrix).min() > -1e-8


def test_overlap_is_a_covariance() -> None:
    tilts = np.arange(-60.0, 61.0, 10.0)
    window = windows.Window(16, 2.0)
    kappa = windows.overlap(windows.Band.of(window, 40.0, 8.0), tilts, window, 50.0)
    np.testing.assert_allclose(np.einsum("fii->fi", kappa), 1.0)
    assert np.linalg.eigvalsh(kappa).min() > -1e-8
