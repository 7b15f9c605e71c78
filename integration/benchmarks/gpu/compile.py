"""Compiles every kernel for a GPU that need not be there: ``python -m integration.benchmarks.gpu.compile``.

Triton's interpreter knows values, not types, layouts and registers; this is the other half of what can be checked
without a GPU. Printed are the registers of a thread, the bytes it spills to memory, and the shared memory of a block.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

DECODERS = {
    "6 x 2, 16 wide": {"F": 2, "ACTIVE": 6, "NIN": 12, "WIDTH": 16, "HIDDEN": 1, "K": 16, "H": 16},
    "8 x 4, 2 x 64 wide": {"F": 4, "ACTIVE": 8, "NIN": 32, "WIDTH": 64, "HIDDEN": 2, "K": 32, "H": 64},
    "7 x 1, summed": {"F": 1, "ACTIVE": 7, "NIN": 7, "WIDTH": 1, "HIDDEN": 0, "K": 16, "H": 16},
}
INTEGER_ARRAYS: tuple[str, ...] = (
    "geometry",
    "z_index",
    "x_index",
    "y_index",
    "index",
    "caps",
    "z_low",
    "rows",
    "starts",
    "stops",
)
INTEGER_ARRAYS += ("order", "subset")
REAL_NUMBERS = ("scale", "x0", "u0", "least", "lowest", "weight", "rounding", "beta1", "beta2", "epsilon", "samples")
INTEGERS: tuple[str, ...] = (
    "n",
    "nx",
    "ny",
    "nz",
    "n_u",
    "n_v",
    "n_x",
    "n_y",
    "n_tilts",
    "n_lines",
    "n_blocks",
    "n_slots",
    "n_private",
    "n_rows",
)
INTEGERS += (
    "n_weights",
    "n_vertices",
    "low",
    "longest",
    "vertices_x",
    "plane",
    "stride_z",
    "stride_x",
    "first",
    "copies",
)
INTEGERS += ("y_shift", "z_stride", "per_image", "private_size", "F")


def kernels() -> Iterator[tuple[str, Any, dict[str, Any], dict[str, str]]]:
    """Name, kernel, its compile-time constants, and types of arguments that their names do not tell."""
    from inrtomo.gpu import hash_field, hash_kernels, projector_kernels

    tile: dict[str, Any]
    for name, decoder in DECODERS.items():
        tile = decoder | {"HALF": True, "BLOCK": hash_field.BLOCK}
        train = {"TRAIN": decoder["HIDDEN"] > 0}
        yield f"lattice_forward {name}", hash_kernels.lattice_forward, tile, {}
        yield f"lattice_backward {name}", hash_kernels.lattice_backward, tile | train, {}
        yield f"points_forward {name}", hash_kernels.points_forward, tile, {}
        yield f"points_backward {name}", hash_kernels.points_backward, tile | train, {}
    yield "reduce_x", hash_kernels.reduce_x, {"BLOCK": 64}, {}
    yield "reduce_y", hash_kernels.reduce_y, {"ADD": True, "LINES": 8, "BLOCK": 64}, {}
    yield "hashed_runs", hash_kernels.hashed_runs, {"SLOTS": 8}, {}
    yield "project", projector_kernels.project, {"RAYS": 8, "ROWS": 64}, {}
    for mode in range(4):
        tile = {"MODE": mode, "VOXELS": 8, "ROWS": 64}
        yield f"back_project mode {mode}", projector_kernels.back_project, tile, {}
    yield "read", projector_kernels.read, {"SLOPES": True, "BLOCK": 256}, {}
    yield "spread", projector_kernels.spread, {"BLOCK": 256}, {}
    yield "add_variation", projector_kernels.add_variation, {"BLOCK": 1024}, {}
    yield "adam", projector_kernels.adam, {"BLOCK": 1024}, {"first": "*fp32"}
    lines = {"VOXELS": 16, "ROWS": 32}
    yield "back_project_lines", projector_kernels.back_project_lines, lines, {"rows": "i32"}


def signature(kernel: Any, constants: dict[str, Any], types: dict[str, str]) -> dict[str, str]:
    """Triton's names of the arguments' types."""
    found = {}
    for name in kernel.arg_names:
        if name in constants:
            found[name] = "constexpr"
        elif name in types:
            found[name] = types[name]
        elif name in INTEGER_ARRAYS:
            found[name] = "*i32"
        elif name in REAL_NUMBERS:
            found[name] = "fp32"
        else:
            found[name] = "i32" if name in INTEGERS else "*fp32"
    return found


@click.command(context_settings={"show_default": True})
@click.option("--capability", type=int, default=90, help="90: Hopper, 89: Ada, 86: Ampere (workstation), 80: A100.")
@click.option("--only", default="", help="Kernels with this in their name.")
def main(capability: int, only: str) -> None:
    """Compile every kernel and print what it takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from inrtomo.gpu import hash_field

    print("| kernel | registers | spilled, bytes | shared memory, bytes |\n|---|---|---|---|")
    for name, kernel, constants, types in kernels():
        if only in name:
            launch = {"num_warps": 8 if constants.get("H", 0) >= hash_field.WIDE else 4}
            source = ASTSource(kernel, signature(kernel, constants, types), constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
            registers, spilled = resources(made.asm["cubin"])
            print(f"| {name} | {registers} | {spilled} | {made.metadata.shared} |", flush=True)


def resources(binary: bytes) -> tuple[str, str]:
    """Registers and stack of a thread, as the tool that comes with Triton reads them from the binary."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return "?", "?"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return re.findall(r"REG:(\d+)", said)[-1], re.findall(r"STACK:(\d+)", said)[-1]


if __name__ == "__main__":
    main()
