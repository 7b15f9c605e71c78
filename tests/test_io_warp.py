"""Warp's XML against positions that Warp computed, and what is written read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.geometry import centre_index
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.star import read_star
from inrtomo.io.warp import read_warp_xml, write_warp_xml
from tests.test_io_relion import small

FOLDER = Path("interop/warp/warpylib_TS_1_10491")


def test_positions_are_warps_own(shared_data: Path) -> None:
    """27 points in all tilts, movement grids included, to a thousandth of a pixel."""
    record = read_warp_xml(shared_data / FOLDER / "TS_1.xml")
    a = record.alignment
    assert a.image_size == (5760, 4092) and a.pixel_size_A == 0.834 and a.warp is not None and not a.excluded
    assert record.thickness_px == 1000 and record.images is not None and record.images[0].endswith("11.05.12.tif")
    blocks = read_star(shared_data / FOLDER / "TS_1.star")
    points, seen = (
        {name: np.array(column, dtype=float) for name, column in blocks[block].items() if name[0] != "i"}
        for block in ("points", "mappings")
    )
    centre = np.array([n / 2 - centre_index(n) for n in a.image_size])
    specimen = np.stack([points[f"centeredCoordinate{axis}Angst"] for axis in "XYZ"], axis=1) / 0.834
    images = np.stack([seen[f"centeredCoordinate{axis}Angst"] for axis in "XY"], axis=1) / 0.834 + centre
    tilts = seen["tiltID"].astype(int) - 1
    for m in range(a.n_tilts):
        chosen = specimen[seen["pointID"].astype(int)[tilts == m] - 1]
        assert a.specimen_to_raw(m, chosen) == pytest.approx(images[tilts == m], abs=1e-3)


def test_written_and_read_back(tmp_path: Path) -> None:
    record = small(1.5)
    a = replace(record.alignment, excluded={0: "bad"})
    notes = write_warp_xml(tmp_path / "01.xml", replace(record, alignment=a), volume_px=(80, 60, 20))
    assert any("GridMovement" in note for note in notes)
    back = read_warp_xml(tmp_path / "01.xml")
    b = back.alignment
    assert b.image_size == (81, 60) and b.pixel_size_A == 2 and list(b.excluded) == [0] and back.thickness_px == 20
    assert b.tilt_deg.tolist() == [-30, 0, 30] and b.x_tilt_deg == pytest.approx(np.full(3, 1.5))
    u = np.stack(np.meshgrid(np.linspace(-20, 20, 9), np.linspace(-30, 30, 9)), axis=-1)
    for m in (1, 2):
        assert b.aligned_to_raw(m, u) == pytest.approx(a.aligned_to_raw(m, u), abs=0.02)
    text = (tmp_path / "01.xml").read_text()
    assert "<Angles>30.000000\n0.000000\n-30.000000</Angles>" in text  # minus IMOD's


def test_an_xml_that_is_there_keeps_its_ctf(tmp_path: Path) -> None:
    path = tmp_path / "01.xml"
    write_warp_xml(path, small())
    path.write_text(path.read_text().replace("</CTF>", '<Param Name="Defocus" Value="2.5"/></CTF>'))
    with pytest.raises(InputError, match="--overwrite"):
        write_warp_xml(path, small())
    notes = write_warp_xml(path, small(2.0), overwrite=True)
    assert 'Value="2.5"' in path.read_text() and any("keeps" in note for note in notes)
    assert read_alignment(path).x_tilt_deg == pytest.approx(np.full(3, 2.0))
    assert path.read_text().count("<Angles>") == 1


def test_a_warped_volume_is_read_at_its_middle(tmp_path: Path) -> None:
    """A shift that is the same everywhere is exact; one that grows with z is said to be lost."""
    record = replace(small(), alignment=small().alignment.without_warp())
    write_warp_xml(tmp_path / "01.xml", record, volume_px=(80, 60, 20))
    plain = read_alignment(tmp_path / "01.xml")
    text = (tmp_path / "01.xml").read_text()
    at = text.index("<GridVolumeWarpX")
    node = '<Node X="0" Y="0" Z="0" W="0" Value="0" />'
    assert node in text[at:]
    (tmp_path / "a.xml").write_text(text[:at] + text[at:].replace('Value="0"', 'Value="3"', 1))
    bent = read_alignment(tmp_path / "a.xml")
    for m in range(3):
        point = np.array([5.0, -7.0, 0.0])
        moved = point + [1.5, 0, 0]  # 3 Å
        assert bent.specimen_to_raw(m, point) == pytest.approx(plain.specimen_to_raw(m, moved), abs=1e-3)
    deep = (
        '<GridVolumeWarpX Width="1" Height="1" Depth="2" Duration="1"><Node Z="0" Value="-4"/><Node Z="1" Value="4"/>'
    )
    end = text.index("</GridVolumeWarpX>")
    (tmp_path / "b.xml").write_text(text[:at] + deep + text[end:])
    notes: list[str] = []
    assert read_alignment(tmp_path / "b.xml", notes=notes).warp is None  # nothing moves in the middle
    assert any("up to 1.99 px" in note for note in notes)  # 4 Å, most of it along y


@pytest.mark.parametrize(("axis", "side"), [("Width", "X"), ("Height", "Y")])
def test_a_volume_that_is_stretched_from_side_to_side(tmp_path: Path, axis: str, side: str) -> None:
    """Two nodes make a line: -4 Å at one side of the volume and 4 at the other, 0 in the middle."""
    record = replace(small(2.0), alignment=small(2.0).alignment.without_warp())
    write_warp_xml(tmp_path / "01.xml", record, volume_px=(80, 60, 20))
    plain = read_alignment(tmp_path / "01.xml")
    text = (tmp_path / "01.xml").read_text()
    at, end = text.index("<GridVolumeWarpX"), text.index("</GridVolumeWarpX>")
    nodes = f'<Node {side}="0" Value="-4"/><Node {side}="1" Value="4"/>'
    (tmp_path / "a.xml").write_text(text[:at] + f'<GridVolumeWarpX {axis}="2">' + nodes + text[end:])
    bent = read_alignment(tmp_path / "a.xml")
    for m in range(3):
        for point in ([12.0, -7.0, 0.0], [-20.0, 15.0, 0.0]):
            along = point[0] / 40 if side == "X" else point[1] / 30
            moved = np.array(point) + [2 * along, 0, 0]
            seen = bent.specimen_to_raw(m, np.array(point))
            assert seen == pytest.approx(plain.specimen_to_raw(m, moved), abs=0.02)


BOMB = '<!DOCTYPE t [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><TiltSeries><Angles>&b;</Angles></TiltSeries>'


@pytest.mark.parametrize(
    "text",
    [
        "not xml",
        "<a/>",
        "<TiltSeries/>",
        "<TiltSeries><Angles>x</Angles></TiltSeries>",
        "<TiltSeries><Angles>nan</Angles></TiltSeries>",
        "<TiltSeries><Angles>1</Angles><AxisAngle>1\n2</AxisAngle></TiltSeries>",
        '<TiltSeries ImageDimensionsAngstrom="1"><Angles>1</Angles></TiltSeries>',
        '<TiltSeries><Angles>1</Angles><GridMovementX Width="99999" Height="99999" Depth="9"/></TiltSeries>',
        '<TiltSeries><Angles>1</Angles><GridMovementX Width="2"><Node X="5" Value="1"/></GridMovementX></TiltSeries>',
        "<TiltSeries><Angles>1</Angles><UseTilt>True\nFalse</UseTilt></TiltSeries>",
        BOMB,
    ],
)
def test_what_is_no_warp_series(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match="a.xml"):
        read_warp_xml(tmp_path / "a.xml", (64, 64), 2.0)
