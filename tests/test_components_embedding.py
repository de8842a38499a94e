from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator.components.bottlenecks.residual_vq import ResidualVQ, ResidualVQConfig
from abstractinator.components.hierarchical.level_memory import Memory
from abstractinator.components.incremental.folded import FoldedEmbedding
from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer
from abstractinator.components.packing import Packing
from abstractinator.components.token_embedding import TokenEmbedding
from abstractinator.components.token_hash import ngram_hashes, token_hash
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary, pack_bytes
from abstractinator.components.transformer import SlidingWindowTransformer, TransformerConfig

CODES = Vocabulary(16, 3)
vocabularies = pytest.mark.parametrize(("vocabulary", "vector_width"), [(BYTES, 0), (CODES, 4)], ids=["bytes", "codes"])
row_lengths = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


def embedding_of(
    vocabulary: Vocabulary, vector_width: int, sizes: tuple[int, ...] = (1, 2, 4), match_sizes: tuple[int, ...] = ()
) -> TokenEmbedding:
    torch.manual_seed(0)
    return TokenEmbedding(vocabulary, 8, sizes, 997, 4, vector_width, match_sizes, match_window=5)


def tokens_of(lengths: list[int], vocabulary: Vocabulary, vector_width: int) -> Tokens:
    torch.manual_seed(sum(lengths))
    packing = Packing.from_lengths(torch.tensor(lengths))
    ids = torch.randint(vocabulary.size, (packing.total, vocabulary.slots))
    ids = torch.where(ids[:, :1] < vocabulary.codebook_size, ids % vocabulary.codebook_size, ids[:, :1])
    return Tokens(ids, packing, vocabulary, torch.randn(packing.total, vector_width) if vector_width else None)


def bytes_of(*rows: bytes) -> Tokens:
    packing = Packing.from_lengths(torch.tensor([len(row) for row in rows]))
    return Tokens(torch.tensor(list(b"".join(rows)))[:, None], packing, BYTES)


@vocabularies
@settings(max_examples=25)
@given(lengths=row_lengths)
def test_steps_equal_forward(vocabulary: Vocabulary, vector_width: int, lengths: list[int]) -> None:
    embedding = embedding_of(vocabulary, vector_width, match_sizes=(1, 3))
    tokens = tokens_of(lengths, vocabulary, vector_width)
    quantizer = None
    if tokens.vectors is not None:  # behind codes; special ones have none
        config = ResidualVQConfig("residual_vq", vocabulary.slots, vocabulary.codebook_size)
        quantizer = ResidualVQ(config, vector_width)
        vectors = quantizer.decode(tokens.ids.clamp(max=vocabulary.codebook_size - 1))
        tokens = replace(tokens, vectors=vectors.masked_fill(tokens.special[:, None], 0.0))
    expected = embedding(tokens)
    no_layers = SlidingWindowTransformer(TransformerConfig(width=2, layers=0, heads=1))
    transformer, folded = IncrementalTransformer(no_layers, len(lengths), 3), FoldedEmbedding(embedding, quantizer)
    memory = Memory(folded, transformer, embedding.reach, embedding.reach + 3, torch.zeros(len(lengths), 1, 1), 3)
    while (rows := (memory.counts < torch.tensor(lengths)).nonzero()[:, 0]).numel():
        count = min(3, int((torch.tensor(lengths) - memory.counts)[rows].min()))
        at = tokens.packing.offsets[rows][:, None] + memory.counts[rows][:, None] + torch.arange(count)
        torch.testing.assert_close(folded(memory.append(memory.new_entries(rows, count), tokens.ids[at])), expected[at])
        memory.counts[rows] += count


@vocabularies
@settings(max_examples=25)
@given(lengths=row_lengths)
def test_a_row_is_embedded_as_if_alone(vocabulary: Vocabulary, vector_width: int, lengths: list[int]) -> None:
    embedding = embedding_of(vocabulary, vector_width, match_sizes=(1, 3))
    tokens = tokens_of(lengths, vocabulary, vector_width)
    together = embedding(tokens)
    for b, n in enumerate(lengths):
        mine = tokens.packing.rows == b
        vectors = tokens.vectors[mine] if tokens.vectors is not None else None
        alone = embedding(Tokens(tokens.ids[mine], Packing.from_lengths(torch.tensor([n])), vocabulary, vectors))
        torch.testing.assert_close(alone, together[mine])


def test_a_token_depends_on_its_reach_and_no_further() -> None:
    embedding = embedding_of(BYTES, 0)
    text, other = embedding(bytes_of(b"abcdefgh")), embedding(bytes_of(b"abXdefgh"))
    changed = [not torch.equal(a, b) for a, b in zip(text, other, strict=True)]
    assert changed == [False, False, True, True, True, True, False, False]


def test_equal_ngrams_have_equal_vectors_wherever_they_stand() -> None:
    embedding = embedding_of(BYTES, 0)
    first, second = embedding(bytes_of(b"word, word", b"sword"))[[3, 9]]
    assert torch.equal(first, second)
    assert not torch.equal(first, embedding(bytes_of(b"lord"))[3])


def test_the_order_and_the_slot_of_a_code_change_its_hash() -> None:
    ids = torch.tensor([[1, 2], [2, 1], [1, 2], [0, 0]])
    a, b, c, zero = token_hash(ids).tolist()
    assert a == c
    assert len({a, b, zero}) == 3


def test_hashes_spread_evenly() -> None:
    past = token_hash(torch.randint(256, (20_000, 4, 1)))
    rows = embedding_of(BYTES, 0).ngram_rows_of(ngram_hashes(past))
    counts = torch.bincount(rows[:, 2], minlength=997).float()
    assert counts.max() < 3 * counts.mean()


def wrap(x: int) -> int:
    """A 64-bit two's complement number."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_the_hash_is_64_bit_arithmetic(ids: list[int]) -> None:
    state = wrap(sum((value + 1) * 6364136223846793005**slot for slot, value in enumerate(ids)))
    state = wrap(state * -7046029254386353131)
    state = wrap((state ^ ((state >> 29) & 0x7FFFFFFFF)) * 6364136223846793005)
    assert token_hash(torch.tensor([ids])).item() == state


def test_packing_bytes_drops_the_padding_and_nothing_else() -> None:
    rows = torch.tensor([[256, 1, 257, 258], [258, 258, 258, 258], [7, 8, 9, 0]])
    tokens = pack_bytes(rows)
    assert tokens.ids[:, 0].tolist() == [256, 1, 257, 7, 8, 9, 0]
    assert tokens.packing.lengths.tolist() == [3, 0, 4]
    assert tokens.special.tolist() == [True, False, True, False, False, False, False]


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([[1, 258, 2]]),
        torch.tensor([[259]]),
        torch.tensor([[-1]]),
        torch.tensor([1, 2]),
        torch.tensor([[1.0]]),
    ],
    ids=["PAD in the middle", "no such id", "negative", "one dimension", "floats"],
)
def test_rows_that_are_no_bytes_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        pack_bytes(rows)
