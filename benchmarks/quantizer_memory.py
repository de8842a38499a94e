"""Memory and time of a quantizer with a large codebook, against vector-quantize-pytorch.

Each call runs in a process of its own. What counts is the rise of the resident memory during the call, less
what the call returns; input, parameters and buffers are there and touched before.

    first step   forward in training, the codebook moved onto the data first
    step         forward in training, running means updated
    revival      the same, with every code dead and moved
    encode       codes alone (the library's: its forward in evaluation)

Letters: K codes, D width, N vectors.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from abstractinator.components.bottlenecks.codebooks import EMACodebook
from abstractinator.components.bottlenecks.simvq import SimVQ, SimVQConfig
from abstractinator.components.bottlenecks.vq import VQ, VQConfig
from benchmarks.common import PeakMemory, argument_parser, finish, in_fresh_process, progress, table

_MODULE = "benchmarks.quantizer_memory"
_MARK = 200e6  # bytes that ours may take
_CASES = {
    "vq": ("first step", "step", "revival", "encode"),
    "simvq": ("step", "encode"),
    "library vq": ("step", "encode"),
    "library simvq": ("step", "encode"),
}


def build(kind: str, codes: int, width: int) -> nn.Module:
    """The quantizer under measurement; `library …` is vector-quantize-pytorch's."""
    if kind == "vq":
        return VQ(VQConfig(codes_per_segment=1, codebook_size=codes), width)
    if kind == "simvq":
        return SimVQ(SimVQConfig(codes_per_segment=1, codebook_size=codes), width)
    from vector_quantize_pytorch import SimVQ as LibrarySimVQ
    from vector_quantize_pytorch import VectorQuantize

    if kind == "library simvq":
        return LibrarySimVQ(dim=width, codebook_size=codes)
    return VectorQuantize(dim=width, codebook_size=codes, decay=0.99)


def call_of(kind: str, case: str, quantizer: nn.Module, z: Tensor) -> Callable[[], Any]:
    """What is measured, everything it needs being ready."""
    if kind.startswith("library"):
        quantizer.train(case != "encode")
        return lambda: quantizer(z[None])
    if case == "encode":
        return lambda: quantizer.encode(z)
    for book in quantizer.codebooks:
        if isinstance(book, EMACodebook):
            book.started.fill_(case != "first step")
            if case == "revival":
                book.counts.zero_()
    return lambda: quantizer(z)


def work(task: dict[str, Any]) -> dict[str, float | None]:
    """One call in this process → rise in bytes beyond its outputs, and seconds; None where it does not fit."""
    torch.manual_seed(0)
    kind, case = task["kind"], task["case"]
    call_of(kind, case, build(kind, 64, 16), torch.randn(32, 16, requires_grad=True))()  # loads what loads lazily
    torch.randn(64, 64) @ torch.randn(64, 64)
    if task["limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (task["limit"], task["limit"]))
    quantizer = build(kind, task["codes"], task["width"])
    z = torch.randn(task["vectors"], task["width"], requires_grad=case != "encode")
    call = call_of(kind, case, quantizer, z)
    with torch.set_grad_enabled(case != "encode"):
        peak, start = PeakMemory(), time.perf_counter()
        try:
            out = call()
        except RuntimeError as error:
            if "allocate" not in str(error):
                raise
            return {"bytes": None, "seconds": None}
        seconds = time.perf_counter() - start
        return {"bytes": max(0, peak.rise() - _size(out)), "seconds": seconds}


def _size(out: Any) -> int:
    """Bytes of the tensors in what a quantizer returned."""
    if isinstance(out, Tensor):
        return out.untyped_storage().nbytes()
    parts = out if isinstance(out, tuple) else vars(out).values()
    return sum(_size(part) for part in parts if part is not None)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases in turn, `repeats` times over; medians."""
    cases = [(kind, case) for kind in options.kinds for case in _CASES[kind]]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for repeat in range(options.repeats):
        for kind, case in cases:
            progress(f"{kind}, {case} ({repeat + 1} of {options.repeats})")
            limit = int(options.library_limit_gb * 1e9) if kind.startswith("library") else 0
            task = {"kind": kind, "case": case, "limit": limit}
            task |= {"codes": options.codes, "width": options.width, "vectors": options.vectors}
            done = in_fresh_process(_MODULE, task, exact_memory=True)
            assert done is not None  # no timeout was set
            found[kind, case].append(done)
    return [
        {"kind": kind, "case": case} | {name: _median([run[name] for run in runs]) for name in ("bytes", "seconds")}
        for (kind, case), runs in found.items()
    ]


def _median(values: list[float | None]) -> float | None:
    return None if None in values else statistics.median(v for v in values if v is not None)


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(_MODULE, __doc__)
    parser.add_argument("--codes", type=int, default=49_404, help="K")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--vectors", type=int, default=8_192, help="N")
    parser.add_argument("--kinds", nargs="+", choices=list(_CASES), default=list(_CASES))
    parser.add_argument("--library-limit-gb", type=float, default=20.0, help="address space that the library may take")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))))
        return
    cases = measure(options)
    rows = [[c["kind"], c["case"], _cell(c["bytes"], ",.0f", 1e6), _cell(c["seconds"], ".2f", 1)] for c in cases]
    title = f"K = {options.codes:,}, D = {options.width}, N = {options.vectors:,}: beyond inputs and outputs"
    text = table(title, ["quantizer", "call", "MB", "seconds"], rows)
    worst = max((c["bytes"] for c in cases if not c["kind"].startswith("library")), default=None)
    if worst is not None:
        text += f"\nours at most {worst / 1e6:,.0f} MB; the mark is {_MARK / 1e6:.0f}"
    finish(options.output, text, {"cases": cases, "worst_bytes": worst, "mark_bytes": _MARK}, options)


def _cell(value: float | None, form: str, unit: float) -> str:
    return "does not fit" if value is None else format(value / unit, form)


if __name__ == "__main__":
    main()
