"""Text from a prompt, token by token, at a constant cost a token: the last W tokens, and a vector of all before them.

Letters: B prompts, R rows that continue, n tokens, W window, D memory width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.glae.decoding import DecoderSteps
from abstractinator.components.glae.texts import texts_of
from abstractinator.components.sampling import Sampler, WrittenText, draw_tokens
from abstractinator.components.streaming import check_prompts, stream_pieces
from abstractinator.contract.capabilities import Piece
from abstractinator.contract.generation_config import GenerationConfig

if TYPE_CHECKING:
    from abstractinator.components.glae.glae_model import GlaeModel

MODE = "exact"
_AHEAD = 32  # tokens that are read at once


def stream_tokens(model: GlaeModel, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
    """Continuations of the prompts; each ends at the end of the text, a stop string or the bound. The prompts are read
    in this call, so its errors are raised here."""
    if config.mode not in (None, MODE):
        raise ValueError(f"mode must be {MODE}, not {config.mode!r}")
    check_prompts(prompts)
    return stream_pieces(model, lambda: _Generation(model, prompts, config))


class _Generation:
    """What was read of each row. states: (B, D) of the whole texts before. partial: the tokens since then."""

    def __init__(self, model: GlaeModel, prompts: Sequence[bytes], config: GenerationConfig) -> None:
        self.model, self.window, self.device = model, model.config.window, model.device
        self.sample = Sampler(config, model.device)
        self.texts = [WrittenText(prompt, config) for prompt in prompts]
        self.steps = DecoderSteps(model.decoder, len(prompts), _AHEAD)
        ids = [model.tokenizer.encode(prompt).tolist() for prompt in prompts]
        before = [self._states(row) for row in ids]  # (K + 1, D) of each prompt
        self.states = torch.stack([states[-1] for states in before])
        self.partial = [row[len(row) // self.window * self.window :] for row in ids]
        self.logits = self._read_prompts(ids, before)

    def _states(self, ids: list[int]) -> Tensor:
        """(K + 1, D): before each of the K whole texts of a prompt, and behind the last."""
        whole = len(ids) // self.window
        if not whole:
            return torch.zeros(1, self.model.config.memory_width, device=self.device)
        parts = [ids[at * self.window : (at + 1) * self.window] for at in range(whole)]
        memories = self.model.encoder.memory(texts_of(parts, self.window, self.device))
        return F.pad(self.model.recurrence(memories[None])[0], (0, 0, 1, 0))

    def _read_prompts(self, ids: list[list[int]], before: list[Tensor]) -> Tensor:
        """→ (B, V + 1) logits of what follows each prompt. Rows with as much left are read together."""
        inputs = [[self.model.decoder.vocabulary.bos, *row] for row in ids]
        logits: list[Tensor | None] = [None] * len(ids)
        for first in range(0, max(map(len, inputs)), _AHEAD):
            groups: dict[int, list[int]] = {}
            for row, each in enumerate(inputs):
                if len(each) > first:
                    groups.setdefault(min(_AHEAD, len(each) - first), []).append(row)
            for count, rows in groups.items():
                tokens = torch.tensor([inputs[row][first : first + count] for row in rows], device=self.device)
                texts = torch.arange(first, first + count, device=self.device) // self.window
                memory = torch.stack([before[row][texts] for row in rows])  # (R, n, D)
                read = self.steps.read(
                    torch.tensor(rows, device=self.device), tokens, self.model.decoder.of_memory(memory)
                )
                for row, last in zip(rows, read[:, -1], strict=True):
                    logits[row] = last
        return torch.stack([each for each in logits if each is not None])

    def pieces(self) -> Iterator[Piece]:
        """The continuations as they come."""
        end, going = self.model.decoder.vocabulary.codebook_size, list(range(len(self.texts)))
        while going:
            texts = [self.texts[row] for row in going]
            tokens = draw_tokens(self.sample, self.logits, texts, [[] for _ in going], self.model.tokenizer)
            for text, token in zip(texts, tokens, strict=True):
                if token == end:
                    text.end()
                else:
                    text.write(self.model.tokenizer.decode([token]))
            for row in going:
                if data := self.texts[row].take():
                    yield Piece(row, data)
            kept = [(row, token) for row, token in zip(going, tokens, strict=True) if not self.texts[row].ended]
            going = [row for row, _ in kept]
            if going:
                self._read(going, [token for _, token in kept])

    def _read(self, rows: list[int], tokens: list[int]) -> None:
        """Reads a token of each of these rows."""
        full = []
        for row, token in zip(rows, tokens, strict=True):
            self.partial[row].append(token)
            if len(self.partial[row]) == self.window:
                full.append(row)
        if full:
            texts = texts_of([self.partial[row] for row in full], self.window, self.device)
            self.states[full] = self.model.recurrence.step(self.states[full], self.model.encoder.memory(texts))
            for row in full:
                self.partial[row] = []
        added = self.model.decoder.of_memory(self.states[rows])[:, None]
        inputs = torch.tensor(tokens, device=self.device)[:, None]
        self.logits = self.steps.read(torch.tensor(rows, device=self.device), inputs, added)[:, 0]
