"""``inr-simulate``: a tilt series whose alignment and specimen are known."""

from __future__ import annotations

from pathlib import Path

import click

from inrtomo.commands._common import command
from inrtomo.errors import InputError
from inrtomo.io.files import check_output, make_folder
from inrtomo.io.names import safe_name
from inrtomo.simulate import SimulationSettings, simulate, write_simulation
from inrtomo.simulate.files import output_paths
from inrtomo.simulate.settings import SCHEMES, SPECIMENS

_D = SimulationSettings()
THICKNESS_NM = {"lamella": 200.0}
"""Of specimens that are not usually 40 nm thick."""
MOTION = ("motion_px", "doming_px", "thinning_px")
"""Of the specimen, in place of --warp. Not by default: its truth has an x-tilt an image, which only fbp takes."""


@command("inr-simulate", context_settings={"show_default": True})
@click.option(
    "-o", "--output", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder."
)
@click.option("--base", default="sim", help="Start of every file name.")
@click.option("--seed", default=_D.seed, help="The same seed and options give the same files.")
@click.option("--size", nargs=2, type=int, default=_D.size, metavar="NX NY", help="Image size, px.")
@click.option(
    "--specimen",
    type=click.Choice(SPECIMENS),
    default=_D.specimen,
    help="A slab; a cell whose edge crosses the view, on its support, gold on both faces; a lamella, tilted by 10° to "
    "either side, with milling ridges; ice in the hole of a carbon film.",
)
@click.option(
    "--thickness",
    type=float,
    metavar="NM",
    help="Sample thickness, of a cell where it is thickest.  [default: 40, lamella 200]",
)
@click.option("--pixel-size", default=_D.pixel_size_A, metavar="A", help="Å per pixel.")
@click.option("--tilt-range", default=_D.tilt_range_deg, metavar="DEG", help="Tilts run from minus to plus this.")
@click.option("--tilt-step", default=_D.tilt_step_deg, metavar="DEG")
@click.option("--scheme", type=click.Choice(SCHEMES), default=_D.scheme, help="Acquisition order.")
@click.option("--uneven-tilts", default=_D.uneven_tilt_deg, metavar="DEG", help="Known unevenness of the angles, ±.")
@click.option("--tilt-offset", default=_D.tilt_offset_deg, metavar="DEG", help="True minus nominal tilt.")
@click.option("--tilt-scale", default=_D.tilt_scale, help="True over nominal tilt.")
@click.option("--tilt-noise", default=_D.tilt_noise_deg, metavar="DEG", help="Unknown error of every tilt, sd.")
@click.option("--tilt-axis", default=_D.axis_deg, metavar="DEG", help="True tilt axis, IMOD's sense.")
@click.option("--nominal-axis", type=float, metavar="DEG", help="Tilt axis in the .mdoc.  [default: the true one]")
@click.option("--rotation-jitter", default=_D.rotation_jitter_deg, metavar="DEG", help="Rotation of every image, ±.")
@click.option("--shifts", default=_D.shift_px, metavar="PX", help="Independent shifts, ±.")
@click.option("--drift", default=_D.drift_px, metavar="PX", help="Random walk in acquisition order, sd of a step.")
@click.option(
    "--distortion", default=_D.distortion_percent, metavar="%", help="Magnification and shear of every image, ± each."
)
@click.option(
    "--radial", default=_D.radial_px, metavar="PX", help="Radial distortion of all images: way of the corners outwards."
)
@click.option(
    "--motion",
    type=float,
    metavar="PX",
    help="Random smooth motion of the specimen as the images see it, RMS per axis. Like all its motion it goes with "
    "the dose, fast at first (1 - exp(-dose / 40 e/Å2)), and leaves out what no series can show.  "
    "[default: 0]",
)
@click.option(
    "--motion-length",
    default=_D.motion_length_px * _D.pixel_size_A / 10,
    metavar="NM",
    help="Correlation length of --motion in the specimen's plane; over its depth it is four times as long.",
)
@click.option(
    "--doming",
    type=float,
    metavar="PX",
    help="Rise of the specimen's middle over points a view away, from the first to the last exposure.  [default: 0]",
)
@click.option(
    "--thinning",
    type=float,
    metavar="PX",
    help="Way of either face towards the middle, and between in proportion to depth.  [default: 0]",
)
@click.option(
    "--sliding", default=_D.sliding_px, metavar="PX", help="Way of the faces along the specimen, in opposite senses."
)
@click.option("--creep", default=_D.creep_px, metavar="PX", help="Way of the whole specimen in its plane.")
@click.option(
    "--warp",
    type=float,
    metavar="PX",
    help="Local motion of the images by control points: the largest.  "
    f"[default: {_D.warp_max_px:g}; 0 where --motion, --doming or --thinning move the specimen]",
)
@click.option("--warp-points", default=_D.warp_points, help="Control points of --warp along each axis.")
@click.option("--snr", default=_D.snr_db, metavar="DB", help="10 log10(mean signal variance / noise variance).")
@click.option("--noise-free", is_flag=True, help="No noise at all.")
@click.option("--wide/--not-wide", default=_D.wide, help="Specimen reaching beyond the view.")
@click.option("--slab-tilt", nargs=2, type=float, default=_D.slab_tilt_deg, metavar="Y X", help="Slab's own tilt, deg.")
@click.option(
    "--densities", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of MRC densities."
)
@click.option("--crowding", default=_D.crowding, help="Part of the slab inside molecules.")
@click.option("--beads", default=_D.beads, help="Gold beads in the view.")
@click.option("--bead-diameter", default=_D.bead_diameter_A / 10, metavar="NM")
@click.option("--vesicles", default=_D.vesicles, help="Vesicles in an area of the view.")
@click.option("--membranes", default=_D.membranes, help="Membranes across an area of the view.")
@click.option("--filaments", default=_D.filaments, help="Filaments in an area of the view.")
@click.option("--defocus", type=float, metavar="UM", help="Underfocus.  [default: no transfer function]")
@click.option("--voltage", default=_D.voltage_kV, metavar="KV")
@click.option("--cs", default=_D.cs_mm, metavar="MM", help="Spherical aberration.")
@click.option("--amplitude-contrast", default=_D.amplitude_contrast)
@click.option("--counts", is_flag=True, help="Camera counts: Poisson noise, protein dark, fewer at high tilt.")
@click.option("--dose", default=_D.dose_per_tilt, metavar="E/A2", help="Electrons per Å² and tilt.")
@click.option("--mean-free-path", default=_D.mean_free_path_nm, metavar="NM", help="Attenuation with --counts.")
@click.option("--blanks", default=_D.blanks, help="Tilts recorded with the beam blocked.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(folder: Path, base: str, overwrite: bool, noise_free: bool, **options) -> None:  # type: ignore[no-untyped-def]
    """Simulate a tilt series: BASE.mrc, _odd.mrc, _even.mrc, .rawtlt, .mrc.mdoc and the truth (JSON, MRC)."""
    o = options
    if o["pixel_size"] <= 0:
        raise InputError(f"--pixel-size {o['pixel_size']:g}: must be positive; give Å per pixel")
    thickness = THICKNESS_NM.get(o["specimen"], 40.0) if o["thickness"] is None else o["thickness"]
    motion = {key: o[key.removesuffix("_px")] or 0.0 for key in MOTION}
    warp = (0.0 if any(motion.values()) else _D.warp_max_px) if o["warp"] is None else o["warp"]
    settings = SimulationSettings(
        size=o["size"],
        specimen=o["specimen"],
        thickness_px=round(thickness * 10 / o["pixel_size"]),
        pixel_size_A=o["pixel_size"],
        tilt_range_deg=o["tilt_range"],
        tilt_step_deg=o["tilt_step"],
        scheme=o["scheme"],
        uneven_tilt_deg=o["uneven_tilts"],
        tilt_offset_deg=o["tilt_offset"],
        tilt_scale=o["tilt_scale"],
        tilt_noise_deg=o["tilt_noise"],
        axis_deg=o["tilt_axis"],
        nominal_axis_deg=o["nominal_axis"],
        rotation_jitter_deg=o["rotation_jitter"],
        shift_px=o["shifts"],
        drift_px=o["drift"],
        distortion_percent=o["distortion"],
        radial_px=o["radial"],
        motion_length_px=o["motion_length"] * 10 / o["pixel_size"],
        sliding_px=o["sliding"],
        creep_px=o["creep"],
        **motion,
        warp_max_px=warp,
        warp_points=o["warp_points"],
        snr_db=None if noise_free else o["snr"],
        wide=o["wide"],
        slab_tilt_deg=o["slab_tilt"],
        beads=o["beads"],
        bead_diameter_A=o["bead_diameter"] * 10,
        densities=o["densities"],
        crowding=o["crowding"],
        vesicles=o["vesicles"],
        membranes=o["membranes"],
        filaments=o["filaments"],
        defocus_um=o["defocus"],
        voltage_kV=o["voltage"],
        cs_mm=o["cs"],
        amplitude_contrast=o["amplitude_contrast"],
        counts=o["counts"],
        dose_per_tilt=o["dose"],
        mean_free_path_nm=o["mean_free_path"],
        blanks=o["blanks"],
        seed=o["seed"],
    )
    safe_name(base, folder)
    make_folder(folder)
    for path in output_paths(folder, base):
        check_output(path, overwrite)
    result = simulate(settings)
    paths = write_simulation(result, folder, base, overwrite)
    nx, ny = settings.size
    click.echo(
        f"{len(result.images)} tilts of {nx} x {ny} px, {result.meta['molecules']} molecules, seed {settings.seed}"
    )
    click.echo(f"wrote {paths[0]} and {', '.join(path.name for path in paths[1:])}")
