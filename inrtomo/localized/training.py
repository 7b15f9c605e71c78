"""Training: samples of many pairs, shuffled; a held-out set decides which weights are kept; a kill costs a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.files import atomic_path
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.cache import SampleCache
from inrtomo.localized.network import Architecture, LocalizedMlp
from inrtomo.localized.samples import Samples
from inrtomo.localized.scaling import CONDITIONS
from inrtomo.localized.symmetry import mirror_signs

F32 = NDArray[np.float32]
Spans = dict[str, list[float]]

LEAST_SQUARES = "the least-squares filter"
PAIRS_OF_A_BATCH = 256
START_BLOCKS = 100_000  # for the least-squares filters
EMA_STEPS = 300
WARM_UP = 100
REFILL_STEPS = 250  # between looks for new files
SAVE_EVERY_S = 45.0  # where validations, which save too, are further apart
LEVELS_DB = (6.0, 15.0)
"""Held-out pairs are told apart by how far they are above the noise when smoothed by 2 px."""


@dataclass(frozen=True)
class TrainingSettings:
    """Attributes:
    steps: of the optimiser, after which the rate has fallen to zero.
    batch: blocks a step.
    rate: highest learning rate.
    validate_every: steps.
    pool: pairs held in memory.
    seed: of batches and first weights.
    """

    steps: int = 20000
    batch: int = 4096
    rate: float = 2e-3
    weight_decay: float = 1e-4
    validate_every: int = 250
    pool: int = 600
    seed: int = 0


@dataclass
class State:
    """How far training has come.

    Attributes:
        curve: (step, loss in training, loss on held-out pairs, best so far, seconds) at every validation.
        training_losses: of the steps since the last one.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = np.inf
    best_step: int = 0
    seen: int = 0
    curve: list[tuple[int, float, float, float, float]] = field(default_factory=list)
    training_losses: list[float] = field(default_factory=list)


class Pool:
    """Samples of up to so many pairs in memory, in half precision; batches of them, mirrored at random.

    Attributes:
        seen: names of the pairs taken in.
        seen_before: of those that the training it goes on with had taken in.
        spans: lowest and highest of each condition and of the thickness (px) that the weights have learnt from.
    """

    def __init__(self, cache: SampleCache, most: int, blocks: Blocks, spans: Spans | None = None) -> None:
        self.cache, self.most = cache, most
        self._of_features, self._of_target = mirror_signs(blocks)
        self._held: dict[Path, Samples] = {}
        self.seen: set[str] = set()
        self.seen_before: set[str] = set()
        self.spans: Spans = {} if spans is None else dict(spans)

    @property
    def all_seen(self) -> set[str]:
        """Names of the pairs that the weights have learnt from."""
        return self.seen | self.seen_before

    def refill(self) -> None:
        """Take in what is new; the pairs that came first make room."""
        for path in self.cache.paths():
            if path.name not in self.seen and (samples := self.cache.load(path)) is not None:
                self.seen.add(path.name)
                self._held[path] = samples
                self.widen({name: [value, value] for name, value in series_facts(samples).items()})
        while len(self._held) > self.most:
            self._held.pop(next(iter(self._held)))
        self._pairs = list(self._held.values())

    def widen(self, spans: Spans) -> None:
        """Take in what else the weights have learnt from."""
        for name, (low, high) in spans.items():
            a, b = self.spans.get(name, [low, high])
            self.spans[name] = [min(a, low), max(b, high)]

    def _mirror(self, random: np.random.Generator) -> tuple[F32, F32]:
        """Signs of features and targets of a specimen mirrored at random."""
        which = random.integers(8)
        return self._of_features[which], self._of_target[which]

    def batch(self, count: int, random: np.random.Generator) -> tuple[F32, F32, F32, F32]:
        """Features, targets, conditions and variances of blocks of some pairs at random, a row each."""
        picked = random.integers(0, len(self._pairs), min(count, PAIRS_OF_A_BATCH))
        rows = [len(part) for part in np.array_split(np.arange(count), len(picked))]
        parts: list[tuple[NDArray[Any], ...]] = []
        for k, n in zip(picked, rows, strict=True):
            s = self._pairs[k]
            at = random.integers(0, len(s.target), n)
            x, y = (part[at] * signs for part, signs in zip((s.features, s.target), self._mirror(random), strict=True))
            parts.append((x, y, np.tile(s.condition, (n, 1)), np.full(n, s.variance)))
        x, y, c, v = (np.concatenate(columns).astype(np.float32) for columns in zip(*parts, strict=True))
        return x, y, c, v


