"""Defocus files of three programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.io.ctf import read_ctf, read_defocus

CTFFIND = "# Output from CTFFind\n# Columns: #1 - micrograph number; #2 - defocus 1 [Angstroms]\n"


def read(path: Path, text: str, n: int = 3) -> list[float]:
    path.write_text(text)
    return read_defocus(path, n).tolist()


def test_ctffind(tmp_path: Path) -> None:
    rows = "".join(f"{k}.000000 {20000 + 100 * k} {19000 + 100 * k} 30.0 0.0 0.1 12.5\n" for k in (1, 2, 3))
    assert read(tmp_path / "a.txt", CTFFIND + rows) == [19600, 19700, 19800]


def test_aretomo_with_a_missing_image(tmp_path: Path) -> None:
    rows = "   1   20000.0  20000.0  5.0 0.0 0.2 9.0 1\n   3   30000.0  30000.0  5.0 0.0 0.2 inf 1\n"
    assert read(tmp_path / "ts_CTF.txt", "# Columns: #1 micrograph number\n" + rows) == [20000, 25000, 30000]


def test_imod_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.defocus"
    assert read(path, "1 1 -3 -3 2000 2\n2 3 0 3 2500\n") == [20000, 25000, 25000]
    assert read(path, "0 0 -3 -3 2000\n1 2 0 3 2500\n") == [20000, 25000, 25000]
    assert read(path, "0 0 0. 0. 0 3\n1 2 -3 0 2000\n2 3 0 3 3000\n") == [20000, 25000, 30000]
    assert read(path, "1 0 0. 0. 0 3\n1 1 -3 -3 2000 2200 10\n3 3 3 3 3000 3000 10\n") == [21000, 25500, 30000]


def test_the_hand_and_whether_it_was_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    row = "{} 20000.0 20000.0 5.0 0.0 0.2 9.0{}\n"
    for text, hand, known in (
        (CTFFIND + row.format(1, "") + row.format(3, ""), 1, False),
        (CTFFIND + row.format(1, " 1") + row.format(3, " 1"), 1, True),
        (CTFFIND + row.format(1, " -1") + row.format(3, " -1"), -1, True),
        (CTFFIND + row.format(1, " -1") + row.format(3, " 1"), 1, False),
        ("1 3 -3 3 2000 2\n", 1, False),
        ("0 0 0. 0. 0 3\n1 3 -3 3 2000\n", 1, True),
        ("16 0 0. 0. 0 3\n1 3 -3 3 2000\n", -1, True),
    ):
        path.write_text(text)
        found = read_ctf(path, 3)
        assert (found.hand, found.hand_known) == (hand, known), text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "defocus 2.5\n",
        "1 1 0 0\n",
        "1 9 -3 3 2000 2\n",
        "1 1 0 0 nan 2\n",
        "1 1 0 0 -2000 2\n",
        "1.5 2 0 0 2000 2\n",
        "5 0 0. 0. 0 3\n1 1 0 0 2000 2000 30\n",
        "1 0 0. 0. 0 3\n1 1 0 0 2000 2000 nan\n",
        CTFFIND,
        CTFFIND + "1 2.5 2.5 0 0 0 0\n",
        CTFFIND + "1 20000\n",
        CTFFIND + "7 20000 20000 0 0 0 0\n",
    ],
)
def test_what_is_no_defocus(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="a.txt"):
        read(tmp_path / "a.txt", text)


def test_every_image_gets_a_number(tmp_path: Path) -> None:
    assert np.isfinite(read(tmp_path / "a.defocus", "2 2 0 0 2000 2\n", 7)).all()


def test_astigmatism_phase_and_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(CTFFIND + "1 20000 19000 30 1.5707963 0.1 12\n3 19000 20000 -60 0 0.1 inf\n")
    ctf = read_ctf(path, 3)
    assert ctf.defocus_A.tolist() == [19500] * 3
    # the second defocus is larger: the direction of the larger one is 90 degrees from the angle given
    assert ctf.astigmatism_A == pytest.approx([1000] * 3)
    assert ctf.astigmatism_deg == pytest.approx([30] * 3)
    assert ctf.phase_shift_deg == pytest.approx([90, 45, 0])
    assert ctf.hand == 1
    path.write_text(CTFFIND + "1 20000 19000 30 0 0.1 12 -1\n2 20000 19000 30 0 0.1 12 -1\n")
    assert read_ctf(path, 2).hand == -1


def test_columns_of_imod_version_3(tmp_path: Path) -> None:
    path = tmp_path / "a.defocus"
    path.write_text("31 0 0. 0. 0 3\n1 1 -3 -3 2200 2000 0.5235988 1.5707963\n2 2 0 0 2200 2000 0.5235988 0\n")
    ctf = read_ctf(path, 2)
    assert ctf.defocus_A.tolist() == [21000, 21000]
    assert ctf.astigmatism_A == pytest.approx([2000, 2000])
    assert ctf.astigmatism_deg == pytest.approx([30, 30])
    assert ctf.phase_shift_deg == pytest.approx([90, 0])
    assert ctf.hand == -1
    path.write_text("4 0 0. 0. 0 3\n1 2 -3 0 2200 90\n")
    assert read_ctf(path, 2).phase_shift_deg == pytest.approx([90, 90])
    assert read_ctf(path, 2).astigmatism_A.tolist() == [0, 0]


AN_IMAGE = "{} {} {} 10.0 0.0 0.1 8.0 1\n"


def a_table(images: object, defocus: object) -> str:
    rows = zip(np.asarray(images), np.asarray(defocus), strict=True)
    return "# Columns: #1 micrograph number\n" + "".join(AN_IMAGE.format(k, d, d) for k, d in rows)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.arange(1, 38), "37 rows, numbered 1 to 37, for 41 images"),
        (np.arange(5, 42), "37 rows, numbered 5 to 41, for 41 images"),
        (np.r_[1:41, 40], "image 40 more than once"),
        (np.r_[1:42, 42], "image 42 of 41"),
    ],
)
def test_a_table_of_other_images_is_refused(tmp_path: Path, images: np.ndarray, said: str) -> None:
    (tmp_path / "a.txt").write_text(a_table(images, 20000 + 100 * images))
    with pytest.raises(InputError, match=said):
        read_ctf(tmp_path / "a.txt", 41)


def test_a_table_of_the_images_in_use(tmp_path: Path) -> None:
    """AreTomo numbers those that are not dark; as many rows as the alignment uses images, and it is said."""
    kept = [k for k in range(41) if k not in (0, 1, 20, 40)]
    (tmp_path / "a.txt").write_text(a_table(np.arange(1, 38), 20000 + 100 * np.array(kept)))
    notes: list[str] = []
    found = read_ctf(tmp_path / "a.txt", 41, notes, kept)
    assert found.defocus_A[kept] == pytest.approx(20000 + 100 * np.array(kept))
    assert len(notes) == 1 and "37 rows for 41 images" in notes[0]
    with pytest.raises(InputError, match="37 rows"):
        read_ctf(tmp_path / "a.txt", 41, kept=kept[1:])


def test_what_lies_between_rows_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "a.txt").write_text(a_table([1, 2, 5], [20000, 21000, 24000]))
    assert read_ctf(tmp_path / "a.txt", 5, notes).defocus_A.tolist() == [20000, 21000, 22000, 23000, 24000]
    assert len(notes) == 1 and "images 3, 4 (from 1) are interpolated" in notes[0]
    notes = []
    (tmp_path / "a.txt").write_text(a_table([3, 1, 2], [22000, 20000, 21000]))
    assert read_ctf(tmp_path / "a.txt", 3, notes).defocus_A.tolist() == [20000, 21000, 22000] and not notes
    (tmp_path / "a.defocus").write_text("3 5 0 0 2000 2\n8 9 0 0 2300\n")
    assert read_ctf(tmp_path / "a.defocus", 10, notes).defocus_A[[0, 5, 6, 9]].tolist() == [20000, 21000, 22000, 23000]
    assert len(notes) == 1 and "views 1-2,6-7,10" in notes[0]


def test_single_views_of_imod_by_their_angle(tmp_path: Path) -> None:
    """One view a line is a table by image, and has its angles: in another order, or without the dark images."""
    tilt = np.arange(-30, 31, 10.0)
    text = "".join(f"{k + 1} {k + 1} {t} {t} {2000 + 10 * t:.1f}{' 2' * (k == 0)}\n" for k, t in enumerate(tilt))
    (tmp_path / "a.defocus").write_text(text)
    notes: list[str] = []
    order = np.array([3, 4, 2, 5, 1, 6, 0])
    found = read_ctf(tmp_path / "a.defocus", 7, notes, tilt_deg=tilt[order])
    assert found.defocus_A == pytest.approx(20000 + 100 * tilt[order]) and len(notes) == 1
    more = np.arange(-50, 31, 10.0)
    assert read_ctf(tmp_path / "a.defocus", 9, tilt_deg=more).defocus_A[2:] == pytest.approx(20000 + 100 * tilt)
    with pytest.raises(InputError, match="7 rows, numbered 1 to 7, for 9 images"):
        read_ctf(tmp_path / "a.defocus", 9, tilt_deg=more * 1.4 + 3)
    with pytest.raises(InputError, match="order -30, -20"):
        read_ctf(tmp_path / "a.defocus", 7, tilt_deg=np.array([60.0, -50, 40, 55, -10, 58, 3]))


def test_inverted_angles_of_imod_leave_the_views_where_they_are(tmp_path: Path) -> None:
    """Flag 16: the tilt angles were inverted; view 1 is still the first image, and not the last one."""
    tilt = np.arange(-30, 31, 10.0)
    text = "16 0 0 0 0 3\n" + "".join(f"{k + 1} {k + 1} {-t} {-t} {2000 + k}\n" for k, t in enumerate(tilt))
    (tmp_path / "a.defocus").write_text(text)
    notes: list[str] = []
    found = read_ctf(tmp_path / "a.defocus", 7, notes, tilt_deg=tilt)
    assert found.defocus_A == pytest.approx(20000 + 10 * np.arange(7)) and found.hand == -1 and not notes


def test_ranges_of_views_of_other_angles_are_said(tmp_path: Path) -> None:
    tilt = np.arange(-60, 61, 10.0)
    text = "".join(f"{k + 1} {k + 3} {tilt[k]} {tilt[k + 2]} {2000 + k}{' 2' * (k == 0)}\n" for k in range(0, 11, 2))
    (tmp_path / "a.defocus").write_text(text)
    notes: list[str] = []
    read_ctf(tmp_path / "a.defocus", 13, notes, tilt_deg=tilt + 2)
    assert not notes
    read_ctf(tmp_path / "a.defocus", 13, notes, tilt_deg=tilt[np.argsort(np.abs(tilt), kind="stable")])
    assert len(notes) == 1 and "angles of its views" in notes[0]
