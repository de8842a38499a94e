"""The command line: `abstractinator train | generate | evaluate | info`.

A user's mistake ends in one clear line and exit status 2, never in a traceback; a stop by Ctrl-C or SIGTERM
in 130 or 143, after a checkpoint was written; a reader who went away (`| head`) quietly in 141, and a training that
notices it in the middle writes a checkpoint first.
"""

from __future__ import annotations

import argparse
import codecs
import difflib
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from abstractinator import __version__
from abstractinator.evaluation.options import EvaluationOptions, add_options


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand and returns the exit status."""
    options = _options(_parser(), arguments)
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what it cannot show shall not cost the rest of what is said
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        status = command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Nothing more can be said; what is left in the buffers must not raise again at exit.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(f"abstractinator: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("abstractinator: stopped", file=sys.stderr)
        return 130


def _options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The parsed command line. Overrides may stand anywhere in it: argparse alone takes one run of them."""
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command is not _train or any(word.startswith("-") for word in rest)):
        command: argparse.ArgumentParser = options.parser
        command.error(f"unrecognized arguments: {' '.join(rest)}{_advice(command, rest)}")
    if rest:
        options.overrides += rest
    return options


def _advice(command: argparse.ArgumentParser, words: list[str]) -> str:
    """The option that the first unknown one resembles, in words."""
    wrong = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
    near = difflib.get_close_matches(wrong, [name for action in command._actions for name in action.option_strings], 1)
    return f"; did you mean {near[0]}?" if near else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="abstractinator", description="Bytes of text into learned discrete codes, and back."
    )
    parser.add_argument("--version", action="version", version=f"abstractinator {__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | generate | evaluate | info")

    train = commands.add_parser(
        "train",
        prog=_called("train"),
        help="train a model",
        description="Trains a model; Ctrl-C writes a checkpoint.",
    )
    train.add_argument(
        "--config", type=Path, help="a Python file with one literal, exp_config = {…} (default: ./config.py, if there)"
    )
    train.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings over those of the file")
    train.add_argument("--show", action="store_true", help="print the resolved settings as JSON and do nothing")
    train.set_defaults(command=_train, parser=train)

    generate = commands.add_parser("generate", help="continue a prompt", description="Continues a prompt.")
    generate.add_argument("checkpoint", help="a checkpoint_step*.pt, or a folder of them: the newest")
    generate.add_argument(
        "prompt", help="text to continue; - reads it from standard input, and -- goes before one that begins with -"
    )
    generate.add_argument(
        "--mode",
        choices=("plan", "exact", "speculative"),
        default="plan",
        help="plan (default) is the fastest, exact the best",
    )
    generate.add_argument("--max-new-bytes", type=int, default=256, help="(default: 256)")
    generate.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    generate.add_argument("--top-k", type=int, default=0, help="0 is all (default)")
    generate.add_argument("--top-p", type=float, default=0.95, help="1 is all (default: 0.95)")
    generate.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        default=0,
        help="no string of about so many bytes comes twice; 0 is off (default)",
    )
    generate.add_argument("--stop", action="append", default=[], help="end before this text; may be given many times")
    generate.add_argument("--seed", type=int, default=None, help="for the same text again (default: another each time)")
    generate.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    generate.set_defaults(command=_generate, parser=generate)

    evaluate = commands.add_parser(
        "evaluate",
        prog=_called("evaluate"),
        help="run lm-evaluation-harness",
        description="Runs tasks of lm-evaluation-harness on a checkpoint, or on any of the harness's own models.",
    )
    add_options(evaluate)
    evaluate.set_defaults(command=_evaluate, parser=evaluate)

    info = commands.add_parser("info", help="what a checkpoint is", description="Shows what a checkpoint holds.")
    info.add_argument("checkpoint", help="a checkpoint_step*.pt, or a folder of them: the newest")
    info.add_argument("--json", action="store_true", help="settings and progress as JSON")
    info.set_defaults(command=_info, parser=info)
    return parser


def _called(command: str) -> str:
    """How the command was called: by its script in the project's folder, or as installed."""
    script = Path(sys.argv[0]).name
    return f"python {script}" if script == f"{command}.py" else f"abstractinator {command}"


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

    from abstractinator.training.loop import Interrupted, train

    try:
        train(config)
    except Interrupted as stop:
        print(f"abstractinator: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    return 0


def _generate(options: argparse.Namespace) -> int:
    from abstractinator.components.hierarchical.generation import check_prompts, stream_bytes
    from abstractinator.components.sampling import GenerationConfig
    from abstractinator.data import text_to_bytes
    from abstractinator.device import pick_device, prepare_processor
    from abstractinator.training.run_state import load_model

    prompt = sys.stdin.buffer.read() if options.prompt == "-" else text_to_bytes(options.prompt)
    check_prompts([prompt])
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
    pieces = (piece.data for piece in stream_bytes(model, [prompt], config))
    for data in _whole_characters(pieces) if sys.stdout.isatty() else pieces:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    wanted = EvaluationOptions.of(options)

    from abstractinator.device import prepare_processor
    from abstractinator.evaluation.harness import evaluate, leave_other_processes

    prepare_processor()
    try:
        evaluate(wanted)
    finally:
        leave_other_processes()
    return 0


def _whole_characters(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """For a terminal: a cut character waits for its rest, a broken one is replaced, and the prompt gets its line."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield decoder.decode(piece).encode()
    yield decoder.decode(b"", final=True).encode() + b"\n"


def _info(options: argparse.Namespace) -> int:
    import torch

    from abstractinator.checkpoints.checkpoint_file import latest_checkpoint
    from abstractinator.training.run_state import load_model

    path = latest_checkpoint(options.checkpoint) or options.checkpoint
    model, payload = load_model(path, torch.device("cpu"))
    config = payload["config"]
    if options.json:
        shown = {key: payload[key] for key in ("version", "config", "step", "total_steps", "bytes_read", "seconds")}
        print(json.dumps(shown, indent=2))
        return 0
    print(f"{path}: {config['run_name']}, written by version {payload['version']}")
    print(f"  steps       {payload['step']} of {payload['total_steps']}")
    print(f"  bytes read  {payload['bytes_read']:,}")
    print(f"  seconds     {payload['seconds']:.0f}")
    print(f"  parameters  {sum(p.numel() for p in model.parameters()):,}")
    for number, level in enumerate(model.levels, 1):
        segmentation, vocabulary = level.compressor.config.segmentation, level.compressor.code_vocabulary
        threshold = (
            f" at {float(level.compressor.segmenter.threshold):.3f} nats" if level.compressor.entropy_model else ""
        )
        print(
            f"  level {number}     {segmentation.rule}{threshold}, at most {segmentation.max_tokens_per_code} tokens a "
            f"code; {vocabulary.slots} × {vocabulary.codebook_size} {level.compressor.config.quantizer.kind} codes"
        )
    top = config["model"]["top_transformer_config"]["transformer"]
    print(f"  top         {top['layers']} layers, {top['width']} wide, window {top['window']} codes")
    return 0


def _quiet_libraries() -> None:
    """Log lines that no user of this program can act on."""
    for name in ("datasets", "transformers", "torch", "torchdata"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
