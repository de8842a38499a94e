"""What a GPU is used for: attention against flash-attn, nearest codes and whole training steps against plain products.

    attention    the kernels of SlidingWindowAttention, forward and backward: speed over flash-attn's own function
    codes        nearest_code in a large codebook: share of the speed of a matrix product
    utilisation  training steps of a preset: share of the speed of a matrix product that its operations are done at

What is compared takes turns in one run; medians. Products are of two square matrices, in bf16 where that is fast.
Without a GPU the script measures what is there, which says whether it works, and nothing about a GPU.

Operations of a training step, forward and backward, are those of linear layers and of attention, of which a token
counts 12·D for each one that it sees, itself included; nothing counts for what is worked out twice.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from abstractinator.components.bottlenecks.nearest_code import nearest_code
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.packing import Packing
from abstractinator.components.sliding_window_attention import Kernel, block_attention, flash_attention, flex_attention
from abstractinator.components.tokens import tokens_of
from abstractinator.components.transformer import TransformerConfig
from abstractinator.config.experiment import ExperimentConfig, load_experiment
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data import DataConfig, ReadAhead, open_corpus, train_loader
from abstractinator.device import autocast, has_bfloat16, pick_device, prepare_processor
from abstractinator.training.state import RunState, new_model
from abstractinator.training.step import train_step
from benchmarks.common import ROOT, argument_parser, finish, progress, table

_MODULE = "benchmarks.gpu_marks"
_PARTS = ("attention", "codes", "utilisation")
_MARKS = {"attention": 0.95, "codes": 0.6, "utilisation": 0.4}


class Clock:
    """Seconds of calls on a device, in turns."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def seconds(self, call: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def medians(self, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Of each call, after one that does not count."""
        for name, call in calls.items():
            progress(f"{name}: first call")
            call()
        found: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(self.repeats):
            progress(f"{', '.join(calls)} ({repeat + 1} of {self.repeats})")
            for name, call in calls.items():
                found[name].append(self.seconds(call))
        return {name: statistics.median(values) for name, values in found.items()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def product_of(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """The product of two square matrices: 2·size³ operations."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return lambda: a @ b


def attention_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, Kernel]:
    """Those that run there, by name."""
    if device.type != "cuda":
        return {"block_attention": block_attention}
    there = dtype != torch.float32 and importlib.util.find_spec("flash_attn")
    kernels: dict[str, Kernel] = {"flash_attention": flash_attention} if there else {}
    return {**kernels, "flex_attention": flex_attention, "block_attention": block_attention}


def attention(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Each kernel on rows of each size → seconds, and speed over flash-attn's own function, None without it."""
    found = []
    for tokens, heads, window in zip(options.tokens, options.heads, options.windows, strict=True):
        rows = max(1, tokens // options.row_tokens)
        packing = Packing.from_lengths(torch.full((rows,), tokens // rows, device=device))
        q, k, v = torch.randn(3, packing.total, heads, 64, dtype=dtype, device=device).unbind()
        kernels = attention_kernels(device, dtype)
        if "flash_attention" in kernels:
            kernels["flash-attn"] = _flash_attn_itself(rows, tokens // rows)
        seconds = Clock(device, options.repeats).medians(
            {name: _there_and_back(kernel, q, k, v, packing, window) for name, kernel in kernels.items()}
        )
        unit = seconds.get("flash-attn")
        shape = {"tokens": packing.total, "heads": heads, "window": window}
        found += [
            {"kernel": name, **shape, "seconds": own, "share": unit / own if unit else None}
            for name, own in seconds.items()
        ]
    return found


def _there_and_back(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int
) -> Callable[[], None]:
    own = [x.clone().requires_grad_() for x in (q, k, v)]

    def call() -> None:
        torch.autograd.grad(kernel(own[0], own[1], own[2], packing, window).sum(), own)

    return call


def _flash_attn_itself(rows: int, length: int) -> Kernel:
    """flash-attn on rows of one length, as its users call it."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int) -> Tensor:
        from flash_attn import flash_attn_func

        parts = (x.view(rows, length, *x.shape[1:]) for x in (q, k, v))
        out: Tensor = flash_attn_func(*parts, causal=True, window_size=(window - 1, 0))
        return out.flatten(0, 1)

    return kernel


def codes(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The search → seconds, operations a second of its products, and these over a product's."""
    z = torch.randn(options.vectors, options.width, dtype=dtype, device=device)
    book = torch.randn(options.codes, options.width, dtype=dtype, device=device)
    calls = {"product": product_of(options.product, dtype, device), "nearest codes": lambda: nearest_code(z, book)}
    seconds = Clock(device, options.repeats).medians(calls)
    return _share(2.0 * options.vectors * options.codes * options.width, seconds["nearest codes"], seconds, options)


def utilisation(
    experiment: ExperimentConfig, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Whole training steps, all losses → seconds, operations a second, and these over a product's."""
    model = new_model(experiment, device).train()
    assert isinstance(model, HierarchicalAELM), "operations are counted for the kind hier_ae"
    loader = train_loader(
        open_corpus(DataConfig(path=options.data)), RowLayout(experiment.sequence_length), experiment.batch_size, seed=0
    )
    count = experiment.gradient_accumulation_steps
    batches = [batch.to(device) for batch, _ in zip(loader, range(count), strict=False)]
    state = RunState.begin(experiment, model, ReadAhead(loader), experiment.max_steps or 1)
    train_step(state, iter(batches))  # sets the boundaries, on which the number of segments depends
    state.clock.position = state.clock.planned // 2
    operations = sum(operations_of(model, batch) for batch in batches)
    calls = {
        "product": product_of(options.product, dtype, device),
        "step": lambda: train_step(state, iter(batches)),
    }
    seconds = Clock(device, options.repeats).medians(calls)
    found = _share(operations, seconds["step"], seconds, options)
    return {**found, "bytes_per_second": sum(batch.ids.numel() for batch in batches) / seconds["step"]}


def operations_of(model: HierarchicalAELM, batch: Batch) -> int:
    """Operations of a training step's products on a batch, forward and backward, the optimizers apart."""
    operations = 0

    def count(layer: nn.Linear, inputs: tuple[Tensor], _: Tensor) -> None:
        nonlocal operations
        if torch.is_grad_enabled():  # forward, and the gradients of what has some
            times = 1 + layer.weight.requires_grad + inputs[0].requires_grad
            operations += 2 * times * inputs[0].numel() // inputs[0].shape[-1] * layer.weight.numel()

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Linear)]
    with autocast(batch.ids.device, True):
        compressed = model(batch).compressed
    for hook in hooks:
        hook.remove()
    packings = [tokens_of(batch.ids).packing, *(c.codes.packing for c in compressed)]
    operations += _attended(model.config.top_transformer_config.transformer, packings[-1])
    for level, packing in zip(model.levels, packings, strict=False):
        operations += _attended(level.expander.predictor.config, packing)
        if level.compressor.entropy_model is not None:
            operations += _attended(level.compressor.entropy_model.transformer.config, packing)
    return operations


def _attended(config: TransformerConfig, packing: Packing) -> int:
    pairs = int((packing.positions + 1).clamp(max=config.window).sum())
    return 12 * config.layers * config.width * pairs


def _share(operations: float, own: float, seconds: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    peak = 2.0 * options.product**3 / seconds["product"]
    return {
        "seconds": own,
        "operations_per_second": operations / own,
        "product": peak,
        "share": operations / own / peak,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(_MODULE, __doc__)
    parser.add_argument("overrides", nargs="*", help="settings of the preset, as in training: key.sub=value")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--product", type=int, default=8_192, help="side of the matrices of the product")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32_768, 131_072], help="of each shape of attention")
    parser.add_argument("--heads", type=int, nargs="+", default=[12, 8], help="of each shape, each 64 wide")
    parser.add_argument("--windows", type=int, nargs="+", default=[1_024, 128], help="of each shape")
    parser.add_argument("--row-tokens", type=int, default=2_048, help="tokens a row of attention")
    parser.add_argument("--codes", type=int, default=49_404, help="K")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--vectors", type=int, default=8_192, help="N")
    parser.add_argument("--config", type=os.path.abspath, default=str(ROOT / "experiments" / "fineweb_edu.py"))
    parser.add_argument("--data", type=os.path.abspath, help="local text to train on; the embedded corpus without it")
    options = parser.parse_args(arguments)
    if not len(options.tokens) == len(options.heads) == len(options.windows):
        parser.error("--tokens, --heads and --windows each take a number for every shape of attention")
    try:
        device = pick_device(options.device)
        experiment = load_experiment(options.config, options.overrides)
    except ValueError as error:
        parser.error(str(error))
    prepare_processor()
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    results: dict[str, Any] = {"device": _name_of(device), "type": str(dtype), "marks": _MARKS}
    lines = []
    if "attention" in options.parts:
        results["attention"] = attention(options, device, dtype)
        for case in results["attention"]:
            shape = f"{case['tokens']:,} tokens, {case['heads']} heads, window {case['window']:,}"
            lines.append([f"{case['kernel']}: {shape}", f"{1e3 * case['seconds']:,.2f}", "", _percent(case["share"])])
    measures = {"codes": codes, "utilisation": partial(utilisation, experiment)}
    for name, measure in measures.items():
        if name in options.parts:
            found = results[name] = measure(options, device, dtype)
            speed = f"{found['operations_per_second'] / 1e12:,.3f}"
            lines.append([_TITLES[name], f"{1e3 * found['seconds']:,.1f}", speed, _percent(found["share"])])
    title = f"{results['device']}, {dtype}"
    text = table(title, ["", "ms", "Tflop/s", "share"], lines)
    text += f"\nmarks: {', '.join(f'{name} {share:.0%}' for name, share in _MARKS.items())}"
    if device.type != "cuda":
        text += "\nthis is no GPU: the marks are not for it"
    elif "attention" in options.parts and not importlib.util.find_spec("flash_attn"):
        text += "\nflash-attn is not installed, so nothing is compared with it: pip install -e .[cuda]"
    finish(options.output, text, results, options)


_TITLES = {"codes": "nearest codes", "utilisation": "training step of the preset"}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, no GPU"


if __name__ == "__main__":
    main()
