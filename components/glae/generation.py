"""Text from a prompt, a token at each step, from [vector; last W tokens]: memory does not grow with the text.

Letters: B prompts, R rows that continue, n tokens a row, W window, D memory width, V text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from abstractinator.components.glae.decoding import DecoderSteps
from abstractinator.components.glae.glae_model import GlaeModel
from abstractinator.components.glae.texts import Texts
from abstractinator.components.sampling import Sampler, WrittenText, repeats
from abstractinator.components.streaming import check_prompts, stream_pieces
from abstractinator.contract.capabilities import Piece
from abstractinator.contract.generation_config import GenerationConfig

MODE = "exact"
_AHEAD = 32  # tokens of a prompt that are read at once


class LanguageSteps:
    """The language model for rows that are read a few tokens at a time, each beginning with BOS.

    state: (B, D) the memory of the texts of W tokens that are over. recent: (B, W) the last tokens.
    """

    def __init__(self, model: GlaeModel, rows: int) -> None:
        config, device = model.config, model.device
        self.model, self.window = model, config.window
        self.steps = DecoderSteps(model.decoder, rows, _AHEAD)
        self.state = torch.zeros(rows, config.memory_width, device=device)
        self.recent = torch.zeros(rows, config.window, dtype=torch.int64, device=device)

    def read(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """rows: (R,) ascending; tokens: (R, n ≤ _AHEAD) whose positions, BOS being at 0, lie between the same two
        multiples of W → (R, V + 1) logits of what comes behind them."""
        known = torch.cat([self.recent[rows], tokens], dim=1)
        positions, count = self.steps.positions[rows], tokens.shape[1]
        over = (positions > 0) & (positions % self.window == 0)  # a text is complete with the first of these tokens
        if over.any():
            done = known[over, 1 : 1 + self.window]
            new = self.model.encoder.memory(Texts(done, torch.full_like(done[:, 0], self.window)))
            self.state[rows[over]] = self.model.recurrence.step(self.state[rows[over]], new)
        self.recent[rows] = known[:, count:]
        added = self.model.decoder.of_memory(self.state[rows])[:, None].expand(-1, count, -1)
        return self.steps.read(rows, tokens, added)[:, -1]

    def read_row(self, row: int, tokens: list[int]) -> Tensor:
        """Any number of tokens of one row that is empty → (V + 1,) logits of what comes behind them."""
        rows, at = torch.tensor([row], device=self.state.device), 0
        while at < len(tokens):
            until = min(at + _AHEAD, (at // self.window + 1) * self.window)
            logits = self.read(rows, torch.tensor([tokens[at:until]], device=rows.device))
            at = until
        return logits[0]

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these, which become 0 … R - 1."""
        self.steps.keep(rows)
        self.state, self.recent = self.state[rows], self.recent[rows]


def stream_tokens(model: GlaeModel, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
    """Continuations of the prompts; each ends at the model's end, a stop string or the bound. The prompts are read in
    this call, so its errors are raised here."""
    check_prompts(prompts)
    if config.mode not in (None, MODE):
        raise ValueError(f"mode must be {MODE}, not {config.mode!r}")
    return stream_pieces(model, lambda: _Generation(model, prompts, config))


class _Generation:
    """prompts: of each row, the index of its prompt."""

    def __init__(self, model: GlaeModel, prompts: Sequence[bytes], config: GenerationConfig) -> None:
        self.tokenizer, self.config = model.tokenizer, config
        self.sample = Sampler(config, model.device)
        self.texts = [WrittenText(prompt, config) for prompt in prompts]
        self.prompts = list(range(len(prompts)))
        self.steps = LanguageSteps(model, len(prompts))
        read = (self.tokenizer.encode(prompt, bos=True).tolist() for prompt in prompts)
        self.logits = torch.stack([self.steps.read_row(row, tokens) for row, tokens in enumerate(read)])

    def pieces(self) -> Iterator[Piece]:
        """The continuations as they come."""
        while self.prompts:
            tokens = self._choose()
            for prompt, token in zip(self.prompts, tokens.tolist(), strict=True):
                if token == self.tokenizer.text_size:
                    self.texts[prompt].end()
                else:
                    self.texts[prompt].write(self.tokenizer.decode([token]))
                if data := self.texts[prompt].take():
                    yield Piece(prompt, data)
            self._read(tokens)

    def _choose(self) -> Tensor:
        """(R,) the next token of each row."""
        if self.config.no_repeat_ngram_size and self.tokenizer.source is None:
            for row, prompt in enumerate(self.prompts):
                banned = repeats(self.texts[prompt].recent, self.config.no_repeat_ngram_size)
                self.logits[row, list(banned)] = -math.inf
        return self.sample(self.logits)

    def _read(self, tokens: Tensor) -> None:
        """Forgets the rows whose text has ended; the others read their token."""
        going = torch.tensor([not self.texts[prompt].ended for prompt in self.prompts], device=tokens.device)
        if not going.all():
            kept = going.nonzero()[:, 0]
            self.steps.keep(kept)
            self.prompts, tokens = [self.prompts[row] for row in kept.tolist()], tokens[kept]
        if self.prompts:
            self.logits = self.steps.read(torch.arange(len(tokens), device=tokens.device), tokens[:, None])
