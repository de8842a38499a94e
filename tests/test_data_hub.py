"""Hub corpora, with local files instead of the hub."""

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abstractinator.contract.model import RowLayout
from abstractinator.data import DataConfig, DataError, PackedRows, hub_corpus, open_corpus
from abstractinator.data.document import Document

TEXTS = [f"hub document {i} " * (1 + i % 4) for i in range(120)]
LOAD = datasets.load_dataset  # as it is before a test replaces it


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(3):
        table = pa.table({"text": TEXTS[shard * 40 : shard * 40 + 40]})
        pq.write_table(table, tmp_path / f"train-{shard}.parquet", row_group_size=16)
    pq.write_table(pa.table({"text": ["held out"]}), tmp_path / "validation-0.parquet")

    def load(name: str, config: str | None, split: str, streaming: bool) -> Any:
        assert (name, config, streaming) == ("someone/texts", None, True)
        files = {split: str(tmp_path / f"{split}-*.parquet")}
        return LOAD("parquet", data_files=files, split=split, streaming=True, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)


def config(**settings: Any) -> DataConfig:
    return DataConfig(dataset_name="someone/texts", shuffle_buffer=16, **settings)


@pytest.mark.usefixtures("hub")
def test_a_stream_gives_every_document_once_and_resumes() -> None:
    corpus = open_corpus(config(validation_fraction=0.1, validation_bytes=10**9))
    documents = list(corpus.train_documents(0, 7))
    assert Counter([*documents, *corpus.validation_documents()]) == Counter(text.encode() for text in TEXTS)
    assert documents != list(corpus.train_documents(1, 7))
    stream = corpus.train_documents(0, 7)
    for count in range(0, len(documents), 13):
        assert list(corpus.train_documents(0, 7, stream.position())) == documents[count:]
        for _ in range(13):
            next(stream, None)


@pytest.mark.usefixtures("hub")
def test_rows_of_a_stream_resume() -> None:
    corpus = open_corpus(config())

    def rows() -> PackedRows:
        return PackedRows(corpus, RowLayout(32), seed=0, num_epochs=2, block_bytes=400)

    whole = [row.tolist() for row in rows()]
    for stop in (5, 40, len(whole) - 3):
        first, second = rows(), rows()
        iterator = iter(first)
        for _ in range(stop):
            next(iterator)
        second.load_state_dict(first.state_dict())
        assert [row.tolist() for row in second] == whole[stop:]


@pytest.mark.usefixtures("hub")
def test_a_validation_split_of_its_own() -> None:
    corpus = open_corpus(config(dataset_validation_split="validation"))
    assert corpus.validation_documents() == [b"held out"]
    assert len(list(corpus.train_documents(0, 0))) == len(TEXTS)


@pytest.mark.usefixtures("hub")
def test_a_missing_column_lists_those_there_are() -> None:
    with pytest.raises(DataError, match="no column 'body'; it has text"):
        open_corpus(config(text_column_name="body"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach the Hub"), r"cannot be reached.*data\.path="),
        (datasets.exceptions.DatasetNotFoundError("doesn't exist"), "has no data set 'someone/texts'"),
        (ValueError("BuilderConfig 'x' not found. Available: ['y']"), r"Available: \['y'\].*dataset_config="),
    ],
)
def test_errors_of_the_hub_say_what_to_do(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=message):
        open_corpus(config())


def test_a_stream_that_a_thread_waits_in_is_left_to_the_thread() -> None:
    inside, over = Event(), Event()

    def documents() -> Generator[Document]:
        inside.set()
        over.wait(60)
        yield Document(b"text", 0)

    waiting = documents()
    reader = Thread(target=next, args=(waiting,))
    reader.start()
    assert inside.wait(60)
    hub_corpus._close(waiting)
    over.set()
    reader.join()
    hub_corpus._close(waiting)
    assert list(waiting) == []
