"""What the com files of an Etomo folder say beside the ``.xf``: ``tilt.com``, ``newst.com``, ``align.com``, ``.edf``.

`tilt` reconstructs a slab around a point that `SHIFT` moves, about an axis that `OFFSET` may put beside the images'
centre. In our frame (centred, z up; rows of its output run against z) an output point ``P`` is seen at

    u = S(P - o) + (a, 0)        o = (a + shift_x, 0, -shift_z)

where ``S`` projects with the tilt and x-tilt of the view and ``a`` is the second number of ``OFFSET``: the slice is
moved to the right and upward after it was turned about x (IMOD's manual page and behaviour of ``tilt``). An alignment
taken with this origin gives the same slab as Etomo does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.io import keys, numbers
from inrtomo.io.angle_files import read_angles
from inrtomo.io.files import read_text
from inrtomo.io.imod import CommandFile, etomo_excluded_views, list_text, parse_list, read_command_file, read_x_tilt
from inrtomo.io.imod_local import read_local, warp_from_local
from inrtomo.io.keys import Section, left_out, no_matter, taken
from inrtomo.tiltseries import check_tilt_angles

Array = NDArray[np.float64]

TILT_COMS = ("tilt.com", "tilta.com", "tiltb.com")
NEWST_COMS = ("newst.com", "newsta.com", "newstb.com")
ALIGN_COMS = ("align.com", "aligna.com", "alignb.com")
EXCLUDES = ("EXCLUDELIST2", "EXCLUDELIST", "EXCLUDE")

FILTER = "a filter of Etomo's tomogram; inr-recon has filters of its own"
SLAB = "the tomogram is as wide as the images"
REPROJECTION = "this com file makes no tomogram"

TILT = Section(
    "tilt.com",
    (
        *taken("views to leave out, all others where it is INCLUDE", *EXCLUDES, "INCLUDE"),
        *taken("added to all tilt angles; and px by which the tilt axis lies beside the images' centre", "OFFSET"),
        *taken("px by which the slab is moved to the right and up: the tomogram's origin", "SHIFT"),
        *taken("tilt about the x axis of all views", "XAXISTILT"),
        *taken("tilt angles, of this file and no other", "TILTFILE", "ANGLES"),
        *taken("tilts about the x axis, of this file and no other", "XTILTFILE"),
        *taken("local alignments, at the middle of the specimen; what is lost of depth is said", "LOCALFILE"),
        *taken("px of the tomogram, where none is given", "THICKNESS"),
        *taken("size of the images where the stack is not there", "FULLIMAGE"),
        *taken("binning of the aligned stack: lengths are in unbinned px", "IMAGEBINNED"),
        *left_out("shifts that grow with depth, for the global alignment", "ZFACTORFILE"),
        *left_out("thinning of the specimen from view to view", "COMPRESS", "COMPFRACTION"),
        *left_out("scale of the local alignments", "LOCALSCALE", usual=("1",)),
        *left_out(SLAB, "WIDTH", "SLICE"),
        *left_out(FILTER, "RADIAL", usual=("0.35 0.035", "0.35 0.05", "0.4 0.05")),
        *left_out(
            FILTER, "FakeSIRTiterations", "SIRTIterations", "FlatFilterFraction", "HammingLikeFilter", usual=("0",)
        ),
        *left_out("weights of views; inr-recon weighs them by their angles", "DENSWEIGHT", usual=("2",)),
        *left_out("weights of views; inr-recon weighs them by their angles", "WeightFile", "WeightAngleFile"),
        *left_out(REPROJECTION, "REPROJECT", "RecFileToReproject", "BaseRecFile", "ProjectModel", "SubtractFromBase"),
        *no_matter("the tomogram covers the whole image, wherever the aligned stack begins", "SUBSETSTART"),
        *no_matter(
            "order of axes of the output; inr-recon has --orientation", "PERPENDICULAR", "PARALLEL", "RotateBy90"
        ),
        *no_matter(
            "grey values of the output",
            *("LOG", "SCALE", "MODE", "MASK", "MinMaxMean", "FalloffIsTrueSigma", "ReferenceSDofScaling"),
        ),
        *no_matter(
            "how it is computed, and names of files",
            *("InputProjections", "InputFile", "OutputFile", "AdjustOrigin", "TITLE", "COSINTERP", "XTILTINTERP"),
            *("FBPINTERP", "UseGPU", "ActionIfGPUFails", "TOTALSLICES", "BoundaryInfoFile", "DebugOutput"),
            *("ParameterFile", "usage", "help", "DONE", "REPLICATE", "SIRTSubtraction", "StartingIteration"),
            *("VertBoundaryFile", "VertSliceOutputFile", "VertForSIRTInput", "ConstrainSign", "InternalSIRTSlices"),
            *("BaseNumViews", "ViewsToReproject", "XMinAndMaxReproj", "YMinAndMaxReproj", "ZMinAndMaxReproj"),
            *("ThresholdedReproj", "AngleOutputFile", "AlignTransformFile", "DefocusFile", "PixelForDefocus"),
        ),
    ),
    "said to be left out",
)
NEWST = Section(
    "newst.com",
    (
        *taken("the transforms, which should be those of BASE.xf or BASE_warp.xf", "TransformFile"),
        *taken("binning of the aligned stack, where tilt.com does not say it", "BinByFactor"),
        *left_out("moves the aligned images", "OffsetsInXandY", usual=("0 0", "0")),
        *left_out("turns the aligned images", "RotateByAngle", usual=("0",)),
        *left_out("scales the aligned images", "ExpandByFactor", "ShrinkByFactor", usual=("1",)),
        *left_out("undoes a distortion before the images are transformed", "DistortionField", "GradientFile"),
        *left_out(
            "takes images or transforms in another order",
            *(
                "SectionsToRead",
                "ExcludeSections",
                "SkipSectionIncrement",
                "UseTransformLines",
                "ReverseInputFileOrder",
            ),
            *("OneTransformPerFile", "TwoDirectionTiltSeries", "FileOfInputs"),
            usual=("/",),
        ),
    ),
    "no matter here: size and grey values of the aligned stack, which is made anew",
)
NEWST_SHORT = {"XFORM": "TransformFile", "SECS": "SectionsToRead", "USELINES": "UseTransformLines"}
"""Spellings of newstack that are not the beginning of the long one."""
ALIGN = Section(
    "align.com",
    (*left_out("views that the fiducials did not align; tilt.com does not leave them out", "ExcludeList"),),
    "no matter here: what it found is in the .xf and .tlt",
)
EDF = Section(
    "BASE.edf",
    (
        *taken("views to leave out, where there is no tilt.com", "Setup.AxisA.ExcludeProjections"),
        *taken("views to leave out, where there is no tilt.com", "Setup.AxisB.ExcludeProjections"),
    ),
    "no matter here",
)
FILES = Section(
    "files of a folder",
    (
        *taken("transforms raw to aligned", "BASE.xf"),
        *taken("tilt angles", "BASE.tlt"),
        *taken("recorded angles", "BASE.rawtlt"),
        *taken("tilts about the x axis, where there is no tilt.com that says otherwise", "BASE.xtilt"),
        *taken("transforms and local motion of a warp file (version 3, inverse vectors)", "BASE_warp.xf"),
        *taken("local alignments that tilt.com names", "BASElocal.xf"),
        *taken("size and pixel size of the images", "BASE.mrc, BASE.st"),
        *no_matter("other alignments of the same images", "BASE_fid.xf, BASE_nonfid.xf, BASE.prexf, BASE.tltxf"),
    ),
    "no matter here",
)


# --- finding com files ---------------------------------------------------------------------------------------------


def project_of(folder: Path, base: str) -> tuple[Path, str] | None:
    """Etomo's project file and the axis in it; of two axes it has a name without the letter."""
    for name, axis in ((base, "A"), (base[:-1], base[-1:].upper())):
        if name and axis in ("A", "B") and (folder / f"{name}.edf").is_file():
            return folder / f"{name}.edf", axis
    return None


