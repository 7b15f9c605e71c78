"""Whole commands on the GPU of `tests.fake_gpu` and on the CPU: what ends well there, and what comes out.

Not collected by itself; `tests.test_on_a_fake_gpu` runs it in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inrtomo.align import joint
from inrtomo.align.joint import JointSettings, Scale
from inrtomo.commands import _listed_pairs
from inrtomo.gpu import operations, share
from inrtomo.gpu.fit import OnDevice
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.mrc import read_volume, write_volume
from inrtomo.reconstruct import field
from tests.fake_gpu import install
from tests.listing import list_of_two
from tests.running import run_command

GPU = "cuda:0"
THICKNESS = "--thickness", 20
STEPS = 8  # of every scale: differences in the last digits grow with each
TO = 5e-4  # of the largest voxel, of methods that are sums
TO_OF_FITS = 5e-3


def few_steps(scale: Scale) -> Scale:
    steps = min(scale.steps, STEPS)
    moves = 2 if scale.motion_from < scale.steps else steps
    return replace(scale, steps=steps, motion_from=moves, warp_from=None if scale.warp_from is None else 4)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Kernels in plain torch, which the device checks (Triton's interpreter is slow), and short fits."""
    made = JointSettings.__init__

    def make(self: JointSettings, *args: object, **named: object) -> None:
        made(self, *args, **named)  # type: ignore[arg-type]
        object.__setattr__(self, "schedule", tuple(map(few_steps, self.schedule)))

    patch.setattr(operations, "has_triton", lambda device: False)
    patch.setattr(JointSettings, "__init__", make)
    patch.setattr(joint, "FINISH_POINTS", 0)  # no last scale at full size, where only the density changes
    patch.setattr(field, "LEAST_GAIN", -np.inf)  # so few steps may find nothing
    patch.setattr(_listed_pairs, "LISTED_BLOCKS", 500)


def follow(*given: Any) -> None:
    """What a process on another of the devices does."""
    install()
    shorten(pytest.MonkeyPatch())
    share._follow(*given)


