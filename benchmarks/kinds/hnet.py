"""H-Net (Hwang et al. 2025, arXiv 2507.07955) as `h-net-dynamic-chunking` has it: learned chunks, one stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from h_net_dynamic_chunking.h_net import HNet
from torch import Tensor, nn
from x_transformers import Decoder

from abstractinator.components.transformer import RMSNorm
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.generation_config import GenerationConfig
from benchmarks.kinds.base import (
    Baseline,
    ByteSampler,
    Setting,
    as_bytes,
    fitting_width,
    nll_of,
    parameters_on_meta,
    prompt_rows,
)

_HEAD_WIDTH = 32
_BYTES_PER_CHUNK = 5.0  # the average that its ratio loss asks for


@dataclass(frozen=True)
class HNetConfig:
    """width: of the layers of bytes."""

    kind: Literal["h-net"] = "h-net"
    width: int = 128

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a multiple of 4, not {self.width}")


class HNetBytes(Baseline):
    """Two layers of bytes, four of chunks, two of bytes; chunks are 3/2 as wide as bytes (`width`)."""

    kind: ClassVar[str] = "h-net"
    Config = HNetConfig

    def __init__(self, config: HNetConfig) -> None:
        super().__init__(config)
        width = config.width
        inner = width * 3 // 4 * 2
        self.embedding = nn.Embedding(ByteTokenizer.vocab_size, width)
        self.model = HNet(
            encoder=_decoder(width, 2),
            network=_decoder(inner, 4),
            decoder=_decoder(width, 2),
            dim=width,
            dim_inner=inner,
            target_avg_token_length=_BYTES_PER_CHUNK,
        )
        self.norm = RMSNorm(width)
        self.to_logits = nn.Linear(width, ByteTokenizer.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    @classmethod
    def sized(cls, setting: Setting) -> HNetConfig:
        def count(width: int) -> int:
            return parameters_on_meta(lambda: cls(HNetConfig(width=-(-width // 4) * 4)))

        return HNetConfig(width=-(-fitting_width(count, setting.parameters) // 4) * 4)

    def nll(self, rows: Tensor) -> tuple[Tensor, int]:
        return nll_of(self._read(rows[:, :-1])[0], rows)

    def nll_and_loss(self, rows: Tensor) -> tuple[Tensor, Tensor, int]:
        """With its ratio loss, a mean, once for each byte."""
        logits, found = self._read(rows[:, :-1])
        nll, count = nll_of(logits, rows)
        return nll, nll + found.loss * max(count, 1), count

    def positions(self, rows: Tensor) -> int:
        boundaries = self._read(rows[:, :-1])[1].intermediates.boundary_mask
        return int((boundaries & (rows[:, :-1] != ByteTokenizer.PAD)).sum())

    @torch.no_grad()
    def continuations(self, prompts: list[bytes], config: GenerationConfig) -> Iterator[list[bytes]]:
        sample = ByteSampler(config, self.device)
        logits, cache = self._read_on(prompt_rows(prompts, self), None)
        while True:
            byte = sample(logits)
            yield as_bytes(byte)
            logits, cache = self._read_on(byte[:, None], cache)

    def _read_on(self, rows: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """More bytes (B, n) after those in the cache → (B, V) logits of the next, and the cache after them."""
        found = self.model(self.embedding(rows), cache=cache, return_hiddens=True)
        return self.to_logits(self.norm(found.output[:, -1])), found.next_cache

    def _read(self, rows: Tensor) -> tuple[Tensor, Any]:
        """(B, n) → logits (B, n, V) of the byte after each, and what HNet returns."""
        found = self.model(self.embedding(rows), return_intermediates=True)
        return self.to_logits(self.norm(found.output)), found


def _decoder(width: int, layers: int) -> Decoder:
    """RoPE, SwiGLU, RMSNorm before each part. Made here, since what HNet makes of settings asks for a norm by a name
    that this class does not have."""
    return Decoder(
        dim=width,
        depth=layers,
        heads=max(2, round(width / _HEAD_WIDTH)),  # with one, the output would not be brought to the width
        attn_dim_head=_HEAD_WIDTH,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=_HEAD_WIDTH,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_mult=8 / 3,
        ff_no_bias=True,
        pre_norm_has_final_norm=False,
    )
