"""Our model compared with its peers: the same documents, seed, number of parameters, optimizers and time, in turns.

    sweep       rows a step, learning rates, and AdamW's beside Muon's, of each model: one after the other, in short
                trainings around its own defaults, the first in equal time, the others over as many bytes. Every other
                stage needs it: it is made, unless --sweep-from has it or --sweep-seconds is 0
    time        training for --seconds each, a part at a time in turns; then held-out bits per byte, bytes a second of
                scoring, compression, operations per byte
    bytes       the same for equally many bytes, each with a whole schedule of its own: those that the slowest saw
    lengths     training speed and memory at growing lengths of the rows, --repeats times in turns; medians
    generation  new bytes a second, alone and 32 at once; the same

Every measurement runs in a process of its own. The tables say which peer is not installed, crashes or takes too long,
and the others continue. What is measured lies in OUTPUT/suite_state, from where a run with the same settings continues;
removing that folder starts again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.data import DataError
from abstractinator.device import pick_device
from benchmarks.baselines import NAMES
from benchmarks.common import (
    RESULTS,
    argument_parser,
    count_parameters,
    end_with,
    finish,
    in_fresh_process,
    machine,
    progress,
)
from benchmarks.kinds import DISTRIBUTIONS, version_of
from benchmarks.kinds.base import within_tolerance
from benchmarks.ours import add_autoencoder_fraction
from benchmarks.pieces import Pieces, Result, Task, code_fingerprint
from benchmarks.suite_plots import write_plots
from benchmarks.suite_report import report
from benchmarks.suite_sweep import HYPERPARAMETERS, MOST, Swept, next_factor, swept_before, unit_of
from benchmarks.suite_work import corpus_of, held_out_rows, limit_memory, work

_MODULE = "benchmarks.suite"
_STAGES = ("sweep", "time", "bytes", "lengths", "generation")


@dataclass
class Entry:
    """One model's part in a run, and what came of it. factors: by tuned. failures: by stage, in words."""

    name: str
    version: str | None
    config: dict[str, Any] | None = None
    factors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(HYPERPARAMETERS, 1.0))
    training: dict[str, Any] | None = None  # the recipe of its training in equal time, once that is over
    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def tried(self, tuned: str) -> dict[float, float | None]:
        """What the sweep found at each factor of this hyperparameter, at the present factors of the others."""
        where = {name: factor for name, factor in self.factors.items() if name != tuned} | {"unit": unit_of(tuned)}
        return {one[tuned]: one["exact"] for one in self.results.get("sweep", []) if where.items() <= one.items()}


class TooLong(Exception):
    """A measurement took more than its time."""


