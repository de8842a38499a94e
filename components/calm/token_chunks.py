"""The next chunk of `calm_discrete`, token by token.

Letters: R rows, D width, k known tokens of a chunk of K.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from abstractinator.components.calm.token_head import ChunkTokenHead
from abstractinator.components.sampling import Sampler, WrittenText, repeats_itself
from abstractinator.contract.generation_config import GenerationConfig

MODES = ("exact",)
_TRIES = 64  # tokens that would repeat something and are refused, before any is taken


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
                for r, token in zip(rows, self._choose(logits, rows, chunks, known, texts), strict=True):
                    chunks[r].append(token)
        return [tuple(chunk) for chunk in chunks]

    def _choose(
        self,
        logits: Tensor,
        rows: list[int],
        chunks: list[list[int]],
        known: list[list[int]],
        texts: list[WrittenText],
    ) -> list[int]:
        """(R, V) logits → a token for each row; one that would complete a repetition is drawn again without it."""
        choice, size = self.sample(logits), self.config.no_repeat_ngram_size
        for _ in range(_TRIES if size else 0):
            again = [
                i
                for i, r in enumerate(rows)
                if self._repeats(texts[r], [*chunks[r][len(known[r]) :], int(choice[i])], size)
            ]
            if not again:
                break
            logits[again, choice[again]] = -torch.inf
            choice[again] = self.sample(logits[again])
        return choice.tolist()

    def _repeats(self, text: WrittenText, tokens: list[int], size: int) -> bool:
        return repeats_itself(text.recent, self.head.tokenizer.decode(tokens), size)
