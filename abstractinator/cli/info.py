"""`abstractinator info`: what a checkpoint holds."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from abstractinator.cli import CHECKPOINT_HELP

if TYPE_CHECKING:
    from abstractinator.cli import Commands
    from abstractinator.contract.model import Model

_PLAIN = ("version", "kind", "config", "step", "planned_steps", "bytes_read", "seconds")


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("info", help="what a checkpoint is", description="Shows what a checkpoint holds.")
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("--json", action="store_true", help="settings and progress as JSON")
    parser.set_defaults(command=_info, parser=parser)


def _info(options: argparse.Namespace) -> int:
    from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
    from abstractinator.checkpoints.errors import CheckpointError
    from abstractinator.checkpoints.models import describe_model

    path = latest_checkpoint(options.checkpoint) or options.checkpoint
    model, payload = describe_model(path)
    try:
        text = _json(payload) if options.json else f"{path}: {_table(model, payload)}"
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} was not written by a training of this version: {error!r}") from error
    print(text)
    return 0


def _json(payload: dict[str, Any]) -> str:
    return json.dumps({key: payload[key] for key in _PLAIN}, indent=2)


def _table(model: Model, payload: dict[str, Any]) -> str:
    parameters = {each.data_ptr(): each.numel() for each in model.parameters()}  # one may stand in two layers
    rows = {
        "kind": model.kind,
        "steps": f"{payload['step']} of {payload['planned_steps']} planned",
        "bytes read": f"{payload['bytes_read']:,}",
        "seconds": f"{payload['seconds']:.0f}",
        "parameters": f"{sum(parameters.values()):,}",
    }
    lines = [f"{payload['config']['run_name']}, written by version {payload['version']}"]
    return "\n".join(lines + [f"  {name:<12}{text}" for name, text in (rows | model.describe()).items()])
