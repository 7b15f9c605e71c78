"""Simulated tilt series with known alignment and specimen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.simulate.acquisition import aligned_view, own_stream, tilt_scheme, true_alignment
from inrtomo.simulate.camera import CTF_MARGIN_PX, expose, transfer
from inrtomo.simulate.files import write_simulation
from inrtomo.simulate.settings import SimulationSettings
from inrtomo.simulate.simulation import Simulation
from inrtomo.simulate.specimen_motion import make_motion
from inrtomo.simulate.true_map import TrueMap
from inrtomo.truth import TruePoints

__all__ = ["Simulation", "SimulationSettings", "simulate", "write_simulation"]

Array = NDArray[np.float64]


def simulate(settings: SimulationSettings) -> Simulation:
    """Make a series; the same settings give the same bytes. Each aspect has its own random stream."""
    # slow to load, and the settings are wanted without them
    from inrtomo.simulate.rays import project_true_map
    from inrtomo.simulate.specimen import make_specimen, points_within, view_of

    tilts, motion, matter, blanking, noise = (np.random.default_rng([settings.seed, k]) for k in range(5))
    nominal, order = tilt_scheme(settings, tilts)
    alignment = true_alignment(settings, nominal, order, motion)
    blank = choose_blanks(nominal, settings.blanks, blanking)
    alignment = replace(alignment, excluded={m: "blank" for m in blank})
    specimen = make_specimen(settings, matter)
    view = aligned_view(settings)
    used = ~np.isin(np.arange(len(nominal)), blank)
    moves = make_motion(settings, order, alignment.tilt_deg, used, view, own_stream(settings, 7))
    true_map = TrueMap(alignment, moves, settings.radial_px)
    margin = CTF_MARGIN_PX if settings.defocus_um is not None else 0
    signal = transfer(project_true_map(specimen.density, true_map, margin), settings, margin)
    exposure = expose(signal, alignment.tilt_deg, blank, settings, noise)
    good = [m for m in range(len(nominal)) if m not in blank]
    variance = float(np.mean([exposure.signal[m].var(dtype=np.float64) for m in good]))
    noise_variance = float(exposure.noise_variance[good].mean())
    meta = {
        "seed": settings.seed,
        "settings": settings.as_dict(),
        "nominal_tilt_deg": nominal.tolist(),
        "stage_tilt_deg": true_map.recorded.tilt_deg.tolist(),
        "order": order.tolist(),
        "blanks": blank,
        "snr_db": settings.snr_db,
        "signal_variance": variance,
        "noise_variance": noise_variance,
        "beads_px": specimen.beads.tolist(),
        "molecules": specimen.molecules,
        "thickness_px": settings.thickness_px,
    }
    points = points_within(specimen.shape, view, settings.thickness_px)
    raw = np.stack([true_map.specimen_to_raw(m, points) for m in range(len(nominal))])
    return Simulation(
        exposure.images,
        exposure.odd,
        exposure.even,
        exposure.signal,
        true_map.nearest_alignment(points, specimen.shape.normal, settings.thickness_px),
        true_map,
        TruePoints(points, raw, specimen.shape.normal, settings.thickness_px),
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
