"""What ``inr-train`` does once its options are read."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
import numpy as np
import safetensors
import torch

from inrtomo import __version__
from inrtomo.commands._common import Progress, echo_defaults
from inrtomo.commands._listed_pairs import fill_from_list, listed_rows
from inrtomo.commands.train import FINE_RATE, RATE, Options
from inrtomo.device import choose
from inrtomo.errors import InputError
from inrtomo.io.files import make_folder
from inrtomo.localized.cache import HELD_OUT_SEED, SampleCache, simulate_into, simulating, wait_for
from inrtomo.localized.curve import write_curve
from inrtomo.localized.network import Architecture
from inrtomo.localized.pairs import HELD_OUT, SNR_DB, density_files
from inrtomo.localized.samples import Samples
from inrtomo.localized.training import (
    LEAST_SQUARES,
    Pool,
    Spans,
    Training,
    TrainingSettings,
    by_noise,
    check_checkpoint,
)
from inrtomo.localized.weights import Card, card_of, load_weights, save_weights, shipped_weights

FIRST_PAIRS = 8  # before training starts; more come while it goes on


class Run:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self.o = o = options
        self.device = choose(o.device)
        self.paths = {name: o.folder / name for name in ("checkpoint.pt", "weights.safetensors", "learning_curve.csv")}
        self.checkpoint = self.paths["checkpoint.pt"]
        there = [path for path in (*self.paths.values(), card_of(self.paths["weights.safetensors"])) if path.exists()]
        if there and not (o.resume or o.overwrite):
            raise InputError(f"{there[0]}: exists; give --resume to go on, --overwrite to start anew, another folder")
        if there and o.resume and not (o.overwrite or self.checkpoint.exists()):
            raise InputError(f"{there[0]}: exists, but no {self.checkpoint.name} to go on from; give --overwrite")
        if o.densities is not None and not o.densities.is_dir():
            raise InputError(f"{o.densities}: no such folder; give one of MRC densities")
        self.model = None
        self.architecture = Architecture(o.form, o.width, o.depth)
        self.start: Path | None = None
        self.begun, self.spans = LEAST_SQUARES, Spans()
        if o.start is not None:
            self.start = shipped_weights() if o.start == "shipped" else Path(o.start)
            self.model, card = load_weights(self.start)
            self.architecture, self.spans = self.model.architecture, card.range
            self.begun = hashlib.sha256(self.start.read_bytes()).hexdigest()
        if o.resume and self.checkpoint.exists():
            check_checkpoint(self.checkpoint, self.begun, o.seed)
        self.rows = [] if o.pairs is None else listed_rows(o.pairs)
        make_folder(o.folder)
        if o.overwrite and not o.resume:
            for path in there:  # the checkpoint first, so that nothing goes on with what is only half removed
                path.unlink()
            shutil.rmtree(o.folder / "cache", ignore_errors=True)
        cache, most = o.folder / "cache" / self.source(), o.cache_pairs if o.simulate else len(self.rows)
        self.cache = SampleCache(cache / "train", most)
        self.held_out = SampleCache(cache / "held_out", 10**6)
        self.settings = TrainingSettings(
            o.steps, o.batch, o.rate or (RATE if self.start is None else FINE_RATE), pool=most, seed=o.seed
        )

    def run(self) -> None:
        """Data, training, weights."""
        o, a = self.o, self.architecture
        echo_defaults([
            ("device", self.device.name, self.device.sentence),
            ("network", f"{a.output}, {a.depth} x {a.width}", "--start" if self.start else "--form, --depth, --width"),
            ("start", str(self.start or LEAST_SQUARES), "--start" if self.start else "default"),
            ("rate", f"{self.settings.rate:g}", "--rate" if o.rate else "default"),
            ("pairs", "simulated" if o.simulate else f"{len(self.rows)} listed", str(o.densities or o.pairs or "")),
        ])  # fmt: skip
        torch.set_num_threads(max(1, torch.get_num_threads() - (o.workers if o.simulate else 0)))
        with self.data() as processes:
            pool = Pool(self.cache, self.settings.pool, a.blocks, self.spans)
            if o.simulate:
                with Progress("first pairs") as progress:
                    wait_for(self.cache, FIRST_PAIRS, processes, progress)
            pool.refill()
            held_out = [s for path in self.held_out.paths() if (s := self.held_out.load(path)) is not None]
            if self.model is None:
                training = Training.fresh(a, pool, held_out, self.settings, self.device.name)
            else:
                training = Training(self.model, pool, held_out, self.settings, self.device.name, self.begun)
            if o.resume and self.checkpoint.exists():
                training.load(self.checkpoint)
                self.keep(training)
                click.echo(f"going on after step {training.state.step}")
            with Progress("train") as progress:

                def after_validation(now: Training) -> bool:
                    step, loss, held, _, _ = now.state.curve[-1]
                    progress(
                        step / o.steps,
                        scale=f"step {step}, {len(pool.all_seen)} pairs",
                        loss=loss,
                        held_out=held,
                    )
                    self.keep(now)
                    return False

                training.run(after_validation, lambda now: now.save(self.checkpoint))
        first, best = training.state.curve[0][2], training.state.best
        click.echo(f"held-out loss {best:.4f} at step {training.state.best_step} ({first:.4f} at the start)")
        if training.state.best_step == 0:
            click.echo(f"nothing was gained: the weights are those it started from, {self.start or LEAST_SQUARES}")
        click.echo(f"wrote {self.paths['weights.safetensors']} and its card, {self.paths['learning_curve.csv']}")

    def keep(self, training: Training) -> None:
        """A checkpoint, the best weights and the curve; the checkpoint first: what goes on from it writes all anew."""
        training.save(self.checkpoint)
        save_weights(training.best_model(), self.card(training), self.paths["weights.safetensors"], overwrite=True)
        write_curve(training.state, self.o.folder / "learning_curve")

    def source(self) -> str:
        """A name for what samples are made of: those of other data, left by a run that was killed, are never used."""
        o = self.o
        paths = [None if path is None else str(path.resolve()) for path in (o.pairs, o.densities)]
        kept = [f.name for f in fields(Samples)]  # by another version other things were
        of = [kept, self.architecture.output, o.seed, *paths, o.orientation, self.rows]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:12]

    @contextmanager
    def data(self) -> Iterator[list[BaseProcess]]:
        """Fills the caches; processes that go on filling the one for training."""
        o = self.o
        if o.pairs is None:
            with simulating(self.cache, self.architecture.output, 1 + 1000 * o.seed, o.densities, o.workers) as running:
                click.echo(f"simulating {o.held_out} pairs for validation")
                given = self.held_out, self.architecture.output, HELD_OUT_SEED + o.seed, o.densities, o.held_out
                with Progress("validation pairs") as progress:
                    simulate_into(*given, progress)
                yield running
            return
        fill_from_list(o.pairs, self.rows, o.orientation, self.architecture.blocks, o.seed, self.cache, self.held_out)
        yield []

    def card(self, training: Training) -> Card:
        """How far it came."""
        o, state = self.o, training.state
        data: dict[str, Any] = {"kind": "simulated" if o.simulate else "listed"}
        data["held_out_pairs"] = len(training.held_out)
        if o.simulate:
            molecules = "procedural alone" if o.densities is None else [p.stem for p in density_files(o.densities)]
            data |= {"molecules": molecules, "never_used": list(HELD_OUT), "snr_db": list(SNR_DB)}
        else:
            data |= {"list": str(o.pairs), "stacks": [row["inrStack"] for row in self.rows]}
        how = {
            "command": shlex.join(["inr-train", *sys.argv[1:]]),
            "seed": o.seed,
            "settings": asdict(self.settings),
            "started_from": str(self.start or LEAST_SQUARES),
            "started_from_sha256": None if self.start is None else self.begun,
            "steps": state.step,
            "best_step": state.best_step,
            "pairs_seen": len(training.pool.all_seen),
            "blocks_seen": state.seen,
            "seconds": round(state.seconds, 1),
            "device": self.device.sentence,
        }
        metrics = {
            "held_out_loss": state.best,
            "held_out_loss_at_start": state.curve[0][2],
            "held_out_loss_by_noise": by_noise(training.held_out, training.best_losses),
            "loss": "1 - CC^2 with the true density, of the weights kept: mean over held-out pairs, medians by noise",
        }
        versions = {"inrtomo": __version__, "torch": torch.__version__, "numpy": np.__version__,
                    "safetensors": safetensors.__version__}  # fmt: skip
        return Card(self.architecture.as_dict(), data, how, metrics, training.pool.spans, versions)
