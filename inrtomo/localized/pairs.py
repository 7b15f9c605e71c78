"""Pairs to learn from: a tilt series with its alignment, and the volume that should come out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from inrtomo.align.prepare import PrepareSettings
from inrtomo.alignment import Alignment
from inrtomo.ctf import ctf_2d
from inrtomo.errors import InputError
from inrtomo.io.files import put_in_place
from inrtomo.io.mrc import read_volume, write_volume
from inrtomo.reconstruct.fbp import fbp_volume
from inrtomo.reconstruct.halves import Source
from inrtomo.reconstruct.prepared import prepared_tilts
from inrtomo.simulate.acquisition import true_alignment
from inrtomo.simulate.camera import CTF_MARGIN_PX
from inrtomo.simulate.rays import project_series
from inrtomo.simulate.settings import SimulationSettings
from inrtomo.simulate.specimen import make_specimen, view_of

F32 = NDArray[np.float32]

HELD_OUT = ("4cr2", "5mrc", "3cf3", "1bxn")
"""Molecules of the project's densities that no training sees: results on them are on unseen ones."""
PIXEL_SIZES_A = (5.0, 7.5, 10.0, 10.0, 10.0, 14.0, 20.0)
DENSITY_VOXEL_A = 10.0  # of a folder of densities whose files do not say it
SNR_DB = (-15.0, 10.0)
THICKNESS_PX = (18, 80)
VIEW_PX = 88
DENSE_STEP_DEG = 1.5  # a specimen is projected once, so densely, and every series of it takes some of these tilts
STEEPEST_DEG = 69.0
SERIES_OF_A_SPECIMEN = 8
CALIBRATION_PX = 2.0  # smoothing before a reference is held against a back-projection
LEAST_LIKENESS = 0.3
"""Of a reference and a back-projection of its series, smoothed, in what varies along z: any projection is like a
back-projection in its mean over z, the tilt stack itself up to 0.71. Measured on 120 simulated pairs, -15 to 10 dB,
with and without transfer function and error of the alignment: the truth 0.37 to 0.86 (median 0.66), without its missing
wedge 0.44 to 0.96 (0.82); another specimen's at most 0.07, the tilt stack itself 0.34, the truth turned about x by 180
degrees 0.23 and upside down 0.51 (medians 0.10 and less)."""


@dataclass(frozen=True)
class Pair:
    """Attributes:
    images: ``(n_tilts, ny, nx)``, protein positive, zero background.
    alignment: of the images, as it is believed to be.
    reference: ``[z, y, x]`` over the view; density per px in the images' units.
    pixel_size_A: of the images.
    facts: what it was made with, or what was found of it.
    weight: ``(n_tilts, ny, nx)``: pixels that say nothing have 0; None where all were seen.
    """

    images: F32
    alignment: Alignment
    reference: F32
    pixel_size_A: float
    facts: dict[str, float]
    weight: F32 | None = None


def simulated_pairs(seed: int | list[int], densities: Path | None, folder: Path) -> Iterator[Pair]:
    """Endless pairs, several of each specimen; the same seed gives the same pairs.

    Args:
        densities: folder of MRC densities, those of `HELD_OUT` left out; None for procedural molecules alone.
        folder: for densities at other pixel sizes, made once.
    """
    random = np.random.default_rng(seed)
    while True:
        settings = random_specimen(random, densities, folder)
        specimen = make_specimen(settings, random)
        truth = view_of(specimen, settings)
        alignment = _dense_alignment(settings, random)
        projections = project_series(specimen.density, alignment, CTF_MARGIN_PX)
        for _ in range(SERIES_OF_A_SPECIMEN):
            yield random_series(projections, alignment, truth, settings, random)


