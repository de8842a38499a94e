"""Corpora: what is read, how it is split, and what is said when it cannot be."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator.data import Corpus, DataConfig, DataError, local_corpus, open_corpus
from abstractinator.data.document import Document
from abstractinator.data.formats import units
from abstractinator.data.formats.units import MemoryUnit
from abstractinator.data.local_corpus import LocalCorpus

TEXTS = [f"document {i}\n".encode() * (1 + i % 5) for i in range(300)]
EVERYTHING = 10**9  # validation_bytes that hold every held-out document


def train(corpus: Corpus, epoch: int = 0, seed: int = 0) -> list[bytes]:
    return list(corpus.train_documents(epoch, seed))


def write_parquet(path: Path, texts: list, column: str = "text", **options: int) -> None:
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path, **options)


def mixed_folder(folder: Path) -> Path:
    (folder / "deep" / "er").mkdir(parents=True)
    write_parquet(folder / "a.parquet", [text.decode() for text in TEXTS[:100]], row_group_size=7)
    lines = [json.dumps({"text": text.decode()}) for text in TEXTS[100:200]]
    (folder / "deep" / "b.jsonl").write_text("\n".join(lines[:50]) + "\n\n" + "\n".join(lines[50:]))
    (folder / "deep" / "c.json").write_text(json.dumps([{"text": text.decode()} for text in TEXTS[200:250]]))
    for index, text in enumerate(TEXTS[250:]):
        (folder / "deep" / "er" / f"{index}.txt").write_bytes(text)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_bytes(b"hidden")
    return folder


def test_a_folder_of_all_kinds_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 100)  # many units from few lines
    corpus = open_corpus(DataConfig(path=str(mixed_folder(tmp_path)), validation_bytes=EVERYTHING))
    validation = corpus.validation_documents()
    assert validation and Counter(train(corpus) + validation) == Counter(TEXTS)
    assert train(corpus) != train(corpus, epoch=1) != train(corpus, epoch=1, seed=1)
    assert train(corpus) == train(corpus)


def test_small_windows_give_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mixed_folder(tmp_path)
    whole = open_corpus(DataConfig(path=str(folder), validation_bytes=EVERYTHING))
    monkeypatch.setattr(local_corpus, "WINDOW_BYTES", 300)
    windowed = open_corpus(DataConfig(path=str(folder), validation_bytes=EVERYTHING))
    assert windowed.validation_documents() == whole.validation_documents()
    documents = train(windowed, 2, 5)
    assert Counter(documents) == Counter(train(whole))
    stream = windowed.train_documents(2, 5)
    for count in range(0, len(documents), 17):
        assert list(windowed.train_documents(2, 5, stream.position())) == documents[count:]
        for _ in range(17):
            next(stream, None)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=8), min_size=2, max_size=80), st.randoms(use_true_random=False))
def test_the_split_is_disjoint_and_knows_no_order(documents: list[bytes], random: object) -> None:
    if len({text for text in documents if text}) < 2:
        return
    config = DataConfig(validation_fraction=0.1, validation_bytes=EVERYTHING)
    shuffled = documents.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = LocalCorpus("one", [MemoryUnit("a", tuple(documents))], None, config)
    other = LocalCorpus("other", [MemoryUnit(str(i), (text,)) for i, text in enumerate(shuffled)], None, config)
    held_out = one.validation_documents()
    assert held_out == other.validation_documents() and held_out
    assert train(one) and not set(train(one)) & set(held_out)
    assert Counter(train(one)) == Counter(train(other))
    assert set(train(one)) | set(held_out) == {text for text in documents if text}


def test_the_held_out_share_follows_the_fraction() -> None:
    documents = tuple(str(i).encode() for i in range(5_000))
    config = DataConfig(validation_fraction=0.1, validation_bytes=EVERYTHING)
    corpus = LocalCorpus("many", [MemoryUnit("a", documents)], None, config)
    assert 400 < len(corpus.validation_documents()) < 600


def test_validation_bytes_cut_only_the_last_document() -> None:
    documents = tuple(bytes([65 + i % 26]) * (90 + i) for i in range(60))
    config = DataConfig(validation_fraction=0.5, validation_bytes=1_000)
    validation = LocalCorpus("many", [MemoryUnit("a", documents)], None, config).validation_documents()
    assert sum(map(len, validation)) == 1_000
    assert all(text in documents for text in validation[:-1])
    assert any(text.startswith(validation[-1]) for text in documents)


def test_one_document_is_cut_at_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = b"".join(b"line %d\n" % i for i in range(1_000))
    (tmp_path / "book.txt").write_bytes(text)
    corpus = open_corpus(DataConfig(path=str(tmp_path / "book.txt")))
    (head,), (tail,) = train(corpus), corpus.validation_documents()
    assert head + tail == text and head.endswith(b"\n")
    assert "one document" in caplog.text


def test_splits_named_by_their_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, texts in {"train-00000-of-00002": TEXTS[:9], "train-00001-of-00002": TEXTS[9:20]}.items():
        write_parquet(tmp_path / f"{name}.parquet", texts)
    write_parquet(tmp_path / "validation.parquet", TEXTS[20:25])
    write_parquet(tmp_path / "test.parquet", TEXTS[25:30])
    (tmp_path / "README.md").write_text("read me")
    corpus = open_corpus(DataConfig(path=str(tmp_path)))
    assert Counter(train(corpus)) == Counter(TEXTS[:20])
    assert Counter(corpus.validation_documents()) == Counter(TEXTS[20:25])
    assert "stay unread: 1, such as README.md" in caplog.text


def test_what_is_passed_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.txt", "c.zip", "d.png"):
        (tmp_path / name).write_text(name * 9)
    open_corpus(DataConfig(path=str(tmp_path)))
    assert "passed over: 2, such as c.zip, d.png" in caplog.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}  # what is shown without being asked for


def test_source_files_are_documents_whatever_their_names(tmp_path: Path) -> None:
    for name in ("train.py", "test_it.py", "model.py", "settings.json"):
        (tmp_path / name).write_text(f"{{}} # {name}")
    corpus = open_corpus(DataConfig(path=str(tmp_path)))
    assert len(train(corpus)) + len(corpus.validation_documents()) == 4


def test_bytes_survive_as_they_are(tmp_path: Path) -> None:
    odd = [b"\x00\xff\r\n\xfe", b"\xc3\x28 not UTF-8", b"\xef\xbb\xbfmark"]
    (tmp_path / "a.txt").write_bytes(odd[0])
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "' + odd[1] + b'"}\n{"text": "\\ud800"}\n{"text": null}\n')
    write_parquet(tmp_path / "c.parquet", [odd[2], None, b""])
    corpus = open_corpus(DataConfig(path=str(tmp_path), validation_bytes=EVERYTHING))
    everything = train(corpus) + corpus.validation_documents()
    assert sorted(everything) == sorted([*odd, b"\xed\xa0\x80"])


def test_dictionary_encoded_and_large_columns_are_text(tmp_path: Path) -> None:
    plain = pa.array(["one", "two", "one"])
    for index, column in enumerate((plain.dictionary_encode(), plain.cast(pa.large_string()))):
        pq.write_table(pa.table({"text": column}), tmp_path / f"{index}.parquet")
    corpus = open_corpus(DataConfig(path=str(tmp_path)))
    assert {*train(corpus), *corpus.validation_documents()} == {b"one", b"two"}


def test_a_moved_corpus_keeps_its_fingerprint_and_a_changed_one_does_not(tmp_path: Path) -> None:
    fingerprints = []
    for folder, extra in (("here", b""), ("there", b""), ("changed", b"!")):
        (tmp_path / folder).mkdir()
        for index, text in enumerate(TEXTS[:5]):
            (tmp_path / folder / f"{index}.txt").write_bytes(text + extra)
        fingerprints.append(open_corpus(DataConfig(path=str(tmp_path / folder))).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_the_embedded_corpus() -> None:
    corpus = open_corpus(DataConfig())
    assert corpus.size_bytes is not None and 5e6 < corpus.size_bytes < 20e6
    validation = corpus.validation_documents()
    documents = train(corpus)
    assert 10_000 < sum(map(len, validation)) <= 262_144 and len(documents) > 400
    assert not {Document.of(text).hash for text in documents} & {Document.of(text).hash for text in validation}
    assert open_corpus(DataConfig()).fingerprint == corpus.fingerprint


def bad_file(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def test_each_mistake_has_its_message(tmp_path: Path) -> None:
    write_parquet(tmp_path / "words.parquet", ["a", "b"], column="words")
    write_parquet(tmp_path / "good.parquet", ["a" * 5_000, "b" * 5_000])
    write_parquet(tmp_path / "void.parquet", ["", None])
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    cut = (tmp_path / "good.parquet").read_bytes()[:-20]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    cases = {
        str(tmp_path / "nowhere"): "does not exist",
        str(tmp_path / "pictures"): "holds no text",
        str(tmp_path / "void.parquet"): "no non-empty document",
        str(tmp_path / "words.parquet"): "no column 'text'; it has id, words",
        str(tmp_path / "numbers.parquet"): "holds int64, not text",
        bad_file(tmp_path, "cut.parquet", cut): "cut.parquet: not a readable parquet file",
        bad_file(tmp_path, "none.parquet", b""): "none.parquet: not a readable parquet file",
        bad_file(tmp_path, "empty.txt", b""): "no non-empty document",
        bad_file(tmp_path, "empty.jsonl", b""): "no non-empty document",
        bad_file(tmp_path, "one.txt", b"x"): "single byte",
        bad_file(tmp_path, "a.jsonl", b'{"text": "x"}\n{"words": "x"}\n'): "line 2: no column 'text'; it has words",
        bad_file(tmp_path, "b.jsonl", b'{"text": "x"}\n\n{"text": '): "line 3: not JSON",
        bad_file(tmp_path, "c.jsonl", b"[1]\n"): "expected a record",
        bad_file(tmp_path, "d.jsonl", b'{"text": 3}\n'): "holds int, not text",
        bad_file(tmp_path, "e.json", b"nothing"): "not JSON",
        bad_file(tmp_path, "f.zip", b"PK"): "is compressed: unpack it",
    }
    for path, message in cases.items():
        with pytest.raises(DataError) as caught:
            open_corpus(DataConfig(path=path))
        assert message in str(caught.value), path


def test_damage_inside_a_parquet_file_names_it(tmp_path: Path) -> None:
    write_parquet(tmp_path / "good.parquet", [str(i) * 50 for i in range(500)])
    data = bytearray((tmp_path / "good.parquet").read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    with pytest.raises(DataError, match=r"broken\.parquet: not a readable parquet"):
        open_corpus(DataConfig(path=bad_file(tmp_path, "broken.parquet", bytes(data))))


def test_a_file_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_corpus, "WINDOW_BYTES", 1)  # a file at a time, read again for the training
    for name in ("a.txt", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name * 9}))
    corpus = open_corpus(DataConfig(path=str(tmp_path), validation_bytes=1))
    for name in ("a.txt", "b.jsonl", "c.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        for epoch in range(4):
            train(corpus, epoch)
