"""Generation: speed against a flat byte transformer with a KV cache, memory over a long text, and quality.

    speed     new bytes per second after a prompt of held-out text, all baselines in turn; the flat transformer has
              as many parameters, untrained (its speed does not depend on that), and samples in the same way
    memory    how far the memory of a process rises from the first twentieth of a long text to its end
    quality   BrierLM (CALM, Shao et al. 2025, arXiv 2510.27688) over bytes: 100 × (Π Brier-n)^¼, n = 1 … 4, Brier-n
              being estimated from two continuations x, y of a prompt and its true one t as [x = t] + [y = t] - [x = y],
              of their first n bytes; 0 is the worst, 100 is perfect

Letters: B rows, C positions of the flat transformer's cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from abstractinator.checkpoints.models import load_model
from abstractinator.components.hierarchical.generation import MODES, stream_bytes
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.sampling import Sampler
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import build
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.data import open_corpus
from abstractinator.device import prepare_processor
from benchmarks.common import PeakMemory, argument_parser, count_parameters, finish, in_fresh_process, progress, table
from benchmarks.flat_transformer import FlatByteTransformer

_MODULE = "benchmarks.generation_speed"
_MODES = MODES
_MARKS = {1: {"plan": 10, "speculative": 2, "exact": 1}, 32: {"plan": 10, "speculative": 2, "exact": 1.5}}
_NGRAM = 4


def prompts_of(text: bytes, count: int, length: int) -> list[bytes]:
    """`count` stretches of `length` bytes and the _NGRAM bytes after each, evenly spread over the text.

    Raises ValueError where the text is too short for one.
    """
    last = len(text) - length - _NGRAM
    if last < 0:
        raise ValueError(f"the held-out text has {len(text):,} bytes; prompts of {length:,} need more")
    starts = [round(last * i / max(count - 1, 1)) for i in range(count)]
    return [text[start : start + length + _NGRAM] for start in starts]


def speed_of_ours(model: HierarchicalAELM, prompts: list[bytes], config: GenerationConfig) -> float:
    """Bytes per second, counted from when the prompts have been read."""
    pieces = stream_bytes(model, prompts, config)
    start = time.perf_counter()
    made = sum(len(piece.data) for piece in pieces)
    return made / (time.perf_counter() - start)


def speed_of_flat(model: FlatByteTransformer, rows: int, seen: int, context: int, config: GenerationConfig) -> float:
    """Bytes per second behind a prompt of `seen` bytes, of which the cache holds `context` positions."""
    cache, sample = model.empty_cache(rows, context), Sampler(config, torch.device("cpu"))
    cache.count = seen  # what the cache holds changes nothing in the time
    byte = torch.full((rows,), 32)
    start = time.perf_counter()
    for _ in range(config.max_new_bytes):
        byte = sample(model.step(byte, cache))
    return rows * config.max_new_bytes / (time.perf_counter() - start)


def measure_speed(
    model: HierarchicalAELM, text: bytes, options: argparse.Namespace, config: GenerationConfig
) -> list[dict[str, Any]]:
    """All baselines in turn, --repeats times over; medians, and the medians of the ratios within a turn."""
    flat = FlatByteTransformer.sized(count_parameters(model)).eval()
    out = []
    for rows in options.batch_sizes:
        prompts = [prompt[:-_NGRAM] for prompt in prompts_of(text, rows, options.prompt_bytes)]
        found: dict[str, list[float]] = {name: [] for name in ("flat", *_MODES)}
        for repeat in range(options.repeats):
            progress(f"{rows} at once ({repeat + 1} of {options.repeats})")
            found["flat"].append(speed_of_flat(flat, rows, options.prompt_bytes, options.flat_context, config))
            for mode in _MODES:
                found[mode].append(speed_of_ours(model, prompts, replace(config, mode=mode, seed=repeat)))
        for name, speeds in found.items():
            ratios = [ours / theirs for ours, theirs in zip(speeds, found["flat"], strict=True)]
            medians = {"bytes_per_second": statistics.median(speeds), "ratio": statistics.median(ratios)}
            out.append({"rows": rows, "name": name, "mark": _MARKS.get(rows, {}).get(name), **medians})
    return out


def work(task: dict[str, Any]) -> dict[str, int]:
    """Generates a long text in this process → by how many bytes its memory rose after the first twentieth."""
    model, _ = load_model(task["checkpoint"], torch.device("cpu"))
    config = GenerationConfig(mode=task["mode"], max_new_bytes=task["bytes"], temperature=1.0, top_p=1.0)
    made, recent, peak, texts = 0, b"\n", None, itertools.count()
    while made < task["bytes"]:  # where the model ends its text, another one is begun
        for piece in stream_bytes(model, [recent], replace(config, seed=next(texts))):
            made, recent = made + len(piece.data), (recent + piece.data)[-64:]
            if peak is None and made >= task["bytes"] / 20:
                peak = PeakMemory()
            if made >= task["bytes"]:
                break
    assert peak is not None
    return {"rise": peak.rise()}


def brier(model: HierarchicalAELM, prompts: list[bytes], mode: str, batch_size: int) -> list[float]:
    """Brier-n for n = 1 … _NGRAM, of prompts with their true continuations, sampled as the model is, unshaped."""
    sums = [0] * _NGRAM
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        config = GenerationConfig(mode, max_new_bytes=_NGRAM, temperature=1.0, top_p=1.0, seed=start)
        texts = model.generate_bytes([prompt[:-_NGRAM] for prompt in part] * 2, **vars(config))
        for prompt, x, y in zip(part, texts[: len(part)], texts[len(part) :], strict=True):
            true = prompt[-_NGRAM:]
            for n in range(1, _NGRAM + 1):
                sums[n - 1] += (x[:n] == true[:n]) + (y[:n] == true[:n]) - (x[:n] == y[:n])
    return [total / len(prompts) for total in sums]


def measure_quality(model: HierarchicalAELM, text: bytes, options: argparse.Namespace) -> list[dict[str, Any]]:
    """BrierLM of every mode on the same prompts, and a sample of each."""
    prompts = prompts_of(text, options.quality_prompts, options.quality_prompt_bytes)
    out = []
    for mode in _MODES:
        progress(f"quality of {mode}")
        parts = brier(model, prompts, mode, options.quality_batch_size)
        score = 100 * math.prod(max(part, 0.0) for part in parts) ** (1 / _NGRAM)
        config = GenerationConfig(mode, max_new_bytes=options.sample_bytes, seed=0)
        prompt = prompts[len(prompts) // 2][:-_NGRAM]
        sample = model.generate_bytes(prompt, **vars(config)).decode("utf-8", "replace")
        out.append({"name": mode, "brier_lm": score, "brier": parts, "prompt_end": _end(prompt), "sample": sample})
    return out


def _end(prompt: bytes) -> str:
    return prompt[-80:].decode("utf-8", "replace")


def report(speeds: list[dict[str, Any]], memory: dict[str, int], quality: list[dict[str, Any]], text_bytes: int) -> str:
    """Tables of speed and of the rest, and the samples."""
    lines = [
        [f"{s['name']}, batch {s['rows']}", f"{s['bytes_per_second']:,.0f}", f"{s['ratio']:.2f}", f"{s['mark'] or '–'}"]
        for s in speeds
    ]
    parts = [table("speed", ["", "bytes/s", "× flat", "mark"], lines)]
    more = [
        [q["name"], f"{memory[q['name']] / 1e6:.1f}" if q["name"] in memory else "–", f"{q['brier_lm']:.2f}"]
        for q in quality
    ]
    parts.append(table(f"memory over {text_bytes:,} bytes, and quality", ["", "MB more", "BrierLM"], more))
    parts += [f"── sample, {q['name']} ──\n{q['prompt_end']}▸{q['sample']}" for q in quality]
    return "\n\n".join(parts)


def parser_of_options() -> argparse.ArgumentParser:
    parser = argument_parser(_MODULE, __doc__)
    parser.add_argument(
        "--checkpoint",
        help="a checkpoint_step*.pt, or a folder of them: the newest; its held-out text gives the prompts",
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--prompt-bytes", type=int, default=512)
    parser.add_argument("--new-bytes", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--flat-context", type=int, default=1024, help="C")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-bytes", type=int, default=100_000)
    parser.add_argument("--memory-modes", nargs="*", choices=_MODES, default=list(_MODES))
    parser.add_argument("--quality-prompts", type=int, default=512)
    parser.add_argument("--quality-prompt-bytes", type=int, default=256)
    parser.add_argument("--quality-batch-size", type=int, default=64)
    parser.add_argument("--sample-bytes", type=int, default=240)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of_options()
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))))
        return
    if options.checkpoint is None:
        parser.error("--checkpoint is needed: how many guesses come true depends on the weights")
    prepare_processor()
    model, payload = load_model(options.checkpoint, torch.device("cpu"))
    experiment = build(ExperimentConfig, payload["config"])
    text = b"".join(open_corpus(experiment.data).validation_documents())
    config = GenerationConfig(
        max_new_bytes=options.new_bytes, temperature=options.temperature, top_p=options.top_p, seed=0
    )
    speeds = measure_speed(model, text, options, config)
    memory = {}
    for mode in options.memory_modes:
        progress(f"memory of {mode}")
        task = {"checkpoint": str(options.checkpoint), "mode": mode, "bytes": options.memory_bytes}
        done = in_fresh_process(_MODULE, task, exact_memory=True)
        assert done is not None  # no timeout was set
        memory[mode] = done["rise"]
    quality = measure_quality(model, text, options)
    results = {"speed": speeds, "memory_rise_bytes": memory, "quality": quality}
    finish(options.output, report(speeds, memory, quality, options.memory_bytes), results, options)


if __name__ == "__main__":
    main()
