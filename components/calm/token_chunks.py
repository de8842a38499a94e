"""The next chunk of `calm_discrete`, token by token.

Letters: R rows, D width, k known tokens of a chunk of K.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from abstractinator.components.calm.token_head import ChunkTokenHead
from abstractinator.components.sampling import Sampler, WrittenText, draw_tokens
from abstractinator.contract.generation_config import GenerationConfig

MODES = ("exact",)


def with_mode(config: GenerationConfig) -> GenerationConfig:
    """The settings with a mode. Raises ValueError for an unknown one."""
    if config.mode not in (None, *MODES):
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {config.mode!r}")
    return replace(config, mode=config.mode or MODES[0])


class TokenChunks:
    """Samples the next chunk of each row from the model's own distribution."""

    def __init__(self, head: ChunkTokenHead, chunk_size: int, config: GenerationConfig) -> None:
        self.head, self.chunk_size, self.config = head, chunk_size, config
        self.sample = Sampler(config, head.to_logits.weight.device)

    def __call__(self, hidden: Tensor, known: list[list[int]], texts: list[WrittenText]) -> list[tuple[int, ...]]:
        """hidden: (R, D). known: the first tokens of each row's chunk. The chunks, each up to an EOS."""
        chunks = [list(first) for first in known]
        for count in range(min(map(len, known)), self.chunk_size):
            rows = [r for r, chunk in enumerate(chunks) if len(chunk) == count and self.head.tokenizer.EOS not in chunk]
            if rows:
                ids = torch.tensor([chunks[r] for r in rows], dtype=torch.int64, device=hidden.device)
                logits = self.head(hidden[rows], ids.view(len(rows), count))[:, -1]
                pending = [chunks[r][len(known[r]) :] for r in rows]
                tokens = draw_tokens(self.sample, logits, [texts[r] for r in rows], pending, self.head.tokenizer)
                for r, token in zip(rows, tokens, strict=True):
                    chunks[r].append(token)
        return [tuple(chunk) for chunk in chunks]
