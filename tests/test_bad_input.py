"""What a user can get wrong: one clear sentence, exit status 2, nothing written and nothing overwritten."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from click.testing import Result

from tests.running import Inr, assert_refused, start_command

N_TILTS, NY, NX = 11, 40, 48
ANGLES = np.linspace(-50, 50, N_TILTS)

WriteStack = Callable[..., Path]


@pytest.fixture
def stack(tmp_path: Path) -> WriteStack:
    """Writes ``ts.mrc`` (noise unless images are given) and ``ts.rawtlt`` into the test's folder."""

    def write(images: np.ndarray | None = None, angles: Any = ANGLES, pixel_size_A: float = 10.0) -> Path:
        if images is None:
            images = np.random.default_rng(0).normal(size=(N_TILTS, NY, NX))
        path = tmp_path / "ts.mrc"
        with mrcfile.new(path) as mrc:
            mrc.set_data(np.asarray(images, np.float32))
            mrc.voxel_size = pixel_size_A
        (tmp_path / "ts.rawtlt").write_text("".join(f"{a}\n" for a in np.atleast_1d(angles)))
        return path

    return write


def align(inr: Inr, path: Path, *more: object) -> Result:
    """``inr-align`` on a stack, and no output folder left behind (the sentence is asserted by the caller)."""
    out = path.parent / "out"
    result = inr("align", path, "--tilt-angles", path.with_suffix(".rawtlt"), "--tilt-axis", 0, "-o", out, *more)
    if result.exit_code:
        assert not out.exists() or not any(out.iterdir()), "something was left behind"
    return result


@pytest.mark.parametrize("count", [N_TILTS - 1, N_TILTS + 1])
def test_wrong_number_of_angles(inr: Inr, stack: WriteStack, count: int) -> None:
    path = stack(angles=np.linspace(-50, 50, count))
    assert_refused(align(inr, path), "ts.rawtlt", str(count), str(N_TILTS))


def test_angles_in_radians(inr: Inr, stack: WriteStack) -> None:
    assert_refused(align(inr, stack(angles=np.deg2rad(ANGLES))), "ts.rawtlt", "degrees")


def test_angles_out_of_range(inr: Inr, stack: WriteStack) -> None:
    assert_refused(align(inr, stack(angles=ANGLES * 10)), "ts.rawtlt", "degrees")


def test_angles_all_zero(inr: Inr, stack: WriteStack) -> None:
    assert_refused(align(inr, stack(angles=np.zeros(N_TILTS))), "ts.rawtlt")


@pytest.mark.parametrize("text", ["", "not an angle\n" * N_TILTS, "nan\n" * N_TILTS, "inf\n" * N_TILTS])
def test_angles_that_are_none(inr: Inr, stack: WriteStack, text: str) -> None:
    path = stack()
    path.with_suffix(".rawtlt").write_text(text)
    assert_refused(align(inr, path), "ts.rawtlt")


def test_no_angles_anywhere(inr: Inr, stack: WriteStack) -> None:
    path = stack()
    path.with_suffix(".rawtlt").unlink()
    result = inr("align", path, "--tilt-axis", 0, "-o", path.parent / "out")
    assert_refused(result, "ts.mrc", "--tilt-angles")


def test_missing_pixel_size(inr: Inr, stack: WriteStack) -> None:
    assert_refused(align(inr, stack(pixel_size_A=0)), "ts.mrc", "--pixel-size")


@pytest.mark.parametrize("pixel_size", [-1, 0, "nan", "inf"])
def test_impossible_pixel_size(inr: Inr, stack: WriteStack, pixel_size: object) -> None:
    assert_refused(align(inr, stack(), "--pixel-size", pixel_size), "pixel")


@pytest.mark.parametrize("keep", [1024 + 4 * NX * NY * 3 + 17, 1024, 500, 0])
def test_truncated_stack(inr: Inr, stack: WriteStack, keep: int) -> None:
    path = stack()
    os.truncate(path, keep)
    assert_refused(align(inr, path), "ts.mrc")


def test_header_larger_than_the_file(inr: Inr, stack: WriteStack) -> None:
    path = stack()
    with open(path, "r+b") as file:
        file.seek(92)  # NSYMBT, the length of the extended header
        file.write(np.int32(2**30).tobytes())
    assert_refused(align(inr, path), "ts.mrc")


@pytest.mark.parametrize("field", [0, 4, 8])
def test_sizes_in_the_header_that_cannot_be(inr: Inr, stack: WriteStack, field: int) -> None:
    path = stack()
    for size in (-5, 0, 2**30):
        with open(path, "r+b") as file:
            file.seek(field)
            file.write(np.int32(size).tobytes())
        assert_refused(align(inr, path), "ts.mrc")


def test_unknown_mode(inr: Inr, stack: WriteStack) -> None:
    path = stack()
    with open(path, "r+b") as file:
        file.seek(12)
        file.write(np.int32(77).tobytes())
    assert_refused(align(inr, path), "ts.mrc", "mode")


def test_not_an_mrc_file(inr: Inr, stack: WriteStack) -> None:
    path = stack()
    path.write_text("This is a letter, not an image.\n" * 100)
    assert_refused(align(inr, path), "ts.mrc")


def test_no_such_stack(inr: Inr, tmp_path: Path) -> None:
    assert_refused(inr("align", tmp_path / "none.mrc", "-o", tmp_path / "out"), "none.mrc")


@pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile", "ignore:invalid value encountered")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers(inr: Inr, stack: WriteStack, value: float) -> None:
    images = np.random.default_rng(0).normal(size=(N_TILTS, NY, NX))
    images[4, 10, 20] = value
    assert_refused(align(inr, stack(images)), "ts.mrc", "4")


