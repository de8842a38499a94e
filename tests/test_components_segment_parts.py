"""Parts of segments: a text cut further is the same text, and what is not reconstructed whole is in parts."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SHAPES, losses_of, padded, random_text, rows_of, tiny_model
from tiny_reconstruction import searched, trained
from torch import Tensor

from abstractinator.components.hierarchical.byte_segment_compressor import Compressed
from abstractinator.components.hierarchical.level import Level
from abstractinator.components.hierarchical.measures import reconstructed_bytes
from abstractinator.components.hierarchical.segment_parts import cut_in_two, with_parts
from abstractinator.components.hierarchical.segmentation import (
    SegmentationConfig,
    Segments,
    distinct_segments,
    segmenter_of,
)
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary, pack_bytes

every_shape = pytest.mark.parametrize("shape", SHAPES)
rows_of_bytes = st.lists(st.binary(max_size=20), min_size=1, max_size=4)


def fixed_segments(texts: list[bytes], length: int) -> tuple[Tokens, Segments]:
    """BOS and text, then EOS, which comes unforeseen inside a segment."""
    tokens = pack_bytes(padded([[BYTES.bos, *text, BYTES.eos] for text in texts]))
    config = SegmentationConfig(rule="fixed", target_tokens_per_code=length, max_tokens_per_code=length)
    return tokens, segmenter_of(config)(tokens, None)


def contents(tokens: Tokens, segments: Segments) -> list[list[int]]:
    return [part.tolist() for part in tokens.ids[:, 0].split(segments.lengths.tolist())]


def halves(part: list[int]) -> list[list[int]]:
    middle = (len(part) + 1) // 2
    return [half for half in (part[:middle], part[middle:]) if half]


@given(texts=rows_of_bytes, length=st.integers(2, 6), seed=st.integers(0, 100))
def test_a_cut_segment_is_two_and_all_others_stay(texts: list[bytes], length: int, seed: int) -> None:
    tokens, segments = fixed_segments(texts, length)
    random_ = random.Random(seed)
    chosen = torch.tensor([random_.random() < 0.5 for _ in segments.lengths])
    cut = cut_in_two(segments, chosen)

    expected, first_of, row_counts = [], [], [0] * len(texts)
    for part, is_cut, row in zip(
        contents(tokens, segments), chosen.tolist(), segments.packing.rows.tolist(), strict=True
    ):
        first_of.append(len(expected))
        pieces = halves(part) if is_cut else [part]
        expected += pieces
        row_counts[row] += len(pieces)
    assert contents(tokens, cut) == expected
    assert cut.packing.lengths.tolist() == row_counts
    assert cut.of_token.tolist() == [i for i, part in enumerate(expected) for _ in part]
    assert cut.offsets.tolist() == [offset for part in expected for offset in range(len(part))]
    # What a token was expected in does not tell that this was cut: it is known by its first part.
    assert cut.context.tolist() == [first_of[context] for context in segments.context.tolist()]


@given(texts=rows_of_bytes, length=st.integers(1, 6), seed=st.integers(0, 100))
def test_parts_for_training_are_halves_of_segments_and_halves_of_these(
    texts: list[bytes], length: int, seed: int
) -> None:
    distinct = distinct_segments(*fixed_segments(texts, length))
    torch.manual_seed(seed)
    more = with_parts(distinct)
    whole, all_ = contents(distinct.tokens, distinct.segments), contents(more.tokens, more.segments)
    assert all_[: len(whole)] == whole
    assert more.counts.tolist() == distinct.counts.tolist() + [0] * (len(all_) - len(whole))
    assert torch.equal(more.of_segment, distinct.of_segment)
    half = [part for one in whole if len(one) > 1 for part in halves(one)]
    quarter = [part for one in half for part in halves(one)]
    strays = len(whole) // 32
    assert all(part in half or part in quarter for part in all_[len(whole) : len(all_) - strays])
    assert all(len(token) == 1 and token[0] < 256 for token in all_[len(all_) - strays :])


def test_parts_of_all_lengths_and_all_bytes_occur_in_training() -> None:
    distinct = distinct_segments(*fixed_segments([bytes(range(256))], 4))
    torch.manual_seed(0)
    strays = len(distinct.counts) // 32
    parts, bytes_ = [], set()
    for _ in range(1000):
        more = with_parts(distinct)
        *found, end = contents(more.tokens, more.segments)[len(distinct.counts) :]
        assert strays == 2
        bytes_ |= {found[-1][0], end[0]}
        parts += found[:-1]
    assert {len(part) for part in parts} == {1, 2}
    assert {part[0] for part in parts} == set(range(256)) == bytes_
    assert 0.1 < sum(map(len, parts)) / 1000 / 256 < 0.15  # of all bytes, in segments that are cut


def test_parts_of_codes_have_the_vectors_of_their_codes() -> None:
    vocabulary = Vocabulary(8, 2)
    ids = torch.randint(8, (40, 2))
    table = torch.randn(8, 8, 3)
    tokens = Tokens(ids, Packing.from_lengths(torch.tensor([40])), vocabulary, table[ids[:, 0], ids[:, 1]])
    segmenter = segmenter_of(SegmentationConfig(rule="fixed", target_tokens_per_code=4, max_tokens_per_code=4))
    torch.manual_seed(0)
    more = with_parts(distinct_segments(tokens, segmenter(tokens, None)))
    assert len(more.tokens.ids) > 40
    assert torch.equal(more.tokens.vectors, table[more.tokens.ids[:, 0], more.tokens.ids[:, 1]])


def errors(level: Level, compressed: Compressed) -> Tensor:
    """(S,) tokens of each segment that are not reconstructed from its codes' ids."""
    vectors = level.compressor.quantizer.decode(compressed.codes.ids.clamp(max=compressed.codes.vocabulary.eos - 2))
    return level.expander.errors(vectors, compressed.tokens, compressed.segments)


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_what_is_decoded_wrongly_is_cut_and_nothing_else(kind: str) -> None:
    model, rows = trained(kind)
    level = model.levels[0]
    known, unknown = bytes(rows[0, 1:].tolist()), bytes(rows[1, 1:].tolist())[::-1]
    tokens = pack_bytes(rows_of([known[:80] + unknown[:80], unknown[80:120] + known[80:120]]))
    whole, repaired = (level.compress(tokens, repair=repair) for repair in (False, True))
    assert torch.equal(repaired.tokens.ids, tokens.ids)
    # As searched codes: each segment that is still there has those, whatever was cut beside it.
    again = searched(level, level.compressor.encode(tokens, repaired.segments))
    assert torch.equal(repaired.codes.ids, again.codes.ids)
    plain = ~repaired.codes.special
    decoded = level.compressor.quantizer.decode(repaired.codes.ids[plain])
    torch.testing.assert_close(repaired.codes.vectors[plain], decoded)

    wrong = (errors(level, repaired) > 0) & plain
    assert (repaired.segments.lengths[wrong] == 1).all()
    best = searched(level, whole.encoded)
    lost = (errors(level, replace(whole, encoded=best)) > 0) & ~whole.codes.special & (whole.segments.lengths > 1)
    starts = (repaired.segments.offsets == 0).nonzero()[:, 0]
    pieces = torch.bincount(whole.segments.of_token[starts], minlength=len(lost))
    assert torch.equal(pieces > 1, lost)
    assert 10 < lost.sum() < len(lost) - 10
    assert pieces.max() > 2, "nothing was cut twice"


