"""How large the images are that the ``.xf`` of an Etomo or AreTomo folder was made on, from all that lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inrtomo.errors import InputError
from inrtomo.io import etomo, imod, numbers
from inrtomo.io.belonging.alignment import OTHER_PIXEL, Evidence
from inrtomo.io.belonging.metadata import known_pixel_size
from inrtomo.io.belonging.sizes import Size, alike, turned_like
from inrtomo.io.mrc import MrcHeader, read_header

if TYPE_CHECKING:
    from inrtomo.tiltseries import TiltSeries

STACK_SUFFIXES = (".mrc", ".st", ".mrcs", ".map")
A_BINNING, NEARLY_WHOLE = 1.9, 0.05
"""Pixel sizes tell binned images from a calibration where their ratio is at least this, and whole to this share."""


def made_on(
    folder: Path, base: str, n: int, turned: bool, command: imod.CommandFile | None, wanted: Size | None
) -> list[Evidence]:
    """What says how large the ``n`` images are that the ``.xf`` of a folder was made on, the best first.

    The folder's own stack, by its name or by that of ``newst.com``; the prealigned one; ``tilt.com``.

    Args:
        turned: the tilt axis lies nearer to x, so aligned images have their sides turned.
        command: the ``tilt.com`` of this base; wanted: size of the images it is used for, where that is known.
    """
    newst, found = etomo.newst_command(folder, base), []
    named = None if newst is None else newst.value("InputFile")
    stacks = [folder / (base + suffix) for suffix in STACK_SUFFIXES]
    stacks += [folder / named] if named and not named.endswith(".ali") else []
    for stack in dict.fromkeys(stacks):
        header = _header(stack, n)
        if header is not None:
            size = header.shape[2], header.shape[1]
            found.append(Evidence(f"its stack {stack.name}", size, known_pixel_size(header.pixel_size_A)))
    if not found:
        found += _by_prealigned(folder, base, n)
    full = [] if command is None else command.numbers("FULLIMAGE", 2, quantity=numbers.SIZE_PX)
    if full and min(full) >= 1:
        # of aligned images in what Etomo and AreTomo write; of raw ones by IMOD's manual
        size = (int(full[1]), int(full[0])) if turned else (int(full[0]), int(full[1]))
        unit = 1.0 if command is None else etomo.length_unit(command)
        known = found[0].size if found else wanted
        if unit > 1 and known is not None and not alike(turned_like(size, known), known, 1.0):
            size = round(size[0] * unit), round(size[1] * unit)  # of a binned aligned stack, as all its lengths
        found.append(Evidence("FULLIMAGE in its tilt.com", size, None, may_be_turned=turned))
    return found


def by_pixel_size(project: Path, series: TiltSeries, notes: list[str]) -> tuple[Size, float | None]:
    """Size and pixel size of the images an Etomo project (``.edf``) is of, where only its pixel size tells."""
    own, pixel, size = imod.etomo_pixel_size_A(project), series.known_pixel_size_A, series.size
    if own is None or pixel is None or abs(own / pixel - 1) <= OTHER_PIXEL:
        return size, None
    factor = max(own / pixel, pixel / own)
    if factor < A_BINNING or abs(factor - round(factor)) > NEARLY_WHOLE * factor:
        notes.append(
            f"{project}: says a pixel size of {own:.4g} Å, the images have {pixel:.4g} Å; shifts are taken in their "
            "pixels"
        )
        return size, None
    return (round(size[0] * pixel / own), round(size[1] * pixel / own)), own


def _by_prealigned(folder: Path, base: str, n: int) -> list[Evidence]:
    """Etomo's prealigned stack has all of the raw images, binned as ``prenewst.com`` says."""
    com = folder / "prenewst.com"
    if not com.is_file():
        return []
    bins = etomo.read_newst(com).numbers("BinByFactor", 1, quantity=etomo.BINNING) or [1.0]
    for name in (f"{base}.preali", f"{base}_preali.mrc"):
        header = _header(folder / name, n)
        if header is not None and bins[0] >= 1:
            size = round(header.shape[2] * bins[0]), round(header.shape[1] * bins[0])
            return [Evidence(f"its {name}, binned by {bins[0]:g}", size)]
    return []


def _header(stack: Path, n: int) -> MrcHeader | None:
    """The header of a stack of ``n`` images, None where there is no such stack."""
    try:
        header = read_header(stack) if stack.is_file() else None
    except InputError:
        return None
    return header if header is not None and header.shape[0] == n else None
