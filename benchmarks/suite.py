"""Our model beside its peers: the same documents, seed, number of parameters, optimizers and time, in turns.

    sweep       the learning rates of each contender, in short trainings around its own default
    time        training for --seconds each, a part at a time in turns; then held-out bits per byte, bytes a second of
                scoring, compression, operations per byte
    bytes       the same for equally many bytes, each with a whole schedule of its own: those that the slowest saw
    lengths     training speed and memory at growing lengths of the rows
    generation  new bytes a second, alone and 32 at once

Every measurement runs in a process of its own. The tables say which peer is not installed, crashes or takes too long,
and the others go on. What is measured lies in OUTPUT/suite_state, and a run with the same settings goes on from there;
removing that folder starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, argument_parser, count_parameters, finish, in_fresh_process, progress
from benchmarks.contenders import DISTRIBUTIONS, NAMES, version_of
from benchmarks.contenders.base import within_tolerance
from benchmarks.pieces import Pieces, Result, Task, code_fingerprint
from benchmarks.suite_plots import write_plots
from benchmarks.suite_report import report
from benchmarks.suite_work import corpus_of, limit_memory, work
from components.hierarchical_autoencoder import HierarchicalAutoencoder, ModelConfig

_MODULE = "benchmarks.suite"
_STAGES = ("sweep", "time", "bytes", "lengths", "generation")
_RATES = (0.5, 1.0, 2.0)  # of the sweep; it goes on beyond the last while that is the best
_FARTHEST = 3  # so many times


@dataclass
class Entry:
    """One contender's part in a run, and what came of it. failures: by stage, in words."""

    name: str
    version: str | None
    width: int = 0
    rate: float = 1.0
    training: dict[str, Any] | None = None  # the task of its training in equal time, once that is over
    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class TooLong(Exception):
    """A measurement took more than its time."""


