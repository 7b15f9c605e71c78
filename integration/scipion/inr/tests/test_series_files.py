"""What the engine gets to read of a series: stacks in any order and number of files, order and dose, CTF; and local
motion for some of its images."""

import mrcfile
import numpy as np
import pytest
from pwem.objects import Transform
from tomo.objects import (
    CTFTomo,
    CTFTomoSeries,
    SetOfCTFTomoSeries,
    SetOfTiltSeries,
    TiltImage,
    TiltSeries,
    TomoAcquisition,
)

from inr import local_motion
from inr.conventions import read_angles, read_xf, write_angles, write_xf
from inr.series_files import Series, View, read_series, write_alignment, write_ctf, write_series

N = 5


def stack(path, values, size=(6, 8)):
    """An MRC stack whose images are constant."""
    with mrcfile.new(str(path), overwrite=True) as mrc:
        mrc.set_data(np.array([np.full(size, v) for v in values], dtype=np.float32))
        mrc.voxel_size = 2.0
    return str(path)


def tilt_series(folder, places, tilts, aligned=False, disabled=()):
    """A set of one series as Scipion stores it: sorted by tilt angle, whatever the order in the stack."""
    whole = SetOfTiltSeries.create(str(folder), template="tiltseries")
    whole.setSamplingRate(2.0)
    series = TiltSeries(tsId="TS_01")
    acquisition = TomoAcquisition(voltage=300, tiltAxisAngle=85.0, magnification=1)
    series.setAcquisition(acquisition)
    series.setSamplingRate(2.0)
    whole.append(series)
    for k in np.argsort(tilts):
        index, path = places[k]
        image = TiltImage(location=(index, path), tsId="TS_01", tiltAngle=tilts[k], acquisitionOrder=int(k) + 1)
        own = acquisition.clone()
        own.setDosePerFrame(3.0)
        own.setAccumDose(3.0 * (k + 1))
        image.setAcquisition(own)
        image.setSamplingRate(2.0)
        image.setEnabled(k not in disabled)
        if aligned:
            image.setTransform(Transform(matrix=np.array([[1, 0, k], [0, 1, -k], [0, 0, 1.0]])))
        series.append(image)
    series.write(properties=False)
    whole.update(series)
    whole.write()
    return whole


def first(whole):
    for series in whole.iterItems():
        return read_series(series)


def test_stack_in_order_of_acquisition(tmp_path):
    """The stack is linked, and its lines are in its own order although Scipion's table is sorted by tilt."""
    raw = stack(tmp_path / "raw.st", range(N))
    tilts = [0.0, 10.0, -10.0, 20.0, -20.0]
    whole = tilt_series(tmp_path, [(k + 1, raw) for k in range(N)], tilts, aligned=True, disabled=(3,))
    series = first(whole)
    assert series.disabled == [3] and series.axis_deg == 85.0 and series.size == (8, 6)
    path = write_series(series, str(tmp_path / "out"))
    assert (tmp_path / "out" / "TS_01.mrc").is_symlink()
    with mrcfile.open(path, permissive=True) as mrc:
        assert [image.mean() for image in mrc.data] == list(range(N))
    assert read_angles(str(tmp_path / "out" / "TS_01.rawtlt")) == tilts
    matrices = read_xf(write_alignment(series, str(tmp_path / "ali")))
    assert [m[0, 2] for m in matrices] == list(range(N)) and [m[1, 2] for m in matrices] == [-k for k in range(N)]
    mdoc = (tmp_path / "out" / "TS_01.mrc.mdoc").read_text()
    assert [float(line.split("=")[1]) for line in mdoc.splitlines() if line.startswith("TiltAngle")] == tilts
    assert "PriorRecordDose = 6" in mdoc and mdoc.count("[ZValue") == N


def test_an_image_without_a_matrix(tmp_path):
    raw = stack(tmp_path / "raw.mrc", range(N))
    series = first(tilt_series(tmp_path, [(k + 1, raw) for k in range(N)], [-20.0, -10.0, 0.0, 10.0, 20.0]))
    with pytest.raises(ValueError, match="no alignment"):
        write_alignment(series, str(tmp_path / "ali"))


@pytest.mark.parametrize("part", [True, False])
def test_stack_is_written_where_it_is_not_one_file(tmp_path, part):
    """Some images of a stack, or a file for each image: a stack of just these, in the order of the lines."""
    if part:
        raw = stack(tmp_path / "raw.mrc", range(N + 2))
        places = [(k + 2, raw) for k in range(N)]
        expected = [k + 1 for k in range(N)]
    else:
        places = [(1, stack(tmp_path / f"image{k}.mrc", [10 + k])) for k in range(N)]
        expected = [10 + k for k in range(N)]
    series = first(tilt_series(tmp_path, places, [-20.0, -10.0, 0.0, 10.0, 20.0]))
    path = write_series(series, str(tmp_path / "out"))
    assert not (tmp_path / "out" / "TS_01.mrc").is_symlink()
    with mrcfile.open(path) as mrc:
        assert [image.mean() for image in mrc.data] == expected
        assert mrc.voxel_size.x == pytest.approx(2.0)


