import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_generation import PROMPTS, TEXT, every_mode, every_shape, model_of, some_shapes, trained_model
from tiny_models import random_text, rows_of, tiny_model

from abstractinator.components.hierarchical import generation
from abstractinator.components.hierarchical.drafting import Drafts
from abstractinator.components.hierarchical.generation import stream_bytes
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.incremental_model import IncrementalModel
from abstractinator.components.hierarchical.plan import decode_codes
from abstractinator.components.incremental.folded import FoldedDepthHead
from abstractinator.components.tokens import BYTES, pack_bytes
from abstractinator.contract.generation_config import GenerationConfig

ROOT = Path(__file__).resolve().parents[1]


def with_first_slots(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes the logits of the first slot in every head that generation asks, where the end is the last class."""
    ask = FoldedDepthHead.slot_logits

    def changed(self: FoldedDepthHead, hidden: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
        logits = ask(self, hidden, earlier)
        return logits if earlier.shape[-1] else change(logits)

    monkeypatch.setattr(FoldedDepthHead, "slot_logits", changed)


def always_the_end(logits: torch.Tensor) -> torch.Tensor:
    logits = torch.zeros_like(logits)
    logits[..., -1] = 50.0
    return logits


def greedy_by_full_forwards(model: HierarchicalAELM, prompt: bytes, bound: int) -> bytes:
    text = prompt
    with torch.no_grad():
        for _ in range(bound):
            tokens = pack_bytes(rows_of([text + b"?"]))  # the last token has no effect there
            hidden, _ = model.predict(tokens, model.compress(tokens))
            best = int(model.byte_head.slot_logits(hidden[-1:], torch.zeros(1, 0)).argmax())
            if best == BYTES.codebook_size:
                break
            text += bytes([best])
    return text[len(prompt) :]


@every_shape
def test_greedy_exact_text_is_the_argmax_of_full_forwards(shape: str) -> None:
    model = model_of(shape)
    for prompt in PROMPTS[:2]:
        got = model.generate_bytes(prompt, mode="exact", temperature=0, max_new_bytes=20)
        assert got == greedy_by_full_forwards(model, prompt, 20)


@every_shape
@every_mode
def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(shape: str, mode: str) -> None:
    model = model_of(shape)
    settings = {"mode": mode, "temperature": 0, "max_new_bytes": 17}
    together = model.generate_bytes(PROMPTS, **settings)
    assert together == [model.generate_bytes(prompt, **settings) for prompt in PROMPTS]
    assert any(together)


@every_shape
@every_mode
@pytest.mark.parametrize("bound", [1, 2, 13])
def test_no_more_bytes_than_asked_for(shape: str, mode: str, bound: int) -> None:
    out = model_of(shape).generate_bytes(PROMPTS, mode=mode, max_new_bytes=bound, temperature=1.0, top_p=1.0, seed=0)
    assert max(map(len, out)) <= bound
    assert any(out)


@some_shapes
@every_mode
def test_a_seed_repeats_the_text_and_another_does_not(shape: str, mode: str) -> None:
    settings = {"mode": mode, "temperature": 1.5, "top_p": 1.0, "max_new_bytes": 30}
    first, again, other = (model_of(shape).generate_bytes(PROMPTS, seed=seed, **settings) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@some_shapes
@every_mode
def test_the_end_ends_the_text(shape: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_first_slots(monkeypatch, always_the_end)
    out = model_of(shape).generate_bytes(PROMPTS, mode=mode, max_new_bytes=30, seed=0)
    assert out == [b""] * len(PROMPTS)


@some_shapes
def test_rows_end_by_themselves(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own sampling, with the end made likely: rows of one batch end at different positions."""
    with_first_slots(monkeypatch, likely_end)
    out = model_of(shape).generate_bytes(
        PROMPTS * 4, mode="exact", max_new_bytes=60, temperature=1.0, top_p=1.0, seed=0
    )
    assert len({len(text) for text in out}) > 2
    assert max(map(len, out)) < 60


def likely_end(logits: torch.Tensor) -> torch.Tensor:
    end = logits[..., :-1].logsumexp(-1, keepdim=True) - 1
    return torch.cat([logits[..., :-1], end], dim=-1)


@some_shapes
@every_mode
def test_an_empty_prompt_is_the_beginning_of_a_document(shape: str, mode: str) -> None:
    """Alone, and beside other prompts."""
    model, settings = model_of(shape), {"mode": mode, "max_new_bytes": 9, "temperature": 0}
    alone = model.generate_bytes(b"", **settings)
    assert model.generate_bytes([b"the cat", b"", *PROMPTS], **settings)[1] == alone
    if mode != "plan":
        assert alone == greedy_by_full_forwards(model, b"", 9)
    assert len(model.generate_bytes(b"", **settings, no_repeat_ngram_size=3)) <= 9


@every_mode
def test_no_prompt_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="no prompt"):
        model_of("fixed").generate_bytes([], mode=mode)


