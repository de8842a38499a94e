"""`abstractinator retrieval`: whether a checkpoint's vectors tell what texts are about."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from abstractinator.cli import CHECKPOINT_HELP

if TYPE_CHECKING:
    from abstractinator.cli import Commands
    from abstractinator.evaluation.retrieval import Found


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "retrieval",
        help="measure embeddings",
        description="Measures whether one half of a paragraph finds the other among many by its vector, beside a bag "
        "of byte n-grams.",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("--data", type=Path, help="text (default: the validation text of the checkpoint's data)")
    parser.add_argument("--pairs", type=int, default=1_000, help="paragraphs (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of paragraphs (default: 0)")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.set_defaults(command=_retrieval, parser=parser)


def _retrieval(options: argparse.Namespace) -> int:
    if options.pairs < 2:
        raise ValueError(f"--pairs must be at least 2, not {options.pairs}")
    if options.seed < 0:
        raise ValueError(f"--seed must be 0 or more, not {options.seed}")

    from abstractinator.checkpoints.models import load_model
    from abstractinator.contract.capabilities import Embeds, require
    from abstractinator.device import pick_device, prepare_processor
    from abstractinator.evaluation.retrieval import choose_pairs, embedded, retrieve, retrieve_by_ngrams
    from abstractinator.evaluation.texts import held_out_documents

    prepare_processor()
    model, payload = load_model(options.checkpoint, pick_device(options.device))
    longest = require(model, Embeds).longest_text
    pairs = choose_pairs(held_out_documents(payload, options.data), options.pairs, longest, options.seed)
    queries, targets = (embedded(model, [getattr(pair, name) for pair in pairs]) for name in ("query", "target"))
    rows = {f"{model.kind}, {payload['step']} steps": retrieve(queries, targets), "n-grams": retrieve_by_ngrams(pairs)}
    if options.json:
        print(json.dumps({name: asdict(found) for name, found in rows.items()}, indent=2))
    else:
        print(_table(rows, len(pairs), longest))
    return 0


def _table(rows: dict[str, Found], pairs: int, longest: int) -> str:
    width = max(map(len, rows))
    lines = [f"the other half among {pairs:,} paragraphs, halves of at most {longest} bytes"]
    lines.append(f"{'':<{width}}  {'recall@1':>9}  {'recall@10':>9}  {'MRR':>7}")
    for name, found in rows.items():
        lines.append(f"{name:<{width}}  {found.recall_1:>9.2%}  {found.recall_10:>9.2%}  {found.mrr:>7.4f}")
    model, baseline = rows.values()
    return "\n".join([*lines, f"ratio of MRR to that of n-grams: {model.mrr / max(baseline.mrr, 1e-9):.2f}"])