class Suite:
    """A run: the contenders, what they have in common, and where the results are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pieces = Pieces(options.output / "suite_state")
        self.base = {name: getattr(options, name) for name in _BASE}
        self.base["parameters"] = options.parameters or count_parameters(HierarchicalAutoencoder(ModelConfig()))
        corpus = corpus_of(self.base)
        self.base["text"] = corpus.fingerprint
        self.base["code"] = code_fingerprint()
        self.held_out_bytes = sum(map(len, corpus.validation_documents()))
        self.entries = [Entry(name, version_of(name)) for name in options.contenders]

    def run(self) -> None:
        for entry in self.entries:
            self._try(entry, "size", partial(self._size, entry))
        stages = {
            "sweep": self._sweep,
            "time": self._time,
            "bytes": self._bytes,
            "lengths": self._lengths,
            "generation": self._generation,
        }
        wanted = set(self.options.stages)
        if wanted & {"bytes", "lengths", "generation"}:
            wanted.add("time")  # what they measure; it costs nothing where it was done before
        for name in _STAGES:
            if name in wanted and not (name == "sweep" and not self.options.sweep_seconds):
                stages[name]()

    def going(self, needs: str | None = None) -> Iterator[Entry]:
        """The contenders that are still in the run, and have what a stage needs."""
        for entry in self.entries:
            if entry.width and (needs is None or needs in entry.results):
                yield entry

    def measure(self, entry: Entry, stage: str, seconds: float = 0.0, **details: Any) -> Result:
        """One piece. Raises TooLong when it takes --time-limit beyond the `seconds` that it is meant to take, and
        RuntimeError when it fails."""
        task = {"contender": entry.name, "version": entry.version, "stage": stage, "base": self.base, **details}
        limit = self.options.time_limit + seconds

        def in_process(task: Task) -> Result:
            progress(f"{entry.name}: {stage} {_in_words(details)}")
            result = in_fresh_process(_MODULE, {"task": task, "folder": str(self.pieces.folder)}, timeout=limit)
            return {"too_long": limit} if result is None else result

        result = self.pieces.of(task, in_process, good=lambda kept: kept.get("too_long", limit) >= limit)
        if "too_long" in result:
            raise TooLong(f"took more than {result['too_long']:,.0f} s")
        return result

    def _try(self, entry: Entry, stage: str, action: Callable[[], None]) -> bool:
        """Whether the action went well; otherwise the contender's failure is noted."""
        try:
            action()
        except (RuntimeError, TooLong, ValueError, ImportError) as error:
            entry.failures[stage] = str(error).strip().splitlines()[-1][:300]
            progress(f"{entry.name}: {stage} failed: {entry.failures[stage]}")
            return False
        return True

    def _size(self, entry: Entry) -> None:
        if entry.version is None:
            raise ImportError(f"not installed: pip install {DISTRIBUTIONS[entry.name]}, or make bench")
        found = self.measure(entry, "size")
        if not within_tolerance(found["parameters"], self.base["parameters"]):
            raise ValueError(f"{found['parameters']:,} parameters are not {self.base['parameters']:,} ± 5 %")
        entry.width = found.pop("width")
        entry.results |= found

    def _sweep(self) -> None:
        for entry in self.going():
            entry.results["sweep"] = {}
        for _ in range(len(_RATES) + _FARTHEST):
            for entry in self.going():
                rate = _next_rate({float(rate): found["exact"] for rate, found in entry.results["sweep"].items()})
                if rate is not None and "sweep" not in entry.failures:
                    self._try(entry, "sweep", partial(self._sweep_one, entry, rate))
        for entry in self.going("sweep"):
            found = {rate: one["exact"] for rate, one in entry.results["sweep"].items() if one["exact"] is not None}
            if found:
                entry.rate = float(min(found, key=found.__getitem__))

    def _sweep_one(self, entry: Entry, rate: float) -> None:
        seconds = self.options.sweep_seconds
        recipe = {"unit": "seconds", "budget": seconds, "rate": rate}
        entry.results["sweep"][str(rate)] = self.measure(entry, "sweep", seconds, width=entry.width, **recipe)

    def _time(self) -> None:
        trainings = {entry.name: self._training(entry, "seconds", self.options.seconds) for entry in self.going()}
        self._train("time", trainings)
        for entry in self.going("time"):
            entry.training = trainings[entry.name]
            self._try(entry, "flops", partial(self._flops, entry))

    def _flops(self, entry: Entry) -> None:
        entry.results["flops"] = self.measure(entry, "flops", width=entry.width, training=entry.training)

    def _bytes(self) -> None:
        seen = [entry.results["time"]["bytes"] for entry in self.going("time")]
        budget = self.options.bytes or (min(seen) if seen else None)
        if budget is not None:
            self._train("bytes", {entry.name: self._training(entry, "bytes", budget) for entry in self.going()})

    def _training(self, entry: Entry, unit: str, budget: float) -> dict[str, Any]:
        names = ("sequence_length", "batch_size", "seed")
        recipe = {"unit": unit, "budget": budget, "rate": entry.rate, "parts": self.options.parts}
        return recipe | {name: self.base[name] for name in names}

    def _train(self, stage: str, trainings: dict[str, dict[str, Any]]) -> None:
        """Trains all contenders in turns, a part each, and scores them; their curves and scores are results[stage]."""
        curves: dict[str, list[Result]] = {name: [] for name in trainings}
        for number in range(self.options.parts):
            for entry in self.going():
                if stage not in entry.failures:
                    training, curve = trainings[entry.name], curves[entry.name]
                    self._try(entry, stage, partial(self._part, entry, training, number, curve))
        for entry in self.going():
            if stage not in entry.failures:
                self._try(entry, stage, partial(self._score, entry, stage, trainings[entry.name], curves[entry.name]))

    def _part(self, entry: Entry, training: dict[str, Any], number: int, curve: list[Result]) -> None:
        seconds = training["budget"] / training["parts"] if training["unit"] == "seconds" else self.options.seconds
        curve.append(self.measure(entry, "part", seconds, width=entry.width, training=training, part=number))

    def _score(self, entry: Entry, stage: str, training: dict[str, Any], curve: list[Result]) -> None:
        found = self.measure(entry, "score", width=entry.width, training=training)
        last = {name: curve[-1][name] for name in ("seconds", "bytes", "steps")}
        entry.results[stage] = {**last, "scores": found, "curve": curve}

    def _lengths(self) -> None:
        step_bytes = max(self.options.lengths)
        for length in self.options.lengths:
            for entry in self.going("time"):
                details = {"length": length, "step_bytes": step_bytes, "steps": self.options.steps}
                self._note(entry, "length", str(length), details)

    def _generation(self) -> None:
        prompt, new = self.options.prompt_bytes, self.options.new_bytes
        for rows in self.options.generation_rows:
            for entry in self.going("time"):
                for mode in entry.results["modes"]:
                    details = {"rows": rows, "mode": mode, "prompt_bytes": prompt, "new_bytes": new}
                    self._note(entry, "generation", f"{mode} {rows}", details)

    def _note(self, entry: Entry, stage: str, name: str, details: dict[str, Any]) -> None:
        """Measures into results[stage][name]; a failure there keeps no other measurement from being made."""
        found: dict[str, Any] = {}
        whole = {"width": entry.width, "training": entry.training, **details}
        self._try(entry, f"{stage} {name}", lambda: found.update(self.measure(entry, stage, **whole)))
        entry.results.setdefault(stage, {})[name] = found


