"""What mirroring a specimen does to features and densities: signs alone, so that every block can be learnt eight times.

A specimen mirrored in x or z is seen at the negative tilt angles, one mirrored in y in mirrored images; a derivative
changes its sign with every order along the mirrored axis, and so does a wavelet that is odd along it.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from inrtomo.localized.bank import COVERAGE, PYRAMID
from inrtomo.localized.blocks import Blocks

F32 = NDArray[np.float32]


def mirror_signs(blocks: Blocks) -> tuple[F32, F32]:
    """Factors ``(8, n_features)`` and ``(8, block size)`` of every combination of mirrored axes; the first is none."""
    of_block = np.array(list(product(range(blocks.edge), repeat=3)))[:, ::-1]  # odd along (x, y, z), as `transform` is
    orders = [of_block]
    for scale in PYRAMID:
        ab = [scale.channels[c] for c in scale.channel_of]
        orders.append(np.array([(a - k, b, k) for (a, b), (_, k, _) in zip(ab, scale.features, strict=True)]))
    orders.append(np.zeros((len(COVERAGE.features), 3), dtype=int))
    mirrored = np.array(list(product((0, 1), repeat=3)))
    each = [(-1.0) ** (mirrored @ o.T) for o in (np.concatenate(orders), of_block)]
    return each[0].astype(np.float32), each[1].astype(np.float32)