def test_one_image(inr: Inr, stack: WriteStack) -> None:
    images = np.random.default_rng(0).normal(size=(1, NY, NX))
    assert_refused(align(inr, stack(images, angles=[0.0])), "ts.mrc")


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_blank_stack(inr: Inr, stack: WriteStack, value: float) -> None:
    assert_refused(align(inr, stack(np.full((N_TILTS, NY, NX), value))), "ts.mrc", "blank")


def test_excluded_tilts_that_do_not_exist(inr: Inr, stack: WriteStack) -> None:
    assert_refused(align(inr, stack(), "--exclude", f"3,{N_TILTS}"), str(N_TILTS), "0")


def test_every_tilt_excluded(inr: Inr, stack: WriteStack) -> None:
    assert_refused(align(inr, stack(), "--exclude", f"0-{N_TILTS - 1}"), "exclude")


@pytest.mark.parametrize("axis", ["north", "1000", "nan"])
def test_tilt_axis_that_is_no_angle(inr: Inr, stack: WriteStack, axis: str) -> None:
    path = stack()
    assert_refused(inr("align", path, "--tilt-axis", axis, "-o", path.parent / "out"), "--tilt-axis")


@pytest.mark.parametrize("size", ["much", "0", "-1G"])
def test_memory_that_is_no_size(inr: Inr, stack: WriteStack, size: str) -> None:
    assert_refused(align(inr, stack(), "--memory", size), "4G")


def test_tilt_axis_turned_by_180_degrees_is_said(inr: Inr, tiny_series: Path, tmp_path: Path) -> None:
    """The images alone cannot tell it (the tomogram comes out mirrored), but the .mdoc beside them can."""
    stack = tiny_series / "ts.mrc"
    result = inr("align", stack, "--tilt-axis", 179.0, "--fast", "-o", tmp_path / "out")
    assert "180" in result.output and "mdoc" in result.output


def test_output_folder_that_is_a_file(inr: Inr, stack: WriteStack) -> None:
    path = stack()
    (path.parent / "file").write_text("precious")
    for out in (path.parent / "file", path.parent / "file" / "below"):
        result = inr("align", path, "--tilt-axis", 0, "-o", out)
        assert_refused(result, "file")
    assert (path.parent / "file").read_text() == "precious"


def test_output_folder_without_permission(inr: Inr, stack: WriteStack) -> None:
    path = stack()
    locked = path.parent / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:
        locked = Path("/sys")  # even root may not make files here
    for out in (locked / "out", locked / "out" / "below"):
        assert_refused(inr("align", path, "--tilt-axis", 0, "-o", out), str(locked))


def test_permission_denied_is_a_sentence(inr: Inr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "out"))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert_refused(inr("simulate", "--size", 32, 32, "--tilt-step", 30, "-o", tmp_path / "out"), "permission", "out")


def test_disk_full_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the write fails half way through the stack."""
    out = tmp_path / "out"
    limit = (800_000, 800_000)  # less than the stack, more than any of numba's cached functions
    process = start_command(
        "simulate", "--size", 192, 192, "--tilt-step", 15, "--thickness", 20, "-o", out,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 2, said
    assert len([line for line in said if line.startswith("inr-simulate: ")]) == 1, said
    assert not any("Traceback" in line for line in said)
    assert out.is_dir() and not any(out.iterdir()), said


def test_nothing_is_overwritten_unasked(inr: Inr, tiny_series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("align", tiny_series / "ts.mrc", "--tilt-axis", 0, "--fast", "-o", out)
    assert inr(*args).exit_code == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir() if path.is_file()}
    assert_refused(inr(*args), "--overwrite")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert inr(*args, "--overwrite").exit_code == 0
    for name in ("export", "recon"):
        target = tmp_path / f"{name}.mrc"
        target.write_text("precious")
        assert_refused(inr(name, tiny_series / "ts.mrc", out, "-o", target), f"{name}.mrc", "--overwrite")
        assert target.read_text() == "precious"


@pytest.mark.parametrize("name", ["export", "recon"])
def test_alignment_of_another_series(inr: Inr, stack: WriteStack, tiny_series: Path, name: str) -> None:
    path = stack()
    out = path.parent / "result.mrc"
    assert_refused(inr(name, path, tiny_series / "ts_truth.json", "-o", out), str(N_TILTS))
    assert not out.exists()


@pytest.mark.parametrize("name", ["export", "recon"])
@pytest.mark.parametrize(
    ("file", "text"), [("a.xf", "1 0 0 1 0\n" * N_TILTS), ("a.xf", ""), ("a.json", "{"), ("a.aln", "x")]
)
def test_alignment_that_is_none(inr: Inr, stack: WriteStack, name: str, file: str, text: str) -> None:
    path = stack()
    (path.parent / file).write_text(text)
    out = path.parent / "result.mrc"
    assert_refused(inr(name, path, path.parent / file, "-o", out), file)
    assert not out.exists()


def test_alignments_that_cannot_be_compared(inr: Inr, tiny_series: Path, tmp_path: Path) -> None:
    truth = tiny_series / "ts_truth.json"
    assert_refused(inr("compare", truth, tmp_path / "none"), "none")
    (tmp_path / "short.xf").write_text("1 0 0 1 0 0\n" * 3)
    (tmp_path / "short.tlt").write_text("-10\n0\n10\n")
    assert_refused(inr("compare", truth, tmp_path / "short.xf"), "3")


def test_a_series_is_simulated_only_from_sense(inr: Inr, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for bad in (["--size", 4, 4], ["--tilt-step", -3], ["--pixel-size", 0], ["--thickness", 0], ["--tilt-range", 95]):
        assert_refused(inr("simulate", *bad, "-o", out))
        assert not out.exists()
