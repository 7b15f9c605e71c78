"""Simulated tilt series with known alignment and specimen."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.simulate.acquisition import tilt_scheme, true_alignment
from inrtomo.simulate.camera import CTF_MARGIN_PX, expose, transfer
from inrtomo.simulate.rays import project_series
from inrtomo.simulate.settings import SimulationSettings
from inrtomo.simulate.specimen import make_specimen, view_of

__all__ = ["Simulation", "SimulationSettings", "simulate", "write_simulation"]

F32 = NDArray[np.float32]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Simulation:
    """A tilt series and everything about it.

    Attributes:
        images, odd, even: ``(n_tilts, ny, nx)``, ordered by tilt angle. The full image is the mean of its halves,
            with camera counts their sum.
        signal: the same without noise.
        alignment: the true one; its ``excluded`` names the blank tilts.
        volume: true density ``[z, ny, nx]`` over the view, solvent 0, centre index = origin.
        tilt_deg: nominal angles; order: acquisition index of every image.
        meta: seed, settings, SNR, blanks, bead positions and the like, fit for JSON.
    """

    images: F32
    odd: F32
    even: F32
    signal: F32
    alignment: Alignment
    volume: F32
    tilt_deg: Array
    order: NDArray[np.int64]
    settings: SimulationSettings
    meta: dict[str, Any]


def simulate(settings: SimulationSettings) -> Simulation:
    """Make a series; the same settings give the same bytes. Each aspect has its own random stream."""
    tilts, motion, matter, blanking, noise = (np.random.default_rng([settings.seed, k]) for k in range(5))
    nominal, order = tilt_scheme(settings, tilts)
    alignment = true_alignment(settings, nominal, order, motion)
    blank = choose_blanks(nominal, settings.blanks, blanking)
    alignment = replace(alignment, excluded={m: "blank" for m in blank})
    specimen = make_specimen(settings, matter)
    margin = CTF_MARGIN_PX if settings.defocus_um is not None else 0
    signal = transfer(project_series(specimen.density, alignment, margin), settings, margin)
    exposure = expose(signal, alignment.tilt_deg, blank, settings, noise)
    good = [m for m in range(len(nominal)) if m not in blank]
    variance = float(np.mean([exposure.signal[m].var(dtype=np.float64) for m in good]))
    noise_variance = float(exposure.noise_variance[good].mean())
    meta = {
        "seed": settings.seed,
        "settings": settings.as_dict(),
        "nominal_tilt_deg": nominal.tolist(),
        "order": order.tolist(),
        "blanks": blank,
        "snr_db": settings.snr_db,
        "signal_variance": variance,
        "noise_variance": noise_variance,
        "beads_px": specimen.beads.tolist(),
        "molecules": specimen.molecules,
        "thickness_px": settings.thickness_px,
    }
    return Simulation(
        exposure.images,
        exposure.odd,
        exposure.even,
        exposure.signal,
        alignment,
        view_of(specimen, settings),
        nominal,
        order,
        settings,
        meta,
    )


def choose_blanks(tilt_deg: Array, count: int, rng: np.random.Generator) -> list[int]:
    """Stack indices of blank tilts: any but the three lowest tilts."""
    candidates = np.sort(np.argsort(np.abs(tilt_deg), kind="stable")[3:])
    if count > len(candidates):
        raise InputError(f"{count} blank tilts asked of a series of {len(tilt_deg)}; leave at least three good ones")
    return sorted(int(m) for m in rng.choice(candidates, count, replace=False))


def write_simulation(simulation: Simulation, folder: Path, base: str, overwrite: bool = False) -> list[Path]:
    """Write the series and its truth; returns the paths."""
    import mrcfile

    folder.mkdir(parents=True, exist_ok=True)
    pixel = simulation.settings.pixel_size_A
    paths = []
    for name, data, is_stack in (
        (f"{base}.mrc", simulation.images, True),
        (f"{base}_odd.mrc", simulation.odd, True),
        (f"{base}_even.mrc", simulation.even, True),
        (f"{base}_truth.mrc", simulation.volume, False),
    ):
        with mrcfile.new(folder / name, overwrite=overwrite) as file:
            file.set_data(data)
            file.voxel_size = pixel
            if is_stack:
                file.set_image_stack()
            else:
                file.set_volume()
        paths.append(folder / name)
    (folder / f"{base}.rawtlt").write_text("".join(f"{t:8.3f}\n" for t in simulation.tilt_deg))
    from inrtomo.io.alignment_json import alignment_to_dict

    truth = {**alignment_to_dict(simulation.alignment), **simulation.meta}
    (folder / f"{base}_truth.json").write_text(json.dumps(truth))
    return paths
