"""Damaged text files of every kind are read whole or refused in a sentence; never a traceback, never a hang."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from inrtomo.alignment import Alignment
from inrtomo.batch.manifest import find_series
from inrtomo.batch.slurm_template import TEMPLATE, read_template
from inrtomo.batch.state import Batch
from inrtomo.batch.summary import summarise
from inrtomo.io.alignment_files import read_alignment, read_record, write_alignment
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.convert import write_record
from inrtomo.io.ctf import read_ctf
from inrtomo.io.images import open_images
from inrtomo.io.imod import read_x_tilt
from inrtomo.io.imod_local import read_local
from inrtomo.io.star import read_star, write_star
from inrtomo.report.run import read_run
from inrtomo.tiltseries import open_tilt_series
from tests.fuzzing import DAMAGE, damaged, fuzz, read_or_refused

pytestmark = pytest.mark.slow
Damage = list[tuple[str, int, str]]
SIZE = (512, 512)


# --- alignments ----------------------------------------------------------------------------------------------------

ALIGNMENTS = (
    "a.json", "a.xf", "a.tlt", "a_warp.xf", "newst.com", "tilt.com", "a.aln", "a.star", "tomograms.star", "old.star",
    "a.xml", "a.mdoc",
)  # fmt: skip
OF_IMOD = ("a.tlt", "a.xf", "a_warp.xf")
READ_BESIDE = {"a.tlt": "a.xf", "tilt.com": "a.xf"}
"""Files that are looked for beside another one."""


@pytest.fixture(scope="session")
def alignment_texts(shared_data: Path, tiny_series: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One alignment in every format, as text."""
    interop = shared_data / "interop"
    folder = tmp_path_factory.mktemp("formats")
    bent = read_record(interop / "aretomo" / "alnfile" / "global_and_local.aln")
    small = replace(bent.alignment, image_size=SIZE, pixel_size_A=10.0)
    for target in ("relion5", "warp"):
        write_record(folder, replace(bent, name="a", alignment=small), target, str(tiny_series / "ts.mrc"))
    write_alignment(folder, "a", small)
    table = read_star(folder / "tilt_series" / "a.star")["a"]
    n = len(table["rlnTomoYTilt"])
    table = {k: v for k, v in table.items() if not k.endswith(("Tilt", "ZRot", "ShiftAngst"))}
    turns = np.deg2rad(np.linspace(-60, 60, n))
    table |= {"rlnTomoProjX": [f"[{np.cos(a):.6f},0,{np.sin(a):.6f},7]" for a in turns]}
    table |= {"rlnTomoProjY": ["[0,1,0,0]"] * n}
    overview = read_star(folder / "tomograms.star")["global"]
    write_star(folder / "old.star", {"global": {k: v for k, v in overview.items() if "StarFile" not in k}, "a": table})
    written = ("a.xf", "a.tlt", "a_warp.xf", "newst.com", "tilt.com", "tomograms.star", "old.star", "a.xml")
    return {name: (folder / name).read_text() for name in written} | {
        "a.star": (folder / "tilt_series" / "a.star").read_text(),
        "a.json": json.dumps(alignment_to_dict(small)),
        "a.aln": (interop / "aretomo" / "alnfile" / "global_and_local.aln").read_text(),
        "a.mdoc": (interop / "mdoc" / "TS_01.mrc.mdoc").read_text(),
        "alocal.xf": (interop / "imod" / "BB" / "BBalocal.xf").read_text(),
    }


def lay_out(folder: Path, texts: dict[str, str], damaged_one: str, damage: Damage) -> Path:
    """The damaged file among sound ones that go with it."""
    (folder / "tilt_series").mkdir(exist_ok=True)
    beside = {"a.star": ("tomograms.star",), **dict.fromkeys([*OF_IMOD, "newst.com", "tilt.com"], OF_IMOD)}
    for old in folder.glob("*.*"):
        old.unlink()
    for name in beside.get(damaged_one, ()):
        (folder / name).write_text(texts[name])
    (folder / "tilt_series" / "a.star").write_text(texts["a.star"])
    text = damaged(texts[damaged_one], damage)
    (folder / damaged_one).write_text(text, encoding="utf-8")
    return folder / READ_BESIDE.get(damaged_one, damaged_one)


def assert_sound(alignment: Alignment) -> None:
    assert np.isfinite(alignment.linear).all() and np.isfinite(alignment.shift_px).all()
    assert np.isfinite(alignment.tilt_deg).all() and len(alignment.tilt_deg) == len(alignment.linear)
    if alignment.warp is not None:
        assert np.isfinite(alignment.warp.vectors).all()


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_sound_ones_are_read(alignment_texts: dict[str, str], tmp_path: Path, name: str) -> None:
    """Or else nothing would be tested below."""
    assert_sound(read_alignment(lay_out(tmp_path, alignment_texts, name, []), SIZE))


@pytest.mark.parametrize("name", ALIGNMENTS)
@fuzz
@given(damage=DAMAGE)
def test_alignments(alignment_texts: dict[str, str], tmp_path: Path, name: str, damage: Damage) -> None:
    path = lay_out(tmp_path, alignment_texts, name, damage)
    with read_or_refused("a.", "a_warp", name):
        assert_sound(read_alignment(path, SIZE))


