"""RELION's tilt series: ``tomograms.star`` with a STAR file per series (5), and projection matrices (4, read only).

A point X, from the tomogram's centre index ``int(size / 2)``, is seen at the pixel index

    q = Rz(ZRot) Ry(YTilt) Rx(XTilt) X + shift / px + int(n / 2)          and with deformations at   q + s(q).

Angles are right-handed, so ZRot is the tilt axis and YTilt the tilt angle in IMOD's sense, and XTilt is minus ours.
Our centre is the index ``(n - 1) / 2``; on images of an even size the shifts carry that half pixel, so that the same
point is seen at the same pixel (RELION's own import of an ``.xf`` leaves it out). Excluded images have no row.

A deformation of type *spline* is a cubic Hermite spline on a grid that spans the image: per node value, slopes in x and
y (per grid step) and twist, x fastest, then y, first all of x's shifts and then all of y's; *linear* is
``(a x, b x + c y)`` from the image's centre. Read in RELION's source (version 5, GPL-2) for behaviour alone, checked
against its own matrices and by running its programs on our files (5.0.1); *Fourier* deformations are not read.

RELION moves particles by deformations, not the images of the tomograms that it reconstructs. Where one series of a list
has deformations, all need coefficients: its programs for particles crash on a series without.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.ctf import Defoci
from inrtomo.errors import InputError
from inrtomo.geometry import centre_index, rotation_about_x
from inrtomo.io import keys, numbers
from inrtomo.io.belonging.order import SAME_TILT_DEG, order_of
from inrtomo.io.files import check_output, make_folder
from inrtomo.io.keys import Section, left_out, no_matter, taken
from inrtomo.io.mrc import read_header
from inrtomo.io.names import is_safe_name, safe_name
from inrtomo.io.rigid import LocalGrid, Rigid, fit_local_shifts, hermite_spline, warp_from_local_shifts
from inrtomo.io.series_record import SeriesRecord, series_name
from inrtomo.io.star import Table, read_star, write_star

Array = NDArray[np.float64]

EULER = ("rlnTomoYTilt", "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst")
MATRIX = ("rlnTomoProjX", "rlnTomoProjY")
COEFFICIENTS = "rlnTomoDeformationCoefficients"
DEFORMATION_SIZES = ("rlnTomoDeformationGridSizeX", "rlnTomoDeformationGridSizeY")
DEFORMATIONS = {**dict.fromkeys(DEFORMATION_SIZES, "2"), "rlnTomoDeformationType": "spline"}
"""Columns of the list of series, and what stands there for a series without."""
NO_DEFORMATION = "[" + ",".join(["0"] * 32) + "]"
"""Coefficients to go with them: 2 x 2 nodes."""
REPLACED = (*MATRIX, "rlnTomoProjZ", "rlnTomoProjW", COEFFICIENTS)
"""Columns that an alignment that is there before must not leave behind."""
CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")
NOT_OF_AN_ALIGNMENT = "defocus, which is no part of an alignment; inr-recon and inr-convert take it with --ctf"
OVERVIEW = Section(
    "tomograms.star",
    (
        *taken("the series", "rlnTomoName", "rlnTomoTiltSeriesStarFile", "rlnTomoTiltSeriesName"),
        *taken("Å of a pixel of the images", "rlnTomoTiltSeriesPixelSize", "rlnMicrographPixelSize"),
        *taken("px of the tomogram, where none is given", "rlnTomoSizeZ"),
        *taken("where the matrices of RELION 4 count from", "rlnTomoSizeX", "rlnTomoSizeY"),
        *taken("spline and linear deformations, as local motion", *DEFORMATION_SIZES, "rlnTomoDeformationType"),
        *left_out("hand of the defocus, other than usual; give --ctf-hand -1 with --ctf", "rlnTomoHand", usual=("-1",)),
        *left_out("magnification that is not the same in all directions", "rlnMagMat00", "rlnMagMat11", usual=("1",)),
        *left_out("magnification that is not the same in all directions", "rlnMagMat01", "rlnMagMat10", usual=("0",)),
        *no_matter("microscope", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMtfFileName"),
        *no_matter("pixel of the movies", "rlnMicrographOriginalPixelSize"),
        *no_matter("tomograms that RELION made", "rlnTomoTomogramBinning", "rlnTomoReconstructedTomogram"),
    ),
    "no matter here",
)
SERIES = Section(
    "tilt_series/NAME.star",
    (
        *taken("refined tilt angle", "rlnTomoYTilt"),
        *taken("tilt about x, with the other sign", "rlnTomoXTilt"),
        *taken("tilt axis from y, degrees", "rlnTomoZRot"),
        *taken("Å by which the image is moved", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst"),
        *taken("matrices of RELION 4, which count more than angles beside them", *MATRIX),
        *taken("spline and linear deformations, as local motion", COEFFICIENTS),
        *taken("recorded tilt angle", "rlnTomoNominalStageTiltAngle"),
        *taken("exposure before the image", "rlnMicrographPreExposure"),
        *taken("the image, and which one of a stack it is", "rlnMicrographName"),
        *left_out(NOT_OF_AN_ALIGNMENT, *CTF, usual=("0",)),
        *no_matter("rows of the matrices that give depth", "rlnTomoProjZ", "rlnTomoProjW"),
        *no_matter("as recorded", "rlnTomoNominalTiltAxisAngle", "rlnTomoNominalDefocus"),
        *no_matter("halves, which are looked for beside the stack", "rlnMicrographNameEven", "rlnMicrographNameOdd"),
    ),
    "no matter here (movies, motion, quality of the CTF)",
)
QUANTITIES = {
    "rlnTomoYTilt": numbers.TILT,
    "rlnTomoNominalStageTiltAngle": numbers.TILT,
    "rlnTomoXTilt": numbers.X_TILT,
    "rlnTomoZRot": numbers.AXIS,
    "rlnTomoXShiftAngst": numbers.SHIFT_A,
    "rlnTomoYShiftAngst": numbers.SHIFT_A,
    "rlnMicrographPreExposure": numbers.DOSE,
    "rlnTomoTiltSeriesPixelSize": numbers.PIXEL_SIZE,
    "rlnMicrographPixelSize": numbers.PIXEL_SIZE,
    **dict.fromkeys(DEFORMATION_SIZES, numbers.Quantity("a number of nodes", "", 0, 1e4, whole=True)),
    "rlnTomoSizeX": numbers.SIZE_PX,
    "rlnTomoSizeY": numbers.SIZE_PX,
    "rlnTomoSizeZ": numbers.SIZE_PX,
}
"""What the numbers of a column can be."""
SAME_PX = 0.1
"""Up to this, angles and matrices of one file say the same."""
MAX_GRID = 200
MAX_IMAGES = 100_000
STACK_ENDINGS = (".mrcs", ".st", ".tif", ".tiff")
"""Files from which RELION takes single sections; of any other it is told with ``:mrcs`` that it is a stack."""
REQUIRED = (*CTF[:3], "rlnMicrographPreExposure")
"""Columns of a series without which RELION's programs stop."""
THICKNESS_OF_WIDTH = 0.3
"""Depth of a tomogram over the shorter side of the images, where nothing says it."""
OPTICS = {"rlnVoltage": "300.0", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1", "rlnTomoHand": "-1.0"}
"""Written for want of better: an alignment knows nothing of the microscope."""


# --- reading -------------------------------------------------------------------------------------------------------


def read_relion(
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    pixel_size_A: float | None = None,
    name: str | None = None,
    notes: list[str] | None = None,
) -> SeriesRecord:
    """One series of a ``tomograms.star``, or the STAR file of a series.

    Args:
        image_size: (nx, ny) of the images; by default that of the first image, where it can be found.
        pixel_size_A: of the images, where no ``tomograms.star`` says it.
        name: of the series, where the file holds several.
    """
    path, notes = Path(path), notes if notes is not None else []
    general, table, name = _find_series(path, name)
    pixel = _pixel_size(general, path) or pixel_size_A
    if pixel is None:
        raise InputError(f"{path}: its pixel size is not known; give the stack, or the tomograms.star above it")
    count = len(next(iter(table.values())))
    if not 0 < count <= MAX_IMAGES:
        raise InputError(f"{path}: {name} has {count} images; give another file")
    images = _image_names(general, table, count)
    size = image_size or _size_of_images(images, path)
    if size is None:
        raise InputError(f"{path}: the size of its images is not known; give the stack, or run in the project's folder")
    notes += keys.sentences(path.name, general, OVERVIEW.keys) + keys.sentences(path.name, table, SERIES.keys)
    thickness = _number(general, "rlnTomoSizeZ", path)
    has_angles = all(column in table for column in EULER)
    has_matrices = all(column in table for column in MATRIX)
    if has_angles:
        alignment = _from_angles(general, table, size, pixel, path, notes)
    if has_matrices and (not has_angles or thickness):
        old = _from_matrices(general, table, size, pixel, path)
        apart = _distance(alignment, old) if has_angles else np.inf
        if apart > SAME_PX:
            alignment = old
            notes.append(f"{path.name}: projection matrices of RELION 4" + _beside_angles(apart))
    elif not has_angles:
        raise InputError(f"{path}: {name} is not aligned (it has no {EULER[0]}); align it first")
    nominal = _column(table, "rlnTomoNominalStageTiltAngle", path)
    exposure = _column(table, "rlnMicrographPreExposure", path)
    return SeriesRecord(alignment, name, nominal, exposure, images, thickness)


def is_relion(blocks: dict[str, Table]) -> bool:
    """Whether a STAR file is about tilt series."""
    return any("rlnTomoName" in t or EULER[0] in t or MATRIX[0] in t for t in blocks.values())


def _find_series(path: Path, name: str | None) -> tuple[Table, Table, str]:
    """The row of the global table (one value a column; empty if there is none), the series' table and its name."""
    blocks = read_star(path)
    overview = next((t for t in blocks.values() if "rlnTomoName" in t), None)
    if overview is None:
        found = {n: t for n, t in blocks.items() if EULER[0] in t or MATRIX[0] in t}
        if name is not None and name in found and len(found) > 1:
            found = {name: found[name]}
        if len(found) != 1:
            what = f"holds {', '.join(list(found)[:4])}; give one of them" if found else "holds no aligned tilt series"
            raise InputError(f"{path}: {what}")
        ((own, table),) = found.items()
        own = own or series_name(path)
        return _overview_above(path, own), table, own
    names = overview["rlnTomoName"]
    if name is None or name not in names:
        if len(names) != 1:
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise InputError(
                f"{path}: holds {len(names)} series ({shown}); give the STAR file of one, or a stack with its name"
            )
        name = names[0]
    general = _row(overview, names.index(name))
    if name in blocks and blocks[name] is not overview:
        return general, blocks[name], name
    if "rlnTomoTiltSeriesStarFile" not in general:
        raise InputError(f"{path}: has no rlnTomoTiltSeriesStarFile for {name}; give the STAR file of the series")
    other = _resolved(general["rlnTomoTiltSeriesStarFile"][0], path)
    if other is None:
        raise InputError(f"{path}: {general['rlnTomoTiltSeriesStarFile'][0]} is not there; run in the project's folder")
    tables = [t for t in read_star(other).values() if EULER[0] in t or MATRIX[0] in t]
    if len(tables) != 1:
        raise InputError(f"{other}: {name} is not aligned (it has no {EULER[0]}); align it first")
    return general, tables[0], name


def _row(table: Table, at: int) -> Table:
    return {column: [values[at]] for column, values in table.items()}


def _overview_above(path: Path, name: str) -> Table:
    """The row for a series in a ``tomograms.star`` (or the like) in its folder or the one above."""
    for folder in dict.fromkeys((path.parent, path.resolve().parent.parent)):
        for other in sorted(folder.glob("*.star")):
            try:
                tables = read_star(other).values() if other.resolve() != path.resolve() else []
            except InputError:
                continue
            for table in tables:
                if name in table.get("rlnTomoName", []):
                    return _row(table, table["rlnTomoName"].index(name))
    return {}


def _resolved(name: str, beside: Path) -> Path | None:
    """A file named from the project's folder: the working folder, or one above the STAR file."""
    for folder in (Path(), *beside.resolve().parents):
        try:
            if (folder / name).is_file():
                return folder / name
        except OSError:
            return None
    return None


def _number(table: Table, column: str, path: Path) -> float | None:
    values = _column(table, column, path)
    return None if values is None or not values[0] > 0 else float(values[0])


def _pixel_size(general: Table, path: Path) -> float | None:
    return _number(general, "rlnTomoTiltSeriesPixelSize", path) or _number(general, "rlnMicrographPixelSize", path)


def _column(table: Table, column: str, path: Path) -> Array | None:
    """Numbers of a column, None where it is missing."""
    if column not in table:
        return None
    quantity = QUANTITIES.get(column, numbers.ANY)
    return np.array([numbers.read(word, f"{numbers.where(path, word)}: {column}", quantity) for word in table[column]])


def _vectors(table: Table, column: str, length: int, path: Path) -> Array:
    """Vectors ``(n, length)`` written as ``[1,2,3]``."""
    rows = []
    for word in table[column]:
        at, parts = f"{numbers.where(path, word)}: {column}", word.strip("[] ").split(",")
        if len(parts) != length:
            raise InputError(f"{at} is not made of {length} numbers [a,b,...]; give another file")
        rows.append(numbers.read_all(parts, at))
    return np.array(rows).reshape(-1, length)


def _image_names(general: Table, table: Table, count: int) -> tuple[str, ...] | None:
    """Names without a format said after a colon, ``ts.mrc:mrcs``."""
    if "rlnTomoTiltSeriesName" in general:
        stack = _without_format(general["rlnTomoTiltSeriesName"][0])
        return tuple(f"{k + 1}@{stack}" for k in range(count))
    return tuple(map(_without_format, table["rlnMicrographName"])) if "rlnMicrographName" in table else None


def _without_format(name: str) -> str:
    return re.sub(r":\w+$", "", name)


def _with_format(name: str) -> str:
    """A name that RELION accepts: of ``3@ts.mrc`` it says that .mrc is for volumes."""
    a_section = "@" in name and Path(name).suffix.lower() not in STACK_ENDINGS
    return f"{name}:mrcs" if a_section else name


def _size_of_images(images: tuple[str, ...] | None, path: Path) -> tuple[int, int] | None:
    if not images:
        return None
    first = _resolved(images[0].rpartition("@")[2], path)
    if first is None:
        return None
    try:
        shape = read_header(first).shape
    except InputError:
        return None
    return shape[2], shape[1]


def _from_angles(
    general: Table, table: Table, size: tuple[int, int], pixel: float, path: Path, notes: list[str]
) -> Alignment:
    y_tilt, z_rot, x_shift, y_shift = (_column(table, column, path) for column in EULER)
    assert y_tilt is not None and z_rot is not None and x_shift is not None and y_shift is not None
    x_tilt = _column(table, "rlnTomoXTilt", path)
    offset = np.stack([x_shift, y_shift], axis=1) / pixel + centre_offset(size)
    rigid = Rigid(z_rot, offset)
    alignment = Alignment(
        tilt_deg=y_tilt,
        linear=rigid.linear,
        shift_px=rigid.shift_px,
        image_size=size,
        pixel_size_A=pixel,
        x_tilt_deg=np.zeros(len(y_tilt)) if x_tilt is None else -x_tilt,
    )
    return _with_deformations(alignment, rigid, general, table, path, notes)


def centre_offset(size: tuple[int, int]) -> Array:
    """RELION's image centre in our centred pixels: half a pixel where the size is even."""
    return np.array([n // 2 - centre_index(n) for n in size])


def _with_deformations(
    alignment: Alignment, rigid: Rigid, general: Table, table: Table, path: Path, notes: list[str]
) -> Alignment:
    if COEFFICIENTS not in table:
        return alignment
    if DEFORMATION_SIZES[0] not in general:
        if any(re.search("[1-9]", word) for word in table[COEFFICIENTS]):
            notes.append(
                f"{path.name}: {COEFFICIENTS} is left out, since nothing says its grid; give the tomograms.star"
            )
        return alignment
    kind = general.get("rlnTomoDeformationType", [""])[0]
    size = alignment.image_size
    if kind == "linear":
        abc = _vectors(table, COEFFICIENTS, 3, path)

        def linear(m: int, q: Array) -> Array:
            r = q - 0.5  # from index size / 2, odd sizes too
            return np.stack([abc[m, 0] * r[..., 0], abc[m, 1] * r[..., 0] + abc[m, 2] * r[..., 1]], axis=-1)

        shifts = linear
    elif kind == "spline":
        grid = [_column(general, column, path) for column in DEFORMATION_SIZES]
        counts = [0 if g is None or not 2 <= g[0] <= MAX_GRID else int(g[0]) for g in grid]
        if min(counts) < 2:
            raise InputError(f"{path}: a grid of deformations needs 2 to {MAX_GRID} nodes an axis; give another file")
        nodes = _vectors(table, COEFFICIENTS, 8 * counts[0] * counts[1], path)
        values = nodes.reshape(-1, 2, counts[1], counts[0], 4)

        def spline(m: int, q: Array) -> Array:
            along_x = hermite_spline(counts[0], size[0], q[..., 0].ravel())
            along_y = hermite_spline(counts[1], size[1], q[..., 1].ravel())
            shift = np.einsum("nj,ni,cji->nc", along_y, along_x, _as_tensor(values[m]), optimize=True)
            return np.asarray(shift).reshape(q.shape)

        shifts = spline
    else:
        notes.append(f"{path.name}: deformations of type {kind or '?'} are not read; the rigid alignment is used")
        return alignment
    notes.append(f"{path.name}: {kind} deformations read as local motion")
    warp = warp_from_local_shifts(shifts, rigid, size, range(alignment.n_tilts))
    return replace(alignment, warp=warp)


def _as_tensor(points: Array) -> Array:
    """Nodes ``(2, ny, nx, 4)`` (value, slope x, slope y, twist) as ``(2, 2 ny, 2 nx)`` for `hermite_spline`."""
    value, slope_x, slope_y, twist = np.moveaxis(points, -1, 0)
    return np.concatenate([np.concatenate([value, slope_x], axis=2), np.concatenate([slope_y, twist], axis=2)], axis=1)


def _from_matrices(general: Table, table: Table, size: tuple[int, int], pixel: float, path: Path) -> Alignment:
    """Any linear projection ``index = M (voxel) + w`` as tilt, x-tilt and a 2 x 2 matrix, exactly."""
    rows = np.stack([_vectors(table, column, 4, path) for column in MATRIX], axis=1)
    volume = [_number(general, f"rlnTomoSize{axis}", path) for axis in "XYZ"]
    if any(side is None for side in volume):
        raise InputError(f"{path}: its matrices need rlnTomoSizeX, Y and Z; give the tomograms.star that has them")
    centre = np.array([int(side or 0) // 2 for side in volume])
    matrices = rows[:, :, :3]
    view = np.cross(matrices[:, 0], matrices[:, 1])
    length = np.linalg.norm(view, axis=1)
    if length.min() < 1e-6:
        raise InputError(f"{path}: a projection matrix has no two directions; give another file")
    view *= (np.where(view[:, 2] < 0, -1.0, 1.0) / length)[:, None]
    tilt = np.rad2deg(np.arcsin(np.clip(-view[:, 0], -1, 1)))
    x_tilt = np.rad2deg(np.arctan2(-view[:, 1], view[:, 2]))
    inverse = np.stack([m @ _projection(t, a).T for m, t, a in zip(matrices, tilt, x_tilt, strict=True)])
    if np.abs(np.linalg.det(inverse)).min() < 1e-3:
        raise InputError(f"{path}: a projection matrix has no inverse; give another file")
    linear = np.linalg.inv(inverse)
    seen = matrices @ centre + rows[:, :, 3] - np.array([centre_index(n) for n in size])
    shift = -np.einsum("nij,nj->ni", linear, seen)
    return Alignment(tilt, linear, shift, size, pixel, x_tilt_deg=x_tilt)


def _distance(a: Alignment, b: Alignment) -> float:
    """Largest distance (px) between where two alignments see points, local motion aside."""
    half = max(a.image_size) / 2
    points = half * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0.1]])
    a, b = a.without_warp(), b.without_warp()
    return float(
        max(np.abs(a.specimen_to_raw(m, points) - b.specimen_to_raw(m, points)).max() for m in range(a.n_tilts))
    )


def _beside_angles(apart: float) -> str:
    return (
        f", used as RELION does though angles beside them differ by up to {apart:.2f} px" if np.isfinite(apart) else ""
    )


def _projection(tilt_deg: float, x_tilt_deg: float) -> Array:
    """Specimen -> aligned, ``(2, 3)``."""
    c, s = np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0]]) @ rotation_about_x(x_tilt_deg)


