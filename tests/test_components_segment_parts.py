"""Parts of segments: a text cut further is the same text, and what does not come back whole comes back in parts."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SHAPES, padded, random_text, rows_of, tiny_model
from tiny_reconstruction import trained

from abstractinator.evaluation.held_out import bytes_back
from components.byte_segment_compressor import Compressed
from components.hierarchical_autoencoder import HierarchicalAutoencoder
from components.packing import Packing
from components.segment_parts import cut_in_two, with_parts
from components.segmentation import SegmentationConfig, Segmenter, Segments, distinct_segments, take_segments
from components.tokens import BYTES, Alphabet, Tokens, pack_bytes
from components.vector_quantizer import Kind

every_shape = pytest.mark.parametrize("shape", SHAPES)
rows_of_bytes = st.lists(st.binary(max_size=20), min_size=1, max_size=4)


def fixed_segments(texts: list[bytes], length: int) -> tuple[Tokens, Segments]:
    """BOS and text, then EOS, which comes unforeseen inside a segment."""
    tokens = pack_bytes(padded([[BYTES.bos, *text, BYTES.eos] for text in texts]))
    config = SegmentationConfig(rule="fixed", target_tokens_per_code=length, max_tokens_per_code=length)
    return tokens, Segmenter(config)(tokens, None)


def contents(tokens: Tokens, segments: Segments) -> list[list[int]]:
    return [part.tolist() for part in tokens.ids[:, 0].split(segments.lengths.tolist())]


@given(texts=rows_of_bytes, length=st.integers(2, 6), seed=st.integers(0, 100))
def test_a_cut_segment_is_two_and_all_others_stay(texts: list[bytes], length: int, seed: int) -> None:
    tokens, segments = fixed_segments(texts, length)
    random_ = random.Random(seed)
    chosen = torch.tensor([bool(n > 1 and random_.random() < 0.5) for n in segments.lengths.tolist()])
    cut = cut_in_two(segments, chosen)

    expected, first_of, row_counts = [], [], [0] * len(texts)
    for part, is_cut, row in zip(
        contents(tokens, segments), chosen.tolist(), segments.packing.rows.tolist(), strict=True
    ):
        middle = (len(part) + 1) // 2 if is_cut else len(part)
        first_of.append(len(expected))
        pieces = [part[:middle], part[middle:]] if is_cut else [part]
        expected += pieces
        row_counts[row] += len(pieces)
    assert contents(tokens, cut) == expected
    assert cut.packing.lengths.tolist() == row_counts
    assert cut.of_token.tolist() == [i for i, part in enumerate(expected) for _ in part]
    assert cut.offsets.tolist() == [place for part in expected for place in range(len(part))]
    # What a token was expected in does not tell that this was cut: it is known by its first part.
    assert cut.context.tolist() == [first_of[context] for context in segments.context.tolist()]


@given(texts=rows_of_bytes, length=st.integers(1, 6), seed=st.integers(0, 100))
def test_parts_for_training_are_what_segments_consist_of(texts: list[bytes], length: int, seed: int) -> None:
    distinct = distinct_segments(*fixed_segments(texts, length))
    torch.manual_seed(seed)
    more = with_parts(distinct)
    whole, all_ = contents(distinct.tokens, distinct.segments), contents(more.tokens, more.segments)
    assert all_[: len(whole)] == whole
    assert more.counts.tolist() == distinct.counts.tolist() + [0] * (len(all_) - len(whole))
    assert torch.equal(more.of_segment, distinct.of_segment)
    parts, stray = all_[len(whole) : -32], all_[-32:]
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert first and second and first + second in whole
    assert all(len(token) == 1 and token[0] < 256 for token in stray)


def test_all_places_of_a_cut_and_all_bytes_occur_in_training() -> None:
    distinct = distinct_segments(*fixed_segments([bytes(range(200))], 4))
    torch.manual_seed(0)
    found = [contents(x.tokens, x.segments)[len(distinct.counts) :] for x in (with_parts(distinct) for _ in range(300))]
    assert {len(part) for parts in found for part in parts} == {1, 2, 3}
    assert {part[0] for parts in found for part in parts[-32:]} == set(range(256))
    share = sum(len(parts) - 32 for parts in found) / 2 / 300 / len(distinct.counts)
    assert 0.1 < share < 0.15


def test_parts_of_codes_have_the_vectors_of_their_codes() -> None:
    alphabet = Alphabet(8, 2)
    ids = torch.randint(8, (40, 2))
    table = torch.randn(8, 8, 3)
    tokens = Tokens(ids, Packing.from_lengths(torch.tensor([40])), alphabet, table[ids[:, 0], ids[:, 1]])
    segmenter = Segmenter(SegmentationConfig(rule="fixed", target_tokens_per_code=4, max_tokens_per_code=4))
    torch.manual_seed(0)
    more = with_parts(distinct_segments(tokens, segmenter(tokens, None)))
    assert len(more.tokens.ids) > 40
    assert torch.equal(more.tokens.vectors, table[more.tokens.ids[:, 0], more.tokens.ids[:, 1]])


def lost(model: HierarchicalAutoencoder, compressed: list[Compressed]) -> list[int]:
    """Tokens, at any level, that stand in a segment of two or more and do not come back from its codes."""
    wrong = []
    for level, each in zip(model.levels, compressed, strict=True):
        longer = (each.segments.lengths > 1).nonzero()[:, 0]
        vectors = level.compressor.quantizer.decode(each.codes.ids[longer])
        errors = level.expander.errors(vectors, *take_segments(each.tokens, each.segments, longer))
        wrong.append(int(errors.sum()))
    return wrong


@every_shape
def test_no_segment_of_two_tokens_or_more_is_lost(shape: str) -> None:
    model = tiny_model(shape)
    tokens = pack_bytes(rows_of([random_text(random.Random(seed), 40) for seed in range(4)]))
    own, mended = (model.compress(tokens, mend=mend) for mend in (False, True))
    assert sum(lost(model, own)) > 0, "everything comes back anyway"
    assert lost(model, mended) == [0] * len(model.levels)
    assert torch.equal(mended[0].tokens.ids, tokens.ids)
    for level in mended:
        encoded, segments = level.encoded, level.segments
        assert int(segments.lengths.sum()) == len(level.tokens.ids)
        assert encoded.codes.vectors is not None
        assert torch.equal(encoded.vectors[encoded.distinct.of_segment], encoded.codes.vectors)


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_more_of_an_unknown_text_comes_back_from_its_parts(kind: Kind) -> None:
    model, rows = trained(kind)
    unknown = rows[:, 1:].flip(1)[:8]
    tokens = pack_bytes(unknown[:, (unknown != BYTES.pad).all(0)])
    back = []
    for mend in (False, True):
        level = model.compress(tokens, mend=mend)[0]
        back.append(float(bytes_back(model, level.codes, tokens, level.segments.of_token).float().mean()))
    assert back[1] > back[0] + 0.2
