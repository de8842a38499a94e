"""A tokenizer of a file: any bytes survive, rows consist of its tokens, and a checkpoint holds it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_kind import SilentConfig
from tiny_runs import assert_same_weights, losses_of, recorded_steps, stop_after, tiny_experiment, weights_of
from tiny_tokenizer import WORDS, tokenizer_source, write_tokenizer

from abstractinator import registry
from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.models import load_model
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.contract import file_tokenizer
from abstractinator.contract.file_tokenizer import FileTokenizer
from abstractinator.contract.model import RowLayout
from abstractinator.data import DataError, count_rows, open_corpus, rows_of, train_loader
from abstractinator.data.tokenizers import open_tokenizer
from abstractinator.training.loop import Interrupted, train

TOKENIZER = FileTokenizer(tokenizer_source())


@given(st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(WORDS)).map("".join).map(str.encode))
def test_any_bytes_round_trip(data: bytes) -> None:
    ids = TOKENIZER.encode(data, bos=True, eos=True)
    assert ids[0] == TOKENIZER.BOS and ids[-1] == TOKENIZER.EOS and (ids[1:-1] < TOKENIZER.text_size).all()
    assert TOKENIZER.decode(ids) == data
    assert TOKENIZER.count_bytes(torch.from_numpy(ids)) == len(data)


def test_ids_are_those_of_the_library() -> None:
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(TOKENIZER.source or "")
    for words in WORDS:
        assert TOKENIZER.encode(f" {words}").tolist() == library.encode(f" {words}").ids
        assert len(TOKENIZER.encode(words)) < len(words.encode())
    assert TOKENIZER.encode("<|end|>").tolist() != [library.token_to_id("<|end|>")]  # text, and no special token


def test_a_long_text_is_tokenized_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(WORDS) * 9
    whole = TOKENIZER.encode(text)
    monkeypatch.setattr(file_tokenizer, "_PIECE", 50)
    assert len(file_tokenizer._pieces(text)) > 9
    assert np.array_equal(TOKENIZER.encode(text), whole)


def _without(source: str, *tokens: str) -> str:
    content = json.loads(source)
    for token in tokens:
        del content["model"]["vocab"][token]
    content["model"]["merges"] = []
    return json.dumps(content)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{", "not JSON"),
        ("[]", "library `tokenizers`"),
        (tokenizer_source(pre_tokenizer={"type": "Whitespace"}), "byte-level"),
        (tokenizer_source(model={"type": "WordPiece", "vocab": {"a": 0}}), "byte-level"),
        (tokenizer_source(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}), "2\\*\\*24"),
        (tokenizer_source(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}), "cannot|lacks"),
        (_without(tokenizer_source(), "Ā", "Ċ"), "lacks the token of byte 0 and 1 other"),
    ],
)
def test_a_file_that_does_not_keep_every_byte_is_refused(source: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(source, encoding="utf-8")
    with pytest.raises(DataError, match=match) as error:
        open_tokenizer(tmp_path / "t.json")
    assert "t.json" in str(error.value) and "GPT-2" in str(error.value)


def test_a_pre_tokenizer_that_drops_bytes_is_found() -> None:
    removes = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    byte_level = json.loads(tokenizer_source())["pre_tokenizer"]
    both = {"type": "Sequence", "pretokenizers": [removes, byte_level]}
    with pytest.raises(ValueError, match="keep all bytes"):
        FileTokenizer(tokenizer_source(pre_tokenizer=both)).encode("a b")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json"):
        open_tokenizer(tmp_path / "gone.json")


# ---- in a training ----


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    registry.register("bigram", "tiny_kind:Bigram")
    registry.register("silent", "tiny_kind:Silent")


def experiment(folder: Path, tokenizer: str | None, **changes: Any) -> ExperimentConfig:
    config = tiny_experiment(folder, model=SilentConfig(), **changes)
    return replace(config, data=replace(config.data, tokenizer=tokenizer))


def test_rows_and_bytes_are_counted_in_the_tokens_of_the_file(tmp_path: Path) -> None:
    corpus = open_corpus(experiment(tmp_path, None).data)
    layout = RowLayout(16)
    batches = list(train_loader(corpus, layout, 4, 0, num_epochs=1, tokenizer=TOKENIZER))
    assert sum(len(batch.ids) for batch in batches) == count_rows(corpus, layout, 1, 0, TOKENIZER)
    assert sum(batch.bytes for batch in batches) == sum(map(len, corpus.train_documents(0, 0)))
    rows = rows_of([b"the cat", "猫".encode()], layout, TOKENIZER)
    assert TOKENIZER.decode(rows.flatten().numpy()) == "the cat猫".encode()


def test_a_checkpoint_holds_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    steps = recorded_steps(monkeypatch)
    train(experiment(tmp_path, path))
    expected = losses_of(steps)
    weights = weights_of(tmp_path, 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(experiment(tmp_path, path))
    losses_of(steps)
    train(experiment(tmp_path, path, resume_from_checkpoint="latest"))
    assert losses_of(steps) == expected[3:]
    assert_same_weights(weights, weights_of(tmp_path, 8))

    Path(path).unlink()
    checkpoint = tmp_path / "checkpoints" / "checkpoint_step8.pt"
    model, payload = load_model(checkpoint, torch.device("cpu"))
    assert model.tokenizer.source == payload["tokenizer"] and model.tokenizer.encode("the cat").tolist() == [
        *FileTokenizer(payload["tokenizer"]).encode("the cat")
    ]
    assert payload["bytes_read"] > payload["step"] * 2 * 64  # more bytes than tokens


@pytest.mark.parametrize(("before", "after"), [(300, None), (None, 300), (300, 280)])
def test_a_tokenizer_that_does_not_fit_the_checkpoint_is_refused(
    tmp_path: Path, before: int | None, after: int | None
) -> None:
    def file(size: int | None) -> str | None:
        return None if size is None else write_tokenizer(tmp_path / f"{size}.json", size)

    train(experiment(tmp_path, file(before)))
    with pytest.raises(CheckpointError, match=r"does not fit the tokenizer.*resume with"):
        train(experiment(tmp_path, file(after), resume_from_checkpoint="latest", max_steps=9))


def test_a_damaged_tokenizer_in_a_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    train(experiment(tmp_path, write_tokenizer(tmp_path / "tokenizer.json")))
    path = tmp_path / "checkpoints" / "checkpoint_step8.pt"
    payload = load_checkpoint(path)
    torch.save(payload | {"tokenizer": "{}"}, path)
    with pytest.raises(CheckpointError, match="tokenizer file"):
        load_model(path, torch.device("cpu"))


def test_a_kind_of_bytes_alone_says_so(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    config = experiment(tmp_path, path)
    with pytest.raises(ValueError, match=r"hier_ae reads bytes.*data\.tokenizer"):
        train(replace(tiny_experiment(tmp_path), data=config.data))
