"""The promise that a result is not worse than its start, kept with pixels that no fit has seen.

Each candidate alignment gets a density of its own, fitted from scratch at frozen motion to the same pixels, and is
judged by how well that density predicts the same held-out blocks. Starting from the joint fit's density would
favour the motion it was fitted with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.joint import JointFit, JointSettings, Scale
from inrtomo.alignment import Alignment

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

STEPS = 40
SIGNIFICANT = 2.0  # standard errors: what a warp has to win by, and what makes a start better than a result


@dataclass(frozen=True)
class Verdict:
    """Which candidate was kept and why.

    Attributes:
        chosen: its name.
        held_out_loss: per candidate, mean over the held-out pixels (1/2 squared residual in noise units).
        difference, standard_error: loss of every other candidate minus that of the chosen one, paired over blocks.
        reason: one sentence.
    """

    chosen: str
    held_out_loss: dict[str, float]
    difference: dict[str, float]
    standard_error: dict[str, float]
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def held_out_blocks(
    images: F32,
    weight: F32,
    alignment: Alignment,
    thickness_px: float,
    settings: JointSettings,
    gain: Array | None = None,
    on_step: Callable[[JointFit], None] | None = None,
) -> Array:
    """Held-out loss of an alignment per block ``(n_tilts, n_by, n_bx, 2)`` (sum, weight), density fitted from scratch.

    ``settings`` choose field, seed and with it the held-out blocks; the fit is a short one at the coarsest scale.
    """
    with_warp = settings.warp if settings.warp in ("bicubic", "bilinear") else "bicubic"
    coarsest = settings.schedule[0].bin
    frozen = replace(
        settings,
        schedule=(Scale(bin=coarsest, steps=STEPS, motion_from=STEPS, warp_from=None),),
        levels=max(1, settings.levels - round(np.log2(coarsest / settings.schedule[-1].bin))),
        warp="none" if alignment.warp is None else with_warp,
        fit_motion=False,
    )
    fit = JointFit(images, weight, alignment, thickness_px, frozen)
    if gain is not None:
        fit.gain[:] = gain
    fit.run(on_step)
    return fit.held_out_map()


def paired_difference(a: Array, b: Array) -> tuple[float, float]:
    """Mean loss of ``a`` minus that of ``b`` over the blocks both see, and its standard error.

    Blocks are the independent units: residuals within one are correlated through the density.
    """
    weight = np.minimum(a[..., 1], b[..., 1]).ravel()
    seen = weight > 0
    if seen.sum() < 2:
        return 0.0, float("inf")
    first, second = (m[..., 0].ravel()[seen] / m[..., 1].ravel()[seen] for m in (a, b))
    difference, w = first - second, weight[seen] / weight[seen].sum()
    mean = float((w * difference).sum())
    return mean, float(np.sqrt((w**2 * (difference - mean) ** 2).sum() * seen.sum() / (seen.sum() - 1)))


def choose(blocks: Mapping[str, Array]) -> Verdict:
    """Judge ``start``, ``linear`` and, if there is one, ``warp`` by their `held_out_blocks`.

    The warp has to lower the held-out loss of the linear result; whichever of the two is left has to hold its own
    against the start: it is given up when the start predicts the held-out pixels better, by any amount that is
    more than noise could make.
    """
    loss = {name: float(m[..., 0].sum() / max(m[..., 1].sum(), 1e-9)) for name, m in blocks.items()}
    best, reason = "linear", "the linear part alone: there is no warp to judge"
    if "warp" in blocks:
        gain, error = paired_difference(blocks["linear"], blocks["warp"])
        accepted = gain > 0
        best = "warp" if accepted else "linear"
        word = "lowers" if accepted else "does not lower"
        reason = f"the warp {word} the held-out loss ({gain:+.2e} +- {error:.1e} below the linear part)"
    lead, error = paired_difference(blocks["start"], blocks[best])
    if lead < -SIGNIFICANT * error:
        best = "start"
        reason = f"the refined alignment predicts held-out pixels worse than its start ({-lead:.2e} +- {error:.1e})"
    else:
        reason += f"; {lead:+.2e} +- {error:.1e} below the start"
    against = {n: paired_difference(m, blocks[best]) for n, m in blocks.items() if n != best}
    return Verdict(best, loss, {n: d for n, (d, _) in against.items()}, {n: e for n, (_, e) in against.items()}, reason)
