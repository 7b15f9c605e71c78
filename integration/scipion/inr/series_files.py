"""A tilt series of Scipion as the files that the engine reads: stack, halves, angles, order and dose, defocus."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable, Sequence

import mrcfile
import numpy as np
from pwem.emlib.image.image_readers import ImageReadersRegistry

from .conventions import write_angles, write_xf

MRC_ENDINGS = (".mrc", ".mrcs", ".st", ".ali", ".map")
DAY = "01-Jan-00"


def is_file_name(ts_id: str) -> bool:
    """Whether a series' ID can be the name of a folder and a line of a text file."""
    return bool(ts_id) and ts_id.isprintable() and "/" not in ts_id and ts_id[0] not in ".-"


@dataclass
class View:
    """One image: its place (index from 1, file), its halves, angle (degrees), order (from 1), dose (e/Å²), matrix."""

    index: int
    path: str
    tilt_deg: float
    order: int
    enabled: bool
    prior_dose: float = 0.0
    dose: float = 0.0
    odd: str | None = None
    even: str | None = None
    matrix: np.ndarray | None = None


@dataclass
class Series:
    """A tilt series; its views are in the order of the stack."""

    ts_id: str
    views: list[View]
    sampling_A: float
    size: tuple
    axis_deg: float | None
    voltage_kV: float | None

    @property
    def matrices(self) -> list[np.ndarray]:
        """Raw to aligned, of all views. Raises ValueError when one has none."""
        found = [view.matrix for view in self.views if view.matrix is not None]
        if len(found) < len(self.views):
            raise ValueError("it has no alignment, or not for every image; align it first")
        return found

    @property
    def disabled(self) -> list[int]:
        """Places in the stack, from 0, of the views to leave out."""
        return [place for place, view in enumerate(self.views) if not view.enabled]

    @property
    def stack(self) -> str:
        return f"{self.ts_id}.mrc"


def read_series(ts) -> Series:
    """All that is needed of a ``TiltSeries``, so that its table is not kept open."""
    views = [_view(ti) for ti in ts.iterItems()]
    one_file = len({view.path for view in views}) == 1
    views.sort(key=lambda view: view.index if one_file else view.tilt_deg)
    acquisition = ts.getAcquisition()
    size = ts.getDim()
    return Series(
        ts_id=ts.getTsId(),
        views=views,
        sampling_A=ts.getSamplingRate(),
        size=(size[0], size[1]),
        axis_deg=acquisition.getTiltAxisAngle(),
        voltage_kV=acquisition.getVoltage(),
    )


def _view(ti) -> View:
    index, path = ti.getLocation()
    acquisition = ti.getAcquisition()
    dose = (acquisition.getDosePerFrame() or 0.0) if acquisition is not None else 0.0
    accumulated = (acquisition.getAccumDose() or 0.0) if acquisition is not None else 0.0
    odd, even = (ti.getOdd(), ti.getEven()) if ti.hasOddEven() else (None, None)
    matrix = ti.getTransform().getMatrix() if ti.hasTransform() else None  # a transform read back may be empty
    return View(
        index=max(1, index or 1),  # a file of one image has index 0
        path=path,
        tilt_deg=ti.getTiltAngle(),
        order=ti.getAcquisitionOrder(),
        enabled=ti.isEnabled(),
        prior_dose=max(0.0, accumulated - dose),
        dose=dose,
        odd=odd,
        even=even,
        matrix=None if matrix is None else np.array(matrix, dtype=float),
    )


# --- files ---------------------------------------------------------------------------------------------------------


def write_series(series: Series, folder: str) -> str:
    """Write ``ID.mrc``, its halves where there are any, ``ID.rawtlt`` and ``ID.mrc.mdoc``; returns the stack's path."""
    os.makedirs(folder, exist_ok=True)
    stack = os.path.join(folder, series.stack)
    _place_stack(stack, [(view.index, view.path) for view in series.views], series.sampling_A)
    if all(view.odd and view.even for view in series.views):
        for ending, half in (("_odd", "odd"), ("_even", "even")):
            places = [_place(getattr(view, half)) for view in series.views]
            _place_stack(os.path.join(folder, f"{series.ts_id}{ending}.mrc"), places, series.sampling_A)
    write_angles(angles_path(series, folder), [view.tilt_deg for view in series.views])
    _write_mdoc(f"{stack}.mdoc", series)
    return stack


def angles_path(series: Series, folder: str) -> str:
    return os.path.join(folder, f"{series.ts_id}.rawtlt")