def tilt_command(folder: Path, base: str, notes: list[str] | None = None) -> CommandFile | None:
    """The ``tilt.com`` of this base in a folder (Etomo names it ``tilta.com`` for the first of two axes).

    It is of this base where its angles or its aligned stack are called so.
    """
    others = []
    for name in TILT_COMS:
        if not (folder / name).is_file():
            continue
        command = read_command_file(folder / name, "tilt", TILT.names)
        named = [Path(command.value("TILTFILE") or "").stem, aligned_base(command)]
        if base in named:
            return command
        others.append(f"{name}: is of {named[0] or named[1] or 'another stack'}, not of {base}, and left out")
    if notes is not None:
        notes += others
    return None


def aligned_base(command: CommandFile) -> str:
    """BASE of ``BASE_ali.mrc`` or ``BASE.ali``, the stack that a ``tilt.com`` reconstructs."""
    stem = Path(command.value("InputProjections") or "").stem
    return stem.removesuffix("_ali")


def read_newst(path: Path) -> CommandFile:
    """Options of a ``newst.com``."""
    return read_command_file(path, "newstack", NEWST.names | NEWST_SHORT)


def newst_command(folder: Path, base: str) -> CommandFile | None:
    """The ``newst.com`` of this base: the one whose aligned stack or transforms are called so."""
    for name in NEWST_COMS:
        if (folder / name).is_file():
            command = read_newst(folder / name)
            transforms = Path(command.value("TransformFile") or "").stem.removesuffix("_warp")
            if base in (transforms, Path(command.value("OutputFile") or "").stem.removesuffix("_ali")):
                return command
    return None