def random_specimen(random: np.random.Generator, densities: Path | None, folder: Path) -> SimulationSettings:
    """What a specimen is made of: its pixel size, thickness, molecules and scenery."""
    pixel = float(random.choice(PIXEL_SIZES_A))
    own = densities is not None and random.random() < 0.75
    gold = 0 if random.random() < 0.5 else int(random.integers(1, 3))
    return SimulationSettings(
        size=(VIEW_PX, VIEW_PX),
        thickness_px=int(random.uniform(*THICKNESS_PX)),
        pixel_size_A=pixel,
        axis_deg=0.0,
        rotation_jitter_deg=0.5,
        shift_px=4.0,
        warp_max_px=0.0,
        beads=gold,
        bead_diameter_A=float(random.uniform(60, 120)) * max(1.0, pixel / 10),
        densities=densities_at(densities, pixel, folder) if own and densities is not None else None,
        crowding=float(random.uniform(0.02, 0.15)),
        vesicles=int(random.integers(0, 3)),
        membranes=int(random.random() < 0.25),
        filaments=int(random.integers(0, 2)),
    )


def random_series(
    projections: F32, alignment: Alignment, truth: F32, settings: SimulationSettings, random: np.random.Generator
) -> Pair:
    """One recording of a specimen: which tilts, transfer function, noise and error of the alignment.

    Args:
        projections: of all tilts of ``alignment``, `CTF_MARGIN_PX` wider on each side than the view.
    """
    reach, stride = random.uniform(45, STEEPEST_DEG), int(random.choice([1, 2, 2, 2, 3]))
    middle = random.uniform(-6, 6)
    tilts = np.flatnonzero(np.abs(alignment.tilt_deg - middle) <= reach)[random.integers(stride) :: stride]
    tilts = tilts[random.random(len(tilts)) > (0.15 if random.random() < 0.25 else 0.0)]
    signal = projections[tilts]
    defocus = float(random.uniform(1.0, 6.0)) if random.random() < 0.45 else 0.0
    if defocus:
        signal = np.stack([seen_in_phase(image, settings, defocus) for image in signal])
    m = CTF_MARGIN_PX
    signal = np.ascontiguousarray(signal[:, m:-m, m:-m])
    level = float(random.uniform(*SNR_DB))
    path = settings.thickness_px * settings.pixel_size_A / 10 / np.cos(np.deg2rad(alignment.tilt_deg[tilts]))
    sd = np.exp(path / (2 * settings.mean_free_path_nm)) if random.random() < 0.5 else np.ones(len(tilts))
    sd *= np.sqrt(signal.var(axis=(1, 2), dtype=np.float64).mean() / 10 ** (level / 10) / np.mean(sd**2))
    noise = sd[:, None, None].astype(np.float32) * random.standard_normal(signal.shape, dtype=np.float32)
    error = float(random.choice([0.0, 0.2, 0.5, 1.0])) if random.random() < 0.6 else 0.0
    believed = alignment.subset(tilts)
    believed = replace(believed, shift_px=believed.shift_px + error * random.normal(size=(len(tilts), 2)))
    unit = np.float32(np.median(sd))
    images = (signal + noise - np.median(signal + noise, axis=(1, 2), keepdims=True)) / unit
    facts = {"snr_db": level, "defocus_um": defocus, "reach_deg": reach, "error_px": error}
    return Pair(images, believed, truth / unit, settings.pixel_size_A, facts)


def seen_in_phase(image: F32, settings: SimulationSettings, defocus_um: float) -> F32:
    """A projection under the transfer function with its phases flipped, as ``inr-infer --ctf`` gives images."""
    shape = (image.shape[0], image.shape[1])
    optics = settings.voltage_kV, settings.cs_mm, settings.amplitude_contrast
    ctf = np.abs(ctf_2d(shape, settings.pixel_size_A, defocus_um * 1e4, *optics))
    return np.asarray(scipy.fft.irfft2(scipy.fft.rfft2(image) * ctf, s=shape), dtype=np.float32)


def density_files(densities: Path) -> list[Path]:
    """The MRC files of a folder that may be learnt from: no name holds that of one of `HELD_OUT`.

    Raises:
        InputError: there are none.
    """
    there = sorted([*Path(densities).glob("*.mrc"), *Path(densities).glob("*.map")])
    found = [path for path in there if not any(name in path.stem.lower() for name in HELD_OUT)]
    if not there:
        raise InputError(f"{densities}: holds no .mrc or .map densities to learn from; give another folder")
    if not found:
        raise InputError(
            f"{densities}: holds nothing but {', '.join(path.name for path in there)}, and {', '.join(HELD_OUT)} are "
            "kept out of training for tests; add other densities"
        )
    return found


