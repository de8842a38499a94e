"""The contenders of the side-by-side suite: one accounting for all, and no look into the future.

Tests of a peer are skipped where it is not installed.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.data import DataConfig, open_corpus, train_loader
from abstractinator.evaluation.held_out import evaluate_held_out, rows_of
from benchmarks import budgeted_training
from benchmarks.common import count_parameters
from benchmarks.contenders import NAMES, contender_class, version_of
from benchmarks.contenders.base import Contender, Setting, fitting_width, within_tolerance

_PARAMETERS = 300_000
_LENGTH = 96


@pytest.fixture(scope="module")
def setting(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    corpus = open_corpus(DataConfig(path=str(text), validation_fraction=0.1))
    return Setting(_PARAMETERS, corpus, tmp_path_factory.mktemp("kept"))


_BUILT: dict[str, Contender] = {}


@pytest.fixture(params=NAMES)
def contender(request: pytest.FixtureRequest, setting: Setting) -> Contender:
    """Each contender that is installed, after some steps, so that every path shows in the result."""
    name = request.param
    if version_of(name) is None:
        pytest.skip(f"{name} is not installed")
    if name not in _BUILT:
        kind = contender_class(name)
        torch.manual_seed(0)
        built = kind(kind.fit(setting), setting)
        recipe = budgeted_training.Recipe("bytes", 1e4, _LENGTH, 4, seed=0)
        training = budgeted_training.Training(built, setting.corpus, recipe)
        for rows, done in zip(training.loader, (0.3, 0.6, 0.9), strict=False):
            training.step(rows, done)
        _BUILT[name] = built.eval()
    return _BUILT[name]


@pytest.fixture
def rows(setting: Setting) -> Tensor:
    """(3, N): the last row ends in padding."""
    some = next(iter(train_loader(setting.corpus, _LENGTH, 3, seed=1))).clone()
    some[2, -7:] = 258
    return some


def test_every_contender_has_the_wanted_number_of_parameters(contender: Contender) -> None:
    assert within_tolerance(count_parameters(contender), _PARAMETERS)


def test_our_contender_is_the_default_preset_at_its_own_size() -> None:
    kind = contender_class("abstractinator")
    from benchmarks.contenders.abstractinator import _DEFAULT, _DEFAULT_WIDTH, model_config

    assert model_config(_DEFAULT_WIDTH, 1.0) == _DEFAULT
    assert kind.modes[0] == "exact"


@pytest.mark.parametrize("parameters", [100_000, 1_000_000, 9_700_000])
def test_a_width_is_found_or_refused(parameters: int) -> None:
    assert within_tolerance(12 * fitting_width(lambda width: 12 * width**2, parameters) ** 2, parameters)
    with pytest.raises(ValueError, match="no size"):
        fitting_width(lambda width: 1000 * width**2, 100)


def test_every_contender_predicts_the_same_bytes(
    contender: Contender, rows: Tensor, request: pytest.FixtureRequest
) -> None:
    with torch.no_grad():
        nats, bytes_ = contender.nats(rows)
        assert bytes_ == int((rows[:, 1:] < 256).sum())
        assert 0 < float(nats) / bytes_ / math.log(2) < 10
        read = (rows[:, :-1] != ByteTokenizer.PAD).sum(1)
        name = request.node.callspec.params["contender"]
        exactly = {"flat": read, "flat-window": read, "megabyte": -(-read // 8)}.get(name)
        assert 0 < contender.positions(rows) <= int(read.sum())
        assert exactly is None or contender.positions(rows) == int(exactly.sum())
        parts = [contender.nats(row[None]) for row in rows]
    assert float(nats) == pytest.approx(sum(float(part) for part, _ in parts), rel=1e-4)


def test_our_own_bits_per_byte_are_those_of_the_evaluation(setting: Setting) -> None:
    kind = contender_class("abstractinator")
    torch.manual_seed(0)
    ours = kind(kind.fit(setting), setting)
    rows = rows_of(setting.corpus.validation_documents(), _LENGTH)
    expected = evaluate_held_out(ours.model, rows, batch_size=2, mixed_precision=True)
    found = budgeted_training.bits_per_byte(ours, rows, batch_size=2)
    assert found["exact"] == pytest.approx(expected.bits_per_byte_exact, rel=1e-5)
    assert found["two_part"] == pytest.approx(expected.bits_per_byte_two_part, rel=1e-5)
    per_position = int((rows < 256).sum()) / sum(ours.positions(part) for part in rows.split(2))
    assert per_position >= expected.levels[-1].bytes_per_code  # of repaired codes, which are more


def test_turns_read_the_text_on(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in turns see the batches that one at a stretch sees, with the budget used up."""
    kind, seen = contender_class("flat"), {"a": [], "b": []}
    recipe = budgeted_training.Recipe("bytes", 4000, _LENGTH, 4, seed=0)

    def training_of(name: str) -> budgeted_training.Training:
        training = budgeted_training.Training(kind(kind.fit(setting), setting), setting.corpus, recipe)
        step = training.step
        monkeypatch.setattr(training, "step", lambda rows, done: (seen[name].append(rows), step(rows, done)))
        return training

    trainings = {name: training_of(name) for name in seen}
    budgeted_training.take_turns(trainings, 3)
    for name, training in trainings.items():
        wanted = [rows for rows, _ in zip(train_loader(setting.corpus, _LENGTH, 4, 0), seen[name], strict=False)]
        assert len(wanted) > 3 and all(map(torch.equal, wanted, seen[name]))
        assert training.parts == 3 and abs(training.bytes - 4000) < 4 * _LENGTH


