"""`abstractinator testset`: makes test sets of reconstruction."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abstractinator.cli import Commands


def add_command(commands: Commands) -> None:
    parser = commands.add_parser(
        "testset",
        help="make test sets of reconstruction",
        description="Makes two test sets of sequences of one length, for `abstractinator accuracy`: real.jsonl from "
        "held-out text, without sequences that have a rare token, and random.jsonl of random tokens; and "
        "statistics.json, what is known of the tokens.",
    )
    parser.add_argument("data", type=Path, help="held-out text: a file or folder")
    parser.add_argument("--train", type=Path, required=True, help="training text, whose tokens are counted")
    parser.add_argument("--output", type=Path, default=Path("testset"), help="a new folder (default: testset)")
    parser.add_argument("--sequences", type=int, default=5_000, help="of each set (default: 5000)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: 512)")
    parser.add_argument(
        "--percentile",
        type=float,
        default=10.0,
        help="tokens rarer in the training text than this percentile are rare (default: 10)",
    )
    parser.add_argument("--tokenizer", help="a tokenizer.json (default: bytes)")
    parser.add_argument("--text-column", default="text", help="column of the text (default: text)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.set_defaults(command=_testset, parser=parser)


def _testset(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from abstractinator.atomic_file import atomic_write
    from abstractinator.data.document_files import find_units
    from abstractinator.data.tokenizers import open_tokenizer
    from abstractinator.evaluation import sequences

    config = sequences.TestSetConfig(options.sequences, options.length, options.percentile, options.seed)
    names = ("real.jsonl", "random.jsonl", "statistics.json")
    if taken := [name for name in names if (options.output / name).exists()]:
        raise ValueError(f"{options.output / taken[0]} exists; name another folder by --output, or remove it")
    tokenizer = open_tokenizer(options.tokenizer)
    held_out = find_units(str(options.data), options.text_column)
    documents = [text for unit in held_out.validation or held_out.train for text in unit.read() if text]
    units = find_units(str(options.train), options.text_column).train
    counted = tqdm(units, desc="counting the tokens of the training text", unit="file", delay=2.0, leave=False)
    trained: set[int] = set()
    counts = sequences.token_counts(_noted((text for unit in counted for text in unit.read()), trained), tokenizer)
    if known := sum(hash(text) in trained for text in documents):
        print(f"{known:,} of {len(documents):,} documents are in the training text, too", file=sys.stderr)
    common = sequences.common_tokens(counts, config.percentile)
    real = sequences.real_sequences(documents, tokenizer, config, common)
    random = sequences.random_sequences(config, tokenizer)

    options.output.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(names, (real, random), strict=False):
        sequences.write_sequences(options.output / name, (tokenizer.decode(row) for row in rows))
    with atomic_write(options.output / names[2]) as path:
        path.write_text(json.dumps(sequences.statistics_of(counts, common)) + "\n")
    print(f"{len(common):,} tokens, {int((counts > 0).sum()):,} in the training text, {int(common.sum()):,} not rare")
    print(f"wrote {len(real):,} sequences of {config.length} tokens each: {', '.join(names[:2])}, and {names[2]}")
    print(f"in {options.output}")
    return 0


def _noted(documents: Iterable[bytes], seen: set[int]) -> Iterator[bytes]:
    """The documents; `seen` gets their hashes."""
    for document in documents:
        seen.add(hash(document))
        yield document
