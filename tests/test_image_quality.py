"""PSNR, SSIM, VIF, CNR and ENL against their definitions, worked out by hand."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inrtomo.metrics.image_quality import cnr, enl, psnr, ssim, vif

SHAPE = (12, 64, 56)


def truth() -> np.ndarray:
    values = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    return (values - values.min()) / np.ptp(values)


def noise(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE)


def test_psnr_is_20_db_a_tenth() -> None:
    image = truth()
    assert psnr(image + 0.1, image) == pytest.approx(20)
    assert psnr(image + 0.01 * noise(), image) == pytest.approx(40, abs=0.05)
    assert psnr(10 * image + 1, 10 * image) == pytest.approx(20)
    assert psnr(image + 0.1, image, data_range=10.0) == pytest.approx(40)
    assert psnr(image, image) == np.inf


def test_ssim_of_shifted_and_scaled_grey_levels() -> None:
    """With constant images only the term of the means is left; with equal means that of the variances."""
    flat, other = np.full(SHAPE, 0.5), np.full(SHAPE, 0.7)
    c1, c2 = 0.01**2, 0.03**2
    assert ssim(other, flat, 1.0) == pytest.approx((2 * 0.35 + c1) / (0.25 + 0.49 + c1))
    chequers = np.indices(SHAPE).sum(axis=0) % 2 * 2.0 - 1
    # a window of the chequers has mean 0 and variance 1 to a thousandth
    assert ssim(0.5 * chequers, chequers, 1.0) == pytest.approx((1 + c2) / (1.25 + c2), abs=2e-3)
    assert ssim(-chequers, chequers, 1.0) == pytest.approx((-2 + c2) / (2 + c2), abs=2e-3)
    assert ssim(truth(), truth()) == pytest.approx(1)
    assert ssim(truth() + 0.05 * noise(), truth()) > ssim(truth() + 0.2 * noise(), truth()) > 0


def test_vif_limits() -> None:
    image = truth()
    assert vif(image, image) == pytest.approx(1)
    assert vif(noise() * image.std(), image) < 0.05
    assert vif(np.full(SHAPE, 0.5), image) == pytest.approx(0, abs=1e-6)
    noisy = [vif(image + sigma * noise(), image) for sigma in (0.01, 0.03, 0.1, 0.3)]
    assert (np.diff(noisy) < 0).all() and noisy[-1] > 0
    assert vif(1.5 * image, image) > 1  # more contrast tells more
    assert vif(gaussian_filter(image, 2), image) < 0.5
    # the same of one image as of it in a stack, and whatever the units
    assert vif(image[3] + 0.1 * noise()[3], image[3]) == pytest.approx(
        vif(100 * image[[3]] + 10 * noise()[[3]] + 7, 100 * image[[3]] + 7), rel=1e-4
    )


def test_vif_of_white_images_is_its_closed_form() -> None:
    """Gain g and noise v on a white truth of variance s: log(1 + g^2 s / (v + n)) / log(1 + s / n) at every scale
    once the low-pass filters before a scale, the same for s and v, are known; here n is next to nothing of either."""
    rng = np.random.default_rng(0)
    white, other = rng.normal(size=(2, 6, 160, 160))
    span, gain, sigma = 1.0, 0.8, 0.5
    found = vif(gain * white + sigma * other, white, span)
    n, energy = 2.0 / 255**2, 1.0
    top = bottom = 0.0
    size = 160
    for scale in range(4):
        width = 2 ** (4 - scale) + 1
        line = np.exp(-((np.arange(width) - (width - 1) / 2) ** 2) / (2 * (width / 5) ** 2))
        left = float(((line / line.sum()) ** 2).sum()) ** 2  # of white noise's variance, after this window
        if scale:
            energy, size = energy * left, (size - width + 2) // 2
        count = (size - width + 1) ** 2
        inside = energy * (1 - left)
        top += count * np.log(1 + gain**2 * inside / (sigma**2 * inside + n))
        bottom += count * np.log(1 + inside / n)
    assert found == pytest.approx(top / bottom, rel=0.08)


def test_cnr_and_enl() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(10, 2, (200, 200))
    feature = np.zeros(image.shape, bool)
    feature[:100] = True
    image[feature] += 5
    assert cnr(image, feature, ~feature) == pytest.approx(5 / np.sqrt(8), rel=0.03)
    assert cnr(image, ~feature, feature) == cnr(image, feature, ~feature)
    assert enl(image, ~feature) == pytest.approx(25, rel=0.03)
    assert enl(np.ones((3, 3)), np.ones((3, 3), bool)) == np.inf
    # smoothing raises both without adding anything
    smooth = gaussian_filter(image, 2)
    inner = np.roll(feature, -20, axis=0) & feature, np.roll(~feature, 20, axis=0) & ~feature
    assert cnr(smooth, *inner) > 2 * cnr(image, *inner)


def test_refusals() -> None:
    image = truth()
    for measure in (psnr, ssim, vif):
        with pytest.raises(ValueError, match="different shape"):
            measure(image, image[1:])
        with pytest.raises(ValueError, match="constant"):
            measure(image, np.ones(SHAPE))
    with pytest.raises(ValueError, match="41"):
        vif(image[:, :30], image[:, :30])
    with pytest.raises(ValueError, match="without voxels"):
        enl(image, np.zeros(SHAPE, bool))