def densities_at(densities: Path, pixel_size_A: float, folder: Path) -> Path:
    """The folder's densities but `HELD_OUT`, resampled to a pixel size; made once in ``folder``."""
    there = folder / f"densities_{pixel_size_A:g}A"
    if there.is_dir():
        return there
    making = folder / f"densities_{pixel_size_A:g}A.{os.getpid()}"
    making.mkdir(parents=True, exist_ok=True)
    for path in density_files(densities):
        volume, voxel = read_volume(path)
        factor = (voxel or DENSITY_VOXEL_A) / pixel_size_A
        smooth = ndimage.gaussian_filter(np.maximum(volume, 0), 0.5 / factor) if factor < 1 else np.maximum(volume, 0)
        scaled = np.maximum(ndimage.zoom(smooth, factor, order=3), 0).astype(np.float32)
        write_volume(making / path.name, scaled, pixel_size_A, overwrite=True)
    try:
        put_in_place(making, there)
    except OSError:  # another process was quicker
        if not there.is_dir():
            raise
    return there


def _dense_alignment(settings: SimulationSettings, random: np.random.Generator) -> Alignment:
    """The true alignment of all tilts that series of a specimen may take."""
    count = int(STEEPEST_DEG / DENSE_STEP_DEG)
    tilt = np.arange(-count, count + 1) * DENSE_STEP_DEG + random.uniform(-0.3, 0.3, 2 * count + 1)
    return true_alignment(settings, tilt, np.arange(len(tilt)), random)


def measured_pair(image: Callable[[int], NDArray], alignment: Alignment, reference: F32, polarity: int = 0) -> Pair:
    """A recorded series and a reference ``[z, y, x]`` made of it; the reference may have any grey scale, either sign.

    Args:
        image: raw image of a stack index, its phases turned back if inference is to do so.
        polarity: of the images, as `PrepareSettings` has it.

    Raises:
        InputError: the reference is not over the view, or shows nothing that the tilts show.
    """
    nx, ny = alignment.aligned_size
    bin = max(1, round(nx / reference.shape[2]))
    if reference.shape[1:] != (ny // bin, nx // bin):
        across, along = reference.shape[2], reference.shape[1]
        raise InputError(
            f"is {across} x {along} voxels across, and aligned images of {nx} x {ny} px make {nx // bin} x "
            f"{ny // bin}; give a volume over the whole view, of the orientation that --orientation says"
        )
    tilts = prepared_tilts(Source("", image, alignment), bin, PrepareSettings(polarity=polarity, restore=False))
    volume = fbp_volume(tilts.images, tilts.alignment, reference.shape[0], "ramp")
    seen, wanted = (ndimage.gaussian_filter(v - v.mean(), CALIBRATION_PX) for v in (volume, reference))
    likeness = likeness_of(seen, wanted)
    if not abs(likeness) >= LEAST_LIKENESS:
        raise InputError(
            f"is nothing like a back-projection of its tilt series (correlation {likeness:.2f} after smoothing, "
            f"where those that are reach {LEAST_LIKENESS}); "
            "is it of this series, and of the orientation that --orientation says?"
        )
    slope = float((seen * wanted).sum(dtype=np.float64) / (wanted**2).sum(dtype=np.float64))
    density = slope * (reference - np.median(reference))
    pixel = (alignment.pixel_size_A or DENSITY_VOXEL_A) * bin
    return Pair(tilts.images, tilts.alignment, density.astype(np.float32), pixel, {"likeness": likeness}, tilts.weight)


def likeness_of(a: F32, b: F32) -> float:
    """Correlation of two volumes ``[z, y, x]`` in what varies along z; nan where nothing does."""
    a, b = (v - v.mean(axis=0) for v in (a, b))
    with np.errstate(invalid="ignore"):
        return float(np.vdot(a, b) / np.sqrt(np.vdot(a, a) * np.vdot(b, b)))
