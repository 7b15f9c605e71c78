"""Alignments written and read back in every format, found in folders, scaled to their series, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import alignment_paths, read_alignment, write_alignment
from inrtomo.io.alignment_json import alignment_from_dict, alignment_to_dict
from inrtomo.io.mrc import write_stack
from inrtomo.metrics.alignment import compare_alignments
from inrtomo.tiltseries import TiltSeries, open_tilt_series

SIZE, N = (120, 100), 7
TILT = np.linspace(-60.123, 60.123, N)


def truth(axis_deg: float = 85.3, scale: float = 1.0) -> Alignment:
    """An alignment with everything in it; ``scale`` makes the same one for larger images."""
    rng = np.random.default_rng(3)
    x, y = (np.linspace(-s / 2, s / 2, 5) * scale for s in SIZE)
    size = (int(SIZE[0] * scale), int(SIZE[1] * scale))
    plain = Alignment.identity(TILT, size, axis_deg, 10.0 / scale)
    return replace(
        plain,
        linear=plain.linear @ (np.eye(2) + 0.01 * rng.normal(size=(N, 2, 2))),
        shift_px=scale * rng.normal(size=(N, 2)) * 10,
        warp=LocalWarp(x, y, scale * rng.normal(size=(N, 5, 5, 2)), "bicubic"),
        x_tilt_deg=np.full(N, 1.234),
        excluded={2: "dark", 5: "blank"},
    )


def series(folder: Path, size: tuple[int, int] = SIZE, n: int = N, pixel: float | None = 10.0) -> TiltSeries:
    images = np.random.default_rng(0).normal(size=(n, size[1], size[0]))
    write_stack(folder / "ts.mrc", images, pixel, overwrite=True)
    (folder / "ts.rawtlt").write_text("".join(f"{a}\n" for a in np.linspace(-60, 60, n)))
    return open_tilt_series(folder / "ts.mrc")


def same(a: Alignment, b: Alignment, tolerance_px: float) -> bool:
    """Whether two maps agree over the view, and everything beside the maps too."""
    u = np.stack(np.meshgrid(*(np.linspace(-s / 2, s / 2, 41) for s in a.aligned_size)), axis=-1)
    apart = max(np.abs(a.aligned_to_raw(m, u) - b.aligned_to_raw(m, u)).max() for m in range(a.n_tilts))
    angles = max(np.abs(a.tilt_deg - b.tilt_deg).max(), np.abs(a.x_tilt_deg - b.x_tilt_deg).max())
    return apart < tolerance_px and angles < 1e-4 and a.image_size == b.image_size and a.n_tilts == b.n_tilts


@pytest.mark.parametrize("axis", [0.0, 85.3, -175.0])
def test_truth_written_for_imod_and_read_back_scores(tmp_path: Path, axis: float) -> None:
    a = truth(axis)
    paths = write_alignment(tmp_path / "out", "ts", a)
    assert paths == alignment_paths(tmp_path / "out", "ts") and all(path.is_file() for path in paths)
    for path in (tmp_path / "out", paths[0], paths[3]):
        b = read_alignment(path)
        assert same(a, b, 0.02) and set(b.excluded) == {2, 5} and b.pixel_size_A == 10
        assert compare_alignments(a, b, 40).rms_px < 0.01
    linear = read_alignment(paths[0]).without_warp()
    np.testing.assert_allclose(linear.linear, a.linear, atol=1e-7)
    np.testing.assert_allclose(linear.shift_px, a.shift_px, atol=1e-3)


def test_the_xf_alone_is_read_where_there_is_no_warp_file(tmp_path: Path) -> None:
    a = truth().without_warp()
    paths = write_alignment(tmp_path, "ts", a)
    paths[3].unlink()
    assert same(a, read_alignment(paths[0]), 2e-3)  # tilt.com says how large the images are
    paths[5].unlink()
    with pytest.raises(InputError, match="ts.mrc"):
        read_alignment(paths[0])
    assert same(a, read_alignment(paths[0], SIZE), 2e-3)
    assert same(a, read_alignment(paths[0], series(tmp_path)), 2e-3)
    assert same(a, read_alignment(paths[0]), 2e-3)  # now the stack is there


def test_a_warp_file_out_of_date_is_noticed(tmp_path: Path) -> None:
    paths = write_alignment(tmp_path, "ts", truth())
    write_alignment(tmp_path / "new", "ts", replace(truth(), shift_px=truth().shift_px + 0.1))
    (tmp_path / "new" / "ts.xf").replace(paths[0])
    with pytest.raises(InputError, match="ts_warp.xf.*ts.xf"):
        read_alignment(paths[0])


def test_json_of_truth_and_result(tmp_path: Path) -> None:
    a = truth()
    values = json.loads(json.dumps(alignment_to_dict(a)))
    assert same(a, alignment_from_dict(values), 1e-9)
    (tmp_path / "ts_truth.json").write_text(json.dumps({**values, "seed": 3}))
    assert same(a, read_alignment(tmp_path), 1e-9)
    (tmp_path / "ts_align.json").write_text(json.dumps({"version": 1, "alignment": values}))
    b = read_alignment(tmp_path)
    assert same(a, b, 1e-9) and b.excluded == a.excluded and b.warp is not None and b.warp.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tilt_deg", [0, 1]),
        ("tilt_deg", "x"),
        ("linear", [[1, 0], [0, 1]]),
        ("linear", np.zeros((N, 2, 2)).tolist()),
        ("shift_px", [[float("nan"), 0]] * N),
        ("image_size", [0, 5]),
        ("image_size", 5),
        ("warp", {"x": [0, 1], "y": [0, 1], "vectors": [0], "interpolation": "bicubic"}),
        ("warp", {"x": [0, 1], "y": [0, 1], "vectors": np.zeros((N, 2, 2, 2)).tolist(), "interpolation": "magic"}),
        ("warp", {"x": [1, 1], "y": [0, 1], "vectors": np.zeros((N, 2, 2, 2)).tolist(), "interpolation": "bicubic"}),
        ("warp", {"x": [1, 1]}),
        ("excluded", {"a": "b"}),
        ("excluded", [1]),
    ],
)
def test_damaged_json(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**alignment_to_dict(truth()), key: value}))
    with pytest.raises(InputError, match="a.json"):
        read_alignment(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"alignment": 3}'])
def test_json_without_an_alignment(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json"):
        read_alignment(tmp_path / "a.json")


def test_an_alignment_of_the_binned_stack_is_scaled(tmp_path: Path) -> None:
    notes: list[str] = []
    write_alignment(tmp_path / "out", "ts", truth())
    double = series(tmp_path, (2 * SIZE[0], 2 * SIZE[1]), pixel=5.0)
    b = read_alignment(tmp_path / "out", double, notes)
    assert same(truth(scale=2), b, 0.05) and b.pixel_size_A == 5 and any("scaled by 2" in note for note in notes)


def test_an_alignment_of_another_series_is_refused(tmp_path: Path) -> None:
    write_alignment(tmp_path / "out", "ts", truth())
    with pytest.raises(InputError, match="7.*9"):
        read_alignment(tmp_path / "out", series(tmp_path, n=9))
    with pytest.raises(InputError, match="120 x 100.*100 x 120"):
        read_alignment(tmp_path / "out", series(tmp_path, (100, 120)))


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    paths = write_alignment(tmp_path, "ts", truth())
    for path in paths[:-1]:
        path.unlink()
    with pytest.raises(InputError, match="tilt.com.*--overwrite"):
        write_alignment(tmp_path, "ts", truth())
    assert not any(path.exists() for path in paths[:-1])
    write_alignment(tmp_path, "ts", truth(), overwrite=True)
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file"):
            write_alignment(folder, "ts", truth())


def test_folders_with_nothing_or_too_much(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no alignment"):
        read_alignment(tmp_path)
    with pytest.raises(InputError, match="no such"):
        read_alignment(tmp_path / "none")
    write_alignment(tmp_path, "ts", truth())
    write_alignment(tmp_path / "b", "other", truth())
    for path in alignment_paths(tmp_path / "b", "other")[:4]:
        path.replace(tmp_path / path.name)
    with pytest.raises(InputError, match="other.xf, ts.xf"):
        read_alignment(tmp_path)
    assert same(truth(), read_alignment(tmp_path, series(tmp_path)), 0.02)  # the series has the name of one of them


def test_missing_angles(tmp_path: Path) -> None:
    paths = write_alignment(tmp_path / "out", "ts", truth())
    paths[1].write_text("0\n" * N)
    with pytest.raises(InputError, match="ts.tlt.*0"):
        read_alignment(paths[0])
    paths[1].unlink()
    for path in (paths[0], paths[3]):
        with pytest.raises(InputError, match="ts.tlt"):
            read_alignment(path)
    ours = series(tmp_path)
    assert read_alignment(paths[0], ours).tilt_deg.tolist() == ours.tilt_deg.tolist()


def test_one_transform_for_all(tmp_path: Path) -> None:
    (tmp_path / "a.xf").write_text("1 0 0 1 3 4\n")
    (tmp_path / "a.tlt").write_text("-10\n0\n10\n")
    a = read_alignment(tmp_path / "a.xf", (64, 64))
    assert a.n_tilts == 3 and (a.shift_px == [3, 4]).all()


def test_an_etomo_folder(shared_data: Path) -> None:
    notes: list[str] = []
    a = read_alignment(shared_data / "interop" / "imod" / "BB", notes=notes)
    assert a.n_tilts == 61 and a.image_size == (512, 512) and list(a.excluded) == [0]
    assert a.x_tilt_deg == pytest.approx(np.full(61, 1.94)) and a.tilt_deg[0] == 65.06
    assert any("BBalocal.xf" in note for note in notes)
    b = read_alignment(shared_data / "interop" / "imod" / "misc" / "etomofiles_TS_001")
    assert b.n_tilts == 40 and b.rotation_deg == pytest.approx(np.full(40, 84.1), abs=0.2)
    assert list(b.excluded) == [39] and b.image_size == (1, 1)  # what its .edf says, and its shrunken stack


def test_com_files_and_aln(tmp_path: Path, shared_data: Path) -> None:
    write_alignment(tmp_path, "ts", truth())
    assert same(truth(), read_alignment(tmp_path / "newst.com"), 0.02)
    with pytest.raises(InputError, match="newstack"):
        read_alignment(tmp_path / "tilt.com")
    a = read_alignment(shared_data / "interop" / "aretomo" / "alnfile" / "global_no_local.aln", (4096, 4096))
    assert a.n_tilts == 61


def test_mirrored_images_are_said_and_refused_where_only_some_are(tmp_path: Path) -> None:
    images, notes = series(tmp_path), list[str]()
    (tmp_path / "a.tlt").write_text((tmp_path / "ts.rawtlt").read_text())
    mirrored, plain = "-1 0 0 1 0.5 0\n", "1 0 0 1 0.5 0\n"
    (tmp_path / "a.xf").write_text(mirrored * N)
    read_alignment(tmp_path / "a.xf", images, notes)
    assert any("mirror the images" in note for note in notes)
    (tmp_path / "a.xf").write_text(plain * 3 + mirrored + plain * (N - 4))
    with pytest.raises(InputError, match=r"a\.xf: the transform of image 3 .* mirrors it"):
        read_alignment(tmp_path / "a.xf", images)


@pytest.mark.parametrize(("name", "said"), [("tilt.com", "runs no newstack.*folder"), ("ts.edf", "give its folder")])
def test_files_of_etomo_that_hold_no_transforms(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_text("$tilt -StandardInput\nTILTFILE ts.tlt\nTHICKNESS 40\n")
    with pytest.raises(InputError, match=said):
        read_alignment(tmp_path / name, series(tmp_path))
