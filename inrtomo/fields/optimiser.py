"""Adam on flat float32 arrays, with a rate and a step count of its own for every group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.fields.kernels import loops

F32 = NDArray[np.float32]


class Adam:
    """Adam (Kingma & Ba 2015) over one flat parameter array.

    Groups that join later (finer levels) start their own bias correction, so their first steps are not too long.

    Args:
        groups: name -> slice of the parameters.
        rates: name -> step size; a group may be missing here and be given at the step.
        skip_zero: leave entries whose gradient is exactly zero (not seen by this mini-batch) and their moments alone.
    """

    def __init__(
        self,
        groups: Mapping[str, slice],
        rates: Mapping[str, float] | float,
        *,
        beta1: float = 0.9,
        beta2: float = 0.99,
        epsilon: float = 1e-12,
        skip_zero: bool = False,
    ) -> None:
        self.groups = dict(groups)
        self.rates = {g: float(rates) for g in groups} if isinstance(rates, (int, float)) else dict(rates)
        self.beta1, self.beta2, self.epsilon, self.skip_zero = beta1, beta2, epsilon, skip_zero
        size = max(s.stop for s in self.groups.values())
        self._first, self._second = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._count = dict.fromkeys(self.groups, 0)

    def step(self, parameters: F32, gradient: F32, active: Iterable[str] | None = None, factor: float = 1.0) -> None:
        """Change ``parameters`` in place; ``active``: groups to step (None: all), ``factor``: on all rates."""
        for name in self.groups if active is None else active:
            part = self.groups[name]
            self._count[name] += 1
            t = self._count[name]
            step = self.rates[name] * factor / (1 - self.beta1**t)
            f = np.float32
            loops.adam_step(
                parameters[part], gradient[part], self._first[part], self._second[part],
                f(step), f(self.beta1), f(self.beta2), f(1 / np.sqrt(1 - self.beta2**t)), f(self.epsilon),
                self.skip_zero,
            )  # fmt: skip

    def restart(self, names: Iterable[str] | None = None) -> None:
        """Forget the moments of groups (None: all), for instance after the data changed scale."""
        for name in self.groups if names is None else names:
            part = self.groups[name]
            self._first[part] = 0.0
            self._second[part] = 0.0
            self._count[name] = 0

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Moments and step counts as plain arrays, for a checkpoint."""
        counts = np.array([self._count[name] for name in self.groups], dtype=np.int64)
        return {"first": self._first.copy(), "second": self._second.copy(), "count": counts}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._first[:] = state["first"]
        self._second[:] = state["second"]
        self._count = {name: int(c) for name, c in zip(self.groups, state["count"], strict=True)}
