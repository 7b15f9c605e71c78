"""Checks the GPU engine against the float64 reference, then times it: ``python -m integration.benchmarks.gpu.run``.

One table: throughput of the field (forward alone; training, that is forward, both backwards and update) by our
kernels, by tinycudann where it is installed and by plain torch; of the lattice, its projector and their adjoints; and
of these together (`projections`), counted in samples along the rays.

The last column is the time over the memory-bandwidth floor: the bytes that have to cross device memory at least once,
over the bandwidth of a copy measured in the same run. Counted are, for n samples, P table entries of 4 bytes and a
decoder that is too small to count:

* forward: 12 n bytes of coordinates and 4 P of tables read, 4 n of densities written;
* training: the forward pass; 12 n + 4 n read again with the densities' gradient, 12 n of coordinate gradients
  written, 4 P of tables read again; 4 P of table gradients zeroed and 4 P written; the update reads gradient,
  parameters and two moments and writes the last three, 28 P;
* lattice of n points: forward 4 P + 4 n; backward 4 P + 4 n read, 8 P of gradients zeroed and written;
* projection, and its adjoint: density and projections once each;
* projections of a field with m pixels: forward 8 m of places and 4 P read, 4 m written; backward 12 m and
  4 P read, 8 m of places' gradients written, 8 P of tables' gradients added to.

Gathers that miss the caches, and all arithmetic, count as nothing, so the ratio is never 1.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from inrtomo import __version__
from inrtomo.align.fast import ON_CPU, fast_alignment_of
from inrtomo.align.joint import scaled_data
from inrtomo.align.prepare import PrepareSettings
from inrtomo.device import choose
from inrtomo.errors import InputError
from inrtomo.export import Sections
from inrtomo.fields import lattice_axes, make_field
from inrtomo.fields.grid import GridField
from inrtomo.gpu.early import DeviceWork
from inrtomo.gpu.fsc import DeviceFourierWork
from inrtomo.gpu.geometry import TiltGeometry
from inrtomo.gpu.operations import hash_field, of
from inrtomo.gpu.registration import DeviceRegistrationWork
from inrtomo.gpu.resample import DeviceSections
from inrtomo.metrics.fsc import FourierWork, volume_fsc
from inrtomo.metrics.masks import soft_box
from inrtomo.metrics.registration import RegistrationWork, translation_between
from inrtomo.projection import Lattice, back_project, project
from inrtomo.reconstruct.ctf_correction import ctf_corrected
from inrtomo.reconstruct.fbp import FbpSettings, filtered_lines
from inrtomo.reconstruct.halves import Source
from inrtomo.reconstruct.prepared import prepared_tilts
from inrtomo.reconstruct.rays import Rays
from inrtomo.simulate import SimulationSettings, simulate
from integration.benchmarks.gpu.commands import PARTS, part
from integration.benchmarks.gpu.fits import fits
from integration.benchmarks.gpu.projections import lines

BOX = (-256.0, 256.0, -256.0, 256.0, -90.0, 90.0)
CONFIGURATIONS = {"8 levels x 4 features": (8, 4), "16 levels x 2 features": (16, 2)}
WIDTH, HIDDEN = 64, 2
SAMPLES = 1 << 22
PLAIN_SAMPLES = 1 << 18  # what plain torch has memory for
REPEATS = 20
TILTS = np.linspace(-60, 60, 61)
TOLERANCE = {"density": 2e-3, "gradients": 1e-2}  # of the largest value, half precision in the decoder
LOSSES_APART = 2e-2  # relatively, after some steps


@dataclass
class Line:
    """One row of the table."""

    what: str
    backend: str
    milliseconds: float
    samples_per_second: float
    over_floor: float


def field_of(levels: int, features: int, box: tuple[float, ...] = BOX) -> GridField:
    """A hash field of the size that the targets are for, with parameters that matter."""
    field = make_field(
        "hash", box, 1.0, levels, features, growth=2.0 if levels == 8 else 1.4, width=WIDTH, hidden=HIDDEN  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(field, GridField)
    rng = np.random.default_rng(0)
    field.parameters()[:] += rng.normal(scale=0.1, size=field.parameters().size).astype(np.float32)
    return field


def check(device: str) -> list[str]:
    """Our kernels on this GPU against float64 torch and the compiled CPU projector; a sentence for each."""
    said = []

    def judge(what: str, found: Any, exact: Any, tolerance: float) -> None:
        error = float(np.abs(np.asarray(found) - exact).max() / np.abs(exact).max())
        said.append(f"{what}: {error:.1e} of the largest value")
        if not error < tolerance:
            raise SystemExit(f"check failed: {said[-1]}, {tolerance:.0e} allowed")

    for name, (levels, features) in CONFIGURATIONS.items():
        small = (-20.0, 20.0, -24.0, 24.0, -6.0, 6.0)
        field = field_of(levels, features, small)
        exact = make_field(**(field.config | {"backend": "reference"}))
        exact.parameters()[:] = field.parameters()
        field.use_device(device)
        rng = np.random.default_rng(1)
        lattice = Lattice(0.9, (9, 31, 70), (-4.0, -15.0, -32.0))
        grad = rng.normal(size=lattice.shape).astype(np.float32)
        xyz = rng.uniform((-25, -30, -8), (25, 30, 8), size=(5000, 3)).astype(np.float32)
        found = []
        for each in (field, exact):
            each.zero_grad()
            values = [each.lattice(lattice)]
            each.backward_lattice(grad)
            values += [each.grad.copy(), each.points(xyz)]
            each.zero_grad()
            values += [each.backward_points(np.ones(len(xyz), np.float32)), each.grad.copy()]
            found.append(values)
        names = "density on a lattice", "its gradients", "density at points", "gradients of points", "of tables"
        for what, fast, slow in zip(names, *found, strict=True):
            judge(f"{name}, {what}", fast, slow, TOLERANCE["density" if "density" in what else "gradients"])
    lattice, n_u = Lattice.covering(90, 40, 20, 1.0), 101
    rng = np.random.default_rng(2)
    rho = rng.normal(size=lattice.shape).astype(np.float32)
    given = rng.normal(size=(len(TILTS), n_u, lattice.shape[2])).astype(np.float32)
    geometry = TiltGeometry(lattice, TILTS, n_u, device)
    made = of("cuda").project(torch.tensor(rho, device=device), geometry).cpu()
    judge("projection", made, project(rho, lattice, TILTS, n_u), 1e-3)
    back = torch.zeros(lattice.shape, device=device)
    of("cuda").add_back_projection(back, torch.tensor(given, device=device), geometry)
    judge("its adjoint", back.cpu(), back_project(given, lattice, TILTS), 1e-3)
    return said


def check_stages(device: str) -> list[str]:
    """Tracks, aligned stacks and Fourier shells in torch on this device against the CPU's; a sentence for each."""
    said = []

    def judge(what: str, error: float, unit: str, tolerance: float) -> None:
        said.append(f"{what}: {error:.1e} {unit}")
        if not error < tolerance:
            raise SystemExit(f"check failed: {said[-1]}, {tolerance:.0e} allowed")

    series = simulate(SimulationSettings(size=(128, 112), thickness_px=36, tilt_step_deg=6, shift_px=5, seed=1))
    found = [
        fast_alignment_of(series.images, series.tilt_deg, series.alignment.rotation_deg[0], work=work)[0].shift_px
        for work in (ON_CPU, DeviceWork(device, 1e9))
    ]
    judge("shifts by preparation, correlation and tracks", float(np.abs(found[1] - found[0]).max()), "px", 0.01)
    for bin_ in (1, 2):
        given = series.alignment, bin_, None, 300
        ours, other = (
            sections.section(series.images[3], 3) for sections in (Sections(*given), DeviceSections(*given, device))
        )
        error = np.abs(other.values - ours.values).max() / np.abs(ours.values).max()
        judge(f"aligned image, binned by {bin_}", float(error), "of the largest value", 1e-4)
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(40, 60, 60)).cumsum(axis=0)
    a, b = ((shared + 3 * rng.normal(size=shared.shape)).astype(np.float32) for _ in range(2))
    work = DeviceRegistrationWork(device)
    apart = [translation_between(a, b, work=each) for each in (RegistrationWork(), work)]
    judge("shift between volumes", float(np.abs(apart[1] - apart[0]).max()), "voxel", 0.03)
    curves = [
        volume_fsc(a, b, 10.0, soft_box(a.shape), tilt_deg=TILTS, make_work=make_work).curves()
        for make_work in (FourierWork, partial(DeviceFourierWork, device=device))
    ]
    error = max(float(np.nanmax(np.abs(curves[1][k].correlation - c.correlation))) for k, c in curves[0].items())
    judge("Fourier shell correlations", error, "at most", 1e-4)
    source = Source("", series.images.__getitem__, replace(series.alignment, pixel_size_A=8.0))
    for what, on_cpu, on_device in zip(
        RECONSTRUCTING, stages_of(source, "cpu"), stages_of(source, device), strict=True
    ):
        error = np.linalg.norm(on_device - on_cpu) / np.linalg.norm(on_cpu)
        judge(what, float(error), "of the norm", 1e-3)
    return said


