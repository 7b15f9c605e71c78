"""Which series a batch is given: tables in three formats, names that tell stacks apart, what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inrtomo.batch.manifest import Series, find_series, name_stacks, read_manifest
from inrtomo.batch.steps import STEPS, check_options, command_line, fitted
from inrtomo.commands._common import OneSentence
from inrtomo.errors import InputError

CSV = "stack,name,tilt_axis,tilt-angles,fast\na/ts1.mrc,one,-4.3,a/one.tlt,yes\nb/ts1.mrc,two,,,no\n"
STAR = """
data_series

loop_
_stack #1
_name #2
_tilt_axis #3
_tilt-angles #4
_fast #5
a/ts1.mrc one -4.3 a/one.tlt yes
b/ts1.mrc two None None no
"""
JSON = [
    {"stack": "a/ts1.mrc", "name": "one", "tilt_axis": -4.3, "tilt-angles": "a/one.tlt", "fast": "yes"},
    {"stack": "b/ts1.mrc", "name": "two", "fast": "no", "tilt_axis": None},
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two folders with a stack of the same name each, as some microscopes write them."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ts1.mrc").touch()
    (tmp_path / "a" / "one.tlt").touch()
    return tmp_path


@pytest.mark.parametrize(("name", "text"), [("m.csv", CSV), ("m.star", STAR), ("m.json", json.dumps(JSON))])
def test_tables(raw: Path, name: str, text: str) -> None:
    (raw / name).write_text(text)
    one, two = read_manifest(raw / name)
    angles = str(raw / "a" / "one.tlt")
    assert one == Series(
        "one", str(raw / "a/ts1.mrc"), None, {"tilt_axis": "-4.3", "tilt_angles": angles, "fast": "yes"}
    )
    assert two == Series("two", str(raw / "b/ts1.mrc"), None, {"fast": "no"})
    line = command_line(STEPS["align"], one, None, Path("out"), ["--seed", "1"])
    assert line == [
        one.stack, "-o", "out", "--resume", "--seed", "1", "--tilt-axis", "-4.3", "--tilt-angles", angles, "--fast",
    ]  # fmt: skip
    assert "--fast" not in command_line(STEPS["align"], two, None, Path("out"), [])


def test_relion_names_its_columns_otherwise(raw: Path) -> None:
    (raw / "tomograms.star").write_text(
        "data_global\n\nloop_\n_rlnTomoName #1\n_rlnTomoTiltSeriesName #2\n_rlnTomoTiltSeriesPixelSize #3\n"
        "_rlnVoltage #4\nTS_01 a/ts1.mrc:mrc 1.35 300\n"
    )
    (series,) = read_manifest(raw / "tomograms.star")
    assert (series.name, series.stack) == ("TS_01", str(raw / "a" / "ts1.mrc"))
    (kept,), left_out = fitted(STEPS["align"], [series])
    assert kept.options == {"pixel_size": "1.35"} and left_out == ["rlnVoltage"]


def test_paths_of_a_table_may_be_from_here(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (raw / "tables").mkdir()
    (raw / "tables" / "m.csv").write_text("stack,alignment\na/ts1.mrc,a/one.tlt\n")
    monkeypatch.chdir(raw)
    (series,) = read_manifest(Path("tables/m.csv"))
    assert series == Series("ts1", str(raw / "a/ts1.mrc"), str(raw / "a/one.tlt"), {})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.csv", "name\nts1\n", "no stack"),
        ("m.csv", "stack,name\nts1.mrc\n", "line 2"),
        ("m.csv", "stack\n", "lists no series"),
        ("m.csv", "stack,name\nts1.mrc,../up\n", "name of a folder"),
        ("m.csv", "stack,name\nts1.mrc,state\n", "name of a folder"),
        ("m.json", "[1]", "no list of series"),
        ("m.json", "[", "not JSON"),
        ("m.star", "data_x\n\nloop_\n_name #1\na\n", "no block"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_manifest(tmp_path / name)


def test_names_tell_stacks_apart(raw: Path) -> None:
    (raw / "a" / "other.mrc").touch()
    found = find_series([str(raw / "*" / "*.mrc"), str(raw / "a" / "ts1.mrc")], {})
    assert [one.name for one in found] == ["other", "a_ts1", "b_ts1"] or [one.name for one in found] == [
        "a_ts1", "other", "b_ts1",
    ]  # fmt: skip


def test_a_series_keeps_its_name(raw: Path) -> None:
    """A batch that knew one of two stacks of a name: the other one takes a longer name."""
    first, second = raw / "a" / "ts1.mrc", raw / "b" / "ts1.mrc"
    assert name_stacks([first, second], {str(first): "ts1"}) == {first: "ts1", second: "b_ts1"}
    strange = raw / "a" / "weird name (1).mrc"
    assert name_stacks([strange], {}) == {strange: "weird_name__1_"}
    assert name_stacks([raw / "a" / "state.mrc"], {}) == {raw / "a" / "state.mrc": "a_state"}
    same = [Path("/x.mrc"), Path("/x.st")]
    assert len(set(name_stacks(same, {}).values())) == 2


def test_halves_are_no_series(tmp_path: Path) -> None:
    for name in ("ts.mrc", "ts_odd.mrc", "ts_even.mrc", "only_EVN.st", ".part.mrc", "ts.rawtlt"):
        (tmp_path / name).touch()
    assert [one.name for one in find_series([str(tmp_path)], {})] == ["only_EVN", "ts"]


def test_what_is_not_there(tmp_path: Path) -> None:
    for given in (tmp_path / "no.mrc", tmp_path, tmp_path / "*.st"):
        with pytest.raises(InputError, match="check|give"):
            find_series([str(given)], {})


def test_one_name_twice(raw: Path) -> None:
    (raw / "m.csv").write_text("stack,name\na/ts1.mrc,x\nb/ts1.mrc,x\n")
    with pytest.raises(InputError, match="would be called x"):
        find_series([str(raw / "m.csv")], {})
    (raw / "m.csv").write_text("stack,name\na/ts1.mrc,x\na/ts1.mrc,x\n")
    with pytest.raises(InputError, match="twice"):
        find_series([str(raw / "m.csv")], {})


def test_options_for_all_are_checked_before_anything_runs() -> None:
    check_options(STEPS["align"], ["--fast", "--tilt-axis", "auto"])
    check_options(STEPS["recon"], ["--method", "sirt"])
    check_options(STEPS["fsc"], ["--mask", "slab"])
    with pytest.raises(OneSentence, match="--fsat"):
        check_options(STEPS["align"], ["--fsat"])
    with pytest.raises(OneSentence, match="is not one of"):
        check_options(STEPS["recon"], ["--method", "magic"])
    with pytest.raises(InputError, match="inr-batch's"):
        check_options(STEPS["align"], ["-o", "elsewhere"])


def test_a_fit_is_gone_on_with() -> None:
    """inr-recon --method field keeps checkpoints; the other methods know no --resume."""
    step, out = STEPS["recon"], Path("/rec/ts1")

    def words(*options: str, **columns: str) -> list[str]:
        return command_line(step, Series("ts1", "/raw/ts1.mrc", "/a.xf", columns), None, out, options)

    assert "--resume" in words("--method", "field") and "--resume" in words("--method=field", "--halves")
    assert "--resume" in words("--method", "sirt", method="field")
    assert "--resume" not in words() and "--resume" not in words("--method", "field", method="fbp")
    assert "--resume" not in words("--method", "magic")  # which the command refuses, with its own sentence


def test_what_later_commands_are_given() -> None:
    series, source, out = Series("ts1", "/raw/stack.st"), Path("/before"), Path("/rec/ts1")
    assert STEPS["recon"].arguments(series, source, out) == [
        "/raw/stack.st",
        "/before/ts1",
        "-o",
        "/rec/ts1/ts1_rec.mrc",
    ]
    assert STEPS["export"].arguments(series, source, out)[:2] == ["/raw/stack.st", "/before/ts1"]
    assert STEPS["fsc"].arguments(series, source, out)[0] == "/before/ts1/ts1_rec_odd.mrc"
    own = Series("ts1", "/raw/stack.st", "/my/ts1.xf")
    assert STEPS["recon"].arguments(own, source, out)[1] == "/my/ts1.xf"
    for step in ("recon", "fsc"):
        with pytest.raises(InputError, match="--from"):
            STEPS[step].arguments(series, None, out)
