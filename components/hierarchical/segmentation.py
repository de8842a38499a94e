"""Where segments begin: rules on the bytes before a token, or on how uncertain the token is given them.

Whether a segment begins before token t is known before t is seen, for every rule, so generation needs no
look-ahead and a likelihood may use the segment's context. Special tokens are segments of their own.

Letters: B rows, T packed tokens, S packed segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from abstractinator.components.packing import Packing, gather_rows
from abstractinator.components.token_hash import mix, token_hash
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary
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
        none, about what comes of it.
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


@dataclass(frozen=True)
class Segments:
    """A packed sequence of tokens cut into segments.

    packing: of the segments, (S,) in all. of_token: (T,) segment of each token. offsets: (T,) place of each
    token in its segment. lengths: (S,). context: (T,) the segment that token t was expected to belong to
    before it was seen; it differs from `of_token` where a special token begins a segment unforeseen, and in the
    second part of one that was cut (segment_parts.py).
    """

    packing: Packing
    of_token: Tensor
    offsets: Tensor
    lengths: Tensor
    context: Tensor

    @property
    def first_tokens(self) -> Tensor:
        """(S,) the packed place of each segment's first token."""
        return self.lengths.cumsum(0) - self.lengths


@dataclass(frozen=True)
class DistinctSegments:
    """The different segments of a sequence, U of them, each once: what depends on a segment alone is computed here.

    tokens, segments: the distinct segments, one a row, and in training parts of some behind them (segment_parts.py).
    counts: (U,) how often each occurs. of_segment: (S,) which of them each segment is.
    """

    tokens: Tokens
    segments: Segments
    counts: Tensor
    of_segment: Tensor


def one_segment_a_row(tokens: Tokens) -> Segments:
    """Segments where every (non-empty) row of the tokens is one segment."""
    packing = tokens.packing
    each = Packing.from_lengths(torch.ones_like(packing.lengths))
    return Segments(each, packing.rows, packing.positions, packing.lengths, packing.rows)


def take_segments(tokens: Tokens, segments: Segments, index: Tensor) -> tuple[Tokens, Segments]:
    """The tokens of some segments (U,), any of them any number of times, each in a row of its own."""
    packing = Packing.from_lengths(segments.lengths[index])
    source = segments.first_tokens[index][packing.rows] + packing.positions
    vectors = gather_rows(tokens.vectors, source) if tokens.vectors is not None else None
    taken = Tokens(tokens.ids[source], packing, tokens.vocabulary, vectors)
    return taken, one_segment_a_row(taken)


def distinct_segments(tokens: Tokens, segments: Segments) -> DistinctSegments:
    """Finds equal segments by a 64-bit hash of their tokens: two different ones of a million are taken for equal
    with probability 3e-8."""
    token = mix(token_hash(tokens.ids), segments.offsets + 1)
    hashes = torch.zeros_like(segments.lengths).index_add_(0, segments.of_token, token)
    _, of_segment, counts = torch.unique(hashes, return_inverse=True, return_counts=True)
    place = torch.arange(len(hashes), device=hashes.device)
    chosen = torch.zeros_like(counts).scatter_(0, of_segment, place)  # one of the equal ones
    return DistinctSegments(*take_segments(tokens, segments, chosen), counts, of_segment)


@dataclass
class SegmentationState:
    """What the rule remembers of a token, in a tensor of any shape.

    entropy: H of the token after it, or what the segment open there has gathered (information). run: the token's place
    in its segment. token: its first slot.
    """

    entropy: Tensor
    run: Tensor
    token: Tensor


def is_spacelike(byte: Tensor) -> Tensor:
    """SpaceByte's set: a byte that is no ASCII letter or digit and begins or continues no longer character."""
    letter = (byte >= 65) & (byte <= 90) | (byte >= 97) & (byte <= 122)
    digit = (byte >= 48) & (byte <= 57)
    return (byte < 128) & ~letter & ~digit