class Suite:
    """A run: the baselines, what they have in common, and where the results are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pieces = Pieces(options.output / "suite_state")
        self.base = {name: getattr(options, name) for name in _BASE}
        self.base["parameters"] = options.parameters or count_parameters(HierarchicalAELM(ModelConfig()))
        corpus = corpus_of(self.base)
        rows = held_out_rows(corpus, self.base | {"device": "cpu"})
        self.base["text"] = f"{corpus.fingerprint} {hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:12]}"
        self.base["code"] = code_fingerprint()
        self.base["machine"] = machine()
        self.held_out_bytes = int((rows < ByteTokenizer.text_size).sum())
        if not self.held_out_bytes:
            raise DataError(f"{options.held_out or 'the held-out part of the data'} has no bytes that could be scored")
        self.entries = [Entry(name, version_of(name)) for name in options.baselines]
        self.swept: Swept = {}
        if options.sweep_from is not None:
            self.swept = swept_before(options.sweep_from, self.base)
            progress(f"swept before, in {options.sweep_from}: {', '.join(self.swept)}")

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
        # What a stage is measured with; it costs nothing where it was done before.
        if wanted & {"lengths", "generation"} or ("bytes" in wanted and not self.options.bytes):
            wanted.add("time")
        if wanted & {"time", "bytes"}:
            wanted.add("sweep")
        for name in _STAGES:
            if name in wanted:
                stages[name]()

    def going(self, needs: str | None = None) -> Iterator[Entry]:
        """The baselines that are still in the run, and have what a stage needs."""
        for entry in self.entries:
            if entry.config is not None and (needs is None or needs in entry.results):
                yield entry

    def measure(self, entry: Entry, stage: str, seconds: float = 0.0, **details: Any) -> Result:
        """One piece. Raises TooLong when it takes --time-limit beyond the `seconds` that it is meant to take, and
        RuntimeError when it fails."""
        task = {"baseline": entry.name, "version": entry.version, "stage": stage, "base": self.base, **details}
        limit = self.options.time_limit + seconds

        def in_process(task: Task) -> Result:
            if code_fingerprint() != self.base["code"]:
                raise SystemExit("the source has changed since the run began, and so would its results: start it again")
            progress(f"{entry.name}: {stage} {_in_words(details)}")
            given = {"task": task, "folder": str(self.pieces.folder), "parent": os.getpid()}
            result = in_fresh_process(_MODULE, given, timeout=limit)
            return {"too_long": limit} if result is None else result

        result = self.pieces.of(task, in_process, good=lambda kept: kept.get("too_long", limit) >= limit)
        if "too_long" in result:
            raise TooLong(f"took more than {result['too_long']:,.0f} s")
        return result

    def _try(self, entry: Entry, stage: str, action: Callable[[], None]) -> bool:
        """Whether the action went well; otherwise the model's failure is noted."""
        try:
            action()
        except (RuntimeError, TooLong, ValueError, ImportError) as error:
            entry.failures[stage] = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
            progress(f"{entry.name}: {stage} failed: {entry.failures[stage]}")
            return False
        return True

    def _size(self, entry: Entry) -> None:
        if entry.version is None:
            raise ImportError(f"not installed: pip install {DISTRIBUTIONS[entry.name]}, or make bench")
        found = self.measure(entry, "size")
        if not within_tolerance(found["parameters"], self.base["parameters"]):
            raise ValueError(f"{found['parameters']:,} parameters are not {self.base['parameters']:,} ± 5 %")
        entry.config = found.pop("config")
        entry.results |= found

    def _sweep(self) -> None:
        for entry in self.going():
            if entry.name in self.swept:
                entry.factors, entry.results["sweep"] = self.swept[entry.name]
        if not self.options.sweep_seconds:
            return
        for tuned in HYPERPARAMETERS:
            for _ in range(MOST):
                for entry in self._unswept():
                    self._sweep_one(entry, tuned)
            for entry in self._unswept():
                good = {factor: exact for factor, exact in entry.tried(tuned).items() if exact is not None}
                if good:
                    entry.factors[tuned] = min(good, key=good.__getitem__)

    def _unswept(self) -> list[Entry]:
        return [entry for entry in self.going() if entry.name not in self.swept]

    def _sweep_one(self, entry: Entry, tuned: str) -> None:
        """The next factor of this hyperparameter, if one is left to try."""
        least = 1 / self.base["batch_size"] if tuned == "batch" else 0.0  # of a row
        factor = next_factor(entry.tried(tuned), least)
        if factor is not None:
            factors, seconds = entry.factors | {tuned: factor}, self.options.sweep_seconds
            budget = self._sweep_budget(entry, tuned)
            if budget is None:
                entry.failures["sweep"] = "diverged with all rows a step: no other rates were tried"
                return
            task = {"config": entry.config, "training": self._recipe(factors, unit_of(tuned), budget)}
            found: Result = {"exact": None}  # what fails is no reason to try nothing else
            self._try(
                entry,
                f"sweep {tuned} × {factor:g}",
                lambda: found.update(self.measure(entry, "sweep", seconds, **task)),
            )
            entry.results.setdefault("sweep", []).append(factors | {"unit": unit_of(tuned)} | found)

    def _sweep_budget(self, entry: Entry, tuned: str) -> float | None:
        """The budget of each training for this hyperparameter: for the rates the bytes that were read in the time for
        rows a step; None where none of these trainings came to an end."""
        if tuned == "batch":
            return float(self.options.sweep_seconds)
        swept = [one for one in entry.results.get("sweep", []) if one["batch"] == entry.factors["batch"]]
        return next((one["bytes"] for one in swept if one["exact"] is not None), None)

    def _time(self) -> None:
        trainings = {entry.name: self._training(entry, "seconds", self.options.seconds) for entry in self.going()}
        self._train("time", trainings)
        for entry in self.going("time"):
            entry.training = trainings[entry.name]
            self._try(entry, "flops", partial(self._flops, entry))

    def _flops(self, entry: Entry) -> None:
        entry.results["flops"] = self.measure(entry, "flops", config=entry.config, training=entry.training)

    def _bytes(self) -> None:
        seen = [entry.results["time"]["bytes"] for entry in self.going("time")]
        budget = self.options.bytes or (min(seen) if seen else None)
        if budget is not None:
            self._train("bytes", {entry.name: self._training(entry, "bytes", budget) for entry in self.going()})

    def _training(self, entry: Entry, unit: str, budget: float) -> dict[str, Any]:
        return self._recipe(entry.factors, unit, budget) | {"parts": self.options.parts}

    def _recipe(self, factors: dict[str, float], unit: str, budget: float) -> dict[str, Any]:
        """See `Recipe`."""
        rates = {tuned: factor for tuned, factor in factors.items() if tuned != "batch"}
        batch_size = round(self.base["batch_size"] * factors["batch"])
        common = {name: self.base[name] for name in ("sequence_length", "seed")}
        return {"unit": unit, "budget": budget, **common, **rates, "batch_size": batch_size}

    def _train(self, stage: str, trainings: dict[str, dict[str, Any]]) -> None:
        """Trains all baselines in turns, a part each, and scores them; their curves and scores are results[stage]."""
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
        curve.append(self.measure(entry, "part", seconds, config=entry.config, training=training, part=number))

    def _score(self, entry: Entry, stage: str, training: dict[str, Any], curve: list[Result]) -> None:
        found = self.measure(entry, "score", config=entry.config, training=training)
        last = {name: curve[-1][name] for name in ("seconds", "bytes", "steps")}
        entry.results[stage] = {**last, "scores": found, "curve": curve}

    def _lengths(self) -> None:
        step_bytes = max(self.options.lengths)
        for repeat in range(self.options.repeats):
            for length in self.options.lengths:
                for entry in self._in_turn(repeat):
                    details = {"length": length, "step_bytes": step_bytes, "steps": self.options.steps}
                    self._repeat(entry, "length", str(length), repeat, details)

    def _generation(self) -> None:
        prompt, new = self.options.prompt_bytes, self.options.new_bytes
        for repeat in range(self.options.repeats):
            for rows in self.options.generation_rows:
                for entry in self._in_turn(repeat):
                    for mode in entry.results["modes"]:
                        details = {"rows": rows, "mode": mode, "prompt_bytes": prompt, "new_bytes": new}
                        self._repeat(entry, "generation", f"{mode} {rows}", repeat, details)

    def _in_turn(self, repeat: int) -> list[Entry]:
        """Who has been trained, the other way round every second time."""
        return list(self.going("time"))[:: -1 if repeat % 2 else 1]

    def _repeat(self, entry: Entry, stage: str, name: str, repeat: int, details: dict[str, Any]) -> None:
        """Measures once more into results[stage][name], which holds the single results and their medians; one that
        fails is not tried again, and keeps no other measurement from being made."""
        if f"{stage} {name}" in entry.failures:
            return
        runs = entry.results.setdefault(stage, {}).setdefault(name, {"runs": []})["runs"]
        whole = {"config": entry.config, "training": entry.training, "repeat": repeat, **details}
        self._try(entry, f"{stage} {name}", lambda: runs.append(self.measure(entry, stage, **whole)))
        entry.results[stage][name] = {**_medians(runs), "runs": runs}


