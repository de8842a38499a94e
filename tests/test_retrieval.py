"""Retrieval: pairs of halves, ranks, and the bag of n-grams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import tiny_experiment

from abstractinator.cli.main import main
from abstractinator.components.cta.config import CTAConfig
from abstractinator.evaluation.retrieval import (
    Pair,
    choose_pairs,
    halves,
    paragraphs,
    retrieve,
    retrieve_by_ngrams,
)
from abstractinator.training.loop import train

WORDS = ["river", "stone", "market", "engine", "garden", "window", "letter", "copper"]


def document(words: list[str]) -> bytes:
    return "\n\n".join(
        f"The {a} and the {a} stood near the {b}, as the {a} had been there for long." for a in words for b in words
    ).encode()


@given(st.binary(min_size=2, max_size=300), st.integers(1, 100))
def test_halves_are_next_to_each_other(paragraph: bytes, longest: int) -> None:
    pair = halves(paragraph, longest)
    assert len(pair.query) <= longest and len(pair.target) <= longest
    assert any(pair.query + b" " * n + pair.target in paragraph for n in range(len(paragraph)))


def test_halves_are_cut_at_a_space() -> None:
    assert halves(b"one two three four", 100) == Pair(b"one two", b"three four")
    assert halves(b"one two three four", 3) == Pair(b"two", b"thr")


def test_paragraphs_are_different_and_long_enough() -> None:
    found = list(paragraphs([document(WORDS), document(WORDS), b"short\n\nshorter"]))
    assert len(found) == len(set(found)) == len(WORDS) ** 2 and all(len(each) >= 64 for each in found)
    pairs = choose_pairs([document(WORDS)], 20, 40)
    assert pairs == choose_pairs([document(WORDS)], 20, 40) != choose_pairs([document(WORDS)], 20, 40, seed=1)
    with pytest.raises(ValueError, match=r"64 different paragraphs.*65 are wanted"):
        choose_pairs([document(WORDS)], 65, 40)


def test_ranks_are_those_of_cosines() -> None:
    targets = torch.eye(20)
    assert retrieve(targets * 3, targets).recall_1 == 1.0
    moved = retrieve(targets.roll(1, 0) * 2 + targets, targets)  # the own one comes second
    assert (moved.recall_1, moved.recall_10, moved.mrr) == (0.0, 1.0, 0.5)
    same = retrieve(torch.ones(20, 4), torch.ones(20, 4))  # all are equal: in the middle
    assert same.recall_1 == 0.0 and same.mrr == pytest.approx(1 / 10.5)


def test_n_grams_find_what_shares_words() -> None:
    pairs = [Pair(f"a {word} of the {word} here".encode(), f"once the {word} was old".encode()) for word in WORDS]
    assert retrieve_by_ngrams(pairs).recall_1 == 1.0
    shuffled = [Pair(pairs[i].query, pairs[i - 1].target) for i in range(len(pairs))]
    assert retrieve_by_ngrams(shuffled).recall_1 < 0.2
    assert retrieve_by_ngrams([Pair(b"", b"x"), Pair(b"ab", b"")]).mrr > 0


def test_a_kind_that_cannot_embed_is_refused(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_experiment(tmp_path, model=CTAConfig(width=8)))
    assert main(["retrieval", "checkpoints"]) == 2
    assert "a model of kind cta cannot embed texts; it can reconstruct texts" in capsys.readouterr().err
    assert main(["retrieval", "checkpoints", "--pairs", "1"]) == 2
    assert "--pairs must be at least 2" in capsys.readouterr().err
