"""Training memory and time per byte at growing sequence lengths, with as many bytes in every step.

Each measurement runs in a process of its own: some optimizer steps on the same text, cut into rows of one
length. Memory is the highest resident size less that before the first step, so gradients and optimizer state
count and the weights do not; time is the median step after the first. Measurements of all lengths take turns,
so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from abstractinator.config.experiment import load_experiment
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data import DataConfig, ReadAhead, open_corpus, train_loader
from abstractinator.device import prepare_processor
from abstractinator.training.state import RunState, new_model
from abstractinator.training.step import train_step
from benchmarks.common import PeakMemory, argument_parser, count_parameters, finish, in_fresh_process, progress, table
from benchmarks.flat_transformer import flat_config
from benchmarks.kinds.flat import Flat

_MODULE = "benchmarks.length_scaling"
_MARK = 1.2  # longest against shortest


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Some steps at one length in this process → rise in bytes, seconds of each step, parameters."""
    prepare_processor()
    experiment = load_experiment(task["config"], ["project_name=None", "max_minutes=None"])
    model = new_model(experiment, torch.device("cpu"))
    if task["baseline"] == "flat":
        model = Flat(flat_config(task["flat_parameters"] or count_parameters(model)))
    corpus = open_corpus(DataConfig(path=task["data"]))
    loader = train_loader(corpus, RowLayout(task["bytes"]), 1, seed=0)
    batches = [
        Batch.of(batch.ids.view(-1, task["length"])) for batch, _ in zip(loader, range(task["steps"]), strict=False)
    ]
    state = RunState.begin(replace(experiment, model=model.config), model, ReadAhead(loader), experiment.max_steps or 1)
    state.clock.position = state.clock.planned // 2  # all losses are trained
    torch.randn(64, 64) @ torch.randn(64, 64)  # loads what loads lazily
    peak, seconds = PeakMemory(), []
    for batch in batches:
        start = time.perf_counter()
        train_step(state, iter([batch]))
        seconds.append(time.perf_counter() - start)
    return {"bytes": peak.rise(), "seconds": seconds, "parameters": count_parameters(model)}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every baseline at every length, taking turns, `repeats` times over; medians, None where skipped."""
    cases = [(baseline, length) for baseline in options.baselines for length in options.lengths]
    runs: dict[tuple[str, int], list[dict[str, Any] | None]] = {case: [] for case in cases}
    for repeat in range(options.repeats):
        for case in cases:
            if None in runs[case]:
                continue
            progress(f"{case[0]} at length {case[1]:,} ({repeat + 1} of {options.repeats})")
            task = {"baseline": case[0], "length": case[1], "bytes": options.step_bytes, "steps": options.steps + 1}
            task |= {"data": options.data, "config": options.config, "flat_parameters": options.flat_parameters}
            timeout = options.flat_timeout if case[0] == "flat" else None
            runs[case].append(in_fresh_process(_MODULE, task, timeout))
    return [_medians(baseline, length, runs[baseline, length], options) for baseline, length in cases]


def _medians(
    baseline: str, length: int, runs: list[dict[str, Any] | None], options: argparse.Namespace
) -> dict[str, Any]:
    case: dict[str, Any] = {"baseline": baseline, "length": length, "bytes": None, "microseconds_per_byte": None}
    done = [run for run in runs if run is not None]
    if len(done) == len(runs):
        per_byte = statistics.median(statistics.median(run["seconds"][1:]) for run in done) / options.step_bytes
        case |= {"bytes": statistics.median(run["bytes"] for run in done), "microseconds_per_byte": 1e6 * per_byte}
        case["parameters"] = done[0]["parameters"]
    return case


def with_ratios(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases, each with its memory and time over those of its baseline's shortest length."""
    out = []
    for case in cases:
        base = min((c for c in cases if c["baseline"] == case["baseline"]), key=lambda c: c["length"])
        ratios = {
            f"{name}_ratio": case[name] / base[name] if case[name] and base[name] else None
            for name in ("bytes", "microseconds_per_byte")
        }
        out.append(case | ratios)
    return out


def rows_of_table(cases: list[dict[str, Any]]) -> list[list[str]]:
    """What is printed of each case; a dash where it was skipped."""

    def cell(value: float | None, form: str, unit: float = 1.0) -> str:
        return "–" if value is None else format(value / unit, form)

    return [
        [
            case["baseline"],
            f"{case['length']:,}",
            cell(case["bytes"], ",.0f", 1e6),
            cell(case["bytes_ratio"], ".2f"),
            cell(case["microseconds_per_byte"], ",.1f"),
            cell(case["microseconds_per_byte_ratio"], ".2f"),
        ]
        for case in cases
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(_MODULE, __doc__)
    parser.add_argument("--config", type=os.path.abspath, help="an experiment whose model to measure")
    parser.add_argument("--data", type=os.path.abspath, help="local text to train on; the embedded corpus without it")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_024, 4_096, 16_384])
    parser.add_argument("--step-bytes", type=int, default=16_384, help="bytes in every step; the lengths divide it")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--baselines", nargs="+", choices=["ours", "flat"], default=["ours", "flat"])
    parser.add_argument("--flat-parameters", type=int, help="as many as ours without it")
    parser.add_argument("--flat-timeout", type=float, default=60.0, help="seconds after which a flat length is skipped")
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))))
        return
    if any(options.step_bytes % length for length in options.lengths):
        parser.error(f"every length must divide --step-bytes ({options.step_bytes})")
    cases = with_ratios(measure(options))
    header = ["", "length", "MB", "ratio", "µs/byte", "ratio"]
    text = table(f"training, {options.step_bytes:,} bytes a step", header, rows_of_table(cases))
    text += f"\nthe mark for ours: both ratios at most {_MARK}"
    if any(case["bytes"] is None for case in cases):
        text += f"\n–: took longer than {options.flat_timeout:.0f} s"
    finish(options.output, text, {"cases": cases, "mark_ratio": _MARK}, options)


if __name__ == "__main__":
    main()
