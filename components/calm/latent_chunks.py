"""The next chunk of `calm` at a temperature, from a head that only gives samples.

    batch   of a fixed number of draws (200, as in the paper), as chunks occur among them: what top_k, top_p and
            no_repeat_ngram_size choose among, too. At temperature 1 without these, one draw
    exact   of the model's own distribution at any temperature of 1 and below, in as many draws as that takes

Letters: R rows, n draws, K tokens a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor

from abstractinator.components.calm.chunk_autoencoder import ChunkAutoencoder
from abstractinator.components.calm.energy_head import EnergyHead
from abstractinator.components.calm.temperature import batch_choice, exact_choice
from abstractinator.components.sampling import WrittenText, repeats_itself
from abstractinator.contract.generation_config import GenerationConfig

MODES = ("batch", "exact")
Chunk = tuple[int, ...]
"""Token ids of a chunk, up to an EOS."""

_BATCH = 200  # draws of the batch form
_BLOCK = 256  # draws that are made at once for the exact form
_MOST_DRAWS = 200_000  # for one chunk of the exact form
_LATENTS = 1 << 13  # that are decoded at once


class LatentChunks:
    """Chooses the next chunk of each row. Raises ValueError for settings that the mode has no way to follow."""

    def __init__(self, autoencoder: ChunkAutoencoder, head: EnergyHead, config: GenerationConfig) -> None:
        _check(config)
        self.autoencoder, self.head, self.config = autoencoder, head, config
        self.noise, self.random = torch.Generator(), Random(config.seed)
        if config.seed is None:
            self.noise.seed()
        else:
            self.noise.manual_seed(config.seed)

    def __call__(self, hidden: Tensor, known: list[list[int]], texts: list[WrittenText]) -> list[Chunk]:
        """hidden: (R, D). known: of each row, the first tokens of the chunk, which are none here."""
        config = self.config
        if config.mode == "exact":
            return [
                exact_choice(self._endless(row), config.temperature, self.random, _MOST_DRAWS)
                for row in hidden[:, None]
            ]
        if (config.temperature, config.top_p, config.top_k, config.no_repeat_ngram_size) == (1, 1, 0, 0):
            return [row[0] for row in self.draw(hidden, 1)]
        return [self._batch_choice(draws, text) for draws, text in zip(self.draw(hidden, _BATCH), texts, strict=True)]

    def draw(self, hidden: Tensor, count: int) -> list[list[Chunk]]:
        """(R, D) → of each row, n independent draws of its next chunk."""
        rows = max(1, _LATENTS // count)
        return [chunks for part in hidden.split(rows) for chunks in self._draw(part, count)]

    def _draw(self, hidden: Tensor, count: int) -> list[list[Chunk]]:
        end = self.autoencoder.tokenizer.EOS
        latents = self.head(hidden, self.head.noise(count, len(hidden), hidden.device, self.noise))  # (n, R, d)
        ids = self.autoencoder.decode(latents).transpose(0, 1).tolist()  # (R, n, K)
        return [[tuple(chunk[: chunk.index(end) + 1] if end in chunk else chunk) for chunk in row] for row in ids]

    def _endless(self, hidden: Tensor) -> Iterator[Chunk]:
        """Draws for one row (1, D)."""
        while True:
            yield from self.draw(hidden, _BLOCK)[0]

    def _batch_choice(self, draws: list[Chunk], text: WrittenText) -> Chunk:
        config, size = self.config, self.config.no_repeat_ngram_size

        def allowed(chunk: Chunk) -> bool:
            return not repeats_itself(text.recent, self.autoencoder.tokenizer.decode(chunk), size)

        return batch_choice(
            draws,
            config.temperature,
            self.random,
            top_k=config.top_k,
            top_p=config.top_p,
            allowed=allowed if size else None,
        )


def _check(config: GenerationConfig) -> None:
    if config.mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {config.mode!r}")
    if config.temperature > 1:
        raise ValueError(
            f"temperature must be at most 1 for a model without a likelihood, not {config.temperature:g}: from draws a "
            "distribution can be made sharper, not flatter"
        )
    if config.mode == "exact":
        if config.temperature == 0:
            raise ValueError(
                "mode exact has no temperature 0, as no number of draws shows the most probable chunk; "
                "use mode batch, or a temperature above 0"
            )
        for name, off in (("top_k", 0), ("top_p", 1), ("no_repeat_ngram_size", 0)):
            if getattr(config, name) != off:
                raise ValueError(
                    f"mode exact draws from the model's own distribution and cannot follow {name}="
                    f"{getattr(config, name)}; use {name}={off}, or mode batch"
                )
