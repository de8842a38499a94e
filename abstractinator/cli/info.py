"""`abstractinator info`: what a checkpoint holds."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from abstractinator.cli import CHECKPOINT_HELP

if TYPE_CHECKING:
    from abstractinator.cli import Commands

_PLAIN = ("version", "kind", "config", "step", "planned_steps", "bytes_read", "seconds")


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("info", help="what a checkpoint is", description="Shows what a checkpoint holds.")
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("--json", action="store_true", help="settings and progress as JSON")
    parser.set_defaults(command=_info, parser=parser)


def _info(options: argparse.Namespace) -> int:
    import torch

    from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
    from abstractinator.checkpoints.models import load_model

    path = latest_checkpoint(options.checkpoint) or options.checkpoint
    model, payload = load_model(path, torch.device("cpu"))
    if options.json:
        print(json.dumps({key: payload[key] for key in _PLAIN}, indent=2))
        return 0
    print(f"{path}: {payload['config']['run_name']}, written by version {payload['version']}")
    rows = {
        "kind": model.kind,
        "steps": f"{payload['step']} of {payload['planned_steps']} planned",
        "bytes read": f"{payload['bytes_read']:,}",
        "seconds": f"{payload['seconds']:.0f}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
    }
    for name, text in (rows | model.describe()).items():
        print(f"  {name:<12}{text}")
    return 0
