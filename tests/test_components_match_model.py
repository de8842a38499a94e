"""MatchModel: what followed the last time, by definition, in the row and the window, and independent of the future."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abstractinator.components.incremental.match_memory import MatchMemory
from abstractinator.components.match_model import MatchModel
from abstractinator.components.packing import Packing
from abstractinator.components.token_hash import ngram_hashes, token_hash
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary

CODES = Vocabulary(4, 2)
SIZES = (1, 3)
WINDOW = 6
rows_of_tokens = st.lists(st.lists(st.integers(0, 2), max_size=14), min_size=1, max_size=3).filter(any)


def model_of(vocabulary: Vocabulary) -> MatchModel:
    torch.manual_seed(0)
    return MatchModel(vocabulary, 5, SIZES, WINDOW, 3)


def tokens_of(rows: list[list[int]], vocabulary: Vocabulary) -> Tokens:
    ids = torch.tensor([[value] * vocabulary.slots for row in rows for value in row])
    return Tokens(ids, Packing.from_lengths(torch.tensor([len(row) for row in rows])), vocabulary)


def ngrams_of(tokens: Tokens) -> Tensor:
    """(T, 3) as TokenEmbedding makes them."""
    hashes, positions = token_hash(tokens.ids), tokens.packing.positions
    past = [torch.where(positions >= back, hashes.roll(back), -1) for back in range(3)]
    return ngram_hashes(torch.stack(past, dim=1))


def naive(row: list[int], t: int, size: int) -> int | None:
    """The token after the last earlier position where row[t - size + 1 : t + 1] ended, at most WINDOW tokens ago."""
    if t < size - 1:
        return None
    gram = row[t - size + 1 : t + 1]
    ends = [e for e in range(size - 1, t) if row[e - size + 1 : e + 1] == gram]
    return row[ends[-1] + 1] if ends and t - ends[-1] <= WINDOW else None


@pytest.mark.parametrize("vocabulary", [BYTES, CODES], ids=["bytes", "codes"])
@settings(max_examples=80)
@given(rows=rows_of_tokens)
def test_it_finds_what_followed_last_time(vocabulary: Vocabulary, rows: list[list[int]]) -> None:
    model, tokens = model_of(vocabulary), tokens_of(rows, vocabulary)
    found = model.followers(tokens, ngrams_of(tokens))
    wanted = [[naive(row, t, size) for size in SIZES] for row in rows for t in range(len(row))]
    none = vocabulary.size
    expected = [[[none if x is None else x] * vocabulary.slots for x in each] for each in wanted]
    assert found.tolist() == expected
    assert model(tokens, ngrams_of(tokens)).shape == (len(wanted), 5)


@settings(max_examples=80)
@given(rows=rows_of_tokens, data=st.data())
def test_steps_find_the_same_whatever_was_taken_back(rows: list[list[int]], data: st.DataObject) -> None:
    """Rows come some tokens at a time; before each step, others come and are rolled back."""
    ahead, model, tokens = 3, model_of(CODES), tokens_of(rows, CODES)
    expected = model.followers(tokens, ngrams_of(tokens))
    memory = MatchMemory(model, len(rows), ahead, torch.device("cpu"))
    for b, row in enumerate(rows):
        start, offset = 0, int(tokens.packing.offsets[b])
        while start < len(row):
            count = data.draw(st.integers(1, min(ahead, len(row) - start)))
            guess = [data.draw(st.integers(0, 2)) for _ in range(data.draw(st.integers(0, ahead)))]
            for future in (guess, row[start : start + count]):
                if not future:
                    continue
                after = tokens_of([row[:start] + future], CODES)
                positions = torch.arange(start, start + len(future))[None]
                new = slice(start, start + len(future))
                found = memory.append(torch.tensor([b]), positions, after.ids[new][None], ngrams_of(after)[new][None])
            assert torch.equal(found[0], expected[offset + start : offset + start + count])
            start += count


@pytest.mark.parametrize(("gap", "follower"), [(WINDOW, 1), (WINDOW + 1, CODES.size)])
def test_the_window_ends_where_it_says(gap: int, follower: int) -> None:
    tokens, model = tokens_of([[0] + [1] * (gap - 1) + [0]], CODES), model_of(CODES)
    assert model.followers(tokens, ngrams_of(tokens))[-1, 0].tolist() == [follower] * CODES.slots
    memory = MatchMemory(model, 1, gap + 1, torch.device("cpu"))
    positions = torch.arange(gap + 1)[None]
    found = memory.append(torch.tensor([0]), positions, tokens.ids[None], ngrams_of(tokens)[None])
    assert found[0, -1, 0].tolist() == [follower] * CODES.slots


def test_a_match_says_nothing_of_what_is_to_come() -> None:
    random_ = random.Random(0)
    row = [random_.randrange(3) for _ in range(60)]
    model = model_of(BYTES)
    before = model.followers(tokens_of([row], BYTES), ngrams_of(tokens_of([row], BYTES)))
    for position in range(1, 60):
        changed = tokens_of([row[:position] + [(x + 1) % 3 for x in row[position:]]], BYTES)
        assert torch.equal(model.followers(changed, ngrams_of(changed))[:position], before[:position])
