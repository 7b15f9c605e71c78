"""The XML that Warp and M keep of a tilt series.

A point X (Å, from the volume's centre) is seen, in Å from the corner of the image, at

    q = Rz(AxisAngle) Ry(-(Angles + LevelAngleY)) Rx(LevelAngleX) (X + VolumeWarp(X, dose)) + AxisOffset + image / 2

and with local motion at ``q - GridMovement(q)``. So tilt angles are minus IMOD's, the axis is IMOD's, and an x-tilt is
minus ours. Grids are natural cubic splines over the image or volume, movement grids also over the tilts. The image's
centre is the index n / 2, ours (n - 1) / 2; offsets carry the half pixel. Checked against positions that Warp computed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.geometry import specimen_to_aligned
from inrtomo.io import keys, numbers
from inrtomo.io.belonging.order import order_of
from inrtomo.io.files import read_text, write_text
from inrtomo.io.keys import Section, left_out, no_matter, taken
from inrtomo.io.rigid import (
    LocalGrid,
    Rigid,
    fit_local_shifts,
    natural_spline,
    spline_weights,
    warp_from_local_shifts,
)
from inrtomo.io.series_record import SeriesRecord, series_name

Array = NDArray[np.float64]

MAX_BYTES = 64 * 2**20
MAX_NODES = 10**6
MAX_IMAGES = 100_000
MAX_SIDE = 10**6
MOTION = ("GridMovementX", "GridMovementY", "GridVolumeWarpX", "GridVolumeWarpY", "GridVolumeWarpZ")
NOT_OF_AN_ALIGNMENT = "defocus, which is no part of an alignment; inr-recon and inr-convert take it with --ctf"
XML = Section(
    "NAME.xml",
    (
        *taken("tilt angles, with the other sign", "Angles"),
        *taken("turn of the specimen before it is tilted, about x and y", "LevelAngleX", "LevelAngleY"),
        *taken("tilt axis from y, degrees", "AxisAngle"),
        *taken("Å by which the image is moved", "AxisOffsetX", "AxisOffsetY"),
        *taken("images that are used", "UseTilt"),
        *taken("exposure before the image", "Dose"),
        *taken("movies of the images", "MoviePath"),
        *taken("size of the images, by the pixel size of CTF", "ImageDimensionsAngstrom"),
        *taken("depth of the tomogram, where none is given", "VolumeDimensionsAngstrom"),
        *taken("local motion; of GridVolumeWarp in the middle of the volume, what is lost of depth is said", *MOTION),
        *left_out(NOT_OF_AN_ALIGNMENT, "GridCTF", "GridCTFDefocusDelta", "GridCTFPhase", usual=("0",)),
        *left_out("turns of particles, which move nothing", "GridAngleX", "GridAngleY", "GridAngleZ", usual=("0",)),
        *left_out("local motion as Warp 1 has it", "GridLocalX", "GridLocalY", "GridLocalZ", usual=("0",)),
        *left_out(
            "magnification that is not the same in all directions",
            *("MagnificationCorrection",),
            usual=("1 0 0 1", "1 1 0"),
        ),
        *left_out("hand of the defocus; give --ctf-hand -1 with --ctf", "AreAnglesInverted", usual=("False",)),
        *left_out("the series is not to be used", "UnselectManual", "UnselectFilter", usual=("False", "null", "None")),
        *no_matter("plane of the specimen that Warp measured", "PlaneNormal"),
        *no_matter("weights", "Bfactor", "Weight", "GridDoseBfacs", "GridDoseWeights", "GridLocationBfacs"),
        *no_matter("angle of the astigmatism", "GridCTFDefocusAngle"),
        *no_matter("share of an image that shows the volume", "FOVFraction"),
    ),
    "no matter here (power spectra, options, paths)",
)
QUANTITIES = {
    "Angles": numbers.TILT,
    "AxisAngle": numbers.AXIS,
    "AxisOffsetX": numbers.SHIFT_A,
    "AxisOffsetY": numbers.SHIFT_A,
    "Dose": numbers.DOSE,
    "LevelAngleX": numbers.X_TILT,
    "LevelAngleY": numbers.TILT,
    "CTF PixelSize": numbers.PIXEL_SIZE,
}
"""What the numbers of an element or attribute can be."""
HALF_PIXEL = 0.5
"""Warp's image centre, index n / 2, in our centred pixels."""
SAME_X_TILT_DEG = 5e-4


