"""Names are data: none of them leads out of a folder, or says something of its own in another program's file."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.batch.manifest import read_manifest
from inrtomo.batch.page import page
from inrtomo.batch.state import Batch
from inrtomo.batch.summary import Row, Summary
from inrtomo.commands import align, batch, convert, simulate
from inrtomo.errors import InputError
from inrtomo.io import imod
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.convert import write_record
from inrtomo.io.mrc import write_stack
from inrtomo.io.names import fits_com, safe_name, shown
from inrtomo.io.series_record import SeriesRecord
from inrtomo.io.star import read_star, write_star
from inrtomo.report.figures import slices

ROOT = Path(__file__).parents[1]
LEADING_ELSEWHERE = ["../../../x", "/tmp/x", "a/b", "..", ".", "", "x\0y"]
BREAKING_LINES = ["x\n$touch made", "x\ry", "x\x0by", "x\x85y", "x\u2028y", "x\x1b[2Jy", "x\udcff"]
OTHERS = ["-o", ".hidden", " x", "x ", "x" * 300, "ä" * 150]
USUAL = ["TS_01", "2024-05-01 grid 3", "Position_1_2", "a+b=c,d@e", "[1]", "tomo(2)", "ts.01", "série", "a:b*c?"]
FORMATS = ["imod", "aretomo", "outimod1", "relion5", "warp", "json"]


def record(name: str) -> SeriesRecord:
    a = Alignment.identity(np.array([-30.0, 0.0, 30.0]), (64, 48), 5.0, 10.0)
    return SeriesRecord(a, name, a.tilt_deg, np.array([3.0, 0.0, 6.0]), thickness_px=20.0)


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", LEADING_ELSEWHERE + BREAKING_LINES + OTHERS)
def test_names_that_no_file_can_have_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(InputError) as refused:
        safe_name(name, "tomograms.star")
    said = str(refused.value)
    assert said.startswith("tomograms.star: ") and said.isprintable() and len(said) < 400


@pytest.mark.parametrize("name", USUAL)
def test_usual_names_are_taken(name: str, tmp_path: Path) -> None:
    assert safe_name(name, "x") == name
    for target in FORMATS:
        paths, _ = write_record(tmp_path / target, record(name), target)
        assert all(path.is_file() and path.resolve().is_relative_to(tmp_path / target) for path in paths)


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("name", ["../../../x", "/tmp/inr-x", "a/b", "..", "x\ny", ""])
def test_nothing_is_written_for_a_series_with_a_bad_name(target: str, name: str, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "c" / "d"
    out.mkdir(parents=True)
    before = everything_in(tmp_path)
    with pytest.raises(InputError):
        write_record(out, record(name), target)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("target", FORMATS)
def test_a_star_file_cannot_write_elsewhere(target: str, tmp_path: Path) -> None:
    """The name of a series in a list of RELION's, and in a JSON of ours."""
    project = tmp_path / "a" / "b" / "project"
    write_record(project, record("ts"), "relion5")
    write_stack(project / "ts.mrc", np.zeros((3, 48, 64), dtype=np.float32), 10.0)
    overview = read_star(project / "tomograms.star")
    overview["global"]["rlnTomoName"] = ["../../../x"]
    write_star(project / "tomograms.star", overview, overwrite=True)
    (project / "ts.json").write_text(json.dumps({**_json(record("ts")), "name": "../../../x"}))
    before = everything_in(tmp_path)
    for source in ("tomograms.star", "ts.json"):
        words = [str(project / source), str(project / "out"), "--to", target]
        said = CliRunner().invoke(convert.main, words)
        assert said.exit_code == 2 and source in said.output and "../../../x" in said.output
        assert len(said.output.strip().splitlines()) == 1
    assert everything_in(tmp_path) == before


def _json(one: SeriesRecord) -> dict[str, object]:
    return {"alignment": alignment_to_dict(one.alignment), "pixel_size_A": 10.0}


def test_an_old_list_cannot_have_a_file_elsewhere_rewritten(tmp_path: Path) -> None:
    """Where one series gets deformations, the others of the list do; their names come from a file."""
    folder = tmp_path / "job"
    write_record(folder, record("one"), "relion5")
    outside = tmp_path / "job" / "x.star"
    overview = read_star(folder / "tomograms.star")
    table = {key: values * 2 for key, values in overview["global"].items()}
    table["rlnTomoName"], table["rlnTomoTiltSeriesStarFile"] = ["one", "../x"], ["tilt_series/one.star", str(outside)]
    write_star(folder / "tomograms.star", {"global": table}, overwrite=True)
    write_star(outside, {"../x": read_star(folder / "tilt_series" / "one.star")["one"]})
    before = outside.read_bytes()
    x = np.linspace(-40, 40, 5)
    vectors = np.random.default_rng(0).normal(size=(3, 5, 5, 2))
    moving = replace(record("one").alignment, warp=LocalWarp(x, x, vectors, "bicubic"))
    _, notes = write_record(folder, replace(record("one"), alignment=moving), "relion5", None, overwrite=True)
    assert outside.read_bytes() == before
    assert any("../x" in note for note in notes)


