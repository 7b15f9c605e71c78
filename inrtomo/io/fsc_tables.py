"""Fourier shell curves as tables: a STAR file with the columns of RELION's ``postprocess.star``, and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import starfile

from inrtomo.io.files import atomic_path
from inrtomo.io.names import one_line
from inrtomo.metrics.shells import ShellCorrelation

RELION_COLUMNS = {
    "corrected": "rlnFourierShellCorrelationCorrected",
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
}
GENERAL_COLUMN = "rlnFourierShellCorrelation"
NO_RESOLUTION_A = 999.0
"""What RELION writes for the resolution of the origin."""

Curves = Mapping[str, ShellCorrelation]


def write_fsc_star(
    path: str | Path, curves: Curves, main: str, general: Mapping[str, object], overwrite: bool = False
) -> Path:
    """Write curves by name: ``data_general``, ``data_fsc``, and a ``data_fsc_NAME`` for each part of Fourier space.

    ``data_fsc`` has the curve called ``main`` as ``rlnFourierShellCorrelation`` and all that have a column in
    RELION; its row 0 is the origin. Shells are counted in ``rlnSpectralIndex`` from there; those without components
    are left out. ``general`` are the columns (without underscore) of ``data_general``.
    """
    columns = {GENERAL_COLUMN: curves[main].correlation}
    columns.update({column: curves[name].correlation for name, column in RELION_COLUMNS.items() if name in curves})
    whole = _star_table(curves[main], columns)
    origin = {"rlnSpectralIndex": 0, "rlnResolution": 0.0, "rlnAngstromResolution": NO_RESOLUTION_A}
    origin |= dict.fromkeys(columns, 1.0)
    for value in general.values():
        if isinstance(value, str):
            one_line(value, path)
    blocks: dict[str, object] = {"general": dict(general), "fsc": pd.concat([pd.DataFrame([origin]), whole])}
    for name, curve in curves.items():
        if name != main and name not in RELION_COLUMNS:
            blocks[f"fsc_{name}"] = _star_table(curve, {GENERAL_COLUMN: curve.correlation})
    with atomic_path(path, overwrite) as temporary:
        starfile.write(blocks, temporary, overwrite=True)
    return Path(path)


def write_fsc_csv(path: str | Path, curves: Curves, overwrite: bool = False) -> Path:
    """Write curves by name, a row a shell: frequency (1/Å), resolution (Å), and FSC and components of every curve."""
    first = next(iter(curves.values()))
    columns = {
        "shell": np.arange(len(first.frequency_per_A)) + 1,
        "frequency_per_A": first.frequency_per_A,
        "resolution_A": 1 / first.frequency_per_A,
    }
    columns.update({name: curve.correlation for name, curve in curves.items()})
    columns.update({f"{name}_components": curve.count for name, curve in curves.items()})
    with atomic_path(path, overwrite) as temporary:
        pd.DataFrame(columns).to_csv(temporary, index=False, float_format="%.6g")
    return Path(path)


def _star_table(curve: ShellCorrelation, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    table = {
        "rlnSpectralIndex": np.arange(len(curve.frequency_per_A)) + 1,
        "rlnResolution": curve.frequency_per_A,
        "rlnAngstromResolution": 1 / curve.frequency_per_A,
        **columns,
    }
    return pd.DataFrame(table)[curve.count > 0]