class Training:
    """A run: model, optimiser, running mean of the weights, state; `run` goes on from wherever it is.

    Attributes:
        start: `LEAST_SQUARES`, or the checksum of the weights that it started from.
        best: the weights that did best on the held-out pairs; ``best_losses``: on each.
    """

    def __init__(
        self, model: LocalizedMlp, pool: Pool, held_out: Sequence[Samples], settings: TrainingSettings, device: str,
        start: str = LEAST_SQUARES,
    ) -> None:  # fmt: skip
        self.model, self.pool, self.held_out = model.to(device), pool, held_out
        self.settings, self.device, self.start = settings, device, start
        self.state = State()
        self.mean = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.best = {name: value.clone() for name, value in self.mean.items()}
        self.best_losses = np.full(len(held_out), np.nan, dtype=np.float32)
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)

    @classmethod
    def fresh(
        cls, architecture: Architecture, pool: Pool, held_out: Sequence[Samples], settings: TrainingSettings,
        device: str,
    ) -> Training:  # fmt: skip
        """Start at the least-squares filter of the data at hand."""
        torch.manual_seed(settings.seed)
        model = LocalizedMlp(architecture)
        model.start(*pool.batch(START_BLOCKS, np.random.default_rng([settings.seed, 1])))
        return cls(model, pool, held_out, settings, device)

    def run(
        self, after_validation: Callable[[Training], bool], save: Callable[[Training], None] = lambda now: None
    ) -> None:
        """All steps that are left; stops early when told to by ``after_validation``.

        ``save`` is called between validations that take long to come; a checkpoint is ``after_validation``'s own work.
        """
        s, state = self.settings, self.state
        if not state.curve:
            self._validate()
            after_validation(self)
        counted = saved = time.monotonic()
        while state.step < s.steps:
            random = np.random.default_rng([s.seed, 2, state.step])
            if state.step % REFILL_STEPS == 0:
                self.pool.refill()
            state.training_losses.append(self._step(random))
            state.step += 1
            now = time.monotonic()
            state.seconds, counted = state.seconds + now - counted, now
            if state.step % s.validate_every == 0 or state.step == s.steps:
                self._validate()
                if after_validation(self):
                    return
                saved = time.monotonic()
            elif now - saved > SAVE_EVERY_S:
                save(self)
                saved = time.monotonic()

    def losses_of(self, weights: dict[str, torch.Tensor]) -> F32:
        """Of every held-out pair, by other weights than those of this step."""
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        found = losses(self.model, self.held_out, self.device)
        self.model.load_state_dict(current)
        return found

    def save(self, path: Path) -> None:
        """A checkpoint, complete or the one before."""
        record: dict[str, Any] = {
            "model": self.model.state_dict(),
            "mean": self.mean,
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "state": vars(self.state),
            "spans": self.pool.spans,
            "pairs_seen": sorted(self.pool.all_seen),
            "start": self.start,
            "seed": self.settings.seed,
        }
        with atomic_path(path, overwrite=True) as temporary:
            torch.save(record, temporary)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; nothing in the file is run.

        Raises:
            InputError: it is none of this network's.
        """
        with _refused(path):
            self._restore(torch.load(path, map_location=self.device, weights_only=True))
        # anew, since the pairs held out may be others now
        self.best_losses = self.losses_of(self.best)
        self.state.best = float(np.mean(self.best_losses))

    def _restore(self, record: dict[str, Any]) -> None:
        self.model.load_state_dict(record["model"])
        self.mean, self.best = record["mean"], record["best"]
        self.optimiser.load_state_dict(record["optimiser"])
        self.state = State(**record["state"])
        self.pool.seen_before = set(record["pairs_seen"])
        self.pool.widen(record["spans"])

    def best_model(self) -> LocalizedMlp:
        """A copy with the weights that did best on the held-out pairs."""
        model = LocalizedMlp(self.model.architecture)
        model.load_state_dict({name: value.cpu() for name, value in self.best.items()})
        return model

    def _step(self, random: np.random.Generator) -> float:
        s = self.settings
        step = self.state.step
        rate = s.rate * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / s.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        x, y, c, variance = (torch.from_numpy(a).to(self.device) for a in self.pool.batch(s.batch, random))
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.startswith("cuda")):
            found = self.model(x, c)
        loss = (((found.float() - y) ** 2).mean(dim=1) / variance).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        keep = 1 - 1 / min(EMA_STEPS, step + 2)
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.mean[name].lerp_(value, 1 - keep)
        self.state.seen += len(x)
        return float(loss.detach())

    def _validate(self) -> None:
        state = self.state
        training_loss = float(np.mean(state.training_losses)) if state.training_losses else float("nan")
        state.training_losses = []
        found = self.losses_of(self.mean)
        loss = float(np.mean(found))
        if loss < state.best:
            state.best, state.best_step, self.best_losses = loss, state.step, found
            self.best = {name: value.clone() for name, value in self.mean.items()}
        state.curve.append((state.step, training_loss, loss, state.best, state.seconds))


def check_checkpoint(path: Path, start: str, seed: int) -> None:
    """Whether a training that began so may go on from there.

    Raises:
        InputError: it began otherwise, or the file is no checkpoint.
    """
    with _refused(path):
        record = torch.load(path, map_location="cpu", weights_only=True)
        other_start, other_seed = record["start"] != start, int(record["seed"])
    if other_start:
        raise InputError(
            f"{path}: its training started from other weights (or from none); give the --start that it had, or "
            "another folder for a new training"
        )
    if other_seed != seed:
        raise InputError(
            f"{path}: its training has --seed {other_seed}, not {seed}; give that, or another folder for a new training"
        )


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever is raised at a checkpoint that is none, as a sentence."""
    try:
        yield
    except Exception:  # torch's reader raises anything
        raise InputError(
            f"{path}: is no checkpoint of such a training; leave --resume out and give --overwrite to start anew"
        ) from None


