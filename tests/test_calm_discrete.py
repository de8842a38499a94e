"""CALM's discrete twin: it sees no future, and what it scores is what it samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_calm import TOKENS, document_rows, tiny_discrete, tiny_discrete_config
from tiny_runs import assert_same_weights, folders, losses_of, recorded_steps, stop_after, tiny_experiment, weights_of

from abstractinator.components.calm import token_chunks
from abstractinator.components.calm.calm_discrete import CALMDiscrete
from abstractinator.components.calm.chunks import Chunks, chunks_of
from abstractinator.components.calm.generation import ChunkMemory
from abstractinator.components.sampling import Sampler
from abstractinator.config.settings import ConfigError
from abstractinator.contract.capabilities import Generates, Passage, Scores
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch
from abstractinator.training.loop import Interrupted, train

E = TOKENS.EOS
TEXT = b"A text of some length, longer than the window of the attention."


def nll_of(model: CALMDiscrete, context: bytes, continuation: bytes, begins: bool = True) -> float:
    return model.score([Passage(context, continuation, begins)], "exact")[0].nll


@settings(max_examples=20)
@given(data=st.data())
def test_no_position_sees_its_future_or_another_document(data: st.DataObject) -> None:
    model = tiny_discrete()
    texts = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=3))
    chunks = chunks_of(document_rows(texts, 4, 48), 4, TOKENS)
    place = data.draw(st.integers(0, chunks.ids.numel() - 1))
    other = chunks.ids.flatten().clone()
    other[place] = (other[place] + 1) % 256
    with torch.no_grad():
        before = model.logits(chunks).flatten(0, 1)
        after = model.logits(Chunks(other.view(-1, 4), chunks.packing)).flatten(0, 1)
    rows = chunks.packing.rows.repeat_interleave(4)
    unseen = (rows != rows[place]) | (torch.arange(len(rows)) <= place)
    torch.testing.assert_close(before[unseen], after[unseen])
    following = slice(place + 1, None)
    if (rows[following] == rows[place]).any():
        assert not torch.equal(before[following], after[following])


@settings(max_examples=15)
@given(text=st.binary(min_size=1, max_size=60), at=st.integers(0, 60))
def test_scores_of_two_pieces_add_up(text: bytes, at: int) -> None:
    model, at = tiny_discrete(), min(at, len(text) - 1)
    whole = nll_of(model, b"", text)
    parts = [nll_of(model, text[:at], text[at:]), nll_of(model, b"", text[:at]) if at else 0.0]
    assert whole == pytest.approx(sum(parts), abs=1e-3)


def test_a_batch_scores_as_each_passage_alone() -> None:
    model = tiny_discrete()
    passages = [Passage(b"", TEXT), Passage(TEXT, b"x"), Passage(b"k", b"window", False), Passage(b"ab", b"cd")]
    together = model.score(passages, "exact")
    for passage, found in zip(passages, together, strict=True):
        (alone,) = model.score([passage], "exact")
        assert found.nll == pytest.approx(alone.nll, abs=1e-4) and found.is_greedy == alone.is_greedy


def test_the_probabilities_of_all_next_tokens_add_up_to_one() -> None:
    model = tiny_discrete()
    for context in (b"", b"ab", TEXT):
        total = sum(torch.tensor(-nll_of(model, context, bytes([byte]))).exp().item() for byte in range(256))
        assert 0.9 < total < 1.0  # the rest is the end
    logits = model.head(torch.randn(2, 16), torch.randint(256, (2, 3)))
    assert logits[..., [TOKENS.BOS, TOKENS.PAD]].isneginf().all() and logits[..., E].isfinite().all()


@pytest.mark.parametrize("prompt", [b"", b"ab", b"abc", TEXT])
def test_scores_equal_what_stepwise_generation_computes(prompt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits from which a text is sampled give the same cost as its score."""
    model, costs = tiny_discrete(), []
    real = token_chunks.draw_tokens

    def recorded(sampler: Sampler, logits: torch.Tensor, *rest: Any) -> list[int]:
        tokens = real(sampler, logits, *rest)
        costs.append(float(F.cross_entropy(logits, torch.tensor(tokens), reduction="sum")))
        return tokens

    monkeypatch.setattr(token_chunks, "draw_tokens", recorded)
    config = GenerationConfig(max_new_bytes=30, temperature=1.0, top_p=1.0, seed=4)
    text = b"".join(piece.data for piece in model.stream([prompt], config))
    assert len(text) > 8
    assert sum(costs[: len(text)]) == pytest.approx(nll_of(model, prompt, text), abs=1e-3)


def test_samples_have_the_frequencies_that_scores_say() -> None:
    model, count = tiny_discrete(), 3_000
    config = GenerationConfig(max_new_bytes=1, temperature=1.0, top_p=1.0, seed=0)
    found = [piece.data[0] for piece in model.stream([b"ab"] * count, config)]
    scores = model.score([Passage(b"ab", bytes([byte])) for byte in range(256)], "exact")
    expected = count * torch.tensor([-score.nll for score in scores]).exp()
    observed = torch.bincount(torch.tensor(found), minlength=256)
    assert float(((observed - expected).square() / expected).sum()) < 311  # χ² of 255 degrees of freedom, at 1 %