# --- writing -------------------------------------------------------------------------------------------------------


def relion_paths(folder: str | Path, name: str) -> list[Path]:
    """``tomograms.star`` and the STAR file of a series, in a folder.

    Raises:
        InputError: the name cannot be a file's.
    """
    safe_name(name, folder)
    return [Path(folder) / "tomograms.star", Path(folder) / "tilt_series" / f"{name}.star"]


def write_relion(folder: str | Path, record: SeriesRecord, overwrite: bool = False) -> list[str]:
    """Write `relion_paths`; returns sentences on what they do not hold, or only nearly.

    Local motion, and changes of magnification, become spline deformations. Files that are there, and may be
    overwritten, keep what else they hold: other series, and the columns (CTF, movies) of this one.
    """
    a, notes = record.alignment, []
    overview_path, series_path = relion_paths(folder, record.name)
    if a.pixel_size_A is None:
        raise InputError(f"{record.name}: its pixel size is not known, which RELION needs; give the stack with --stack")
    if not len(a.included):
        raise InputError(f"{record.name}: every image is excluded; nothing is left to write")
    make_folder(series_path.parent)
    for path in (overview_path, series_path):
        check_output(path, overwrite)
    rigid = Rigid.part_of(a)
    grid = fit_local_shifts(a, rigid, hermite_spline)
    rows: list[int] = a.included.tolist()
    table: Table = {}
    if record.nominal_tilt_deg is not None:
        table["rlnTomoNominalStageTiltAngle"] = _written(record.nominal_tilt_deg[rows])
    if record.exposure_e_A2 is not None:
        table["rlnMicrographPreExposure"] = _written(record.exposure_e_A2[rows])
    images = record.images or tuple(f"{k + 1:06d}@{record.name}.mrc" for k in range(a.n_tilts))
    table["rlnMicrographName"] = [_with_format(images[m]) for m in rows]
    shifts = (rigid.offset_px - centre_offset(a.image_size)) * a.pixel_size_A
    table["rlnTomoXTilt"] = _written(-a.x_tilt_deg[rows])
    for column, values in zip(EULER, (a.tilt_deg, rigid.rotation_deg, shifts[:, 0], shifts[:, 1]), strict=True):
        table[column] = _written(values[rows])
    if record.defoci is not None:
        table |= _ctf_columns(record.defoci, rows)
    overview: Table = {
        "rlnTomoName": [record.name],
        "rlnTomoTiltSeriesStarFile": [str(series_path)],
        **{column: [value] for column, value in OPTICS.items()},
        **({} if record.defoci is None else {"rlnTomoHand": [f"{-record.defoci.hand:.1f}"]}),
        "rlnMicrographOriginalPixelSize": [f"{a.pixel_size_A:.6f}"],
        "rlnTomoTiltSeriesPixelSize": [f"{a.pixel_size_A:.6f}"],
        **{f"rlnTomoSize{axis}": [str(side)] for axis, side in zip("XYZ", tomogram_size(record), strict=True)},
    }
    if grid is not None:
        overview |= {column: [str(grid.nodes)] for column in DEFORMATION_SIZES}
        overview["rlnTomoDeformationType"] = ["spline"]
        table[COEFFICIENTS] = _coefficients(grid, rows)
        notes.append(
            f"{overview_path.name}: the local motion is held by spline deformations of {grid.nodes} x {grid.nodes} "
            f"nodes to {grid.rms_px:.3f} px RMS, {grid.largest_px:.3f} px at most; RELION corrects it in particles, "
            "not in the tomograms it reconstructs"
        )
    if a.excluded:
        notes.append(
            f"{series_path.name}: excluded images ({_listed(a.excluded)}, from 0) have no row; their transforms and "
            "reasons are lost"
        )
    _keep_columns(series_path, table, overwrite, notes)
    if record.images is None and table["rlnMicrographName"][0] == _with_format(images[rows[0]]):
        notes.append(f"{series_path.name}: the images' names are not known; they are taken as {images[0]} and so on")
    sides = [f"rlnTomoSize{axis}" for axis in "XYZ"]
    known = _keep_series(overview_path, overview, sides if record.thickness_px is None else [], overwrite, notes)
    if record.thickness_px is None:
        notes.append(
            f"{overview_path.name}: no thickness is known; the tomogram is {overview[sides[2]][0]} px deep there"
        )
    if not known:
        notes.append(
            f"{overview_path.name}: microscope (300 kV, Cs 2.7 mm, amplitude contrast 0.1, hand "
            f"{overview['rlnTomoHand'][0]}) is RELION's usual and not that of the series; correct it"
        )
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        notes.append(
            f"{series_path.name}: has no {', '.join(missing)}, without which RELION's programs stop; give "
            + "--ctf" * (missing[0] in CTF)
            + " and " * (len(missing) == len(REQUIRED))
            + "a stack with doses in its .mdoc" * (REQUIRED[-1] in missing)
        )
    if any(n % 2 == 0 for n in a.image_size):
        notes.append(
            f"{series_path.name}: shifts are from RELION's image centre, index n / 2; half a pixel from IMOD's"
        )
    if DEFORMATION_SIZES[0] in overview:
        table.setdefault(COEFFICIENTS, [NO_DEFORMATION] * len(rows))
        _complete_others(overview_path, overview, notes)
    write_star(series_path, {record.name: table}, overwrite)
    write_star(overview_path, {"global": overview}, overwrite)
    return notes


