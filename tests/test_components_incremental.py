"""Reading in steps, with some rolled back, gives what one forward pass gives."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SHAPES, random_text, rows_of, tiny_model

from abstractinator.components.hierarchical import incremental_model as incremental
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.incremental_model import CodeSteps, IncrementalModel
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import Tokens, pack_bytes

MODELS: dict[str, HierarchicalAELM] = {}
every_shape = pytest.mark.parametrize("shape", SHAPES)
AHEAD = 7


def model_of(shape: str) -> HierarchicalAELM:
    """Made once; no test changes it."""
    if shape not in MODELS:
        MODELS[shape] = tiny_model(shape)
    return MODELS[shape]


@torch.no_grad()
def hidden_at_once(model: HierarchicalAELM, text: bytes) -> torch.Tensor:
    """(len(text) + 1, D): before each byte of the text and after its last."""
    tokens = pack_bytes(rows_of([text + b"?"]))  # the last token has no effect there
    return model.predict(tokens, model.compress(tokens))[0][1:]


def chunk_of(parts: list[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes (R, n), with something behind the shorter ones that must not count, and lengths (R,)."""
    longest = max(map(len, parts))
    padded = [[*part, *[65] * (longest - len(part))] for part in parts]
    return torch.tensor(padded).view(len(parts), longest), torch.tensor([len(part) for part in parts])


@every_shape
@settings(max_examples=15)
@given(data=st.data())
def test_steps_of_any_size_equal_one_forward_pass(shape: str, data: st.DataObject) -> None:
    model = model_of(shape)
    texts = [
        text.encode("latin-1") for text in data.draw(st.lists(st.text("ab ,\xff", max_size=40), min_size=1, max_size=3))
    ]
    expected = [hidden_at_once(model, text) for text in texts]
    known = [data.draw(st.integers(0, len(text))) for text in texts]
    state = IncrementalModel(model, len(texts), AHEAD)
    state.prefill([text[:n] for text, n in zip(texts, known, strict=True)])
    while True:
        every = torch.arange(len(texts))
        for b, hidden in enumerate(state.hidden(every)):
            torch.testing.assert_close(hidden, expected[b][known[b]], atol=1e-4, rtol=0)
        going = [b for b, text in enumerate(texts) if known[b] < len(text)]
        if not going:
            return
        rows = sorted(data.draw(st.sets(st.sampled_from(going), min_size=1)))
        parts, taken = [], []
        for b in rows:
            nothing_right = data.draw(st.booleans())
            right = b"" if nothing_right else texts[b][known[b] :][: data.draw(st.integers(1, AHEAD))]
            wrong = data.draw(st.text("ab ,\xff", min_size=nothing_right, max_size=AHEAD - len(right))).encode(
                "latin-1"
            )
            parts.append(right + wrong)
            taken.append(len(right))
        bytes_, lengths = chunk_of(parts)
        after = state.read(torch.tensor(rows), bytes_, lengths)
        state.roll_back(torch.tensor(rows), lengths - torch.tensor(taken))
        for b, count, hidden in zip(rows, taken, after, strict=True):
            torch.testing.assert_close(
                hidden[:count], expected[b][known[b] + 1 : known[b] + 1 + count], atol=1e-4, rtol=0
            )
            known[b] += count


@every_shape
def test_rows_that_are_dropped_leave_the_others_as_they_were(shape: str) -> None:
    model = model_of(shape)
    texts = [random_text(random.Random(seed), 5 + 9 * seed) for seed in range(4)]
    state = IncrementalModel(model, 4, AHEAD)
    state.prefill(texts)
    state.keep(torch.tensor([1, 3]))
    bytes_, lengths = chunk_of([b"and", b"so on"])
    state.read(torch.arange(2), bytes_, lengths)
    for got, text in zip(state.hidden(torch.arange(2)), (texts[1] + b"and", texts[3] + b"so on"), strict=True):
        torch.testing.assert_close(got, hidden_at_once(model, text)[-1], atol=1e-4, rtol=0)


@every_shape
def test_memory_does_not_grow_with_the_text(shape: str) -> None:
    state = IncrementalModel(model_of(shape), 1, AHEAD)
    at_first = state.nbytes
    state.prefill([random_text(random.Random(0), 300)])
    assert state.nbytes == at_first
    heads = 2  # keys and values have slots for each
    assert all(
        ring.data.shape[1] <= 2 * heads * (5 + AHEAD + 5) for memory in state.memories for ring in memory.rings()
    )


