"""Test sets of reconstruction, and how exactly a model reconstructs them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import tiny_experiment
from tiny_tokenizer import tokenizer_source

from abstractinator.cli.main import main
from abstractinator.components.cta.config import CTAConfig
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Latents
from abstractinator.contract.file_tokenizer import FileTokenizer
from abstractinator.contract.model import Model
from abstractinator.evaluation.accuracy import differences, measure_accuracy
from abstractinator.evaluation.sequences import (
    TestSetConfig,
    common_tokens,
    random_sequences,
    read_sequences,
    real_sequences,
    token_counts,
    write_sequences,
)
from abstractinator.training.loop import train

Output = pytest.CaptureFixture[str]
BYTES = ByteTokenizer()


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_differences_are_where_the_bytes_differ(text: bytes, restored: bytes) -> None:
    found = differences(text, restored)
    marked = {at for start, end in found for at in range(start, end)}
    size = max(len(text), len(restored))
    assert marked == {at for at in range(size) if text[at : at + 1] != restored[at : at + 1]}
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


class Restorer(Model):
    """Restores texts as a table says."""

    kind, Config, headline = "restorer", dict, "none"

    def __init__(self, table: dict[bytes, bytes]) -> None:
        super().__init__({})
        self.table = table

    def encode(self, texts: Any) -> Latents:
        return Latents(2 * len(texts), 48 * len(texts), list(texts))

    def decode(self, latents: Latents) -> list[bytes]:
        return [self.table.get(text, text) for text in latents.values]

    def forward(self, *_: Any) -> Any: ...

    measure = metrics = forward


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_accuracy_counts_from_the_beginning(batch_size: int) -> None:
    texts = [b"abcd", b"abcd", b"xyz", b"longer text", b""]
    model = Restorer({b"xyz": b"xy", b"longer text": b"longer texts"})
    found, cases = measure_accuracy(model, texts, batch_size=batch_size)
    assert (found.tokens, found.right_tokens) == (22, 21)
    assert (found.sequences, found.right_sequences) == (5, 3)
    assert (found.positions, found.stored_bits, found.bytes) == (10, 240, 22)
    assert [(case.index, case.reconstruction) for case in cases] == [(2, b"xy"), (3, b"longer texts")]
    assert cases[0].plain("s") == {
        "set": "s",
        "index": 2,
        "text": "xyz",
        "reconstruction": "xy",
        "differences": [(2, 3)],
    }


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    texts = [b"plain", b"\xff\x00\n", "猫\u2028".encode(), b'{"a": "\\"}']
    write_sequences(tmp_path / "set.jsonl", texts)
    assert read_sequences(tmp_path / "set.jsonl") == texts


def test_sequences_with_rare_tokens_are_left_out() -> None:
    counts = token_counts([b"a" * 90 + b"b" * 9 + b"z"], BYTES)
    common = common_tokens(counts, 10.0)
    assert np.flatnonzero(common).tolist() == [ord("a"), ord("b")]  # z is below the percentile, others never occur
    documents = [b"abababab", b"aaaz", b"abc", b"bbbb", b"ab"]
    rows = real_sequences(documents, BYTES, TestSetConfig(3, 4), common)
    assert sorted(bytes(row) for row in rows.astype(np.uint8)) == [b"abab", b"abab", b"bbbb"]
    with pytest.raises(ValueError, match="4 sequences of 4 tokens, of which 3 have no rare token; 4 are wanted"):
        real_sequences(documents, BYTES, TestSetConfig(4, 4), common)


@given(st.lists(st.binary(max_size=60), max_size=6), st.integers(2, 9), st.integers(0, 5))
def test_sequences_stand_in_their_documents_and_do_not_overlap(texts: list[bytes], length: int, seed: int) -> None:
    most = sum(len(text) // length for text in texts)
    if not most:
        return
    rows = real_sequences(texts, BYTES, TestSetConfig(most, length, seed=seed))
    assert rows.shape == (most, length)
    again = real_sequences(texts, BYTES, TestSetConfig(most, length, seed=seed))
    assert np.array_equal(rows, again)
    assert all(any(bytes(row.astype(np.uint8)) in text for text in texts) for row in rows)


def test_random_tokens_are_of_the_whole_vocabulary() -> None:
    tokenizer = FileTokenizer(tokenizer_source())
    rows = random_sequences(TestSetConfig(50, 512), tokenizer)
    assert rows.shape == (50, 512) and len(np.unique(rows)) == tokenizer.text_size


def run(capsys: Output, *arguments: object) -> tuple[int, str, str]:
    status = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_from_text_to_error_cases(tmp_path: Path, text: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = ("testset", text, "--train", text, "--sequences", 20, "--length", 32, "--percentile", 0)
    status, out, err = run(capsys, *made)
    assert status == 0 and "20 sequences of 32 tokens" in out
    assert "80 of 80 documents are in the training text, too" in err
    assert sorted(path.name for path in Path("testset").iterdir()) == ["random.jsonl", "real.jsonl", "statistics.json"]
    statistics = json.loads(Path("testset/statistics.json").read_text())
    assert statistics["tokens"] == sum(len(path.read_bytes()) for path in text.iterdir()) == sum(statistics["counts"])
    assert {len(each) for each in read_sequences(Path("testset/random.jsonl"))} == {32}
    status, _, err = run(capsys, *made)
    assert status == 2 and "exists" in err and "--output" in err

    train(tiny_experiment(tmp_path, model=CTAConfig(width=8)))
    sets = ("testset/real.jsonl", "testset/random.jsonl")
    status, out, _ = run(capsys, "accuracy", "checkpoints", *sets)
    assert status == 0 and "reports/error_cases.jsonl" in out
    cases = [json.loads(line) for line in Path("reports/error_cases.jsonl").read_text().splitlines()]
    assert {case["set"] for case in cases} == set(sets)
    assert all(case["differences"] for case in cases)
    status, out, _ = run(capsys, "accuracy", "checkpoints", *sets, "--json")
    found = json.loads(out)
    assert found[sets[0]]["sequences"] == 20 and 0 <= found[sets[0]]["token_accuracy"] < 1
    status, _, err = run(capsys, "accuracy", "checkpoints", *sets, "--data", text)
    assert status == 2 and "--data" in err
    status, _, err = run(capsys, "accuracy", "checkpoints", *sets, "--errors", "testset/real.jsonl/errors.jsonl")
    assert status == 2 and err.count("\n") == 1
    status, out, _ = run(capsys, "accuracy", "checkpoints", "--length", 16)
    assert status == 0 and "held-out text" in out


def test_every_kind_that_reconstructs_is_measured(tmp_path: Path, capsys: Output, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_experiment(tmp_path))
    capsys.readouterr()
    write_sequences(tmp_path / "set.jsonl", [b"the cat", b"\xff\xfe"])
    status, out, _ = run(capsys, "accuracy", "checkpoints", "set.jsonl", "--json")
    assert status == 0 and json.loads(out)["set.jsonl"]["stored_bits_per_byte"] > 0


@pytest.mark.parametrize(
    ("content", "match"),
    [("", "no sequences"), ("[1]\n", "line 1"), ('{"text": 1}\n', "line 1"), ('{"base64": "?"}\n', "line 1")],
)
def test_a_file_that_is_no_test_set_is_refused(content: str, match: str, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "set.jsonl").write_text(content)
    status, _, err = run(capsys, "accuracy", "nowhere", tmp_path / "set.jsonl")
    assert status == 2 and match in err and "abstractinator testset" in err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--length", 1), "--length"),
        (("--sequences", 0), "--sequences"),
        (("--percentile", 100), "--percentile"),
        (("--sequences", 10**6), "are wanted"),
        (("--tokenizer", "gone.json"), "gone.json"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[Any, ...], match: str, tmp_path: Path, text: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "testset", text, "--train", text, *options)
    assert status == 2 and match in err and not Path("testset").exists()
