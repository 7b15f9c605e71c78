"""Damaged images, checkpoints and fields: read whole or refused in a sentence, nothing large allocated, nothing run."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st

from inrtomo.align.checkpoint import Checkpoint
from inrtomo.align.placed_field import PlacedField
from inrtomo.errors import InputError
from inrtomo.fields import load_field, make_field
from inrtomo.io.images import open_images
from inrtomo.io.mrc import read_volume
from inrtomo.io.npz import read_npz
from inrtomo.tiltseries import open_tilt_series
from tests.fuzzing import BYTES, DAMAGE, LIES, bounded, damaged, damaged_bytes, fuzz, read_or_refused

pytestmark = pytest.mark.slow
Damage = list[tuple[str, int]]


# --- images --------------------------------------------------------------------------------------------------------


@fuzz
@given(st.lists(st.tuples(st.integers(0, 255), st.sampled_from(LIES)), max_size=6), BYTES)
def test_mrc(tiny_series: Path, tmp_path: Path, lies: list[tuple[int, int]], damage: Damage) -> None:
    """Whole numbers of the header, and anything else; the second file has an extended header."""
    raw = bytearray((tiny_series / "ts.mrc").read_bytes()[: 1024 + 4 * 96 * 96 * 3])
    raw[8:12] = (3).to_bytes(4, "little")
    for at, value in lies:
        raw[4 * at : 4 * at + 4] = value.to_bytes(4, "little", signed=True)
    path = tmp_path / "ts.mrc"
    (tmp_path / "ts.rawtlt").write_text("-3\n0\n3\n")
    for extended in (b"", bytes(range(256)) * 3):
        header = bytearray(raw[:1024])
        if extended and not lies:
            header[92:96] = len(extended).to_bytes(4, "little")
            header[104:108] = b"SERI"
        path.write_bytes(damaged_bytes(bytes(header) + extended + bytes(raw[1024:]), damage))
        with read_or_refused("ts."):
            series = open_tilt_series(path)
            for i in range(series.n_tilts):
                assert series.image(i).shape == series.size[::-1]
        with read_or_refused("ts.mrc"):
            read_volume(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
@fuzz
@given(damage=BYTES)
@example(damage=[("cut", 1160), ("lie", 96592138)])  # a page whose size is a tuple
def test_tiff(tmp_path: Path, compression: str | None, damage: Damage) -> None:
    path = tmp_path / "sound.tif"
    if not path.exists():
        images = np.random.default_rng(0).integers(0, 255, (3, 9, 11), dtype=np.uint8)
        tifffile.imwrite(path, images, compression=compression, photometric="minisblack")
    (tmp_path / "ts.tif").write_bytes(damaged_bytes(path.read_bytes(), damage))
    with read_or_refused("ts.tif"):
        stack = open_images(tmp_path / "ts.tif")
        for k in range(min(stack.shape[0], 5)):
            assert stack.image(k).shape == stack.shape[1:]


# --- checkpoints and fields ----------------------------------------------------------------------------------------

IDENTITY = {"input": "0f", "warp": "bicubic"}
BOX = (-8.0, 8.0, -8.0, 8.0, -4.0, 4.0)
KINDS = ("hash", "voxel", "tensor", "mlp", "siren")


def write_checkpoint(path: Path) -> None:
    Checkpoint(path, IDENTITY, {"seconds": {"coarse": 1.0}}, {"joint.shift": np.arange(12.0)}).save()


def write_field(path: Path, kind: str = "hash") -> None:
    field = make_field(kind, BOX, 2.0, 3, 2 if kind == "hash" else None, width=8, hidden=1, log2_table=8, plane=6)
    PlacedField(field, np.eye(3), np.zeros(3), 2).save(path)


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "ts_checkpoint.npz": (write_checkpoint, lambda path: Checkpoint.resume(path, IDENTITY)),
    "ts_field.npz": (write_field, PlacedField.load),
}


@pytest.mark.parametrize("name", READERS)
@fuzz
@given(damage=BYTES)
def test_npz(tmp_path: Path, name: str, damage: Damage) -> None:
    write, read = READERS[name]
    path, sound = tmp_path / name, tmp_path / "sound"
    if not sound.exists():
        write(path)
        read(path)
        sound.write_bytes(path.read_bytes())
    path.write_bytes(damaged_bytes(sound.read_bytes(), damage))
    with read_or_refused(name):
        read(path)


@pytest.mark.parametrize("kind", KINDS)
@fuzz
@given(damage=DAMAGE)
def test_fields_whose_configuration_lies(tmp_path: Path, kind: str, damage: list[tuple[str, int, str]]) -> None:
    """Parts that fit their checksums: what somebody edited, or another version wrote."""
    path, sound = tmp_path / "ts_field.npz", tmp_path / "sound.npz"
    if not sound.exists():
        write_field(sound, kind)
        assert PlacedField.load(sound).field.config["kind"] == kind
    arrays = read_npz(sound)
    arrays["config"] = np.array(damaged(str(arrays["config"]), damage))
    np.savez(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    with read_or_refused("ts_field.npz"):
        load_field(path)


@fuzz
@given(damage=DAMAGE)
def test_checkpoints_whose_head_lies(tmp_path: Path, damage: list[tuple[str, int, str]]) -> None:
    path, sound = tmp_path / "ts_checkpoint.npz", tmp_path / "sound.npz"
    if not sound.exists():
        write_checkpoint(sound)
    arrays = read_npz(sound)
    arrays["__head__"] = np.array(damaged(str(arrays["__head__"]), damage))
    np.savez(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    with read_or_refused("ts_checkpoint.npz"):
        Checkpoint.resume(path, IDENTITY)


def npy(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    """A .npy of so many numbers, of which only the first few are there."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(64)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("shape", [(10**13,), (10**6, 10**6), (-1, 8), (2**62, 2**62)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_cannot_be_in_its_file(
    tmp_path: Path, name: str, shape: tuple[int, ...], compression: int
) -> None:
    path = tmp_path / name
    with zipfile.ZipFile(path, "w", compression) as archive:
        for part in ("__head__", "config", "parameters"):
            archive.writestr(f"{part}.npy", npy(shape))
    with bounded(), pytest.raises(InputError, match=name):
        READERS[name][1](path)


class Trap:
    """Somebody's code, run by whoever opens the pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("member", ["__head__", "config", "parameters", "joint.shift", "rotation"])
def test_nothing_pickled_is_opened(tmp_path: Path, name: str, member: str) -> None:
    write, read = READERS[name]
    write(tmp_path / "sound.npz")
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "trap.npz", allow_pickle=True, **read_npz(tmp_path / "sound.npz") | {member: trap})  # type: ignore[arg-type]
    (tmp_path / "trap.npz").replace(tmp_path / name)
    with pytest.raises(InputError, match=name):
        read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / name).write_bytes(trap.dumps())  # a bare pickle, which numpy would open too if it were allowed to
    with pytest.raises(InputError, match=name):
        read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_the_trap_works(tmp_path: Path) -> None:
    np.savez(tmp_path / "trap.npz", trap=np.array([Trap(tmp_path / "sprung")], dtype=object))
    with np.load(tmp_path / "trap.npz", allow_pickle=True) as archive:
        archive["trap"]
    assert (tmp_path / "sprung").is_dir()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(json.dumps({"c": 1}))}
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)  # type: ignore[arg-type]
    found = read_npz(tmp_path / "x.npz")
    assert found.keys() == arrays.keys() and all((found[name] == arrays[name]).all() for name in arrays)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz")
