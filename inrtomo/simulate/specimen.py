"""A specimen made of molecules, vesicles, membranes, filaments and gold beads, none overlapping, within a shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from inrtomo.errors import InputError
from inrtomo.geometry import centred_coordinates
from inrtomo.io.mrc import read_volume
from inrtomo.simulate.acquisition import aligned_view
from inrtomo.simulate.settings import SimulationSettings
from inrtomo.simulate.shapes import Shape, add_matter, make_shape

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

WIDE_ROWS_PX = 16  # a wide specimen reaches this far past the view along y, on each side
MARGIN_Z_PX = 4
SOLID = 0.1  # density above which a voxel counts as taken
GOLD_DENSITY = 5.0  # times the densest protein
MEMBRANE_DENSITY = 0.5
LEAFLET_DISTANCE_A = 37.0
LEAFLET_SD_A = 9.0
ATTEMPTS = 60


@dataclass(frozen=True)
class Specimen:
    """Attributes:
    density: ``[z, y, x]``, solvent 0, densest protein about 1, centre index = origin of specimen space.
    beads: bead centres ``(n, 3)`` (x, y, z), px.
    molecules: how many molecules were placed.
    shape: the sheet that they fill.
    """

    density: F32
    beads: Array
    molecules: int
    shape: Shape


def make_specimen(settings: SimulationSettings, rng: np.random.Generator) -> Specimen:
    """Fill a slab. A wide one is twice as long as the view along x and 16 px longer on each side along y."""
    view_x, view_y = aligned_view(settings)
    shape_y, shape_x = (view_y + 2 * WIDE_ROWS_PX, 2 * view_x) if settings.wide else (view_y, view_x)
    # a whole number of voxels between specimen and view on each side, so that cropping keeps the origin
    shape_x += (shape_x - view_x) % 2
    shape_y += (shape_y - view_y) % 2
    sheet = make_shape(settings, (view_x, view_y), (shape_y, shape_x), rng)
    rise = _height_of_box(sheet.normal, (shape_y, shape_x), settings)
    slab = _Slab((int(np.ceil(rise)) + 2 * MARGIN_Z_PX, shape_y, shape_x), sheet)
    if settings.specimen != "slab":
        slab.taken |= add_matter(slab.density, sheet, settings, (view_x, view_y), int(rng.integers(2**31)))
    area = shape_x * shape_y / (view_x * view_y)

    beads = _place_beads(slab, settings, (view_x, view_y), rng)
    for _ in range(round(settings.membranes * area)):
        _place_membrane(slab, settings, rng)
    for _ in range(round(settings.vesicles * area)):
        _place_vesicle(slab, settings, rng)
    for _ in range(round(settings.filaments * area)):
        _place_filament(slab, settings, rng)
    molecules = _place_molecules(slab, settings, rng)
    return Specimen(slab.density, beads, molecules, sheet)


def _height_of_box(normal: Array, shape_yx: tuple[int, int], settings: SimulationSettings) -> float:
    """Height (px) of a box that holds the sheet, a lamella's ridges and the gold on a cell's faces."""
    thickness = settings.thickness_px * (1.2 if settings.specimen == "lamella" else 1.0)
    if settings.specimen == "cell" and settings.beads:
        thickness += 2 * settings.bead_diameter_A / settings.pixel_size_A
    return float((abs(normal[0]) * shape_yx[1] + abs(normal[1]) * shape_yx[0] + thickness) / normal[2])


def points_within(shape: Shape, view: tuple[int, int], thickness_px: float) -> Array:
    """Points ``(n, 3)`` (x, y, z) px that evenly fill the specimen over the view: 11 x 11, and 5 over the thickness.

    Where the sheet is thinner than a tenth of ``thickness_px`` there are none.
    """
    ny, nx = shape.thickness.shape
    x, y = np.meshgrid(*((np.arange(11) + 0.5) / 11 * length - length / 2 for length in view))
    column, row = (np.round(v + (n - 1) / 2).astype(int).clip(0, n - 1) for v, n in ((x, nx), (y, ny)))
    thickness, middle = shape.thickness[row, column], shape.middle[row, column]
    points = []
    for part in (np.arange(5) + 0.5) / 5 - 0.5:
        height = middle + part * thickness
        z = (height - shape.normal[0] * x - shape.normal[1] * y) / shape.normal[2]
        points.append(np.stack([x, y, z], axis=-1)[thickness > 0.1 * thickness_px])
    return np.concatenate(points)


def view_of(specimen: Specimen, settings: SimulationSettings) -> F32:
    """The specimen ``[z, ny, nx]`` over the field of view (`aligned_view`) around the origin (zero where it ends)."""
    nx, ny = aligned_view(settings)
    out = np.zeros((specimen.density.shape[0], ny, nx), dtype=np.float32)
    source, target = [], []
    for have, want in zip(specimen.density.shape[1:], (ny, nx), strict=True):
        common, low = min(have, want), (have - want) // 2
        source.append(slice(max(low, 0), max(low, 0) + common))
        target.append(slice(max(-low, 0), max(-low, 0) + common))
    out[:, target[0], target[1]] = specimen.density[:, source[0], source[1]]
    return out


class _Slab:
    """Density being filled, and which voxels are taken (everything outside the sheet is)."""

    def __init__(self, shape: tuple[int, int, int], sheet: Shape) -> None:
        self.density: F32 = np.zeros(shape, dtype=np.float32)
        self.sheet, self.normal = sheet, sheet.normal
        self.centre = (np.array(shape) - 1) / 2
        z, y, x = (centred_coordinates(n) for n in shape)
        height = z[:, None, None] * self.normal[2] + y[:, None] * self.normal[1] + x * self.normal[0]
        self.taken: Bools = np.abs(height - sheet.middle) > sheet.thickness / 2

    @property
    def inside_volume(self) -> float:
        return float(self.sheet.thickness.mean() / self.normal[2]) * self.density.shape[1] * self.density.shape[2]

    def random_position(self, rng: np.random.Generator, room: float, half_view: Array | None = None) -> Array:
        """Position (x, y, z) px with ``room`` to the sheet's faces where possible, over the sheet or part of it."""
        half = np.array(self.density.shape[2:0:-1]) / 2 if half_view is None else half_view
        x, y = rng.uniform(-1, 1, 2) * np.maximum(half - room, 1)
        thickness, middle = self.at(x, y)
        height = middle + rng.uniform(-1, 1) * max(thickness / 2 - room, 0)
        return self.at_height(x, y, height)

    def position_on_a_face(self, rng: np.random.Generator, room: float, half_view: Array, top: bool) -> Array:
        """Position (x, y, z) px ``room`` outside the upper or lower face, where the sheet is not much thinner."""
        while True:
            x, y = rng.uniform(-1, 1, 2) * np.maximum(half_view - room, 1)
            thickness, middle = self.at(x, y)
            if thickness > 4 * room:
                return self.at_height(x, y, middle + (thickness / 2 + room) * (1 if top else -1))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Thickness and middle of the sheet at the voxel nearest to (x, y)."""
        ny, nx = self.sheet.thickness.shape
        row, column = (min(max(round(v + (n - 1) / 2), 0), n - 1) for v, n in ((y, ny), (x, nx)))
        return float(self.sheet.thickness[row, column]), float(self.sheet.middle[row, column])

    def at_height(self, x: float, y: float, height: float) -> Array:
        return np.array([x, y, (height - self.normal[0] * x - self.normal[1] * y) / self.normal[2]])

    def add(self, box: F32, corner: NDArray[np.int64], gap: int = 0, anywhere: bool = False) -> bool:
        """Add a box ``[z, y, x]`` at an index if its solid voxels (and ``gap`` around) are inside and free.

        ``anywhere``: also outside the sheet, and on what is there.
        """
        end = corner + box.shape
        solid = box > SOLID * min(1.0, float(box.max()))
        where = ndimage.find_objects(solid.astype(np.uint8))
        if not where:
            return False
        low = corner + [s.start for s in where[0]]
        high = corner + [s.stop for s in where[0]]
        if (low < 0).any() or (high > self.density.shape).any():
            return False
        window = tuple(slice(max(a, 0), b) for a, b in zip(corner, end, strict=True))
        inner = tuple(
            slice(max(-a, 0), max(-a, 0) + min(b, n) - max(a, 0))
            for a, b, n in zip(corner, end, self.density.shape, strict=True)
        )
        if not anywhere and (self.taken[window] & solid[inner]).any():
            return False
        self.density[window] += box[inner]
        self.taken[window] |= (ndimage.binary_dilation(solid, iterations=gap) if gap else solid)[inner]
        return True

    def add_smooth(self, shape_of, centre: Array, reach: float, anywhere: bool = False) -> bool:  # type: ignore[no-untyped-def]
        """Add ``shape_of(dx, dy, dz)`` around a position (x, y, z), sub-voxel exact, where there is room."""
        at = centre[::-1] + self.centre
        low = np.floor(at - reach).astype(np.int64)
        size = int(2 * np.ceil(reach)) + 2
        dz, dy, dx = np.meshgrid(*(low[a] + np.arange(size) - at[a] for a in range(3)), indexing="ij")
        return self.add(shape_of(dx, dy, dz).astype(np.float32), low, gap=1, anywhere=anywhere)


def _ball(radius: float, density: float):  # type: ignore[no-untyped-def]
    """A sphere with a voxel-wide soft edge that keeps its volume."""
    return lambda dx, dy, dz: density * np.clip(radius - np.sqrt(dx**2 + dy**2 + dz**2) + 0.5, 0, 1)


def _place_beads(slab: _Slab, settings: SimulationSettings, view: tuple[int, int], rng: np.random.Generator) -> Array:
    """Gold in the view, in a cell's case on its two faces by turns; refuses settings that leave no room for it."""
    radius = settings.bead_diameter_A / settings.pixel_size_A / 2
    beads: list[Array] = []
    on_faces = settings.specimen == "cell"
    for k in range(settings.beads):
        for _ in range(ATTEMPTS):
            half_view = np.array(view) / 2
            if on_faces:
                at = slab.position_on_a_face(rng, radius, half_view, top=k % 2 == 0)
                free = all(np.linalg.norm(at - other) > 2 * radius + 2 for other in beads)
            else:
                at, free = slab.random_position(rng, radius + 1, half_view), True
            if free and slab.add_smooth(_ball(radius, GOLD_DENSITY), at, radius + 1, anywhere=on_faces):
                beads.append(at)
                break
        else:
            raise InputError(
                f"no room for {settings.beads} beads of {settings.bead_diameter_A:g} Å; use fewer or a thicker sample"
            )
    return np.array(beads).reshape(-1, 3)


