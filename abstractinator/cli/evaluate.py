"""`abstractinator evaluate`: lm-evaluation-harness on a checkpoint, or on any of the harness's own models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from abstractinator.cli import called
from abstractinator.evaluation.options import EvaluationOptions, add_options

if TYPE_CHECKING:
    from abstractinator.cli import Commands


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        prog=called("evaluate"),
        help="run lm-evaluation-harness",
        description="Runs tasks of lm-evaluation-harness on a checkpoint, or on any of the harness's own models.",
    )
    add_options(parser)
    parser.set_defaults(command=_evaluate, parser=parser)


def _evaluate(options: argparse.Namespace) -> int:
    wanted = EvaluationOptions.of(options)
    _uncover_library()

    from abstractinator.device import prepare_processor
    from abstractinator.evaluation.harness import evaluate, leave_other_processes

    prepare_processor()
    try:
        evaluate(wanted)
    finally:
        leave_other_processes()
    return 0


def _uncover_library() -> None:
    """Tasks of the harness import a library called `evaluate`; a script of this name in a checkout must not hide it."""
    checkout = Path(__file__).resolve().parents[2]
    script = checkout / "evaluate.py"
    if script.is_file():
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != checkout]
