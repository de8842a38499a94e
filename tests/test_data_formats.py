"""Every format is read as the documents that it holds, and each fault of a file has one line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abstractinator.data import DataConfig, DataError, local_corpus, open_corpus
from abstractinator.data.formats import text as text_format
from abstractinator.data.formats import units

TEXTS = [f"document {i}, “quoted” and\nsplit\n".encode() * (1 + i % 3) for i in range(40)]
LINES = "".join(json.dumps({"text": text.decode()}) + "\n" for text in TEXTS).encode()


def zstd(data: bytes) -> bytes:
    half = len(data) // 2  # two frames
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (data[:half], data[half:]))


def table(delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows([i, text.decode()] for i, text in enumerate(TEXTS))
    return file.getvalue().encode()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def shard() -> bytes:
    """WebDataset's: the text of a sample beside its metadata, and samples that are records."""
    members = {"picture.png": b"\x89PNG", ".hidden.txt": b"hidden"}
    for index, text in enumerate(TEXTS[:20]):
        members |= {f"a/{index}.txt": text, f"a/{index}.json": b'{"url": "x"}'}
    members |= {f"b/{i}.json": json.dumps({"text": text.decode()}).encode() for i, text in enumerate(TEXTS[20:30])}
    return tar(members | {"c.jsonl": b"".join(LINES.splitlines(keepends=True)[30:])})


FILES = {
    "a.jsonl.gz": gzip.compress(LINES[:99]) + gzip.compress(LINES[99:]),
    "a.json.bz2": bz2.compress(LINES),
    "a.ndjson.xz": lzma.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "gzip-by-content.jsonl": gzip.compress(LINES),
    "utf-16.jsonl": LINES.decode().encode("utf-16"),
    "utf-32.jsonl.gz": gzip.compress(LINES.decode().encode("utf-32")),
    "returns.jsonl": LINES.replace(b"\n", b"\r"),
    "marked.jsonl": b"\xef\xbb\xbf" + LINES,
    "a.csv": table(","),
    "semicolons.csv": table(";"),
    "a.tsv": table("\t"),
    "a.csv.gz": gzip.compress(table(",")),
    "utf-16.csv": table(",").decode().encode("utf-16"),
    "a.tar": shard(),
    "a.tar.gz": gzip.compress(shard()),
    "a.tgz": gzip.compress(shard()),
    "a.tar.zst": zstd(shard()),
}


def documents(path: Path, **settings: object) -> list[bytes]:
    corpus = open_corpus(DataConfig(path=str(path), validation_bytes=10**9, **settings))  # type: ignore[arg-type]
    return sorted([*corpus.train_documents(0, 0), *corpus.validation_documents()])


@pytest.mark.parametrize("unit_bytes", [64, 2**20])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_file_is_its_documents(
    name: str, in_folder: bool, unit_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
    (tmp_path / name).write_bytes(FILES[name])
    assert documents(tmp_path if in_folder else tmp_path / name) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt.gz", gzip.compress(b"".join(TEXTS))),
        ("a.txt.zst", zstd(b"".join(TEXTS))),
        ("a.txt", b"".join(TEXTS).decode().encode("utf-16")),
        ("a.txt", b"\xff\xfe" + b"".join(TEXTS).decode().encode("utf-16-le")),
        ("a.md", b"".join(TEXTS).decode().encode("utf-32-be").join([b"\0\0\xfe\xff", b""])),
    ],
)
def test_compressed_and_wide_text_is_read_as_utf_8(
    name: str, data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(data)
    corpus = open_corpus(DataConfig(path=str(tmp_path)))
    (head,), (tail,) = list(corpus.train_documents(0, 0)), corpus.validation_documents()
    assert head + tail == b"".join(TEXTS)
    assert caplog.text.count("UTF-16 or UTF-32 text is read as UTF-8: 1") == (
        "." + name.split(".")[-1] in (".txt", ".md")
    )


def test_bytes_that_look_like_a_mark_are_left(tmp_path: Path) -> None:
    odd = [b"\xff\xfe" + bytes([0, 0xD8]) * 3, b"\xff\xfe\xfd"]
    for index, data in enumerate(odd):
        (tmp_path / f"{index}.txt").write_bytes(data)
    assert documents(tmp_path) == sorted(odd)


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_a_large_text_is_one_document_in_parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_format, "LARGE_BYTES", 5_000)
    monkeypatch.setattr(text_format, "PART_BYTES", 1_000)
    monkeypatch.setattr(local_corpus, "WINDOW_BYTES", 2_000)
    text = b"".join(b"line %d\n" % i for i in range(3_000))
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    corpus = open_corpus(DataConfig(path=str(tmp_path)))
    (held_out,) = corpus.validation_documents()
    parts = sorted(corpus.train_documents(0, 0), key=lambda part: int(part.split()[1]))
    assert b"".join(parts) + held_out == text and all(len(part) < 1_100 for part in parts)
    assert 0.02 * len(text) <= len(held_out) < 0.03 * len(text)
    for index in range(300):  # beside others: all its parts are on one side, by the hash of the whole
        (tmp_path / f"{index}.txt").write_text(f"small {index}")
    for fraction in (0.1, 0.5, 0.9):
        corpus = open_corpus(DataConfig(path=str(tmp_path), validation_fraction=fraction, validation_bytes=10**9))
        trained = sum(len(part) for part in corpus.train_documents(0, 0) if part.startswith(b"line"))
        used = [part for part in corpus.validation_documents() if part.startswith(b"line")]
        assert (trained, len(used)) == (len(text), 0) or (trained, used) == (0, [parts[0]])


