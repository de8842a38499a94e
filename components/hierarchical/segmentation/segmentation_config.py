"""How a level is cut into segments: the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from abstractinator.contract.model import TRAINING_ONLY

Rule = Literal["information", "increase", "threshold", "both", "fixed", "whitespace"]
ENTROPY_RULES = ("information", "increase", "threshold", "both")


@dataclass(frozen=True)
class SegmentationConfig:
    """How a level is cut into segments.

    rule: a segment begins at token t where, H_t being the entropy in nats of t given the tokens before it,
        information Σ H_i from the segment's first token to t > threshold: segments of equal information, so that
                    codes of equal size suit them; short where text is hard to predict, long where it is easy
        increase    H_t > H_(t-1) + threshold        (the rule of Abstractinator's first version)
        threshold   H_t > threshold                  (BLT, arXiv 2412.09871)
        both        H_t > threshold and H_t > H_(t-1)
        fixed       every target_tokens_per_code tokens (CALM's chunks)
        whitespace  after the first of a run of bytes that are no letter, digit or part of a longer character
                    (SpaceByte, arXiv 2404.14408); bytes only
    target_tokens_per_code: mean length of a segment: what the threshold is calibrated to; of `whitespace`, which has
        none, its approximate result.
    min_tokens_per_code, max_tokens_per_code: shortest and longest segment; only special tokens, ends of rows and
        repairing (segment_parts.py) make shorter ones. Every segment gets as many codes, so very short ones waste them.
        `fixed` has no shortest.
    train_fraction: part of the training during which the entropy model learns and the threshold follows it;
        then both are frozen, so that boundaries, and with them codes, stop drifting.
    """

    rule: Rule = "whitespace"
    target_tokens_per_code: float = 4.6
    min_tokens_per_code: int = 2
    max_tokens_per_code: int = 6
    train_fraction: float = field(default=0.1, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, not {self.rule!r}")
        shortest = 1 if self.rule == "fixed" else self.min_tokens_per_code
        if self.min_tokens_per_code < 1 or not shortest <= self.target_tokens_per_code <= self.max_tokens_per_code:
            raise ValueError(
                f"target_tokens_per_code ({self.target_tokens_per_code}) must lie between min_tokens_per_code "
                f"({self.min_tokens_per_code}, at least 1) and max_tokens_per_code ({self.max_tokens_per_code})"
            )
        if self.rule == "fixed" and self.target_tokens_per_code != int(self.target_tokens_per_code):
            raise ValueError("the rule `fixed` needs a whole number as target_tokens_per_code")
        if not 0 <= self.train_fraction <= 1:
            raise ValueError(f"train_fraction must lie between 0 and 1, not {self.train_fraction}")

    @property
    def shortest(self) -> int:
        """Tokens of the shortest segment that is cut neither by a special token nor by the end of a row."""
        return int(self.target_tokens_per_code) if self.rule == "fixed" else self.min_tokens_per_code
