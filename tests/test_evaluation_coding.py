"""A text coded with the probabilities that were scored takes as many bits as its score, and is decoded exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from tiny_evaluation import SHAPES, TEXT, Decoder, Encoder, model_of
from tiny_models import rows_of

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.level import Level
from abstractinator.components.hierarchical.scoring import next_byte_logits, two_part_scores
from abstractinator.components.packing import Packing
from abstractinator.components.passages import first_scored, scores_from_logits
from abstractinator.components.tokens import BYTES, Tokens, pack_bytes
from abstractinator.contract.capabilities import Passage

Coder = Encoder | Decoder
CASES = [(shape, weights) for shape in SHAPES for weights in ("random", "trained")]
SLACK = 2.1  # bits: what ending a code takes, and rounding frequencies


def code_bytes(model: HierarchicalAELM, coder: Coder, passage: Passage, length: int) -> bytes:
    """Codes `length` bytes one by one on the predict path; an Encoder takes them from the passage."""
    done = b""
    for index in range(length):
        logits = next_byte_logits(model, [Passage(passage.context + done, b"\0")])[0]
        true = passage.continuation[index] if isinstance(coder, Encoder) else None
        done += bytes([coder.symbol(logits, true)])
    return done


@pytest.mark.parametrize(("shape", "weights"), CASES)
def test_an_exact_score_is_the_length_of_a_code(shape: str, weights: str) -> None:
    model, passage = model_of(shape, weights), Passage(TEXT[:9], TEXT[9:33])
    (score,) = scores_from_logits(next_byte_logits(model, [passage]), [passage])
    encoder = Encoder()
    code_bytes(model, encoder, passage, len(passage.continuation))
    bits = score.nll / math.log(2)
    assert bits - 0.1 <= len(encoder.bits) <= bits + SLACK
    context = Passage(passage.context, b"")
    assert code_bytes(model, Decoder(encoder.bits), context, len(passage.continuation)) == passage.continuation


# ---- two parts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A text as the tokens of all levels. ids: from the bytes up, (T, Q) each. lengths: per level, of its segments.
    firsts: per level of ids, the first token that belongs to the highest code `firsts[-1]` or a later one.
    """

    ids: list[torch.Tensor]
    lengths: list[list[int]]
    firsts: list[int]


def tree_of(model: HierarchicalAELM, passage: Passage) -> Tree:
    """The tree of a passage; what its firsts leave out is known from the context alone."""
    compressed = model.compress(pack_bytes(rows_of([passage.context + passage.continuation])))
    index = first_scored(passage)
    for level in compressed:
        index = int(level.segments.of_token[index])
    firsts = [index]
    for level in reversed(compressed):
        firsts.insert(0, int((level.segments.of_token < firsts[0]).sum()))
    ids = [compressed[0].tokens.ids, *(level.codes.ids for level in compressed)]
    return Tree(ids, [level.segments.lengths.tolist() for level in compressed], firsts)


@torch.no_grad()
def code_tree(model: HierarchicalAELM, coder: Coder, tree: Tree, codes: int) -> bytes:
    """Codes first, then down, level by level → the bytes from where the coding begins.

    An Encoder reads the whole tree, a Decoder no more of it than lies before `firsts`.
    """
    tokens = _code_top(model, coder, tree, codes)
    for i in reversed(range(len(model.levels))):
        tokens = _code_level(model.levels[i], coder, tree, i, tokens)
    return bytes(tokens.ids[tree.firsts[0] :, 0].tolist())


def vectors_of(level: Level, ids: torch.Tensor) -> torch.Tensor:
    """The quantized vectors of codes; zeros for special ones."""
    quantizer = level.compressor.quantizer
    vectors = quantizer.decode(ids.clamp(max=quantizer.codebook_size - 1))
    return vectors.masked_fill((ids[:, :1] >= quantizer.codebook_size), 0.0)


def _code_top(model: HierarchicalAELM, coder: Coder, tree: Tree, codes: int) -> Tokens:
    """The highest codes one by one, each slot given the slots before."""
    top, ids = model.top, tree.ids[-1][: tree.firsts[-1]]

    def known() -> Tokens:
        packing = Packing.from_lengths(torch.tensor([len(ids)]))
        vectors = vectors_of(model.levels[-1], ids)
        return Tokens(ids, packing, top.vocabulary, vectors)

    for index in range(tree.firsts[-1], codes):
        true = tree.ids[-1][index].tolist() if isinstance(coder, Encoder) else [None] * top.vocabulary.slots
        ids = torch.cat([ids, torch.zeros(1, top.vocabulary.slots, dtype=torch.int64)])
        context = top(known())[-1:]  # a code has no effect on the context before it
        for slot in range(top.vocabulary.slots):
            ids[index, slot] = coder.symbol(top.head.slot_logits(context, ids[index:, :slot])[0], true[slot])
    return known()


def _code_level(level: Level, coder: Coder, tree: Tree, i: int, codes: Tokens) -> Tokens:
    """The tokens of every segment given its code, position by position, to its end."""
    expander, size = level.expander, level.compressor.vocabulary.codebook_size
    hidden = expander.position_vectors(vectors_of(level, codes.ids))
    slots = [slot.view(len(hidden), expander.longest, -1) for slot in expander.head.logits(hidden.flatten(0, 1))]
    rows: list[list[int]] = []
    lengths: list[int] = []
    for segment in range(len(hidden)):
        start = len(rows)
        if segment < tree.firsts[i + 1]:
            rows += tree.ids[i][start : start + tree.lengths[i][segment]].tolist()
        else:
            true = (
                tree.ids[i][start : start + tree.lengths[i][segment]].tolist() if isinstance(coder, Encoder) else None
            )
            for index in range(expander.longest):
                ends = [size] + [0] * (len(slots) - 1)
                symbols = [*true, ends][index] if true is not None else [None] * len(slots)
                first = coder.symbol(slots[0][segment, index], symbols[0])
                if first == size:
                    break
                others = [coder.symbol(slots[q][segment, index], symbols[q]) for q in range(1, len(slots))]
                rows.append([first, *others])
        lengths.append(len(rows) - start)
    return Tokens(torch.tensor(rows), Packing.from_lengths(torch.tensor([len(rows)])), level.compressor.vocabulary)


@pytest.mark.parametrize("context", [b"", TEXT[:9], TEXT[:21]], ids=len)
@pytest.mark.parametrize(("shape", "weights"), CASES)
def test_a_two_part_score_is_the_length_of_a_code(shape: str, weights: str, context: bytes) -> None:
    model, passage = model_of(shape, weights), Passage(context, TEXT[21:45])
    (score,) = two_part_scores(model, [passage])
    tree, encoder = tree_of(model, passage), Encoder()
    codes = len(tree.ids[-1])
    code_tree(model, encoder, tree, codes)
    bits = score.nll / math.log(2)
    assert bits - 0.1 <= len(encoder.bits) <= bits + SLACK
    # The reader has the context, from which it knows all that lies before the first coded segment.
    known = tree_of(model, Passage(context, b"\0"))
    assert known.firsts == tree.firsts
    text = context + passage.continuation
    assert code_tree(model, Decoder(encoder.bits), known, codes) == text[tree.firsts[0] - 1 :]
    assert BYTES.bos not in tree.ids[0][tree.firsts[0] :]
