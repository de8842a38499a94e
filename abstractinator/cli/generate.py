"""`abstractinator generate`: continues a prompt."""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from abstractinator.cli import CHECKPOINT_HELP

if TYPE_CHECKING:
    from abstractinator.cli import Commands

_LONG_PROMPT = 1 << 16  # bytes from which on reading a prompt takes a while


def add_command(commands: Commands) -> None:
    parser = commands.add_parser("generate", help="continue a prompt", description="Continues a prompt.")
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument(
        "prompt",
        help="text to continue, '' for the beginning of a document; - reads it from standard input, and -- goes before "
        "one that begins with -",
    )
    parser.add_argument("--mode", help="one of the model's ways to generate (default: its first one)")
    parser.add_argument("--max-new-bytes", type=int, default=256, help="(default: 256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is all (default)")
    parser.add_argument("--top-p", type=float, default=0.95, help="1 is all (default: 0.95)")
    parser.add_argument(
        "--no-repeat-ngram-size", type=int, default=0, help="forbid repeated n-grams of bytes; 0 is off (default)"
    )
    parser.add_argument("--stop", action="append", default=[], help="end before this text; may be given many times")
    parser.add_argument("--seed", type=int, default=None, help="for the same text again (default: another each time)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.set_defaults(command=_generate, parser=parser)


def _generate(options: argparse.Namespace) -> int:
    from abstractinator.checkpoints.models import load_model
    from abstractinator.contract.capabilities import Generates, require
    from abstractinator.contract.generation_config import GenerationConfig
    from abstractinator.contract.tokenizer import text_to_bytes
    from abstractinator.device import pick_device, prepare_processor

    prompt = sys.stdin.buffer.read() if options.prompt == "-" else text_to_bytes(options.prompt)
    config = GenerationConfig(
        mode=options.mode,
        max_new_bytes=options.max_new_bytes,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        stop=tuple(options.stop),
        seed=options.seed,
    )
    prepare_processor()
    model, _ = load_model(options.checkpoint, pick_device(options.device))
    if len(prompt) >= _LONG_PROMPT:
        print(f"reading a prompt of {len(prompt):,} bytes", file=sys.stderr)
    pieces = (piece.data for piece in require(model, Generates).stream([prompt], config))
    for data in _whole_characters(pieces) if sys.stdout.isatty() else pieces:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0


def _whole_characters(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """For a terminal: a cut character waits for its rest, a broken one is replaced, and the text ends its line."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield decoder.decode(piece).encode()
    yield decoder.decode(b"", final=True).encode() + b"\n"
