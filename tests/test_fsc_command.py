"""inr-fsc: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from scipy.ndimage import gaussian_filter

from inrtomo.io.mrc import read_volume, write_stack, write_volume
from inrtomo.metrics.registration import translated
from tests.running import Inr, assert_refused

SHAPE = (20, 48, 40)
VOXEL_A = 5.0
MAIN_COLUMNS = [
    "rlnSpectralIndex",
    "rlnResolution",
    "rlnAngstromResolution",
    "rlnFourierShellCorrelation",
    "rlnFourierShellCorrelationCorrected",
    "rlnFourierShellCorrelationUnmaskedMaps",
    "rlnFourierShellCorrelationMaskedMaps",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
]


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    """Odd and even: the same blobs, resolved to some 15 Å."""
    signal = gaussian_filter(noise(0), 1.5)
    signal *= 2 / signal.std()
    paths = tmp_path / "odd.mrc", tmp_path / "even.mrc"
    for seed, path in enumerate(paths, 1):
        write_volume(path, signal + noise(seed), VOXEL_A)
    return paths


def test_what_is_written(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    result = inr("fsc", *halves, "-o", tmp_path / "out" / "a.b", "--tilts=-60,50")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "out" / "a.b.json").read_text())
    assert values["convention"] == "half maps" and values["threshold"] == 0.143
    assert 11 < values["resolution_A"] < 20
    assert f"resolution {values['resolution_A']:.1f} Å" in result.output and "half maps" in result.output
    assert values["resolution_A"] == values["curves"]["corrected"]["resolution_A"]["0.143"]
    assert values["curves"]["corrected"]["resolution_A"]["0.5"] > values["resolution_A"]
    assert set(values["curves"]) == {
        "unmasked", "masked", "randomised", "corrected", "x", "y", "z", "measured", "wedge"
    }  # fmt: skip
    assert values["tilt_deg"] == [-60, 50]
    assert (tmp_path / "out" / "a.b.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "out" / "a.b.csv")
    assert len(table) == min(SHAPE) // 2
    np.testing.assert_allclose(table["frequency_per_A"] * table["resolution_A"], 1, rtol=1e-4)
    np.testing.assert_allclose(table["corrected"], values["curves"]["corrected"]["correlation"], rtol=1e-4)
    for line in ("cone about z", "wedge", "-60.0° to 50.0°", "5 Å"):
        assert line in result.output


def test_star_is_relions(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    assert inr("fsc", *halves, "-o", tmp_path / "a", "--mask", "slab").exit_code == 0
    blocks = starfile.read(tmp_path / "a.star")
    assert list(blocks) == ["general", "fsc", "fsc_x", "fsc_y", "fsc_z"]
    values = json.loads((tmp_path / "a.json").read_text())
    general = blocks["general"]
    assert float(general["rlnFinalResolution"]) == pytest.approx(values["resolution_A"])
    assert general["rlnUnfilteredMapHalf1"] == str(halves[0]) and general["rlnMaskName"] == "slab"
    assert float(general["rlnRandomiseFrom"]) == pytest.approx(values["randomised_from_A"])
    table = blocks["fsc"]
    assert list(table.columns) == MAIN_COLUMNS
    assert list(table["rlnSpectralIndex"]) == list(range(11))
    assert list(table.iloc[0][1:]) == [0, 999, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(table["rlnResolution"][1:], np.arange(1, 11) / 20 / VOXEL_A, atol=1e-6)
    np.testing.assert_allclose(table["rlnAngstromResolution"].iloc[-1], 2 * VOXEL_A)
    t, n, corrected = (table[MAIN_COLUMNS[k]][1:] for k in (6, 7, 4))
    late = np.abs(corrected - t) > 1e-6
    assert late.any()
    np.testing.assert_allclose(corrected[late], ((t - n) / (1 - n))[late], atol=2e-6)
    assert list(blocks["fsc_z"].columns) == MAIN_COLUMNS[:4]


def test_reference_convention_and_registration(inr: Inr, tmp_path: Path) -> None:
    truth = gaussian_filter(noise(0), 1.5)
    moved = translated(truth + 0.2 * truth.std() * noise(1), (1.0, -2.0, 3.0))
    write_volume(tmp_path / "map.mrc", moved, VOXEL_A)
    write_volume(tmp_path / "truth.mrc", truth, VOXEL_A)
    found = {}
    for kind in ("none", "translation", "rigid"):
        args = (tmp_path / "map.mrc", tmp_path / "truth.mrc", "--reference", "--register", kind)
        result = inr("fsc", *args, "-o", tmp_path / kind)
        assert result.exit_code == 0 and "VOL2 as the truth, 0.5" in result.output, result.output
        found[kind] = json.loads((tmp_path / f"{kind}.json").read_text())
    assert found["none"]["registration"] is None
    for kind, tolerance in (("translation", 0.1), ("rigid", 0.15)):
        np.testing.assert_allclose(found[kind]["registration"]["shift_px_xyz"], [-3, 2, -1], atol=tolerance)
        assert found[kind]["resolution_A"] < 25 < 0.7 * (found["none"]["resolution_A"] or np.inf)


def test_a_tomogram_beside_a_higher_truth(inr: Inr, tmp_path: Path) -> None:
    """As a newcomer has them: sections of the one are y, of the other z, and they differ in height."""
    truth = gaussian_filter(noise(0), 1.5)
    slab = 3 * truth[4:16] - 7
    write_volume(tmp_path / "rec.mrc", slab[::-1].transpose(1, 0, 2), VOXEL_A)
    write_volume(tmp_path / "truth.mrc", truth, VOXEL_A)
    write_volume(tmp_path / "mask.mrc", np.pad(np.ones((8, 40, 32), np.float32), ((6, 6), (4, 4), (4, 4))), VOXEL_A)
    args = (tmp_path / "rec.mrc", tmp_path / "truth.mrc", "--reference", "--mask", tmp_path / "mask.mrc")
    result = inr("fsc", *args, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "imod, xyz" in result.output and "12 voxels" in result.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert min(found["curves"]["masked"]["correlation"]) > 0.999
    alike = found["likeness"]
    assert alike["cc"] > 0.9999 and alike["ssim"] > 0.999 and alike["psnr_db"] > 80 and alike["vif"] is None
    assert "VIF" in result.output and "too small" in result.output


def test_likeness_to_the_truth_is_free_of_the_grey_scale(inr: Inr, tmp_path: Path) -> None:
    """A tenth of the truth's spread as noise, on another scale: PSNR as that noise has it, and the same CNR."""
    truth = gaussian_filter(np.random.default_rng(0).normal(size=(16, 64, 60)).astype(np.float32), 2)
    truth -= truth.min()
    noisy = truth + 0.1 * truth.std() * np.random.default_rng(1).normal(size=truth.shape).astype(np.float32)
    found = []
    write_volume(tmp_path / "truth.mrc", truth, VOXEL_A)
    for name, volume in (("one", noisy), ("other", 40 - 3 * noisy)):
        write_volume(tmp_path / f"{name}.mrc", volume, VOXEL_A)
        args = (tmp_path / f"{name}.mrc", tmp_path / "truth.mrc", "--reference", "--overwrite")
        assert inr("fsc", *args, "-o", tmp_path / name).exit_code == 0
        found.append(json.loads((tmp_path / f"{name}.json").read_text())["likeness"])
    middle = truth[:, 6:58, 6:54]
    assert found[0]["psnr_db"] == pytest.approx(20 * np.log10(np.ptp(middle) / (0.1 * truth.std())), abs=0.1)
    assert found[0]["cc"] == pytest.approx(1 / np.sqrt(1.01), abs=2e-3)
    assert found[1]["cc"] == pytest.approx(-found[0]["cc"], abs=1e-6)
    assert 0.3 < found[0]["vif"] < 0.95 and found[0]["enl"] > 0
    for name in ("psnr_db", "ssim", "vif", "cnr", "enl"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-3)
    assert inr("fsc", tmp_path / "one.mrc", tmp_path / "truth.mrc", "-o", tmp_path / "halves").exit_code == 0
    assert "likeness" not in json.loads((tmp_path / "halves.json").read_text())