# --- what other programs read --------------------------------------------------------------------------------------

COM = ["a'b", 'a"b', "a`b`", "a$HOME", "a%x", "a\\b", "a#b", "=a", "a\n$touch x", ">a\r$x"]


@pytest.mark.parametrize("name", COM)
def test_com_files_hold_no_name_that_imod_would_act_upon(name: str) -> None:
    """IMOD makes ``'line'`` of every line, NAME of ``%NAME``, and cuts at a #; a line with $ or > first is run."""
    assert not fits_com(name)
    for given in ((name, "s.mrc", "a.mrc"), ("b", name, "a.mrc"), ("b", "s.mrc", name)):
        with pytest.raises(InputError, match="com file"):
            imod.newst_com(*given)
        with pytest.raises(InputError, match="com file"):
            imod.tilt_com(given[0], given[1], given[2], (64, 48), 20)


def test_com_files_keep_blanks_and_folders(tmp_path: Path) -> None:
    (tmp_path / "newst.com").write_text(imod.newst_com("grid 3", "../raw data/grid 3.mrc", "grid 3_ali.mrc"))
    command = imod.read_command_file(tmp_path / "newst.com", "newstack")
    assert command.value("InputFile") == "../raw data/grid 3.mrc"
    assert command.value("TransformFile") == "grid 3_warp.xf"


@pytest.mark.parametrize("name", ["x\n$touch made", "it's", "a$b", "a`b", "-x"])
def test_a_stack_with_a_bad_name_is_refused_before_the_work(name: str, tiny_series: Path, tmp_path: Path) -> None:
    stack = tmp_path / f"{name}.mrc"
    stack.write_bytes((tiny_series / "ts.mrc").read_bytes())
    angles = str(tiny_series / "ts.rawtlt")
    out = str(tmp_path / "out")
    said = CliRunner().invoke(align.main, ["-o", out, "--tilt-angles", angles, "--tilt-axis", "0", "--", str(stack)])
    assert said.exit_code == 2 and "rename it" in said.output and len(said.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    said = CliRunner().invoke(convert.main, ["--stack", str(stack), str(tiny_series / "ts_truth.json"), out])
    assert said.exit_code == 2 and len(said.output.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


WORDS = ["a b", "a'b", 'a"b', "a 'b'", 'a "b"', "data_x", "loop_", "_x", "#x", ";x", "$x", "", "a#b", "'a", '"a']


def test_star_words_come_back_as_they_were(tmp_path: Path) -> None:
    path = write_star(tmp_path / "x.star", {"ts 1": {"first": WORDS, "rlnTomoName": WORDS[::-1]}})
    assert read_star(path) == {"ts 1": {"first": WORDS, "rlnTomoName": WORDS[::-1]}}


def test_star_files_as_the_starfile_package_reads_them(tmp_path: Path) -> None:
    """Another program's reader finds the same words; ours leaves quotes inside to it."""
    starfile = pytest.importorskip("starfile")
    words = ["a b", "data_x", "loop_", "_x", "#x", "TS_01"]
    path = write_star(tmp_path / "x.star", {"global": {"rlnTomoName": words, "rlnVoltage": ["300"] * len(words)}})
    assert starfile.read(path)["rlnTomoName"].tolist() == words


@pytest.mark.parametrize("word", ["a\nb", "a\rb", "a\0b", "a 'b\" c"])
def test_words_that_no_star_file_can_hold_are_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_star(tmp_path / "x.star", {"global": {"rlnTomoName": [word]}})
    assert not (tmp_path / "x.star").exists()


@pytest.mark.parametrize("target", ["warp", "relion5"])
def test_names_of_images_stay_on_their_line(target: str, tmp_path: Path) -> None:
    images = ("1@a.mrc", "2@a.mrc\nevil.mrc", "3@a.mrc")
    with pytest.raises(InputError, match="control characters"):
        write_record(tmp_path / "out", replace(record("ts"), images=images), target)
    assert everything_in(tmp_path) == set()


def test_pictures_take_any_title(tmp_path: Path) -> None:
    """A name between dollars is no formula, nor a broken one."""
    volume = np.random.default_rng(0).normal(size=(8, 12, 12))
    for title in ("a$b", r"$\frac$", "$x_1$: tomogram"):
        assert slices(volume, tmp_path / "x.png", title).stat().st_size > 1000


def test_messages_show_names_on_one_line() -> None:
    assert shown("a\nb\x1b[2J\udcff") == r"a\nb\x1b[2J\udcff"
    assert shown("x" * 50, 10) == "x" * 9 + "…"


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "..", "state", "summary.csv", "-x", ".x", "a b\n", "x" * 300]
)
def test_tables_cannot_name_folders_elsewhere(name: str, tmp_path: Path) -> None:
    table = tmp_path / "series.json"
    table.write_text(json.dumps([{"name": name, "stack": "a.mrc"}]))
    with pytest.raises(InputError, match=r"series\.json"):
        read_manifest(table)