class Segmenter(nn.Module):
    """Cuts tokens into segments by one rule; holds the calibrated threshold (nats), kept in checkpoints."""

    threshold: Tensor

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("threshold", torch.tensor(0.0 if config.rule == "increase" else 1.0))

    def forward(self, tokens: Tokens, entropies: Tensor | None) -> Segments:
        """entropies: (T,) H_t in nats, None for the rules that need none."""
        packing = tokens.packing
        expected = self._expected(tokens, entropies, self.threshold)
        starts = expected | tokens.special
        of_token = starts.cumsum(0) - 1
        place = torch.arange(packing.total, device=starts.device)
        first = place[starts]
        lengths = torch.diff(first, append=place.new_tensor([packing.total]))
        per_row = torch.zeros_like(packing.lengths).index_add_(0, packing.rows[starts], torch.ones_like(first))
        context = _context(of_token, tokens.special, expected)
        return Segments(Packing.from_lengths(per_row), of_token, place - first[of_token], lengths, context)

    def _expected(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> Tensor:
        """(T,) bool: where a segment begins, as far as it can be known before the token is seen."""
        packing = tokens.packing
        row_start = packing.positions == 0
        forced = row_start | packing.shift(tokens.special, torch.tensor(True, device=row_start.device))
        if self.config.rule == "information":
            assert entropies is not None, "the rule information needs entropies"
            following = self._following(forced, entropies.masked_fill(entropies.isinf(), 0.0), threshold)
        else:
            following = self._following(
                forced, self._begins(tokens, entropies, threshold).float(), threshold.new_zeros(())
            )
        return _reached(forced, following)

    def _following(self, forced: Tensor, weight: Tensor, bound: Tensor) -> Tensor:
        """(T,) for every token: where the next segment would begin if one began here.

        That is where a boundary is forced, or where the segment would be too long, or the first token from the
        shortest length on at which the rule holds: weight > bound, for `information` with all weights before it in
        the segment added.
        """
        total, place = len(forced), torch.arange(len(forced), device=forced.device)
        gathered, following, is_open = weight, place + self._cut, torch.ones_like(forced)
        for ahead in range(1, min(self._cut, total)):
            token = (place + ahead).clamp(max=total - 1)
            gathered = gathered + weight[token] if self.config.rule == "information" else weight[token]
            ends = forced[token] | (gathered > bound) if ahead >= self.config.min_tokens_per_code else forced[token]
            ends = is_open & ends
            following = torch.where(ends, place + ahead, following)
            is_open = is_open & ~ends
        return following.clamp(max=total)

    def _begins(self, tokens: Tokens, entropies: Tensor | None, threshold: Tensor) -> Tensor:
        """(T,) bool: where the rule itself would begin a segment."""
        packing, config = tokens.packing, self.config
        if config.rule == "fixed":
            return torch.zeros_like(tokens.special)
        if config.rule == "whitespace":
            space = is_spacelike(tokens.ids[:, 0])
            nothing = torch.zeros((), dtype=torch.bool, device=space.device)
            last = packing.shift(space, nothing)
            return last & ~packing.shift(last, nothing)
        assert entropies is not None, f"the rule {config.rule} needs entropies"
        rises = entropies - packing.shift(entropies, entropies.new_tensor(float("inf")))
        return self._is_hard(entropies, rises, threshold)

    def _is_hard(self, entropy: Tensor, rise: Tensor, threshold: Tensor) -> Tensor:
        if self.config.rule == "increase":
            return rise > threshold
        hard = entropy > threshold
        return hard & (rise > 0) if self.config.rule == "both" else hard

    @property
    def _cut(self) -> int:
        """Length at which a segment is cut."""
        config = self.config
        return int(config.target_tokens_per_code) if config.rule == "fixed" else config.max_tokens_per_code

    @torch.no_grad()
    def calibrate(self, tokens: Tokens, entropies: Tensor, *, momentum: float = 1.0) -> None:
        """Moves the threshold to where the tokens' mean segment length is the target.

        momentum: 1 sets it; less moves it by this share towards the value of this batch (a running calibration).
        """
        if self.config.rule not in ENTROPY_RULES or not len(entropies):
            return
        wanted = tokens.packing.total / self.config.target_tokens_per_code
        # Entropies of several slots add up, so no fixed bound holds for all alphabets.
        high = entropies.masked_fill(entropies.isinf(), 0.0).max() + 1
        if self.config.rule == "information":
            high = high * self._cut
        low = -high
        for _ in range(20):
            middle = (low + high) / 2
            starts = self._expected(tokens, entropies, middle) | tokens.special
            too_many = starts.sum() > wanted
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        self.threshold.lerp_(high.to(self.threshold), momentum)

    def begin(self, rows: int, device: torch.device) -> SegmentationState:
        """The state before any token of `rows` rows, (rows,) each."""
        zeros = torch.zeros(rows, device=device)
        before = 0.0 if self.config.rule == "information" else float("inf")
        no_space = torch.full_like(zeros, BYTES.bos, dtype=torch.int64)
        return SegmentationState(zeros + before, zeros.long(), no_space)

    def step(
        self, last: SegmentationState, token: Tensor, special: Tensor, entropy: Tensor | None
    ) -> tuple[Tensor, SegmentationState]:
        """n more tokens of R rows → whether a segment begins after each, (R, n) bool, and the states (R, n) there.

        last: (R,) at the token before them. token: (R, n) their first slots. special: (R, n) bool, which are
        special ones. entropy: (R, n) H of the tokens after them, None for the rules that need none. Equals `forward`.
        """
        weight, bound = self._weigh(last, token, entropy)
        gathered, run = last.entropy, last.run
        begins, sums, runs = [], [], []
        for n in range(token.shape[1]):  # where a segment may begin depends on where the one before began
            run = run + 1
            gathered = gathered + weight[:, n] if self.config.rule == "information" else weight[:, n]
            holds = (gathered > bound) & (run >= self.config.min_tokens_per_code)
            begins.append(special[:, n] | holds | (run == self._cut))
            gathered, run = torch.where(begins[-1], weight[:, n], gathered), run.masked_fill(begins[-1], 0)
            sums.append(gathered)
            runs.append(run)
        if self.config.rule == "information":
            entropy = torch.stack(sums, 1)
        elif entropy is None:
            entropy = last.entropy[:, None].expand(token.shape)
        return torch.stack(begins, 1), SegmentationState(entropy, torch.stack(runs, 1), token)

    def _weigh(self, last: SegmentationState, token: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights (R, n) and their bound, as in `_following`, of the tokens after those of a `step`."""
        if self.config.rule == "fixed":
            return torch.zeros_like(token, dtype=torch.float32), self.threshold.new_zeros(())
        if self.config.rule == "whitespace":
            spacelike, before = is_spacelike(token), is_spacelike(last.token)
            hard = spacelike & ~torch.cat([before[:, None], spacelike[:, :-1]], dim=1)
            return hard.float(), self.threshold.new_zeros(())
        assert entropy is not None, f"the rule {self.config.rule} needs entropies"
        if self.config.rule == "information":
            return entropy, self.threshold
        rise = entropy - torch.cat([last.entropy[:, None], entropy[:, :-1]], dim=1)
        return self._is_hard(entropy, rise, self.threshold).float(), self.threshold.new_zeros(())


def _reached(forced: Tensor, following: Tensor) -> Tensor:
    """(T,) bool: the tokens on the paths i → following[i] from the forced ones, found by doubling the stride: log₂ T
    rounds."""
    total = len(forced)
    following = torch.cat([following, following.new_tensor([total])])  # the end leads to itself
    reached = torch.cat([forced, forced.new_zeros(1)])
    for _ in range(total.bit_length()):
        reached = reached.index_fill(0, following[reached.nonzero()[:, 0]], True)
        following = following[following]
    return reached[:total]


def _context(of_token: Tensor, special: Tensor, expected: Tensor) -> Tensor:
    """Segments.context: a special token where no segment was expected to begin was expected in the one before."""
    return of_token - (special & ~expected).to(of_token.dtype)


def check_rule(rule: Rule, vocabulary: Vocabulary) -> None:
    """Raises ValueError where the rule does not fit the tokens of a level."""
    if rule == "whitespace" and vocabulary != BYTES:
        raise ValueError("the rule `whitespace` reads bytes; above the first level use `fixed` or an entropy rule")
