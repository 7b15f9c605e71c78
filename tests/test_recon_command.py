"""``inr-recon`` beyond back-projection: methods, halves, CTF, what is written beside the tomogram, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from inrtomo.commands import _tomogram_run
from inrtomo.commands.recon import OWN_OPTIONS
from inrtomo.io.mrc import open_stack, write_stack, write_volume
from inrtomo.metrics.volume import cc
from inrtomo.reconstruct import field
from inrtomo.reconstruct.field import FieldFit
from tests.running import Inr, assert_refused

OPTIONS = ("--thickness", 30, "--orientation", "xyz", "--bin", 2)
VOXELS = ("--field", "voxel")


@pytest.fixture
def series(tiny_series: Path, tmp_path: Path) -> Path:
    """A copy of the tiny series that may be written beside."""
    return Path(shutil.copytree(tiny_series, tmp_path / "series"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits that are over soon."""
    monkeypatch.setattr(field, "STEPS", {4: 50, 2: 40, 1: 14})
    monkeypatch.setattr(field, "LEAST_SIZE", 12)


def read(path: Path) -> np.ndarray:
    assert mrcfile.validate(path)
    return mrcfile.read(path)


def truth_like(series: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The specimen binned by 2, as high as a tomogram."""
    truth = mrcfile.read(series / "ts_truth.mrc")
    nz, ny, nx = (n // 2 for n in truth.shape)
    binned = truth.reshape(nz, 2, ny, 2, nx, 2).mean(axis=(1, 3, 5))
    first = (nz - shape[0]) // 2
    return binned[first : first + shape[0]]


def test_field_with_halves_average_and_everything_beside_it(inr: Inr, series: Path, short: None) -> None:
    out = series / "out.mrc"
    more = ("--halves", "--average", 2, "--normalize", "--prior", "variation,sparsity=0.3")
    done = inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", out, "--method", "field", *OPTIONS, *more)
    assert done.exit_code == 0, done.output
    assert "-60.00 to 60.00°, 21 tilts" in done.output and "odd and even frames" in done.output
    volume = read(out)
    truth = truth_like(series, volume.shape)
    assert volume.shape == (15, 48, 48)
    assert cc(volume, truth) > 0.85
    assert abs(volume.mean()) < 1e-4 and volume.std() == pytest.approx(1, abs=1e-3)
    odd, even = (read(series / f"out_{half}.mrc") for half in ("odd", "even"))
    assert 0.8 < cc(odd, even) < 0.9999
    spread = read(series / "out_sd.mrc")
    assert spread.min() >= 0 and spread.max() > 0
    assert (series / "out_live.png").stat().st_size > 1000
    record = json.loads((series / "out.json").read_text())
    assert record["tilt_range_deg"] == [-60, 60] and record["voxel_size_A"] == 20
    assert record["settings"]["method"] == "field" and record["priors"]["sparsity"] == 0.3
    assert record["all"]["tilts_used"] == list(range(21))
    assert 0 < record["all"]["wedge_energy"] < 0.5
    assert record["all"]["held_out_loss"] > 0 and len(record["all"]["losses"]) == 2
    assert record["peak_memory_bytes"] > 1e8


def test_field_keeps_the_unit_of_the_images(inr: Inr, series: Path, short: None) -> None:
    out = series / "out.mrc"
    done = inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", out, "--method", "field", *OPTIONS)
    assert done.exit_code == 0, done.output
    volume = read(out)
    slope = np.polyfit(truth_like(series, volume.shape).ravel(), volume.ravel(), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.3)


def test_field_keeps_the_contrast_of_the_images_unless_asked(inr: Inr, series: Path, short: None) -> None:
    dark = series / "dark.mrc"
    with mrcfile.new(dark) as file:
        file.set_data(1000 - mrcfile.read(series / "ts.mrc"))
        file.voxel_size = 10
    shutil.copy(series / "ts.rawtlt", series / "dark.rawtlt")
    found = {}
    for contrast, sign in (("input", -1), ("positive", 1)):
        out = series / f"{contrast}.mrc"
        options = (*OPTIONS, "--method", "field", "--contrast", contrast, *VOXELS)
        done = inr("recon", dark, series / "ts_truth.json", "-o", out, *options)
        assert done.exit_code == 0, done.output
        volume = read(out)
        found[contrast] = sign * volume
        assert volume.min() >= 0 if sign > 0 else volume.max() <= 0
    bright = series / "bright.mrc"
    given = (series / "ts.mrc", series / "ts_truth.json", "-o", bright, *OPTIONS)
    done = inr("recon", *given, "--method", "field", *VOXELS)
    assert done.exit_code == 0, done.output
    for volume in found.values():
        assert cc(volume, read(bright)) > 0.99


@pytest.mark.parametrize("ctf", [(), ("--ctf", 3)])
def test_phase_contrast_that_nobody_spoke_of_is_noted(
    inr: Inr, series: Path, short: None, monkeypatch: pytest.MonkeyPatch, ctf: tuple[object, ...]
) -> None:
    monkeypatch.setattr("inrtomo.commands._recon_run.find_defocus", lambda images, pixel_size_A, settings: 31_000.0)
    given = (series / "ts.mrc", series / "ts_truth.json", "-o", series / "out.mrc", *OPTIONS)
    done = inr("recon", *given, "--method", "field", *VOXELS, *ctf)
    assert done.exit_code == 0, done.output
    assert ("--ctf 3.1" in done.output) == (not ctf)


def test_counts_are_fitted_as_counts(inr: Inr, tmp_path: Path, short: None) -> None:
    words = "--size 48 48 --thickness 14 --tilt-step 7.5 --counts --dose 60 --shifts 0 --warp 0 --beads 0 --base ts"
    assert inr("simulate", "-o", tmp_path, *words.split()).exit_code == 0
    found = []
    for loss in ("poisson", "heteroscedastic", "l2"):
        out = tmp_path / f"{loss}.mrc"
        given = (tmp_path / "ts.mrc", tmp_path / "ts_truth.json", "-o", out, "--contrast", "positive", "--bin", 2)
        done = inr("recon", *given, "--orientation", "xyz", "--method", "field", "--loss", loss, *VOXELS)
        assert done.exit_code == 0, done.output
        found.append(cc(read(out), truth_like(tmp_path, read(out).shape)))
    assert min(found[:2]) > 0.9 * found[2] > 0.5, found


def test_sart_tv(inr: Inr, series: Path) -> None:
    out = series / "ts.rec"
    options = (*OPTIONS, "--method", "sart-tv", "--iterations", 8)
    assert inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", out, *options).exit_code == 0
    volume = read(out)
    assert cc(volume, truth_like(series, volume.shape)) > 0.6


def test_sirt_and_halves_of_tilts_where_there_are_no_frames(inr: Inr, series: Path) -> None:
    for half in ("odd", "even"):
        (series / f"ts_{half}.mrc").unlink()
    out = series / "out.mrc"
    options = (*OPTIONS, "--method", "sirt", "--iterations", 10, "--nonnegative", "--halves", "--measured-only")
    done = inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", out, *options)
    assert done.exit_code == 0, done.output
    assert "every other tilt" in done.output
    record = json.loads((series / "out.json").read_text())
    odd, even = record["odd"]["tilts_used"], record["even"]["tilts_used"]
    assert sorted(odd + even) == list(range(21)) and not set(odd) & set(even)
    assert record["all"]["wedge_energy"] < 0.01
    volume = read(out)
    assert cc(volume, truth_like(series, volume.shape)) > 0.6


@pytest.fixture(scope="module")
def half_blank(tiny_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny series with nothing but weak noise in the first two and the last tilt, without stacks of frames."""
    folder = tmp_path_factory.mktemp("blank")
    images = mrcfile.read(tiny_series / "ts.mrc").copy()
    images[[0, 1, 20]] = np.random.default_rng(0).normal(images.mean(), 1e-3 * images.std(), images[:3].shape)
    write_stack(folder / "ts.mrc", images, 10.0)
    for name in ("ts.rawtlt", "ts_truth.json"):
        shutil.copy(tiny_series / name, folder / name)
    return folder


@pytest.mark.parametrize("method", ["fbp", "sirt", "sart-tv"])
def test_blank_tilts_are_left_out_by_every_method_and_said_so(
    inr: Inr, half_blank: Path, tmp_path: Path, method: str
) -> None:
    """And the denoisers, which read the tilt range in OUT.json, are told that of the tilts that were used."""
    stack, truth = half_blank / "ts.mrc", half_blank / "ts_truth.json"
    fewer: tuple[object, ...] = () if method == "fbp" else ("--iterations", 2)
    more = (*OPTIONS, "--bin", 4, "--halves", "--method", method, *fewer)
    done = inr("recon", stack, truth, "-o", tmp_path / "a.mrc", *more)
    assert done.exit_code == 0, done.output
    assert "-48.00 to 54.00°, 18 tilts" in done.output and "21 tilts" not in done.output
    for tilt in (0, 1, 20):
        assert f"tilt {tilt} ({-60 + 6 * tilt:.1f} deg) left out: blank" in done.output
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["tilt_range_deg"] == [-48, 54]
    assert [tilt for tilt, _ in record["excluded_tilts"]] == [0, 1, 20]
    assert record["all"]["tilts_used"] == list(range(2, 20))
    odd, even = (record[half] for half in ("odd", "even"))
    assert sorted(odd["tilts_used"] + even["tilts_used"]) == list(range(2, 20))
    assert sorted([odd["tilt_range_deg"], even["tilt_range_deg"]]) == [[-48, 48], [-42, 54]]
    without = inr("recon", stack, truth, "-o", tmp_path / "b.mrc", *more, "--exclude", "0-1,20")
    assert without.exit_code == 0, without.output
    for name in ("", "_odd", "_even"):
        np.testing.assert_array_equal(read(tmp_path / f"a{name}.mrc"), read(tmp_path / f"b{name}.mrc"))


def test_a_tilt_found_blank_only_by_the_method_is_in_the_record_too(
    inr: Inr, half_blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tomogram_run, "without_unusable", lambda given, device: given)
    args = ("recon", half_blank / "ts.mrc", half_blank / "ts_truth.json", "-o", tmp_path / "a.mrc", *OPTIONS)
    done = inr(*args, "--method", "sirt", "--iterations", 2)
    assert "tilt range of a.mrc: -48.00 to 54.00°, 18 tilts, of -60.00 to 60.00°, 21 tilts" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["tilt_range_deg"] == [-48, 54]


def test_a_fit_without_density_is_no_tomogram(inr: Inr, series: Path, short: None) -> None:
    """Priors so strong that nothing is left: said in a sentence, and nothing under the tomogram's name."""
    args = ("recon", series / "ts.mrc", series / "ts_truth.json", "-o", series / "out.mrc", *OPTIONS)
    refused = inr(*args, "--method", "field", "--prior", "sparsity=1000")
    assert_refused(refused, "no density", "ts.mrc", "weaker priors")
    assert not (series / "out.mrc").exists() and not (series / "out.json").exists()
    assert inr(*args, "--method", "field").exit_code == 0  # no checkpoint is in its way
    record = json.loads((series / "out.json").read_text())["all"]
    assert record["held_out_loss"] < 0.9 * record["held_out_loss_of_nothing"]


def test_the_peak_is_printed_beside_the_bound(inr: Inr, series: Path) -> None:
    args = ("recon", series / "ts.mrc", series / "ts_truth.json", "--thickness", 30, "--bin", 2)
    said = {size: inr(*args, "-o", series / f"{size}.mrc", "--memory", size).output for size in ("16M", "900G")}
    for size, output in said.items():
        (line,) = (line for line in output.splitlines() if line.startswith("peak memory"))
        peak = json.loads((series / f"{size}.json").read_text())["peak_memory_bytes"] / 2**30
        assert float(line.split()[2]) == pytest.approx(peak, abs=0.02)
        assert ("more than --memory, 0.016 GiB" in line) == (size == "16M")


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_robust_losses_leave_a_density(inr: Inr, series: Path, short: None, loss: str) -> None:
    """Their pull is bounded, that of the priors is not: the weights that suit l2 emptied the volume."""
    args = ("recon", series / "ts.mrc", series / "ts_truth.json", "-o", series / "out.mrc", *OPTIONS)
    done = inr(*args, "--method", "field", "--loss", loss)
    assert done.exit_code == 0, done.output
    volume = read(series / "out.mrc")
    truth = truth_like(series, volume.shape)
    assert cc(volume, truth) > 0.6 and volume.std() > 0.2 * truth.std()


@pytest.mark.parametrize("orientation", ["xyz", "imod"])
def test_sirt_within_a_support(inr: Inr, series: Path, orientation: str) -> None:
    """The mask lies as the tomogram does: its edges are at other places on either side of every axis."""
    inside = np.zeros((15, 48, 48), dtype=np.float32)
    inside[2:9, 4:30, 10:45] = 1
    mask = series / "mask.mrc"
    write_volume(mask, inside if orientation == "xyz" else inside[::-1].transpose(1, 0, 2), 20.0)
    options = ("--thickness", 30, "--bin", 2, "--orientation", orientation, "--method", "sirt", "--iterations", 3)
    args = ("recon", series / "ts.mrc", series / "ts_truth.json", "-o", series / "out.mrc", *options)
    done = inr(*args, "--support", mask)
    assert done.exit_code == 0, done.output
    volume = read(series / "out.mrc")
    assert volume.shape == mrcfile.read(mask).shape
    np.testing.assert_array_equal(volume != 0, mrcfile.read(mask) > 0)
    assert_refused(inr(*args, "--overwrite", "--bin", 1, "--support", mask), "mask.mrc", "voxels")
    mask.unlink()
    write_volume(mask, inside * 0 if orientation == "xyz" else (inside * 0).transpose(1, 0, 2), 20.0)
    assert_refused(inr(*args, "--overwrite", "--support", mask), "mask.mrc", "nowhere")


def test_ctf_is_undone(inr: Inr, tmp_path: Path, short: None) -> None:
    options = "--size 64 64 --thickness 20 --tilt-step 6 --snr 10 --shifts 2 --warp 0 --beads 2 --seed 2 --base ts"
    assert inr("simulate", "-o", tmp_path, "--defocus", 3, *options.split()).exit_code == 0
    truth = mrcfile.read(tmp_path / "ts_truth.mrc")
    found = {}
    for name, more in (("raw", ()), ("flip", ("--ctf", 3)), ("fit", ("--ctf", 3, "--method", "field"))):
        out = tmp_path / f"{name}.mrc"
        common = ("--thickness", 20, "--orientation", "xyz", "--contrast", "positive")
        done = inr("recon", tmp_path / "ts.mrc", tmp_path / "ts_truth.json", "-o", out, *common, *more)
        assert done.exit_code == 0, done.output
        volume = open_stack(out).read()
        first = (len(truth) - len(volume)) // 2
        found[name] = abs(cc(volume, truth[first : first + len(volume)]))
    assert found["fit"] > found["flip"] + 0.1, found


def test_the_hand_of_the_defocus_is_said_and_can_be_turned(inr: Inr, tmp_path: Path) -> None:
    """Images mirrored along x are of the specimen turned half round y, more underfocused on the other side."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 16, 128)).astype(np.float32)
    made = {}
    for name, side, more in (("one", 1, ()), ("other", -1, (*("--ctf-hand", -1),)), ("wrong", -1, ())):
        write_stack(tmp_path / f"{name}_ts.mrc", images[:, :, ::side], 2.0)
        angles = tmp_path / f"{name}_ts.tlt"
        angles.write_text("-50\n-25\n0\n25\n50\n")
        out = tmp_path / f"{name}.mrc"
        options = ("--ctf", 0.5, "--thickness", 2, "--orientation", "xyz", *more)
        done = inr("recon", tmp_path / f"{name}_ts.mrc", angles, "-o", out, *options)
        assert done.exit_code == 0, done.output
        hand, side_said, source = (-1, "left", "--ctf-hand") if more else (1, "right", "default, as nothing says")
        assert f"{hand:+d}: the {side_said} is more underfocused" in done.output and source in done.output
        assert json.loads((tmp_path / f"{name}.json").read_text())["ctf_hand"] == hand
        made[name] = read(out)
    turned = made["one"][::-1, :, ::-1]
    right, wrong = cc(made["other"], turned), cc(made["wrong"], turned)
    assert right > 0.99 and wrong < 0.95, (right, wrong)


def test_refine_polishes_the_alignment(inr: Inr, series: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from inrtomo.align.joint import Scale
    from inrtomo.reconstruct import prepared

    monkeypatch.setattr(prepared, "DEFAULT_SCHEDULE", (Scale(2, 30, 8, None), Scale(1, 10, 2, 4)))
    out = series / "out.mrc"
    options = (*OPTIONS, "--method", "field", "--refine")
    done = inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", out, *options)
    assert done.exit_code == 0, done.output
    assert "held-out" in json.loads((series / "out.json").read_text())["all"]["refined"]
    volume = read(out)
    assert cc(volume, truth_like(series, volume.shape)) > 0.75


class Crash(Exception):
    """The machine stops."""


def crash_after(monkeypatch: pytest.MonkeyPatch, fits: int, scale: int, step: int) -> None:
    """Stop a fit there, the so manieth one, at a moment when a checkpoint has just been due."""
    monkeypatch.setattr("inrtomo.align.checkpoint.SAVE_EVERY_S", 0.0)
    optimise, begun = FieldFit.optimise, [0]

    def crashing(self: FieldFit, on_step: Any = None) -> None:
        begun[0] += 1

        def watched(fit: FieldFit) -> None:
            on_step(fit)
            if begun[0] == fits and (fit.done_scales, fit.done_steps) == (scale, step):
                raise Crash

        optimise(self, watched)

    monkeypatch.setattr(FieldFit, "optimise", crashing)


@pytest.mark.parametrize(("kind", "fits", "scale", "step"), [("hash", 4, 2, 9), ("tensor", 2, 2, 2)])
def test_a_field_goes_on_where_it_was_stopped(
    inr: Inr, series: Path, short: None, kind: str, fits: int, scale: int, step: int
) -> None:
    """Two fits each of odd frames, even frames and all; stopped in one of them, with files of the others written."""
    args = ("recon", series / "ts.mrc", series / "ts_truth.json", "--method", "field", "--field", kind, *OPTIONS)
    more = ("--halves", "--average", 2)
    assert inr(*args, *more, "-o", series / "whole.mrc").exit_code == 0
    out, left = series / "out.mrc", series / "out_checkpoint.npz"
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, fits, scale, step)
        with pytest.raises(Crash):
            inr(*args, *more, "-o", out)
    assert left.exists() and not out.exists() and (series / "out_odd.mrc").exists() == (fits > 2)
    assert_refused(inr(*args, *more, "-o", out), "out_checkpoint.npz", "--resume")
    assert_refused(inr(*args, *more, "-o", out, "--resume", "--seed", 1), "other seed")
    done = inr(*args, *more, "-o", out, "--resume")
    assert done.exit_code == 0 and ("made before" in done.output) == (fits > 2), done.output
    for ending in ("", "_odd", "_even", "_sd"):
        found, expected = (read(series / f"{base}{ending}.mrc") for base in ("out", "whole"))
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.ptp(expected)))
    records = [json.loads((series / f"{base}.json").read_text()) for base in ("out", "whole")]
    for name in ("odd", "even", "all"):
        assert len(records[0][name]["losses"]) == 2
        found, expected = (np.array(record[name]["losses"][1]) for record in records)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not left.exists()
    before = out.stat().st_mtime_ns
    assert "nothing to do" in inr(*args, *more, "-o", out, "--resume").output
    assert out.stat().st_mtime_ns == before


def test_a_complete_tomogram_of_other_options_is_not_what_was_asked_for(inr: Inr, series: Path, short: None) -> None:
    """Whatever another run of the same name would change; not what changes nothing, as the memory."""
    out, record = series / "out.mrc", series / "out.json"
    args = ("recon", series / "ts.mrc", series / "ts_truth.json", "-o", out, "--method", "field")
    made = (*OPTIONS, "--prior", "variation")
    assert inr(*args, *made).exit_code == 0
    before = out.read_bytes()
    assert "nothing to do" in inr(*args, *made, "--resume", "--memory", "3G").output
    assert_refused(inr(*args, *made, "--bin", 4, "--seed", 3, "--resume"), "out.json", "other --bin, --seed;")
    assert_refused(inr(*args, *made, "--halves", "--exclude", 3, "--resume"), "other --halves, --exclude;")
    assert_refused(inr(*args, *OPTIONS, "--resume"), "other --prior;")
    shutil.copy(series / "ts.mrc", series / "another.mrc")
    assert_refused(inr("recon", series / "another.mrc", *args[2:], *made, "--resume"), "other STACK;")
    record.unlink()
    assert_refused(inr(*args, *made, "--resume"), "out.mrc", "no out.json")
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("method", "label", "own"),
    [
        ("fbp", "fbp, exact", {"filter_name", "radial"}),
        ("sirt", "sirt, 30 iterations", {"iterations", "subsets", "nonnegative", "support", "mask_gold"}),
        ("sart-tv", "sart-tv, 20 iterations", {"iterations", "nonnegative", "mask_gold"}),
    ],
)
def test_only_what_the_method_used_is_said_of_it(
    inr: Inr, series: Path, method: str, label: str, own: set[str]
) -> None:
    done = inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", series / "out.mrc", "--method", method,
               "--thickness", 30, "--bin", 8)  # fmt: skip
    assert done.exit_code == 0, done.output
    with mrcfile.open(series / "out.mrc", header_only=True) as file:
        assert f"inr-recon: {label}, imod" in str(file.header.label[0])
    record = json.loads((series / "out.json").read_text())
    assert "priors" not in record
    assert own == record["settings"].keys() & OWN_OPTIONS.keys()
    assert {"ctf", "voltage", "binning", "with_halves"} <= record["settings"].keys()


def test_a_checkpoint_of_something_else_is_refused(inr: Inr, series: Path, short: None) -> None:
    args = ("recon", series / "ts.mrc", series / "ts_truth.json", "--method", "field", *OPTIONS, "-o", series / "o.mrc")
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, 1, 0, 2)
        with pytest.raises(Crash):
            inr(*args)
    path = series / "o_checkpoint.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    for name, value in (("fit0.field.parameters", np.ones(3)), ("fit0.adam.first", np.ones(2)), ("__head__", "{}")):
        np.savez(path, **(arrays | {name: np.array(value)}))
        assert_refused(inr(*args, "--resume"), "o_checkpoint.npz", "--overwrite")
    path.write_bytes(b"PK")
    assert_refused(inr(*args, "--resume"), "o_checkpoint.npz", "--overwrite")
    assert inr(*args, "--overwrite").exit_code == 0 and not path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--average", 2), ("--average", "field")),
        (("--method", "field", "--filter", "ramp"), ("--filter", "fbp")),
        (("--method", "sirt", "--prior", "wedge"), ("--prior", "field")),
        (("--iterations", 10), ("--iterations", "sirt-like")),
        (("--method", "field", "--prior", "beauty"), ("beauty", "sparsity")),
        (("--method", "field", "--prior", "wedge=-1"), ("wedge=-1",)),
        (("--method", "field", "--prior", "boundary"), ("boundary", "tensor")),
        (("--method", "field", "--memory", "2M"), ("--memory",)),
        (("--method", "field", "--loss", "poisson"), ("poisson", "counts")),
        (("--method", "field", "--loss", "poisson", "--ctf", 3), ("poisson", "--ctf")),
        (("--memory", "much"), ("much", "4G")),
        (("--ctf", 300), ("300", "um")),
        (("--ctf-mode", "wiener"), ("--ctf",)),
        (("--ctf-hand", -1), ("--ctf-hand", "--ctf FILE")),
        (("--bin", 40), ("--bin 40", "2 x 2")),
        (("--thickness", 100000), ("--thickness", "100000 nm")),
        (("--thickness", "inf"), ("--thickness", "'inf' is not a number")),
        (("--method", "sirt", "--subsets", 22), ("--subsets 22", "21 tilts")),
        (("--method", "sirt", "--subsets", 11, "--halves"), ("--subsets 11", "10 tilts of a half")),
        (("--voltage", 200), ("--voltage", "--ctf")),
        (("--halves", "--exclude", "0-16"), ("--halves", "4")),
    ],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, tuple) else str(v),
)
def test_refusals(inr: Inr, series: Path, options: tuple[object, ...], words: tuple[str, ...]) -> None:
    for half in ("odd", "even"):
        (series / f"ts_{half}.mrc").unlink()
    before = sorted(series.iterdir())
    result = inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", series / "out.mrc", *options)
    assert_refused(result, *words)
    assert sorted(series.iterdir()) == before
