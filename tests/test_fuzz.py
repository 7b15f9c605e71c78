"""Damaged files of every kind are read whole or refused in a sentence; never a traceback, never a hang."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment, read_record
from inrtomo.io.convert import write_record
from inrtomo.io.imod_local import read_local
from inrtomo.tiltseries import open_tilt_series

pytestmark = pytest.mark.slow
fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NUMBERS = st.sampled_from("0 1 -1 2 -4 255 1024 -2147483648 2147483647 65536 nan inf 1e39 ts.mrc [T ZValue = #".split())
DAMAGE = st.lists(st.tuples(st.sampled_from(["drop", "repeat", "replace", "cut"]), st.integers(0, 10**6), NUMBERS))


def damaged(text: str, damage: list[tuple[str, int, str]]) -> str:
    """``text`` with words dropped, repeated, replaced, or everything after one cut off."""
    words = text.split(" ")
    for kind, at, word in damage:
        if not words:
            break
        i = at % len(words)
        if kind == "cut":
            del words[i:]
        else:
            words[i : i + 1] = {"drop": [], "repeat": [words[i]] * 2, "replace": [word]}[kind]
    return " ".join(words)


@fuzz
@given(st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 2**31 - 1, -1, -(2**31), 7, 1024]))), st.data())
def test_mrc_headers(tiny_series: Path, tmp_path: Path, words: list[tuple[int, int]], data: st.DataObject) -> None:
    raw = bytearray((tiny_series / "ts.mrc").read_bytes())
    for at, value in words:
        raw[4 * at : 4 * at + 4] = np.int32(value).tobytes()
    path = tmp_path / "ts.mrc"
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 1024, 1000]))])
    (tmp_path / "ts.rawtlt").write_text((tiny_series / "ts.rawtlt").read_text())
    try:
        series = open_tilt_series(path)
        for i in range(series.n_tilts):
            assert series.image(i).shape == series.size[::-1]
    except InputError as error:
        assert "ts." in str(error)


@pytest.mark.parametrize("name", ["ts.rawtlt", "ts.mrc.mdoc"])
@fuzz
@given(damage=DAMAGE)
def test_angles_and_metadata(tiny_series: Path, tmp_path: Path, name: str, damage: list[tuple[str, int, str]]) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    (tmp_path / "ts.mrc").symlink_to(tiny_series / "ts.mrc")
    (tmp_path / name).write_text(damaged((tiny_series / name).read_text(), damage))
    try:
        series = open_tilt_series(tmp_path / "ts.mrc")
        assert np.isfinite(series.tilt_deg).all() and len(series.tilt_deg) == series.n_tilts
    except InputError as error:
        assert "ts." in str(error)


@pytest.fixture(scope="session")
def alignment_texts(shared_data: Path, tiny_series: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One alignment of every format, as text."""
    interop = shared_data / "interop"
    folder = tmp_path_factory.mktemp("formats")
    series = open_tilt_series(tiny_series / "ts.mrc")
    bent = read_record(interop / "aretomo" / "alnfile" / "global_and_local.aln")
    small = replace(bent.alignment, image_size=(512, 512), pixel_size_A=10.0)
    for target in ("relion5", "warp"):
        write_record(folder, replace(bent, name="a", alignment=small), target, str(series.path))
    return {
        "a.json": (tiny_series / "ts_truth.json").read_text(),
        "a.xf": (interop / "imod" / "BB" / "BBa.xf").read_text(),
        "a.star": (folder / "tilt_series" / "a.star").read_text(),
        "tomograms.star": (folder / "tomograms.star").read_text(),
        "a.xml": (folder / "a.xml").read_text(),
        "alocal.xf": (interop / "imod" / "BB" / "BBalocal.xf").read_text(),
        "a.aln": (interop / "aretomo" / "alnfile" / "global_and_local.aln").read_text(),
    }


@pytest.mark.parametrize("name", ["a.json", "a.xf", "a.aln", "a.star", "tomograms.star", "a.xml"])
@fuzz
@given(damage=DAMAGE)
def test_alignments(
    alignment_texts: dict[str, str], tmp_path: Path, name: str, damage: list[tuple[str, int, str]]
) -> None:
    path = tmp_path / name
    (tmp_path / "tilt_series").mkdir(exist_ok=True)
    (tmp_path / "tilt_series" / "a.star").write_text(alignment_texts["a.star"])
    if name == "a.star":
        (tmp_path / "tomograms.star").write_text(alignment_texts["tomograms.star"])
    path.write_text(damaged(alignment_texts[name], damage))
    (tmp_path / "a.tlt").write_text(
        "".join(f"{a}\n" for a in np.linspace(-60, 60, alignment_texts["a.xf"].count("\n")))
    )
    try:
        alignment = read_alignment(path, (512, 512))
        assert np.isfinite(alignment.linear).all() and np.isfinite(alignment.shift_px).all()
    except InputError as error:
        assert name in str(error) or "a." in str(error)


@fuzz
@given(damage=DAMAGE)
def test_local_alignments(alignment_texts: dict[str, str], tmp_path: Path, damage: list[tuple[str, int, str]]) -> None:
    (tmp_path / "alocal.xf").write_text(damaged(alignment_texts["alocal.xf"], damage))
    try:
        local = read_local(tmp_path / "alocal.xf", 61, (512, 512), 20.2)
        assert np.isfinite(local.linear).all() and np.isfinite(local.x).all()
    except InputError as error:
        assert "alocal.xf" in str(error)
