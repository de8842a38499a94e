"""What all rules have in common: from where a segment may begin to the segments of a text, at once or step by step.

Whether a segment begins before token t is known before t is seen, for every rule, so generation needs no
look-ahead and a likelihood may use the segment's context. Special tokens are segments of their own.

Letters: T packed tokens, S packed segments, R rows that take a step, n tokens a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.hierarchical.segmentation.segmentation_config import SegmentationConfig
from abstractinator.components.hierarchical.segmentation.segments import Segments
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import BYTES, Tokens


@dataclass
class SegmentationState:
    """What the rule remembers of a token, in a tensor of any shape.

    entropy: H of the token after it, or what the segment open there has gathered (information). run: the token's
    offset in its segment. token: its first slot.
    """

    entropy: Tensor
    run: Tensor
    token: Tensor


class Segmenter(nn.Module, ABC):
    """Cuts tokens into segments by one rule; holds the calibrated threshold (nats), kept in checkpoints.

    A rule gives every token a weight, and a bound: a segment begins at the first token, from the shortest length on,
    whose weight is above the bound. adds_up: whether the weights of the segment so far are added to a token's own.
    """

    threshold: Tensor
    adds_up: ClassVar[bool] = False

    def __init__(self, config: SegmentationConfig, threshold: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("threshold", torch.tensor(threshold))

    @abstractmethod
    def weigh(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (T,) of the tokens, and their bound."""

    @abstractmethod
    def weigh_next(self, last: SegmentationState, token: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights (R, n), and their bound, of the tokens after those of a `step`."""

    @property
    def longest(self) -> int:
        """Tokens after which a segment is cut."""
        return self.config.max_tokens_per_code

    def forward(self, tokens: Tokens, entropies: Tensor | None) -> Segments:
        """entropies: (T,) H_t in nats, None for the rules that need none."""
        packing = tokens.packing
        expected = self._expected(tokens, entropies, self.threshold)
        starts = expected | tokens.special
        of_token = starts.cumsum(0) - 1
        index = torch.arange(packing.total, device=starts.device)
        first = index[starts]
        lengths = torch.diff(first, append=index.new_tensor([packing.total]))
        per_row = torch.zeros_like(packing.lengths).index_add_(0, packing.rows[starts], torch.ones_like(first))
        context = _context(of_token, tokens.special, expected)
        return Segments(Packing.from_lengths(per_row), of_token, index - first[of_token], lengths, context)

    def _expected(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> Tensor:
        """(T,) bool: where a segment begins, as far as it can be known before the token is seen."""
        packing = tokens.packing
        row_start = packing.positions == 0
        forced = (row_start | packing.shift(tokens.special, torch.tensor(True, device=row_start.device)))[None]
        weight, bound = self.weigh(tokens, entropies, threshold)
        following, _ = self._following(forced, weight[None], bound, forced.new_zeros(1, 1))
        return _reached(forced, following)[0]

    def _following(self, forced: Tensor, weight: Tensor, bound: Tensor, run: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Where the next segment would begin if one began at a token: (R, W) columns, W for none, of W tokens a row.

        That is where a boundary is forced, or where the segment would be too long, or the first token from the
        shortest length on at which the rule holds. run: (R, W) tokens that the segment has before that token. Also,
        for each number of tokens ahead, what is compared with the bound there, (R, W).
        """
        width, config = forced.shape[1], self.config
        steps, index = max(0, min(self.longest, width - 1)), torch.arange(width, device=forced.device)
        forced, weight = F.pad(forced, (0, steps)), F.pad(weight, (0, steps))
        following = torch.full_like(index, width).expand(len(forced), -1)
        is_open = torch.ones_like(following, dtype=torch.bool)
        sums = [weight[:, :width]]
        for ahead in range(1, steps + 1):
            upcoming, length = slice(ahead, ahead + width), run + ahead
            sums.append(sums[-1] + weight[:, upcoming] if self.adds_up else weight[:, upcoming])
            holds = (sums[-1] > bound) & (length >= config.min_tokens_per_code)
            ends = forced[:, upcoming] | holds | (length >= self.longest)
            following = torch.where(is_open & ends, index + ahead, following)
            is_open = is_open & ~ends
        return following.clamp(max=width), sums

    def calibrate(self, tokens: Tokens, entropies: Tensor, *, momentum: float = 1.0) -> None:
        """Moves the threshold to where the tokens' mean segment length is the target; rules without one have none.

        momentum: 1 sets it; less moves it by this share towards the value of this batch (a running calibration).
        """

    def begin(self, rows: int, device: torch.device) -> SegmentationState:
        """The state before any token of `rows` rows, (rows,) each."""
        zeros = torch.zeros(rows, device=device)
        before = 0.0 if self.adds_up else float("inf")
        no_space = torch.full_like(zeros, BYTES.bos, dtype=torch.int64)
        return SegmentationState(zeros + before, zeros.long(), no_space)

    def step(
        self, last: SegmentationState, token: Tensor, special: Tensor, entropy: Tensor | None
    ) -> tuple[Tensor, SegmentationState]:
        """n more tokens of R rows → whether a segment begins after each, (R, n) bool, and the states (R, n) there.

        last: (R,) at the token before them. token: (R, n) their first slots. special: (R, n) bool, which are
        special ones. entropy: (R, n) H of the tokens after them, None for the rules that need none. Equals `forward`.
        """
        weight, bound = self.weigh_next(last, token, entropy)
        # Column 0 is the state: a segment that has `last.run` tokens before it. A boundary at column t is after token
        # t - 1.
        weight = torch.cat([last.entropy[:, None], weight], dim=1)
        run = F.pad(last.run[:, None], (0, token.shape[1]))
        following, sums = self._following(F.pad(special, (1, 0)), weight, bound, run)
        index = torch.arange(weight.shape[1], device=weight.device)
        begins = _reached((index == 0).expand_as(weight), following)
        first = torch.where(begins, index, 0).cummax(1).values  # where the segment of each column begins
        run = run.gather(1, first) + index - first
        if self.adds_up:
            ahead = index - first
            entropy = torch.stack(sums)[ahead, torch.arange(len(first), device=first.device)[:, None], first][:, 1:]
        elif entropy is None:
            entropy = last.entropy[:, None].expand(token.shape)
        return begins[:, 1:], SegmentationState(entropy, run[:, 1:], token)


def _reached(starts: Tensor, following: Tensor) -> Tensor:
    """(R, W) bool: the columns on the paths i → following[i] from those where a segment starts; column W is outside.

    Found by doubling the stride: log₂ W rounds, and without reading values, for which a GPU would have to wait.
    """
    width = starts.shape[1]
    rows = torch.arange(len(starts), device=starts.device)[:, None] * (width + 1)
    following = (F.pad(following, (0, 1), value=width) + rows).flatten()  # outside leads to itself
    reached = F.pad(starts, (0, 1)).flatten().int()
    for _ in range(width.bit_length()):
        reached = reached.scatter_reduce(0, following, reached, "amax")
        following = following[following]
    return reached.view(-1, width + 1)[:, :width].bool()


def _context(of_token: Tensor, special: Tensor, expected: Tensor) -> Tensor:
    """Segments.context: a special token where no segment was expected to begin was expected in the one before."""
    return of_token - (special & ~expected).to(of_token.dtype)
