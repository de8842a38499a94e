"""The kinds of model of this package side by side: as many parameters, as much training time, the same text.

Each kind is trained by the frame with the learning rates, rows and batch of its own preset, and one schedule for all;
then it is measured on held-out text, on random bytes and, with --other, on text of other scripts. Beside them stand
byte pairs, which need no training of a model. What is measured lies in OUTPUT/siblings_state, from where a run with the
same settings continues; a training that was stopped is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, argument_parser, finish, in_fresh_process, progress
from benchmarks.pieces import Pieces
from benchmarks.siblings_report import report, write_plot
from benchmarks.siblings_work import KINDS, work

_MODULE = "benchmarks.siblings"
_SETTINGS = ("data", "held_out", "other", "minutes", "threads", "parameters", "sequences", "prefixes", "length", "seed")


def parser_of_options() -> argparse.ArgumentParser:
    parser = argument_parser(_MODULE, __doc__)
    parser.add_argument("--data", type=os.path.abspath, help="text to train on; the embedded corpus without it")
    parser.add_argument("--held-out", type=os.path.abspath, help="text to measure on; held-out documents without it")
    parser.add_argument("--other", type=os.path.abspath, help="text of other scripts")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which kinds")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each training")
    parser.add_argument("--parameters", type=int, default=4_000_000, help="of hier_ae; the others' presets have 4M")
    parser.add_argument("--sequences", type=int, default=200, help="of each test set")
    parser.add_argument("--length", type=int, default=512, help="bytes of a sequence")
    parser.add_argument("--prefixes", type=int, default=1_000, help="of BrierLM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / "checkpoints" / "siblings", help="for checkpoints")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser_of_options().parse_args(arguments)
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))))
        return
    base = {name: getattr(options, name) for name in _SETTINGS} | {"keep": str(options.keep.resolve())}
    pieces = Pieces(options.output.parent / "siblings_state")

    def measured(name: str, stage: str) -> dict[str, Any]:
        progress(f"{name}: {stage}")
        task = {"baseline": name, "stage": stage, "base": base}
        return pieces.of(task, _in_process)

    found = []
    for kind in options.kinds:
        training = measured(kind, "train")
        found.append({"kind": kind, "training": training, **measured(kind, "measure")})
    pairs = measured("byte_pairs", "pairs")["rows"]
    results = {"kinds": found, "byte_pairs": pairs}
    write_plot(results, options.output.with_suffix(".png"))
    finish(options.output, report(results), results, options)


def _in_process(task: dict[str, Any]) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = str(task["base"]["threads"])
    result = in_fresh_process(_MODULE, task)
    assert result is not None  # there is no limit of time
    return result


if __name__ == "__main__":
    main()
