"""What is taken of other programs' files is declared once: the page, the command and the sentences agree with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from inrtomo.io import aretomo, relion, warp
from inrtomo.io.alignment_files import read_record
from inrtomo.io.explained import FORMATS, page
from inrtomo.io.keys import Fate, Key, left_out, sentences
from inrtomo.io.mdoc import MDOC
from inrtomo.io.mdoc import NUMBERS as MDOC_NUMBERS
from tests.running import ROOT, Inr, assert_refused

# --- the page and the command


def test_the_page_is_what_the_readers_declare() -> None:
    assert (ROOT / "docs" / "formats.md").read_text(encoding="utf-8") == page(), (
        "python -m inrtomo.io.explained > docs/formats.md"
    )


@pytest.mark.parametrize("name", ["etomo", "imod", "aretomo", "relion5", "warp", "mdoc", "json"])
def test_the_command_needs_no_files(inr: Inr, name: str) -> None:
    done = inr("convert", "--explain", name)
    assert done.exit_code == 0
    for section in FORMATS["etomo" if name == "imod" else name]:
        assert section.title in done.stdout
        assert all(key.name in done.stdout and key.meaning in done.stdout for key in section.keys)


def test_an_unknown_format_is_refused(inr: Inr) -> None:
    assert_refused(inr("convert", "--explain", "dynamo"), "dynamo", "aretomo")


def test_every_key_is_declared_once() -> None:
    for section in (section for sections in FORMATS.values() for section in sections):
        names = [key.name.upper() for key in section.keys]
        assert len(names) == len(set(names)), section.title


def test_what_the_readers_look_up_is_declared() -> None:
    """A reader that took a key which its table does not have would be found here."""
    tables = {
        "aln": ({*aretomo.HEADER, *aretomo.COLUMNS}, aretomo.ALN.keys),
        "star": ({*relion.QUANTITIES} - {key.name for key in relion.OVERVIEW.keys}, relion.SERIES.keys),
        "xml": ({*warp.QUANTITIES} - {"CTF PixelSize"}, warp.XML.keys),
        "mdoc": ({*MDOC_NUMBERS}, MDOC.keys),
    }
    for name, (looked_up, keys) in tables.items():
        assert looked_up <= {key.name for key in keys if key.fate is not Fate.NO_MATTER} | {"NumPatches"}, name


def test_sentences() -> None:
    keys: tuple[Key, ...] = (*left_out("one meaning", "A", "B", usual=("0",)), *left_out("another", "C"))
    assert sentences("f", {"A": "0.00", "B": "", "C": ""}, keys) == []
    assert sentences("f", {"A": "3 4", "C": "x"}, keys) == [
        "f: A 3 4 is left out: one meaning",
        "f: C x is left out: another",
    ]
    assert sentences("f", {"A": ["0", "0"], "B": ["0", "1"]}, keys) == ["f: B is left out: one meaning"]
    assert sentences("f", {"A": ["2"], "B": ["1"], "other": "1"}, keys) == ["f: A, B are left out: one meaning"]


# --- AreTomo, RELION, Warp


ROW = "{} -10.6 {} 1.5 -2.5 {} {}\n"


def aln(gmag: str = "1.00000", scales: str = "1 1 1 0", header: str = "", local: str = "") -> str:
    rows = "".join(ROW.format(k, gmag, scales, 3 * k) for k in range(3))
    return f"# AreTomo Alignment\n# RawSize = 128 96 3\n{header}# SEC ROT ...\n{rows}{local}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (aln(gmag="1.02"), "GMAG is left out"),
        (aln(scales="1 1 0.5 0"), "SCALE is left out"),
        (aln(scales="0.9 0.8 1 0.1"), "SMEAN, SFIT are left out"),
        (aln(header="# BetaOffset = 4.5\n"), "BetaOffset 4.5 is left out"),
        (aln(header="# GammaOffset = 4.5\n"), "GammaOffset is not known"),
        (aln(header="# NumPatches = 2\n", local="# Local Alignment\n0 0 0 0 1 1 1\n"), "1 rows of local alignment"),
    ],
)
def test_what_an_aln_says_beside_the_alignment(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.aln").write_text(text)
    notes: list[str] = []
    read_record(tmp_path / "a.aln", None, notes)
    assert len([note for note in notes if said in note and note.startswith("a.aln: ")]) == 1


def test_an_ordinary_aln_has_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "a.aln").write_text(aln(header="# NumPatches = 0\n# AlphaOffset = 2.0\n# BetaOffset = 0.00\n"))
    notes: list[str] = []
    read_record(tmp_path / "a.aln", None, notes)
    assert notes == ["a.aln: sections count from 0"]


def star(folder: Path, general: str = "", column: str = "", value: str = "") -> list[str]:
    columns = ["rlnTomoYTilt", "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst", *[column] * bool(column)]
    text = f"data_global\n\n_rlnTomoName ts\n_rlnTomoTiltSeriesPixelSize 2.0\n{general}\ndata_ts\n\nloop_\n"
    text += "".join(f"_{name}\n" for name in columns) + "".join(f"{3 * k} 5 1 2 {value}\n" for k in range(3))
    (folder / "a.star").write_text(text)
    notes: list[str] = []
    read_record(folder / "a.star", (128, 96), notes)
    return notes


@pytest.mark.parametrize(
    ("general", "column", "value", "said"),
    [
        ("_rlnTomoHand 1\n", "", "", "rlnTomoHand is left out"),
        ("_rlnMagMat01 0.003\n", "", "", "rlnMagMat01 is left out"),
        ("", "rlnDefocusU", "31000", "rlnDefocusU is left out"),
        ("", "rlnTomoDeformationCoefficients", "[0,0.5]", "nothing says its grid"),
    ],
)
def test_what_a_star_says_beside_the_alignment(
    tmp_path: Path, general: str, column: str, value: str, said: str
) -> None:
    notes = star(tmp_path, general, column, value)
    assert len(notes) == 1 and said in notes[0] and notes[0].startswith("a.star: ")


@pytest.mark.parametrize(
    ("general", "column", "value"),
    [("_rlnTomoHand -1.000\n", "", ""), ("_rlnMagMat00 1.0\n", "", ""), ("", "rlnCtfMaxResolution", "9"),
     ("", "rlnTomoDeformationCoefficients", "[0,0]")],
)  # fmt: skip
def test_an_ordinary_star_has_nothing_to_say(tmp_path: Path, general: str, column: str, value: str) -> None:
    assert star(tmp_path, general, column, value) == []


def xml(folder: Path, attributes: str = "", elements: str = "") -> list[str]:
    size = 'ImageDimensionsAngstrom="256, 192"'
    ctf = '<CTF><Param Name="PixelSize" Value="2"/></CTF>'
    (folder / "a.xml").write_text(
        f"<TiltSeries {size} {attributes}><Angles>3\n0\n-3</Angles>{ctf}{elements}</TiltSeries>"
    )
    notes: list[str] = []
    read_record(folder / "a.xml", None, notes)
    return notes


@pytest.mark.parametrize(
    ("attributes", "elements", "said"),
    [
        ('AreAnglesInverted="True"', "", "AreAnglesInverted True is left out"),
        ('MagnificationCorrection="1.006, 0, 0, 1"', "", "MagnificationCorrection 1.006, 0, 0, 1 is left out"),
        ('UnselectManual="True"', "", "UnselectManual True is left out"),
        ("", '<GridAngleX><Node X="0" Y="0" Z="0" Value="0.4"/></GridAngleX>', "GridAngleX is left out"),
        ("", '<GridCTF><Node X="0" Y="0" Z="0" Value="2.4"/></GridCTF>', "GridCTF is left out"),
    ],
)
def test_what_a_warp_xml_says_beside_the_alignment(tmp_path: Path, attributes: str, elements: str, said: str) -> None:
    notes = xml(tmp_path, attributes, elements)
    assert len(notes) == 1 and said in notes[0] and notes[0].startswith("a.xml: ")


def test_an_ordinary_warp_xml_has_nothing_to_say(tmp_path: Path) -> None:
    usual = 'AreAnglesInverted="False" MagnificationCorrection="1, 0, 0, 1" UnselectManual="" PlaneNormal="0, 0.1, 1"'
    flat = '<GridAngleX><Node X="0" Y="0" Z="0" Value="0"/></GridAngleX>'
    assert xml(tmp_path, usual, flat) == []
