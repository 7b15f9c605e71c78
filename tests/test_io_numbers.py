"""Numbers in text files: what a locale or Fortran writes is read as meant, and what cannot be is refused by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from inrtomo.commands import align, fsc
from inrtomo.errors import InputError
from inrtomo.io import numbers
from inrtomo.io.alignment_files import read_alignment, read_record
from inrtomo.io.angle_files import read_angles
from inrtomo.io.ctf import read_ctf
from inrtomo.io.imod import read_command_file, read_warp
from inrtomo.io.mdoc import read_mdoc
from inrtomo.tiltseries import check_tilt_angles

TILT = [-59.97, -39.96, -19.95, 0.55, 20.93, 40.94, 59.99]
NO_NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1_0",
    "٣",
    "0x10",
    "****",
    "1.2.3",
    "1,2,3",
    "12.0abc",
    "1e",
    "--3",
    "",
    "1,",
]


@pytest.mark.parametrize("word", NO_NUMBERS)
def test_what_is_no_number(word: str) -> None:
    with pytest.raises(InputError, match=r"a\.txt: line 7"):
        numbers.read(word, "a.txt: line 7")


@pytest.mark.parametrize(
    ("word", "value"),
    [("-59,97", -59.97), ("0,55", 0.55), (",5", 0.5), ("1.0D+01", 10.0), ("1d-2", 0.01), ("+3.", 3.0), ("7", 7.0)],
)
def test_what_is_written_as_elsewhere(word: str, value: float) -> None:
    assert numbers.read(word, "a") == pytest.approx(value)


def test_a_list_takes_commas_as_what_only_they_can_be() -> None:
    assert numbers.read_list("1,94", "a", (1,)) == [1.94]
    assert numbers.read_list("1024,1024", "a", (2,)) == [1024, 1024]
    assert numbers.read_list("0.0,12.5", "a", (1, 2)) == [0, 12.5]
    assert numbers.read_list("0,-30", "a", (1, 2)) == [0, -30]
    assert numbers.read_list("0,5 1,5", "a", (2,)) == [0.5, 1.5]
    with pytest.raises(InputError, match="decimal"):
        numbers.read_list("0,5", "a", (1, 2))
    with pytest.raises(InputError, match="2 numbers"):
        numbers.read_list("0 1 2", "a", (2,))


# --- files of angles


def angles(path: Path, text: str) -> list[float]:
    path.write_text(text)
    return read_angles(path).tolist()


def test_angles_with_a_decimal_comma(tmp_path: Path) -> None:
    text = "".join(f"{a:.2f}\n" for a in TILT)
    assert angles(tmp_path / "a.tlt", text) == angles(tmp_path / "a.tlt", text.replace(".", ",")) == TILT
    assert angles(tmp_path / "a.tlt", "-60\n-57,5\n0\n57,5\n") == [-60, -57.5, 0, 57.5]
    assert angles(tmp_path / "a.tlt", "-60,0\n-57,0\n0,0\n3,0\n") == [-60, -57, 0, 3]


@pytest.mark.parametrize("between", [" ", "\t", ",", ", "])
@pytest.mark.parametrize("form", ["{:.1f}", "{:.0f}"])
def test_angles_with_their_order(tmp_path: Path, between: str, form: str) -> None:
    tilt = np.arange(-30, 31, 3.0)
    order = np.argsort(np.argsort(np.abs(tilt))) + 1
    text = "".join(form.format(a) + f"{between}{k}\n" for a, k in zip(tilt, order, strict=True))
    assert angles(tmp_path / "a_TLT.txt", text) == tilt.tolist()
    assert angles(tmp_path / "a_TLT.txt", text.replace("\n", f"{between}3.1\n")) == tilt.tolist()  # and doses


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1.0\n12.0 foo\n3.0\n", 2),
        ("1.0\n2.0\n\n12.0abc\n", 4),
        ("-3.0\n90.6\n", 2),
        ("1.5e24\n3.0\n", 1),
        ("-60,1\n-57,2\n-54,3\n", 1),
        ("-59,97\n20.93\n", 2),
        ("-60.0 1\n-57.0\n", 2),
        ("1 2 3 4\n", 1),
        ("-3.0\n0.0\n1_0\n", 3),
    ],
)
def test_angles_that_are_refused(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "a.tlt").write_text(text)
    with pytest.raises(InputError, match=rf"a\.tlt: line {line}\b"):
        read_angles(tmp_path / "a.tlt")


def test_a_column_that_counts_is_not_taken_for_angles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="counts"):
        angles(tmp_path / "a.tlt", "1 -60.0\n2 -57.0\n3 -54.0\n")
    assert angles(tmp_path / "a.tlt", "# Å\n-3.0 # first\n+90.4\n") == [-3, 90.4]


# --- every format


def aln(number: str) -> tuple[str, str]:
    rows = "".join(f"{k} -10.6 1.0 {1.5 * k} -2.5 1 1 1 0 {a}\n" for k, a in enumerate(("-30.0", number, "33.0"), 1))
    return "a.aln", "# RawSize = 128 96 3\n" + rows


def star(number: str) -> tuple[str, str]:
    columns = ("rlnTomoYTilt", "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst", "rlnMicrographName")
    rows = "".join(f"{a} -10.6 15.0 -25.0 {k}@ts.mrc\n" for k, a in enumerate(("-30.0", number, "33.0"), 1))
    head = "data_global\n\n_rlnTomoName ts\n_rlnTomoTiltSeriesPixelSize 2.0\n\ndata_ts\n\nloop_\n"
    return "a.star", head + "".join(f"_{column}\n" for column in columns) + rows


def xml(number: str) -> tuple[str, str]:
    angles = "\n".join(("30.0", number, "-33.0"))
    size = 'ImageDimensionsAngstrom="256, 192"'
    return (
        "a.xml",
        f'<TiltSeries {size}><Angles>{angles}</Angles><CTF><Param Name="PixelSize" Value="2"/></CTF></TiltSeries>',
    )


def mdoc(number: str) -> tuple[str, str]:
    sections = "".join(f"[ZValue = {k}]\nTiltAngle = {a}\n" for k, a in enumerate(("-30.0", number, "33.0")))
    return "a.mdoc", "ImageSize = 128 96\n" + sections


def json_file(number: str) -> tuple[str, str]:
    tilt = f'{{"tilt_deg": [-30.0, {number}, 33.0], "image_size": [128, 96], '
    return "a.json", tilt + '"linear": [[[1,0],[0,1]],[[1,0],[0,1]],[[1,0],[0,1]]], "shift_px": [[1,1],[2,2],[3,3]]}'


@pytest.mark.parametrize("number", ["90.6", "-91", "1.567301525373690323e24", "NaN", "Infinity", "1e999", "1_0", "3x"])
@pytest.mark.parametrize("write", [aln, star, xml, mdoc, json_file])
def test_an_impossible_angle_is_refused_in_every_format(
    tmp_path: Path, write: Callable[[str], tuple[str, str]], number: str
) -> None:
    name, text = write("3.0")
    (tmp_path / name).write_text(text)
    signed = -1 if name.endswith(".xml") else 1
    assert signed * read_alignment(tmp_path / name, (128, 96)).tilt_deg[1] == pytest.approx(3.0)
    (tmp_path / name).write_text(write(number)[1])
    with pytest.raises(InputError, match=name):
        read_record(tmp_path / name, (128, 96))


@pytest.mark.parametrize("write", [aln, star, xml, mdoc])
def test_a_decimal_comma_is_one_in_every_format(tmp_path: Path, write: Callable[[str], tuple[str, str]]) -> None:
    name, text = write("20,93")
    (tmp_path / name).write_text(text)
    assert abs(read_alignment(tmp_path / name, (128, 96)).tilt_deg[1]) == pytest.approx(20.93)


@pytest.mark.parametrize(
    ("write", "old", "new", "said"),
    [
        (aln, " -10.6 ", " 361 ", r"line 2: '361' is not the angle of a tilt axis"),
        (aln, "1.5 -2.5", "4e4 -2.5", "image 0.*not a shift"),
        (aln, "128 96 3", "128 96 3x", "line 1: '3x'"),
        (aln, "1 -10.6", "1.5 -10.6", "line 2: '1.5' is not the number of a section"),
        (star, "15.0", "1e5", "image 0.*not a shift"),
        (star, "-10.6", "nan", "line 14: rlnTomoZRot: 'nan'"),
        (star, "PixelSize 2.0", "PixelSize inf", "line 4: rlnTomoTiltSeriesPixelSize: 'inf'"),
        (xml, "256, 192", "256; 192", "ImageDimensionsAngstrom: '256;' is not a number"),
        (mdoc, "TiltAngle = -30.0", "TiltAngle = -30.0\nExposureDose = -3", "line 4: ExposureDose: '-3' is not a dose"),
        (mdoc, "128 96", "128 96x", "line 1: ImageSize"),
        (json_file, '"image_size"', '"x_tilt_deg": [0, 0, 99], "image_size"', "image 2.*tilt about the x axis"),
        (json_file, '"image_size"', '"excluded": {"7": "dark"}, "image_size"', "image 7 of 3"),
        (json_file, '"image_size"', '"pixel_size_A": -2, "image_size"', "-2 is not a pixel size"),
        (json_file, '"image_size"', '"thickness_px": NaN, "image_size"', "thickness_px: nan is not a thickness"),
        (star, "ts\n_rln", "ts\n_rlnTomoSizeZ 20.5\n_rln", "line 4: rlnTomoSizeZ: '20.5' is not a size"),
        (json_file, "[2,2]", "[2,20000]", "image 1.*not a shift"),
    ],
)
def test_what_cannot_be_is_refused_by_line(
    tmp_path: Path, write: Callable[[str], tuple[str, str]], old: str, new: str, said: str
) -> None:
    name, text = write("3.0")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=said) as caught:
        read_record(tmp_path / name, (128, 96))
    assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1


# --- IMOD's


def imod_folder(folder: Path, **files: str) -> Path:
    texts = {"ts.xf": "1 0 0 1 0.5 0\n" * 3, "ts.tlt": "-30.0\n0.0\n30.0\n", "ts.xtilt": "0\n0\n0\n"}
    texts["tilt.com"] = "$tilt -StandardInput\nTILTFILE ts.tlt\nFULLIMAGE 64 64\nTHICKNESS 30\n"
    for name, text in (texts | {name.replace("_", "."): text for name, text in files.items()}).items():
        (folder / name).write_text(text)
    return folder / "ts.xf"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ts_xf", "1 0 0 1 0.5 0\n1 0 0 1 0.5 0\n1 0 0 1 0.5 zero\n", r"ts\.xf: line 3: 'zero'"),
        ("ts_xf", "1 0 0 1 0.5 0\n1 0 0 1 ******** 0\n1 0 0 1 0.5 0\n", r"ts\.xf: line 2: '\*"),
        ("ts_xf", "1 0 0 1 0.5 0\n1 0 0 1 400 0\n1 0 0 1 0.5 0\n", r"ts\.xf: image 1 \(from 0\) has 400"),
        ("ts_xf", "1 0 0 1 0.5 0\n1 0 0 1 0.5 0 7\n1 0 0 1 0.5 0\n", r"ts\.xf: line 2"),
        ("ts_xtilt", "0\n91\n0\n", r"ts\.xtilt: line 2: '91' is not a tilt about the x axis"),
        ("ts_rawtlt", "-30\n0\n3o\n", r"ts\.rawtlt: line 3: '3o'"),
        (
            "tilt_com",
            "$tilt\nTILTFILE ts.tlt\nFULLIMAGE 64 64\nTHICKNESS thirty\n",
            r"tilt\.com: line 4: THICKNESS: 'thi",
        ),
        ("tilt_com", "$tilt\nTILTFILE ts.tlt\nFULLIMAGE 64 64\nOFFSET 1.0x\n", r"tilt\.com: line 4: OFFSET: '1.0x'"),
        ("tilt_com", "$tilt\nTILTFILE ts.tlt\nFULLIMAGE 64 64\nOFFSET 1,5\n", r"tilt\.com: line 4: OFFSET.*decimal"),
        (
            "tilt_com",
            "$tilt\nTILTFILE ts.tlt\nFULLIMAGE 64 64\nXAXISTILT nan\n",
            r"tilt\.com: line 4: XAXISTILT: 'nan'",
        ),
        ("tilt_com", "$tilt\nTILTFILE ts.tlt\nFULLIMAGE 64\n", r"tilt\.com: line 3: FULLIMAGE: '64' is not 2 numbers"),
    ],
)
def test_imod_files_that_are_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    imod_folder(tmp_path)
    assert read_alignment(tmp_path / "ts.xf").tilt_deg.tolist() == [-30, 0, 30]
    with pytest.raises(InputError, match=said):
        read_record(imod_folder(tmp_path, **{name: text}))


def test_imod_files_with_commas(tmp_path: Path) -> None:
    com = "$tilt\nTILTFILE ts.tlt\nFULLIMAGE 64,64\nXAXISTILT 1,94\nOFFSET 2.5\n"
    a = read_alignment(imod_folder(tmp_path, ts_xf="1,0 0,0 0,0 1,0 0,5 -1,25\n" * 3, tilt_com=com))
    assert a.image_size == (64, 64) and a.shift_px[1].tolist() == [0.5, -1.25]
    assert a.x_tilt_deg[0] == pytest.approx(1.94) and a.tilt_deg.tolist() == [-27.5, 2.5, 32.5]


def test_com_file_numbers_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "t.com").write_text("# a\n$tilt\nSHIFT 0.0 -30.0\nSCALE 1 x\n")
    command = read_command_file(tmp_path / "t.com", "tilt")
    assert command.numbers("SHIFT", 2) == [0, -30] and command.numbers("OFFSET", 1) == []
    with pytest.raises(InputError, match=r"t\.com: line 4: SCALE: 'x'"):
        command.numbers("SCALE", 2)


def test_a_warp_file_names_its_line(tmp_path: Path) -> None:
    text = "3\n11 9 1 1 2.5 1\n0 10 2 0 8 1\n1 0 0 1 0 0\n1 0 2 {}\n"
    (tmp_path / "w.xf").write_text(text.format("1.5D-01"))
    warp = read_warp(tmp_path / "w.xf").warp
    assert warp is not None and warp.vectors[0, 0, 1].tolist() == [2, 0.15]
    for bad in ("1_0", "inf", "****"):
        (tmp_path / "w.xf").write_text(text.format(bad))
        with pytest.raises(InputError, match=r"w\.xf: line 5"):
            read_warp(tmp_path / "w.xf")


# --- others


def test_an_mdoc_of_a_locale_with_commas(tmp_path: Path) -> None:
    text = "ImageSize = 64 48\n[T =     Tilt axis angle = -176,73, binning = 1  spot = 9]\n"
    for k in range(3):
        text += (
            f"[ZValue = {k}]\nTiltAngle = {k},25\nPixelSpacing = 2,71\nExposureDose = 3,5\nPriorRecordDose = {k},5\n"
        )
    (tmp_path / "a.mdoc").write_text(text)
    mdoc = read_mdoc(tmp_path / "a.mdoc")
    assert mdoc.axis_deg == -176.73 and mdoc.pixel_size_A == 2.71 and mdoc.image_size == (64, 48)
    assert mdoc.tilt_deg.tolist() == [0.25, 1.25, 2.25] and mdoc.dose_e_A2 is not None
    assert mdoc.dose_e_A2.tolist() == [3.5, 3.5, 3.5]
    (tmp_path / "a.mdoc").write_text(text.replace("-176,73", "-17673"))
    with pytest.raises(InputError, match=r"a\.mdoc: line 2: Tilt axis angle: '-17673'"):
        read_mdoc(tmp_path / "a.mdoc")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2 2000o 19000 30 0 0.1 12\n", "line 3: '2000o'"),
        ("2 20000 19000 30 0 0.1 12 foo\n", "line 3: 'foo'"),
        ("2 20 19 30 0 0.1 12\n", "line 3: 19 Å"),
        ("2 20000 19000 30 90 0.1 12\n", "line 3.*full turn"),
        ("2 20000 19000 inf 0 0.1 12\n", "line 3: 'inf'"),
    ],
)
def test_a_defocus_file_names_its_line(tmp_path: Path, row: str, said: str) -> None:
    first = "# Output\n1 20000,5 19000,5 30 0 0.1 {}\n"
    (tmp_path / "c.txt").write_text(first.format("inf"))
    assert read_ctf(tmp_path / "c.txt", 1).defocus_A[0] == pytest.approx(19500.5)  # of no ring: a resolution of inf
    (tmp_path / "c.txt").write_text(first.format("8.0") + row)
    with pytest.raises(InputError, match=said):
        read_ctf(tmp_path / "c.txt", 2)


def test_what_can_be_is_not_refused() -> None:
    check_tilt_angles(np.array([-90.4, 0.0, 90.4]), 3, "a")


@pytest.mark.parametrize("typed", ["nan", "inf", "1_0", "٣", "2,71", "0x2"])
def test_options_take_plain_numbers_alone(tmp_path: Path, typed: str) -> None:
    for main, option in ((align.main, "--pixel-size"), (fsc.main, "--cone"), (align.main, "--seed")):
        result = CliRunner().invoke(main, ["a.mrc", "b.mrc", option, typed])
        assert result.exit_code == 2 and typed in result.output and option in result.output