RECONSTRUCTING = (
    "weighted lines", "prepared images", "images without the phases of the transfer function", "images of a scale",
    "where pixels read projections",
)  # fmt: skip


def stages_of(source: Source, device: str) -> Iterator[Any]:
    """What `inr-recon` makes of a series on a device before its methods."""
    with filtered_lines(source.image, source.alignment, FbpSettings(36, bin=2, device=device)) as lines:
        yield lines.lines
    prepared = prepared_tilts(source, 2, PrepareSettings(restore=False), device=device)
    yield prepared.images
    yield ctf_corrected(source.image, source.alignment, 20_000.0, device=device)(2)
    held = np.zeros((len(prepared.images), 4, 4), dtype=np.bool_)
    yield scaled_data(prepared.images, prepared.weight, 2, held, device).images
    rays = Rays(prepared.alignment, prepared.alignment.image_size, 1, 18.0, device=device)
    yield np.stack(rays.indices)


def check_fits(device: str) -> list[str]:
    """Fits with all that they can have, recorded on this device, against the CPU's; a sentence for each."""
    said = []
    for name, apart in fits(device):
        said.append(f"losses of a fit, {name}: {apart:.1e} apart at the worst")
        if not apart < LOSSES_APART:
            raise SystemExit(f"check failed: {said[-1]}, {LOSSES_APART:.0e} allowed")
    return said