@dataclass(frozen=True)
class Grid:
    """Node values ``[w, z, y, x]`` of one of Warp's grids."""

    values: Array

    @property
    def moves(self) -> bool:
        return bool(self.values.any())

    def at_steps(self, steps: Array) -> Array:
        """The grid ``(len(steps), ny, nx)`` at positions 0 to 1 along z."""
        return np.einsum("tz,zyx->tyx", spline_weights(self.values.shape[1], steps), self.values[0])


# --- reading -------------------------------------------------------------------------------------------------------


def read_warp_xml(
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    pixel_size_A: float | None = None,
    notes: list[str] | None = None,
) -> SeriesRecord:
    """The alignment of a Warp or M tilt series.

    Args:
        image_size: (nx, ny) and
        pixel_size_A: of the images to align, where the file does not say.
        notes: receives sentences on what was left out.
    """
    path, notes = Path(path), notes if notes is not None else []
    root = _parsed(path)
    tilt = _column(root, "Angles", path)
    if tilt is None or not 0 < len(tilt) <= MAX_IMAGES:
        raise InputError(f"{path}: has no tilt angles; give the XML of a tilt series")
    n = len(tilt)
    columns = {name: _column(root, name, path, n) for name in ("AxisAngle", "AxisOffsetX", "AxisOffsetY", "Dose")}
    axis, offset_x, offset_y = (
        np.zeros(n) if columns[name] is None else np.asarray(columns[name])
        for name in ("AxisAngle", "AxisOffsetX", "AxisOffsetY")
    )
    pixel, size = _sampling(root, image_size, pixel_size_A, path)
    level_x, level_y = (_attribute(root, name, path, 1)[0] for name in ("LevelAngleX", "LevelAngleY"))
    rigid = Rigid(axis, np.stack([offset_x, offset_y], axis=1) / pixel + HALF_PIXEL)
    use = _words(root, "UseTilt")
    if use and len(use) != n:
        raise InputError(f"{path}: UseTilt has {len(use)} entries for {n} images; give another file")
    unclear = [k for k, word in enumerate(use, 1) if word.lower() not in ("true", "false")]
    if unclear:
        raise InputError(
            f"{path}: UseTilt, entry {unclear[0]}: {use[unclear[0] - 1][:40]!r} is not True or False; correct it"
        )
    alignment = Alignment(
        tilt_deg=-(tilt + level_y),
        linear=rigid.linear,
        shift_px=rigid.shift_px,
        image_size=size,
        pixel_size_A=pixel,
        x_tilt_deg=np.full(n, -level_x),
        excluded={k: "not used (Warp)" for k, word in enumerate(use) if word.lower() == "false"},
    )
    notes += keys.sentences(path.name, _found(root), XML.keys)
    volume = _attribute(root, "VolumeDimensionsAngstrom", path, 3) / pixel
    alignment = _with_local_motion(root, alignment, rigid, volume, columns["Dose"], path, notes)
    movies = tuple(_words(root, "MoviePath"))
    images = movies if len(movies) == n else None
    thickness = float(volume[2]) if volume[2] > 0 else None
    return SeriesRecord(alignment, series_name(path), None, columns["Dose"], images, thickness)


