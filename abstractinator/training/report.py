"""What a run shows of itself: metrics, plots, samples, a reconstruction, the closing table and summary.json."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from abstractinator.atomic_file import whole_file
from abstractinator.components.hierarchical.hierarchical_autoencoder import HierarchicalAutoencoder, Losses
from abstractinator.components.tokens import Tokens, pack_bytes
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.data import ByteTokenizer, text_to_bytes
from abstractinator.evaluation.held_out import HeldOutReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from abstractinator.training.run_state import RunState

_RECONSTRUCTED_BYTES = 400


@dataclass(frozen=True)
class Summary:
    """What summary.json holds, the fields of held_out side by side with the others.

    train_bytes_per_second: bytes trained on over the time in optimizer steps. seconds: the whole loop, with the
    measurements, samples and checkpoints in it, but without the last measurement. Both go over all sessions.
    """

    run_name: str
    held_out: HeldOutReport
    train_bytes_per_second: float
    peak_memory_bytes: int
    parameters: int
    steps: int
    seconds: float

    @classmethod
    def of(cls, state: RunState, measured: HeldOutReport, peak_memory: int) -> Summary:
        """The summary of a run and its last measurement."""
        return cls(
            run_name=state.config.run_name,
            held_out=measured,
            train_bytes_per_second=state.bytes_read / max(state.training_seconds, 1e-9),
            peak_memory_bytes=peak_memory,
            parameters=sum(parameter.numel() for parameter in state.model.parameters()),
            steps=state.step,
            seconds=state.seconds,
        )

    def write(self, path: Path) -> None:
        """Writes the summary as JSON, whole or not at all."""
        plain = asdict(self)
        measured = plain.pop("held_out")
        measured["held_out_bytes"] = measured.pop("bytes")
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(plain | measured, indent=2) + "\n")

    def table(self) -> str:
        """The summary for people."""
        measured = self.held_out
        rows = [
            ("bits per byte, exact", f"{measured.bits_per_byte_exact:.3f}"),
            ("bits per byte, two-part", f"{measured.bits_per_byte_two_part:.3f}"),
            ("bytes reconstructed", f"{measured.byte_accuracy:.2%}"),
            ("  with shuffled codes", f"{measured.byte_accuracy_shuffled_codes:.2%}"),
            ("sequences reconstructed whole", f"{measured.sequence_accuracy:.2%}"),
        ]
        for number, level in enumerate(measured.levels, 1):
            rows += [
                (f"level {number}: bytes per code", f"{level.bytes_per_code:.2f}"),
                (f"level {number}: raw code bits per byte", f"{level.raw_code_bits_per_byte:.2f}"),
                (f"level {number}: codebook used", f"{level.codebook_used_fraction:.1%}"),
            ]
        rows += [
            ("training", f"{self.steps} steps, {self.seconds:.0f} s"),
            ("bytes per second of training", f"{self.train_bytes_per_second / 1e3:.1f} kB"),
            ("peak memory", f"{self.peak_memory_bytes / 2**30:.2f} GiB"),
            ("parameters", f"{self.parameters / 1e6:.2f}M"),
        ]
        title = f"{self.run_name}: held-out text, {measured.bytes / 1e3:.0f} kB"
        lines = [f"  {name:<34}{value:>28}" for name, value in rows]
        return "\n".join([title, "─" * 64, *lines])


def loss_metrics(losses: Losses) -> dict[str, float]:
    """The losses of a training batch; likelihoods in bits per byte."""
    bits = 1 / math.log(2)
    metrics = {
        "train/loss": losses.total.item(),
        "train/bits_per_byte_exact": losses.predict.item() * bits,
        "train/bits_per_byte_two_part": losses.two_part.item() * bits,
        "train/code_bits_per_byte": losses.codes.item() * bits,
    }
    for number, parts in enumerate(
        zip(losses.reconstruction, losses.entropy, losses.quantizer, losses.compressed, strict=True), 1
    ):
        reconstruction, entropy, quantizer, compressed = parts
        metrics |= {
            f"train/level{number}/reconstruction_bits_per_byte": reconstruction.item() * bits,
            f"train/level{number}/quantizer_loss": quantizer.item(),
            f"train/level{number}/bytes_per_code": losses.bytes / max(compressed.codes.packing.total, 1),
        }
        if compressed.entropy_nats is not None:
            metrics[f"train/level{number}/entropy_model_bits_per_byte"] = entropy.item() * bits
    return metrics


def held_out_metrics(measured: HeldOutReport) -> dict[str, float]:
    """A HeldOutReport as flat metrics."""
    plain = asdict(measured)
    levels = plain.pop("levels")
    metrics = {f"held_out/{name}": float(value) for name, value in plain.items()}
    for number, level in enumerate(levels, 1):
        metrics |= {f"held_out/level{number}/{name}": float(value) for name, value in level.items()}
    return metrics


@torch.no_grad()
def figures(model: HierarchicalAutoencoder, held_out: Tensor, history: list[list[float]]) -> dict[str, Figure]:
    """Segment lengths, code usage, the entropy trace of a stretch of text and the loss curves."""
    from abstractinator.training import plots

    was_training = model.training
    model.eval()
    rows = held_out[:32].to(next(model.parameters()).device)
    compressed = model.compress(pack_bytes(rows))
    model.train(was_training)
    names = [f"level {number}" for number in range(1, len(compressed) + 1)]
    counts = []
    for c in compressed:
        plain = c.codes.ids[~c.codes.special]
        size = c.codes.alphabet.codebook_size
        counts.append(torch.bincount(plain.flatten(), minlength=size)[:size].cpu().numpy())
    made = {
        "segment_lengths": plots.segment_lengths([c.segments.lengths.cpu().numpy() for c in compressed], names),
        "code_usage": plots.code_usage(counts, names),
    }
    if history:
        steps, exact, two_part = zip(*history, strict=True)
        series = {"exact": list(exact), "two-part": list(two_part)}
        made["loss_curves"] = plots.loss_curves([int(step) for step in steps], series)
    lowest = compressed[0]
    if lowest.entropies is not None:
        stretch = slice(64, 64 + 160)
        values = lowest.tokens.ids[stretch, 0].cpu().numpy()
        entropies = np.nan_to_num(lowest.entropies[stretch].cpu().numpy(), posinf=0.0)
        starts = (lowest.segments.offsets[stretch] == 0).cpu().numpy()
        text = bytes(np.where(values < ByteTokenizer.BYTES, values, 0).astype(np.uint8))
        made["entropy_trace"] = plots.entropy_trace(text, entropies, starts)
    return made


@torch.no_grad()
def reconstruction(model: HierarchicalAutoencoder, held_out: Tensor) -> str:
    """A stretch of held-out text beside what comes back from its highest codes alone."""
    was_training = model.training
    model.eval()
    row = held_out[len(held_out) // 2, :_RECONSTRUCTED_BYTES][None].to(next(model.parameters()).device)
    codes = model.compress(pack_bytes(row), mend=True)[-1].codes
    back = model.decompress(codes).tokens
    model.train(was_training)
    original, again = _text(pack_bytes(row)), _text(back)
    return (
        f"── held-out text, {int((row < ByteTokenizer.BYTES).sum())} bytes ──\n{original}\n\n"
        f"── the same, back from {codes.packing.total} codes ──\n{again}"
    )


def samples(model: HierarchicalAutoencoder, config: ExperimentConfig) -> str:
    """A continuation of the configured prompt in each generation mode."""
    settings = asdict(config.generation)
    parts = []
    for mode in ("exact", "plan"):
        text = model.generate_bytes(text_to_bytes(config.sample_prompt_for_generation), **(settings | {"mode": mode}))
        shown = config.sample_prompt_for_generation + text.decode("utf-8", "replace")
        parts.append(f"── sample, {mode} ──\n{shown}")
    return "\n\n".join(parts)


def _text(tokens: Tokens) -> str:
    return ByteTokenizer().decode(tokens.ids[:, 0].cpu().numpy()).decode("utf-8", "replace")
