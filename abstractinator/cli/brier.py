"""`abstractinator brier`: BrierLM of a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from abstractinator.cli import CHECKPOINT_HELP

if TYPE_CHECKING:
    from abstractinator.cli import Commands
    from abstractinator.evaluation.brier import BrierLM


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "brier",
        help="measure samples",
        description="Measures BrierLM: how well samples of the next 1 to 4 bytes agree with the text. It needs no "
        "likelihood, so every model that generates can be compared by it.",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("--data", type=Path, help="text (default: the validation text of the checkpoint's data)")
    parser.add_argument("--prefixes", type=int, default=2_000, help="places in the text (default: 2000)")
    parser.add_argument("--context", type=int, default=256, help="bytes before each place (default: 256)")
    parser.add_argument("--batch-size", type=int, default=64, help="prefixes at once (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of places and samples (default: 0)")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.set_defaults(command=_brier, parser=parser)


def _brier(options: argparse.Namespace) -> int:
    for name in ("prefixes", "context", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    if options.seed < 0:
        raise ValueError(f"--seed must be 0 or more, not {options.seed}")

    from abstractinator.checkpoints.models import load_model
    from abstractinator.contract.capabilities import Generates, require
    from abstractinator.device import pick_device, prepare_processor
    from abstractinator.evaluation.brier import brier_lm, choose_prefixes, unigram_brier_lm
    from abstractinator.evaluation.texts import held_out_documents

    prepare_processor()
    model, payload = load_model(options.checkpoint, pick_device(options.device))
    require(model, Generates)
    documents = held_out_documents(payload, options.data)
    prefixes = choose_prefixes(documents, options.prefixes, options.context, options.seed)
    rows = {
        f"{model.kind}, {payload['step']} steps": brier_lm(
            model, prefixes, batch_size=options.batch_size, seed=options.seed
        ),
        "bytes by their frequency": unigram_brier_lm(documents, prefixes, options.seed),
    }
    if options.json:
        print(json.dumps({name: found.plain() for name, found in rows.items()}, indent=2))
    else:
        print(_table(rows, len(prefixes), options.context))
    return 0


def _table(rows: dict[str, BrierLM], prefixes: int, context: int) -> str:
    width = max(map(len, rows))
    lines = [f"BrierLM at {prefixes:,} places, after {context} bytes each"]
    lines.append(f"{'':<{width}}  {'BrierLM':>8}  {'95 %':>16}  " + "".join(f"{f'Brier-{n}':>10}" for n in range(1, 5)))
    for name, found in rows.items():
        interval = f"{found.low:.2f} … {found.high:.2f}"
        scores = "".join(f"{score:>10.4f}" for score in found.scores)
        lines.append(f"{name:<{width}}  {found.value:>8.2f}  {interval:>16}  {scores}")
    return "\n".join(lines)