def check_tinycudann(device: str) -> list[str]:
    """tinycudann's field on a lattice, fused and in parts, against its own values at points; empty if it is absent."""
    field = field_of(8, 4, (-20.0, 20.0, -24.0, 24.0, -6.0, 6.0))
    try:
        kernels = hash_field(field.grid, field.decoder, 1.0, device, "tinycudann")
    except InputError as error:
        print(error, file=sys.stderr)
        return []
    said, axes = [], (np.linspace(-4, 4, 5), np.linspace(-15, 15, 31), np.linspace(-20, 20, 70))
    generator = torch.Generator(device=device).manual_seed(0)
    flat = 0.1 * torch.randn(kernels.n_parameters, generator=generator, device=device)
    none, zxy = torch.zeros(0, device=device), np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points, caps = torch.tensor(zxy, dtype=torch.float32, device=device), np.full((5, 31), 8)
    for what, active in (("fused", None), ("in parts", 6.5)):
        levels = field.grid.level_weights(active)
        plan, grads = kernels.plan(axes, levels, caps), [torch.zeros_like(flat) for _ in range(2)]
        rho = kernels.lattice(flat, none, plan)
        at_points = kernels.points(flat, none, points, levels).reshape(rho.shape)
        kernels.lattice_backward(flat, none, plan, torch.ones_like(rho), grads[0], none)
        kernels.points_backward(flat, none, points, levels, torch.ones(len(points), device=device), grads[1], none)
        for name, one, two in (("density", rho, at_points), ("gradients", grads[0], grads[1])):
            off = float((one - two).norm() / two.norm())
            said.append(f"tinycudann {what}, {name} on a lattice: {off:.1e} of the norm")
            if not off < TOLERANCE["gradients"]:
                raise SystemExit(f"check failed: {said[-1]}, {TOLERANCE['gradients']:.0e} allowed")
    return said