@pytest.mark.parametrize("row", [{"stack": "a\0.mrc"}, {"stack": "a\n.mrc"}, {"stack": "a.mrc", "alignment": "b\0"}])
def test_tables_hold_no_paths_that_no_command_can_be_given(row: dict[str, str], tmp_path: Path) -> None:
    table = tmp_path / "series.json"
    table.write_text(json.dumps([row]))
    with pytest.raises(InputError, match="control characters") as refused:
        read_manifest(table)
    assert str(refused.value).isprintable()


def test_the_memory_of_a_batch_cannot_either(tmp_path: Path) -> None:
    (tmp_path / "out" / "state").mkdir(parents=True)
    made = Batch(tmp_path / "out", "align")
    made.save()
    row: dict[str, object] = {"name": "../../x", "stack": "a.mrc", "alignment": None, "options": {}}
    (made.state / "series.jsonl").write_text(json.dumps(row) + "\n")
    said = CliRunner().invoke(batch.main, ["align", "-o", str(tmp_path / "out")])
    assert said.exit_code == 2 and "series.jsonl" in said.output
    assert not (tmp_path.parent / "x").exists()


def test_a_simulation_stays_in_its_folder(tmp_path: Path) -> None:
    said = CliRunner().invoke(simulate.main, [str(tmp_path / "a"), "--base", "../x"])
    assert said.exit_code == 2 and everything_in(tmp_path) == set()


class _Links(html.parser.HTMLParser):
    """Links and elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.elements: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.links += [value or "" for key, value in attrs if key == "href"]


def test_the_page_of_a_batch_holds_names_as_text(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>'\" #1%20?&"
    rows = [Row(name, "/a.mrc", "failed", "a <b>message</b>", 1, 2.0, {}, ("<script>",))]
    found = _Links(page(Summary(Batch(tmp_path, "align"), rows), "now"))
    assert "img" not in found.elements and found.elements.count("script") == 1
    assert found.links and all(re.fullmatch(r"[\w/.%-]+", link) for link in found.links)
    assert {unquote(link) for link in found.links} == {f"{name}/", f"state/{name}.log"}


def test_a_slurm_script_has_no_line_of_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from inrtomo.batch import slurm
    from inrtomo.batch.slurm_template import TEMPLATE

    (tmp_path / "template.sh").write_text(TEMPLATE)
    for name in ("out\ntouch made", "50%"):
        with pytest.raises(InputError):
            slurm.submit(Batch(tmp_path / name, "align"), [], tmp_path / "template.sh")
    assert everything_in(tmp_path) == {"template.sh"}


# --- scripts for other programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "a*", "$(touch_made)", "`touch_made`", "-x", "a'b"])
def test_relion_script_makes_no_files_elsewhere(name: str, tmp_path: Path) -> None:
    project = tmp_path / "a" / "project"
    project.mkdir(parents=True)
    (project / "in.star").write_text(
        f"data_global\n\nloop_\n_rlnTomoName #1\n_rlnTomoTiltSeriesStarFile #2\n_rlnTomoTiltSeriesPixelSize #3\n"
        f"{name} ts.star 10.0\n"
    )
    (project / "ts.star").write_text("data_ts\n\nloop_\n_rlnMicrographName #1\n1@ts.mrc\n")
    script = ROOT / "integration" / "pipelines" / "relion5-align"
    ran = subprocess.run(
        ["sh", script, "--in_mics", "in.star", "--o", "job/"], cwd=project, capture_output=True, text=True
    )
    assert ran.returncode == 2 and name in ran.stderr and "rename it" in ran.stderr
    made = {path for path in everything_in(tmp_path) if path.startswith("a/project/job/")}
    assert made <= {f"a/project/job/{n}" for n in ("stacks", "tilt_series", "series.list", "RELION_JOB_EXIT_FAILURE")}


def test_etomo_script_does_not_reckon_with_what_a_com_file_says(tmp_path: Path) -> None:
    """Arithmetic of a shell runs commands that stand in it."""
    (tmp_path / "ts.mrc").write_bytes(b"x")
    (tmp_path / "ts.rawtlt").write_text("0\n")
    (tmp_path / "align.com").write_text("RotationAngle 5.0\n")
    (tmp_path / "tilt.com").write_text("EXCLUDELIST a[$(touch${IFS}made)]\n")
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for program in ("inr-align", "submfg", "newstack", "tilt"):
        (stubs / program).write_text("#!/bin/sh\nexit 3\n")
        (stubs / program).chmod(0o755)
    script = ROOT / "integration" / "pipelines" / "etomo-folder"
    path = f"{stubs}:/usr/bin:/bin"
    ran = subprocess.run(["bash", script, tmp_path], env={"PATH": path}, capture_output=True, text=True)
    assert ran.returncode == 2 and "EXCLUDELIST" in ran.stderr and not (tmp_path / "made").exists()
