import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator.components.hierarchical.segmentation import (
    ENTROPY_RULES,
    SegmentationConfig,
    SegmentationState,
    Segmenter,
    Segments,
    check_rule,
    distinct_segments,
)
from abstractinator.components.hierarchical.segmentation import segmenter_of as rule_of
from abstractinator.components.hierarchical.segmentation.rules import is_spacelike
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary

RULES = ("information", "increase", "threshold", "both", "fixed", "whitespace")
every_rule = pytest.mark.parametrize("rule", RULES)
# A row is its token ids and the entropy of each; special tokens may stand anywhere.
token = st.sampled_from([*b"aZ09 .,\n", 200, 255, BYTES.bos, BYTES.eos])
row = st.lists(st.tuples(token, st.integers(0, 8).map(lambda x: x / 2)), max_size=25)
Row = list[tuple[int, float]]


def segmenter_of(
    rule: str, threshold: float = 1.25, longest: int = 4, target: float = 3, shortest: int = 1
) -> Segmenter:
    config = SegmentationConfig(
        rule=rule,  # type: ignore[arg-type]
        target_tokens_per_code=target,
        min_tokens_per_code=shortest,
        max_tokens_per_code=longest,
    )
    segmenter = rule_of(config)
    segmenter.threshold.fill_(threshold)
    return segmenter


def packed(rows: list[Row]) -> tuple[Tokens, torch.Tensor]:
    ids = [i for r in rows for i, _ in r]
    entropies = [h if t else math.inf for r in rows for t, (_, h) in enumerate(r)]
    packing = Packing.from_lengths(torch.tensor([len(r) for r in rows]))
    return Tokens(torch.tensor(ids, dtype=torch.int64)[:, None], packing, BYTES), torch.tensor(entropies)


def starts_of(segments: Segments) -> list[bool]:
    return (segments.offsets == 0).tolist()


def expected_of(segments: Segments) -> list[bool]:
    """Where a segment was expected to begin before the token was seen."""
    return ((segments.offsets == 0) & (segments.context == segments.of_token)).tolist()


def naive_starts(
    rule: str, row: Row, threshold: float, longest: int, shortest: int = 1
) -> tuple[list[bool], list[bool]]:
    """The rules, token by token → where segments were expected to begin and where they do."""
    spacelike = [i < 128 and not chr(i).isalnum() for i, _ in row]
    special = [i >= 256 for i, _ in row]
    expected: list[bool] = []
    length, gathered = 0, 0.0
    for t, (_, h) in enumerate(row):
        h = h if t else 0.0  # a row's first token has no entropy
        before = row[t - 1][1] if t > 1 else math.inf
        holds = rule == "information" and gathered + h > threshold
        holds |= rule == "increase" and h > before + threshold
        holds |= rule == "threshold" and h > threshold
        holds |= rule == "both" and h > threshold and h > before
        holds |= rule == "whitespace" and spacelike[t - 1] and not (t > 1 and spacelike[t - 2])
        begins = t == 0 or special[t - 1] or length == longest or (holds and length >= shortest)
        expected.append(begins)
        length, gathered = (1, h) if begins else (length + 1, gathered + h)
    return expected, [e or s for e, s in zip(expected, special, strict=True)]


@every_rule
@settings(max_examples=60)
@given(rows=st.lists(row, min_size=1, max_size=3).filter(any), shortest=st.integers(1, 3))
def test_segments_begin_where_the_rule_says(rule: str, rows: list[Row], shortest: int) -> None:
    segments = segmenter_of(rule, shortest=shortest)(*packed(rows))
    naive = [naive_starts(rule, r, 1.25, 3 if rule == "fixed" else 4, shortest) for r in rows]
    starts = [x for _, s in naive for x in s]
    assert starts_of(segments) == starts
    assert expected_of(segments) == [e and s for es in naive for e, s in zip(*es, strict=True)]

    # What else Segments holds follows from where they begin.
    firsts = [i for i, start in enumerate(starts) if start]
    assert segments.first_tokens.tolist() == firsts
    assert segments.lengths.tolist() == [b - a for a, b in zip(firsts, [*firsts[1:], len(starts)], strict=True)]
    assert segments.of_token.tolist() == [sum(starts[: i + 1]) - 1 for i in range(len(starts))]
    assert segments.packing.lengths.tolist() == [sum(s) for _, s in naive]


