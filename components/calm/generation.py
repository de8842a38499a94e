"""Text from a prompt, a chunk at each step, with a memory of the chunks before that does not grow.

Letters: B prompts, R rows that continue, n chunks a row, K tokens a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from abstractinator.components.calm.chunk_transformer import ChunkTransformer
from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer
from abstractinator.components.sampling import WrittenText
from abstractinator.components.streaming import check_prompts, stream_pieces
from abstractinator.contract.capabilities import Piece
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Model

_AHEAD = 32  # chunks that are read at once


class ChunkModel(Protocol):
    """What is generated from. `prompt_chunks`: the whole chunks of a prompt, and the first tokens of the next one."""

    language_model: ChunkTransformer

    def prompt_chunks(self, prompt: bytes) -> tuple[list[list[int]], list[int]]: ...

    def first_hidden(self) -> Tensor:
        """(D,) the hidden vector before the first chunk."""


Choose = Callable[[Tensor, list[list[int]], list[WrittenText]], list[tuple[int, ...]]]
"""hidden (R, D), the first tokens of each row's chunk, the texts so far → all tokens of each chunk, up to an EOS."""


class ChunkMemory:
    """The chunks read so far of B rows, each beginning empty."""

    def __init__(self, model: ChunkTransformer, rows: int) -> None:
        self.model = model
        self.transformer = IncrementalTransformer(model.transformer, rows, _AHEAD)
        self.counts = torch.zeros(rows, dtype=torch.int64, device=self.transformer.norm.gain.device)

    def read(self, rows: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids: (R, n, K), the next chunks of some rows, n ≤ _AHEAD, of which `lengths` (R,) count → (R, n, D)."""
        positions = self.counts[rows, None] + torch.arange(ids.shape[1], device=ids.device)
        hidden = self.transformer.step(self.model.embed(ids), self.transformer.entries(rows, positions))
        self.counts[rows] += lengths
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these, which become 0 … R - 1."""
        for ring in self.transformer.rings():
            ring.keep(rows)
        self.counts = self.counts[rows]


def stream_chunks(
    model: Model, parts: ChunkModel, prompts: Sequence[bytes], config: GenerationConfig, choose: Choose
) -> Iterator[Piece]:
    """Continuations of the prompts, as chunks are made; each ends at EOS, a stop string or the bound.

    The prompts are read in this call, so its errors are raised here.
    """
    check_prompts(prompts)
    return stream_pieces(model, lambda: _Generation(model, parts, prompts, config, choose))


class _Generation:
    """The memory of the rows that continue, and their texts. prompts: of each row, the index of its prompt."""

    def __init__(
        self, model: Model, parts: ChunkModel, prompts: Sequence[bytes], config: GenerationConfig, choose: Choose
    ) -> None:
        self.tokenizer, self.choose, self.device = model.tokenizer, choose, model.device
        self.memory = ChunkMemory(parts.language_model, len(prompts))
        self.texts = [WrittenText(prompt, config) for prompt in prompts]
        self.prompts = list(range(len(prompts)))
        chunks, known = zip(*(parts.prompt_chunks(prompt) for prompt in prompts), strict=True)
        self.known: list[list[int]] = list(known)
        self.hidden = parts.first_hidden().float().repeat(len(prompts), 1)
        self._read_prompts(chunks)

    def _read_prompts(self, chunks: Sequence[list[list[int]]]) -> None:
        lengths = torch.tensor([len(row) for row in chunks], device=self.device)
        longest = int(lengths.max())
        for first in range(0, longest, _AHEAD):
            rows = (lengths > first).nonzero()[:, 0]
            block = [chunks[row][first : first + _AHEAD] for row in rows.tolist()]
            width = max(map(len, block))
            size = len(block[0][0])
            padded = [[*each, *[[self.tokenizer.PAD] * size] * (width - len(each))] for each in block]
            counts = (lengths[rows] - first).clamp(max=width)
            hidden = self.memory.read(rows, torch.tensor(padded, device=self.device), counts)
            self.hidden[rows] = hidden[torch.arange(len(rows), device=self.device), counts - 1]

    def pieces(self) -> Iterator[Piece]:
        """The continuations as they come."""
        while True:
            texts = [self.texts[prompt] for prompt in self.prompts]
            chunks = self.choose(self.hidden, self.known, texts)
            for text, chunk, known in zip(texts, chunks, self.known, strict=True):
                text.write(self.tokenizer.decode(chunk[len(known) :]))
                if self.tokenizer.EOS in chunk:
                    text.end()
            for prompt in self.prompts:
                if data := self.texts[prompt].take():
                    yield Piece(prompt, data)
            going = [row for row, text in enumerate(texts) if not text.ended]
            if not going:
                return
            self._continue(going, [chunks[row] for row in going])

    def _continue(self, going: list[int], chunks: list[tuple[int, ...]]) -> None:
        """Forgets the other rows and reads a chunk for each of these."""
        if len(going) < len(self.prompts):
            self.memory.keep(torch.tensor(going, device=self.device))
            self.prompts = [self.prompts[row] for row in going]
        rows = torch.arange(len(going), device=self.device)
        ids = torch.tensor(chunks, device=self.device)[:, None]
        self.known = [[] for _ in going]
        self.hidden = self.memory.read(rows, ids, torch.ones_like(rows))[:, 0]
