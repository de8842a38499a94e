"""The rules by which segments begin; see SegmentationConfig for what each one says.

Letters: T packed tokens, R rows that take a step, n tokens a row.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from abstractinator.components.hierarchical.segmentation.segmentation_config import (
    ENTROPY_RULES,
    Rule,
    SegmentationConfig,
)
from abstractinator.components.hierarchical.segmentation.segmenter import SegmentationState, Segmenter
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary


class Fixed(Segmenter):
    """Every target_tokens_per_code tokens."""

    @property
    def longest(self) -> int:
        return int(self.config.target_tokens_per_code)

    def weigh(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(tokens.special).float(), threshold.new_zeros(())

    def weigh_next(self, last: SegmentationState, token: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(token, dtype=torch.float32), self.threshold.new_zeros(())


class Whitespace(Segmenter):
    """After the first of a run of bytes that are no letter, digit or part of a longer character."""

    def weigh(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> tuple[Tensor, Tensor]:
        space = is_spacelike(tokens.ids[:, 0])
        outside = torch.zeros((), dtype=torch.bool, device=space.device)
        last = tokens.packing.shift(space, outside)
        return (last & ~tokens.packing.shift(last, outside)).float(), threshold.new_zeros(())

    def weigh_next(self, last: SegmentationState, token: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        spacelike, before = is_spacelike(token), is_spacelike(last.token)
        begins = spacelike & ~torch.cat([before[:, None], spacelike[:, :-1]], dim=1)
        return begins.float(), self.threshold.new_zeros(())


class EntropyRule(Segmenter):
    """A rule on how uncertain a token is given those before it, with a threshold that is calibrated."""

    @torch.no_grad()
    def calibrate(self, tokens: Tokens, entropies: Tensor, *, momentum: float = 1.0) -> None:
        if not len(entropies):
            return
        wanted = tokens.packing.total / self.config.target_tokens_per_code
        # Entropies of several slots add up, so no fixed bound holds for all vocabularies.
        high = entropies.masked_fill(entropies.isinf(), 0.0).max() + 1
        if self.adds_up:
            high = high * self.longest
        low = -high
        for _ in range(20):
            middle = (low + high) / 2
            starts = self._expected(tokens, entropies, middle) | tokens.special
            too_many = starts.sum() > wanted
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        self.threshold.lerp_(high.to(self.threshold), momentum)


class LocalEntropyRule(EntropyRule):
    """A rule on a token's entropy and that of the token before it."""

    @abstractmethod
    def is_hard(self, entropy: Tensor, rise: Tensor, threshold: Tensor) -> Tensor:
        """Where a segment begins, for tokens of these entropies, which rose so much since the token before."""

    def weigh(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> tuple[Tensor, Tensor]:
        assert entropies is not None, f"the rule {self.config.rule} needs entropies"
        rises = entropies - tokens.packing.shift(entropies, entropies.new_tensor(float("inf")))
        return self.is_hard(entropies, rises, threshold).float(), threshold.new_zeros(())

    def weigh_next(self, last: SegmentationState, token: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        assert entropy is not None, f"the rule {self.config.rule} needs entropies"
        rise = entropy - torch.cat([last.entropy[:, None], entropy[:, :-1]], dim=1)
        return self.is_hard(entropy, rise, self.threshold).float(), self.threshold.new_zeros(())


class Increase(LocalEntropyRule):
    """Where the entropy rises by more than the threshold."""

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__(config, threshold=0.0)

    def is_hard(self, entropy: Tensor, rise: Tensor, threshold: Tensor) -> Tensor:
        return rise > threshold


class Threshold(LocalEntropyRule):
    """Where the entropy is above the threshold."""

    def is_hard(self, entropy: Tensor, rise: Tensor, threshold: Tensor) -> Tensor:
        return entropy > threshold


class Both(LocalEntropyRule):
    """Where the entropy is above the threshold, and rises."""

    def is_hard(self, entropy: Tensor, rise: Tensor, threshold: Tensor) -> Tensor:
        return (entropy > threshold) & (rise > 0)


class Information(EntropyRule):
    """Where the entropies of the segment so far add up to more than the threshold."""

    adds_up: ClassVar[bool] = True

    def weigh(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> tuple[Tensor, Tensor]:
        assert entropies is not None, "the rule information needs entropies"
        return entropies.masked_fill(entropies.isinf(), 0.0), threshold

    def weigh_next(self, last: SegmentationState, token: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        assert entropy is not None, "the rule information needs entropies"
        return entropy, self.threshold


_RULES: dict[Rule, type[Segmenter]] = {
    "information": Information,
    "increase": Increase,
    "threshold": Threshold,
    "both": Both,
    "fixed": Fixed,
    "whitespace": Whitespace,
}
assert set(ENTROPY_RULES) == {name for name, rule in _RULES.items() if issubclass(rule, EntropyRule)}


def segmenter_of(config: SegmentationConfig) -> Segmenter:
    """The segmenter of the rule."""
    return _RULES[config.rule](config)


def is_spacelike(byte: Tensor) -> Tensor:
    """SpaceByte's set: a byte below 128 that is neither a letter nor a digit."""
    letter = (byte >= 65) & (byte <= 90) | (byte >= 97) & (byte <= 122)
    digit = (byte >= 48) & (byte <= 57)
    return (byte < 128) & ~letter & ~digit


def check_rule(rule: Rule, vocabulary: Vocabulary) -> None:
    """Raises ValueError where the rule does not fit the tokens of a level."""
    if rule == "whitespace" and vocabulary != BYTES:
        raise ValueError("the rule `whitespace` reads bytes; above the first level use `fixed` or an entropy rule")
