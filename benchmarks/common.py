"""What the benchmarks share: tables, result files, fresh processes and the memory they take."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from abstractinator.atomic_file import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def argument_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has: --output and the hidden --worker."""
    name = module.rsplit(".", 1)[-1]
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=type(
            "Formatter", (argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter), {}
        ),
    )
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="where the results go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def progress(text: str) -> None:
    """One line that replaces the one before it (on a terminal), on stderr."""
    end, start = ("", "\r\x1b[K") if sys.stderr.isatty() else ("\n", "")
    print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text; the first column is flush left, the others flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells])

    rule = "─" * len(line(header))
    return "\n".join([title, rule, line(header), rule, *map(line, rows), rule])


def finish(output: Path, text: str, results: dict[str, Any], settings: argparse.Namespace) -> None:
    """Prints the table and writes the results as JSON, with the settings and the machine they belong to.

    Only the name of a file or folder is kept: results are shown to others, who do not have this machine's folders.
    """
    kept = {k: _shown(v) for k, v in vars(settings).items() if k not in ("output", "worker")}
    where = machine() | {"time": time.strftime("%Y-%m-%d %H:%M:%S")}
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as path:
        path.write_text(json.dumps({"settings": kept, "machine": where, **results}, indent=2) + "\n")
    progress("")
    print(text)


def _shown(value: Any) -> Any:
    if isinstance(value, Path | str) and Path(value).is_absolute():
        return Path(value).name
    return str(value) if isinstance(value, Path) else value


def machine() -> dict[str, Any]:
    """What the numbers are measured on."""
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: *(.+)", listed.read_text()) if listed.exists() else []
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def in_fresh_process(
    module: str, task: dict[str, Any], timeout: float | None = None, exact_memory: bool = False
) -> dict[str, Any] | None:
    """What `module`, run as a script with `--worker TASK`, prints as JSON on its last line.

    exact_memory: buffers are returned to the system when they are freed (glibc), so that the peak is what was
    in use at once. None if it took longer than `timeout` seconds. Raises RuntimeError when it fails.
    """
    command = [sys.executable, "-m", module, "--worker", json.dumps(task)]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if exact_memory else {})
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"{module} ended with {done.returncode} on {task}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def end_with(parent: int) -> None:
    """From now on this process ends when `parent`, the process that started it, does: kill -9 tells no child."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class PeakMemory:
    """How far the memory in use rises above where it stands when this is made: of a GPU if one is given, otherwise the
    resident memory of this process.

    The system's high-water mark cannot be set back, so memory that was freed before is first filled up with
    ballast; from then on every byte that is taken shows.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None
        gc.collect()
        if self._gpu is not None:
            torch.cuda.reset_peak_memory_stats(self._gpu)
            self._before = torch.cuda.memory_allocated(self._gpu)
            return
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        resident = psutil.Process().memory_info().rss
        self._ballast = np.ones(max(0, _high_water() - resident), dtype=np.uint8)
        self._before = psutil.Process().memory_info().rss

    def rise(self) -> int:
        """Bytes between the highest point so far and the beginning."""
        peak = _high_water() if self._gpu is None else torch.cuda.max_memory_allocated(self._gpu)
        return max(0, peak - self._before)


def _high_water() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