def test_text_of_extension_types_is_read(tmp_path: Path) -> None:
    values = pa.array(['{"a": 1}', None, '{"b": 2}'])
    pq.write_table(
        pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(pa.string()), values)}), tmp_path / "a.parquet"
    )
    assert documents(tmp_path / "a.parquet") == [b'{"a": 1}', b'{"b": 2}']


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_of_both_kinds(writer: object, tmp_path: Path) -> None:
    data = pa.table({"text": TEXTS, "id": list(range(40))})
    with writer(str(tmp_path / "a.arrow"), data.schema) as file:  # type: ignore[operator]
        file.write_table(data, max_chunksize=7)
    assert documents(tmp_path / "a.arrow") == sorted(TEXTS)


def test_integers_of_any_length_and_odd_suffixes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x", "n": ' + b"9" * 5_000 + b'}\n{"text": "y"}\n')
    assert documents(tmp_path / "a.jsonl") == [b"x", b"y"]
    (tmp_path / "a.jsonl").unlink()
    for name in ("a.mid", "b.MID", "c.wav"):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(DataError, match=r"holds no text.*data\.suffixes=\['\.mid'\] or data\.any_file=True"):
        documents(tmp_path)
    assert documents(tmp_path, suffixes=(".mid",)) == [b"a.mid", b"b.MID"]
    assert documents(tmp_path, any_file=True) == [b"a.mid", b"b.MID", b"c.wav"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
TWICE = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
UUIDS = pa.table({"text": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))})


def parquet(content: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text":"x","d":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1: nested too deeply"),
        ("a.json", b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        ("a.parquet", parquet(TWICE), "has 2 columns 'text'"),
        ("a.parquet", parquet(UUIDS), "holds extension<arrow.uuid>, not text"),
        ("a.parquet", POINTER, "Git-LFS pointer.*git lfs pull"),
        ("a.txt", POINTER, "Git-LFS pointer"),
        ("a.arrow", b"nothing", "not a readable arrow file"),
        ("a.csv", b"words,id\na,1\n", "no column 'text'; it has words, id"),
        ("a.csv", b'id,text\n1,"open\n', "line 2: not a row"),
        ("a.csv", b"id,text\n1,x\n2\n", "line 3: a row of 1 fields"),
        ("a.jsonl.gz", gzip.compress(LINES)[:-20], "not a readable gzip file"),
        ("a.txt.gz", b"plain", "not a readable gzip file"),
        ("a.txt.bz2", bz2.compress(LINES)[:-20], "not a readable bzip2 file"),
        ("a.txt.xz", lzma.compress(LINES)[:-20], "not a readable xz file"),
        ("a.txt.zst", zstd(LINES)[:-20], "not a readable zstd file"),
        ("a.txt", ("text" * 2_000).encode("utf-16") + b"\0", "not a readable utf-16 file"),
        ("a.tar", b"nothing", "not a readable tar file"),
        ("a.tar", shard()[:30_000], "not a readable tar file"),
        ("a.tar", tar({"a.png": b""}), "holds no text"),
        ("a.tar", tar({"b.json": b"{"}), r"a\.tar, b\.json: not JSON"),
        ("a.parquet.gz", b"", "unpack it"),
    ],
)
def test_each_fault_has_its_message(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        documents(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("a.arrow", "pyarrow"), ("a.txt.zst", "pyarrow")]
)
def test_a_missing_package_is_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs the package {package}: pip install 'abstractinator\[data\]'"):
        documents(tmp_path / name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package datasets"):
        open_corpus(DataConfig(dataset_name="someone/texts"))


def test_text_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("a.jsonl.gz", "a.csv", "a.tar"):
        (tmp_path / name).write_bytes(FILES[name])
        assert documents(tmp_path / name) == sorted(TEXTS)