def _medians(runs: list[Result]) -> Result:
    """Of what the runs found; what one of them did not find is left out."""
    names = runs[0] if runs else ()
    found = {name: [run[name] for run in runs if run[name] is not None] for name in names}
    return {name: statistics.median(values) for name, values in found.items() if values}


def _in_words(details: dict[str, Any]) -> str:
    """What tells this piece from others of its stage."""
    known = {**(details.get("training") or {}), **details}
    return ", ".join(f"{name} {known[name]}" for name in _TELLING if name in known)


_TELLING = ("part", "parts", "batch_size", "rate", "adamw_rate", "length", "rows", "mode", "repeat")

# Options that every task holds, since every result may depend on them.
_BASE = (
    "data",
    "held_out",
    "device",
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
        "--held-out", type=os.path.abspath, help="a file to be scored; the held-out documents of --data without it"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parameters", type=int, help="of each model ± 5 %%; those of the default preset without it")
    parser.add_argument("--baselines", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--stages", nargs="+", choices=_STAGES, default=list(_STAGES), help="with what these need: time and sweep"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of each")
    parser.add_argument(
        "--bytes",
        type=float,
        help="training bytes of each in the stage of that name, without it those of the slowest in `time`",
    )
    parser.add_argument("--parts", type=int, default=12, help="turns, and points of each curve")
    parser.add_argument(
        "--sweep-seconds", type=float, default=120.0, help="of each training of the sweep; 0 for no sweep"
    )
    parser.add_argument(
        "--sweep-from", type=Path, help="suite.json of another run: whom that has swept is not swept again"
    )
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8, help="rows a step, from which the sweep goes out")
    parser.add_argument("--seed", type=int, default=0)
    add_autoencoder_fraction(parser)
    parser.add_argument("--held-out-bytes", type=int, default=262_144)
    parser.add_argument(
        "--curve-bytes",
        type=int,
        default=65_536,
        help="for each point of a curve, of the held-out text; and of training text, for each training of the sweep",
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_024, 4_096, 16_384])
    parser.add_argument("--steps", type=int, default=2, help="timed steps at each length, after one to warm up")
    parser.add_argument("--repeats", type=int, default=3, help="of each length and each generation, in turns")
    parser.add_argument("--generation-rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--prompt-bytes", type=int, default=256)
    parser.add_argument("--new-bytes", type=int, default=128, help="after each prompt")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds after which a measurement is too long")
    parser.set_defaults(threads=os.environ.get("OMP_NUM_THREADS"))
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of_options()
    options = parser.parse_args(arguments)
    if options.worker:
        given = json.loads(options.worker)
        end_with(given["parent"])
        if given["task"]["base"]["device"] == "cpu":
            limit_memory()
        print(json.dumps(work(given["task"], Path(given["folder"]))))
        return
    if options.held_out is not None and not Path(options.held_out).is_file():
        parser.error(f"--held-out={options.held_out} is no file; give the one with the documents to be scored")
    try:
        pick_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    try:
        suite = Suite(options)
    except DataError as error:
        parser.error(str(error))
    try:
        suite.run()
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; the same command continues from {suite.pieces.folder}") from None
    results = {
        "code": suite.base["code"],
        "parameters": suite.base["parameters"],
        "held_out_bytes": suite.held_out_bytes,
        "baselines": [
            {
                "name": entry.name,
                "version": entry.version,
                "factors": entry.factors,
                **entry.results,
                "failures": entry.failures,
            }
            for entry in suite.entries
        ],
    }
    settings = argparse.Namespace(**(vars(options) | {"output": options.output / "suite.json"}))
    finish(settings.output, report(results), results, settings)
    print("\nwrote " + ", ".join(str(path) for path in [settings.output, *write_plots(results, options.output)]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no measurement continues without its run
    main()
