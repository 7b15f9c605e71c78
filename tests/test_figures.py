"""Quick-look pictures: written whole, readable, and true to what they show."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.report import figures


@pytest.fixture
def alignment() -> Alignment:
    rng = np.random.default_rng(0)
    n = 11
    grid = np.linspace(-40, 40, 5)
    start = Alignment.identity(np.linspace(-50, 50, n), (80, 60), axis_deg=-4.0, pixel_size_A=10.0)
    warp = LocalWarp(grid, grid, rng.normal(size=(n, 5, 5, 2)))
    return Alignment(
        start.tilt_deg, start.linear, rng.normal(size=(n, 2)), (80, 60), 10.0, warp, excluded={3: "blank", 10: "dark"}
    )


def read(path: Path) -> np.ndarray:
    picture = imread(path)
    assert picture.ndim == 3 and min(picture.shape[:2]) > 200
    assert np.ptp(picture[..., :3]) > 0.5, "an empty picture"
    return picture


def test_slices_show_each_face_the_right_way_round(tmp_path: Path) -> None:
    volume = np.zeros((20, 60, 80), np.float32)
    volume[:, 45:, :20] = 1  # high y, low x: the upper left of the view from above
    picture = read(figures.slices(volume, tmp_path / "slices.png", "slices", pixel_size_A=10.0))
    height, width = picture.shape[:2]
    view = picture[height // 10 : int(height * 0.65), width // 8 : int(width * 0.75), 0]
    upper, lower = np.array_split(view, 2)
    assert upper[:, : view.shape[1] // 3].mean() > lower[:, : view.shape[1] // 3].mean()


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 64, 64), (64, 3, 7)])
def test_slices_of_any_shape(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(1).normal(size=shape)
    assert figures.slices(volume, tmp_path / "s.png").is_file()


def test_slices_of_a_constant_or_broken_volume(tmp_path: Path) -> None:
    assert figures.slices(np.zeros((4, 8, 8)), tmp_path / "flat.png").is_file()
    assert figures.slices(np.full((4, 8, 8), np.nan), tmp_path / "nan.png").is_file()


def test_plots_against_tilt(tmp_path: Path, alignment: Alignment) -> None:
    sigma = np.full((alignment.n_tilts, 2), 0.1)
    plain = read(figures.alignment_plots(alignment, tmp_path / "a.png"))
    barred = read(figures.alignment_plots(alignment, tmp_path / "b.png", sigma_shift_px=sigma))
    assert plain.shape == barred.shape and (plain != barred).any(), "error bars are not drawn"
    residual = np.abs(np.random.default_rng(2).normal(size=alignment.n_tilts))
    residual[3] = np.nan
    read(figures.residuals(alignment, residual, tmp_path / "r.png"))
    figures.residuals(alignment, np.full(alignment.n_tilts, np.nan), tmp_path / "none.png")


def test_arrows_and_loss(tmp_path: Path, alignment: Alignment) -> None:
    read(figures.warp_arrows(alignment, tmp_path / "w.png"))
    read(figures.warp_arrows(alignment, tmp_path / "w1.png", tilts=[2]))
    figures.warp_arrows(alignment.without_warp(), tmp_path / "w0.png")
    steps = np.arange(50.0)
    read(
        figures.held_out_loss(
            steps,
            1 + np.exp(-steps / 10),
            tmp_path / "h.png",
            fitted=1 + np.exp(-steps / 9),
            scale_starts=[(20, "bin 2")],
        )
    )


def test_a_loss_is_not_joined_across_scales(tmp_path: Path) -> None:
    """Where one scale ends and the next starts is a jump that means nothing."""
    steps = np.arange(50.0)
    for starts, pieces in ((((0.0, "bin 4"), (20.0, "bin 2"), (35.0, "bin 1")), 3), (((0.0, "bin 1"),), 1)):
        path = figures.held_out_loss(steps, np.exp(-steps / 9), tmp_path / "h.svg", scale_starts=starts)
        line = re.search(r'<path d="([^"]*)"[^>]*stroke: #ff7f0e', path.read_text())
        assert line is not None and line.group(1).count("M") == pieces


def test_nothing_but_the_picture_is_left(tmp_path: Path, alignment: Alignment) -> None:
    figures.alignment_plots(alignment, tmp_path / "a.png")
    figures.alignment_plots(alignment, tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