@fuzz
@given(damage=DAMAGE)
def test_local_alignments(alignment_texts: dict[str, str], tmp_path: Path, damage: Damage) -> None:
    (tmp_path / "alocal.xf").write_text(damaged(alignment_texts["alocal.xf"], damage))
    with read_or_refused("alocal.xf"):
        local = read_local(tmp_path / "alocal.xf", 61, SIZE, 20.2)
        assert np.isfinite(local.linear).all() and np.isfinite(local.x).all()


@pytest.mark.parametrize("name", ["ts.rawtlt", "ts.mrc.mdoc"])
@fuzz
@given(damage=DAMAGE)
def test_angles_and_metadata(tiny_series: Path, tmp_path: Path, name: str, damage: Damage) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    (tmp_path / "ts.mrc").symlink_to(tiny_series / "ts.mrc")
    (tmp_path / name).write_text(damaged((tiny_series / name).read_text(), damage))
    with read_or_refused("ts."):
        series = open_tilt_series(tmp_path / "ts.mrc")
        assert np.isfinite(series.tilt_deg).all() and len(series.tilt_deg) == series.n_tilts


# --- all others ----------------------------------------------------------------------------------------------------

CTFFIND = "".join(f"{k}.000000 {20000 + 100 * k} {19000 + 100 * k} 30.0 0.0 0.1 12.5\n" for k in (1, 2, 3))
RECORD = {"attempts": 1, "message": "", "seconds": 1.0, "measured": {"residual_px": 0.4}, "tail": ["end"]}
RUN = {
    "alignment": alignment_to_dict(Alignment.identity(np.array([-3.0, 0.0, 3.0]), (64, 48))),
    "input": {"stack": "ts.mrc", "sources": {}, "nominal_tilt_deg": [-3.0, 0.0, 3.0]},
    "tracks": {"place_px": [[1.0, 2.0]], "residual_px": [0.2]}, "residual_px": [0.2, None, 0.1], "thickness_px": 30.0,
    "losses": [[4, 0, 1.0, 1.1]], "guard": {"chosen": "warp", "reason": "r"}, "notes": ["n"], "seconds": {"total": 1.0},
    "sigma_shift_px": [[0.1, 0.1]] * 3, "residual_rms_px": 0.2, "held_out_loss": 0.5, "working_bin": 1,
}  # fmt: skip


def batch_of(path: Path) -> object:
    """Everything that ``inr-batch status`` reads."""
    return summarise(Batch.open(path.parent.parent)).standing_out()


OTHERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a.txt": (f"# Output from CTFFind\n{CTFFIND}", lambda path: read_ctf(path, 3)),
    "a_CTF.txt": (f"# Columns: #1 micrograph\n{CTFFIND}".replace("12.5", "9.0 1"), lambda path: read_ctf(path, 3)),
    "a.defocus": ("1 0 0. 0. 0 3\n1 1 -3 -3 2000 2200 10\n3 3 3 3 3000 3000 10\n", lambda path: read_ctf(path, 3)),
    "a.xtilt": ("0.5\n" * 3, lambda path: read_x_tilt(path, 3)),
    "list.txt": ("# mine\nts.mrc\n\nts.mrc\n", open_images),
    "m.csv": ("stack, name, tilt_axis\na.mrc, a, 85\nb.mrc, b,\n", lambda path: find_series([str(path)], {})),
    "m.star": (
        "data_\n\nloop_\n_rlnTomoName #1\n_rlnTomoTiltSeriesName #2\na a.mrc\nb b.mrc:mrc\n",
        lambda path: find_series([str(path)], {}),
    ),
    "m.json": (
        json.dumps([{"stack": "a.mrc", "exclude": [1, 2]}, {"stack": "b.mrc", "tilt_axis": 85.0}]),
        lambda path: find_series([str(path)], {}),
    ),
    "site.sh": (TEMPLATE.replace("##SBATCH", "#SBATCH"), read_template),
    "ts_align.json": (json.dumps(RUN), read_run),
    "state/batch.json": (json.dumps({"command": "align", "options": ["--fast"], "from": None, "cwd": "/"}), batch_of),
    "state/series.jsonl": (json.dumps({"name": "a", "stack": "/a.mrc", "alignment": None, "options": {}}), batch_of),
    "state/a.done": (json.dumps(RECORD), batch_of),
    "state/a.claimed": (json.dumps({"host": "h", "place": "p", "pid": 1, "began": "1", "token": "0f"}), batch_of),
}


@pytest.mark.parametrize("name", OTHERS)
@fuzz
@given(damage=DAMAGE)
def test_others(tiny_series: Path, tmp_path: Path, name: str, damage: Damage) -> None:
    text, read = OTHERS[name]
    if not (tmp_path / "ts.mrc").exists():
        (tmp_path / "ts.mrc").symlink_to(tiny_series / "ts.mrc")
    for other, (sound, _) in OTHERS.items():
        if other.startswith("state/") and name.startswith("state/"):
            (tmp_path / other).parent.mkdir(exist_ok=True)
            (tmp_path / other).write_text(sound)
    (tmp_path / name).write_text(damaged(text, damage), encoding="utf-8")
    named = (str(tmp_path), "/dev/zero") if name == "list.txt" else (Path(name).name, "a.mrc", "b.mrc", "series ")
    with read_or_refused(*named):
        found = read(tmp_path / name)
        if name.endswith((".txt", ".defocus")) and name != "list.txt":
            assert np.isfinite(found.defocus_A).all() and len(found.defocus_A) == 3