def seconds(work: Callable[[], Any]) -> float:
    """Median time of a call on the device, after it was compiled and warm."""
    times = []
    for _ in range(REPEATS + 3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return float(np.median(times[3:]))


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written together."""
    source = torch.ones(1 << 28, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds(lambda: target.copy_(source))


def throughput(device: str, bandwidth: float) -> Iterator[Line]:
    """The field at free points."""
    for name, (levels, features) in CONFIGURATIONS.items():
        field = field_of(levels, features)
        grid, decoder, n_tables = field.grid, field.decoder, field.grid.n_parameters
        weights_on = grid.level_weights(None)
        for backend in ("triton", "tinycudann", "plain"):
            n = PLAIN_SAMPLES if backend == "plain" else SAMPLES
            try:
                kernels = hash_field(grid, decoder, 1.0, device, backend)
            except InputError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            count = kernels.n_parameters if backend == "tinycudann" else field.parameters().size
            at = kernels.n_tables if backend == "tinycudann" else n_tables
            parameters = 1e-2 * torch.randn(count, device=device)
            generator = torch.Generator(device=device).manual_seed(0)
            low, high = (torch.tensor(v, device=device) for v in (grid.origin, grid.upper))
            points = low + torch.rand((n, 3), generator=generator, device=device) * (high - low)
            by_density = torch.randn(n, device=device)
            at_points = AtPoints(kernels, parameters, at, points, weights_on, by_density)
            for what, work, floor in (
                ("forward", at_points.forward, 16 * n + 4 * count),
                ("training", at_points.train, 16 * n + 4 * count + 28 * n + 40 * count),
            ):
                time_s = seconds(work)
                yield Line(f"{name}: {what}", backend, 1e3 * time_s, n / time_s, time_s * bandwidth / floor)


@dataclass
class AtPoints:
    """Evaluation and training of a field at free points, ``at`` of its parameters in tables."""

    kernels: Any
    parameters: torch.Tensor
    at: int
    points: torch.Tensor
    level_weights: Any
    by_density: torch.Tensor

    def __post_init__(self) -> None:
        self.grad, self.first, self.second = (torch.zeros_like(self.parameters) for _ in range(3))
        self.steps = torch.tensor([1e-3, 1.0], device=self.parameters.device)

    def forward(self) -> torch.Tensor:
        p, at = self.parameters, self.at
        density: torch.Tensor = self.kernels.points(p[:at], p[at:], self.points, self.level_weights)
        return density

    def train(self) -> None:
        p, g, at = self.parameters, self.grad, self.at
        g.zero_()
        self.forward()
        self.kernels.points_backward(
            p[:at], p[at:], self.points, self.level_weights, self.by_density, g[:at], g[at:]
        )  # fmt: skip
        of("cuda").adam(p, g, self.first, self.second, self.steps, 0.9, 0.99, 1e-12)


@dataclass
class OnLattice:
    """Evaluation of a field on a planned lattice, and its gradients."""

    kernels: Any
    plan: Any
    tables: torch.Tensor
    weights: torch.Tensor

    def __post_init__(self) -> None:
        self.grads = torch.zeros_like(self.tables), torch.zeros_like(self.weights)

    def forward(self) -> torch.Tensor:
        density: torch.Tensor = self.kernels.lattice(self.tables, self.weights, self.plan)
        return density

    def backward(self, by_density: torch.Tensor) -> None:
        self.kernels.lattice_backward(self.tables, self.weights, self.plan, by_density, *self.grads)


def lattice_lines(device: str, bandwidth: float) -> Iterator[Line]:
    """What a step of a fit to 512 px images and a slab of 180 px is made of, at two raw px."""
    lattice, n_u = Lattice.covering(420, 272, 100, 2.0), 273
    field = make_field("hash", (-422, 422, -274, 274, -102, 102), 2.0, 6)
    assert isinstance(field, GridField)
    caps, rho = np.full(lattice.shape[:2], field.grid.levels), torch.empty(0)
    n = lattice.n_points
    for backend in ("tinycudann", "triton"):
        try:
            kernels = hash_field(field.grid, field.decoder, 1.0, device, backend)
        except InputError as error:
            print(f"lattice of a 512 px fit: {error}", file=sys.stderr)
            continue
        plan = kernels.plan(lattice_axes(lattice), field.grid.level_weights(None), caps)
        parameters, at = torch.tensor(field.parameters(), device=device), field.grid.n_parameters
        if backend == "tinycudann":
            parameters, at = 1e-2 * torch.randn(kernels.n_parameters, device=device), kernels.n_tables
        made = OnLattice(kernels, plan, parameters[:at], parameters[at:])
        rho, p = made.forward(), parameters.numel()
        for what, work, floor in (
            ("lattice of a 512 px fit: density", made.forward, 4 * (p + n)),
            ("lattice of a 512 px fit: gradients", partial(made.backward, rho), 4 * (3 * p + n)),
        ):
            time_s = seconds(work)
            yield Line(what, backend, 1e3 * time_s, n / time_s, time_s * bandwidth / floor)
    geometry = TiltGeometry(lattice, TILTS, n_u, device)
    ideal = of("cuda").project(rho, geometry)
    m = ideal.numel()
    for what, work, floor in (
        ("61 projections", lambda: of("cuda").project(rho, geometry), 4 * (n + m)),
        ("61 back-projections", lambda: of("cuda").add_back_projection(rho, ideal, geometry), 4 * (2 * n + m)),
    ):
        time_s = seconds(work)
        yield Line(what, "triton", 1e3 * time_s, n / time_s, time_s * bandwidth / floor)


def projection_lines(device: str, bandwidth: float) -> Iterator[Line]:
    """Projections of a field by its lattice."""
    for what, work, samples, floor in lines(device):
        time_s = seconds(work)
        yield Line(what, "triton", 1e3 * time_s, samples / time_s, time_s * bandwidth / floor)


def versions(sentence: str) -> dict[str, str]:
    """What was measured on."""
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return {
        "device": sentence, "driver": driver, "CUDA": str(torch.version.cuda), "torch": torch.__version__,
        "triton": triton.__version__, "python": platform.python_version(), "inrtomo": __version__,
    }  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--device", default="cuda", metavar="cuda[:N]", help="Which GPU.")
@click.option("--commands", help=f"Also whole commands, minutes each: {','.join(PARTS)}.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The same as JSON.")
def main(device: str, commands: str | None, output: Path | None) -> None:
    """Check the GPU engine against the float64 reference, then time it."""
    parts = commands.split(",") if commands else []
    if unknown := [name for name in parts if name not in PARTS]:
        raise click.UsageError(f"--commands {unknown[0]}: is none of {', '.join(PARTS)}")
    try:
        if not torch.cuda.is_available():
            raise InputError("torch sees no NVIDIA GPU here, so there is nothing to measure")
        chosen = choose(device)
        if not chosen.is_gpu:
            raise InputError(f"--device {device}: there is nothing to measure without a GPU; give cuda")
    except InputError as error:
        raise SystemExit(_refused(str(error))) from None
    about = versions(chosen.sentence)
    print("  ".join(f"{what} {value}" for what, value in about.items()))
    with torch.cuda.device(chosen.name):
        for checking in (check, check_stages, check_fits, check_tinycudann):
            for sentence in checking(chosen.name):
                print(f"checked  {sentence}", flush=True)
        bandwidth = copy_bandwidth(chosen.name)
        print(f"copy: {bandwidth / 1e12:.2f} TB/s\n")
        print("| | by | ms | M samples/s | time / bandwidth floor |\n|---|---|---|---|---|")
        table = []
        for source in (throughput, lattice_lines, projection_lines):
            for line in source(chosen.name, bandwidth):
                table.append(line)
                rate = line.samples_per_second / 1e6
                print(
                    f"| {line.what} | {line.backend} | {line.milliseconds:.2f} | {rate:.0f} | {line.over_floor:.1f} |"
                )
    wall = {}
    for name in parts:
        for what, value in part(name, chosen.name):
            wall[what] = value
            print(f"{what}: {value:.3g}", flush=True)
    if output is not None:
        record = {
            "versions": about,
            "bandwidth": bandwidth,
            "lines": [asdict(line) for line in table],
            "commands": wall,
        }
        output.write_text(json.dumps(record, indent=1))


def _refused(sentence: str) -> int:
    print(f"integration/benchmarks/gpu: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