def _parsed(path: Path) -> ET.Element:
    """The root element; entities are refused, so that nothing can grow when it is read."""
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: is too large for the XML of a tilt series; give another file")
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: defines entities of its own, which Warp never does; give another file")
    try:
        root = ET.fromstring(text.encode("utf-8") if text.startswith("<?xml") else text)
    except (ET.ParseError, LookupError, ValueError):
        raise InputError(f"{path}: is damaged XML; copy it again") from None
    if root.tag != "TiltSeries":
        raise InputError(f"{path}: is not the XML of a Warp tilt series; give another file")
    return root


def _found(root: ET.Element) -> dict[str, str | list[str]]:
    """Attributes, and the nodes of all grids."""
    grids = {element.tag: [node.get("Value", "0") for node in element.findall("Node")] for element in root}
    return {**root.attrib, **grids}


def _words(root: ET.Element, name: str) -> list[str]:
    element = root.find(name)
    return [] if element is None else [line.strip() for line in (element.text or "").splitlines() if line.strip()]


def _finite(words: Sequence[str], what: str, path: Path) -> Array:
    quantity = QUANTITIES.get(what, numbers.ANY)
    return np.array(
        [numbers.read(word, f"{path}: {what}, entry {k}", quantity) for k, word in enumerate(words, 1)],
        dtype=np.float64,
    )


def _column(root: ET.Element, name: str, path: Path, count: int | None = None) -> Array | None:
    words = _words(root, name)
    if not words:
        return None
    if count is not None and len(words) != count:
        raise InputError(f"{path}: {name} has {len(words)} entries for {count} images; give another file")
    return _finite(words, name, path)


def _attribute(root: ET.Element, name: str, path: Path, count: int) -> Array:
    """Numbers of an attribute of the root, zeros where it is missing."""
    text = root.get(name, "")
    if not text.strip():
        return np.zeros(count)
    quantity = QUANTITIES.get(name, numbers.ANY)
    return np.array(numbers.read_list(text.strip("() "), f"{path}: {name}", (count,), quantity))


def _sampling(
    root: ET.Element, image_size: tuple[int, int] | None, pixel_size_A: float | None, path: Path
) -> tuple[float, tuple[int, int]]:
    """Pixel size and image size (px): the file's own where it says both, else those given."""
    found = [p.get("Value", "") for p in root.findall("CTF/Param") if p.get("Name") == "PixelSize"]
    own = _finite(found[:1], "CTF PixelSize", path)
    extent = _attribute(root, "ImageDimensionsAngstrom", path, 2)
    noted = float(own[0]) if len(own) and own[0] > 0 else None
    # calibrated since then: the lengths are still those of its own pixels
    fits = noted is not None and image_size is not None and bool((np.rint(extent / noted) == image_size).all())
    pixel = noted if fits else pixel_size_A or noted
    if pixel is None and image_size is not None and extent.min() > 0:
        pixel = float((extent / np.array(image_size)).mean())
    if pixel is None:
        raise InputError(f"{path}: does not say the pixel size; give the stack")
    if extent.min() > 0:
        size = np.rint(extent / pixel)
        if not 1 <= size.min() <= size.max() <= MAX_SIDE:
            raise InputError(f"{path}: gives images of {size[0]:g} x {size[1]:g} px; give another file")
        return pixel, (int(size[0]), int(size[1]))
    if image_size is None:
        raise InputError(f"{path}: does not say how large its images are; give the stack")
    return pixel, image_size


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError
    return int(text)