@every_rule
@settings(max_examples=60)
@given(row=row.filter(lambda r: len(r) > 1), data=st.data())
def test_steps_find_the_same_boundaries(rule: str, row: Row, data: st.DataObject) -> None:
    """Some tokens at a time, each chunk continuing from any token of the one before."""
    shortest = data.draw(st.integers(1, 3))
    segmenter = segmenter_of(rule, shortest=shortest)
    expected, _ = naive_starts(rule, row, 1.25, 3 if rule == "fixed" else 4, shortest)
    state, known = segmenter.begin(1, torch.device("cpu")), 0
    while known < len(row) - 1:
        count = data.draw(st.integers(1, len(row) - 1 - known))
        ids = torch.tensor([[token for token, _ in row[known : known + count]]])
        # The row's first token has no entropy; so no rise is measured there.
        entropy = torch.tensor([[h for _, h in row[known + 1 : known + 1 + count]]])
        begins, states = segmenter.step(state, ids, ids >= 256, entropy)
        assert begins[0].tolist() == expected[known + 1 : known + 1 + count]
        kept = data.draw(st.integers(1, count))
        parts = (states.entropy, states.run, states.token)
        state, known = SegmentationState(*(part[:, kept - 1] for part in parts)), known + kept


@every_rule
@settings(max_examples=30)
@given(rows=st.lists(row.filter(bool), min_size=2, max_size=4))
def test_other_rows_change_nothing(rule: str, rows: list[Row]) -> None:
    segmenter = segmenter_of(rule)
    together = starts_of(segmenter(*packed(rows)))
    alone = [start for r in rows for start in starts_of(segmenter(*packed([r])))]
    assert together == alone


@every_rule
@settings(max_examples=40)
@given(row=row.filter(lambda r: len(r) > 1), data=st.data())
def test_what_a_token_is_changes_no_expectation_at_it_or_before(rule: str, row: Row, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, len(row) - 1))
    rest = data.draw(st.sampled_from([row[t + 1 :], []]))
    changed = [*row[:t], (data.draw(token), row[t][1]), *rest]
    segmenter = segmenter_of(rule)
    before, after = (segmenter(*packed([r])) for r in (row, changed))
    assert starts_of(before)[:t] == starts_of(after)[:t]
    assert torch.equal(before.context[: t + 1], after.context[: t + 1])


@every_rule
@pytest.mark.parametrize("longest", [1, 2, 5])
def test_no_segment_is_longer_than_the_bound(rule: str, longest: int) -> None:
    letters: Row = [(97, 0.0)] * 23
    segmenter = segmenter_of(rule, threshold=9.0, longest=longest, target=longest)
    assert segmenter(*packed([letters, letters[:7]])).lengths.max() == longest


@every_rule
def test_special_tokens_are_segments_of_their_own(rule: str) -> None:
    ids = [BYTES.bos, *b"abc", BYTES.eos, BYTES.bos, *b"de fg", BYTES.eos]
    tokens, entropies = packed([[(i, 0.0) for i in ids]])
    segments = segmenter_of(rule)(tokens, entropies)
    assert (segments.lengths[segments.of_token[tokens.special]] == 1).all()


def test_an_unforeseen_special_token_was_expected_in_the_segment_before() -> None:
    ids = [BYTES.bos, *b"ab", BYTES.eos, BYTES.bos, *b"c"]
    segments = segmenter_of("fixed")(*packed([[(i, 0.0) for i in ids]]))
    assert segments.of_token.tolist() == [0, 1, 1, 2, 3, 4]
    # EOS comes unforeseen; BOS does not, because after EOS a segment always begins.
    assert segments.context.tolist() == [0, 1, 1, 1, 3, 4]


