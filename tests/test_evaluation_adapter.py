"""The harness's three calls: the texts that go in, the results, what is refused before work starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.registry import get_model
from tiny_evaluation import TEXT, model_of, requests_of, save_tiny

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.contract.capabilities import Passage, Score
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.evaluation import byte_lm
from abstractinator.evaluation.model_args import parse_model_args
from abstractinator.evaluation.model_lm import ModelLM

hier_ae = get_model("hier_ae")
SHAPE = "threshold-fixed"
LETTERS = b"abcdefghijklmnopqrstuv"


@pytest.fixture
def model() -> HierarchicalAELM:
    return model_of(SHAPE, "trained")


@pytest.fixture
def checkpoint(tmp_path: Path, model: HierarchicalAELM) -> str:
    return save_tiny(tmp_path / "checkpoint_step3.pt", model, SHAPE)


@pytest.fixture
def lm(checkpoint: str) -> ModelLM:
    return hier_ae(checkpoint, device="cpu")


def nats(lm: ModelLM, context: bytes, continuation: bytes, begins: bool = True) -> float:
    return lm.score([Passage(context, continuation, begins)])[0].nll


# ---- loglikelihood -----------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_requests(lm: ModelLM) -> None:
    pairs = [("the cat ", "sat"), ("", "a"), ("one more dog under some", " very old green tree"), ("the cat ", "sat")]
    answers = lm.loglikelihood(requests_of("loglikelihood", pairs), disable_tqdm=True)
    for (context, continuation), (log_p, _) in zip(pairs, answers, strict=True):
        assert log_p == pytest.approx(-nats(lm, context.encode(), continuation.encode()), abs=1e-3)
    assert answers[0] == answers[3]


def test_equal_requests_are_worked_out_once(lm: ModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Passage] = []

    def score(passages: Sequence[Passage]) -> list[Score]:
        seen.extend(passages)
        return [Score(1.0, False) for _ in passages]

    monkeypatch.setattr(lm, "score", score)
    assert len(lm.loglikelihood(requests_of("loglikelihood", [("a", "b"), ("a", "c"), ("a", "b")]), True)) == 3
    assert len(seen) == 2


def test_is_greedy_is_what_greedy_generation_writes(lm: ModelLM, model: HierarchicalAELM) -> None:
    prompt = TEXT[:12]
    text = model.generate_bytes(prompt, mode="exact", temperature=0.0, max_new_bytes=12).decode()
    other = chr((ord(text[-1]) + 1) % 128)
    pairs = [(prompt.decode(), text), (prompt.decode(), text[:-1] + other), (prompt.decode(), other + text[1:])]
    answers = lm.loglikelihood(requests_of("loglikelihood", pairs), disable_tqdm=True)
    assert [is_greedy for _, is_greedy in answers] == [True, False, False]


def test_an_empty_continuation_is_certain(lm: ModelLM) -> None:
    answers = lm.loglikelihood(requests_of("loglikelihood", [("the cat", ""), ("", ""), ("the", " cat")]), True)
    assert answers[:2] == [(0.0, True)] * 2
    assert answers[2][0] < 0


def test_any_text_is_bytes(lm: ModelLM) -> None:
    """Lone surrogates: an undecodable byte is that byte, half of a pair from JSON its three bytes."""
    pairs = [("caf\udcc3\udca9", " \ud83d"), ("\ud83d", "\udc00"), ("\0", "\U0001f600")]
    expected = [(b"caf\xc3\xa9", b" \xed\xa0\xbd"), (b"\xed\xa0\xbd", b"\xed\xb0\x80"), (b"\0", "\U0001f600".encode())]
    answers = lm.loglikelihood(requests_of("loglikelihood", pairs), disable_tqdm=True)
    for (context, continuation), (log_p, _) in zip(expected, answers, strict=True):
        assert log_p == pytest.approx(-nats(lm, context, continuation), abs=1e-3)


def test_a_long_context_is_cut_from_the_left(checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = hier_ae(checkpoint, device="cpu", max_length=20)
    context, long = TEXT[:40], TEXT[40:70]
    pairs = [(context.decode(), "some"), (TEXT[:16].decode(), "some"), (context.decode(), long.decode())]
    with caplog.at_level(logging.WARNING):
        answers = lm.loglikelihood(requests_of("loglikelihood", pairs), disable_tqdm=True)
    assert "2 of 3 contexts cut from the left" in caplog.text
    assert answers[0][0] == pytest.approx(-nats(lm, context[-16:], b"some", begins=False), abs=1e-3)
    assert answers[1][0] == pytest.approx(-nats(lm, TEXT[:16], b"some"), abs=1e-3)
    assert answers[2][0] == pytest.approx(-nats(lm, context[-1:], long, begins=False), abs=1e-3)


def test_by_default_contexts_may_be_longer_than_in_training(lm: ModelLM) -> None:
    assert lm.max_length == 8 * 16


@pytest.mark.parametrize("batch_size", [1, "3", "auto"])
@pytest.mark.parametrize("scoring", ["exact", "two_part"])
def test_batch_size_changes_nothing(checkpoint: str, scoring: str, batch_size: int | str) -> None:
    pairs = [(TEXT[:position].decode(), TEXT[position : position + 5].decode()) for position in range(0, 60, 7)]
    whole = hier_ae(checkpoint, scoring, device="cpu", batch_size=100)
    parts = hier_ae(checkpoint, scoring, device="cpu", batch_size=batch_size)
    expected, found = (
        lm.loglikelihood(requests_of("loglikelihood", pairs), disable_tqdm=True) for lm in (whole, parts)
    )
    assert [log_p for log_p, _ in found] == pytest.approx([log_p for log_p, _ in expected], abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_batches_are_taken_without_a_look_at_the_rest(
    lm: ModelLM, monkeypatch: pytest.MonkeyPatch, batch_size: int | str
) -> None:
    looks, sizes = [0], list[int]()

    class Counted(Passage):
        def __len__(self) -> int:
            looks[0] += 1
            return super().__len__()

    def score(passages: Sequence[Passage]) -> list[Score]:
        sizes.append(len(passages))
        return [Score(1.0, False) for _ in passages]

    monkeypatch.setattr(byte_lm, "Passage", Counted)
    monkeypatch.setattr(lm, "score", score)
    lm._batching = byte_lm._Batching.of(batch_size, None, torch.device("cpu"))
    pairs = [("a" * (number // 30), f"{number:03}") for number in range(900)]
    lm.loglikelihood(requests_of("loglikelihood", pairs), disable_tqdm=True)
    assert sum(sizes) == 900 and looks[0] <= 2 * 900 + len(sizes)
    lengths = [1 + len(context) + 3 for context, _ in reversed(pairs)]
    for size in sizes[:-1]:
        batch, lengths = lengths[:size], lengths[size:]
        assert size == batch_size or sum(batch) <= 8192 < sum(batch) + lengths[0]


def test_auto_halves_a_batch_that_does_not_fit(lm: ModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    score = lm.score

    def limited(passages: Sequence[Passage]) -> list[Score]:
        sizes.append(sum(map(len, passages)))
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError("too much")
        return score(passages)

    monkeypatch.setattr(lm, "score", limited)
    pairs = [(TEXT[:10].decode(), TEXT[10 : 12 + position].decode()) for position in range(12)]
    assert all(log_p < 0 for log_p, _ in lm.loglikelihood(requests_of("loglikelihood", pairs), disable_tqdm=True))
    assert sizes[0] > 120 and sizes[-1] <= 60
    with pytest.raises(torch.OutOfMemoryError):
        lm.loglikelihood(requests_of("loglikelihood", [("", TEXT.decode())]), disable_tqdm=True)


# ---- loglikelihood_rolling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["exact", "two_part"])
@pytest.mark.parametrize("length", [1, 19, 20, 21, 40, 67])
def test_windows_score_each_byte_exactly_once(checkpoint: str, scoring: str, length: int) -> None:
    lm = hier_ae(checkpoint, scoring, device="cpu", max_length=20)
    text = TEXT[:length]
    windows = list(lm.windows(text))
    assert b"".join(window.continuation for window in windows) == text
    assert windows[0].begins and windows[0].context == b""
    position = len(windows[0].continuation)
    for window in windows[1:]:
        assert not window.begins and window.context == (
            b"" if scoring == "two_part" else text[:position][-len(window.context) :]
        )
        assert len(window.context) + len(window.continuation) <= 21
        position += len(window.continuation)
    (log_p,) = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", [(text.decode(),)]), disable_tqdm=True)
    assert log_p == pytest.approx(-sum(lm.score([window])[0].nll for window in windows), abs=1e-3)


@pytest.mark.parametrize(
    ("needed", "contexts"),
    [
        (0, [b"", b"", b""]),
        (1, [b"", b"h", b"p"]),
        (4, [b"", b"efgh", b"jklm", b"opqr"]),
        (8, [b"", *(LETTERS[end - 8 : end] for end in range(8, 22))]),
        (99, [b"", *(LETTERS[end - 8 : end] for end in range(8, 22))]),
    ],
)
def test_a_window_has_the_context_that_the_likelihood_needs(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, needed: int, contexts: list[bytes]
) -> None:
    lm = hier_ae(checkpoint, device="cpu", max_length=8)
    monkeypatch.setattr(HierarchicalAELM, "window_context", {"exact": needed})
    windows = list(lm.windows(LETTERS))
    assert [window.context for window in windows] == contexts
    assert b"".join(window.continuation for window in windows) == LETTERS
    assert all(LETTERS.find(window.context + window.continuation) >= 0 for window in windows)


def test_texts_that_fit_are_scored_whole(lm: ModelLM) -> None:
    texts = [("the cat",), ("",), (TEXT.decode(),)]
    answers = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", texts), disable_tqdm=True)
    assert answers == pytest.approx([-nats(lm, b"", b"the cat"), 0.0, -nats(lm, b"", TEXT)], abs=1e-3)


# ---- generate_until ----------------------------------------------------------------------------------------


def generate(lm: ModelLM, *pairs: tuple[str, dict[str, Any]]) -> list[str]:
    return lm.generate_until(requests_of("generate_until", pairs), disable_tqdm=True)


@pytest.mark.parametrize("mode", ["exact", "plan"])
def test_generation_is_the_model_s_own(checkpoint: str, model: HierarchicalAELM, mode: str) -> None:
    lm = hier_ae(checkpoint, device="cpu", generation=mode)
    prompts = ["the cat sat", "a", "one more dog under"]
    found = generate(lm, *((prompt, {"until": [], "max_gen_toks": 15, "do_sample": False}) for prompt in prompts))
    for prompt, text in zip(prompts, found, strict=True):
        expected = model.generate_bytes(prompt.encode(), mode=mode, max_new_bytes=15, temperature=0.0)
        assert text == expected.decode(errors="replace")


def test_a_stop_string_cuts_and_the_prompt_stays_out(lm: ModelLM) -> None:
    (whole,) = generate(lm, (TEXT[:30].decode(), {"max_gen_toks": 30}))
    stop = whole[7:9]
    position = whole.index(stop)
    for until in (stop, [stop], ["zzz", stop, whole[20:]], ["", stop]):
        assert generate(lm, (TEXT[:30].decode(), {"until": until, "max_gen_toks": 30})) == [whole[:position]]


def test_requests_of_different_kinds_keep_their_order(lm: ModelLM) -> None:
    kinds = [{"max_gen_toks": 4}, {"max_gen_toks": 9, "until": [" "]}, {"max_gen_toks": 4}]
    requests = [(text, kind) for text, kind in zip(("the cat", "some very", "on a"), kinds, strict=True)]
    assert generate(lm, *requests) == [generate(lm, request)[0] for request in requests]


def test_sampling_follows_torch_s_seed(lm: ModelLM) -> None:
    def sampled(global_seed: int, **more: Any) -> str:
        torch.manual_seed(global_seed)
        return generate(lm, ("the ", {"do_sample": True, "temperature": 2.0, "max_gen_toks": 20, **more}))[0]

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1
    assert len({sampled(seed, top_k=1) for seed in range(5)}) == 1
    assert len({sampled(seed, seed=7) for seed in range(5)}) == 1


def test_bytes_that_are_no_text_are_replaced(lm: ModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "write", lambda prompts, config: [b"caf\xc3\xa9 \xff\xe2\x82"] * len(prompts))
    assert generate(lm, ("a", {})) == ["café \ufffd\ufffd"]


def test_stop_strings_are_whole_characters(lm: ModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[tuple[str | bytes, ...]] = []

    def write(prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
        stops.append(config.stop)
        return [b"caf"] * len(prompts)

    monkeypatch.setattr(lm, "write", write)
    assert generate(lm, ("a", {"until": ["é", "\n"]})) == ["caf"]
    assert stops == [("é".encode(), b"\n")]


@pytest.mark.parametrize(
    ("context", "arguments", "words"),
    [
        ("", {"num_beams": 4}, ["num_beams"]),
        ("a", {"until": ["\udca9"]}, ["'\\udca9'", "whole characters"]),
        ("a", {"until": ["x", "\ud83d"]}, ["'\\ud83d'"]),
        ("a", {"num_beams": 4}, ["num_beams", "max_gen_toks"]),
        ("a", {"max_gen_toks": 0}, ["max_gen_toks", "at least 1"]),
        ("a", {"do_sample": True, "temperature": -1}, ["temperature"]),
        ("a", {"do_sample": True, "top_p": 2}, ["top_p"]),
    ],
)
def test_a_generation_that_cannot_be_is_refused_before_work(
    lm: ModelLM, monkeypatch: pytest.MonkeyPatch, context: str, arguments: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.setattr(lm, "write", lambda *_: pytest.fail("work had begun"))
    with pytest.raises(ValueError) as error:
        generate(lm, ("the cat", {}), (context, arguments))
    assert [word for word in words if word not in str(error.value)] == []


# ---- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "checkpoint=a b.pt,max_length=7,scoring=exact",
        "checkpoint=a b.pt max_length=7 scoring=exact",
        ["checkpoint=a b.pt", "max_length=7", "scoring=exact"],
        ["checkpoint=a b.pt,max_length=7", "scoring=exact"],
    ],
)
def test_model_args_with_commas_or_spaces(words: str | list[str]) -> None:
    assert parse_model_args(words) == {"checkpoint": "a b.pt", "max_length": 7, "scoring": "exact"}
    with pytest.raises(ValueError, match="key=value"):
        parse_model_args("a.pt")
    assert parse_model_args(None) == parse_model_args("") == {}


def test_created_as_the_harness_does_it(checkpoint: str) -> None:
    text = f"checkpoint={checkpoint} scoring=two_part max_length=64"
    lm = hier_ae.create_from_arg_string(text, {"device": "cpu", "batch_size": None})
    info = lm.get_model_info()
    assert (info["scoring"], info["max_length"], info["checkpoint_steps"]) == ("two_part", 64, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scoring": "excat"}, ["scoring", "two_part"]),
        ({"dtype": "float8"}, ["dtype", "bfloat16"]),
        ({"generation": "fast"}, ["generation must be one of", "plan"]),
        ({"max_length": 1}, ["max_length", "at least 2"]),
        ({"max_length": "abc"}, ["max_length", "whole number", "'abc'"]),
        ({"max_length": 100.5}, ["max_length", "whole number"]),
        ({"batch_size": "many"}, ["batch_size", "auto"]),
        ({"batch_size": 0}, ["batch_size"]),
        ({"max_lenght": 9}, ["max_lenght", "`max_length`"]),
        ({"device": "gpu"}, ["device=gpu", "cpu"]),
        ({"device": "cuda:63"}, ["device=cuda:63", "cpu"]),
        ({"checkpoint": None}, ["checkpoint=…"]),
        ({"checkpoint": "nowhere.pt"}, ["nowhere.pt"]),
    ],
)
def test_a_wrong_argument_is_refused(checkpoint: str, arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        hier_ae(**{"checkpoint": checkpoint, "device": "cpu"} | arguments)
    assert [word for word in words if word not in str(error.value)] == []


def test_half_precision_is_near(checkpoint: str, lm: ModelLM) -> None:
    half = hier_ae(checkpoint, device="cpu", dtype="bfloat16")
    found, expected = (
        one.loglikelihood(requests_of("loglikelihood", [("", TEXT.decode())]), True) for one in (half, lm)
    )
    assert found[0][0] != expected[0][0]
    assert found[0][0] == pytest.approx(expected[0][0], rel=0.1)
    assert math.isfinite(found[0][0])


def test_prompts_are_generated_in_batches(lm: ModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(byte_lm, "_PROMPTS_A_BATCH", 2)
    monkeypatch.setattr(lm, "write", lambda prompts, config: sizes.append(len(prompts)) or [b"x"] * len(prompts))
    assert generate(lm, *((str(number), {}) for number in range(5))) == ["x"] * 5
    assert sorted(sizes) == [1, 2, 2]
