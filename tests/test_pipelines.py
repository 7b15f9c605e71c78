"""The scripts in ``integration/pipelines``, run on a small series with the real commands of this package.

IMOD and WarpTools are not installed where tests run: `tests.stand_ins` stands for them, and checks what it is given.
RELION, cryoCARE, IsoNet2 and DeepDeWedge are not run; their files are read back and held against what they document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.imod import read_angles, read_xf
from inrtomo.io.mrc import open_stack, read_header, write_stack
from inrtomo.io.star import read_star, write_star
from inrtomo.metrics.alignment import compare_alignments
from inrtomo.tiltseries import open_tilt_series
from tests import stand_ins
from tests.running import ROOT, Inr

PIPELINES = ROOT / "integration" / "pipelines"
GOOD_PX = 1.2  # RMS error of a --fast alignment of the tiny series; without any it is 2.3


def run(script: str, *args: object, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, this checkout's commands and the stand-ins of ``folder/bin`` on its PATH."""
    path = [folder / "bin", ROOT / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    environment = {
        **os.environ, "PATH": os.pathsep.join(map(str, path)), "CALLS": str(folder / "calls"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    call = [str(PIPELINES / script), *map(str, args)]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def error_px(found: Path, tiny_series: Path) -> float:
    """RMS distance of an alignment from the truth."""
    series = open_tilt_series(tiny_series / "ts.mrc")
    truth = read_alignment(tiny_series / "ts_truth.json")
    return compare_alignments(read_alignment(found, series), truth, 30.0).gauge_free.rms_px


def copied(tiny_series: Path, folder: Path, ending: str = ".mrc") -> Path:
    """The raw stack and its angles in a folder of their own."""
    folder.mkdir(parents=True)
    stack = folder / f"ts{ending}"
    stack.write_bytes((tiny_series / "ts.mrc").read_bytes())
    (folder / "ts.rawtlt").write_bytes((tiny_series / "ts.rawtlt").read_bytes())
    return stack


@pytest.mark.slow
def test_etomo_folder(tiny_series: Path, tmp_path: Path) -> None:
    folder = tmp_path / "etomo"
    copied(tiny_series, folder, ".st")
    (folder / "xcorr.com").write_text("$tiltxcorr -StandardInput\nInputFile\tts.st\nRotationAngle\t0.0\n")
    (folder / "tilt.com").write_text("$tilt -StandardInput\nTHICKNESS 60\nEXCLUDELIST2 1,20-21\n")
    stand_ins.install(tmp_path / "bin", "submfg", "newstack", "tilt")
    run("etomo-folder", folder, "--fast", folder=tmp_path)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["submfg newst.com tilt.com", "newstack -StandardInput", "tilt -StandardInput"]
    assert "THICKNESS 60" in (folder / "tilt.com~").read_text()  # Etomo's own is kept
    assert "EXCLUDELIST2 1,20-21" in (folder / "tilt.com").read_text()
    assert read_header(folder / "ts_ali.mrc").shape == open_stack(folder / "ts.st").shape
    assert read_header(folder / "ts_full_rec.mrc").shape[0] == 96
    assert error_px(folder / "ts.xf", tiny_series) < GOOD_PX


def test_etomo_folder_says_what_is_missing(tiny_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)  # IMOD may be installed here
    copied(tiny_series, tmp_path / "etomo")
    said = run("etomo-folder", "etomo", folder=tmp_path, status=2).stderr
    assert "submfg is not on the PATH" in said
    stand_ins.install(tmp_path / "bin", "submfg", "newstack", "tilt")
    assert "RotationAngle" in run("etomo-folder", "etomo", folder=tmp_path, status=2).stderr
    (tmp_path / "etomo" / "ts.rawtlt").unlink()
    assert "BASE.rawtlt" in run("etomo-folder", "etomo", folder=tmp_path, status=2).stderr


@pytest.mark.slow
def test_aretomo_like(tiny_series: Path, tmp_path: Path) -> None:
    copied(tiny_series, tmp_path / "raw")
    call = "-InMrc raw/ts.mrc -OutMrc ts_rec.mrc -AngFile raw/ts.rawtlt -TiltAxis 0 1 -VolZ 40 -OutBin 2 -OutImod 2"
    said = run("aretomo-like", *call.split(), *"-FlipVol 1 -Gpu 0 1 -DarkTol 0.7".split(), folder=tmp_path).stderr
    assert "left out, without a counterpart here: -Gpu -DarkTol" in said
    assert read_header(tmp_path / "ts_rec.mrc").shape == (20, 48, 48)
    assert read_header(tmp_path / "ts_rec.mrc").pixel_size_A == pytest.approx(20.0)
    assert error_px(tmp_path / "ts_rec.aln", tiny_series) < GOOD_PX
    imod = tmp_path / "ts_rec_Imod"
    assert len(read_xf(imod / "ts_rec_st.xf")[0]) == read_header(imod / "ts_rec_st.mrc").shape[0] == 21
    again = run("aretomo-like", *call.split(), folder=tmp_path, status=2).stderr
    assert "ts_rec.mrc: is there already" in again


def test_aretomo_like_says_what_is_wrong(tmp_path: Path) -> None:
    for call, words in (
        ("-InMrc a.mrc", "-OutMrc"),
        ("-InMrc none.mrc -OutMrc b.mrc", "none.mrc: no such file"),
        ("-InMrc", "has no value"),
        ("ts.mrc -OutMrc b.mrc", "is no option"),
    ):
        assert words in run("aretomo-like", *call.split(), folder=tmp_path, status=2).stderr
    (tmp_path / "a.mrc").touch()
    for call, words in (("-OutImod 3", "inr-export"), ("-VolZ 12.5", "whole numbers"), ("-Wbp 1", "pixel size")):
        said = run("aretomo-like", "-InMrc", "a.mrc", "-OutMrc", "b.mrc", *call.split(), folder=tmp_path, status=2)
        assert words in said.stderr


def relion_project(tiny_series: Path, folder: Path, names: list[str]) -> list[int]:
    """A project after RELION's CTF estimation: single images in the order of recording, whose order is returned.

    Series other than ``ts`` lack their images.
    """
    series = open_tilt_series(tiny_series / "ts.mrc")
    order = np.argsort(np.abs(series.tilt_deg), kind="stable")
    job = folder / "CtfFind" / "job003"
    for name in names:
        (job / name).mkdir(parents=True)
        files = [f"CtfFind/job003/{name}/{k:03d}.mrc" for k in range(len(order))]
        table = {
            "rlnMicrographMovieName": [f"frames/{name}_{k}.tif" for k in range(len(order))],
            "rlnTomoNominalStageTiltAngle": [f"{series.tilt_deg[m]:.3f}" for m in order],
            "rlnTomoNominalTiltAxisAngle": ["0.0"] * len(order),
            "rlnMicrographPreExposure": [f"{3.0 * k:.1f}" for k in range(len(order))],
            "rlnMicrographName": files,
            "rlnDefocusU": [f"{30000 + k:.1f}" for k in range(len(order))],
            "rlnDefocusV": [f"{29000 + k:.1f}" for k in range(len(order))],
            "rlnDefocusAngle": ["45.0"] * len(order),
        }
        (job / "tilt_series").mkdir(exist_ok=True)
        write_star(job / "tilt_series" / f"{name}.star", {name: table})
        for k, m in enumerate(order if name == "ts" else ()):
            write_stack(folder / files[k], series.image(int(m))[None], 10.0)
    overview = {
        "rlnTomoName": names,
        "rlnTomoTiltSeriesStarFile": [f"CtfFind/job003/tilt_series/{name}.star" for name in names],
        "rlnVoltage": ["200.0"] * len(names),
        "rlnSphericalAberration": ["2.7"] * len(names),
        "rlnAmplitudeContrast": ["0.07"] * len(names),
        "rlnMicrographOriginalPixelSize": ["5.0"] * len(names),
        "rlnTomoHand": ["-1.0"] * len(names),
        "rlnTomoTiltSeriesPixelSize": ["10.0"] * len(names),
    }
    write_star(job / "tilt_series_ctf.star", {"global": overview})
    return [int(m) for m in order]


@pytest.mark.slow
def test_relion_5_step(tiny_series: Path, tmp_path: Path) -> None:
    """Single images in the order of recording, two series of which one is broken; CTF and movies are kept."""
    order = relion_project(tiny_series, tmp_path, ["broken", "ts"])
    given = ["--o", "External/job005/", "--in_mics", "CtfFind/job003/tilt_series_ctf.star", "--fast", "--j", "4"]
    said = run("relion5-align", *given, folder=tmp_path).stderr
    assert "not aligned and left out: broken" in said

    out = tmp_path / "External" / "job005"
    table = read_star(out / "aligned_tilt_series.star")["global"]
    assert table["rlnTomoName"] == ["ts"] and table["rlnVoltage"] == ["200.0"] and table["rlnTomoHand"] == ["-1.0"]
    assert table["rlnTomoTiltSeriesStarFile"] == ["External/job005/tilt_series/ts.star"]
    rows = read_star(out / "tilt_series" / "ts.star")["ts"]
    assert rows["rlnMicrographName"] == [f"CtfFind/job003/ts/{k:03d}.mrc" for k in range(len(order))]
    assert rows["rlnDefocusU"][:2] == ["30000.0", "30001.0"] and rows["rlnMicrographMovieName"][0] == "frames/ts_0.tif"
    assert len(rows["rlnTomoYTilt"]) == len(rows["rlnTomoXShiftAngst"]) == len(order)
    assert error_px(out / "tilt_series" / "ts.star", tiny_series) < GOOD_PX
    assert (out / "RELION_JOB_EXIT_SUCCESS").is_file()
    nodes = read_star(out / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes["rlnPipeLineNodeName"] == ["External/job005/aligned_tilt_series.star"]


def test_relion_5_step_says_what_is_missing(tmp_path: Path) -> None:
    assert "--in_mics" in run("relion5-align", "--o", "a", folder=tmp_path, status=2).stderr
    said = run("relion5-align", "--in_mics", "x.star", "--o", "External/job001/", folder=tmp_path, status=2).stderr
    assert "x.star: no such file" in said


@pytest.mark.slow
def test_warp_hand_over(tiny_series: Path, tmp_path: Path) -> None:
    folder = tmp_path / "warp_tiltseries"
    stack = copied(tiny_series, folder / "tiltstack" / "ts", ".st")
    (tmp_path / "warp.settings").touch()
    stand_ins.install(tmp_path / "bin", "WarpTools")
    options = "--tilt-axis 0 --fast --exclude 0,19-20"
    run("warp-align", folder, "--settings", "warp.settings", *options.split(), folder=tmp_path)
    call = (tmp_path / "calls").read_text().split()
    assert call[:2] == ["WarpTools", "ts_import_alignments"] and float(call[-1]) == 10.0
    recorded = read_angles(stack.with_suffix(".rawtlt"))
    cut = read_angles(stack.with_name("ts_cutviews0.rawtlt"))
    np.testing.assert_allclose(cut, recorded[[0, 19, 20]])
    whole, _ = read_xf(folder / "inr_align" / "ts" / "ts.xf", 21)
    np.testing.assert_array_equal(read_xf(stack.with_suffix(".xf"), 18)[0], whole[1:19])


def test_odd_and_even_for_denoisers(inr: Inr, tiny_series: Path, tmp_path: Path) -> None:
    made = tmp_path / "rec" / "ts_rec.mrc"
    made.parent.mkdir()
    options = "--bin 2 --thickness 40 --halves --normalize --exclude 20 --ctf 3 --orientation xyz".split()
    result = inr("recon", tiny_series / "ts.mrc", tiny_series / "ts_truth.json", "-o", made, *options)
    assert result.exit_code == 0, result.output
    said = run("denoiser-inputs", "rec/ts_rec.mrc", "-o", "denoise", folder=tmp_path)
    assert "isCTFflipped" in said.stderr and "1 tomograms" in said.stdout
    out = tmp_path / "denoise"

    def resolved(program: str, name: str) -> Path:
        return (out / program / name).resolve()

    odd, even = made.with_name("ts_rec_odd.mrc"), made.with_name("ts_rec_even.mrc")
    train = json.loads((out / "cryocare" / "train_data_config.json").read_text())
    assert resolved("cryocare", train["even"][0]) == even and resolved("cryocare", train["odd"][0]) == odd
    assert train["tilt_axis"] == "Y" and train["patch_shape"] == [16] * 3  # no patch is thicker than the tomogram
    predict = json.loads((out / "cryocare" / "predict_config.json").read_text())
    assert [p.name for p in resolved("cryocare", predict["even"]).iterdir()] == ["ts_rec.mrc"]
    model = json.loads((out / "cryocare" / "train_config.json").read_text())
    assert predict["path"] == f"{model['model_name']}.tar.gz" and model["train_data"] == train["path"]

    star = read_star(out / "isonet2" / "tomograms.star")[""]
    assert resolved("isonet2", star["rlnTomoName"][0]) == made
    assert resolved("isonet2", star["rlnTomoReconstructedTomogramHalf1"][0]) == even
    assert resolved("isonet2", star["rlnTomoReconstructedTomogramHalf2"][0]) == odd
    angles = open_tilt_series(tiny_series / "ts.mrc").tilt_deg
    truth = read_alignment(tiny_series / "ts_truth.json").tilt_deg
    assert float(star["rlnTiltMin"][0]) == pytest.approx(truth[0], abs=0.01)
    assert float(star["rlnTiltMax"][0]) == pytest.approx(truth[19], abs=0.01) and angles[20] == 60
    assert float(star["rlnDefocus"][0]) == 30000 and float(star["rlnPixelSize"][0]) == 20
    assert len(star) == 16 and star["rlnMaskName"] == ["None"]

    lines = [line.strip() for line in (out / "deepdewedge" / "config.yaml").read_text().splitlines()]
    files = [line.strip('- "') for line in lines if line.startswith("- ")]
    assert [resolved("deepdewedge", name) for name in files] == [even, odd]
    wedge = next(float(line.split(":")[1]) for line in lines if line.startswith("mw_angle"))
    assert wedge == round(180 - (truth[19] - truth[0]))
    box = next(int(line.split(":")[1]) for line in lines if line.startswith("subtomo_size"))
    assert box % 8 == 0 and box * 2**0.5 <= 20
    assert "exists already" in run("denoiser-inputs", made, "-o", "denoise", folder=tmp_path, status=2).stderr
    record = made.with_suffix(".json")
    record.write_text(record.read_text().replace('"orientation": "xyz"', '"orientation": "imod"'))
    assert "--orientation xyz" in run("denoiser-inputs", made, "-o", "no", folder=tmp_path, status=2).stderr
    odd.unlink()
    assert "--halves" in run("denoiser-inputs", made, "-o", "no", folder=tmp_path, status=2).stderr
