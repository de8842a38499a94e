"""Codes that are verified by decoding: what is a step off is repaired, and all else keeps its codes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_models import QUANTIZERS
from tiny_reconstruction import searched, trained, untrained

from abstractinator.components.bottlenecks.fsq import FSQConfig
from abstractinator.components.bottlenecks.kinds import QuantizerConfig, quantizer_of
from abstractinator.components.bottlenecks.vector_quantizer import Quantized
from abstractinator.components.hierarchical import code_search
from abstractinator.components.hierarchical.code_search import search_codes
from abstractinator.components.hierarchical.level import Level
from abstractinator.components.hierarchical.segmentation import Segments, distinct_segments, take_segments
from abstractinator.components.tokens import Tokens, pack_bytes

both_kinds = pytest.mark.parametrize("kind", ["fsq", "vq"])
FSQ = FSQConfig(codes_per_segment=2, fsq_levels=(2, 3, 5))


def plain_segments(level: Level, rows: torch.Tensor) -> tuple[Tokens, Segments]:
    """The different segments of a text, without special ones."""
    tokens = pack_bytes(rows)
    distinct = distinct_segments(tokens, level.compressor(tokens).segments)
    plain = ~distinct.tokens.special[distinct.segments.first_tokens]
    return take_segments(distinct.tokens, distinct.segments, plain.nonzero()[:, 0])


def codes_of(level: Level, tokens: Tokens, segments: Segments) -> tuple[torch.Tensor, torch.Tensor]:
    codes = level.compressor.encode_each(tokens, segments)
    return codes, level.compressor.quantizer.decode(codes)


@both_kinds
def test_what_is_decoded_right_keeps_its_codes_and_nothing_gets_worse(kind: str) -> None:
    model, rows = trained(kind)
    level = model.levels[0]
    tokens, segments = plain_segments(level, rows)
    codes, vectors = codes_of(level, tokens, segments)
    found, found_vectors, is_wrong = search_codes(
        codes, vectors, tokens, segments, level.compressor.quantizer, level.expander
    )
    before = level.expander.errors(vectors, tokens, segments)
    after = level.expander.errors(found_vectors, tokens, segments)
    assert (before == 0).any(), "the model reconstructs nothing at all"
    assert torch.equal(is_wrong, after > 0)
    assert torch.equal(found[before == 0], codes[before == 0])
    changed = (found != codes).any(1)
    assert not after[changed].any()
    assert torch.equal(found[~changed], codes[~changed])
    torch.testing.assert_close(found_vectors, level.compressor.quantizer.decode(found))


@both_kinds
def test_codes_a_step_off_are_repaired(kind: str) -> None:
    model, rows = trained(kind)
    level = model.levels[0]
    quantizer, expander = level.compressor.quantizer, level.expander
    tokens, segments = plain_segments(level, rows)
    codes, vectors = codes_of(level, tokens, segments)
    good = (expander.errors(vectors, tokens, segments) == 0).nonzero()[:, 0]
    tokens, segments = take_segments(tokens, segments, good)
    repaired = spoiled = 0
    for number in range(quantizer.neighbours(codes[:1]).shape[1]):
        off = quantizer.neighbours(codes[good])[:, number]
        nll, errors = expander.verify(quantizer.decode(off), tokens, segments)
        near = (errors > 0) & (nll <= code_search._FARTHEST)
        _, after, _ = search_codes(off, quantizer.decode(off), tokens, segments, quantizer, expander)
        spoiled += int(near.sum())
        repaired += int((expander.errors(after, tokens, segments)[near] == 0).sum())
    assert spoiled > 10, "hardly any neighbour spoils a segment"
    assert repaired > 0.9 * spoiled


@both_kinds
def test_other_segments_do_not_matter(kind: str) -> None:
    model, rows = trained(kind)
    level = model.levels[0]
    tokens, segments = plain_segments(level, rows)
    quantizer = level.compressor.quantizer
    off = quantizer.neighbours(codes_of(level, tokens, segments)[0])[:, 0]
    together, _, _ = search_codes(off, quantizer.decode(off), tokens, segments, quantizer, level.expander)
    for number in range(len(off)):
        one = take_segments(tokens, segments, torch.tensor([number]))
        alone, _, _ = search_codes(off[[number]], quantizer.decode(off[[number]]), *one, quantizer, level.expander)
        assert torch.equal(alone[0], together[number])


def test_a_repair_finds_codes_where_the_encoder_was_wrong() -> None:
    model, rows = trained("fsq")
    level, tokens = model.levels[0], pack_bytes(rows[:-1].flip(1).roll(1, 1))  # a text that it does not know
    segments = level.compressor(tokens).segments
    restored = []
    first = level.compressor.encode(tokens, segments)
    for encoded in (first, searched(level, first)):
        errors = level.expander.errors(encoded.vectors, encoded.distinct.tokens, encoded.distinct.segments)
        restored.append(int((errors == 0).sum()))
    assert restored[1] > restored[0], "nothing was repaired"


@pytest.mark.parametrize("config", [*QUANTIZERS.values(), FSQ], ids=lambda c: f"{c.kind}-{c.codebook_size}")
@torch.no_grad()
def test_neighbours_differ_in_one_slot(config: QuantizerConfig) -> None:
    torch.manual_seed(0)
    quantizer = quantizer_of(config, 8)
    codes = torch.randint(config.codebook_size, (20, config.codes_per_segment))
    neighbours = quantizer.neighbours(codes)
    assert neighbours.shape[0] == 20 and neighbours.shape[2] == config.codes_per_segment
    assert neighbours.min() >= 0 and neighbours.max() < config.codebook_size
    differing = (neighbours != codes[:, None]).sum(-1)
    assert differing.max() == 1
    assert differing.float().mean() > 0.7
    for all_of_one in neighbours.unbind():
        moved = all_of_one[(all_of_one != codes[:1]).any(-1)]
        assert len(moved.unique(dim=0)) > 1


@torch.no_grad()
def test_neighbours_of_fsq_are_one_step_away_in_one_dimension() -> None:
    quantizer = quantizer_of(FSQ, 8)
    every = torch.cartesian_prod(torch.arange(30), torch.arange(30))
    lattice = quantizer.lattice[every].flatten(1)
    neighbours = quantizer.neighbours(every)
    assert neighbours.shape[1] == 2 * (1 + 2 + 2)
    for number in range(neighbours.shape[1]):
        there = quantizer.lattice[neighbours[:, number]].flatten(1)
        assert ((there != lattice).sum(1) <= 1).all()
    # All values of all dimensions are reached.
    reached = neighbours[0].tolist() + neighbours[-1].tolist()
    assert len({tuple(code) for code in reached}) > 8


def test_a_segment_that_is_far_off_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an untrained model all segments are; what is left are the 256 bytes."""
    descend, searched_segments = code_search._descend, []

    def counted(codes: torch.Tensor, tokens: Tokens, segments: Segments, *parts: Any) -> tuple[torch.Tensor, ...]:
        searched_segments.extend(segments.lengths.tolist())
        return descend(codes, tokens, segments, *parts)

    monkeypatch.setattr(code_search, "_descend", counted)
    model = untrained("fsq").eval()
    text = random.Random(0).randbytes(4000)
    repaired = model.compress(text, repair=True)[0]
    assert len(repaired.segments.lengths) > 3000, "hardly any segment was split"
    assert set(searched_segments) <= {1} and len(searched_segments) <= 256


def test_each_segment_is_coded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splitting some leaves the codes of the others; only the parts are new."""
    model, rows = trained("fsq")
    compressor, coded = model.levels[0].compressor, []
    quantize = compressor.quantize

    def recorded(tokens: Tokens, segments: Segments) -> Quantized:
        coded.extend(bytes(part.tolist()) for part in tokens.ids[:, 0].clamp(max=255).split(segments.lengths.tolist()))
        return quantize(tokens, segments)

    monkeypatch.setattr(compressor, "quantize", recorded)
    repaired = model.compress(pack_bytes(rows[:4, 1:].flip(1)), repair=True)[0]
    assert len(repaired.segments.lengths) > 100 and len(coded) > 100
    # One that was split may occur again as a part of a longer one.
    assert len(coded) - len(set(coded)) < 0.02 * len(coded)