def test_orientation_mask_and_local_map_follow_the_files(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    """The same volumes as IMOD's tilt writes them give the same curves; the local map lies over them."""
    mask = np.zeros(SHAPE, np.float32)
    mask[5:15, 8:40, 8:30] = 1
    write_volume(tmp_path / "mask.mrc", mask, VOXEL_A)
    for name in ("odd", "even", "mask"):
        volume, _ = read_volume(tmp_path / f"{name}.mrc")
        write_volume(tmp_path / f"imod_{name}.mrc", volume[::-1].transpose(1, 0, 2), VOXEL_A)
    curves = {}
    for prefix in ("", "imod_"):
        paths = (tmp_path / f"{prefix}{name}.mrc" for name in ("odd", "even", "mask"))
        one, two, mask_path = paths
        result = inr("fsc", one, two, "--mask", mask_path, "--local", "-o", tmp_path / f"{prefix}out")
        assert result.exit_code == 0, result.output
        assert ("imod" in result.output.split("orientation")[1].splitlines()[0]) == bool(prefix)
        curves[prefix] = json.loads((tmp_path / f"{prefix}out.json").read_text())
    for name, curve in curves[""]["curves"].items():
        if name != "randomised" and name != "corrected":
            np.testing.assert_allclose(curve["correlation"], curves["imod_"]["curves"][name]["correlation"], atol=1e-4)
    plain, voxel = read_volume(tmp_path / "out_local.mrc")
    turned, _ = read_volume(tmp_path / "imod_out_local.mrc")
    assert plain.shape == SHAPE and voxel == pytest.approx(VOXEL_A)
    assert 2 * VOXEL_A <= plain.min() and plain.max() <= 16 * VOXEL_A
    np.testing.assert_allclose(turned, plain[::-1].transpose(1, 0, 2), rtol=1e-3)
    assert curves[""]["mask_volume_fraction"] > mask.mean()  # it was given a soft edge


IMOD_LABEL, XYZ_LABEL = "inr-recon: fbp, hamming, imod", "inr-recon: fbp, hamming, xyz"


def as_tilt_writes(volume: np.ndarray) -> np.ndarray:
    return volume[::-1].transpose(1, 0, 2)


def curves_of(inr: Inr, one: Path, two: Path, *options: object) -> tuple[dict[str, np.ndarray], str]:
    prefix = one.with_name(f"{one.stem}_{two.stem}")
    result = inr("fsc", one, two, *options, "-o", prefix)
    assert result.exit_code == 0, result.output
    curves = json.loads(Path(f"{prefix}.json").read_text())["curves"]
    return {name: np.array(curve["correlation"], dtype=float) for name, curve in curves.items()}, result.output


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 24, 28)])
def test_the_labels_tell_the_order_of_axes_where_sides_do_not(
    inr: Inr, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    """A cubic box, and one in which z is longer than y, in both orders."""
    volume = gaussian_filter(np.random.default_rng(0).normal(size=shape).astype(np.float32), 1)
    write_volume(tmp_path / "imod.mrc", as_tilt_writes(volume), VOXEL_A, label=IMOD_LABEL)
    write_volume(tmp_path / "xyz.mrc", volume, VOXEL_A, label=XYZ_LABEL)
    write_volume(tmp_path / "bare.mrc", as_tilt_writes(volume), VOXEL_A)
    curves, said = curves_of(inr, tmp_path / "imod.mrc", tmp_path / "xyz.mrc")
    assert curves["unmasked"].min() > 0.999 and "imod, xyz" in said and "note" not in said
    curves, said = curves_of(inr, tmp_path / "imod.mrc", tmp_path / "bare.mrc", "--orientation", "xyz")
    assert curves["unmasked"].min() > 0.999 and "note" not in said  # both misread alike, as asked for
    if shape[0] == shape[1]:
        curves, said = curves_of(inr, tmp_path / "imod.mrc", tmp_path / "bare.mrc", "--overwrite")
        note = next(line for line in said.splitlines() if line.startswith("note"))
        assert curves["unmasked"].max() < 0.5 and "bare.mrc" in note and "--orientation imod" in note


def test_cubic_half_maps_have_the_same_wedge_in_either_order(inr: Inr, tmp_path: Path) -> None:
    """What the halves share lies within the measured region: at right angles to it there is noise alone."""
    side = 32
    rng = np.random.default_rng(0)
    k = np.fft.fftfreq(side)
    measured = np.abs(k[:, None, None]) <= np.tan(np.radians(60)) * np.abs(k[None, None, :])
    shared = np.fft.ifftn(np.fft.fftn(rng.normal(size=(side,) * 3)) * measured).real
    for name in ("odd", "even"):
        half = (shared + 0.3 * rng.normal(size=shared.shape)).astype(np.float32)
        write_volume(tmp_path / f"{name}_imod.mrc", as_tilt_writes(half), VOXEL_A, label=IMOD_LABEL)
        write_volume(tmp_path / f"{name}_xyz.mrc", half, VOXEL_A, label=XYZ_LABEL)
    found = [
        curves_of(inr, tmp_path / f"odd_{order}.mrc", tmp_path / f"even_{order}.mrc", "--tilts=-60,60")[0]
        for order in ("imod", "xyz")
    ]
    for name in ("x", "y", "z", "measured", "wedge"):
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-3, err_msg=name)
    assert np.nanmean(found[0]["wedge"][4:]) < 0.3 < 0.7 < np.nanmean(found[0]["measured"][4:])


