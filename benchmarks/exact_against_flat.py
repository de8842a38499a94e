"""Exact bits per byte of the model against a flat byte transformer of as many parameters, for equal time.

One run, one machine, taking turns in short slices until each has trained for --seconds: the same documents
in the same order, the same optimizers, the same schedule over the share of the time that is used up. Then all
are scored on the same held-out rows. Only the learning rates are each one's own.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from abstractinator.config import ExperimentConfig, load_experiment
from abstractinator.data import Corpus, open_corpus, train_loader
from abstractinator.device import autocast, keep_freed_memory
from abstractinator.evaluation.held_out import evaluate_held_out, rows_of
from abstractinator.training.optimizers import build_optimizers
from abstractinator.training.segmentation_schedule import follow_or_freeze
from benchmarks.common import argument_parser, count_parameters, finish, progress, table
from benchmarks.flat_transformer import FlatByteTransformer
from components.hierarchical_autoencoder import HierarchicalAutoencoder

_WARM_UP, _DECAY = 0.02, 0.4  # shares of the time: rising at the beginning, falling to 0 at the end


def rate_at(done: float) -> float:
    """Factor on the learning rates when the share `done` of the time is used up."""
    return max(0.0, min(1.0, (done + 1e-3) / _WARM_UP, (1.0 - done) / _DECAY))


@dataclass
class Contestant:
    """A model in training with its own clock and its own place in the data. loss: nats per byte, exact."""

    name: str
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batches: Iterator[Tensor]
    seconds: float = 0.0
    steps: int = 0
    bytes: int = 0
    loss: float = float("nan")

    def __post_init__(self) -> None:
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def train(self, until: float, budget: float, clip_norm: float) -> None:
        """Steps until its own clock shows `until` of `budget` seconds to within half a step, reading included."""
        self.model.train()
        while self.steps == 0 or self.seconds + self.seconds / self.steps / 2 < until:
            start = time.perf_counter()
            self._step(self.seconds / budget, clip_norm)
            self.seconds += time.perf_counter() - start
            self.steps += 1

    def _step(self, done: float, clip_norm: float) -> None:
        rows = next(self.batches)
        with autocast(rows.device, True):
            if isinstance(self.model, HierarchicalAutoencoder):
                losses = self.model(rows)
                total, exact, count = losses.total, losses.predict, losses.bytes
            else:
                nats, count = self.model.score(rows)
                total = exact = nats / max(count, 1)
        total.backward()
        if isinstance(self.model, HierarchicalAutoencoder):
            follow_or_freeze(self.model, losses, done=done, first=self.steps == 0)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_at(done)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.bytes += count
        self.loss = float(exact.detach())


def contestants(options: argparse.Namespace, experiment: ExperimentConfig, corpus: Corpus) -> list[Contestant]:
    """Ours, the flat transformer of as many parameters, and a smaller flat one where asked for."""

    def enter(name: str, model: nn.Module, learning_rate: float, muon_learning_rate: float) -> Contestant:
        optimizers = build_optimizers(
            model,
            learning_rate=learning_rate,
            muon_learning_rate=muon_learning_rate,
            weight_decay=experiment.weight_decay,
        )
        loader = train_loader(corpus, options.sequence_length, options.batch_size, options.seed)
        return Contestant(name, model, optimizers, iter(loader))

    torch.manual_seed(options.seed)
    ours = HierarchicalAutoencoder(experiment.model)
    out = [enter("abstractinator", ours, options.learning_rate, options.muon_learning_rate)]
    sizes = [("flat", options.flat_parameters or count_parameters(ours)), ("small flat", options.small_flat)]
    for name, parameters in sizes:
        if parameters:
            layers = options.flat_layers if name == "flat" else None
            flat = FlatByteTransformer.sized(parameters, layers)
            out.append(enter(name, flat, options.flat_learning_rate, options.flat_muon_learning_rate))
    return out


def take_turns(entered: list[Contestant], budget: float, slice_seconds: float, clip_norm: float) -> None:
    """Trains all for `budget` seconds each, a slice at a time."""
    slices = max(1, round(budget / slice_seconds))
    for number in range(1, slices + 1):
        for one in entered:
            one.train(budget * number / slices, budget, clip_norm)
            state = ", ".join(f"{c.name} {c.loss / math.log(2):.3f}" for c in entered)
            progress(f"{one.seconds:,.0f} of {budget:,.0f} s each; last batch, bits per byte: {state}")


@torch.no_grad()
def exact_of_flat(model: FlatByteTransformer, rows: Tensor, batch_size: int) -> float:
    """Bits per byte of held-out rows, by the accounting of `evaluate_held_out`."""
    model.eval()
    nats, count = 0.0, 0
    for part in rows.split(batch_size):
        with autocast(rows.device, True):
            sum_, bytes_ = model.score(part)
        nats, count = nats + float(sum_), count + bytes_
    return nats / math.log(2) / max(count, 1)


def score(one: Contestant, rows: Tensor, batch_size: int) -> dict[str, Any]:
    """What a contestant came to. two_part: None for a flat transformer, which has no codes."""
    more: dict[str, Any] = {"exact": None, "two_part": None}
    if isinstance(one.model, HierarchicalAutoencoder):
        report = evaluate_held_out(one.model, rows, batch_size=batch_size, mixed_precision=True)
        more = {
            "exact": report.bits_per_byte_exact,
            "two_part": report.bits_per_byte_two_part,
            "byte_accuracy": report.byte_accuracy,
            "bytes_per_code": report.levels[-1].bytes_per_code,
        }
    elif isinstance(one.model, FlatByteTransformer):
        more = {"exact": exact_of_flat(one.model, rows, batch_size), "two_part": None, **vars(one.model.config)}
    return {
        "name": one.name,
        "parameters": count_parameters(one.model),
        "seconds": one.seconds,
        "steps": one.steps,
        "bytes_seen": one.bytes,
        "bytes_per_second": one.bytes / one.seconds,
        **more,
    }


def result_table(scores: list[dict[str, Any]], held_out_bytes: int) -> str:
    """One line a contestant; the ratio is the exact bits per byte of ours over its."""
    header = ["", "exact", "two-part", "ours/this", "MB seen", "bytes/s", "steps", "parameters"]
    rows = [
        [
            s["name"],
            f"{s['exact']:.3f}",
            f"{s['two_part']:.3f}" if s["two_part"] is not None else "–",
            f"{scores[0]['exact'] / s['exact']:.3f}",
            f"{s['bytes_seen'] / 1e6:.2f}",
            f"{s['bytes_per_second']:,.0f}",
            f"{s['steps']:,}",
            f"{s['parameters']:,}",
        ]
        for s in scores
    ]
    title = f"bits per byte of {held_out_bytes / 1e3:,.0f} kB of held-out text, {scores[0]['seconds']:,.0f} s each"
    return table(title, header, rows)


def parser_of_options(
    module: str = "benchmarks.exact_against_flat", description: str | None = __doc__
) -> argparse.ArgumentParser:
    """The options of a training in turns, for the benchmark of this name."""
    parser = argument_parser(module, description)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings over the experiment's")
    parser.add_argument("--config", help="an experiment whose model and data take part; without it the default one")
    parser.add_argument("--data", type=os.path.abspath, help="local text to train on, in place of the experiment's")
    parser.add_argument("--seconds", type=float, default=240.0, help="training time of each contestant")
    parser.add_argument("--slice-seconds", type=float, default=20.0, help="how long each trains at a turn")
    for name, type_ in _EXPERIMENT.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type_, help="without it as in the experiment")
    parser.add_argument("--held-out-bytes", type=int, default=262_144)
    parser.add_argument("--flat-learning-rate", type=float, default=3e-3, help="the flat transformers', AdamW")
    parser.add_argument("--flat-muon-learning-rate", type=float, default=0.02, help="the flat transformers', Muon")
    parser.add_argument("--flat-parameters", type=int, help="of the flat transformer; as many as ours without it")
    parser.add_argument("--flat-layers", type=int, help="its depth; a sensible one without it")
    parser.add_argument("--small-flat", type=int, help="parameters of one more, smaller flat transformer")
    return parser


# Settings of the experiment that have an option of the same name.
_EXPERIMENT = {
    "sequence_length": int,
    "batch_size": int,
    "seed": int,
    "learning_rate": float,
    "muon_learning_rate": float,
}


def experiment_of(options: argparse.Namespace) -> ExperimentConfig:
    """The experiment that the options ask for; fills the options that it settles."""
    experiment = load_experiment(options.config, options.overrides)
    given = {name: value for name in _EXPERIMENT if (value := getattr(options, name)) is not None}
    data = replace(experiment.data, validation_bytes=options.held_out_bytes)
    if options.data is not None:
        data = replace(data, path=options.data, dataset_name=None)
    experiment = replace(experiment, data=data, **given)
    vars(options).update({name: getattr(experiment, name) for name in _EXPERIMENT})
    return experiment


def main(arguments: list[str] | None = None) -> None:
    options = parser_of_options().parse_args(arguments)
    keep_freed_memory()
    experiment = experiment_of(options)
    corpus = open_corpus(experiment.data)
    held_out = rows_of(corpus.validation_documents(), options.sequence_length)
    entered = contestants(options, experiment, corpus)
    take_turns(entered, options.seconds, options.slice_seconds, experiment.gradient_clip_norm)
    scores = []
    for one in entered:
        progress(f"scoring {one.name}")
        scores.append(score(one, held_out, options.batch_size))
    held_out_bytes = int((held_out < 256).sum())
    ratio = scores[0]["exact"] / scores[1]["exact"]
    results = {"held_out_bytes": held_out_bytes, "ratio": ratio, "contestants": scores}
    finish(options.output, result_table(scores, held_out_bytes), results, options)


if __name__ == "__main__":
    main()
