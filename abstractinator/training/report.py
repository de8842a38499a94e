"""What a run shows of itself: metrics, figures, samples, a reconstruction, the closing table and summary.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from abstractinator.atomic_file import atomic_write
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.contract.capabilities import Generates, Reconstructs, Shows
from abstractinator.contract.model import Batch, Metric, Model, headline_parts
from abstractinator.contract.tokenizer import text_to_bytes
from abstractinator.evaluation.at_rest import at_rest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_RECONSTRUCTED_BYTES = 400
_ROWS_IN_FIGURES = 32


@dataclass(frozen=True)
class Summary:
    """What summary.json holds.

    held_out: the kind's metrics. train_bytes_per_second: bytes trained on over the time in optimizer steps. seconds:
    the whole loop, with measurements, samples and checkpoints in it, without the last measurement; over all sessions.
    best_checkpoint: of those that are kept, the one with the lowest headline metric.
    """

    run_name: str
    kind: str
    held_out: dict[str, Metric]
    train_bytes_per_second: float
    peak_memory_bytes: int
    parameters: int
    steps: int
    seconds: float
    best_checkpoint: str | None

    def plain(self) -> dict[str, Any]:
        """The content of summary.json."""
        rest = {name: value for name, value in vars(self).items() if name != "held_out"}
        measured = {name: metric.value for name, metric in self.held_out.items()}
        return rest | {"held_out_bytes": int(measured.pop("bytes"))} | measured

    def write(self, path: Path) -> None:
        """Writes the summary as JSON, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.plain(), indent=2) + "\n")

    def table(self) -> str:
        """The summary for people."""
        rows = [(metric.label, str(metric)) for name, metric in self.held_out.items() if name != "bytes"]
        rows += [
            ("training", f"{self.steps} steps, {self.seconds:.0f} s"),
            ("bytes per second of training", f"{self.train_bytes_per_second / 1e3:.1f} kB"),
            ("peak memory", f"{self.peak_memory_bytes / 2**30:.2f} GiB"),
            ("parameters", f"{self.parameters / 1e6:.2f}M"),
        ]
        title = f"{self.run_name}: held-out text, {self.held_out['bytes'].value / 1e3:.0f} kB"
        return "\n".join([title, "─" * 64, *(f"  {name:<34}{value:>28}" for name, value in rows)])


def held_out_metrics(measured: dict[str, Metric]) -> dict[str, float]:
    """Held-out metrics as the tracker logs them."""
    return {f"held_out/{name}": metric.value for name, metric in measured.items()}


def figures(model: Model, held_out: Tensor, history: list[tuple[int, dict[str, float]]]) -> dict[str, Figure]:
    """The kind's own figures of some held-out rows, and the curves of the training losses."""
    from abstractinator.components import plotting

    made: dict[str, Figure] = {}
    if isinstance(model, Shows):
        with at_rest(model):
            made |= model.figures(Batch.of(held_out[:_ROWS_IN_FIGURES], model.tokenizer).to(model.device))
    parts = dict.fromkeys(name for _, means in history for name in means if name != "loss")
    if names := headline_parts(parts):
        series = {name: [means.get(name, float("nan")) for _, means in history] for name in names}
        made["loss_curves"] = plotting.loss_curves([step for step, _ in history], series)
    return made


def reconstruction(model: Model, held_out: Tensor) -> str:
    """A stretch of held-out text beside its reconstruction from the latents alone; empty for a kind without them."""
    if not isinstance(model, Reconstructs):
        return ""
    text = model.tokenizer.decode(held_out[len(held_out) // 2, :_RECONSTRUCTED_BYTES].numpy())
    with at_rest(model):
        latents = model.encode([text])
        (restored,) = model.decode(latents)
    return (
        f"── held-out text, {len(text)} bytes ──\n{_shown(text)}\n\n"
        f"── reconstruction from {latents.positions} {latents.unit} ──\n{_shown(restored)}"
    )


def samples(model: Model, config: ExperimentConfig) -> str:
    """Continuations of the configured prompt, one for each mode that the kind shows; empty for a kind without any."""
    if not isinstance(model, Generates):
        return ""
    prompt, parts = text_to_bytes(config.sample_prompt_for_generation), []
    for mode in model.sample_modes:
        with at_rest(model):
            pieces = model.stream([prompt], replace(config.generation, mode=mode))
            text = b"".join(piece.data for piece in pieces)
        parts.append(f"── sample, {mode} ──\n{_shown(prompt + text)}")
    return "\n\n".join(parts)


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")
