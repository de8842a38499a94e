"""The command line: `abstractinator train | generate | evaluate | accuracy | brier | retrieval | testset | info`.

A user's mistake ends in one clear line on standard error and exit status 2, never in a traceback. A stop by Ctrl-C,
SIGTERM or SIGHUP ends in 130, 143 or 129, after a checkpoint was written; a reader who went away (`| head`) quietly in
141, and a training that notices it writes a checkpoint first.
"""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable

from abstractinator import __version__
from abstractinator.cli import accuracy, brier, evaluate, generate, info, retrieval, testset, train
from abstractinator.processor import limit_kernels, limit_spinning

_COMMANDS = {
    "train": train,
    "generate": generate,
    "evaluate": evaluate,
    "accuracy": accuracy,
    "brier": brier,
    "retrieval": retrieval,
    "testset": testset,
    "info": info,
}


def run(arguments: list[str] | None) -> int:
    """Runs a subcommand and returns the exit status."""
    _open_standard_streams()
    limit_spinning()
    limit_kernels()
    options = _options(parser(), arguments)
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that it cannot show must not cost the rest
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
    except (ValueError, OSError, ImportError) as error:
        print(f"abstractinator: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("abstractinator: stopped", file=sys.stderr)
        return 130


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        text += "; install what this command needs, such as pip install 'abstractinator[data,eval,tracking]'"
    return text


def _open_standard_streams() -> None:
    """A standard stream that the caller has closed becomes the null device, so that no file gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  for good


def _options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The parsed command line. Overrides may stand anywhere in it: argparse alone takes one run of them."""
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        if getattr(options, "passes_on", False):
            options.rest = rest
            return options
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


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="abstractinator", description="Trains and runs byte-level models of text.")
    whole.add_argument("--version", action="version", version=f"abstractinator {__version__}")
    commands = whole.add_subparsers(required=True, metavar=" | ".join(_COMMANDS))
    for module in _COMMANDS.values():
        module.add_command(commands)
    return whole


def _quiet_libraries() -> None:
    """Log lines that no user of this program can act on."""
    for name in ("datasets", "transformers", "torch", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