def _ctf_columns(defoci: Defoci, rows: list[int]) -> Table:
    half = defoci.astigmatism_A / 2
    values = (defoci.defocus_A + half, defoci.defocus_A - half, defoci.astigmatism_deg, defoci.phase_shift_deg)
    return {column: _written(value[rows]) for column, value in zip(CTF, values, strict=True)}


def _keep_columns(path: Path, table: Table, overwrite: bool, notes: list[str]) -> None:
    """Add to a series' new table the other columns of its old file.

    Rows are matched by their recorded angles; where they cannot be, nothing is kept.
    """
    angle = "rlnTomoNominalStageTiltAngle"
    if not (overwrite and path.is_file()) or angle not in table:
        return
    try:
        old = next((t for t in read_star(path).values() if angle in t), {})
        recorded = _column(old, angle, path)
    except InputError:
        return
    wanted = np.array([float(word) for word in table[angle]])
    if recorded is None or not len(recorded):
        return
    places = order_of(wanted, recorded, same_zero=True).at
    if places is None or np.abs(recorded[places] - wanted).max() > SAME_TILT_DEG:
        notes.append(f"{path.name}: what it held before is of other images and is not kept")
        return
    for column, words in old.items():
        if column == "rlnMicrographName" or (column not in table and column not in REPLACED):
            table[column] = [words[k] for k in places]
    notes.append(f"{path.name}: keeps its other columns (movies, CTF)")


