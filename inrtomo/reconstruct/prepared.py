"""Raw images as iterative methods want them: binned, protein positive, no background, with a weight for every pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.guard import choose, held_out_blocks
from inrtomo.align.joint import DEFAULT_SCHEDULE, JointFit, JointSettings, Scale
from inrtomo.align.prepare import ON_CPU, PixelWork, Prepared, PrepareSettings, prepare
from inrtomo.alignment import Alignment
from inrtomo.io.belonging.alignment import scaled
from inrtomo.reconstruct.halves import Source

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]

REFINED_SIZE = 640  # px: alignments are refined on images no longer than this


@dataclass(frozen=True)
class PreparedTilts:
    """The tilts in use at the output's binning.

    Attributes:
        images, weight: ``(n, ny, nx)``, see `prepare.Prepared`.
        alignment: of these images, in their px.
        used: their stack indices.
        unit: density of the input per density of ``images``, signed: negative where protein is dark in the input.
        prepared: everything found on the way, of all images.
        bin: raw px per px.
    """

    images: F32
    weight: F32
    alignment: Alignment
    used: Ints
    unit: float
    prepared: Prepared
    bin: int


def pixel_work_on(device: str) -> PixelWork:
    """What prepares images on ``"cpu"`` or a GPU as torch calls it."""
    if device == "cpu":
        return ON_CPU
    from inrtomo.gpu.pixels import DevicePixelWork

    return DevicePixelWork(device)


def prepared_tilts(
    source: Source, bin: int, settings: PrepareSettings, mask_gold: bool = False, device: str = "cpu"
) -> PreparedTilts:
    """Prepare the tilts of a source.

    Args:
        bin: raw px per px of the result.
        settings: of `prepare`; its own binning is not used.
        mask_gold: give no weight to rays through gold; without it only beads with fringes are left out.
        device: where pixels are worked on.

    Raises:
        InputError: too few usable images.
    """
    alignment, work = source.alignment, pixel_work_on(device)
    nx, ny = (n // bin for n in alignment.image_size)
    images = np.zeros((alignment.n_tilts, ny, nx), dtype=np.float32)
    for tilt in alignment.included:
        image = np.asarray(source.image(int(tilt)), dtype=np.float32)
        images[tilt] = image if bin == 1 else work.fourier_crop(image, bin)
    pixel = None if alignment.pixel_size_A is None else alignment.pixel_size_A * bin
    found = prepare(images, alignment.tilt_deg, pixel, settings, dict(alignment.excluded), work=work)
    used = found.included
    weight = found.weight if mask_gold else found.density_weight
    # per px of path in the binned images, so a raw px of path shows 1 / bin of it
    unit = float(np.median(found.gain[used])) / bin
    return PreparedTilts(
        found.images[used], weight[used], scaled(alignment.subset(used), 1 / bin, (nx, ny)), used, unit, found, bin
    )


def other_images(source: Source, tilts: PreparedTilts, settings: PrepareSettings, device: str = "cpu") -> F32 | None:
    """The views of ``source.other``, prepared in the same way; None where there are none."""
    if source.other is None:
        return None
    other = Source(source.name, source.other, source.alignment)
    found = prepared_tilts(other, tilts.bin, settings, device=device)
    images = np.zeros_like(tilts.images)
    index = {int(tilt): k for k, tilt in enumerate(found.used)}
    for k, tilt in enumerate(tilts.used):
        if int(tilt) in index:
            images[k] = found.images[index[int(tilt)]] * np.float32(found.unit / tilts.unit)
    return images


def refined(
    tilts: PreparedTilts,
    thickness_px: float,
    memory_bytes: float,
    seed: int,
    on_step: Callable[[float, int, float], None],
    device: str = "cpu",
    shared: bool = False,
) -> tuple[Alignment, str]:
    """The alignment after a joint fit that starts from it, or itself where held-out pixels prefer it; and why.

    Args:
        thickness_px: of the specimen, px of the images.
        on_step: told the fraction of the work that is done, the binning and the loss.
        device: of the fits.
        shared: other processes take part in them (`inrtomo.gpu.share.followers`).
    """
    alignment = tilts.alignment
    factor = max(1, -(-max(alignment.image_size) // REFINED_SIZE))
    schedule = tuple(Scale(s.bin * factor, s.steps, s.motion_from, s.warp_from) for s in DEFAULT_SCHEDULE)
    # on the CPU the bound is for a batch of tilts, beside which there is the rest of the fit
    bound = memory_bytes / 4 if device == "cpu" else memory_bytes
    settings = JointSettings(schedule=schedule, memory_bytes=bound, seed=seed, device=device, shared=shared)
    # the slope along y stays in the fit's frame
    slab = thickness_px + abs(np.tan(np.deg2rad(alignment.x_tilt_deg[0]))) * alignment.aligned_size[1]

    def watch(first: float, share: float) -> Callable[[JointFit], None]:
        return lambda fit: on_step(first + share * fit.fraction_done, fit.losses[-1][0], fit.losses[-1][2])

    fit = JointFit(tilts.images, tilts.weight, alignment, slab, settings)
    found = fit.run(watch(0.0, 0.8)).alignment.folded()
    candidates = {"start": alignment, "linear": found.without_warp()}
    if found.warp is not None:
        candidates["warp"] = found
    blocks = {}
    for k, (name, candidate) in enumerate(candidates.items()):
        on = watch(0.8 + 0.2 * k / len(candidates), 0.2 / len(candidates))
        blocks[name] = held_out_blocks(
            tilts.images, tilts.weight, candidate, slab, settings, fit.gain.astype(np.float64), on
        )
    verdict = choose(blocks)
    return candidates[verdict.chosen], verdict.reason
