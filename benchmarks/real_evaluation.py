"""The model, a flat byte transformer of as many parameters and chance on tasks of lm-evaluation-harness.

Both models train for --seconds, in turns, as in benchmarks.suite, or are taken from checkpoints.
Then all are scored by the same code: the model in its two ways (exact and two-part), on the same items. Each
reads as many bytes as it can use: see max_length of the harness's adapter.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

import benchmarks.kinds  # noqa: F401  registers the baselines
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.data import DataConfig, open_corpus
from abstractinator.device import prepare_processor
from abstractinator.evaluation.harness import find_tasks, load_tasks
from abstractinator.evaluation.model_lm import model_lm
from benchmarks.baselines import OURS, class_of, rates_of, sized
from benchmarks.budgeted_training import Recipe, Training, take_turns
from benchmarks.byte_models import ChanceLM
from benchmarks.common import ROOT, argument_parser, count_parameters, finish, progress, table
from benchmarks.kinds.base import Setting
from benchmarks.ours import add_autoencoder_fraction

DEFAULT_TASKS = "lambada_openai,hellaswag,arc_easy,piqa"


class Stopwatch:
    """Counts the requests for likelihoods that an LM answers, and the seconds they take."""

    def __init__(self, lm: LM) -> None:
        self.requests, self.seconds = 0, 0.0
        for name in ("loglikelihood", "loglikelihood_rolling"):
            setattr(lm, name, self._timed(getattr(lm, name)))

    def _timed(self, answer: Callable[[list[Instance]], list[Any]]) -> Callable[[list[Instance]], list[Any]]:
        def timed(requests: list[Instance]) -> list[Any]:
            start = time.perf_counter()
            answers = answer(requests)
            self.seconds += time.perf_counter() - start
            self.requests += len(requests)
            return answers

        return timed


def train(options: argparse.Namespace) -> tuple[str, str]:
    """Trains both in turns → the paths of their checkpoints."""
    data = DataConfig(path=options.data)
    corpus = open_corpus(data)
    parameters = options.parameters or count_parameters(HierarchicalAELM(ModelConfig()))
    setting = Setting(parameters, corpus, options.keep, options.seed)
    recipe = Recipe("seconds", options.seconds, options.sequence_length, options.batch_size, options.seed)
    trainings, paths = {}, {}
    for name in (OURS, "flat"):
        torch.manual_seed(options.seed)
        model = class_of(name)(sized(name, setting, options.autoencoder_fraction))
        trainings[name] = Training(model, rates_of(name), corpus, recipe)
        paths[name] = options.keep / f"{name}.pt"
    take_turns(trainings, options.parts)
    options.keep.mkdir(parents=True, exist_ok=True)
    for name, training in trainings.items():
        training.save(paths[name])
    return str(paths[OURS]), str(paths["flat"])


def evaluate(name: str, lm: LM, tasks: tuple[TaskManager, list[str]], limit: float | None) -> dict[str, Any]:
    """What the harness finds for one model, and how fast."""
    progress(f"evaluating {name}")
    watch = Stopwatch(lm)
    manager, names = tasks
    results = simple_evaluate(
        lm, tasks=load_tasks(names, manager), task_manager=manager, limit=limit, log_samples=False
    )
    assert results is not None  # one process
    return {
        "name": name,
        "requests": watch.requests,
        "requests_per_second": watch.requests / max(watch.seconds, 1e-9),
        "config": {key: value for key, value in results["config"].items() if isinstance(value, str | int | float)},
        "results": results["results"],
        "n-samples": results["n-samples"],
    }


def result_table(found: list[dict[str, Any]]) -> str:
    """One line a metric, one column a model."""
    rows = []
    for task, values in found[0]["results"].items():
        metrics = [key for key, value in values.items() if isinstance(value, float) and "_stderr" not in key]
        for metric in metrics:
            cells = [f"{one['results'][task][metric]:.4g}" for one in found]
            error = values.get(metric.replace(",", "_stderr,"))
            rows.append([f"{task} {metric.removesuffix(',none')}", *cells, f"{error:.2g}" if error != "N/A" else "–"])
    rows.append(["requests per second", *(f"{one['requests_per_second']:,.1f}" for one in found), "–"])
    return table("tasks of lm-evaluation-harness", ["", *(one["name"] for one in found), "± (first)"], rows)


def parser_of_options() -> argparse.ArgumentParser:
    parser = argument_parser("benchmarks.real_evaluation", __doc__)
    parser.add_argument("--data", type=os.path.abspath, help="local text to train on; the embedded corpus without it")
    parser.add_argument("--parameters", type=int, help="of both ± 5 %%; those of the default preset without it")
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of each")
    parser.add_argument("--parts", type=int, default=20, help="turns")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    add_autoencoder_fraction(parser)
    parser.add_argument("--tasks", default=DEFAULT_TASKS, help="names with commas between them")
    parser.add_argument("--include-path", help="the folder of their task files")
    parser.add_argument("--limit", type=float, help="items of each task, or a share below 1")
    parser.add_argument("--ours", help="a checkpoint of the model; with --flat, nothing is trained")
    parser.add_argument("--flat", help="a flat.pt of an earlier run")
    parser.add_argument("--keep", type=Path, default=ROOT / "checkpoints" / "real_evaluation", help="for checkpoints")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of_options()
    options = parser.parse_args(arguments)
    if (options.ours is None) != (options.flat is None):
        parser.error("give both --ours and --flat, or neither to train them")
    try:
        tasks = find_tasks(options.tasks.split(","), options.include_path)
    except ValueError as error:  # now, and not after the training
        parser.error(f"{error} (local tasks lie in the folder that --include-path names)")
    prepare_processor()
    ours, flat = (options.ours, options.flat) if options.ours else train(options)
    found = [
        evaluate("exact", model_lm("hier_ae")(ours), tasks, options.limit),
        evaluate("two-part", model_lm("hier_ae")(ours, scoring="two_part"), tasks, options.limit),
        evaluate("flat", model_lm("flat")(flat), tasks, options.limit),
        evaluate("chance", ChanceLM(), tasks, options.limit),
    ]
    finish(options.output, result_table(found), {"models": found}, options)


if __name__ == "__main__":
    main()