def _keep_series(path: Path, overview: Table, guesses: list[str], overwrite: bool, notes: list[str]) -> bool:
    """Add to the row of a series what an old ``tomograms.star`` says of it, and the rows of all others.

    What it says counts more than ``guesses``, columns of the new row that were filled for want of better.
    Returns whether the old one knew the microscope (of this series, or else of the others).
    """
    if not (overwrite and path.is_file()):
        return False
    try:
        old = next((t for t in read_star(path).values() if "rlnTomoName" in t), {})
    except InputError:
        old = {}
    if not old:
        return False
    name = overview["rlnTomoName"][0]
    own = old["rlnTomoName"].index(name) if name in old["rlnTomoName"] else 0
    ours_before = name in old["rlnTomoName"]
    for column, words in old.items():
        kept = column in guesses if column in overview else column not in DEFORMATIONS
        if column in OPTICS or (ours_before and kept):
            overview[column] = [words[own]]
        elif column not in overview:
            overview[column] = [DEFORMATIONS.get(column, "None")]
    others = [k for k, other in enumerate(old["rlnTomoName"]) if other != name]
    if others and "rlnTomoTiltSeriesStarFile" not in old:
        raise InputError(f"{path}: is one of RELION 4, with tables of other series inside; give another folder")
    for column, words in overview.items():
        filled = [DEFORMATIONS.get(column, words[0])] * len(old["rlnTomoName"])
        words += [old.get(column, filled)[k] for k in others]
    if others:
        notes.append(f"{path.name}: keeps its {len(others)} other series")
    return True


