"""The models of the side-by-side suite: one accounting for all, and no likelihood that sees the future.

Tests of a peer are skipped where it is not installed.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.token_head import targets_of
from abstractinator.components.tokens import pack_bytes
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Generates, require
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, Model, RowLayout
from abstractinator.data import DataConfig, open_corpus, rows_of, train_loader
from abstractinator.evaluation.held_out import evaluate_held_out
from abstractinator.training import step as step_module
from abstractinator.training.step import train_step
from benchmarks import budgeted_training
from benchmarks.baselines import NAMES, OURS, class_of, modes_of, positions_of, rates_of, sized
from benchmarks.common import count_parameters
from benchmarks.kinds import version_of
from benchmarks.kinds.base import Setting, fitting_width, within_tolerance
from benchmarks.kinds.bpe_llama import BpeLlama
from benchmarks.ours import _DEFAULT, _DEFAULT_WIDTH, model_config

_PARAMETERS = 300_000
_LENGTH = 96


@pytest.fixture(scope="module")
def setting(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    corpus = open_corpus(DataConfig(path=str(text), validation_fraction=0.1))
    return Setting(_PARAMETERS, corpus, tmp_path_factory.mktemp("kept"))


_BUILT: dict[str, Model] = {}


def built(name: str, setting: Setting) -> Model:
    torch.manual_seed(0)
    return class_of(name)(sized(name, setting))


def nll_of(model: Model, rows: Tensor) -> tuple[float, int]:
    """The sum of −log p of rows, in nats, and over how many bytes."""
    mean = model(Batch.of(rows), model.phases()[-1].name).parts["bits_per_byte_exact"]
    return float(mean.total) * math.log(2), int(mean.weight)


@pytest.fixture(params=NAMES)
def baseline(request: pytest.FixtureRequest, setting: Setting) -> Model:
    """Each model that is installed, after some steps, so that every path shows in the result."""
    name = request.param
    if version_of(name) is None:
        pytest.skip(f"{name} is not installed")
    if name not in _BUILT:
        model = built(name, setting)
        recipe = budgeted_training.Recipe("bytes", 1e4, _LENGTH, 4, seed=0)
        training = budgeted_training.Training(model, rates_of(name), setting.corpus, recipe)
        batches = training.state.batches()
        for done in (0.3, 0.6, 0.9):
            training.state.clock.position = done * recipe.planned_steps
            train_step(training.state, batches)
        _BUILT[name] = model.eval()
    return _BUILT[name]


@pytest.fixture
def rows(setting: Setting) -> Tensor:
    """(3, N): the last row ends in padding."""
    some = next(iter(train_loader(setting.corpus, RowLayout(_LENGTH), 3, seed=1))).ids.clone()
    some[2, -7:] = 258
    return some


def test_every_baseline_has_the_wanted_number_of_parameters(baseline: Model) -> None:
    assert within_tolerance(count_parameters(baseline), _PARAMETERS)


def test_our_model_is_the_default_preset_at_its_own_size() -> None:
    assert model_config(_DEFAULT_WIDTH, 1.0) == _DEFAULT
    assert modes_of(OURS)[0] == "exact"


@pytest.mark.parametrize("parameters", [100_000, 1_000_000, 9_700_000])
def test_a_width_is_found_or_refused(parameters: int) -> None:
    assert within_tolerance(12 * fitting_width(lambda width: 12 * width**2, parameters) ** 2, parameters)
    with pytest.raises(ValueError, match="no size"):
        fitting_width(lambda width: 1000 * width**2, 100)


def test_every_baseline_predicts_the_same_bytes(baseline: Model, rows: Tensor, request: pytest.FixtureRequest) -> None:
    with torch.no_grad():
        nats, bytes_ = nll_of(baseline, rows)
        assert bytes_ == int((rows[:, 1:] < 256).sum())
        assert 0 < nats / bytes_ / math.log(2) < 10
        read = (rows[:, :-1] != ByteTokenizer.PAD).sum(1)
        name = request.node.callspec.params["baseline"]
        exactly = {"flat": read, "flat-window": read, "megabyte": -(-read // 8)}.get(name)
        assert 0 < positions_of(baseline, rows) <= int(read.sum())
        assert exactly is None or positions_of(baseline, rows) == int(exactly.sum())
        parts = [nll_of(baseline, row[None]) for row in rows]
    assert nats == pytest.approx(sum(part for part, _ in parts), rel=1e-4)


@pytest.mark.parametrize("name", [OURS, "flat"])
def test_bits_per_byte_are_those_of_the_evaluation(setting: Setting, name: str) -> None:
    model = built(name, setting)
    rows = rows_of(setting.corpus.validation_documents(), RowLayout(_LENGTH))
    expected = evaluate_held_out(model, rows, batch_size=2, mixed_precision=True)
    found = budgeted_training.bits_per_byte(model, rows, batch_size=2)
    assert found["exact"] == pytest.approx(expected["bits_per_byte_exact"].value, rel=1e-5)
    if name == OURS:
        assert found["two_part"] == pytest.approx(expected["bits_per_byte_two_part"].value, rel=1e-5)
        per_position = int((rows < 256).sum()) / sum(positions_of(model, part) for part in rows.split(2))
        assert per_position >= expected["level1/bytes_per_code"].value  # of repaired codes, which are more


@pytest.mark.parametrize("unit", ["bytes", "seconds"])
def test_a_training_in_parts_is_one_training(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unit: Any
) -> None:
    """Saved and resumed between its parts, it reads the text on and ends with its budget used up."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(step_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 2))
    recipe = budgeted_training.Recipe(unit, {"bytes": 4000, "seconds": 5.0}[unit], _LENGTH, 4, seed=0)

    def training() -> budgeted_training.Training:
        return budgeted_training.Training(built("flat", setting), rates_of("flat"), setting.corpus, recipe)

    whole, part = training(), training()
    whole.run(1.0)
    for number in range(1, 4):
        part.run(number / 3)
        assert part.share == pytest.approx(number / 3, abs=0.1)
        part.save(tmp_path / "part.pt")
        part = training()
        part.restore(tmp_path / "part.pt")
    assert part.state.step == whole.state.step > 3 and part.state.bytes_read == whole.state.bytes_read
    theirs = part.model.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in whole.model.state_dict().items())