@pytest.mark.parametrize("prompts", [b"the cat", {"a": b"the cat"}, iter([b"the cat"]), None], ids=type)
def test_prompts_that_are_no_list_are_refused(prompts: Any) -> None:
    with pytest.raises(ValueError, match=f"a list of bytes, not {type(prompts).__name__}"):
        stream_bytes(model_of("fixed"), prompts, GenerationConfig())


@every_mode
def test_a_prompt_longer_than_every_window_is_read(mode: str) -> None:
    """What follows depends on the end of it alone, and on all of that: it is cut nowhere."""
    model, prompt = model_of("threshold-fixed"), random_text(random.Random(0), 500)
    settings = {"mode": mode, "max_new_bytes": 9, "temperature": 0}
    whole = model.generate_bytes(prompt, **settings)
    assert len(whole) == 9
    if mode != "plan":
        assert whole == greedy_by_full_forwards(model, prompt, 9)


@every_mode
def test_generation_leaves_the_model_as_it_was(mode: str) -> None:
    model = tiny_model("whitespace-both").train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.generate_bytes(PROMPTS, mode=mode, max_new_bytes=9, seed=0)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@every_mode
def test_an_open_stream_computes_in_eval_mode_and_leaves_the_model_in_the_callers(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = tiny_model("whitespace-both"), {"mode": mode, "max_new_bytes": 100, "seed": 0}
    expected, texts, seen = model.generate_bytes(PROMPTS, **settings), [b""] * len(PROMPTS), []

    def noted(logits: torch.Tensor) -> torch.Tensor:
        seen.append(model.training)
        return logits

    with_first_slots(monkeypatch, noted)
    for number, piece in enumerate(stream_bytes(model, PROMPTS, GenerationConfig(**settings))):
        assert model.training == (number % 3 == 1)
        model.train(number % 3 == 0)
        texts[piece.prompt] += piece.data
    assert seen and not any(seen)
    assert texts == expected


def test_a_script_may_end_with_an_open_stream() -> None:
    script = """
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.contract.generation_config import GenerationConfig
pieces = HierarchicalAELM(ModelConfig()).stream([b"a"], GenerationConfig("exact"))
next(pieces)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@some_shapes
@every_mode
def test_generation_is_in_fp32_inside_autocast(shape: str, mode: str) -> None:
    model, settings = model_of(shape), {"mode": mode, "max_new_bytes": 100, "seed": 0}
    expected = model.generate_bytes(PROMPTS, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate_bytes(PROMPTS, **settings) == expected
        pieces = stream_bytes(model, PROMPTS, GenerationConfig(**settings))
        first = next(pieces)
        product = torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)
        assert product.dtype == torch.bfloat16 and product.requires_grad
    assert (
        first.data + b"".join(piece.data for piece in pieces if piece.prompt == first.prompt) == expected[first.prompt]
    )


@every_shape
def test_a_plan_of_no_codes_is_no_text(shape: str) -> None:
    model = model_of(shape)
    ids = torch.zeros(2, 3, model.top.vocabulary.slots, dtype=torch.int64)
    at_boundary = torch.zeros(2, len(model.levels), dtype=torch.int64)
    planned, counts = decode_codes(model, ids, torch.tensor([0, 0]), at_boundary)
    assert planned.shape == (2, 0) and counts.tolist() == [0, 0]
    one, counts = decode_codes(model, ids, torch.tensor([0, 2]), at_boundary)
    assert counts[0] == 0 and 2 <= counts[1] == one.shape[1]


@pytest.mark.parametrize("mode", ["exact", "speculative"])
@pytest.mark.parametrize("shape", ["threshold", "whitespace-both"])
def test_text_has_the_distribution_of_the_predict_path(shape: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """χ² of the next two bytes against full forwards, with guesses that are often right and often wrong."""
    model, prompt, count = model_of(shape), b"the cat", 3000
    config = {"temperature": 0.8, "top_k": 3, "top_p": 0.95}
    expected, guess = {}, {}

    def shaped(text: bytes) -> dict[int, float]:
        tokens = pack_bytes(rows_of([text + b"?"]))
        with torch.no_grad():
            hidden = model.predict(tokens, model.compress(tokens))[0][-1:]
            p = (model.byte_head.slot_logits(hidden, torch.zeros(1, 0))[0] / config["temperature"]).softmax(-1)
        kept = p.topk(3)
        total = kept.values.sum()
        before = (kept.values.cumsum(0) - kept.values) / total
        kept_p = kept.values * (before < config["top_p"])
        return {int(i): float(x / kept_p.sum()) for i, x in zip(kept.indices, kept_p, strict=True) if x > 0}

    for first, p in shaped(prompt).items():
        following = shaped(prompt + bytes([first]))
        guess[first] = max(following, key=lambda byte: following[byte])
        expected |= {bytes([first, second]): p * q for second, q in following.items()}
    assert 256 not in guess and len(expected) > 4
    monkeypatch.setattr(Drafts, "propose", lambda _, rows, upcoming: [bytes([guess.get(b, 65), 66]) for b in upcoming])
    out = model.generate_bytes([prompt] * count, mode=mode, max_new_bytes=2, seed=3, **config)
    seen = Counter(out)
    assert set(seen) <= set(expected)
    chi_square = sum((seen[text] - count * p) ** 2 / (count * p) for text, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


@some_shapes
@every_mode
def test_finished_rows_cost_nothing(shape: str, mode: str, states: list[IncrementalModel]) -> None:
    """What is read for a batch is what is read for each of its prompts alone, however early one is stopped."""
    model, alone = model_of(shape), 0
    free = model.generate_bytes(PROMPTS, mode=mode, temperature=0, max_new_bytes=30)
    settings = {"mode": mode, "temperature": 0, "max_new_bytes": 30, "stop": (free[1][3:5], free[2][11:13])}
    alone_texts = []
    for prompt in PROMPTS:
        alone_texts.append(model.generate_bytes(prompt, **settings))
        alone += sum(states[-1].reads)
    assert model.generate_bytes(PROMPTS, **settings) == alone_texts
    # A plan checks for the end once a block.
    assert abs(sum(states[-1].reads) - alone) <= (16 if mode == "plan" else 0)
    assert len({len(text) for text in alone_texts}) > 1


@some_shapes
@every_mode
def test_the_text_ends_before_the_first_stop_string(shape: str, mode: str) -> None:
    model, settings = model_of(shape), {"mode": mode, "temperature": 0, "max_new_bytes": 40}
    free = model.generate_bytes(PROMPTS[1], **settings)
    stops = (b"\x00never", free[9:12], free[7:9])
    expected = free[: min(free.find(stop) for stop in stops[1:])]
    assert model.generate_bytes(PROMPTS[1], stop=stops, **settings) == expected
    pieces = list(stream_bytes(model, [PROMPTS[1]], GenerationConfig(stop=stops, **settings)))  # type: ignore[arg-type]
    assert b"".join(piece.data for piece in pieces) == expected


@every_mode
def test_bytes_come_as_they_are_made(mode: str) -> None:
    config = GenerationConfig(mode=mode, max_new_bytes=200, seed=0)  # type: ignore[arg-type]
    pieces = list(stream_bytes(trained_model("threshold"), [b"the cat", b"the dog sat"], config))
    assert {piece.prompt for piece in pieces} == {0, 1}
    assert max(len(piece.data) for piece in pieces) <= 32 * 5  # a block of codes, of segments of five bytes
    texts = [b"".join(piece.data for piece in pieces if piece.prompt == number) for number in (0, 1)]
    assert texts == trained_model("threshold").generate_bytes([b"the cat", b"the dog sat"], **vars(config))


@some_shapes
@every_mode
def test_memory_is_full_from_the_beginning(shape: str, mode: str, states: list[IncrementalModel]) -> None:
    config = GenerationConfig(mode=mode, max_new_bytes=300, temperature=1.0, seed=0)  # type: ignore[arg-type]
    pieces = stream_bytes(model_of(shape), [b"the cat"], config)
    next(pieces)
    at_first = states[-1].nbytes
    for _ in pieces:
        assert states[-1].nbytes in (at_first, 0)  # 0 once the row has ended


@pytest.mark.parametrize("mode", ["exact", "speculative"])
def test_no_string_is_repeated(mode: str) -> None:
    settings = {"mode": mode, "temperature": 0, "max_new_bytes": 120}
    prompt, model = TEXT[:20], trained_model("threshold")

    def longest_repeat(text: bytes) -> int:
        return max(
            n for n in range(len(text)) if len({text[i : i + n] for i in range(len(text) - n + 1)}) < len(text) - n + 1
        )

    assert longest_repeat(prompt + model.generate_bytes(prompt, **settings)) > 20
    assert longest_repeat(prompt + model.generate_bytes(prompt, no_repeat_ngram_size=6, **settings)) == 5
    windowed = model.generate_bytes(prompt, no_repeat_ngram_size=6, repetition_window=10, **settings)
    assert longest_repeat(windowed) > 5


def test_a_plan_repeats_no_codes() -> None:
    settings = {"mode": "plan", "temperature": 0, "max_new_bytes": 200}
    prompt, model = TEXT[:20], trained_model("threshold")
    free, varied = (model.generate_bytes(prompt, no_repeat_ngram_size=size, **settings) for size in (0, 6))
    assert free[:3] == varied[:3]
    assert len({varied[i : i + 12] for i in range(188)}) > 1.5 * len({free[i : i + 12] for i in range(188)})


def test_a_plan_repeats_no_codes_of_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[list[object]] = []
    monkeypatch.setattr(generation, "repeats", lambda history, size: looked_at.append(list(history)) or set())
    model = trained_model("threshold")
    model.generate_bytes(TEXT * 2, mode="plan", no_repeat_ngram_size=8, max_new_bytes=60, seed=0)
    of_prompt = [
        tuple(code) for code in model.compress(pack_bytes(torch.tensor([[*TEXT, *TEXT]])))[-1].codes.ids.tolist()
    ]
    histories = [history for history in looked_at if isinstance(history[0], tuple)]
    assert len(of_prompt) > 20 and len(histories) > 5
    assert all(history[: len(of_prompt) - 1] == of_prompt[:-1] for history in histories)  # its last segment was open


@pytest.mark.parametrize("prompt", ["text", ["text"], bytearray(b"text"), (b"text",)], ids=str)
def test_prompts_are_bytes(prompt: object) -> None:
    with pytest.raises(ValueError, match="a prompt is bytes, several are a list"):
        model_of("fixed").generate_bytes(prompt)


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"unknown setting max_bytes; .*max_new_bytes"):
        model_of("fixed").generate_bytes(b"text", max_bytes=3)


def test_an_unknown_mode_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of plan, exact, speculative, not 'guess'"):
        model_of("fixed").generate_bytes(b"text", mode="guess")


def test_a_temperature_of_almost_nothing_is_greedy() -> None:
    model = model_of("fixed")
    cold, greedy = (model.generate_bytes(b"a", temperature=t, max_new_bytes=9) for t in (1e-320, 0.0))
    assert cold == greedy
