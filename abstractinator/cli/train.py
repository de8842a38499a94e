"""`abstractinator train`: trains a model as a config file and overrides say."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from abstractinator.cli import called

if TYPE_CHECKING:
    from abstractinator.cli import Commands


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        prog=called("train"),
        help="train a model",
        description="Trains a model; Ctrl-C writes a checkpoint.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="a Python file with one literal, exp_config = {…} (default: ./config.py, if it exists)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings over those of the file")
    parser.add_argument("--show", action="store_true", help="print the resolved settings as JSON and do nothing")
    parser.set_defaults(command=_train, parser=parser)


def _train(options: argparse.Namespace) -> int:
    from abstractinator.config.experiment import load_experiment

    path = options.config
    if path is None and Path("config.py").is_file():
        path = Path("config.py")
    config = load_experiment(path, options.overrides)
    if options.show:
        from abstractinator.config.settings import to_dict

        print(json.dumps(to_dict(config), indent=2))
        return 0

    import torch

    from abstractinator.training.loop import Interrupted, train

    try:
        train(config)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "the device ran out of memory: lower batch_size, and raise gradient_accumulation_steps to keep the rows "
            "of a step"
        ) from error
    except Interrupted as stop:
        print(f"abstractinator: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    return 0
