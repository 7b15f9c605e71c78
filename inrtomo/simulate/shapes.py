"""The outline of a simulated specimen, and what fills it besides molecules.

A shape is a sheet: a plane with a normal, and over it the sheet's thickness and the height of its middle.

* **slab**: flat, without end.
* **cell**: lies flat on its support; its outline crosses the view, and over 0.6 of the view behind it the thickness
  grows to the full one. Cytosol and a membrane. Before the outline there is nothing; behind the cell, outside the view,
  a dense body that high tilts see.
* **lamella**: a slab tilted by 10° about the tilt axis to either side, its faces milled in ridges and furrows that run
  along the ion beam, across the tilt axis, with streaks of metal on one face.
* **film**: ice in a round hole of a carbon film whose edge crosses the view; the ice is thinner in the hole's middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inrtomo.geometry import centred_coordinates
from inrtomo.simulate.settings import SimulationSettings

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

LAMELLA_TILT_DEG = 10.0
CYTOSOL_DENSITY = 0.03
SURROUNDINGS_DENSITY = 0.1
CARBON_DENSITY = 0.35
CARBON_A = 150.0
STREAK_DENSITY = 2.0


@dataclass(frozen=True)
class Shape:
    """A sheet over a box of voxels.

    Attributes:
        normal: unit vector ``(3,)`` (x, y, z) across the sheet, z positive.
        thickness, middle: ``(ny, nx)``, px along the normal: how thick the sheet is, and how high its middle is above
            the plane through the origin.
        furrows: how much y falls per px of x along a lamella's ridges and streaks.
    """

    normal: Array
    thickness: Array
    middle: Array
    furrows: float = 0.0


def make_shape(
    settings: SimulationSettings, view: tuple[int, int], shape_yx: tuple[int, int], rng: np.random.Generator
) -> Shape:
    """The sheet that the settings ask for over ``shape_yx`` voxels; ``view`` (x, y) px is the part in the images.

    A slab takes nothing from ``rng``.
    """
    about_y, about_x = settings.slab_tilt_deg
    if settings.specimen == "lamella":
        about_y += LAMELLA_TILT_DEG * rng.choice([-1, 1])
    b, a = np.deg2rad(about_y), np.deg2rad(about_x)
    normal = np.array([np.sin(b) * np.cos(a), -np.sin(a), np.cos(b) * np.cos(a)])
    full, flat = float(settings.thickness_px), np.zeros(shape_yx)
    if settings.specimen == "slab":
        return Shape(normal, flat + full, flat)
    y, x = np.meshgrid(*(centred_coordinates(n) for n in shape_yx), indexing="ij")
    if settings.specimen == "cell":
        thickness = full * np.sin(np.pi / 2 * np.clip(_behind_edge(x, y, view, rng) / (0.6 * min(view)), 0, 1))
        return Shape(normal, thickness, (thickness - full) / 2)
    if settings.specimen == "lamella":
        lean = rng.uniform(-0.1, 0.1)
        across = y + lean * x
        ridges = flat.copy()
        for wave in rng.uniform(2, 12, 6) * np.pi / view[1]:
            ridges += np.sin(wave * across + rng.uniform(0, 2 * np.pi)) / np.sqrt(3)
        return Shape(normal, full * (1 + 0.05 * ridges), flat, lean)
    inside = _behind_edge(x, y, view, rng, hole=True)
    return Shape(normal, full * np.where(inside > 0, 0.6 + 0.4 * np.exp(-inside / (0.3 * min(view))), 1.0), flat)


def add_matter(density: F32, shape: Shape, settings: SimulationSettings, view: tuple[int, int], seed: int) -> Bools:
    """Add to ``density`` ``[z, y, x]`` what fills a shape besides molecules; returns the voxels no molecule may enter.

    The same ``seed`` gives the same matter.
    """
    rng = np.random.default_rng(seed)
    nz, ny, nx = density.shape
    blocked: Bools = np.zeros(density.shape, dtype=bool)
    if settings.specimen == "slab":
        return blocked
    z, y, x = (centred_coordinates(n) for n in density.shape)
    height = z[:, None, None] * shape.normal[2] + y[:, None] * shape.normal[1] + x * shape.normal[0]
    from_middle = (height - shape.middle).astype(np.float32)
    depth = (shape.thickness / 2).astype(np.float32) - np.abs(from_middle)  # below the nearer face
    if settings.specimen in ("cell", "lamella"):
        density += np.float32(CYTOSOL_DENSITY) * np.clip(depth + np.float32(0.5), 0, 1)
    if settings.specimen == "cell":
        from inrtomo.simulate.specimen import bilayer

        layer = bilayer(depth - 40.0 / settings.pixel_size_A, settings.pixel_size_A).astype(np.float32)
        density += layer * (shape.thickness > 120.0 / settings.pixel_size_A)
        # behind the cell, where its thickness is full on the view's border
        row = shape.thickness[ny // 2]
        side = 1 if row[-1] > row[0] else -1
        body = np.abs(z)[:, None, None] <= settings.thickness_px / 2
        body = body & (side * x > 0.65 * view[0])
        density += np.float32(SURROUNDINGS_DENSITY) * body
        blocked |= body
    if settings.specimen == "lamella":
        across = y[:, None] + shape.furrows * x
        for place in rng.uniform(-0.5, 0.5, 6) * view[1]:
            streak = (np.abs(across - place) < rng.uniform(0.5, 2)) & (depth < 4) & (depth > 0) & (from_middle > 0)
            density[streak] = STREAK_DENSITY
            blocked |= streak
    if settings.specimen == "film":
        layer_px = min(CARBON_A / settings.pixel_size_A, settings.thickness_px / 2)
        carbon = shape.thickness >= settings.thickness_px
        low = (from_middle < layer_px - settings.thickness_px / 2) & (depth > 0) & carbon
        grain = ndimage.gaussian_filter(rng.standard_normal(density.shape, dtype=np.float32), 0.7)
        density += np.where(low, CARBON_DENSITY * np.maximum(1 + grain / grain.std() * 0.5, 0), 0).astype(np.float32)
        blocked |= low
    return blocked


def _behind_edge(x: Array, y: Array, view: tuple[int, int], rng: np.random.Generator, hole: bool = False) -> Array:
    """Distance (px) behind a curved edge that crosses the view a quarter of it from the centre, to the left or right.

    The inside is round with a radius of 1.2 views; a cell's outline is wavy too.
    """
    size = min(view)
    radius = 1.2 * size
    direction = np.deg2rad(rng.uniform(-40, 40) + rng.choice([0, 180]))
    centre = (radius - 0.25 * size) * np.array([np.cos(direction), np.sin(direction)])
    dx, dy = x - centre[0], y - centre[1]
    wavy = 0.0 if hole else 0.03 * size * np.sin(8 * np.arctan2(dy, dx) + rng.uniform(0, 2 * np.pi))
    return np.asarray(radius + wavy - np.hypot(dx, dy))
