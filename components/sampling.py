"""What generation may say: the settings of a GenerationConfig, applied to logits and to the text.

Letters: R rows, n positions a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

Item = TypeVar("Item")
Mode = Literal["plan", "exact", "speculative"]
_GREEDY = 1e-6  # a temperature below this one is 0: logits over it would be infinite


@dataclass(frozen=True)
class GenerationConfig:
    """mode: see components/generation.py. max_new_bytes: bound on each continuation.

    temperature: 0 takes the most probable choice each time. top_k: only the k most probable choices, 0 for
    all. top_p: only the most probable choices that together reach p (Holtzman et al. 2020).
    no_repeat_ngram_size: no string of this many bytes comes that stands in the last repetition_window bytes already,
    prompt included; 0 allows all. In `plan` the same holds for runs of as many codes as make about so many bytes.
    stop: the text ends before whichever of these is complete first (the longest of those that are so together);
    str stands for its UTF-8.
    seed: of the sampling, None for another result each time.
    """

    mode: Mode = "plan"
    max_new_bytes: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    no_repeat_ngram_size: int = 0
    repetition_window: int = 1024
    stop: tuple[str | bytes, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {self.mode!r}")
        for name in ("max_new_bytes", "top_k", "no_repeat_ngram_size", "repetition_window"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**64):
            raise ValueError(f"seed must be None or a whole number from 0 on and below 2**64, not {self.seed!r}")
        if not all(isinstance(value, int | float) for value in (self.temperature, self.top_p)):
            raise ValueError(f"temperature and top_p must be numbers, not {self.temperature!r} and {self.top_p!r}")
        if self.max_new_bytes < 1:
            raise ValueError(f"max_new_bytes must be at least 1, not {self.max_new_bytes}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, not {self.top_p}")
        if self.no_repeat_ngram_size < 0 or self.no_repeat_ngram_size == 1:
            raise ValueError(f"no_repeat_ngram_size must be 0 (off) or at least 2, not {self.no_repeat_ngram_size}")
        if self.repetition_window < 1:
            raise ValueError(f"repetition_window must be at least 1, not {self.repetition_window}")
        if self.no_repeat_ngram_size > self.repetition_window:
            raise ValueError(
                f"no_repeat_ngram_size ({self.no_repeat_ngram_size}) must not be above repetition_window "
                f"({self.repetition_window}), the bytes that are looked at"
            )
        if isinstance(self.stop, str | bytes):
            raise ValueError(f"stop must be a list of texts, not one text: use [{self.stop!r}]")
        if not isinstance(self.stop, Sequence):
            raise ValueError(f"stop must be a list of texts, not {self.stop!r}")
        if not all(isinstance(text, str | bytes) and text for text in self.stop):
            raise ValueError(f"every text of stop must have at least one byte: {self.stop!r}")
        try:
            _ = self.stop_bytes
        except UnicodeEncodeError as error:
            raise ValueError(f"stop must be whole characters or bytes, not {error.object!r}") from error

    @property
    def stop_bytes(self) -> tuple[bytes, ...]:
        """`stop` as bytes; what is no valid text in a command line's argument comes back as the byte that it was."""
        return tuple(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in self.stop)


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
        """(…, classes) → (…) choices, independent of each other; of logits that are all −∞, or NaN, any."""
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
        """Goes on with these bytes, as far as bound and stop strings allow."""
        if self.ended:
            return
        data = data[: self.left]
        self.left -= len(data)
        self._held += data
        self.recent += data
        del self.recent[: -self.config.repetition_window]
        # By their ends: a text written byte by byte would have ended there, whatever comes behind.
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
