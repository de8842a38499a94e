"""Positions that are resumed with other batches, epochs and processes, more than once: what was not trained follows."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator.contract.model import RowLayout
from abstractinator.data import Corpus, DataConfig, PackedRows, ReadAhead, count_rows, open_corpus, train_loader
from abstractinator.data.formats.units import MemoryUnit
from abstractinator.data.local_corpus import LocalCorpus

LOAD = datasets.load_dataset  # as it is before a test replaces it
TEXTS = [f"document {i} ".encode() * (1 + i % 4) for i in range(60)]


def local(texts: list[bytes]) -> LocalCorpus:
    units = [MemoryUnit("a", tuple(texts[::2])), MemoryUnit("b", tuple(texts[1::2]))]
    return LocalCorpus("test", units, [MemoryUnit("held out", (b"held out",))], DataConfig())


@pytest.fixture(params=["local", "hub"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    if request.param == "local":
        return local(TEXTS)
    for shard in range(3):
        texts = [text.decode() for text in TEXTS[shard * 20 : shard * 20 + 20]]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"train-{shard}.parquet", row_group_size=8)
    pq.write_table(pa.table({"text": ["held out"]}), tmp_path / "validation-0.parquet")

    def load(name: str, config: str | None, split: str, streaming: bool) -> Any:
        files = {split: str(tmp_path / f"{split}-*.parquet")}
        return LOAD("parquet", data_files=files, split=split, streaming=True, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    settings = {"dataset_validation_split": "validation", "shuffle_buffer": 16}
    return open_corpus(DataConfig(dataset_name="someone/texts", **settings))


def ids_of(batches: Any) -> list[list[int]]:
    return [row for batch in batches for row in batch.ids.tolist()]


def test_any_number_of_resumes_gives_the_same_batches(corpus: Corpus) -> None:
    def loader() -> ReadAhead:
        return ReadAhead(train_loader(corpus, RowLayout(32), 3, seed=1, num_epochs=3))

    whole = ids_of(loader())
    found: list[list[int]] = []
    state = None
    for taken in (4, 1, 0, 7, 12, 30, 1, 1, 999):  # over the ends of two epochs
        resumed = loader()
        if state is not None:
            resumed.load_state_dict(state)
        batches = iter(resumed)
        found += ids_of(islice(batches, taken))
        state = resumed.state_dict()
        resumed.close()
    assert found == whole
    last = loader()
    last.load_state_dict(state)
    assert list(last) == []  # a run that is over is over


def test_an_epoch_that_is_over_is_extended(corpus: Corpus) -> None:
    first = train_loader(corpus, RowLayout(32), 8, seed=1, num_epochs=1)
    one = ids_of(first)
    assert len(one) == count_rows(corpus, RowLayout(32), 1, 1) and len(one) % 8
    longer = train_loader(corpus, RowLayout(32), 8, seed=1, num_epochs=3)
    longer.load_state_dict(first.state_dict())
    rest = ids_of(longer)
    tokens = Counter(token for row in rest for token in row if token < 256)
    assert tokens == Counter({byte: 2 * count for byte, count in Counter(b"".join(TEXTS)).items()})
    assert len(rest) == count_rows(corpus, RowLayout(32), 2, 1)


def test_batches_of_another_size_take_the_rest(corpus: Corpus) -> None:
    small = train_loader(corpus, RowLayout(32), 2, seed=1, num_epochs=1)
    whole = ids_of(train_loader(corpus, RowLayout(32), 2, seed=1, num_epochs=1))
    batches = iter(small)
    before = ids_of(islice(batches, 5))
    large = train_loader(corpus, RowLayout(32), 8, seed=1, num_epochs=1)
    large.load_state_dict(small.state_dict())
    assert before + ids_of(large) == whole


sizes = st.integers(1, 3)


@settings(max_examples=60)
@given(
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=10),
    st.integers(2, 20),
    sizes,
    st.none() | st.integers(1, 4),
    sizes,
    sizes,
    st.sampled_from([1, 40, 10**6]),
    st.data(),
)
def test_each_epoch_is_trained_once_whatever_their_number_was(
    texts: list[bytes],
    length: int,
    before: int,
    after: int | None,
    world: int,
    later_world: int,
    block: int,
    data: st.DataObject,
) -> None:
    corpus = local(texts)
    ranks = [PackedRows(corpus, RowLayout(length), 1, before, rank, world, block) for rank in range(world)]
    rounds = data.draw(st.integers(0, len(list(ranks[0]))))
    iterators = [iter(rank) for rank in ranks]
    yielded = [next(rows).tolist() for _ in range(rounds) for rows in iterators]
    if after is not None and after < before:
        return  # fewer epochs: only the open block is completed
    later = [PackedRows(corpus, RowLayout(length), 1, after, rank, later_world, block) for rank in range(later_world)]
    for rank in later:
        rank.load_state_dict(ranks[0].state_dict())
    epochs = before if after is None else max(before, after)
    rest = [
        row
        for round_ in zip(
            *(islice(rank, 8 + 4 * sum(len(text) + 2 for text in texts) // length) for rank in later), strict=True
        )
        for row in round_
    ]
    found = Counter(token for row in [*yielded, *(row.tolist() for row in rest)] for token in row if token < 256)
    wanted = Counter(b"".join(texts))
    if after is None:
        assert all(found[byte] >= epochs * count for byte, count in wanted.items())
    else:
        assert found == Counter({byte: epochs * count for byte, count in wanted.items()})


def test_fewer_epochs_end_after_the_open_block() -> None:
    rows = PackedRows(local(TEXTS), RowLayout(16), 0, None, block_bytes=200)
    iterator = iter(rows)
    epoch = len(list(PackedRows(local(TEXTS), RowLayout(16), 0, 1)))
    for _ in range(epoch + 40):
        next(iterator)
    one = PackedRows(local(TEXTS), RowLayout(16), 0, 1, block_bytes=200)
    one.load_state_dict(rows.state_dict())
    assert list(one) == []
    early = PackedRows(local(TEXTS), RowLayout(16), 0, None, block_bytes=200)
    next(iter(early))
    one.load_state_dict(early.state_dict())
    assert len(list(one)) in (epoch - 1, epoch)


def test_a_setting_that_differs_is_named(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text(f"document {number}")
    states = [
        train_loader(open_corpus(DataConfig(path=str(tmp_path), **setting)), RowLayout(8), 2, 0)
        for setting in ({}, {"validation_bytes": 9})
    ]
    states[1].load_state_dict(states[0].state_dict())
    with pytest.raises(ValueError, match=r"data\.validation_bytes=262144, here it is 9"):
        iter(states[1])


def test_ids_are_wide_and_batches_count_bytes() -> None:
    batch = next(iter(train_loader(local(TEXTS), RowLayout(32), 4, 0)))
    assert batch.ids.dtype == torch.int64
    assert batch.bytes == int((batch.ids < 256).sum())


def test_rows_of_pad_are_not_taken_for_rows_of_the_next_epoch() -> None:
    texts = [b"a", b"b"]  # a row of three tokens each: the round of three ranks ends with a row of PAD
    ranks = [PackedRows(local(texts), RowLayout(3), 1, 1, rank, 3) for rank in range(3)]
    rows = [row.tolist() for rank in ranks for row in rank]
    assert rows[2] == [258] * 3
    longer = PackedRows(local(texts), RowLayout(3), 1, 2)
    longer.load_state_dict(ranks[0].state_dict())
    assert sorted(row.tolist() for row in longer) == sorted(rows[:2])