def bilayer(distance: Array, pixel_size_A: float) -> Array:
    """Density across a membrane at a distance (px) from its middle: two leaflets."""
    half, sd = LEAFLET_DISTANCE_A / 2 / pixel_size_A, max(LEAFLET_SD_A / pixel_size_A, 0.5)
    a, b = np.exp(-0.5 * ((distance - half) / sd) ** 2), np.exp(-0.5 * ((distance + half) / sd) ** 2)
    return np.asarray(MEMBRANE_DENSITY * (a + b))


def _place_vesicle(slab: _Slab, settings: SimulationSettings, rng: np.random.Generator) -> None:
    largest = max(settings.thickness_px / 2 - 5, 6)
    for _ in range(ATTEMPTS):
        radius = rng.uniform(0.35, 1.0) * min(largest, 40)
        turn, axes = Rotation.random(random_state=rng), rng.uniform(0.8, 1.0, 3)

        def shell(dx: Array, dy: Array, dz: Array) -> Array:
            local = turn.apply(np.stack([dx.ravel(), dy.ravel(), dz.ravel()], axis=1)) / axes  # noqa: B023
            scale = np.linalg.norm(local, axis=1)
            return bilayer(scale - radius, settings.pixel_size_A).reshape(dx.shape)  # noqa: B023

        if slab.add_smooth(shell, slab.random_position(rng, radius + 4), radius + 5):
            return


