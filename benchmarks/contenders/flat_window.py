"""The flat byte transformer with sliding-window attention: cost linear in the text, a cache of one window a layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer
from abstractinator.components.packing import Packing
from abstractinator.components.transformer import SlidingWindowTransformer, TransformerConfig
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from benchmarks.contenders.base import (
    Contender,
    Setting,
    fitting_width,
    heads_for,
    nll_of,
    parameters_on_meta,
    prompt_rows,
    read_tokens,
    sample_bytes,
)

_WINDOW = 256
_PER_LAYER = 64  # about so many times as wide as deep


class FlatWindow(Contender):
    """p(next byte | the bytes before it): RoPE, SwiGLU, RMSNorm before each part, windows of 256 bytes a layer."""

    def __init__(self, width: int, setting: Setting) -> None:
        super().__init__()
        layers = max(2, round(_layers_for(setting.parameters)))
        config = TransformerConfig(width, layers, heads_for(width), _WINDOW, mlp_width=round(width * 8 / 3 / 8) * 8)
        self.embedding = nn.Embedding(ByteTokenizer.vocab_size, width)
        self.transformer = SlidingWindowTransformer(config)
        self.to_logits = nn.Linear(width, ByteTokenizer.vocab_size, bias=False)
        self.apply(_initialize)
        for block in self.transformer.blocks:  # each block begins as the identity
            nn.init.zeros_(block.attention.to_out.weight)
            nn.init.zeros_(block.mlp.mlp.to_out.weight)

    @classmethod
    def fit(cls, setting: Setting) -> int:
        return fitting_width(lambda width: parameters_on_meta(lambda: cls(width, setting)), setting.parameters)

    def nats(self, rows: Tensor) -> tuple[Tensor, int]:
        read = rows[:, :-1]
        packing = Packing.from_lengths(torch.full((len(read),), read.shape[1], device=read.device))
        x = self.transformer(self.embedding(read).flatten(0, 1), packing)
        return nll_of(self.to_logits(x).view(*read.shape, -1), rows)

    def positions(self, rows: Tensor) -> int:
        return read_tokens(rows)

    @torch.no_grad()
    def stream(self, prompts: list[bytes], new_bytes: int, mode: str, seed: int) -> Iterator[int]:
        rows = prompt_rows(prompts, self)
        transformer = IncrementalTransformer(self.transformer, len(rows), 1)
        for position, byte in enumerate(rows.T):
            logits = self._step(byte, position, transformer)
        return self._sample(logits, rows.shape[1], transformer, new_bytes)

    @torch.no_grad()
    def _sample(
        self, logits: Tensor, position: int, transformer: IncrementalTransformer, new_bytes: int
    ) -> Iterator[int]:
        for _ in range(new_bytes):
            logits = self._step(sample_bytes(logits), position, transformer)
            position += 1
            yield len(logits)

    def _step(self, byte: Tensor, position: int, transformer: IncrementalTransformer) -> Tensor:
        """One more byte (B,) of every row → (B, V) logits of the next."""
        all_rows, positions = torch.arange(len(byte), device=byte.device), byte.new_full((len(byte), 1), position)
        x = transformer.step(self.embedding(byte)[:, None], transformer.places(all_rows, positions))
        return self.to_logits(x[:, 0])


def _layers_for(parameters: int) -> float:
    """The depth at which blocks of about 12 · width² make so many parameters, with width = 64 · depth."""
    return (parameters / (12 * _PER_LAYER**2)) ** (1 / 3)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