@every_shape
@pytest.mark.parametrize("rows_at_once", [1, 8])
def test_a_long_prompt_is_read_in_large_steps(shape: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is the one after small steps, whatever follows; short texts lie beside long ones."""
    monkeypatch.setattr(incremental, "_PREFILL", 40)
    monkeypatch.setattr(incremental, "_PREFILL_ROWS", rows_at_once)
    read, steps = IncrementalModel.read, []

    def counted(state: IncrementalModel, rows: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        steps.append(ids.shape[1])
        return read(state, rows, ids, lengths)

    monkeypatch.setattr(IncrementalModel, "read", counted)
    model, every = model_of(shape), torch.arange(3)
    texts = [random_text(random.Random(seed), n) for seed, n in enumerate((150, 3, 81))]
    state, small = (IncrementalModel(model, 3, AHEAD) for _ in range(2))
    nbytes = state.nbytes
    state.prefill(texts)
    assert max(steps) == (40 if rows_at_once == 8 else AHEAD) and state.nbytes == nbytes
    small._read_texts(texts)
    torch.testing.assert_close(state.hidden(every), small.hidden(every), atol=1e-4, rtol=0)
    assert torch.equal(state.open_tokens(every), small.open_tokens(every))
    for part in (b"and on", b"x", b", y"):
        ids = torch.tensor([list(part)] * 3)
        for each in (state, small):
            each.read(every, ids, torch.full_like(every, len(part)))
            each.roll_back(every, torch.full_like(every, len(part) // 3))
        texts = [text + part[: len(part) - len(part) // 3] for text in texts]
        for hidden, text in zip(state.hidden(every), texts, strict=True):
            torch.testing.assert_close(hidden, hidden_at_once(model, text)[-1], atol=1e-4, rtol=0)
        assert torch.equal(state.open_tokens(every), small.open_tokens(every))


@every_shape
def test_codes_one_after_the_other_equal_one_forward_pass(shape: str) -> None:
    """More of them than the rings hold, past all levels; from the middle on one row less, as where a text ends."""
    model, count = model_of(shape), 40
    vocabulary, random_ = model.top.vocabulary, random.Random(0)
    known, more = (
        torch.tensor(
            [
                [[random_.randrange(vocabulary.codebook_size) for _ in range(vocabulary.slots)] for _ in range(n)]
                for _ in range(3)
            ]
        )
        for n in (2, count)
    )
    state, every = IncrementalModel(model, 3, AHEAD), torch.arange(3)
    begins = CodeSteps(state, every, 2)
    for m in range(2):
        begins.read(known[:, m])
    contexts, rows, steps = [], every, CodeSteps(state, every, count)
    for m in range(count):
        if m == count // 2:
            rows, steps = every[1:], CodeSteps(state, every[1:], count - m)
        contexts.append(steps.read(more[rows, m]))
    bos = torch.full((3, 1, vocabulary.slots), vocabulary.bos)
    ids = torch.cat([bos, known, more, more[:, :1]], dim=1)  # the last token has no effect there
    packing = Packing.from_lengths(torch.full((3,), ids.shape[1]))
    vectors = model.levels[-1].compressor.quantizer.decode(ids.flatten(0, 1).clamp(max=vocabulary.codebook_size - 1))
    vectors = vectors.masked_fill(ids.flatten(0, 1)[:, :1] >= vocabulary.codebook_size, 0.0)
    expected = model.top(Tokens(ids.flatten(0, 1), packing, vocabulary, vectors)).view(3, ids.shape[1], -1)
    for m, context in enumerate(contexts):
        torch.testing.assert_close(context, expected[3 - len(context) :, 4 + m], atol=1e-4, rtol=0)


def test_codes_are_those_of_a_model_that_remembers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that repeats its segments, with room for all of them and for hardly any."""
    text = b"one two one two three one two three " * 4
    for shape in ("threshold", "threshold-fixed"):
        made = []
        for room in (4096, 1):
            monkeypatch.setattr(incremental, "_KNOWN", room)
            state = IncrementalModel(model_of(shape), 1, AHEAD)
            state.prefill([text])
            made.append((state.hidden(torch.arange(1)), len(state.levels[0].known)))
        (hidden, many), (again, few) = made
        torch.testing.assert_close(hidden, again)
        assert few < many < len(text) / 4


@pytest.mark.parametrize("patience", [0, 1, 3])
@every_shape
@settings(max_examples=6)
@given(data=st.data())
def test_rows_that_wait_catch_up(shape: str, patience: int, data: st.DataObject) -> None:
    """Bytes come one by one for some rows, several at once for others, in any order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incremental, "_WAITING_FOR_ONE", patience)
        _wait_and_catch_up(shape, data)


def _wait_and_catch_up(shape: str, data: st.DataObject) -> None:
    model, every, empty = model_of(shape), torch.arange(3), torch.zeros(0, dtype=torch.int64)
    texts = [random_text(random.Random(seed), 40) for seed in range(3)]
    state, known = IncrementalModel(model, 3, AHEAD), [0, 0, 0]
    for _ in range(data.draw(st.integers(1, 25))):
        chosen = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3, unique=True).map(sorted))
        rows = torch.tensor([row for row in chosen if not state.waiting[row] and known[row] < 40], dtype=torch.int64)
        count = data.draw(st.integers(1, min([AHEAD, *(40 - known[row] for row in rows)])))
        if len(rows) and count == 1:
            before = state.waiting.clone()
            going, hidden = state.read_byte(rows, torch.tensor([texts[row][known[row]] for row in rows]))
            stepped = before.index_fill(0, rows, True)  # those that waited before may continue, too
            assert all(stepped[going]) and torch.equal(going, (stepped & ~state.waiting).nonzero()[:, 0])
            assert torch.equal(hidden, state.hidden(going))
        elif len(rows):
            ids = torch.tensor([list(texts[row][known[row] : known[row] + count]) for row in rows])
            state.read(rows, ids, torch.full_like(rows, count))
        for row in rows.tolist():
            known[row] += count
        if state.waiting.any() and data.draw(st.booleans()):
            waited = state.waiting.nonzero()[:, 0]
            going, hidden = state.read_byte(empty, empty)
            assert torch.equal(going, waited) and not state.waiting.any()
            assert torch.equal(hidden, state.hidden(going))
    if state.waiting.any():
        state.read_byte(empty, empty)
    plain = IncrementalModel(model, 3, AHEAD)
    plain.prefill([text[:n] for text, n in zip(texts, known, strict=True)])
    torch.testing.assert_close(state.hidden(every), plain.hidden(every), atol=1e-4, rtol=0)