def _grid(root: ET.Element, name: str, path: Path) -> Grid:
    """A grid by its element's name, one node of zero where it is missing."""
    element = root.find(name)
    if element is None:
        return Grid(np.zeros((1, 1, 1, 1)))
    try:
        shape = [_whole(element.get(side, "1")) for side in ("Duration", "Depth", "Height", "Width")]
        if min(shape) < 1 or int(np.prod(shape, dtype=object)) > MAX_NODES:
            raise ValueError
        values = np.zeros(shape)
        for node in element.findall("Node"):
            at = tuple(_whole(node.get(axis, "0")) for axis in "WZYX")
            if any(not 0 <= k < side for k, side in zip(at, shape, strict=True)):
                raise ValueError
            values[at] = numbers.read(node.get("Value", "0"), f"{path}: {name}, node {at[::-1]}")
    except ValueError:
        raise InputError(f"{path}: {name} is damaged; give another file") from None
    margins = [_finite([element.get(f"Margin{axis}", "0")], name, path)[0] for axis in "XYZ"]
    if any(margins):
        raise InputError(f"{path}: {name} has margins, which cannot be read; give another file")
    return Grid(values)


def _with_local_motion(
    root: ET.Element,
    alignment: Alignment,
    rigid: Rigid,
    volume_px: Array,
    dose: Array | None,
    path: Path,
    notes: list[str],
) -> Alignment:
    """Movement grids, and what a warped volume's middle plane shows, as local motion."""
    assert alignment.pixel_size_A is not None
    pixel, size, n = alignment.pixel_size_A, alignment.image_size, alignment.n_tilts
    steps = np.arange(n) / max(n - 1, 1)
    movement = [_grid(root, f"GridMovement{axis}", path) for axis in "XY"]
    # node values (n, ny, nx) of either component, px
    nodes = [grid.at_steps(steps) / pixel for grid in movement]
    bend = _VolumeWarp([_grid(root, f"GridVolumeWarp{axis}", path) for axis in "XYZ"], volume_px, dose, n, pixel)

    def local_shifts(m: int, q: Array) -> Array:
        moved = q if not bend.moves else q + _bent(alignment, rigid, bend, m, q, 0.0)
        out = []
        for component in nodes:
            _, ny, nx = component.shape
            along_x = natural_spline(nx, size[0], moved[..., 0].ravel())
            along_y = natural_spline(ny, size[1], moved[..., 1].ravel())
            out.append(np.einsum("nj,ni,ji->n", along_y, along_x, component[m], optimize=True))
        return moved - q - np.stack(out, axis=-1).reshape(q.shape)

    if not (bend.moves or any(grid.moves for grid in movement)):
        return alignment
    tilts: list[int] = alignment.included.tolist()
    if bend.moves:
        worst = _depth_lost(alignment, rigid, bend, float(volume_px[2]))
        notes.append(
            f"{path.name}: GridVolumeWarp is read at the middle of the volume; what it says of depth is left out, up "
            f"to {worst:.2f} px at its top and bottom"
        )
    if any(grid.moves for grid in movement):
        notes.append(f"{path.name}: GridMovement read as local motion")
    return replace(alignment, warp=warp_from_local_shifts(local_shifts, rigid, size, tilts))


class _VolumeWarp:
    """Shifts of volume positions, px, per image."""

    def __init__(self, grids: list[Grid], volume_px: Array, dose: Array | None, n: int, pixel: float) -> None:
        self.moves = any(grid.moves for grid in grids) and bool(volume_px.min() > 0)
        self.volume_px = np.where(volume_px > 0, volume_px, 1.0)
        span = 0.0 if dose is None else float(np.ptp(dose))
        steps = np.zeros(n) if dose is None or span == 0 else (dose - dose.min()) / span
        # (n, nz, ny, nx) of every component
        self.nodes = [
            np.einsum("tw,wzyx->tzyx", spline_weights(grid.values.shape[0], steps), grid.values) / pixel
            for grid in grids
        ]

    def __call__(self, m: int, points: Array) -> Array:
        along = points.reshape(-1, 3) / self.volume_px + 0.5
        out = []
        for component in self.nodes:
            _, nz, ny, nx = component.shape
            weights = [spline_weights(k, along[:, axis]) for axis, k in enumerate((nx, ny, nz))]
            out.append(np.einsum("nx,ny,nz,zyx->n", *weights, component[m], optimize=True))
        return np.stack(out, axis=-1).reshape(points.shape)


