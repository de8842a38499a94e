"""Training speed beside another program that keeps one core busy, and whether `max_minutes` is kept there.

Each training runs in a process of its own, in turns: with the default threads and with one thread, on an idle machine
and beside a process that computes without a pause. At the end one training is limited in time, and the other program
starts when a quarter of the time is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, argument_parser, finish, progress, table

_MODULE = "benchmarks.shared_cores"
_CASES = {"idle": False, "one core busy": True}
_THREADS = {"default threads": {}, "one thread": {"OMP_NUM_THREADS": "1"}}
_SHARE = 0.8  # of the better of both speeds that the default must reach beside the other program
_TIME = 0.1  # by how much the time of a limited training may differ


@contextlib.contextmanager
def busy_core(after: float = 0.0) -> Iterator[None]:
    """A process that computes without a pause, from `after` seconds on."""
    started: list[subprocess.Popen[bytes]] = []
    timer = threading.Timer(after, lambda: started.append(subprocess.Popen([sys.executable, "-c", "while True: pass"])))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for process in started:
            process.kill()
            process.wait()


def train(config: Path, overrides: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The summary of a training with a short measurement of held-out text. Raises RuntimeError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "abstractinator", "train", "--config", str(config.resolve())]
        settings = ["project_name=None", "data.validation_bytes=4096", f"checkpoint_dir={folder}", *overrides]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*command, *settings], cwd=folder, env=os.environ | {"PYTHONPATH": path} | environment,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the training failed: {done.stderr[-2000:]}")
        return json.loads((Path(folder) / "summary.json").read_text())


def speeds(config: Path, overrides: list[str], repeats: int) -> dict[str, dict[str, list[float]]]:
    """case → threads → bytes per second of each repeat."""
    found: dict[str, dict[str, list[float]]] = {case: {name: [] for name in _THREADS} for case in _CASES}
    for repeat in range(repeats):
        for case, is_busy in _CASES.items():
            for name, environment in _THREADS.items():
                progress(f"{case}, {name}: {repeat + 1} of {repeats}")
                with busy_core() if is_busy else contextlib.nullcontext():
                    summary = train(config, overrides, environment)
                found[case][name].append(summary["train_bytes_per_second"])
    return found


def rows_of_table(found: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    rows = []
    for case, by_threads in found.items():
        medians = {name: statistics.median(values) for name, values in by_threads.items()}
        share = medians["default threads"] / max(medians.values())
        mark = "" if not _CASES[case] else " ✓" if share >= _SHARE else " ✗"
        rows.append([case, *(f"{median / 1e3:.1f}" for median in medians.values()), f"{share:.2f}{mark}"])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(_MODULE, __doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "config.py", help="settings of the training")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--repeats", type=int, default=3, help="medians are over these")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the limited training; 0 leaves it out")
    parser.add_argument("overrides", nargs="*", help="settings of the training, such as batch_size=4")
    options = parser.parse_args(arguments)
    steps = [f"max_steps={options.steps}", "max_minutes=None", *options.overrides]
    found = speeds(options.config, steps, options.repeats)
    text = table("kB/s of training", ["", *_THREADS, "share of the better"], rows_of_table(found))
    results: dict[str, Any] = {"bytes_per_second": found}
    if options.minutes:
        progress("limited in time")
        limit = 60 * options.minutes
        with busy_core(after=limit / 4):
            summary = train(options.config, [f"max_minutes={options.minutes}", *options.overrides], {})
        results["limited"] = {"limit": limit, "seconds": summary["seconds"], "steps": summary["steps"]}
        mark = "✓" if abs(summary["seconds"] / limit - 1) <= _TIME else "✗"
        text += f"\nmax_minutes={options.minutes:g}: {summary['seconds']:.0f} s in {summary['steps']} steps {mark}"
    finish(options.output, text, results, options)


if __name__ == "__main__":
    main()