def _next_rate(tried: dict[float, float | None]) -> float | None:
    """The next factor on the learning rates to try after these, with what each came to; None when enough were."""
    for rate in _RATES:
        if rate not in tried:
            return rate
    good = {rate: exact for rate, exact in tried.items() if exact is not None}
    best = min(good, key=good.__getitem__) if good else min(tried)
    if len(tried) >= len(_RATES) + _FARTHEST or min(tried) < best < max(tried):
        return None
    return best / 2 if best == min(tried) else best * 2


def _in_words(details: dict[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in details.items() if not isinstance(value, dict))


# Options that every task holds, since every result may depend on them.
_BASE = (
    "data",
    "seed",
    "sequence_length",
    "batch_size",
    "held_out_bytes",
    "curve_bytes",
    "autoencoder_fraction",
    "threads",
)


def parser_of_options() -> argparse.ArgumentParser:
    parser = argument_parser(_MODULE, __doc__)
    parser.set_defaults(output=RESULTS)
    parser.add_argument("--data", type=os.path.abspath, help="parquet, jsonl or text; the embedded corpus without it")
    parser.add_argument(
        "--parameters", type=int, help="of each contender ± 5 %%; those of the default preset without it"
    )
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--stages", nargs="+", choices=_STAGES, default=list(_STAGES))
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of each")
    parser.add_argument("--bytes", type=float, help="training bytes of each in the stage of that name")
    parser.add_argument("--parts", type=int, default=12, help="turns, and points of each curve")
    parser.add_argument(
        "--sweep-seconds", type=float, default=45.0, help="of each training of the sweep; 0 for no sweep"
    )
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder-fraction", type=float, default=0.15, help="of our own training; see config.py")
    parser.add_argument("--held-out-bytes", type=int, default=262_144)
    parser.add_argument(
        "--curve-bytes", type=int, default=65_536, help="of the held-out text, for each point of a curve"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_024, 4_096, 16_384])
    parser.add_argument("--steps", type=int, default=2, help="timed steps at each length, after one to warm up")
    parser.add_argument("--generation-rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--prompt-bytes", type=int, default=256)
    parser.add_argument("--new-bytes", type=int, default=128, help="after each prompt")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds after which a measurement is too long")
    parser.set_defaults(threads=os.environ.get("OMP_NUM_THREADS"))
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser_of_options().parse_args(arguments)
    if options.worker:
        limit_memory()
        given = json.loads(options.worker)
        print(json.dumps(work(given["task"], Path(given["folder"]))))
        return
    suite = Suite(options)
    try:
        suite.run()
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; the same command goes on from {suite.pieces.folder}") from None
    results = {
        "parameters": suite.base["parameters"],
        "held_out_bytes": suite.held_out_bytes,
        "contenders": [
            {
                "name": entry.name,
                "version": entry.version,
                "rate": entry.rate,
                **entry.results,
                "failures": entry.failures,
            }
            for entry in suite.entries
        ],
    }
    plots = write_plots(results, options.output)
    settings = argparse.Namespace(**(vars(options) | {"output": options.output / "suite.json"}))
    text = report(results) + "\n\nwrote " + ", ".join(str(path) for path in [settings.output, *plots])
    finish(settings.output, text, results, settings)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no measurement goes on without its run
    main()
