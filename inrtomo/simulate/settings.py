"""Everything a simulated tilt series is made from, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inrtomo.errors import InputError

SCHEMES = ("linear", "dose-symmetric")
SPECIMENS = ("slab", "cell", "lamella", "film")


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of `inrtomo.simulate.simulate`. Lengths in raw px unless the name says otherwise, angles in degrees.

    Attributes:
        size: ``(nx, ny)`` of the raw images.
        specimen: what lies in the view (`inrtomo.simulate.shapes`).
        thickness_px: sample thickness; of a cell where it is thickest.
        pixel_size_A: Å per raw px.
        tilt_range_deg, tilt_step_deg: tilts run from -range to +range in steps.
        scheme: acquisition order: ``linear`` (from the most negative up) or ``dose-symmetric``
            (0, +s, -s, -2s, +2s, ...). The stack is always ordered by angle.
        uneven_tilt_deg: half range of a uniform change of every tilt angle, known to the user (in the ``.rawtlt``).
        tilt_offset_deg: true minus nominal tilt angle, unknown to the user.
        tilt_scale: true over nominal tilt angle; tilt_noise_deg: standard deviation of an error of every angle.
            True is scale x nominal + offset + noise.
        axis_deg: true tilt axis in IMOD's sense; nominal_axis_deg: what the microscope says, None for the true one.
        rotation_jitter_deg: half range of each tilt's rotation about the true axis.
        shift_px: half range of the independent shifts along x and y.
        drift_px: standard deviation per axis of each step of a random walk in acquisition order, added to the shifts.
        distortion_percent: half range of each image's own magnification, and of its shear.
        radial_px: radial distortion of all images: how far their corners are moved out (in, if negative).
        motion_px: random smooth motion of the specimen (`inrtomo.simulate.specimen_motion`), RMS per axis as the images
            see it; motion_length_px: its correlation length in the plane.
        doming_px, thinning_px, sliding_px, creep_px: motion of the specimen in the order of exposure, from the first to
            the last tilt: its centre rises over points a view away, its faces approach the middle, its faces slide past
            the middle in opposite senses, all of it moves in its plane.
        warp_max_px: motion of the images instead, by control points: largest local displacement over the field of view;
            0 for none.
        warp_points: control points along each axis.
        snr_db: 10 log10(mean over tilts of the signal variance / noise variance); None for no noise.
        wide: the specimen is twice as long as the view along x and 16 px longer on each side along y.
        slab_tilt_deg: the slab's own rotation about y and about x (of a lamella: beyond its pre-tilt).
        beads: gold beads in the view; bead_diameter_A: their diameter.
        densities: folder of MRC densities to use as molecules, or None for procedural ones.
        crowding: fraction of the slab's volume inside molecules.
        vesicles: number of vesicles in an area of the view; membranes, filaments likewise (procedural scenery).
        defocus_um: defocus (positive is underfocus) or None for no contrast transfer function.
        voltage_kV, cs_mm, amplitude_contrast: the optics.
        counts: camera counts (Poisson, protein dark, fewer at high tilt) instead of additive noise, protein bright.
        dose_per_tilt: electrons per Å² of every tilt.
        mean_free_path_nm: inelastic mean free path that attenuates the beam with tilt (with ``counts``).
        blanks: tilts recorded with the beam blocked.
        seed: everything random derives from it.
    """

    size: tuple[int, int] = (128, 128)
    specimen: str = "slab"
    thickness_px: int = 40
    pixel_size_A: float = 10.0
    tilt_range_deg: float = 60.0
    tilt_step_deg: float = 3.0
    scheme: str = "linear"
    uneven_tilt_deg: float = 0.0
    tilt_offset_deg: float = 0.0
    tilt_scale: float = 1.0
    tilt_noise_deg: float = 0.0
    axis_deg: float = 0.0
    nominal_axis_deg: float | None = None
    rotation_jitter_deg: float = 0.2
    shift_px: float = 8.0
    drift_px: float = 0.0
    distortion_percent: float = 0.0
    radial_px: float = 0.0
    motion_px: float = 0.0
    motion_length_px: float = 200.0
    doming_px: float = 0.0
    thinning_px: float = 0.0
    sliding_px: float = 0.0
    creep_px: float = 0.0
    warp_max_px: float = 1.0
    warp_points: int = 5
    snr_db: float | None = 0.0
    wide: bool = True
    slab_tilt_deg: tuple[float, float] = (0.0, 0.0)
    beads: int = 4
    bead_diameter_A: float = 100.0
    densities: Path | None = None
    crowding: float = 0.1
    vesicles: int = 3
    membranes: int = 0
    filaments: int = 0
    defocus_um: float | None = None
    voltage_kV: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.07
    counts: bool = False
    dose_per_tilt: float = 3.0
    mean_free_path_nm: float = 300.0
    blanks: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            f"image size {self.size}: both sides must be at least 16 px": min(self.size) >= 16,
            f"thickness {self.thickness_px} px: must be at least 4 px": self.thickness_px >= 4,
            f"pixel size {self.pixel_size_A} Å: must be positive": self.pixel_size_A > 0,
            f"tilt range {self.tilt_range_deg}: must be above 0 and below 85 degrees": 0 < self.tilt_range_deg < 85,
            f"tilt step {self.tilt_step_deg}: must be positive": self.tilt_step_deg > 0,
            f"unknown tilt scheme {self.scheme!r}: use one of {', '.join(SCHEMES)}": self.scheme in SCHEMES,
            f"crowding {self.crowding}: must be from 0 to 0.3": 0 <= self.crowding <= 0.3,
            f"warp points {self.warp_points}: must be from 3 to 20": 3 <= self.warp_points <= 20,
            "number of beads, vesicles, membranes, filaments and blanks: must not be negative": min(
                self.beads, self.vesicles, self.membranes, self.filaments, self.blanks
            )
            >= 0,
            "jitter, shift, drift, motion and warp sizes: must not be negative": min(
                self.uneven_tilt_deg,
                self.tilt_noise_deg,
                self.rotation_jitter_deg,
                self.shift_px,
                self.drift_px,
                self.distortion_percent,
                self.motion_px,
                self.warp_max_px,
            )
            >= 0,
            f"unknown specimen {self.specimen!r}: use one of {', '.join(SPECIMENS)}": self.specimen in SPECIMENS,
            f"tilt scale {self.tilt_scale}: must be from 0.8 to 1.2": 0.8 <= self.tilt_scale <= 1.2,
            f"distortion {self.distortion_percent} %: must be at most 20": self.distortion_percent <= 20,
            f"radial distortion {self.radial_px} px: must be within 5 % of the image": abs(self.radial_px)
            <= 0.05 * min(self.size),
            f"correlation length {self.motion_length_px} px: must be at least 10 px": self.motion_length_px >= 10,
            f"thinning {self.thinning_px} px: must be below a quarter of the thickness": abs(self.thinning_px)
            < self.thickness_px / 4,
            "dose and mean free path: must be positive": min(self.dose_per_tilt, self.mean_free_path_nm) > 0,
        }
        for message, fine in checks.items():
            if not fine:
                raise InputError(message)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        values["densities"] = str(self.densities) if self.densities else None
        return values