# --- what they say -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TiltCom:
    """What a ``tilt.com`` says of the alignment: lengths in raw px, views from 0.

    Attributes:
        angle_deg: to add to all tilt angles; x_tilt_deg: to add to all tilts about x.
        axis_px: where the tilt axis cuts the aligned images, from their centre.
        shift_px: (x, z) of the slab; thickness_px: of the tomogram, None where it is not said.
        excluded: view -> reason.
    """

    angle_deg: float
    x_tilt_deg: float
    axis_px: float
    shift_px: tuple[float, float]
    thickness_px: float | None
    excluded: dict[int, str]

    @property
    def origin_px(self) -> tuple[float, float, float]:
        """What is added to the position of a point by taking the tomogram's origin as Etomo's (x, y, z)."""
        return self.axis_px + self.shift_px[0], 0.0, -self.shift_px[1]


def read_tilt_com(command: CommandFile, n: int) -> TiltCom:
    """The geometry of a ``tilt.com`` for ``n`` views.

    Raises:
        InputError: numbers that are none, views that are not there.
    """
    offset = command.numbers("OFFSET", 1, 2) or [0.0]
    shift = command.numbers("SHIFT", 1, 2) or [0.0]
    numbers.check(offset[0], f"{numbers.where(command.path, command.value('OFFSET') or '')}: OFFSET", numbers.TILT)
    unit = length_unit(command)
    offset, shift = [*offset, 0.0], [*shift, 0.0]
    return TiltCom(
        angle_deg=offset[0],
        x_tilt_deg=sum(command.numbers("XAXISTILT", 1, quantity=numbers.X_TILT)),
        axis_px=unit * offset[1],
        shift_px=(unit * shift[0], unit * shift[1]),
        thickness_px=thickness(command),
        excluded=left_out_views(command, n),
    )


def thickness(command: CommandFile) -> float | None:
    """Thickness of the tomogram, raw px."""
    value = sum(command.numbers("THICKNESS", 1, quantity=numbers.THICKNESS_PX))
    return length_unit(command) * value if value > 0 else None


def length_unit(command: CommandFile) -> float:
    """Raw px of the lengths in a ``tilt.com``: 1 with IMAGEBINNED, else they are in px of the aligned stack."""
    binned = command.numbers("IMAGEBINNED", 1, quantity=BINNING)
    newst = newst_command(command.path.parent, aligned_base(command))
    by = [] if newst is None else newst.numbers("BinByFactor", 1, quantity=BINNING)
    return max(1.0, (by or [1.0])[0] / max(1.0, (binned or [1.0])[0]))


BINNING = numbers.Quantity("a binning", "", 0, 64, whole=True)


