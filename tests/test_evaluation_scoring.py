"""What a score is: a probability, of the bytes asked for, given the bytes before them, whatever the batch."""

from __future__ import annotations

import math
import random

import pytest
import torch
from tiny_evaluation import SHAPES, TEXT, model_of
from tiny_models import losses_of, random_text, rows_of, tiny_config

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.scoring import next_byte_logits, two_part_scores
from abstractinator.components.passages import scores_from_logits
from abstractinator.components.tokens import pack_bytes
from abstractinator.contract.capabilities import Passage

pytestmark = pytest.mark.parametrize(
    ("shape", "weights"), [(shape, weights) for shape in SHAPES for weights in ("random", "trained")]
)


def exact(model: HierarchicalAELM, *passages: Passage) -> list[float]:
    return [score.nll for score in scores_from_logits(next_byte_logits(model, passages), passages)]


def two_part(model: HierarchicalAELM, *passages: Passage) -> list[float]:
    return [score.nll for score in two_part_scores(model, passages)]


def segment_starts(model: HierarchicalAELM, text: bytes) -> list[int]:
    """The bytes at which a highest segment begins."""
    compressed = model.compress(pack_bytes(rows_of([text])))
    code = compressed[0].segments.of_token
    for level in compressed[1:]:
        code = level.segments.of_token[code]
    return [position for position in range(len(text)) if code[position + 1] != code[position]]


@pytest.mark.parametrize("context", [b"", b"the cat sat o", b"\xff\x00 \xe2\x82"])
def test_all_next_bytes_and_the_end_together_have_probability_one(shape: str, weights: str, context: bytes) -> None:
    model = model_of(shape, weights)
    bytes_ = [Passage(context, bytes([byte])) for byte in range(256)]
    end = next_byte_logits(model, bytes_[:1]).softmax(-1)[0, 256]
    assert sum(math.exp(-nats) for nats in exact(model, *bytes_)) + float(end) == pytest.approx(1, abs=1e-4)


def test_the_score_of_two_pieces_is_the_score_of_the_whole(shape: str, weights: str) -> None:
    model, text = model_of(shape, weights), TEXT[:40]
    for first, second in ((0, 1), (0, 17), (5, 6), (11, 30)):
        whole, one, other = exact(
            model,
            Passage(text[:first], text[first:]),
            Passage(text[:first], text[first:second]),
            Passage(text[:second], text[second:]),
        )
        assert one + other == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("score", [exact, two_part])
def test_batch_padding_and_order_change_nothing(shape: str, weights: str, score: object) -> None:
    model, random_ = model_of(shape, weights), random.Random(1)
    passages = [
        Passage(random_text(random_, random_.randrange(9)), random_text(random_, length), begins=bool(length % 2))
        for length in (1, 2, 3, 30, 4, 60, 5, 1)
    ]
    passages += [Passage(TEXT[:20], TEXT[20:30]), Passage(b"", TEXT)]
    passages = [p for p in passages if p.begins or p.context]
    alone = [score(model, passage)[0] for passage in passages]  # type: ignore[operator]
    assert score(model, *passages) == pytest.approx(alone, abs=1e-3)  # type: ignore[operator]
    assert score(model, *passages[::-1]) == pytest.approx(alone[::-1], abs=1e-3)  # type: ignore[operator]


def test_no_later_byte_changes_what_was_said_before(shape: str, weights: str) -> None:
    model, text = model_of(shape, weights), TEXT[:24]
    before = next_byte_logits(model, [Passage(b"", text)]).log_softmax(-1)
    changed = [
        Passage(b"", text[:position] + bytes([text[position] ^ 5]) + text[position + 1 :])
        for position in range(len(text))
    ]
    after = next_byte_logits(model, changed).log_softmax(-1).view(len(text), len(text), -1)
    for position in range(len(text)):
        assert torch.allclose(after[position, : position + 1], before[: position + 1], atol=1e-4)
    assert not torch.allclose(after[3, 4:], before[4:], atol=1e-4)


@pytest.mark.parametrize("score", [exact, two_part])
def test_random_bytes_take_eight_bits_and_never_less(shape: str, weights: str, score: object) -> None:
    random_ = random.Random(2)
    passages = [Passage(b"", random_.randbytes(100)) for _ in range(20)]
    bits = sum(score(model_of(shape, weights), *passages)) / math.log(2) / 2000  # type: ignore[operator]
    assert bits > 7.95


def test_a_model_at_its_beginning_takes_about_eight_bits(shape: str, weights: str) -> None:
    torch.manual_seed(0)
    model, random_ = HierarchicalAELM(tiny_config(shape)).eval(), random.Random(3)
    passages = [Passage(b"", random_.randbytes(100)) for _ in range(20)] + [Passage(b"", TEXT)]
    bits = sum(exact(model, *passages)) / math.log(2) / (2000 + len(TEXT))
    assert 7.9 < bits < 9.5


def test_two_parts_of_a_whole_text_are_the_loss_of_the_training(shape: str, weights: str) -> None:
    model = model_of(shape, weights)
    losses = losses_of(model, rows_of([TEXT]))
    assert two_part(model, Passage(b"", TEXT)) == pytest.approx([float(losses.two_part.detach())], rel=1e-4)


def test_two_parts_pay_for_the_whole_first_segment(shape: str, weights: str) -> None:
    model = model_of(shape, weights)
    starts = segment_starts(model, TEXT)
    for position in range(1, len(TEXT) - 1, 5):
        start = max(begin for begin in starts if begin <= position)
        paid, segment = two_part(model, Passage(TEXT[:position], TEXT[position:]), Passage(TEXT[:start], TEXT[start:]))
        assert paid == pytest.approx(segment, abs=1e-3)


def test_two_parts_add_up_at_the_borders_of_segments(shape: str, weights: str) -> None:
    model = model_of(shape, weights)
    starts = segment_starts(model, TEXT)
    first, middle = starts[1], starts[len(starts) // 2]
    whole, one, other = two_part(
        model,
        Passage(TEXT[:first], TEXT[first:]),
        Passage(TEXT[:first], TEXT[first:middle]),
        Passage(TEXT[:middle], TEXT[middle:]),
    )
    assert one + other == pytest.approx(whole, abs=1e-3)
