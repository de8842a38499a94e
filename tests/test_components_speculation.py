"""Speculation: guesses change how fast the text comes, and never the text."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_generation import PROMPTS, TEXT, every_shape, model_of, some_shapes, trained_model

from abstractinator.components.hierarchical import drafting
from abstractinator.components.hierarchical.drafting import Drafts
from abstractinator.components.hierarchical.generation import stream_bytes
from abstractinator.components.hierarchical.incremental_model import IncrementalModel
from abstractinator.contract.generation_config import GenerationConfig

levels_1_to_3 = pytest.mark.parametrize("shape", ["threshold", "threshold-fixed", "increase-threshold-fixed"])


def test_rows_without_a_guess_do_not_wait_for_those_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafts, "propose", lambda self, rows, upcoming: [b"ab" * (row == 0) for row in rows.tolist()])
    config = GenerationConfig("speculative", max_new_bytes=60, temperature=1.0, top_p=1.0, seed=0)
    order = [piece.prompt for piece in stream_bytes(model_of("fixed"), [b"the cat", b"the dog"], config)]
    assert 1 in order[len(order) // 8 : len(order) // 4]


def test_many_rows_are_not_drafted_till_few_are_left() -> None:
    model, many, few = trained_model("threshold"), drafting.ROWS + 2, drafting.ROWS
    with torch.inference_mode():
        state, rows = IncrementalModel(model, many), torch.arange(many)
        state.prefill([b"the cat sat on the "] * many)
        drafts = Drafts(model, state, many)
        assert drafts.propose(rows, [109] * many) == [b""] * many
        drafts.accept(0, 109, b"")
        assert not any(plan.candidates or plan.since for plan in drafts.plans)
        state.keep(rows[:few])
        drafts.keep(list(range(few)))
        drafts.propose(rows[:few], [109] * few)
        assert all(plan.candidates for plan in drafts.plans)


@every_shape
def test_greedy_speculation_is_greedy_exact(shape: str) -> None:
    settings = {"temperature": 0, "max_new_bytes": 40}
    model = model_of(shape)
    assert model.generate_bytes(PROMPTS, mode="speculative", **settings) == model.generate_bytes(
        PROMPTS, mode="exact", **settings
    )


@levels_1_to_3
def test_speculation_comes_to_the_same_in_fewer_steps(
    shape: str, states: list[IncrementalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "PATIENCE", 0)  # these segments are too short to save much
    model, prompts = trained_model(shape), [TEXT[:5], TEXT + TEXT[:17], b"the dog"]
    for prompt in prompts:
        settings = {"temperature": 0, "max_new_bytes": 90}
        assert model.generate_bytes(prompt, mode="speculative", **settings) == model.generate_bytes(
            prompt, mode="exact", **settings
        )
        speculative, exact = (len(state.reads) for state in states[-2:])
        # Eight bits for a top code of three levels carry too little of its bytes for a plan to come true.
        saved = {"threshold": 0.15, "threshold-fixed": 0.01}.get(shape, 0)
        assert speculative <= (1 - saved) * exact


def test_plans_that_never_come_true_are_seldom_made(
    states: list[IncrementalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, plan = [], Drafts._plan
    monkeypatch.setattr(Drafts, "_plan", lambda self, rows: (made.append(len(rows)), plan(self, rows)))
    monkeypatch.setattr(Drafts, "_draft", lambda *_: b"")
    pieces = stream_bytes(model_of("fixed"), [b"a"], GenerationConfig("speculative", 200, 1.0, 0, 1.0, seed=0))
    segments = sum(len(piece.data) for piece in pieces) / 2  # the rule of this model cuts every two bytes
    assert segments > 50
    assert segments / 40 < sum(made) < 4 + segments / 15


@pytest.mark.parametrize("right", [0.0, 0.6, 1.0])
@some_shapes
def test_whatever_the_guesses_the_text_is_the_same(shape: str, right: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses of any length, right up to some byte, in a batch of unequal prompts."""
    model, random_ = model_of(shape), random.Random(0)
    texts = [prompt + model.generate_bytes(prompt, mode="exact", temperature=0, max_new_bytes=50) for prompt in PROMPTS]

    def propose(self: Drafts, rows: torch.Tensor, upcoming: list[int]) -> list[bytes]:
        out = []
        for count in self.state.levels[0].counts[rows].tolist():
            text = next(text for text in texts if len(text) >= count)  # any text will do
            guess = text[count : count + random_.randrange(9)]
            out.append(bytes(byte if random_.random() < right else 65 for byte in guess))
        return out

    monkeypatch.setattr(Drafts, "propose", propose)
    out = model.generate_bytes(PROMPTS, mode="speculative", temperature=0, max_new_bytes=50)
    assert [prompt + text for prompt, text in zip(PROMPTS, out, strict=True)] == texts
