"""The options of `evaluate.py` and `abstractinator evaluate`, named as the harness names its own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from abstractinator import registry

DEFAULT_TASKS = "lambada_openai,hellaswag,piqa,arc_easy,arc_challenge,openbookqa,winogrande"
_DEFAULT_SEEDS = (0, 1234, 1234, 1234)  # the harness's


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, on what. None leaves a choice to the harness or to the model.

    limit: items of each task, or a share of them below 1. seed: of random, numpy, torch and few-shot examples.
    mlflow: the project to record the results in. The others: see the command's help.
    """

    model: str = registry.DEFAULT
    model_args: tuple[str, ...] = ()
    tasks: str = DEFAULT_TASKS
    num_fewshot: int | None = None
    batch_size: str | None = None
    device: str | None = None
    gen_kwargs: tuple[str, ...] = ()
    limit: float | None = None
    include_path: str | None = None
    output_path: str | None = None
    log_samples: bool = False
    seed: str | None = None
    mlflow: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not 0 < self.limit < float("inf"):
            raise ValueError(f"--limit must be above 0 (items a task, or a share below 1), not {self.limit:g}")
        if self.limit is not None and self.limit >= 1 and self.limit != int(self.limit):
            raise ValueError(f"--limit must be a whole number of items or a share below 1, not {self.limit:g}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"--num_fewshot must be 0 or more, not {self.num_fewshot}")
        if self.log_samples and self.output_path is None:
            raise ValueError("--log_samples needs --output_path, where the samples go")
        if self.output_path == "":
            raise ValueError("--output_path is empty; give a folder or a .json file")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(f"--include_path={self.include_path} is no folder; give the one with the task files")
        if not self.task_names:
            raise ValueError("--tasks is empty; give names with commas between them")
        _ = self.seeds

    @property
    def task_names(self) -> list[str]:
        """The tasks, each once."""
        return list(dict.fromkeys(name for name in self.tasks.replace(",", " ").split()))

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Four seeds, from one or four numbers; `None` leaves one unset."""
        if self.seed is None:
            return _DEFAULT_SEEDS
        words = self.seed.split(",")
        try:
            seeds = tuple(None if word.strip().lower() == "none" else int(word) for word in words)
        except ValueError as error:
            raise ValueError(f"--seed must be one number or four with commas between them, not {self.seed}") from error
        if len(seeds) not in (1, 4):
            raise ValueError(f"--seed must be one number or four with commas between them, not {self.seed}")
        return seeds * (4 // len(seeds))

    @classmethod
    def of(cls, options: argparse.Namespace) -> Self:
        """What a parser with `add_options` has read. Raises ValueError for a value that cannot be."""
        values: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(cls)}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        values["tasks"] = options.tasks if isinstance(options.tasks, str) else " ".join(options.tasks)
        return cls(**values)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Gives the parser an option for each field of EvaluationOptions."""
    pairs = "key=value pairs with commas or spaces between them"
    parser.add_argument(
        "--model",
        default=registry.DEFAULT,
        help="a kind of model, hf or another of the harness's (default: %(default)s)",
    )
    parser.add_argument(
        "--model_args",
        nargs="+",
        action="extend",
        default=[],
        metavar="ARG",
        help=f"{pairs}: checkpoint=FILE or FOLDER …",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=DEFAULT_TASKS,
        help="names with commas or spaces between them (default: %(default)s)",
    )
    parser.add_argument("--num_fewshot", type=int, help="examples before each item (default: the task's own number)")
    parser.add_argument("--batch_size", help="requests a batch, or auto")
    parser.add_argument("--device", help="cpu, cuda, cuda:0, mps")
    parser.add_argument(
        "--gen_kwargs", nargs="+", action="extend", default=[], metavar="ARG", help=f"of generation; {pairs}"
    )
    parser.add_argument("--limit", type=float, help="items of each task, or a share below 1; for trying out")
    parser.add_argument("--include_path", help="a folder with task files of your own")
    parser.add_argument("--output_path", help="a folder or a .json file for the harness's results")
    parser.add_argument("--log_samples", action="store_true", help="write every request and answer to --output_path")
    parser.add_argument(
        "--seed", help="one number, or four: random, numpy, torch, few-shot (default: 0,1234,1234,1234)"
    )
    parser.add_argument("--mlflow", nargs="?", const="abstractinator", metavar="PROJECT", help="record in MLflow, too")
