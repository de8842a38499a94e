"""PackedRows: nothing lost, nothing doubled, no false boundary, exactly resumable."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import RowLayout
from abstractinator.data import DataConfig, PackedRows, TrainLoader, train_loader
from abstractinator.data.formats.units import MemoryUnit
from abstractinator.data.local_corpus import LocalCorpus

BOS, EOS, PAD = ByteTokenizer.BOS, ByteTokenizer.EOS, ByteTokenizer.PAD
HELD_OUT = [MemoryUnit("held out", (b"held out",))]


def corpus_of(documents: list[bytes]) -> LocalCorpus:
    """Every one of the documents is for training."""
    half = len(documents) // 2
    units = [MemoryUnit("a", tuple(documents[:half])), MemoryUnit("b", tuple(documents[half:]))]
    return LocalCorpus("test", units, HELD_OUT, DataConfig())


def rows_of(rows: PackedRows) -> list[list[int]]:
    return [row.tolist() for row in rows]


def documents_in(rows: list[list[int]]) -> list[bytes]:
    """The documents of unshuffled rows, each checked to stand between BOS and EOS."""
    tokens = [token for row in rows for token in row]
    while tokens and tokens[-1] == PAD:
        tokens.pop()
    documents = []
    while tokens:
        end = tokens.index(EOS)
        assert tokens[0] == BOS
        documents.append(bytes(tokens[1:end]))  # a ValueError here is a special token inside a document
        tokens = tokens[end + 1 :]
    return documents


texts = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12)


@st.composite
def layouts(draw: st.DrawFn) -> RowLayout:
    """Rows of every layout, 2 to 30 ids long."""
    if draw(st.booleans()):
        return RowLayout(draw(st.integers(3, 30)), "separate")
    multiple = draw(st.integers(1, 6))
    return RowLayout(multiple * draw(st.integers(2 if multiple == 1 else 1, 30 // multiple)), multiple_of=multiple)


packed = st.integers(2, 30).map(RowLayout)


@settings(max_examples=60)
@given(texts, packed, st.integers(1, 3), st.integers(0, 9))
def test_every_document_once_an_epoch(documents: list[bytes], layout: RowLayout, epochs: int, seed: int) -> None:
    # Blocks of one row are yielded in the order in which they are cut: the string of tokens itself.
    rows = rows_of(PackedRows(corpus_of(documents), layout, seed, epochs, block_bytes=1))
    found = documents_in(rows)
    for epoch in range(epochs):
        part = found[epoch * len(documents) : (epoch + 1) * len(documents)]
        assert Counter(part) == Counter(documents)
    assert len(found) == epochs * len(documents)
    assert all(PAD not in row for row in rows[:-1])


@settings(max_examples=60)
@given(texts, st.integers(1, 6), st.integers(2, 5))
def test_a_document_ends_where_a_chunk_ends(documents: list[bytes], multiple: int, chunks: int) -> None:
    layout = RowLayout(multiple * chunks, multiple_of=multiple)
    rows = rows_of(PackedRows(corpus_of(documents), layout, 0, 1, block_bytes=1))
    tokens = [token for row in rows for token in row]
    ends = [at for at, token in enumerate(tokens) if token == EOS]
    assert all((end + 1) % multiple == 0 for end in ends)
    begins = [0, *(end + 1 for end in ends)]
    found = [tokens[a:b] for a, b in itertools.pairwise(begins)]
    assert all(tokens[begins[-1] :][i] == PAD for i in range(len(tokens) - begins[-1]))
    for text in found:
        front = text.index(BOS)
        assert text[:front] == [PAD] * front and front < multiple
    assert Counter(bytes(text[text.index(BOS) + 1 : -1]) for text in found) == Counter(documents)


@settings(max_examples=60)
@given(texts, st.integers(3, 20))
def test_separate_documents_begin_a_row_each(documents: list[bytes], length: int) -> None:
    rows = rows_of(PackedRows(corpus_of(documents), RowLayout(length, "separate"), 0, 1, block_bytes=1))
    parts = []
    for row in rows:
        end = row.index(EOS)
        assert row[0] == BOS and row[end + 1 :] == [PAD] * (length - end - 1)
        parts.append(bytes(row[1:end]))
    room = length - 2
    assert Counter(parts) == Counter(text[i : i + room] for text in documents for i in range(0, len(text), room))


@pytest.mark.parametrize(
    "layout", [{"length": 1}, {"length": 2, "documents": "separate"}, {"length": 9, "multiple_of": 4}]
)
def test_a_layout_that_cannot_be_is_refused(layout: dict) -> None:
    with pytest.raises(ValueError, match=r"row of|a row has"):
        RowLayout(**layout)


@settings(max_examples=40)
@given(texts, layouts(), st.integers(1, 3), st.integers(1, 200))
def test_blocks_only_reorder(documents: list[bytes], layout: RowLayout, epochs: int, block: int) -> None:
    corpus = corpus_of(documents)
    cut = rows_of(PackedRows(corpus, layout, 0, epochs, block_bytes=1))
    yielded = rows_of(PackedRows(corpus, layout, 0, epochs, block_bytes=block))
    assert sorted(yielded) == sorted(cut)
    assert yielded[-1] == cut[-1] or cut[-1][-1] != PAD


@settings(max_examples=60)
@given(texts, layouts(), st.integers(1, 3), st.integers(1, 200), st.data())
def test_resumed_rows_equal_uninterrupted(
    documents: list[bytes], layout: RowLayout, epochs: int, block: int, data: st.DataObject
) -> None:
    corpus = corpus_of(documents)
    whole = rows_of(PackedRows(corpus, layout, 3, epochs, block_bytes=block))
    stop = data.draw(st.integers(0, len(whole)))
    rows = PackedRows(corpus, layout, 3, epochs, block_bytes=block)
    iterator = iter(rows)
    before = [next(iterator).tolist() for _ in range(stop)]
    state = rows.state_dict()
    resumed = PackedRows(corpus, layout, 3, epochs, block_bytes=block)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert before + rows_of(resumed) == whole
    assert rows_of(resumed) == whole  # the loaded position served once


@settings(max_examples=40)
@given(texts, layouts(), st.integers(1, 4), st.integers(1, 4), st.data())
def test_ranks_share_the_rows(
    documents: list[bytes], layout: RowLayout, world: int, later_world: int, data: st.DataObject
) -> None:
    corpus = corpus_of(documents)
    whole = rows_of(PackedRows(corpus, layout, 1, 2, block_bytes=50))

    def ranks(size: int) -> list[PackedRows]:
        return [PackedRows(corpus, layout, 1, 2, rank, size, block_bytes=50) for rank in range(size)]

    parts = [rows_of(rank) for rank in ranks(world)]
    assert len({len(part) for part in parts}) == 1
    together = [row for round_ in zip(*parts, strict=True) for row in round_]
    assert together[: len(whole)] == whole
    assert all(row == [PAD] * layout.length for row in together[len(whole) :])

    rounds = data.draw(st.integers(0, len(whole) // world))
    states = []
    for rank in ranks(world):
        iterator = iter(rank)
        for _ in range(rounds):
            next(iterator)
        states.append(rank.state_dict())
    assert all(state["next_row"] == rounds * world for state in states)
    later = ranks(later_world)
    for rank in later:
        rank.load_state_dict(states[0])
    rest = [row for round_ in zip(*map(rows_of, later), strict=True) for row in round_]
    assert rest[: len(whole) - rounds * world] == whole[rounds * world :]


def test_epochs_follow_without_end_and_differ() -> None:
    documents = [bytes([65 + i]) * 6 for i in range(12)]  # 8 tokens each: a row is a document
    rows = iter(PackedRows(corpus_of(documents), RowLayout(8), 0))
    epochs = [[next(rows).tolist() for _ in documents] for _ in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_neighbouring_rows_of_a_long_document_are_apart() -> None:
    documents = [bytes([65 + i]) * 5_000 for i in range(8)]
    batch = [next(rows) for rows in [iter(PackedRows(corpus_of(documents), RowLayout(50), 0))] for _ in range(16)]
    assert len({int(row[25]) for row in batch}) > 4


def test_a_state_that_does_not_fit_is_refused() -> None:
    rows = PackedRows(corpus_of([b"first", b"second"]), RowLayout(8), seed=0)
    state = rows.state_dict()
    assert "second" not in str(state)
    for other, match in [
        (PackedRows(corpus_of([b"first", b"third"]), RowLayout(8), seed=0), "corpus_fingerprint"),
        (PackedRows(corpus_of([b"first", b"second"]), RowLayout(9), seed=0), "row_length"),
        (PackedRows(corpus_of([b"first", b"second"]), RowLayout(8), seed=1), "seed"),
    ]:
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="not a position"):
        rows.load_state_dict({"row": 1})


@pytest.mark.parametrize("sizes", [{"block_bytes": 0}, {"seed": -1}, {"num_epochs": 0}, {"rank": 2, "world_size": 2}])
def test_bad_sizes_are_refused(sizes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        PackedRows(**{"corpus": corpus_of([b"a", b"b"]), "layout": RowLayout(4), "seed": 0} | sizes)


@pytest.mark.filterwarnings("error")
def test_the_loader_resumes_and_leaves_the_random_state_alone(tmp_path: object) -> None:
    corpus = corpus_of([bytes([65 + i]) * 30 for i in range(20)])

    def loader() -> TrainLoader:
        return train_loader(corpus, RowLayout(16), batch_size=3, seed=5, num_epochs=2)

    random_state = torch.get_rng_state()
    whole = list(loader())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert whole[0].ids.shape == (3, 16) and whole[0].ids.dtype == torch.int64
    assert sum(batch.bytes for batch in whole) == 2 * 20 * 30
    for stop in (1, 7, len(whole) - 1):
        first = loader()
        iterator = iter(first)
        for _ in range(stop):
            next(iterator)
        torch.save(first.state_dict(), f"{tmp_path}/state.pt")
        second = loader()
        second.load_state_dict(torch.load(f"{tmp_path}/state.pt", weights_only=True))
        rest = list(second)
        assert len(rest) == len(whole) - stop
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(rest, whole[stop:], strict=True))