def left_out_views(command: CommandFile, n: int) -> dict[int, str]:
    """Views (from 0) that are not reconstructed, with the reason.

    Raises:
        InputError: views that are not there, or both lists, which ``tilt`` refuses.
    """
    name = command.path.name
    included = _views(command, "INCLUDE", n)
    excluded = sorted({view for key in EXCLUDES for view in _views(command, key, n)})
    if included and excluded:
        raise InputError(f"{command.path}: has both INCLUDE and an EXCLUDELIST, which tilt refuses; keep one of them")
    if included:
        return {view: f"not in INCLUDE of {name}" for view in range(n) if view not in included}
    return {view: f"left out by {name}" for view in excluded}


def _views(command: CommandFile, key: str, n: int) -> list[int]:
    views: list[int] = []
    for text in command.options.get(key.upper(), []):
        where = f"{numbers.where(command.path, text)}: {key}"
        listed = parse_list(text, where)
        outside = [view for view in listed if not 1 <= view <= n]
        if outside:
            raise InputError(f"{where}: names view {outside[0]} of {n}; give the file of this series")
        views += [view - 1 for view in listed]
    return views


def angles_of(command: CommandFile | None, default: Path, n: int | None, notes: list[str]) -> Array | None:
    """Tilt angles: of the file a ``tilt.com`` names, inline, or of BASE.tlt; None where no such file is there."""
    if command is not None and command.options.get("ANGLES") and not command.value("TILTFILE"):
        words = [word for text in command.options["ANGLES"] for word in numbers.read_list(text, str(command.path))]
        at = f"{command.path}: ANGLES"
        if n is not None and len(words) != n:
            raise InputError(f"{at}: has {len(words)} angles for {n} images; give the file of this series")
        angles = np.array([numbers.check(word, at, numbers.TILT) for word in words])
        check_tilt_angles(angles, len(angles), at)
        return angles
    path = named_file(command, "TILTFILE", default, notes)
    if not path.is_file():
        return None
    angles = read_angles(path, n)
    check_tilt_angles(angles, len(angles), path)
    return angles


def x_tilts_of(command: CommandFile | None, default: Path, n: int, notes: list[str]) -> Array:
    """Tilts about x: of the file a ``tilt.com`` names, or of BASE.xtilt where there is none to say otherwise."""
    if command is None or command.value("XTILTFILE"):
        path = named_file(command, "XTILTFILE", default, notes)
        return read_x_tilt(path, n) if path.is_file() else np.zeros(n)
    if default.is_file() and read_x_tilt(default).any():
        notes.append(f"{command.path.name}: names no XTILTFILE, so {default.name} is left out, as tilt does")
    return np.zeros(n)


def named_file(command: CommandFile | None, key: str, default: Path, notes: list[str]) -> Path:
    """The file that a com file names, where it is there, else the usual one."""
    name = None if command is None else command.value(key)
    if not name or command is None or Path(name).name == default.name:
        return default
    path = command.path.parent / name
    if path.is_file():
        notes.append(f"{command.path.name}: {key} {name} is read in place of {default.name}")
        return path
    notes.append(f"{command.path.name}: {key} {name} is not there; {default.name} is read in its place")
    return default


def placed(alignment: Alignment, tilt: TiltCom, command: CommandFile, xf: str, notes: list[str]) -> Alignment:
    """The alignment with angles, excluded views and origin of a ``tilt.com``, local alignments included.

    Args:
        xf: name of the file that the transforms are of.
    """
    name = command.path.name
    alignment = replace(
        alignment,
        tilt_deg=alignment.tilt_deg + tilt.angle_deg,
        x_tilt_deg=alignment.x_tilt_deg + tilt.x_tilt_deg,
        excluded=tilt.excluded,
    )
    warp = _local_motion(alignment, tilt, command, xf, notes)
    if any(tilt.shift_px):
        x, z = tilt.shift_px
        notes.append(
            f"{name}: SHIFT is taken into account: the tomogram's origin is Etomo's, {-x + 0.0:g} px in x and "
            f"{z + 0.0:g} px in z from the middle of the alignment"
        )
    if tilt.axis_px:
        notes.append(f"{name}: OFFSET is taken into account: the tilt axis lies {tilt.axis_px:g} px beside the centre")
    if any(tilt.origin_px) or tilt.axis_px:
        alignment = alignment.translated(tilt.origin_px)
        alignment = replace(alignment, shift_px=alignment.shift_px - [tilt.axis_px, 0.0])
    return alignment if warp is None else replace(alignment, warp=warp)