@settings(max_examples=60)
@given(rows=st.lists(row, min_size=1, max_size=4), longest=st.integers(1, 4))
def test_distinct_segments_are_the_set_of_segments(rows: list[Row], longest: int) -> None:
    tokens, entropies = packed(rows)
    segments = segmenter_of("threshold", longest=longest, target=1)(tokens, entropies)
    distinct = distinct_segments(tokens, segments)

    def contents(ids: torch.Tensor, lengths: torch.Tensor) -> list[tuple[int, ...]]:
        return [tuple(part.tolist()) for part in ids[:, 0].split(lengths.tolist())]

    every = contents(tokens.ids, segments.lengths)
    each_once = contents(distinct.tokens.ids, distinct.segments.lengths)
    assert sorted(each_once) == sorted(set(every))
    assert [each_once[i] for i in distinct.of_segment.tolist()] == every
    assert distinct.counts.tolist() == [every.count(segment) for segment in each_once]
    assert distinct.segments.of_token.tolist() == [i for i, segment in enumerate(each_once) for _ in segment]


def test_segments_of_equal_codes_in_other_slots_are_distinct() -> None:
    ids = torch.tensor([[1, 2], [3, 4], [2, 1], [4, 3], [3, 4], [1, 2], [1, 2], [3, 4]])
    tokens = Tokens(ids, Packing.from_lengths(torch.tensor([8])), Vocabulary(8, 2), torch.randn(8, 3))
    segments = rule_of(SegmentationConfig(rule="fixed", target_tokens_per_code=2, max_tokens_per_code=2))
    distinct = distinct_segments(tokens, segments(tokens, None))
    assert len(distinct.counts) == 3
    first, *others = distinct.of_segment.tolist()
    assert others[2] == first
    assert first not in others[:2]


@pytest.mark.parametrize("rule", ENTROPY_RULES)
@pytest.mark.parametrize("target", [2.5, 4.0])
@pytest.mark.parametrize(("mean", "spread"), [(2.0, 1.0), (30.0, 3.0), (1e-3, 1e-4)])
def test_calibration_reaches_the_target(rule: str, target: float, mean: float, spread: float) -> None:
    torch.manual_seed(0)
    lengths = [1000, 1, 2500, 499]
    entropies = (mean + spread * torch.randn(4000)).clamp(min=0).tolist()
    ids = iter(entropies)
    tokens, entropy = packed([[(97, next(ids)) for _ in range(n)] for n in lengths])
    segmenter = segmenter_of(rule, longest=16, target=target)
    segmenter.calibrate(tokens, entropy)
    assert segmenter(tokens, entropy).lengths.float().mean().item() == pytest.approx(target, rel=0.05)


def test_a_running_calibration_goes_part_of_the_way() -> None:
    torch.manual_seed(0)
    tokens, entropy = packed([[(97, random.Random(i).random()) for i in range(500)]])
    full, half = segmenter_of("threshold", threshold=3.0), segmenter_of("threshold", threshold=3.0)
    full.calibrate(tokens, entropy)
    half.calibrate(tokens, entropy, momentum=0.5)
    torch.testing.assert_close(half.threshold, (full.threshold + 3.0) / 2)


@pytest.mark.parametrize("rule", ["fixed", "whitespace"])
def test_rules_without_a_threshold_have_nothing_to_calibrate(rule: str) -> None:
    segmenter = segmenter_of(rule)
    before = segmenter.threshold.clone()
    segmenter.calibrate(*packed([[(97, 1.0)] * 50]))
    assert torch.equal(segmenter.threshold, before)


def test_spacelike_is_ascii_without_letters_and_digits() -> None:
    got = is_spacelike(torch.arange(BYTES.size)).tolist()
    assert got == [i < 128 and not chr(i).isalnum() for i in range(BYTES.size)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens_per_code": 0},
        {"target_tokens_per_code": 0.5},
        {"target_tokens_per_code": 9.0, "max_tokens_per_code": 8},
        {"rule": "fixed", "target_tokens_per_code": 2.5},
        {"train_fraction": -0.1},
        {"train_fraction": 1.1},
        {"rule": "sentence"},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(SegmentationConfig(), **wrong)


def test_whitespace_is_refused_above_the_bytes() -> None:
    check_rule("whitespace", BYTES)
    with pytest.raises(ValueError, match="whitespace"):
        check_rule("whitespace", Vocabulary(512, 3))
