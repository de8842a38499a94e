"""CALM's discrete twin: an exact likelihood, the same one that it samples from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator import registry
from abstractinator.components.calm.calm_discrete import CALMDiscrete
from abstractinator.components.calm.config import CALMConfig, CALMDiscreteConfig, TokenHeadConfig
from abstractinator.components.transformer import TransformerConfig
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Passage
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data import rows_of

BYTES = ByteTokenizer()


def tiny(size: int = 4) -> CALMDiscrete:
    torch.manual_seed(0)
    transformer = TransformerConfig(width=16, layers=2, heads=2, window=8, mlp_width=16)
    head = TokenHeadConfig(width=16, blocks=1, mlp_width=16)
    return CALMDiscrete(
        CALMDiscreteConfig(chunk_size=size, embedding_width=8, transformer=transformer, head=head)
    ).eval()


def log_p(model: CALMDiscrete, context: bytes, text: bytes, begins: bool = True) -> float:
    return -model.score([Passage(context, text, begins)], "exact")[0].nll


@settings(max_examples=30)
@given(text=st.binary(min_size=2, max_size=30), size=st.integers(1, 5), cut=st.integers(0, 29))
def test_scores_of_parts_add_up(text: bytes, size: int, cut: int) -> None:
    """So no byte's probability depends on a later byte."""
    model, cut = tiny(size), 1 + cut % (len(text) - 1)
    parts = log_p(model, b"", text[:cut]) + log_p(model, text[:cut], text[cut:])
    assert log_p(model, b"", text) == pytest.approx(parts, rel=1e-4)


def test_the_probabilities_of_what_may_come_next_sum_to_at_most_one() -> None:
    model = tiny()
    for context in (b"", b"ab", b"abc", b"abcdefg"):
        passages = [Passage(context, bytes([byte]), True) for byte in range(256)]
        total = sum(torch.tensor(-score.nll).exp().item() for score in model.score(passages, "exact"))
        assert 0.9 < total < 1  # the rest is the end of the text


def test_a_batch_of_passages_scores_as_each_alone() -> None:
    model = tiny()
    passages = [Passage(b"x" * n, b"yz" * (n + 1), bool(n % 2)) for n in range(6)]
    together = model.score(passages, "exact")
    for passage, score in zip(passages, together, strict=True):
        assert model.score([passage], "exact")[0].nll == pytest.approx(score.nll, rel=1e-5)


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4), st.integers(1, 4))
def test_measuring_sums_what_scoring_scores(texts: list[bytes], size: int) -> None:
    model = tiny(size)
    rows = rows_of(texts, RowLayout(40 * size, multiple_of=size))
    with torch.no_grad():
        whole = model.measure(Batch.of(rows), torch.Generator())
        halves = [model.measure(Batch.of(rows[i : i + 1]), torch.Generator()) for i in range(len(rows))]
    for name, value in whole.items():
        assert sum(half[name] for half in halves) == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("prompt", [b"", b"a", b"the cat sat on the mat, and"])
def test_it_generates_what_it_scores(size: int, prompt: bytes) -> None:
    """Greedy text is the most probable one, byte by byte."""
    model = tiny(size)
    config = GenerationConfig(max_new_bytes=9, temperature=0.0, seed=0)
    text = b"".join(piece.data for piece in model.stream([prompt], config))
    if text:
        assert model.score([Passage(prompt, text)], "exact")[0].is_greedy


def test_samples_have_the_frequencies_that_scores_say() -> None:
    model = tiny()
    config: dict[str, Any] = {"max_new_bytes": 1, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    prompts = [b"ab"] * 3_000
    found = [piece.data for piece in model.stream(prompts, GenerationConfig(**config))]
    passages = [Passage(b"ab", bytes([byte])) for byte in range(256)]
    p = torch.tensor([-score.nll for score in model.score(passages, "exact")]).exp()
    counts = torch.bincount(torch.tensor([text[0] for text in found]), minlength=256)
    expected = 3_000 * p
    chi = float(((counts - expected).square() / expected).sum())
    assert chi < 320  # of 255 degrees of freedom: above it once in 300 times


def test_the_twins_are_of_one_size() -> None:
    sizes = []
    for config in (CALMConfig(), CALMDiscreteConfig()):
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in registry.class_of(config.kind)(config).parameters()))
    assert abs(sizes[0] / sizes[1] - 1) < 0.05
    assert min(sizes) > 3.8e6 and max(sizes) < 4.2e6
