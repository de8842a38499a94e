"""What generation may choose: the settings of a GenerationConfig, applied to logits and to the text.

Letters: R rows, n positions a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.tokenizer import Tokenizer

Item = TypeVar("Item")
_TRIES = 64  # tokens that would repeat something and are refused, before any is taken
_GREEDY = 1e-6  # a temperature below this one is 0: logits over it would be infinite


class Sampler:
    """Draws from logits as a GenerationConfig says; one random stream for a whole generation."""

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self.config = config
        self.random = torch.Generator(device)
        if config.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(config.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """(…, classes) → (…) choices, independent of each other; of logits that are all −∞, or NaN, any class."""
        config = self.config
        if config.temperature < _GREEDY:
            return logits.argmax(-1)
        count = min(config.top_k or logits.shape[-1], logits.shape[-1])
        ordered, index = logits.flatten(0, -2).topk(count)
        up_to = (ordered / config.temperature).softmax(-1).cumsum(-1)  # (T, count): of a choice and all more probable
        last = torch.searchsorted(up_to, up_to.new_full((len(up_to), 1), config.top_p)).clamp_(max=count - 1)
        point = torch.rand(last.shape, generator=self.random, device=up_to.device) * up_to.gather(1, last)
        choice = torch.minimum(torch.searchsorted(up_to, point, right=True), last)
        return index.gather(1, choice).view(logits.shape[:-1])


def repeats(history: Iterable[Item], size: int) -> set[Item]:
    """What would complete, behind `history`, a run of `size` items that stands in it already; none for size 0."""
    items = tuple(history) if size else ()
    if len(items) < size or not size:
        return set()
    begin = items[len(items) - size + 1 :]
    return {items[at + size - 1] for at in range(len(items) - size + 1) if items[at : at + size - 1] == begin}


def repeats_itself(recent: bytes | bytearray, more: bytes, size: int) -> bool:
    """Whether a string of `size` bytes that ends within `more`, behind `recent`, stands in them before; never for size
    0."""
    whole = bytes(recent) + more
    ends = range(max(len(recent) + 1, size), len(whole) + 1) if size else range(0)
    return any(whole.find(whole[end - size : end], 0, end - 1) >= 0 for end in ends)


def draw_tokens(
    sample: Sampler, logits: Tensor, texts: list[WrittenText], pending: list[list[int]], tokenizer: Tokenizer
) -> list[int]:
    """(R, V) logits, which may be changed → a token for each row. One that would complete a repetition is drawn again
    without it. pending: tokens of each row that are not in its text yet."""
    choice, size = sample(logits), sample.config.no_repeat_ngram_size
    for _ in range(_TRIES if size else 0):
        again = [
            row
            for row, (text, tokens) in enumerate(zip(texts, pending, strict=True))
            if repeats_itself(text.recent, tokenizer.decode([*tokens, int(choice[row])]), size)
        ]
        if not again:
            break
        logits[again, choice[again]] = -torch.inf
        choice[again] = sample(logits[again])
    return choice.tolist()


class WrittenText:
    """A continuation as it comes: where it ends, and how much of it can be shown already.

    What may turn out to be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, prompt: bytes, config: GenerationConfig) -> None:
        self.config, self.stop = config, config.stop_bytes
        self.recent = bytearray(prompt[-config.repetition_window :])
        self.left, self.ended = config.max_new_bytes, False
        self._held = bytearray()

    def write(self, data: bytes) -> None:
        """Appends these bytes, as far as bound and stop strings allow."""
        if self.ended:
            return
        data = data[: self.left]
        self.left -= len(data)
        self._held += data
        self.recent += data
        del self.recent[: -self.config.repetition_window]
        # By their ends: a text written byte by byte would have ended at the first one.
        found = [(at + len(stop), at) for stop in self.stop if (at := self._held.find(stop)) >= 0]
        if found:
            del self._held[min(found)[1] :]
        if found or not self.left:
            self.ended = True

    def end(self) -> None:
        """The model ended the text."""
        self.ended = True

    def take(self) -> bytes:
        """What can be shown and was not taken yet."""
        kept = 0 if self.ended else self._undecided()
        shown = bytes(self._held[: len(self._held) - kept])
        del self._held[: len(shown)]
        return shown

    def _undecided(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(max(map(len, self.stop), default=0) - 1, len(self._held))
        ends = (n for n in range(longest, 0, -1) if any(text.startswith(self._held[-n:]) for text in self.stop))
        return next(ends, 0)
