"""Defocus files of three programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.io.ctf import read_defocus

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
