"""The model, a flat byte transformer of as many parameters and chance on tasks of lm-evaluation-harness.

Both models train for --seconds, in turns, as in benchmarks.exact_against_flat, or are taken from checkpoints.
Then all are scored by the same code: the model in its two ways (exact and two-part), on the same items. Each
looks at as many bytes as it can use: see the default of max_length of hier_ae and flat_bytes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from abstractinator import __version__
from abstractinator.config import ExperimentConfig
from abstractinator.data import open_corpus
from abstractinator.device import keep_freed_memory
from abstractinator.evaluation.harness import find_tasks, load_tasks
from abstractinator.evaluation.hierarchical_aelm import HierarchicalAELM
from abstractinator.settings import to_dict
from abstractinator.training.checkpoint import save_checkpoint
from benchmarks import exact_against_flat
from benchmarks.byte_models import ChanceLM, FlatLM, save_flat
from benchmarks.common import ROOT, finish, progress, table
from benchmarks.exact_against_flat import Contestant, contestants, take_turns

DEFAULT_TASKS = "local_lambada,local_hellaswag,local_arc_easy,local_piqa,local_blimp,local_novels_bpb"


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
    experiment = exact_against_flat.experiment_of(options)
    entered = contestants(options, experiment, open_corpus(experiment.data))
    take_turns(entered, options.seconds, options.slice_seconds, experiment.gradient_clip_norm)
    ours, flat = entered[:2]
    options.keep.mkdir(parents=True, exist_ok=True)
    paths = options.keep / "ours.pt", options.keep / "flat.pt"
    save_ours(paths[0], ours, experiment)
    save_flat(paths[1], flat.model, experiment.sequence_length)  # type: ignore[arg-type]
    return str(paths[0]), str(paths[1])


def save_ours(path: Path, one: Contestant, experiment: ExperimentConfig) -> None:
    """A checkpoint with what is needed to evaluate and to generate, not to go on training."""
    payload = {
        "version": __version__,
        "config": to_dict(experiment),
        "model": one.model.state_dict(),
        "step": one.steps,
        "total_steps": one.steps,
        "bytes_read": one.bytes,
        "seconds": one.seconds,
    }
    save_checkpoint(path, payload)


def evaluate(name: str, lm: LM, options: argparse.Namespace) -> dict[str, Any]:
    """What the harness finds for one model, and how fast."""
    progress(f"evaluating {name}")
    watch = Stopwatch(lm)
    manager, names = find_tasks(options.tasks.split(","), options.include_path)
    results = simple_evaluate(
        lm, tasks=load_tasks(names, manager), task_manager=manager, limit=options.limit, log_samples=False
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
    parser = exact_against_flat.parser_of_options("benchmarks.real_evaluation", __doc__)
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
    keep_freed_memory()
    ours, flat = (options.ours, options.flat) if options.ours else train(options)
    found = [
        evaluate("exact", HierarchicalAELM(ours), options),
        evaluate("two-part", HierarchicalAELM(ours, scoring="two_part"), options),
        evaluate("flat", FlatLM(flat), options),
        evaluate("chance", ChanceLM(), options),
    ]
    finish(options.output, result_table(found), {"models": found}, options)


if __name__ == "__main__":
    main()