@pytest.fixture(scope="session", autouse=True)
def shortened() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        yield


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack ``ts.mrc`` of 64 x 64 px and 13 tilts, its true alignment and specimen."""
    folder = tmp_path_factory.mktemp("series")
    words = "--size 64 64 --thickness 20 --tilt-step 10 --snr 10 --shifts 2 --warp 1 --beads 4 --seed 1 --base ts"
    assert run_command("simulate", "-o", folder, *words.split()).exit_code == 0
    return folder


@pytest.fixture
def given(series: Path) -> tuple[Path, Path]:
    return series / "ts.mrc", series / "ts_truth.json"


def made(tmp_path: Path, name: str, *words: object, devices: tuple[str, str] = ("cpu", GPU)) -> tuple[Path, Path]:
    """Folders in which a command ran on the CPU and on the GPU; ``OUT`` in its words is a file or folder there."""
    folders = tmp_path / "cpu", tmp_path / "gpu"
    for folder, device in zip(folders, devices, strict=True):
        folder.mkdir(exist_ok=True)
        result = run_command(
            name, *(str(word).replace("OUT", str(folder / "out")) for word in words), "--device", device
        )
        assert result.exit_code == 0, result.output
    return folders


def assert_close(folders: tuple[Path, Path], to: float) -> None:
    """All volumes of two folders are alike, to a part of the largest voxel."""
    names = [path.name for path in folders[0].glob("*.mrc")]
    assert names
    for name in names:
        ours, other = (read_volume(folder / name)[0] for folder in folders)
        assert ours.shape == other.shape and ours.std() > 0
        np.testing.assert_allclose(other, ours, atol=to * np.abs(ours).max(), err_msg=name)


SUMS = {
    "fbp": "--method fbp",
    "fbp, all else": "--method fbp --halves --ctf 2.0 --measured-only --contrast positive --normalize",
    "fbp, binned": "--method fbp --ctf 2.0 --ctf-mode wiener --bin 2 --filter sirt-like",
    "sirt": "--method sirt --iterations 3 --halves --measured-only --mask-gold",
    "sirt, held to a mask": "--method sirt --iterations 3 --subsets 3 --nonnegative --support MASK",
    "sart-tv": "--method sart-tv --iterations 2 --nonnegative --ctf 2.0",
}
FITS = {
    "hash": "--halves --contrast positive",
    "voxel, averaged": "--field voxel --average 2 --measured-only",
    "refined": "--refine",
    "l1": "--loss l1 --mask-gold",
    "huber, ctf": "--loss huber --normalize --ctf 2.0",
    "tensor": "--field tensor --prior boundary,wedge,isotropic",
}
ALIGNMENTS = {
    "tracks": "--fast --recon",
    "fit": "--start TRUTH --error-bars",
    "voxel": "--start TRUTH --field voxel --loss huber --warp bilinear",
    "network": "--start TRUTH --field voxel --loss l1 --warp network",
}


@pytest.mark.parametrize("words", SUMS.values(), ids=SUMS.keys())
def test_reconstruction(words: str, given: tuple[Path, Path], tmp_path: Path) -> None:
    mask = tmp_path / "mask.mrc"
    write_volume(mask, np.pad(np.ones((60, 10, 60), dtype=np.float32), ((2, 2), (5, 5), (2, 2))), 10.0)
    words = words.replace("MASK", str(mask))
    assert_close(made(tmp_path, "recon", *given, "-o", "OUT.mrc", *THICKNESS, *words.split()), TO)


@pytest.mark.parametrize("words", FITS.values(), ids=FITS.keys())
def test_field(words: str, given: tuple[Path, Path], tmp_path: Path) -> None:
    words = f"--method field --bin 2 {words}"
    folders = made(tmp_path, "recon", *given, "-o", "OUT.mrc", *THICKNESS, *words.split())
    assert_close(folders, TO_OF_FITS * (4 if "refine" in words else 1))  # which fits twice


@pytest.mark.parametrize("words", ALIGNMENTS.values(), ids=ALIGNMENTS.keys())
def test_alignment(words: str, given: tuple[Path, Path], tmp_path: Path) -> None:
    words = words.replace("TRUTH", str(given[1]))
    folders = made(tmp_path, "align", given[0], "-o", "OUT", *THICKNESS, *words.split())
    ours, other = (read_alignment(folder / "out") for folder in folders)
    np.testing.assert_allclose(other.shift_px, ours.shift_px, atol=0.05)
    np.testing.assert_allclose(other.linear, ours.linear, atol=1e-3)
    records = [json.loads((folder / "out" / "ts_align.json").read_text()) for folder in folders]
    assert records[0].keys() == records[1].keys()


def test_local_reconstruction(given: tuple[Path, Path], tmp_path: Path) -> None:
    words = "--halves --ctf 2.0 --measured-only".split()
    assert_close(made(tmp_path, "infer", *given, "-o", "OUT.mrc", *THICKNESS, *words), TO)


def test_training(series: Path, tmp_path: Path) -> None:
    truth, _ = read_volume(series / "ts_truth.mrc")
    write_volume(tmp_path / "reference.mrc", truth, 10.0)
    pairs = list_of_two(tmp_path / "pairs.star", series / "ts.mrc", series / "ts_truth.json", "reference.mrc")
    words = "-o", "OUT", "--pairs", pairs, *"--orientation xyz --width 8 --batch 64".split()
    made(tmp_path, "train", *words, "--steps", 6)
    made(tmp_path, "train", *words, "--steps", 12, "--resume")
    ours, other = (json.loads((tmp_path / at / "out" / "weights.json").read_text()) for at in ("cpu", "gpu"))
    assert other["metrics"]["held_out_loss"] == pytest.approx(ours["metrics"]["held_out_loss"], rel=0.02)
    # and from one device to the other
    made(tmp_path, "train", *words, "--steps", 18, "--resume", devices=(GPU, "cpu"))


def test_comparison(series: Path, tmp_path: Path) -> None:
    truth, _ = read_volume(series / "ts_truth.mrc")
    noise = np.random.default_rng(0).normal(0, truth.std() / 2, (2, *truth.shape)).astype(np.float32)
    for name, volume in (("a", truth + noise[0]), ("b", np.roll(truth, (1, 0, 2), axis=(0, 1, 2)) + noise[1])):
        write_volume(tmp_path / f"{name}.mrc", volume, 10.0)
    words = "--register rigid --local --mask slab --tilts -60,60".split()
    folders = made(tmp_path, "fsc", tmp_path / "a.mrc", tmp_path / "b.mrc", "-o", "OUT", *words)
    assert_close(folders, 0.02)
    made(tmp_path, "fsc", tmp_path / "a.mrc", series / "ts_truth.mrc", "-o", "OUT", "--reference", "--overwrite")
    made(tmp_path, "fsc", tmp_path / "a.mrc", tmp_path / "b.mrc", "-o", "OUT", "--frc", "--overwrite")


def test_aligned_stack(given: tuple[Path, Path], tmp_path: Path) -> None:
    words = "--bin 2 --dose-weight --dose-per-tilt 3".split()
    folders = made(tmp_path, "export", *given, "-o", "OUT.mrc", *words)
    assert_close(folders, 1e-4)


@pytest.mark.parametrize("last_step", [3, 12])
def test_a_fit_goes_on(
    last_step: int, given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the checkpoint of a run that stopped in its first scale, and in the search of its last."""
    words = "recon", *given, "-o", "OUT.mrc", *THICKNESS, "--method", "field", "--field", "voxel", "--bin", 2
    step, done = OnDevice.step, list[int]()

    def stopping(self: OnDevice, number: int) -> None:
        if len(done) == last_step:
            raise KeyboardInterrupt
        done.append(number)
        step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr("inrtomo.align.checkpoint.SAVE_EVERY_S", 0.0)
        patch.setattr(OnDevice, "step", stopping)
        (tmp_path / "gpu").mkdir()
        stopped = run_command(
            *(str(word).replace("OUT", str(tmp_path / "gpu" / "out")) for word in words), "--device", GPU
        )
        assert stopped.exit_code == 130 and (tmp_path / "gpu" / "out_checkpoint.npz").exists()
    (tmp_path / "cpu").mkdir()
    for folder, more in (("cpu", ()), ("gpu", ("--resume",))):
        out = str(tmp_path / folder / "out")
        done_now = run_command(*(str(word).replace("OUT", out) for word in words), "--device", GPU, *more)
        assert done_now.exit_code == 0, done_now.output
    assert_close((tmp_path / "cpu", tmp_path / "gpu"), 1e-5)


def test_two_devices_share_fits(given: tuple[Path, Path], tmp_path: Path) -> None:
    """A process on each, steps recorded with their sums over both."""
    words = "--method field --field voxel --bin 2".split()
    devices = GPU, "cuda:0,cuda:1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share, "_follow", follow)
        assert_close(made(tmp_path, "recon", *given, "-o", "OUT.mrc", *THICKNESS, *words, devices=devices), TO)