def test_stacks_taken_for_volumes_are_told_of_frc(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    stacks = [write_stack(tmp_path / f"{path.stem}_stack.mrc", read_volume(path)[0], VOXEL_A) for path in halves]
    _, said = curves_of(inr, *stacks)
    notes = [line for line in said.splitlines() if line.startswith("note")]
    assert len(notes) == 1 and "--frc" in notes[0] and all(str(path) in notes[0] for path in stacks)
    assert "note" not in curves_of(inr, *halves)[1]
    assert "note" not in inr("fsc", *stacks, "--frc", "-o", tmp_path / "rings").output


def test_images(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    result = inr("fsc", *halves, "--frc", "-o", tmp_path / "rings")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "rings.json").read_text())
    assert list(values["curves"]) == ["frc"] and len(values["image_resolution_A"]) == SHAPE[0]
    assert list(starfile.read(tmp_path / "rings.star")["fsc"].columns) == MAIN_COLUMNS[:4]
    for path in halves:
        write_stack(path.with_stem(f"{path.stem}_1"), read_volume(path)[0][:1], VOXEL_A)
    single = [path.with_stem(f"{path.stem}_1") for path in halves]
    assert inr("fsc", *single, "-o", tmp_path / "single").exit_code == 0
    assert_refused(inr("fsc", *single, "--local", "-o", tmp_path / "no"), "--local", "images")