def _local_motion(
    alignment: Alignment, tilt: TiltCom, command: CommandFile, xf: str, notes: list[str]
) -> LocalWarp | None:
    """The local alignments that a ``tilt.com`` names, as the motion of the slab's middle plane."""
    name = command.value("LOCALFILE")
    if not name:
        return None
    local = command.path.parent / name
    if local.name == xf:
        notes.append(f"{local.name} is named as LOCALFILE too, as AreTomo does; it holds no local alignments")
        return None
    if alignment.warp is not None:
        notes.append(f"{command.path.name}: LOCALFILE {name} is left out: {xf} has local motion of its own")
        return None
    if not local.is_file():
        notes.append(f"local alignments of {local.name} are not there; the global alignment is used")
        return None
    with_z = command.value("ZFACTORFILE") is not None
    areas = read_local(local, alignment.n_tilts, alignment.aligned_size, alignment.pixel_size_A, with_z)
    warp, lost = warp_from_local(areas, alignment, tilt.thickness_px or 0.0, tilt.origin_px, tilt.axis_px)
    notes.append(
        f"local alignments of {local.name} are read at the middle of the specimen; what they say of depth is left out, "
        f"up to {lost:.2f} px at its top and bottom"
    )
    return warp


# --- what is left out ----------------------------------------------------------------------------------------------


def sentences(command: CommandFile | None, folder: Path, base: str, excluded: Collection[int]) -> list[str]:
    """What the com files of a folder say and is left out.

    Args:
        command: the ``tilt.com`` of the base, or None; excluded: views that are left out, from 0.
    """
    said = []
    if command is not None:
        found = command.last_values()
        full = command.numbers("FULLIMAGE", 2)
        if full and found.get("WIDTH", "") == f"{full[0]:g}":
            del found["WIDTH"]
        if "LOCALFILE" in found or not _any_z_factor(command):
            found.pop("ZFACTORFILE", None)  # those of a local file are read, and their effect is said
        said += keys.sentences(command.path.name, found, TILT.keys)
        known = {key.name for key in TILT.keys}
        unknown = (name for name in found if name not in known and name.isalnum())
        said += [f"{command.path.name}: {name} is not known here and left out" for name in unknown]
    newst = newst_command(folder, base)
    if newst is not None:
        said += keys.sentences(newst.path.name, newst.last_values(), NEWST.keys)
        transforms = Path(newst.value("TransformFile") or "").name
        if transforms not in ("", f"{base}.xf", f"{base}_warp.xf"):
            said.append(f"{newst.path.name}: TransformFile {transforms} is left out, {base}.xf is read")
    return said + _not_aligned(folder, base, excluded) + _project(folder, base, command, excluded)


def _any_z_factor(command: CommandFile) -> bool:
    path = command.path.parent / (command.value("ZFACTORFILE") or "")
    return not path.is_file() or any(numbers.read_text_of_numbers(read_text(path).replace(",", " "), path))


def _not_aligned(folder: Path, base: str, excluded: Collection[int]) -> list[str]:
    """Views that ``align.com`` left out and that are used."""
    for name in ALIGN_COMS:
        if not (folder / name).is_file():
            continue
        command = read_command_file(folder / name, "tiltalign", ALIGN.names)
        listed = command.value("ExcludeList")
        if Path(command.value("OutputTiltFile") or f"{base}.tlt").stem == base and listed:
            views = [view - 1 for view in parse_list(listed, f"{numbers.where(command.path, listed)}: ExcludeList")]
            used = list_text([view + 1 for view in views if view not in excluded])
            return keys.sentences(name, {"ExcludeList": used}, ALIGN.keys)
    return []


def _project(folder: Path, base: str, command: CommandFile | None, excluded: Collection[int]) -> list[str]:
    """Views that Etomo's project leaves out, where ``tilt.com``, which counts more, uses them."""
    project = project_of(folder, base)
    if command is None or project is None:
        return []
    used = [view + 1 for view in etomo_excluded_views(*project) if view not in excluded]
    said = f"{project[0].name}: leaves out view {list_text(used)}, which {command.path.name} takes, and so does this"
    return [said] if used else []
