"""The model as it is trained and measured: a hierarchy with its losses.

Letters: B rows, N bytes a row.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from abstractinator.components.hierarchical.hierarchy import Hierarchy, ModelConfig
from abstractinator.components.hierarchical.losses import HierarchicalLosses, losses_of
from abstractinator.components.hierarchical.measures import measure_rows, metrics_of
from abstractinator.components.tokens import tokens_of
from abstractinator.contract.model import Batch, Losses, Metric, Phase, Sums

AUTOENCODER, EVERYTHING = "autoencoder", "everything"  # the phases of a training
_MOMENTUM = 0.3  # of a threshold, towards each batch's own; the first batch sets it


class HierarchicalAutoencoder(Hierarchy):
    """Bytes to codes and back, level upon level, and a language model of bytes over the codes."""

    kind: ClassVar[str] = "hier_ae"
    Config = ModelConfig
    headline: ClassVar[str] = "bits_per_byte_exact"

    def forward(self, batch: Batch, phase: str = EVERYTHING) -> HierarchicalLosses:
        """(B, N) byte ids → the losses of a phase. The first token of a row is not predicted."""
        tokens = tokens_of(batch.ids)
        compressed = self.compress(tokens)
        predicted = self.predict(tokens, compressed) if phase == EVERYTHING else None
        return losses_of(self, tokens, compressed, predicted)

    def phases(self) -> tuple[Phase, ...]:
        alone = self.config.autoencoder_fraction
        return (Phase(AUTOENCODER, alone, cost=1.0), Phase(EVERYTHING, cost=3.0)) if alone else (Phase(EVERYTHING),)

    def after_backward(self, losses: Losses, *, done: float, first: bool) -> None:
        """Thresholds follow the entropy models while these learn; then both are frozen, so that boundaries stay."""
        assert isinstance(losses, HierarchicalLosses)
        for level, compressed in zip(self.levels, losses.compressed, strict=True):
            compressor = level.compressor
            if compressor.is_frozen or compressed.entropies is None:
                continue
            momentum = 1.0 if first else _MOMENTUM
            compressor.segmenter.calibrate(compressed.tokens, compressed.entropies, momentum=momentum)
            if done >= compressor.config.segmentation.train_fraction:
                compressor.freeze()

    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        return measure_rows(self, batch, generator)

    def metrics(self, sums: Sums) -> dict[str, Metric]:
        return metrics_of(self, sums)

    def describe(self) -> dict[str, str]:
        rows = {}
        for number, level in enumerate(self.levels, 1):
            compressor = level.compressor
            segmentation, vocabulary = compressor.config.segmentation, compressor.code_vocabulary
            rule: str = segmentation.rule
            if compressor.entropy_model is not None:
                rule += f" at {float(compressor.segmenter.threshold):.3f} nats"
            rows[f"level {number}"] = (
                f"{rule}, at most {segmentation.max_tokens_per_code} tokens a code; {vocabulary.slots} × "
                f"{vocabulary.codebook_size} {compressor.config.quantizer.kind} codes"
            )
        top = self.config.top_transformer_config.transformer
        rows["top"] = f"{top.layers} layers, {top.width} wide, window {top.window} codes"
        return rows