def _bent(alignment: Alignment, rigid: Rigid, bend: _VolumeWarp, m: int, q: Array, z: float) -> Array:
    """By how much (raw px) a warped volume's points at height z are seen beside ``q``, where they would be unwarped."""
    tilt, x_tilt = float(alignment.tilt_deg[m]), float(alignment.x_tilt_deg[m])
    u = (q - rigid.offset_px[m]) @ rigid.linear[m].T
    # the point at height z that is seen at u: two equations for x and y
    axes = np.stack([specimen_to_aligned(axis, tilt, x_tilt) for axis in np.eye(3)], axis=-1)
    xy = (u - z * axes[:, 2]) @ np.linalg.inv(axes[:, :2]).T
    point = np.concatenate([xy, np.full((*xy.shape[:-1], 1), z)], axis=-1)
    return np.asarray(specimen_to_aligned(bend(m, point), tilt, x_tilt) @ rigid.linear[m])


def _depth_lost(alignment: Alignment, rigid: Rigid, bend: _VolumeWarp, depth: float) -> float:
    """Largest difference (px) over the images between what the middle and the surfaces of a volume show."""
    q = np.stack(np.meshgrid(*(np.linspace(-n / 2, n / 2, 7) for n in alignment.image_size)), axis=-1)
    worst = 0.0
    for m in alignment.included[:: max(1, len(alignment.included) // 8)]:
        middle = _bent(alignment, rigid, bend, int(m), q, 0.0)
        for z in (-depth / 2, depth / 2):
            worst = max(worst, float(np.abs(_bent(alignment, rigid, bend, int(m), q, z) - middle).max()))
    return worst


# --- writing -------------------------------------------------------------------------------------------------------


def write_warp_xml(
    path: str | Path, record: SeriesRecord, overwrite: bool = False, volume_px: tuple[int, int, int] | None = None
) -> list[str]:
    """Write a Warp XML; returns sentences on what it does not hold, or only nearly.

    An XML that is there already, and may be overwritten, keeps what else it holds (CTF, paths, B factors).

    Args:
        volume_px: (x, y, z) of the volume, where the file does not say yet.
    """
    path, a = Path(path), record.alignment
    if a.pixel_size_A is None:
        raise InputError(f"{record.name}: its pixel size is not known, which Warp needs; give the stack with --stack")
    notes: list[str] = []
    root = _template(path, a, overwrite, notes)
    pixel, name = a.pixel_size_A, path.name
    rigid = Rigid.part_of(a)
    grid = fit_local_shifts(a, rigid, natural_spline)
    x_tilt = float(np.median(a.x_tilt_deg))
    uneven = float(np.abs(a.x_tilt_deg - x_tilt).max())
    if uneven > SAME_X_TILT_DEG:
        notes.append(f"{name}: x-axis tilts that differ between images, by up to {uneven:.2f} degrees, are lost")
    if record.nominal_tilt_deg is not None:
        notes.append(f"{name}: holds one tilt angle an image, the refined one; the recorded angles are lost")
    root.set("LevelAngleX", f"{-x_tilt + 0.0:.9g}")
    root.set("LevelAngleY", "0")
    if not root.get("VolumeDimensionsAngstrom") and volume_px is not None:
        root.set("VolumeDimensionsAngstrom", ", ".join(f"{side * pixel:.9g}" for side in volume_px))
        if record.thickness_px is None:
            notes.append(f"{name}: no thickness is known; the volume is {volume_px[2]} px deep there")
    root.set("ImageDimensionsAngstrom", ", ".join(f"{side * pixel:.9g}" for side in a.image_size))
    offset = (rigid.offset_px - HALF_PIXEL) * pixel
    _set_column(root, "Angles", _written(-a.tilt_deg))
    if record.exposure_e_A2 is not None:
        _set_column(root, "Dose", _written(record.exposure_e_A2))
    elif root.find("Dose") is None:
        _set_column(root, "Dose", ["0"] * a.n_tilts)
        notes.append(f"{name}: no doses are known; they are written as 0")
    _set_column(root, "UseTilt", [str(m not in a.excluded) for m in range(a.n_tilts)])
    _set_column(root, "AxisAngle", _written(rigid.rotation_deg))
    _set_column(root, "AxisOffsetX", _written(offset[:, 0]))
    _set_column(root, "AxisOffsetY", _written(offset[:, 1]))
    if root.find("MoviePath") is None:
        _set_column(root, "MoviePath", list(record.images or [f"{record.name}_{m:03d}.mrc" for m in range(a.n_tilts)]))
        if record.images is None:
            notes.append(f"{name}: the movies' names are not known; they are made up")
    if root.find("CTF") is None:
        ET.SubElement(ET.SubElement(root, "CTF"), "Param", {"Name": "PixelSize", "Value": f"{pixel:.9g}"})
    for component, axis in enumerate("XY"):
        _set_grid(root, f"GridMovement{axis}", grid, component, a.n_tilts, pixel)
    for axis in "XYZ":
        _replace(root, f"GridVolumeWarp{axis}")
    if grid is not None:
        notes.append(
            f"{name}: the local motion is held by GridMovement of {grid.nodes} x {grid.nodes} nodes to "
            f"{grid.rms_px:.3f} px RMS, {grid.largest_px:.3f} px at most"
        )
    ET.indent(root, "\t")
    write_text(
        path, '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n", overwrite
    )
    return notes


def _template(path: Path, a: Alignment, overwrite: bool, notes: list[str]) -> ET.Element:
    """The XML that is there, of as many images in the same order, or a new one."""
    if overwrite and path.is_file():
        try:
            old = _parsed(path)
        except InputError:
            old = None
        angles = None if old is None or len(_words(old, "Angles")) != a.n_tilts else _column(old, "Angles", path)
        if old is not None and angles is not None:
            if order_of(-angles, a.tilt_deg).is_same:
                notes.append(f"{path.name}: keeps what else it held (CTF, paths, weights)")
                return old
            notes.append(f"{path.name}: what it held before is of images in another order and is not kept")
    return ET.Element("TiltSeries", {"AreAnglesInverted": "False", "PlaneNormal": "0, 0, 1"})


def _written(values: Array) -> list[str]:
    return [f"{value:.6f}" for value in np.round(values, 6) + 0.0]


def _replace(root: ET.Element, name: str) -> ET.Element:
    """A new, empty element in the place of the old one."""
    old = root.find(name)
    new = ET.Element(name)
    if old is None:
        root.append(new)
    else:
        root.insert(list(root).index(old), new)
        root.remove(old)
    if name.startswith("GridVolumeWarp"):
        new.attrib.update({"Width": "1", "Height": "1", "Depth": "1", "Duration": "1"})
        ET.SubElement(new, "Node", {"X": "0", "Y": "0", "Z": "0", "W": "0", "Value": "0"})
    return new


def _set_column(root: ET.Element, name: str, words: list[str]) -> None:
    _replace(root, name).text = "\n".join(words)


def _set_grid(root: ET.Element, name: str, grid: LocalGrid | None, component: int, n: int, pixel: float) -> None:
    """Movement is taken away from a position, so it is minus the local shift."""
    element = _replace(root, name)
    values = np.zeros((1, 1, 1)) if grid is None else -grid.values[..., component] * pixel
    depth, height, width = values.shape
    element.attrib.update({"Width": str(width), "Height": str(height), "Depth": str(depth)})
    element.attrib.update({"MarginX": "0", "MarginY": "0", "MarginZ": "0"})
    for (z, y, x), value in np.ndenumerate(values):
        where = {"X": str(x), "Y": str(y), "Z": str(z)}
        ET.SubElement(element, "Node", {**where, "Value": f"{value + 0.0:.6g}"})
