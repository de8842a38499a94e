"""BrierLM: without bias, with an interval, and the same prefixes for every model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tiny_runs import tiny_experiment

from abstractinator.cli.main import main
from abstractinator.components.cta.config import CTAConfig
from abstractinator.contract.capabilities import Piece
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Model
from abstractinator.evaluation.brier import BrierLM, Prefix, brier_lm, choose_prefixes, estimates_of, unigram_brier_lm
from abstractinator.training.loop import train

Output = pytest.CaptureFixture[str]
DOCUMENTS = [bytes(range(97, 123)) * 20, b"too short", b"0123456789" * 30]


class Dice(Model):
    """Writes each byte, a, b or c, with the same probabilities, and ends a text now and then."""

    kind, Config, headline = "dice", dict, "none"
    modes: ClassVar[tuple[str, ...]] = ("fair",)
    sample_modes = modes
    harness_mode: ClassVar[str] = "fair"
    SHARES: ClassVar[list[float]] = [0.5, 0.3, 0.1, 0.1]  # of a, b, c and the end

    def __init__(self) -> None:
        super().__init__({})

    def stream(self, prompts: Any, config: GenerationConfig) -> Iterator[Piece]:
        assert (config.temperature, config.top_p, config.top_k, config.mode) == (1.0, 1.0, 0, "fair")
        random = np.random.default_rng(config.seed)
        for index in range(len(prompts)):
            for face in random.choice(4, size=config.max_new_bytes, p=self.SHARES):
                if face == 3:
                    break
                yield Piece(index, b"abc"[face : face + 1])

    def forward(self, *_: Any) -> Any: ...

    measure = metrics = forward


def exact(following: bytes) -> list[float]:
    """Brier-n of the dice for these bytes: 2 P(y) − Σ P(x)²."""
    p = dict(zip(b"abc", Dice.SHARES, strict=False))
    squares, end = sum(each**2 for each in p.values()), Dice.SHARES[3] ** 2
    out = []
    for n in range(1, 5):
        right = float(np.prod([p.get(byte, 0.0) for byte in following[:n]]))
        agree = squares**n + end * sum(squares**k for k in range(n))  # all that are n long, and those that ended
        out.append(2 * right - agree)
    return out


@pytest.mark.parametrize("batch_size", [64, 1_000])
@pytest.mark.parametrize("following", [b"aaaa", b"abca", b"zzzz"])
def test_the_estimate_has_no_bias(following: bytes, batch_size: int) -> None:
    found = brier_lm(Dice(), [Prefix(b"x", following)] * 20_000, batch_size=batch_size)
    assert np.allclose(found.scores, exact(following), atol=0.02)  # about four standard errors


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, random = [0.4, 0.3, 0.2, 0.1], np.random.default_rng(0)
    value = 100 * float(np.prod(truth)) ** 0.25
    covered = 0
    for seed in range(100):
        found = BrierLM.of((random.random((400, 4)) < truth).astype(float), seed)
        assert found.low <= found.value <= found.high
        covered += found.low <= value <= found.high
    assert 88 <= covered <= 100


def test_a_score_that_is_not_above_0_makes_the_whole_0() -> None:
    found = BrierLM.of(np.array([[1.0, 1.0, 1.0, -1.0]] * 5))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert BrierLM.of(np.ones((5, 4))).value == 100.0


def test_samples_that_end_early_are_other_n_grams() -> None:
    estimates = estimates_of([b"abcd", b"abcd", b"abcd"], [b"ab", b"abcd", b"x"], [b"abcd", b"abcd", b"x"])
    assert estimates.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [-1, -1, -1, -1]]
    assert estimates_of([b"abcd"], [b"ab"], [b"ab"]).tolist() == [[1, 1, -1, -1]]


def test_prefixes_stand_in_the_text() -> None:
    prefixes = choose_prefixes(DOCUMENTS, 500, 16)
    assert all(any(each.context + each.following in text for text in DOCUMENTS) for each in prefixes)
    assert {len(each.context) for each in prefixes} == {16} and {len(each.following) for each in prefixes} == {4}
    assert prefixes == choose_prefixes(DOCUMENTS, 500, 16) != choose_prefixes(DOCUMENTS, 500, 16, seed=1)
    digits = sum(each.context.isdigit() for each in prefixes) / 500
    assert digits == pytest.approx(281 / (281 + 501), abs=0.08)  # by how many places a document has
    with pytest.raises(ValueError, match=r"no document has 604 bytes.*--context"):
        choose_prefixes(DOCUMENTS, 1, 600)


def test_the_unigram_sampler_is_exact() -> None:
    documents = [b"aaabbc"]
    prefixes = [Prefix(b"", b"abca")] * 3
    found = unigram_brier_lm(documents, prefixes)
    squares = (3**2 + 2**2 + 1) / 36
    assert found.scores == pytest.approx(
        [2 * right - squares**n for n, right in enumerate([1 / 2, 1 / 6, 1 / 36, 1 / 72], 1)]
    )


def test_every_kind_that_generates_is_measured(tmp_path: Path, capsys: Output, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_experiment(tmp_path))
    capsys.readouterr()
    options = ["--prefixes", "12", "--context", "20", "--batch-size", "5"]
    assert main(["brier", "checkpoints", *options]) == 0
    out = capsys.readouterr().out
    assert "hier_ae, 8 steps" in out and "bytes by their frequency" in out
    assert main(["brier", "checkpoints", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["hier_ae, 8 steps"]["brier"]) == 4


def test_a_kind_that_cannot_generate_is_refused(tmp_path: Path, capsys: Output, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_experiment(tmp_path, model=CTAConfig(width=8)))
    assert main(["brier", "checkpoints"]) == 2
    assert "a model of kind cta cannot generate text" in capsys.readouterr().err
    assert main(["brier", "checkpoints", "--prefixes", "0"]) == 2
    assert "--prefixes must be at least 1" in capsys.readouterr().err