def _place_membrane(slab: _Slab, settings: SimulationSettings, rng: np.random.Generator) -> None:
    """A gently waved sheet standing across the slab, around what is there already."""
    nz, ny, nx = slab.density.shape
    direction, slope = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5)
    wave, phase = rng.uniform(0.6, 1.2) * 2 * np.pi / max(nx, ny), rng.uniform(0, 2 * np.pi, 2)
    offset = rng.uniform(-0.25, 0.25) * min(nx, ny)
    z, y, x = (centred_coordinates(n) for n in (nz, ny, nx))
    z, y = z[:, None, None], y[None, :, None]
    across = x * np.cos(direction) + y * np.sin(direction)
    along = y * np.cos(direction) - x * np.sin(direction)
    distance = across - offset - slope * z - 0.04 * max(nx, ny) * np.sin(wave * along + phase[0])
    sheet = bilayer(distance - 3 * np.sin(0.1 * z + phase[1]), settings.pixel_size_A).astype(np.float32)
    sheet[slab.taken] = 0
    slab.density += sheet
    slab.taken |= sheet > SOLID * MEMBRANE_DENSITY


def _place_filament(slab: _Slab, settings: SimulationSettings, rng: np.random.Generator) -> None:
    """A worm-like chain of 7 nm globules, 5.5 nm apart (the look of an actin filament)."""
    rise, radius = 55.0 / settings.pixel_size_A, 35.0 / settings.pixel_size_A
    at = slab.random_position(rng, radius + 2)
    heading = rng.uniform(0, 2 * np.pi)
    for _ in range(int(2 * max(slab.density.shape) / rise)):
        heading += rng.normal(scale=0.03)
        if not slab.add_smooth(_ball(radius * 0.7, 0.7), at, radius + 1):
            return
        at = at + rise * np.array([np.cos(heading), np.sin(heading), 0.0])


