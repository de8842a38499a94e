"""The retrieval check: the other half of a paragraph among all."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_experiment

from abstractinator.cli import main as cli
from abstractinator.components.glae.config import GlaeConfig
from abstractinator.components.transformer import TransformerConfig
from abstractinator.evaluation.retrieval import Ranks, halves, ngram_similarity
from abstractinator.training.loop import train

Output = pytest.CaptureFixture[str]


def paragraphs(count: int, words: int = 40) -> bytes:
    """Each of words of its own."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabularies = [["".join(draw.choices(letters, k=6)) for _ in range(6)] for _ in range(count)]
    return "\n\n".join(" ".join(draw.choices(each, k=words)) for each in vocabularies).encode()


def test_ranks_of_a_known_table() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.3, 0.2, 0.1]])
    ranks = Ranks.of(similarity)
    assert ranks.recall_at_1 == pytest.approx(1 / 3) and ranks.recall_at_10 == 1
    assert ranks.mrr == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert Ranks.of(torch.ones(4, 4)).recall_at_1 == 0  # a model that says the same of all finds nothing


def test_paragraphs_are_cut_next_to_their_middle() -> None:
    text = b"\n\n".join([b"a" * 70 + b" " + b"b" * 80, b"too short", b"c" * 200, "ä ".encode() * 100])
    pairs = halves([text], 2, 64, 0)
    assert (b"a" * 64, b"b" * 64) in pairs
    for first, second in pairs:
        assert 62 <= len(first) <= 64 and 62 <= len(second) <= 64
        first.decode(), second.decode()
    assert halves([text], 2, 64, 0) == pairs
    with pytest.raises(ValueError, match=r"the text has 2 paragraphs of at least 128 bytes, not 3; set --pairs"):
        halves([text], 3, 64, 0)


def test_ngrams_find_what_shares_words() -> None:
    pairs = halves([paragraphs(30)], 20, 128, 1)
    similarity = ngram_similarity([a for a, _ in pairs], [b for _, b in pairs])
    assert similarity.shape == (20, 20) and similarity.min() >= -1e-6 and similarity.max() <= 1 + 1e-6
    assert Ranks.of(similarity).recall_at_1 == 1
    texts = [a for a, _ in pairs]
    torch.testing.assert_close(ngram_similarity(texts, texts).diagonal(), torch.ones(20))


def test_the_command(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = GlaeConfig(
        embedding_width=160,
        memory_width=32,
        ngram_rows=256,
        ngram_width=16,
        decoder=TransformerConfig(width=32, layers=1, heads=2, window=32, mlp_width=32),
    )
    train(tiny_experiment(tmp_path, model=model, sequence_length=66, max_steps=2))
    text = tmp_path / "paragraphs.txt"
    text.write_bytes(paragraphs(30))
    words = ["retrieval", str(tmp_path / "checkpoints"), "--data", str(text), "--pairs"]
    capsys.readouterr()
    assert cli.main([*words, "20"]) == 0
    assert "recall@1" in (printed := capsys.readouterr().out) and "glae" in printed
    assert cli.main([*words, "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 20 and found["ngrams"]["recall_at_1"] > 0.5 and found["mrr_ratio"] > 0
    assert cli.main([*words, "100"]) == 2
    assert "30 paragraphs of at least 128 bytes, not 100" in capsys.readouterr().err
    assert cli.main([*words, "1"]) == 2
    assert "--pairs must be at least 2" in capsys.readouterr().err


def test_a_kind_that_cannot_embed_is_refused(tmp_path: Path, capsys: Output) -> None:
    train(tiny_experiment(tmp_path, max_steps=2))
    capsys.readouterr()
    assert cli.main(["retrieval", str(tmp_path / "checkpoints")]) == 2
    assert capsys.readouterr().err.endswith("a model of kind hier_ae cannot embed texts\n")
