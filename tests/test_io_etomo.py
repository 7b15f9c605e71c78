"""Com files of an Etomo folder: what they say of geometry is where IMOD's tilt puts it, and the rest is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.geometry import axis_rotation
from inrtomo.io.alignment_files import read_record
from inrtomo.io.imod import read_command_file, write_angles, write_x_tilt, write_xf
from inrtomo.io.mrc import read_volume, write_stack
from inrtomo.io.numbers import Word
from tests.running import Inr

N, SIZE = 7, (64, 48)
TILT = np.linspace(-54, 54, N)
TURN = axis_rotation(8.0)
SHIFT = np.column_stack([np.linspace(-3, 3, N), np.linspace(1, 2, N)])
USUAL = """# Command file to run Tilt
$setenv IMOD_OUTPUT_FORMAT MRC
$tilt -StandardInput
InputProjections ts_ali.mrc
OutputFile ts_full_rec.mrc
IMAGEBINNED 1
TILTFILE ts.tlt
XTILTFILE ts.xtilt
THICKNESS 40
RADIAL 0.35 0.035
FalloffIsTrueSigma 1
XAXISTILT 0.0
LOG 0.0
SCALE 0.0 1.0
PERPENDICULAR
MODE 2
FULLIMAGE 64 48
SUBSETSTART 0 0
AdjustOrigin
ActionIfGPUFails 1,2
OFFSET 0.0
SHIFT 0.0 0.0
"""
NEWST = "$newstack -StandardInput\nInputFile ts.mrc\nOutputFile ts_ali.mrc\nTransformFile ts.xf\nTaperAtFill 1,0\n"


def folder(path: Path, tilt_com: str = USUAL, **more: str) -> Path:
    """An Etomo folder for `TILT`; ``more``: texts of further files, their dots as double underscores."""
    path.mkdir(exist_ok=True)
    write_xf(path / "ts.xf", np.tile(TURN, (N, 1, 1)), SHIFT, overwrite=True)
    write_angles(path / "ts.tlt", TILT, overwrite=True)
    write_x_tilt(path / "ts.xtilt", np.zeros(N), overwrite=True)
    (path / "tilt.com").write_text(tilt_com)
    for name, text in more.items():
        (path / name.replace("__", ".")).write_text(text)
    return path / "ts.xf"


def with_lines(**lines: str) -> str:
    """`USUAL` with other values; options that are not in it are added."""
    text = USUAL
    for name, value in lines.items():
        if f"\n{name} " in text:
            head, _, rest = text.partition(f"\n{name} ")
            text = f"{head}\n{name} {value}\n" + rest.partition("\n")[2]
        else:
            text += f"{name} {value}\n"
    return text


def read(path: Path, size: tuple[int, int] | None = None) -> tuple[Alignment, list[str]]:
    notes: list[str] = []
    return read_record(path, size, notes).alignment, notes


# --- where tilt puts things


def tilt_sees(
    j: float, line: float, i: float, theta: float, alpha: float, shift: tuple[float, float], axis: float, thickness: int
) -> np.ndarray:
    """Pixel index (from 1) of the aligned image at which tilt looks for a voxel (from 1) of its output.

    As its manual describes: the slice is moved by ``shift`` to the right and up, the axis cuts the images ``axis`` px
    beside their centre, the specimen is first turned about x by minus ``alpha``; rows of a slice run against z.
    """
    (nx, ny), (t, a) = SIZE, np.deg2rad([theta, -alpha])
    x_out = j - (nx / 2 + 0.5 + axis + shift[0])
    z_out = i - (thickness / 2 + 0.5 + shift[1])
    y_out = line - (ny / 2 + 0.5)
    x = x_out * np.cos(t) - (y_out * np.sin(-a) + z_out * np.cos(a)) * np.sin(t)
    y = y_out * np.cos(a) - z_out * np.sin(-a)
    return np.array([x + nx / 2 + 0.5 + axis, y + ny / 2 + 0.5])


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.0, -9.0), (5.0, 0.0), (-4.5, 7.0)])
@pytest.mark.parametrize(("offset", "axis"), [("0.0", 0.0), ("2.5 6.0", 6.0)])
@pytest.mark.parametrize("x_tilt", [0.0, 11.0])
def test_a_voxel_is_seen_where_tilt_looks_for_it(
    tmp_path: Path, shift: tuple[float, float], offset: str, axis: float, x_tilt: float
) -> None:
    text = with_lines(SHIFT=f"{shift[0]} {shift[1]}", OFFSET=offset, XAXISTILT=str(x_tilt))
    alignment, _ = read(folder(tmp_path / "e", text))
    thickness = 40
    voxels = np.array([[1, 1, 1], [64, 48, 40], [20, 30, 7], [50, 11, 33.5]])
    centred = voxels - [32.5, 24.5, 20.5]
    ours = centred * [1, 1, -1]  # rows of tilt's output run against z
    angle = float(offset.split()[0])
    for m in range(N):
        for (j, line, i), point in zip(voxels, ours, strict=True):
            seen = tilt_sees(j, line, i, TILT[m] + angle, x_tilt, shift, axis, thickness) - [32.5, 24.5]
            raw = np.linalg.inv(TURN) @ (seen - SHIFT[m])
            assert alignment.specimen_to_raw(m, point) == pytest.approx(raw, abs=2e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_slab_is_etomos(tmp_path: Path, inr: Inr, sign: int) -> None:
    """A bead at z = 20, which SHIFT 0 20 (rows run against z) moves to the middle of the slab and SHIFT 0 -20 away."""
    t = np.arange(-60, 61, 5.0)
    y, x = np.mgrid[:48, :64] - np.array([23.5, 31.5])[:, None, None]
    seen = 10 * np.cos(np.deg2rad(t)) + 20 * np.sin(np.deg2rad(t))
    images = np.exp(-((x - seen[:, None, None]) ** 2 + (y - 5) ** 2) / 2 / 1.5**2).astype(np.float32)
    write_stack(tmp_path / "ts.mrc", images, 10.0)
    write_angles(tmp_path / "ts.rawtlt", t)
    etomo = tmp_path / "e"
    folder(etomo, with_lines(SHIFT=f"3.0 {20 * sign}.0", THICKNESS="12"))
    write_xf(etomo / "ts.xf", np.tile(np.eye(2), (len(t), 1, 1)), np.full((len(t), 2), 0.001), overwrite=True)
    write_angles(etomo / "ts.tlt", t, overwrite=True)
    write_x_tilt(etomo / "ts.xtilt", np.zeros(len(t)), overwrite=True)
    done = inr("recon", tmp_path / "ts.mrc", etomo, "-o", tmp_path / "r.mrc", "--method", "fbp", "--orientation", "xyz")
    assert "SHIFT" in done.stdout and "12" in done.stdout
    volume = read_volume(tmp_path / "r.mrc")[0]
    assert volume.shape == (12, 48, 64)  # THICKNESS
    z, row, column = np.unravel_index(int(volume.argmax()), volume.shape)
    if sign == 1:
        assert abs(z - 5.5) <= 1 and abs(row - 28.5) <= 1 and abs(column - 44.5) <= 1  # 31.5 + 10 + 3
        assert volume.max() > 0.1
    else:
        assert volume.max() < 0.1


def local_file(values: np.ndarray) -> str:
    """3 x 2 areas at x = 8, 32, 56 and y = 12, 36 that move images by ``values`` (x areas) px along x and y."""
    angles = " ".join(["0.0"] * N) + "\n"
    rows = [angles + "".join(f"1 0 0 1 {v:.3f} {-v:.3f}\n" for _ in range(N)) for _ in range(2) for v in values]
    return "3 2 8 12 24 24\n" + "".join(rows)


@pytest.mark.parametrize(("shift", "axis"), [((0.0, 0.0), 0.0), ((4.0, -6.0), 0.0), ((3.0, 5.0), 7.0)])
def test_local_alignments_go_with_the_specimen(tmp_path: Path, shift: tuple[float, float], axis: float) -> None:
    values = np.array([-1.0, 0.5, 2.0])
    text = with_lines(SHIFT=f"{shift[0]} {shift[1]}", OFFSET=f"0.0 {axis}", LOCALFILE="tslocal.xf")
    alignment, notes = read(folder(tmp_path / "e", text, tslocal__xf=local_file(values)))
    assert any("tslocal.xf" in note for note in notes) and alignment.warp is not None
    for m in range(1, N - 1):
        for j in (20.0, 33.0, 44.0):  # in the middle row of the slab
            seen = tilt_sees(j, 20.0, 20.5, TILT[m], 0.0, shift, axis, 40)
            column = j - shift[0]  # pixel of the aligned stack above which it lies
            moved = np.interp(column, [8, 32, 56], values)
            raw = np.linalg.inv(TURN) @ (seen + [moved, -moved] - [32.5, 24.5] - SHIFT[m])
            found = alignment.specimen_to_raw(m, np.array([j - 32.5, 20.0 - 24.5, 0.0]))
            assert found == pytest.approx(raw, abs=0.06), (m, j)


# --- views and files


@pytest.mark.parametrize(
    ("lines", "excluded"),
    [
        ({"INCLUDE": "2-5"}, [0, 5, 6]),
        ({"INCLUDE": "2-4\nINCLUDE 7"}, [0, 4, 5]),
        ({"EXCLUDELIST2": "1,3-4"}, [0, 2, 3]),
        ({"EXCLUDELIST": "1"}, [0]),
        ({"EXCLUDE": "7", "EXCLUDELIST": "1", "EXCLUDELIST2": "2"}, [0, 1, 6]),
        ({"INCLUDE": "1-7"}, []),
    ],
)
def test_views_in_use(tmp_path: Path, lines: dict[str, str], excluded: list[int]) -> None:
    alignment, _ = read(folder(tmp_path / "e", with_lines(**lines)))
    assert sorted(alignment.excluded) == excluded


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"INCLUDE": "1-4", "EXCLUDELIST2": "2"}, r"tilt\.com: has both INCLUDE"),
        ({"INCLUDE": "1-8"}, r"tilt\.com: line 23: INCLUDE: names view 8 of 7"),
        ({"EXCLUDELIST": "0"}, r"tilt\.com: line 23: EXCLUDELIST: names view 0 of 7"),
        ({"SHIFT": "1 2 3"}, r"tilt\.com: line 22: SHIFT: '1 2 3' is not 1 or 2 numbers"),
        ({"OFFSET": "120.0"}, r"tilt\.com: line 21: OFFSET: 120.0 is not a tilt angle"),
    ],
)
def test_what_cannot_be(tmp_path: Path, lines: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(folder(tmp_path / "e", with_lines(**lines)))


def test_angles_of_the_files_that_tilt_reads(tmp_path: Path) -> None:
    other, x_tilt = "".join(f"{a:.2f}\n" for a in TILT + 4), "".join(f"{-k}\n" for k in range(N))
    text = with_lines(TILTFILE="better.tlt", XTILTFILE="x.xtilt")
    alignment, notes = read(folder(tmp_path / "e", text, better__tlt=other, x__xtilt=x_tilt))
    assert alignment.tilt_deg == pytest.approx(TILT + 4) and alignment.x_tilt_deg.tolist() == list(range(N))
    assert sum("is read in place of ts." in note for note in notes) == 2
    (tmp_path / "e" / "better.tlt").unlink()
    alignment, notes = read(tmp_path / "e" / "ts.xf")
    assert alignment.tilt_deg == pytest.approx(TILT) and any("TILTFILE better.tlt is not there" in n for n in notes)


def test_x_tilts_that_tilt_does_not_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "e", USUAL.replace("XTILTFILE ts.xtilt\n", ""), ts__xtilt="3\n" * N)
    alignment, notes = read(path)
    assert not alignment.x_tilt_deg.any() and any("names no XTILTFILE" in note for note in notes)
    (tmp_path / "e" / "tilt.com").unlink()
    assert (read(path, SIZE)[0].x_tilt_deg == -3).all()


def test_angles_in_the_com_file(tmp_path: Path) -> None:
    words = [f"{a:.2f}" for a in TILT + 1]
    text = USUAL.replace("TILTFILE ts.tlt\n", "")
    text += f"ANGLES {' '.join(words[:4])}\nANGLES {' '.join(words[4:])}\n"
    assert read(folder(tmp_path / "e", text))[0].tilt_deg == pytest.approx(TILT + 1, abs=0.01)


def test_a_com_file_of_another_stack_is_not_used(tmp_path: Path) -> None:
    text = with_lines(SHIFT="0 20").replace("ts.tlt", "other.tlt").replace("ts_ali", "other_ali")
    alignment, notes = read(folder(tmp_path / "e", text), SIZE)
    assert alignment.shift_px == pytest.approx(SHIFT, abs=1e-3)
    assert any("tilt.com: is of other, not of ts" in note for note in notes)


def test_lengths_in_pixels_of_a_binned_stack(tmp_path: Path) -> None:
    """With IMAGEBINNED they are in unbinned pixels, without in those of the aligned stack."""
    for binned, shift in (("4", "0 8"), ("1", "0 2")):
        text = with_lines(IMAGEBINNED=binned, SHIFT=shift, THICKNESS="40" if binned == "4" else "10")
        record = read_record(folder(tmp_path / "e", text, newst__com=NEWST + "BinByFactor 4\n"))
        assert record.alignment.shift_px[0] == pytest.approx(SHIFT[0] + [8 * np.sin(np.deg2rad(54)), 0], abs=1e-3)
        assert record.thickness_px == 40


# --- what is said


def test_an_ordinary_folder_has_nothing_to_say(tmp_path: Path) -> None:
    _, notes = read(folder(tmp_path / "e", newst__com=NEWST + "OffsetsInXandY 0.0,0.0\nBinByFactor 2\n"))
    assert notes == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RADIAL", "0.2 0.05"),
        ("FakeSIRTiterations", "15"),
        ("WIDTH", "40"),
        ("SLICE", "10 20"),
        ("COMPRESS", "1.0 0.9 0.8"),
        ("ZFACTORFILE", "none.zfac"),
        ("LOCALSCALE", "0.5"),
        ("DENSWEIGHT", "0"),
        ("WeightFile", "w.txt"),
        ("REPROJECT", "30"),
        ("FlatFilterFraction", "0.3"),
        ("NewerOption", "7"),
    ],
)
def test_what_is_left_out_is_said_once(tmp_path: Path, name: str, value: str) -> None:
    alignment, notes = read(folder(tmp_path / "e", with_lines(**{name: value})))
    assert len(notes) == 1 and "tilt.com" in notes[0] and name.lower() in notes[0].lower() and "left out" in notes[0]
    assert alignment.shift_px == pytest.approx(SHIFT, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("WIDTH", "64"), ("DENSWEIGHT", "2"), ("RADIAL", ".35 .05"), ("UseGPU", "0"), ("FakeSIRTiterations", "0"),
     ("COSINTERP", "0"), ("SUBSETSTART", "-19 -19"), ("ROTATEBY90", ""), ("MASK", "3")],
)  # fmt: skip
def test_what_changes_nothing_is_not_said(tmp_path: Path, name: str, value: str) -> None:
    assert read(folder(tmp_path / "e", with_lines(**{name: value})))[1] == []


def test_z_factors_of_zero_are_none(tmp_path: Path) -> None:
    text = with_lines(ZFACTORFILE="ts.zfac")
    assert read(folder(tmp_path / "e", text, ts__zfac="0.0 0.0\n" * N))[1] == []
    assert "ZFACTORFILE" in read(folder(tmp_path / "e", text, ts__zfac="0.01 0.0\n" * N))[1][0]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("newst__com", NEWST + "OffsetsInXandY 12,-4\n", "OffsetsInXandY 12,-4"),
        ("newst__com", NEWST + "RotateByAngle 90\n", "RotateByAngle 90"),
        ("newst__com", NEWST + "DistortionField a.idf\n", "DistortionField a.idf"),
        ("newst__com", NEWST + "SectionsToRead 3-5\n", "SectionsToRead 3-5"),
        ("newst__com", NEWST.replace("ts.xf", "ts_fid.xf"), "TransformFile ts_fid.xf"),
        ("align__com", "$tiltalign -StandardInput\nOutputTiltFile ts.tlt\nExcludeList 2,3\n", "ExcludeList 2-3"),
        ("ts__edf", "Setup.AxisA.ExcludeProjections=3\n", "leaves out view 3"),
    ],
)
def test_other_files_of_the_folder(tmp_path: Path, file: str, text: str, said: str) -> None:
    _, notes = read(folder(tmp_path / "e", **{file: text}))
    assert len(notes) == 1 and said in notes[0] and file.replace("__", ".") in notes[0]


def test_both_axes_of_a_project(tmp_path: Path) -> None:
    project = "Setup.AxisA.ExcludeProjections=3\nSetup.AxisB.ExcludeProjections=5,6\n"
    for base, excluded in (("tsa", [2]), ("tsb", [4, 5])):
        write_xf(tmp_path / f"{base}.xf", np.tile(TURN, (N, 1, 1)), SHIFT)
        write_angles(tmp_path / f"{base}.tlt", TILT)
        (tmp_path / "ts.edf").write_text(project)
        assert sorted(read(tmp_path / f"{base}.xf", SIZE)[0].excluded) == excluded


# --- how com files are written


def test_spellings_of_com_files(tmp_path: Path) -> None:
    (tmp_path / "t.com").write_text(
        "$tilt -StandardInput\nthickness = 300 # px\nShift=0.0,-3.5\nOFFS\t1.5\nOutputFile a#1.mrc\nDONE\nSHIFT 9 9\n"
    )
    names = {name.upper(): name for name in ("THICKNESS", "SHIFT", "OFFSET", "OutputFile", "DONE")}
    command = read_command_file(tmp_path / "t.com", "tilt", names)
    assert command.numbers("THICKNESS", 1) == [300] and command.numbers("SHIFT", 2) == [0, -3.5]
    assert command.numbers("OFFSET", 1, 2) == [1.5] and command.value("OutputFile") == "a#1.mrc"
    found = command.value("SHIFT")
    assert isinstance(found, Word) and found.line == 3