def test_every_tilt_of_an_alignment(inr: Inr, tiny_series: Path, halves: tuple[Path, Path], tmp_path: Path) -> None:
    result = inr("fsc", *halves, "--tilts", tiny_series / "ts_truth.json", "-o", tmp_path / "a")
    assert result.exit_code == 0 and "21 tilts" in result.output, result.output
    result = inr("fsc", *halves, "--tilts", tiny_series / "ts.rawtlt", "-o", tmp_path / "b")
    assert result.exit_code == 0 and "21 tilts" in result.output, result.output


def test_refusals(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    odd, even = halves
    values, _ = read_volume(odd)

    def other(name: str, volume: np.ndarray, pixel_size_A: float | None = VOXEL_A) -> Path:
        return write_volume(tmp_path / f"{name}.mrc", volume, pixel_size_A)

    holes = values.copy()
    holes[3, 4, 5] = np.nan
    with mrcfile.new(tmp_path / "text.mrc") as mrc:
        mrc.set_data(values)
    (tmp_path / "text.mrc").write_text("no volume")
    (tmp_path / "angles.tlt").write_text("0\n0\n")
    cases: list[tuple[tuple[object, ...], tuple[str, ...]]] = [
        ((odd, other("small", values[:, :40])), ("40 x 48 x 20", "40 x 40 x 20")),
        ((odd, other("odder", values[:-1])), ("odder.mrc", "half a voxel", "--thickness")),
        ((odd, other("coarse", values, 8.0)), ("5", "8", "--pixel-size")),
        ((odd, other("binned", values[::2, ::2, ::2], 10.0)), ("5 and 10 Å", "bin", "odd.mrc by 2", "--bin")),
        ((odd, other("scaled", values[:, :, :30], 7.0)), ("5 and 7 Å", "resample", "odd.mrc to 7 Å")),
        ((other("bare", values, None),) * 2, ("bare.mrc", "--pixel-size")),
        ((odd, other("nan", holes)), ("nan.mrc", "1 voxels", "NaN")),
        ((other("flat", np.full(SHAPE, 3.0)), even), ("flat.mrc", "blank")),
        ((odd, tmp_path / "none.mrc"), ("none.mrc",)),
        ((odd, tmp_path / "text.mrc"), ("text.mrc",)),
        ((other("thin", values[:4]), other("thin2", values[:4])), ("thin.mrc", "8", "--frc")),
        ((*halves, "--mask", other("outside", values)), ("outside.mrc", "0 to 1")),
        ((*halves, "--mask", other("short", (values > 0)[:10].astype(np.float32))), ("short.mrc", "size")),
        ((*halves, "--mask", tmp_path / "none.mrc"), ("none.mrc",)),
        ((*halves, "--mask", other("empty", np.zeros(SHAPE))), ("empty.mrc", "blank")),
        ((*halves, "--tilts", "60,60"), ("60,60",)),
        ((*halves, "--tilts", "north,south"), ("north",)),
        ((*halves, "--tilts", "-95,60"), ("-95",)),
        ((*halves, "--tilts", "10,20,30"), ("10,20,30", "file", "two angles")),
        ((*halves, "--tilts", "60"), ("60", "file", "two angles")),
        ((*halves, "--tilts", "none.tlt"), ("none.tlt", "no such file")),
        ((*halves, "--tilts", tmp_path / "angles.tlt"), ("angles.tlt",)),
        ((*halves, "--pixel-size", "nan"), ("--pixel-size",)),
        ((*halves, "--frc", "--register", "rigid"), ("--register",)),
        ((*halves, "--frc", "--orientation", "xyz"), ("--orientation", "images")),
        ((*halves, "--frc", "--cone", "30"), ("--cone", "images")),
        ((*halves, "--cone", "0"), ("--cone",)),
    ]
    for args, words in cases:
        assert_refused(inr("fsc", *args, "-o", tmp_path / "no"), *words)
        assert not list(tmp_path.glob("no*"))


def test_nothing_is_overwritten_unasked(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "taken.csv").write_text("precious")
    args = ("fsc", *halves, "-o", tmp_path / "taken")
    assert_refused(inr(*args), "taken.csv", "--overwrite")
    assert (tmp_path / "taken.csv").read_text() == "precious" and not (tmp_path / "taken.json").exists()
    assert inr(*args, "--overwrite").exit_code == 0
    assert (tmp_path / "taken.csv").read_text() != "precious"


def test_a_volume_against_itself(inr: Inr, halves: tuple[Path, Path], tmp_path: Path) -> None:
    result = inr("fsc", halves[0], halves[0], "-o", tmp_path / "same")
    assert result.exit_code == 0 and "10.0 (Nyquist)" in result.output, result.output
    values = json.loads((tmp_path / "same.json").read_text())
    assert values["randomised_from_A"] is None and values["resolution_A"] == pytest.approx(2 * VOXEL_A)
    write_volume(tmp_path / "against.mrc", -read_volume(halves[0])[0], VOXEL_A)
    result = inr("fsc", halves[0], tmp_path / "against.mrc", "-o", tmp_path / "against")
    assert result.exit_code == 0 and "no resolution" in result.output
    assert json.loads((tmp_path / "against.json").read_text())["resolution_A"] is None