def test_greedy_text_is_greedy_by_its_score() -> None:
    model = tiny_discrete()
    text = b"".join(p.data for p in model.stream([b"abc"], GenerationConfig(max_new_bytes=13, temperature=0.0)))
    assert model.score([Passage(b"abc", text)], "exact")[0].is_greedy
    assert not model.score([Passage(b"abc", bytes([text[0] ^ 1]) + text[1:])], "exact")[0].is_greedy


def test_prompts_of_a_batch_are_continued_as_alone() -> None:
    model = tiny_discrete()
    prompts = [b"", b"abc", TEXT * 3, b"abcdefg"]
    config = GenerationConfig(max_new_bytes=21, temperature=0.0)
    texts = [bytearray() for _ in prompts]
    for piece in model.stream(prompts, config):
        texts[piece.prompt] += piece.data
    for prompt, text in zip(prompts, texts, strict=True):
        assert text == b"".join(piece.data for piece in model.stream([prompt], config))


def test_nothing_is_repeated_where_that_is_forbidden() -> None:
    model = tiny_discrete()
    config = GenerationConfig(max_new_bytes=80, temperature=0.0, no_repeat_ngram_size=2)
    text = b"ab" + b"".join(piece.data for piece in model.stream([b"ab"], config))
    grams = [text[at : at + 2] for at in range(len(text) - 1)]
    assert len(set(grams)) == len(grams) > 40


def test_a_measurement_is_the_score_of_its_documents() -> None:
    """Of documents that need no filling, as scores have it; ends are in the measurement alone."""
    model = tiny_discrete()
    texts = [b"ten letter", b"sixsix", b"eighteen letters.."]
    with torch.no_grad():
        sums = model.measure(Batch.of(document_rows(texts, 4, 32)), torch.Generator())
        padded = model.measure(Batch.of(document_rows(texts, 4, 64)), torch.Generator())
        ends = 0.0
        for text in texts:
            chunks = chunks_of(document_rows([text], 4, 32), 4, TOKENS)
            ends += float(F.cross_entropy(model.logits(chunks)[-1, -1], torch.tensor(E)))
    assert sums["predicted_bytes"] == sums["bytes"] == sum(map(len, texts))
    assert sums["nll"] == pytest.approx(sum(nll_of(model, b"", text) for text in texts) + ends, rel=1e-5)
    assert padded == pytest.approx(sums, rel=1e-5)


def test_the_first_token_of_a_row_from_the_middle_of_a_text_is_not_predicted() -> None:
    model = tiny_discrete()
    rows = torch.tensor([[1, 2, 3, 4, 5, 6, 7, E]])
    with torch.no_grad():
        sums = model.measure(Batch.of(rows), torch.Generator())
    assert (sums["bytes"], sums["predicted_bytes"]) == (7, 6)


def test_losses_of_two_halves_are_those_of_the_whole() -> None:
    model = tiny_discrete()
    rows = document_rows([TEXT, b"another", b"", b"one more"], 4, 72)
    whole, *halves = (model(Batch.of(part), "all") for part in (rows, rows[:2], rows[2:]))
    assert whole.total.item() == pytest.approx(sum(half.total.item() for half in halves), rel=1e-5)
    assert whole.weight == halves[0].weight + halves[1].weight


def test_steps_equal_one_forward_pass() -> None:
    model = tiny_discrete()
    ids = torch.randint(256, (1, 37, 4), generator=torch.Generator().manual_seed(0))
    memory, rows = ChunkMemory(model.language_model, 1), torch.arange(1)
    with torch.no_grad():
        expected = model.language_model(chunks_of(ids.view(1, -1), 4, TOKENS))
        parts = [memory.read(rows, part, torch.tensor([part.shape[1]]))[0] for part in ids.split([1, 32, 3, 1], 1)]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=0)


def test_it_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    whole, halves = folders(tmp_path, "whole", "halves")
    model = tiny_discrete_config()
    train(tiny_experiment(whole, model=model))
    expected = losses_of(steps)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(tiny_experiment(halves, model=model))
    first = losses_of(steps)
    train(tiny_experiment(halves, model=model, resume_from_checkpoint="latest"))
    assert first + losses_of(steps) == expected
    assert_same_weights(weights_of(whole, 8), weights_of(halves, 8))


def test_what_it_can_and_what_it_refuses(tmp_path: Path) -> None:
    model = tiny_discrete()
    assert isinstance(model, Scores) and isinstance(model, Generates)
    with pytest.raises(ValueError, match="mode must be one of exact, not 'batch'"):
        model.stream([b"a"], GenerationConfig(mode="batch"))
    with pytest.raises(ConfigError, match="multiple of 7"):
        train(tiny_experiment(tmp_path, model=tiny_discrete_config(7)))