def test_halves(tmp_path):
    raw, odd, even = (stack(tmp_path / f"{name}.mrc", np.arange(N) + k) for k, name in enumerate(("a", "o", "e")))
    whole = tilt_series(tmp_path, [(k + 1, raw) for k in range(N)], [-20.0, -10.0, 0.0, 10.0, 20.0])
    series = first(whole)
    for view in series.views:
        view.odd, view.even = f"{view.index}@{odd}", f"{view.index}@{even}"
    write_series(series, str(tmp_path / "out"))
    for name, plus in (("odd", 1), ("even", 2)):
        with mrcfile.open(str(tmp_path / "out" / f"TS_01_{name}.mrc")) as mrc:
            assert [image.mean() for image in mrc.data] == [k + plus for k in range(N)]


def test_ctf_is_matched_by_order_of_acquisition(tmp_path):
    raw = stack(tmp_path / "raw.mrc", range(N))
    tilts = [0.0, 10.0, -10.0, 20.0, -20.0]
    whole = tilt_series(tmp_path, [(k + 1, raw) for k in range(N)], tilts)
    all_ctf = SetOfCTFTomoSeries.create(str(tmp_path), template="ctf")
    all_ctf.setSetOfTiltSeries(whole)
    ctfs = CTFTomoSeries(tsId="TS_01")
    all_ctf.append(ctfs)
    for index, order in enumerate([5, 3, 1, 2]):  # by tilt, and none for the image taken fourth
        ctf = CTFTomo(index=index + 1, acqOrder=order)
        ctf.setStandardDefocus(20000 + 100 * order, 19000, 30)
        ctf.setPhaseShift(90.0)
        ctfs.append(ctf)
    ctfs.write(properties=False)
    all_ctf.update(ctfs)
    all_ctf.write()
    path = tmp_path / "ctf.txt"
    for each in all_ctf.iterItems():
        assert write_ctf(first(whole), each, str(path)) == 4
    rows = np.loadtxt(str(path))
    assert rows[:, 0].tolist() == [1, 2, 3, 5]
    assert rows[:, 1].tolist() == [20100, 20200, 20300, 20500]
    assert rows[:, 3].tolist() == [30] * 4 and np.allclose(rows[:, 4], np.pi / 2, atol=1e-5)


# --- local motion --------------------------------------------------------------------------------------------------


def views(orders, factor=1.0):
    """Aligned images with shifts of (order, -order) px at the sampling of the run."""
    made = []
    for place, order in enumerate(orders):
        shift = np.array([[1, 0, order / factor], [0, 1, -order / factor], [0, 0, 1.0]])
        made.append(View(place + 1, "raw.mrc", 10.0 * order, order, True, matrix=shift))
    return made


@pytest.fixture
def run(tmp_path):
    """A finished run of inr-align for images taken first, second, … , with a warp of 2 x 3 nodes."""
    folder = tmp_path / "Runs" / "000002_ProtInrAlign" / "extra" / "TS_01"
    folder.mkdir(parents=True)
    orders = [3, 1, 2, 5, 4]
    series = Series("TS_01", views(orders), 2.0, (8, 6), 0.0, 300.0)
    write_xf(str(folder / "TS_01.xf"), [view.matrix for view in series.views])
    write_angles(str(folder / "TS_01.tlt"), [view.tilt_deg for view in series.views])
    write_angles(str(folder / "TS_01.xtilt"), [0.5] * N)
    lines = ["3", f"8 6 {N} 1 2.0 1"]
    for order in orders:
        lines += ["0.0 4.0 2 0.0 3.0 3", f"1 0 0 1 {order} {-order}"]
        lines += [f"{order} 1 {order} 2 {order} 3 {order} 4", f"{order} 5 {order} 6"]
    (folder / "TS_01_warp.xf").write_text("\n".join(lines) + "\n")
    (folder / "TS_01_align.json").write_text('{"thickness_px": 40.0}')
    local_motion.write_record(series, str(folder))
    return folder


def test_run_is_found_by_its_matrices(run, tmp_path):
    same = Series("TS_01", views([3, 1, 2, 5, 4]), 2.0, (8, 6), 0.0, 300.0)
    found = local_motion.find_run(same, str(tmp_path))
    assert found is not None and found.specimen_px == 40.0
    assert local_motion.alignment_for(same, found, str(tmp_path / "ali")) == str(run)
    same.views[2].matrix[0, 2] += 0.1
    assert local_motion.find_run(same, str(tmp_path)) is None, "another program has shifted an image since"
    same.views[2].enabled = False
    assert local_motion.find_run(same, str(tmp_path)) is not None, "an image that is not used does not matter"
    assert local_motion.find_run(Series("TS_02", same.views, 2.0, (8, 6), 0.0, 300.0), str(tmp_path)) is None


def test_fewer_and_binned_images_keep_their_local_motion(run, tmp_path):
    """A set binned twofold without the image taken first: the lines and sections of the others, in its order."""
    orders = [2, 3, 4, 5]
    series = Series("TS_01", views(orders, factor=2.0), 4.0, (4, 3), 0.0, 300.0)
    found = local_motion.find_run(series, str(tmp_path))
    path = local_motion.alignment_for(series, found, str(tmp_path / "ali"))
    assert [m[0, 2] for m in read_xf(path)] == orders
    assert read_angles(path.replace(".xf", ".tlt")) == [10.0 * order for order in orders]
    numbers = (tmp_path / "ali" / "TS_01_warp.xf").read_text().split()
    assert numbers[:7] == ["3", "8", "6", "4", "1", "2.0", "1"]
    sections = np.array(numbers[7:], dtype=float).reshape(4, 24)
    assert sections[:, 10].tolist() == orders and sections[:, 12].tolist() == orders
    assert sections[0, 13::2].tolist() == [1, 2, 3, 4, 5, 6]