@torch.no_grad()
def losses(model: LocalizedMlp, held_out: Sequence[Samples], device: str = "cpu") -> F32:
    """``1 - CC^2`` of every pair with its true density: whatever the grey scale, as a user sees it."""
    to_voxels = model.architecture.blocks.transform
    found = []
    for s in held_out:
        x = torch.from_numpy(s.features.astype(np.float32)).to(device)
        c = torch.from_numpy(s.condition).to(device).expand(len(x), -1)
        seen, true = (y.astype(np.float32) @ to_voxels for y in (model(x, c).cpu().numpy(), s.target))
        spread = seen.std() * true.std()
        cc = float(((seen - seen.mean()) * (true - true.mean())).mean() / spread) if spread > 0 else 0.0
        found.append(1 - max(cc, 0.0) ** 2)
    return np.array(found, dtype=np.float32)


def series_facts(samples: Samples) -> dict[str, float]:
    """What weights have a range of: the conditions of a series and the thickness of its volume, px."""
    conditions = zip(CONDITIONS, map(float, samples.condition), strict=True)
    return {**dict(conditions), "thickness": float(samples.thickness_px)}


def noise_classes(held_out: Sequence[Samples]) -> dict[str, NDArray[np.bool_]]:
    """Which pairs are how far above the noise when smoothed by 2 px; classes that have some."""
    db = np.array([20 / np.log(10) * s.condition[1] for s in held_out])
    edges = [-np.inf, *LEVELS_DB, np.inf]
    found = {f"{a:g} to {b:g} dB": (db >= a) & (db < b) for a, b in zip(edges[:-1], edges[1:], strict=True)}
    return {name: here for name, here in found.items() if here.any()}


def by_noise(held_out: Sequence[Samples], losses: F32) -> dict[str, float]:
    """Median loss of held-out pairs, by how far they are above the noise."""
    return {name: float(np.median(losses[here])) for name, here in noise_classes(held_out).items()}
