"""inr-report: the page, its numbers and verdict, and what it refuses; the page opened in a real browser (slow)."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.mrc import open_stack, write_volume
from inrtomo.report.consistency import consistency_of
from inrtomo.report.verdict import CHECK, FAILED, GOOD, Evidence, judge
from tests.running import Inr, assert_refused

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
THICKNESS_PX = 30.0


class Sources(HTMLParser):
    """What a page refers to, and the text it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.text += data


def write_run(folder: Path, alignment: Alignment, stack: Path, **changes: object) -> Path:
    """An output folder with the keys of inr-align's JSON."""
    folder.mkdir()
    n = alignment.n_tilts
    rng = np.random.default_rng(0)
    nothing = alignment_to_dict(Alignment.identity(alignment.tilt_deg, alignment.image_size))
    values = {
        "excluded_tilts": [{"tilt": i, "reason": why} for i, why in alignment.excluded.items()],
        "sigma_shift_px": np.full((n, 2), 0.05).tolist(),
        "held_out_loss": 0.61,
        "residual_px": [None if m in alignment.excluded else 0.2 for m in range(n)],
        "residual_rms_px": 0.2,
        "tracks": {"place_px": (40 * rng.normal(size=(30, 2))).tolist(), "residual_px": [0.2] * 30},
        "thickness_px": THICKNESS_PX,
        "tomogram_height_px": 40,
        "losses": [[4, k, 1.0 / (k + 1), 1.1 / (k + 1)] for k in range(20)],
        "guard": {"chosen": "linear", "reason": "no <warp> & nothing to judge"},
        "notes": ["a note with <b>markup</b> & ampersand"],
        "alignment": alignment_to_dict(alignment),
        "start_alignment": nothing,
        "input": {"stack": str(stack), "sources": {}, "nominal_tilt_deg": alignment.tilt_deg.tolist()},
        "working_bin": 1,
        "seconds": {"total": 12.0},
        "versions": {"inrtomo": "0.1.0"},
        "command": "inr-align ts.mrc -o out",
        **changes,
    }
    (folder / "ts_align.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="session")
def truth(tiny_series: Path) -> Alignment:
    return read_alignment(tiny_series / "ts_truth.json")


@pytest.fixture
def run_folder(tmp_path: Path, tiny_series: Path, truth: Alignment) -> Path:
    return write_run(tmp_path / "out", replace(truth, excluded={2: "dark <here>"}), tiny_series / "ts.mrc")


@pytest.fixture
def fsc_json(tmp_path: Path) -> Path:
    frequency = np.linspace(0.01, 0.05, 10)
    curve = {"correlation": np.linspace(1, 0, 10).tolist(), "components": [9] * 10, "resolution_A": {}}
    values: dict[str, object] = {"frequency_per_A": frequency.tolist(), "curves": {"corrected": curve}}
    values |= {"curve": "corrected", "threshold": 0.143, "resolution_A": 22.5, "convention": "half maps"}
    path = tmp_path / "fsc.json"
    path.write_text(json.dumps(values))
    return path


def test_page_is_self_contained_and_says_what_is_known(
    inr: Inr, run_folder: Path, fsc_json: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    volume = rng.normal(size=(24, 48, 40)).astype(np.float32) * np.hanning(24)[:, None, None].astype(np.float32)
    tomogram = write_volume(tmp_path / "rec.mrc", volume, 20.0)
    result = inr("report", run_folder, "--tomogram", tomogram, "--fsc", fsc_json)
    assert result.exit_code == 0, result.output
    html = (run_folder / "ts_report.html").read_text()
    page = Sources()
    page.feed(html)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search("https?://", re.sub(r"data:[^\"']*", "", html))
    for heading in ("The series, before and after", "Profiles along the tilt axis", "Slices: rec.mrc", "Thickness",
                    "Shift, rotation and tilt", "Residual of every tilt", "Residual of every track", "Held-out loss",
                    "Fourier shell correlation"):  # fmt: skip
        assert heading in page.text, heading
    assert "dark <here>" in page.text and "<b>markup</b>" in page.text, "text is not escaped"
    assert "inr-align ts.mrc -o out" in page.text and "22.5 Å" in page.text
    numbers = json.loads((run_folder / "ts_report.json").read_text())
    assert numbers["verdict"] == GOOD and numbers["disagreement_px"] < 0.5 and numbers["recognised_patches"] == 1
    assert numbers["excluded_tilts"] == 1 and numbers["flagged_tilts"][0]["tilt"] == 2
    assert numbers["flagged_tilts"][0]["acquired"] == numbers["per_tilt"][2]["acquired"], "counted from 1 in both"
    assert sorted(tilt["acquired"] for tilt in numbers["per_tilt"]) == list(range(1, 22))
    assert len(numbers["per_tilt"]) == 21 and numbers["per_tilt"][2]["disagreement_px"] is None
    assert numbers["resolution_A"] == 22.5 and numbers["tracks"] == 30
    profile = numbers["thickness_profile"]
    assert profile["height_px"][0] == pytest.approx(-23.0), "20 Å voxels of 10 Å images, 24 of them"
    (row,) = csv.DictReader((run_folder / "ts_Metrics.csv").read_text().splitlines())
    assert row["Tilt_Series"] == "ts" and row["Verdict"] == GOOD and float(row["Thickness(Pix)"]) == THICKNESS_PX
    assert float(row["Disagreement(Pix)"]) == pytest.approx(numbers["disagreement_px"], abs=1e-4)


def test_without_images_nothing_is_vouched_for(
    inr: Inr, run_folder: Path, tiny_series: Path, tmp_path: Path, truth: Alignment
) -> None:
    away = write_run(tmp_path / "away", truth, tmp_path / "gone.mrc", sigma_shift_px=None, losses=[], tracks=None)
    result = inr("report", away, "-o", tmp_path / "new" / "p")
    assert result.exit_code == 0 and "check: the raw images are not at hand" in result.output, result.output
    page = Sources()
    page.feed((tmp_path / "new" / "p_report.html").read_text())
    for what in ("movie", "--stack", "--tomogram", "--error-bars"):
        assert what in page.text
    assert "the _report.json beside it" in page.text  # which is not called after the series, but as -o says
    assert inr("report", away, "--stack", tiny_series / "ts.mrc").exit_code == 0
    assert json.loads((away / "ts_report.json").read_text())["verdict"] == GOOD


def test_disagreement_is_the_error_of_the_shifts(tiny_series: Path, truth: Alignment) -> None:
    """Jitter of 2 px is measured as what it is, one bad tilt is named, and no alignment is none."""
    stack = open_stack(tiny_series / "ts.mrc")
    rng = np.random.default_rng(3)

    def evidence(alignment: Alignment) -> Evidence:
        return Evidence.of_alignment(alignment, consistency_of(stack.image, alignment, THICKNESS_PX))

    right = evidence(truth)
    assert judge(right).word == GOOD and right.bad_tilts == ()
    jitter = 2 * rng.normal(size=truth.shift_px.shape)
    spoiled = evidence(replace(truth, shift_px=truth.shift_px + jitter))
    rms = float(np.sqrt((jitter**2).sum(axis=1).mean()))
    assert spoiled.disagreement == pytest.approx(rms, rel=0.35) and judge(spoiled).word != GOOD
    shift = truth.shift_px.copy()
    shift[7] += (5.0, -3.0)
    one = evidence(replace(truth, shift_px=shift))
    assert 7 in one.bad_tilts and judge(one).word == CHECK and "7" in judge(one).reasons[-1]
    hopeless = replace(truth, shift_px=12 * rng.normal(size=truth.shift_px.shape))
    assert judge(evidence(hopeless)).word == FAILED


def test_rule() -> None:
    good = Evidence(40, 2, False, 0.4, 0.8, 1.0)
    assert judge(good).word == GOOD
    for change, word in (
        ({"disagreement": 1.0}, CHECK), ({"disagreement": 2.5}, FAILED), ({"recognised": 0.8}, CHECK),
        ({"recognised": 0.4}, FAILED), ({"excluded": 9}, CHECK), ({"excluded": 21}, FAILED),
        ({"axis_is_guess": True}, CHECK), ({"bad_tilts": (3,)}, CHECK), ({"disagreement": None}, CHECK),
        ({"disagreement": float("nan"), "recognised": 0.0}, FAILED), ({"doubts": ("it may be otherwise",)}, CHECK),
        ({"wrong_start": ("the tilt axis does not fit",)}, FAILED),
    ):  # fmt: skip
        verdict = judge(replace(good, **change))  # type: ignore[arg-type]
        assert verdict.word == word and verdict.reasons, change


def test_refusals(inr: Inr, run_folder: Path, tiny_series: Path, tmp_path: Path, truth: Alignment) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("{}")
    damaged = write_run(tmp_path / "damaged", truth, tmp_path / "gone.mrc", residual_px=[1.0, 2.0])
    missing = write_run(tmp_path / "missing", truth, tmp_path / "gone.mrc", thickness_px=None)
    other = write_run(tmp_path / "other", replace(truth, image_size=(90, 96)), tiny_series / "ts.mrc")
    cases: list[tuple[tuple[object, ...], tuple[str, ...]]] = [
        ((tmp_path / "empty",), ("empty", "BASE_align.json")),
        ((tmp_path / "none",), ("none",)),
        ((tmp_path / "text.json",), ("text.json",)),
        ((damaged,), ("damaged", "run inr-align again")),
        ((missing,), ("ts_align.json", "run inr-align again")),
        ((other,), ("ts.mrc", "96 x 96", "90 x 96")),
        ((run_folder, "--stack", tmp_path / "none.mrc"), ("none.mrc",)),
        ((run_folder, "--tomogram", tmp_path / "none.mrc"), ("none.mrc",)),
        ((run_folder, "--tomogram", tmp_path / "text.json"), ("text.json",)),
        ((run_folder, "--fsc", tmp_path / "text.json"), ("text.json", "inr-fsc")),
    ]
    for args, words in cases:
        assert_refused(inr("report", *args, "-o", tmp_path / "no"), *words)
        assert not list(tmp_path.glob("no_*")), args


def test_nothing_is_overwritten_unasked(inr: Inr, run_folder: Path) -> None:
    (run_folder / "ts_report.json").write_text("precious")
    assert_refused(inr("report", run_folder), "ts_report.json", "--overwrite")
    assert (run_folder / "ts_report.json").read_text() == "precious"
    assert not (run_folder / "ts_report.html").exists()
    assert inr("report", run_folder, "--overwrite").exit_code == 0


@pytest.mark.slow
def test_browser_shows_every_picture(inr: Inr, run_folder: Path, fsc_json: Path, tmp_path: Path) -> None:
    """Every image is decoded, the movie's frames too; the slider works; the script ends without an error."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs chromium (apt-get install chromium), which is not here")
    assert inr("report", run_folder, "--fsc", fsc_json).exit_code == 0
    html = (run_folder / "ts_report.html").read_text()
    probe = """<script>
      addEventListener("error", e => document.title = "error " + e.message);
      addEventListener("securitypolicyviolation", e => document.title = "violation " + e.blockedURI);
      const frames = [...movie.before, ...movie.after].map(src => Object.assign(new Image(), { src }));
      at.value = 0; at.oninput();
      const all = [...document.images, ...frames];
      // not i.decode(), which waits for a frame that a headless browser may never draw
      const loaded = i => i.complete || new Promise(done => { i.onload = i.onerror = done; });
      Promise.all(all.map(loaded)).then(() => {
        const broken = all.filter(i => !i.complete || i.naturalWidth === 0).length;
        const wide = document.documentElement.scrollWidth > innerWidth;
        document.title = `images ${all.length} broken ${broken} wide ${wide} label ${label.value}`;
      });
    </script></body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(html.replace("</body>", probe))
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--window-size=1200,2000", "--virtual-time-budget=20000", "--dump-dom", probed.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    said = re.fullmatch(r"images (\d+) broken 0 wide false label (.*)", title.group(1))
    assert said is not None, title.group(1)
    assert int(said.group(1)) >= 2 * 21 + 6 and "(image 0, acquired as 1)" in said.group(2)