def _complete_others(path: Path, overview: Table, notes: list[str]) -> None:
    """Coefficients of 0 for the other series of a list with deformations that have none.

    Files elsewhere belong to others and are left as they are, which is said.
    """
    elsewhere = []
    for name, file in list(zip(overview["rlnTomoName"], overview["rlnTomoTiltSeriesStarFile"], strict=True))[1:]:
        other = _resolved(file, path)
        blocks = read_star(other) if other is not None else {}
        if other is None or COEFFICIENTS in blocks.get(name, {}):
            continue
        # a name from an old list must not lead elsewhere
        ours = is_safe_name(name) and name in blocks
        if ours and other.resolve() == relion_paths(path.parent, name)[1].resolve():
            blocks[name][COEFFICIENTS] = [NO_DEFORMATION] * len(next(iter(blocks[name].values())))
            write_star(other, blocks, overwrite=True)
        else:
            elsewhere.append(name)
    if elsewhere:
        notes.append(
            f"{path.name}: has deformations now, but {', '.join(elsewhere)} none, on which RELION's programs for "
            "particles crash; convert these alignments into this folder too"
        )


def tomogram_size(record: SeriesRecord) -> tuple[int, int, int]:
    """(x, y, z) of a tomogram that holds what the untilted image shows, raw px, even."""
    a = record.alignment
    used = a.included if len(a.included) else np.arange(a.n_tilts)
    flattest = int(used[np.argmin(np.abs(a.tilt_deg[used]))])
    wide = np.abs(Rigid.part_of(a).linear[flattest]) @ np.array(a.image_size, dtype=np.float64)
    thick = record.thickness_px or THICKNESS_OF_WIDTH * min(a.image_size)
    x, y, z = (2 * int(np.ceil(side / 2 - 1e-6)) for side in (*wide, thick))
    return x, y, z


def _written(values: Array) -> list[str]:
    return [f"{value:.6f}" for value in np.round(values, 6) + 0.0]


def _coefficients(grid: LocalGrid, rows: list[int]) -> list[str]:
    """Fitted nodes ``(2 k, 2 k)`` (values and slopes along both axes) in RELION's order."""
    k, out = grid.nodes, []
    for m in rows:
        tensor = np.moveaxis(grid.values[m], -1, 0)  # (component, y, x)
        points = np.stack([tensor[:, :k, :k], tensor[:, :k, k:], tensor[:, k:, :k], tensor[:, k:, k:]], axis=-1)
        out.append("[" + ",".join(f"{value:.4f}" for value in np.round(points.ravel(), 4) + 0.0) + "]")
    return out


def _listed(excluded: dict[int, str]) -> str:
    return ", ".join(map(str, sorted(excluded)))
