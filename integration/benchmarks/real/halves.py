"""Part ``halves``: tomograms of odd and of even tilts against each other, where the tilts have measured and where not.

There are no frames of this series. Neighbouring tilts share every error that varies slowly with tilt, so this says
nothing of these; and halves of methods with a prior agree in what the prior gives both, most of all in the missing
wedge, where nothing else is. So outside the measured region a high number is a warning.
"""

from __future__ import annotations

import numpy as np

from inrtomo.metrics.conventions import HALF_MAPS
from inrtomo.metrics.fsc import central_region, transforms
from inrtomo.reconstruct.wedge import measured_region
from integration.benchmarks.real.case import Case
from integration.benchmarks.real.tables import Column, Record, table, write_results
from integration.benchmarks.real.volumes import EVEN, METHODS, ODD, odd_and_even, volume

COLUMNS: tuple[Column, ...] = (
    ("the halves share", "shared", "{}"),
    ("mean FSC: measured by both halves", "both", "{:.3f}"),
    ("by any tilt", "any", "{:.3f}"),
    ("by none (prior)", "none", "{:.3f}"),
    ("FSC 0.143, both (Å)", "both_A", "{:.0f}"),
    ("FSC 0.143, any (Å)", "any_A", "{:.0f}"),
)


def run(case: Case) -> str:
    """The table, for the screen; all numbers go to ``halves.json``."""
    alignment = case.placed(case.alignments[0][1]).alignment
    lean = float(alignment.x_tilt_deg[alignment.included].mean())
    odd, even = odd_and_even(alignment)
    rows: list[Record] = []
    share = 0.0
    for method in case.methods:
        a, b = volume(case, method, ODD), volume(case, method, EVEN)
        shells, x, y = transforms(a, b)
        nz, ny, nx = (part.stop - part.start for part in central_region(a.shape))
        seen_odd, seen_even, seen = (
            np.broadcast_to(
                measured_region((nz, ny, nx), tilts, case.bin, case.planes.separation_px, lean) >= 0.5, x.shape
            )
            for tilts in (odd, even, np.concatenate([odd, even]))
        )
        both = seen_odd & seen_even
        share = float(both.sum() / seen.sum())
        curves = shells.correlation(x, y, case.voxel_A, (both, seen, ~seen))
        row: Record = {"row": method, "shared": METHODS[method]}
        for name, curve in zip(("both", "any", "none"), curves, strict=True):
            row |= {name: curve.mean(), f"{name}_A": curve.resolution_A(HALF_MAPS), f"{name}_fsc": curve.correlation}
        row["frequency_per_A"] = curves[0].frequency_per_A
        rows.append(row)
    text = table(f"odd against even tilts, along {case.alignments[0][0]}", rows, COLUMNS)
    text += f"\nboth halves have measured {share:.0%} of what all tilts have\n"
    write_results(case.work, "halves", {"rows": rows, "measured_by_both": share}, text)
    return text