def write_alignment(series: Series, folder: str) -> str:
    """Write ``ID.xf`` and ``ID.tlt`` with the alignment that the set holds; returns the path of the ``.xf``."""
    os.makedirs(folder, exist_ok=True)
    base = os.path.join(folder, series.ts_id)
    write_xf(f"{base}.xf", series.matrices)
    write_angles(f"{base}.tlt", [view.tilt_deg for view in series.views])
    return f"{base}.xf"


def _place(location: str) -> tuple:
    """Index (from 1) and file of ``index@file``."""
    index, _, path = location.rpartition("@")
    return (int(index) if index else 1), path


def _place_stack(target: str, places: Sequence[tuple], sampling_A: float) -> None:
    """A link to the file where the images are all of one MRC stack, in its order; else a stack of them."""
    if os.path.lexists(target):
        os.remove(target)
    paths = {path for _, path in places}
    source = places[0][1]
    if len(paths) == 1 and source.lower().endswith(MRC_ENDINGS):
        with mrcfile.open(source, header_only=True, permissive=True) as mrc:
            sections = int(mrc.header.nz)
        if [index for index, _ in places] == list(range(1, sections + 1)):
            # relative, so that a project can be moved
            os.symlink(os.path.relpath(os.path.realpath(source), os.path.dirname(os.path.realpath(target))), target)
            return
    read = _reader()
    first = read(*places[0])
    partial = f"{target}.part"
    shape = (len(places), *first.shape)
    with mrcfile.new_mmap(partial, shape=shape, mrc_mode=2, overwrite=True) as mrc:
        for section, (index, path) in enumerate(places):
            mrc.data[section] = first if section == 0 else read(index, path)
        mrc.voxel_size = sampling_A
    _put_in_place(partial, target)


def _put_in_place(partial: str, target: str) -> None:
    """Rename a complete file: it and its name are on the disk before anything relies on them."""
    _sync(partial)
    os.replace(partial, target)
    _sync(os.path.dirname(target) or ".")


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reader() -> Callable[[int, str], np.ndarray]:
    """``read(index, path)``: image ``index`` (from 1) of a file in any format Scipion reads, float32 ``(ny, nx)``."""

    def read(index: int, path: str) -> np.ndarray:
        if path.lower().endswith(MRC_ENDINGS):
            with mrcfile.mmap(path, permissive=True) as mrc:
                return np.array(mrc.data if mrc.data.ndim == 2 else mrc.data[index - 1], dtype=np.float32)
        image = ImageReadersRegistry.open(f"{index}@{path}").getImage(0)
        return np.array(image, dtype=np.float32)

    return read


def _write_mdoc(path: str, series: Series) -> None:
    """What the engine takes from an ``.mdoc``: order and dose. Its times say nothing but the order."""
    lines = [
        f"PixelSpacing = {series.sampling_A:.6g}",
        f"ImageFile = {series.stack}",
        "",
        "[T = Written by scipion-em-inrtomo; the times only give the order of acquisition]",
        "",
    ]
    for section, view in enumerate(series.views):
        minutes, seconds = divmod(view.order, 60)
        hours, minutes = divmod(minutes, 60)
        lines += [f"[ZValue = {section}]", f"TiltAngle = {view.tilt_deg:.4f}"]
        if view.dose > 0:
            lines += [f"ExposureDose = {view.dose:.6g}", f"PriorRecordDose = {view.prior_dose:.6g}"]
        lines += [f"DateTime = {DAY}  {hours:02d}:{minutes:02d}:{seconds:02d}", ""]
    with open(path, "w") as file:
        file.write("\n".join(lines))


# --- contrast transfer function ------------------------------------------------------------------------------------


def write_ctf(series: Series, ctf_series, path: str) -> int:
    """Write CTFFIND's text for the images that have a CTF, and return how many; the order of acquisition matches them.

    The engine interpolates the defocus of images without one from their neighbours.
    """
    by_order = {}
    for ctf in ctf_series.iterItems():
        if ctf.isEnabled():
            phase = ctf.getPhaseShift() if ctf.hasPhaseShift() else 0.0
            key = ctf.getAcquisitionOrder()
            by_order[key] = (ctf.getDefocusU(), ctf.getDefocusV(), ctf.getDefocusAngle(), np.radians(phase or 0.0))
    rows = [(place + 1, *by_order[view.order]) for place, view in enumerate(series.views) if view.order in by_order]
    with open(path, "w") as file:
        file.write("# image, defocus 1 and 2 (A), azimuth of 1 (degrees), phase shift (radians), fit, resolution (A)\n")
        for image, u, v, angle, phase in rows:
            file.write(f"{image} {u:.1f} {v:.1f} {angle:.3f} {phase:.6f} 0.0 0.0\n")
    return len(rows)