def _place_molecules(slab: _Slab, settings: SimulationSettings, rng: np.random.Generator) -> int:
    """Random molecules at random places and orientations until the wished part of the slab is theirs."""
    if not settings.crowding:
        return 0
    templates = _read_densities(settings.densities) if settings.densities else _clusters(settings, rng)
    wished, filled, placed, failures = settings.crowding * slab.inside_volume, 0.0, 0, 0
    while filled < wished and failures < ATTEMPTS:
        template = templates[rng.integers(len(templates))]
        box = _rotated(template, Rotation.random(random_state=rng).as_matrix())
        room = _radius(template) * 0.5
        for _ in range(ATTEMPTS):
            at = slab.random_position(rng, room)[::-1] + slab.centre
            if slab.add(box, np.round(at).astype(np.int64) - np.array(box.shape) // 2, gap=1):
                filled += float((box > SOLID).sum())
                placed += 1
                failures = 0
                break
        else:
            failures += 1
    return placed


def _read_densities(folder: Path) -> list[F32]:
    """Every MRC of a folder, clipped at 0, divided by its own maximum, cut to its solid part."""
    templates = []
    for path in sorted(Path(folder).glob("*.mrc")) + sorted(Path(folder).glob("*.map")):
        data, _ = read_volume(path)
        if not np.isfinite(data).all() or data.max() <= 0:
            raise InputError(f"{path}: not a density (3-D, finite, somewhere positive); remove it from the folder")
        templates.append(_compact(np.maximum(data, 0) / data.max()))
    if not templates:
        raise InputError(f"{folder}: holds no .mrc or .map densities; give another folder or leave --densities out")
    return templates


def _clusters(settings: SimulationSettings, rng: np.random.Generator, kinds: int = 12) -> list[F32]:
    """Procedural macromolecules: globules of 3-5 nm stuck together, 6 to 25 nm across, of varied weight."""
    templates = []
    for k in range(kinds):
        count = int(np.ceil(3 * 1.3**k))
        radii = rng.uniform(12, 24, count) / settings.pixel_size_A
        centres = np.zeros((count, 3))
        for i in range(1, count):
            step = rng.normal(size=3)
            centres[i] = centres[rng.integers(i)] + step / np.linalg.norm(step) * (radii[i] + radii[i - 1]) * 0.8
        centres -= centres.mean(axis=0)
        half = int(np.ceil(np.abs(centres).max() + radii.max() + 2))
        grid = np.stack(np.meshgrid(*3 * [np.arange(-half, half + 1)], indexing="ij"), axis=-1)
        density = np.zeros(grid.shape[:3])
        for centre, radius, weight in zip(centres, radii, rng.uniform(0.5, 1.0, count), strict=True):
            distance = np.linalg.norm(grid - centre, axis=-1)
            density = np.maximum(density, weight * np.clip(radius - distance + 0.5, 0, 1))
        templates.append(_compact(density.astype(np.float32)))
    return templates


def _compact(data: F32) -> F32:
    """Cut to a cube around the solid part's middle that holds it in any orientation."""
    solid = np.argwhere(data > SOLID / 5)
    middle = np.round((solid.min(axis=0) + solid.max(axis=0)) / 2).astype(int)
    reach = int(np.ceil(np.linalg.norm(solid - middle, axis=1).max())) + 1
    padded = np.pad(data, reach)
    window = tuple(slice(m, m + 2 * reach + 1) for m in middle)
    return np.ascontiguousarray(padded[window])


def _radius(box: F32) -> float:
    return float(box.shape[0] - 1) / 2


def _rotated(box: F32, matrix: Array) -> F32:
    """A cube turned about its centre (cubic spline, never negative)."""
    centre = (np.array(box.shape) - 1) / 2
    turned = ndimage.affine_transform(box, matrix, centre - matrix @ centre, order=3, mode="constant")
    return np.asarray(np.maximum(turned, 0), dtype=np.float32)
