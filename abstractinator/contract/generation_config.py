"""How text is generated: the settings that all kinds of model share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationConfig:
    """mode: one of those of the kind of model; None is its default. max_new_bytes: bound on each continuation.

    temperature: 0 takes the most probable choice each time. top_k: only the k most probable choices, 0 for
    all. top_p: only the most probable choices that together reach p (Holtzman et al. 2020).
    no_repeat_ngram_size: no string of this many bytes comes that stands in the last repetition_window bytes already,
    prompt included; 0 allows all.
    stop: the text ends before whichever of these is complete first (the longest of those that are so together);
    str stands for its UTF-8.
    seed: of the sampling, None for another result each time.
    """

    mode: str | None = None
    max_new_bytes: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    no_repeat_ngram_size: int = 0
    repetition_window: int = 1024
    stop: tuple[str | bytes, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
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
            raise ValueError(f"temperature must be a number from 0 on, and finite, not {self.temperature}")
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
                f"({self.repetition_window}), the bytes that are searched for repetitions"
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
        """`stop` as bytes; an undecodable byte of a command-line argument becomes that byte again."""
        return tuple(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in self.stop)