def test_no_contender_sees_the_future(contender: Contender) -> None:
    """Changing byte t changes no earlier nats: those of the bytes before it, in the sum over the whole row.

    For tokens the places are chosen so that no token reaches over them.
    """
    torch.manual_seed(1)
    words = b"some words, 12 of them (and more) are here. And again: some words are here, as they were; "
    rows = torch.tensor([[256, *words]])
    row_nats = _nats_by_position(contender, rows)
    for place in (6, 12, 21, 40, 53, 70):
        changed = rows.clone()
        changed[:, place:] = torch.randint(ord("!"), ord("0"), (1, rows.shape[1] - place))
        moved = _nats_by_position(contender, changed)
        first = _first_position_of(contender, rows, changed, place)
        torch.testing.assert_close(moved[:first], row_nats[:first], atol=2e-4, rtol=0)
        assert not torch.allclose(moved[first], row_nats[first], atol=1e-3)


def _nats_by_position(contender: Contender, rows: Tensor) -> Tensor:
    """The single nats that a contender adds up, in their order, caught where they are computed."""
    caught: list[Tensor] = []

    def catch(nats: Tensor) -> None:
        caught.append(nats.detach().flatten())

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        cross_entropy = torch.nn.functional.cross_entropy

        def spy(logits: Tensor, targets: Tensor, *_: Any, **__: Any) -> Tensor:
            each = cross_entropy(logits, targets, reduction="none")
            catch(each)
            return each.sum()

        if hasattr(contender, "autoencoder_fraction"):
            from abstractinator.components.token_head import targets_of
            from abstractinator.components.tokens import pack_bytes

            model = contender.model
            tokens = pack_bytes(rows)
            hidden, _ = model.predict(tokens, model.compress(tokens))
            return model.byte_head.nll(hidden, targets_of(tokens))[1:]
        patch.setattr(torch.nn.functional, "cross_entropy", spy)
        contender.nats(rows)
    return torch.cat(caught)


def _first_position_of(contender: Contender, rows: Tensor, changed: Tensor, place: int) -> int:
    """Of the predictions, the first whose target differs."""
    if not hasattr(contender, "encode"):
        return place - 1
    before, after = contender.encode(rows)[0], contender.encode(changed)[0]
    return next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b) - 1


def test_every_contender_generates_in_all_its_modes(contender: Contender) -> None:
    for mode in contender.modes:
        torch.manual_seed(0)
        with torch.no_grad():
            made = sum(contender.stream([b"again, and", b"Dokument 1"], 9, mode, 0))
        assert 0 < made <= 2 * 9


def test_byte_pairs_write_any_bytes_and_say_nothing_new(setting: Setting) -> None:
    kind = contender_class("bpe-llama")
    model = kind(kind.fit(setting), setting)
    row = [256, *range(256), 257, 256, *"«again, and again».".encode()]
    tokens = model.encode(torch.tensor([row]))[0]
    back = [[256] if t == model.tokens else [257] if t > model.tokens else _letters(model, t) for t in tokens]
    assert [*chain(*back)] == row and len(tokens) < len(row)
    assert len(model.encode(torch.tensor([[ord(" "), ord("a"), ord("g")]]))[0]) > 1  # the first byte stays by itself


def test_a_row_of_byte_pairs_that_has_ended_is_read_no_farther(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = contender_class("bpe-llama")
    torch.manual_seed(0)
    model = kind(kind.fit(setting), setting).eval()
    lengths = [len(_letters(model, token)) for token in range(model.bpe.get_vocab_size())]
    read: list[Tensor] = []
    seen: list[Tensor] = []
    with torch.no_grad():  # so that the context decides
        for weight in model.model.model.layers.parameters():
            weight.mul_(3.0)

    def steps(*prompts: bytes) -> list[Tensor]:
        """The tokens of each step, of the rows that go on, the most likely ones being sampled."""
        read.clear()
        seen.clear()
        assert sum(model.stream(list(prompts), 24, "exact", 0)) == 24 * len(prompts)
        return [ids[:, 0] for ids in read if ids.shape[1] == 1]

    model.model.register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"]), with_kwargs=True)
    model.model.register_forward_hook(lambda _, __, out: seen.append(out.logits[:, -1]))
    monkeypatch.setattr(Tensor, "multinomial", lambda p, count: p.argmax(-1, keepdim=True))
    alone, logits = [], []
    for prompt in (b"again, and", b"Dokument 1"):
        alone.append(steps(prompt))
        logits.append(list(seen))
    together = steps(b"again, and", b"Dokument 1")
    shorter, longer = sorted(alone, key=len)
    assert len(shorter) < len(together) == len(longer) and all(sum(lengths[int(t)] for t in one) < 24 for one in alone)
    assert [len(step) for step in together] == [2] * len(shorter) + [1] * (len(longer) - len(shorter))
    assert all(set(one.tolist()) <= set(both.tolist()) for one, both in zip(longer, together, strict=True))
    torch.testing.assert_close(seen[-1], max(logits, key=len)[-1], rtol=1e-3, atol=1e-3)


def _letters(model: Any, token: int) -> list[int]:
    return list(model.bpe.id_to_token(token).encode("latin-1"))