def test_no_baseline_sees_the_future(baseline: Model) -> None:
    """Changing byte t changes no earlier nats: those of the bytes before it, in the sum over the whole row.

    For tokens the positions are chosen so that no token reaches over them.
    """
    torch.manual_seed(1)
    words = b"some words, 12 of them (and more) are here. And again: some words are here, as they were; "
    rows = torch.tensor([[256, *words]])
    row_nats = _nats_by_position(baseline, rows)
    for position in (6, 12, 21, 40, 53, 70):
        changed = rows.clone()
        changed[:, position:] = torch.randint(ord("!"), ord("0"), (1, rows.shape[1] - position))
        moved = _nats_by_position(baseline, changed)
        first = _first_position_of(baseline, rows, changed, position)
        torch.testing.assert_close(moved[:first], row_nats[:first], atol=2e-4, rtol=0)
        assert not torch.allclose(moved[first], row_nats[first], atol=1e-3)


def _nats_by_position(baseline: Model, rows: Tensor) -> Tensor:
    """The single nats that a baseline adds up, in their order, caught where they are computed."""
    caught: list[Tensor] = []

    def catch(nats: Tensor) -> None:
        caught.append(nats.detach().flatten())

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        cross_entropy = torch.nn.functional.cross_entropy

        def spy(logits: Tensor, targets: Tensor, *_: Any, **__: Any) -> Tensor:
            each = cross_entropy(logits, targets, reduction="none")
            catch(each)
            return each.sum()

        if isinstance(baseline, HierarchicalAELM):
            tokens = pack_bytes(rows)
            hidden, _ = baseline.predict(tokens, baseline.compress(tokens))
            return baseline.byte_head.nll(hidden, targets_of(tokens))[1:]
        patch.setattr(torch.nn.functional, "cross_entropy", spy)
        nll_of(baseline, rows)
    return torch.cat(caught)


def _first_position_of(baseline: Model, rows: Tensor, changed: Tensor, position: int) -> int:
    """Of the predictions, the first whose target differs."""
    if not isinstance(baseline, BpeLlama):
        return position - 1
    before, after = baseline.encode(rows)[0], baseline.encode(changed)[0]
    return next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b) - 1


def test_every_baseline_generates_in_all_its_modes(baseline: Model, request: pytest.FixtureRequest) -> None:
    prompts = [b"again, and", b"Dokument 1", b"of another length"]
    for mode in modes_of(request.node.callspec.params["baseline"]):
        texts = [bytearray() for _ in prompts]
        config = GenerationConfig(mode, max_new_bytes=9, temperature=1.0, top_p=1.0, seed=0)
        for piece in require(baseline, Generates).stream(prompts, config):
            texts[piece.prompt] += piece.data
        assert 0 < sum(map(len, texts)) <= 3 * 9 and max(map(len, texts)) <= 9


def test_a_baseline_is_greedy_where_it_is_asked_to_be(baseline: Model) -> None:
    """The most probable byte after a prompt, alone and in a batch."""
    config = GenerationConfig("exact", max_new_bytes=1, temperature=0.0)

    def first(*prompts: bytes) -> dict[int, bytes]:
        return {piece.prompt: piece.data for piece in require(baseline, Generates).stream(list(prompts), config)}

    together = first(b"again, and", b"Dokument 1")
    assert together == {0: first(b"again, and")[0], 1: first(b"Dokument 1")[0]}


def test_byte_pairs_write_any_bytes_and_say_nothing_new(setting: Setting) -> None:
    model: Any = built("bpe-llama", setting)
    row = [256, *range(256), 257, 256, *"«again, and again».".encode()]
    tokens = model.encode(torch.tensor([row]))[0]
    back = [[256] if t == model.tokens else [257] if t > model.tokens else _letters(model, t) for t in tokens]
    assert [*chain(*back)] == row and len(tokens) < len(row)
    assert len(model.encode(torch.tensor([[ord(" "), ord("a"), ord("g")]]))[0]) > 1  # the first byte stays by itself


def _letters(model: Any, token: int) -> list[int]:
    return list(model.bpe.id_to_token(token).encode("latin-1"))
