"""The flat byte transformer with sliding-window attention: cost linear in the text, a cache of one window a layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer
from abstractinator.components.packing import Packing
from abstractinator.components.transformer import SlidingWindowTransformer, TransformerConfig
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.generation_config import GenerationConfig
from benchmarks.kinds.base import (
    Baseline,
    ByteSampler,
    Setting,
    as_bytes,
    fitting_width,
    heads_for,
    nll_of,
    parameters_on_meta,
    prompt_rows,
    read_tokens,
)

_WINDOW = 256
_PER_LAYER = 64  # width / depth, about


@dataclass(frozen=True)
class FlatWindowConfig:
    """width, layers: of a transformer whose heads and hidden width follow from the width."""

    kind: Literal["flat-window"] = "flat-window"
    width: int = 256
    layers: int = 4

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2 or self.layers < 1:
            raise ValueError(f"width must be even and layers at least 1, not {self.width} and {self.layers}")


class FlatWindow(Baseline):
    """p(next byte | the bytes before it): RoPE, SwiGLU, RMSNorm before each part, windows of 256 bytes a layer."""

    kind: ClassVar[str] = "flat-window"
    Config = FlatWindowConfig

    def __init__(self, config: FlatWindowConfig) -> None:
        super().__init__(config)
        width = config.width
        mlp_width = round(width * 8 / 3 / 8) * 8
        size = TransformerConfig(width, config.layers, heads_for(width), _WINDOW, mlp_width=mlp_width)
        self.embedding = nn.Embedding(ByteTokenizer.vocab_size, width)
        self.transformer = SlidingWindowTransformer(size)
        self.to_logits = nn.Linear(width, ByteTokenizer.vocab_size, bias=False)
        self.apply(_initialize)
        for block in self.transformer.blocks:  # each block begins as the identity
            nn.init.zeros_(block.attention.to_out.weight)
            nn.init.zeros_(block.mlp.mlp.to_out.weight)

    @classmethod
    def sized(cls, setting: Setting) -> FlatWindowConfig:
        layers = max(2, round(_layers_for(setting.parameters)))

        def config(width: int) -> FlatWindowConfig:
            return FlatWindowConfig(width=width, layers=layers)

        return config(fitting_width(lambda width: parameters_on_meta(lambda: cls(config(width))), setting.parameters))

    def nll(self, rows: Tensor) -> tuple[Tensor, int]:
        read = rows[:, :-1]
        packing = Packing.from_lengths(torch.full((len(read),), read.shape[1], device=read.device))
        x = self.transformer(self.embedding(read).flatten(0, 1), packing)
        return nll_of(self.to_logits(x).view(*read.shape, -1), rows)

    def positions(self, rows: Tensor) -> int:
        return read_tokens(rows)

    @torch.no_grad()
    def continuations(self, prompts: list[bytes], config: GenerationConfig) -> Iterator[list[bytes]]:
        rows, sample = prompt_rows(prompts, self), ByteSampler(config, self.device)
        transformer, position = IncrementalTransformer(self.transformer, len(rows), 1), rows.shape[1]
        for index, byte in enumerate(rows.T):
            logits = self._step(byte, index, transformer)
        while True:
            byte = sample(logits)
            yield as_bytes(byte)
            logits = self._step(byte, position, transformer)
            position += 1

    def _step(self, byte: Tensor, position: int, transformer: IncrementalTransformer) -> Tensor:
        """One more byte (B,) of every row → (B, V) logits of the next."""
        all_rows, positions = torch.arange(len(byte), device=byte.device), byte.new_full((len(byte), 1), position)
        x = transformer.step(self.embedding(byte)[:, None], transformer.entries(all_rows, positions))
        return self.to_logits(x[:, 0])


def _layers_for(parameters: int) -> float:
    """The depth at which blocks of about 12 · width² make that number of parameters, with width = 64 · depth."""
    return (parameters / (12 * _PER_LAYER**2)) ** (1 / 3)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