@every_shape
def test_every_level_repairs_its_own_tokens(shape: str) -> None:
    model = tiny_model(shape)
    tokens = pack_bytes(rows_of([random_text(random.Random(seed), 40) for seed in range(4)]))
    own, repaired = (model.compress(tokens, repair=repair) for repair in (False, True))
    lower = tokens
    for level, before, after in zip(model.levels, own, repaired, strict=True):
        assert torch.equal(after.tokens.ids, lower.ids)
        wrong = (errors(level, after) > 0) & ~after.codes.special
        assert (after.segments.lengths[wrong] == 1).all()
        assert len(after.segments.lengths) > len(before.segments.lengths)
        lower = after.codes


def test_codes_are_not_repaired_while_codebooks_move() -> None:
    model = tiny_model("fixed").train()
    with pytest.raises(ValueError, match="eval"):
        model.compress(pack_bytes(rows_of([b"text"])), repair=True)


def test_training_learns_parts_and_no_likelihood_counts_them() -> None:
    model = tiny_model("fixed")
    rows = rows_of([random_text(random.Random(seed), 200) for seed in range(4)])
    still = losses_of(model, rows)
    learning = losses_of(model.train(), rows)
    for name in ("predict", "codes", "two_part"):
        torch.testing.assert_close(getattr(learning, name), getattr(still, name))
    torch.testing.assert_close(learning.reconstruction, still.reconstruction)
    distinct = learning.compressed[0].encoded.distinct
    parts = distinct.counts == 0
    assert parts.sum() > 10
    assert not (still.compressed[0].encoded.distinct.counts == 0).any()
    # What parts add to what is trained: their nats, as those of segments that occur once.
    nats = model.levels[0].reconstruction_nll(learning.compressed[0])
    counts = distinct.counts[~parts].float()
    share = nats[parts].sum() * counts.sum() / counts.sqrt().sum()
    difference = model.config.reconstruction_loss_weight * share
    torch.testing.assert_close(learning.total - still.total, difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_more_of_an_unknown_text_is_reconstructed_from_its_parts(kind: str) -> None:
    model, rows = trained(kind)
    unknown = rows[:, 1:].flip(1)[:8]
    tokens = pack_bytes(unknown[:, (unknown != BYTES.pad).all(0)])
    right = []
    for repair in (False, True):
        level = model.compress(tokens, repair=repair)[0]
        right.append(float(reconstructed_bytes(model, level.codes, tokens, level.segments.of_token).float().mean()))
    assert right[1] > right[0] + 0.2
