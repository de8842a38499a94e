"""`abstractinator accuracy`: how exactly a checkpoint reconstructs texts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abstractinator.cli import CHECKPOINT_HELP

if TYPE_CHECKING:
    from abstractinator.cli import Commands
    from abstractinator.evaluation.accuracy import Accuracy


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "accuracy",
        help="measure reconstruction",
        description="Measures how many tokens and whole sequences a model reconstructs from its latents, and writes "
        "what it gets wrong.",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("testsets", nargs="*", type=Path, help="files that `abstractinator testset` wrote")
    parser.add_argument(
        "--data",
        type=Path,
        help="without test sets: text, cut into sequences (default: the validation text of the checkpoint's data)",
    )
    parser.add_argument("--length", type=int, default=512, help="tokens of such a sequence (default: 512)")
    parser.add_argument("--sequences", type=int, default=400, help="such sequences, at most (default: 400)")
    parser.add_argument(
        "--errors",
        type=Path,
        default=Path("reports/error_cases.jsonl"),
        help="where texts with errors go (default: reports/error_cases.jsonl)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="texts at once (default: 32)")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.set_defaults(command=_accuracy, parser=parser)


def _accuracy(options: argparse.Namespace) -> int:
    from abstractinator.atomic_file import atomic_write
    from abstractinator.checkpoints.models import load_model
    from abstractinator.contract.capabilities import Reconstructs, require
    from abstractinator.device import pick_device, prepare_processor
    from abstractinator.evaluation.accuracy import measure_accuracy
    from abstractinator.evaluation.sequences import read_sequences

    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {options.batch_size}")
    if options.testsets and options.data is not None:
        raise ValueError("--data is text to measure instead of test sets; give either of them")
    options.errors.parent.mkdir(parents=True, exist_ok=True)  # before the work: it may be refused
    sets = {str(path): read_sequences(path) for path in options.testsets}
    prepare_processor()
    model, payload = load_model(options.checkpoint, pick_device(options.device))
    require(model, Reconstructs)
    if not sets:
        sets = {"held-out text": _held_out_sequences(options, payload, model.tokenizer)}
    found: dict[str, Accuracy] = {}
    errors: list[dict[str, Any]] = []
    for name, texts in sets.items():
        found[name], cases = measure_accuracy(model, texts, batch_size=options.batch_size, name=name)
        errors += [case.plain(name) for case in cases]
    with atomic_write(options.errors) as path, open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
    if options.json:
        print(json.dumps({name: accuracy.plain() for name, accuracy in found.items()}, indent=2))
    else:
        print(_table(found, "bytes" if model.tokenizer.source is None else "tokens"))
        print(f"{len(errors):,} texts with errors: {options.errors}")
    return 0


def _held_out_sequences(options: argparse.Namespace, payload: dict[str, Any], tokenizer: Any) -> list[bytes]:
    """As many sequences as the text has, up to --sequences; a text that is shorter than one is taken whole."""
    from abstractinator.evaluation.sequences import TestSetConfig, real_sequences
    from abstractinator.evaluation.texts import held_out_documents

    config = TestSetConfig(options.sequences, options.length)
    documents = held_out_documents(payload, options.data)
    there = sum(len(tokenizer.text_ids(document)) // config.length for document in documents)
    if not there:
        return documents[: config.sequences]
    rows = real_sequences(documents, tokenizer, TestSetConfig(min(there, config.sequences), config.length))
    return [tokenizer.decode(row) for row in rows]


def _table(found: dict[str, Accuracy], unit: str) -> str:
    width = max(len(name) for name in found)
    header = f"{'':<{width}}  {unit:>9}  {'sequences':>9}  {'bytes a position':>16}  {'stored bits a byte':>18}"
    lines = [header]
    for name, accuracy in found.items():
        values = accuracy.plain()
        lines.append(
            f"{name:<{width}}  {values['token_accuracy']:>9.3%}  {values['sequence_accuracy']:>9.2%}  "
            f"{1 / max(values['positions_per_byte'], 1e-9):>16.2f}  {values['stored_bits_per_byte']:>18.2f}"
        )
    return "\n".join(lines)
