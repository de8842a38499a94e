"""`abstractinator retrieval`: whether a checkpoint's vectors find the other half of a paragraph."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from abstractinator.cli import CHECKPOINT_HELP

if TYPE_CHECKING:
    from abstractinator.cli import Commands
    from abstractinator.evaluation.retrieval import Ranks, Retrieval


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "retrieval",
        help="find the other half of a paragraph",
        description="Measures how often a model's vector of half a paragraph is nearest to that of the other half, "
        "beside a bag of byte n-grams.",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("--data", type=Path, help="text (default: the validation text of the checkpoint's data)")
    parser.add_argument("--pairs", type=int, default=1000, help="paragraphs (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="that draws the paragraphs (default: 0)")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.set_defaults(command=_retrieval, parser=parser)


def _retrieval(options: argparse.Namespace) -> int:
    from abstractinator.checkpoints.models import load_model
    from abstractinator.contract.capabilities import Embeds, require
    from abstractinator.device import pick_device, prepare_processor
    from abstractinator.evaluation.retrieval import measure_retrieval
    from abstractinator.evaluation.texts import held_out_documents

    prepare_processor()
    model, payload = load_model(options.checkpoint, pick_device(options.device))
    require(model, Embeds)
    documents = held_out_documents(payload, options.data)
    found = measure_retrieval(model, documents, pairs=options.pairs, seed=options.seed)
    print(json.dumps(found.plain(), indent=2) if options.json else _table(found, model.kind))
    return 0


def _table(found: Retrieval, kind: str) -> str:
    def line(name: str, ranks: Ranks) -> str:
        return f"{name:<16}{ranks.recall_at_1:>10.1%}{ranks.recall_at_10:>11.1%}{ranks.mrr:>8.3f}"

    return "\n".join(
        [
            f"{found.pairs:,} paragraphs, {found.bytes_a_half:.0f} bytes a half",
            f"{'':<16}{'recall@1':>10}{'recall@10':>11}{'MRR':>8}",
            line(kind, found.model),
            line("byte n-grams", found.ngrams),
            f"MRR over that of the n-grams: {found.ratio:.2f} ×",
        ]
    )
