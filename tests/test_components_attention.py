import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.packing import Packing
from components.sliding_window_attention import (
    SlidingWindowAttention,
    block_attention,
    flex_attention,
    kernel_for,
    naive_attention,
)
from components.transformer import SlidingWindowTransformer, TransformerConfig

row_lengths = st.lists(st.integers(0, 45), min_size=1, max_size=5).filter(any)
windows = st.integers(1, 20)


def projections(total: int, heads: int = 2, width: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(total)
    return [torch.randn(total, heads, width, requires_grad=True) for _ in range(3)]


@settings(max_examples=60, deadline=None)
@given(row_lengths, windows)
def test_blocks_equal_the_definition_forward_and_backward(lengths: list[int], window: int) -> None:
    packing = Packing.from_lengths(torch.tensor(lengths))
    qkv = projections(packing.total)
    expected, got = (f(*qkv, packing, window) for f in (naive_attention, block_attention))
    torch.testing.assert_close(got, expected)

    weight = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), qkv),
        torch.autograd.grad((expected * weight).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(row_lengths, windows)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_definition(lengths: list[int], window: int) -> None:
    packing = Packing.from_lengths(torch.tensor(lengths))
    qkv = [x.detach() for x in projections(packing.total, width=16)]
    torch.testing.assert_close(flex_attention(*qkv, packing, window), naive_attention(*qkv, packing, window))


def test_the_definition_is_a_softmax_over_the_window_of_the_row() -> None:
    packing = Packing.from_lengths(torch.tensor([3, 4]))
    q, k, v = (x[:, 0].detach() for x in projections(7, heads=1))
    got = naive_attention(q[:, None], k[:, None], v[:, None], packing, 2)[:, 0]
    for t, visible in enumerate([[0], [0, 1], [1, 2], [3], [3, 4], [4, 5], [5, 6]]):
        weights = (k[visible] @ q[t] / 2).softmax(0)
        torch.testing.assert_close(got[t], weights @ v[visible])


def test_a_cpu_uses_blocks() -> None:
    assert kernel_for(torch.device("cpu")) is block_attention


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), windows, st.data())
def test_steps_equal_forward_from_any_prefix(lengths: list[int], window: int, data: st.DataObject) -> None:
    torch.manual_seed(0)
    attention = SlidingWindowAttention(8, 2, window)
    packing = Packing.from_lengths(torch.tensor(lengths))
    x = torch.randn(packing.total, 8)
    expected = attention(x, packing)
    known = [data.draw(st.integers(0, n)) for n in lengths]

    cache = attention.empty_cache(len(lengths), x.device, x.dtype)
    inside = packing.positions < torch.tensor(known)[packing.rows]
    if inside.any():
        attention(x[inside], Packing.from_lengths(torch.tensor(known)), cache)
    for place in range(max(lengths)):
        rows = [b for b, n in enumerate(lengths) if known[b] <= place < n]
        if rows:
            at = packing.offsets[rows] + place
            torch.testing.assert_close(
                attention.step(x[at], cache, torch.tensor(rows)), expected[at], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("seen", [1, 4, 5, 6, 13])
def test_a_forgotten_token_leaves_no_trace(window: int, seen: int) -> None:
    torch.manual_seed(0)
    attention = SlidingWindowAttention(8, 2, window)
    cache = attention.empty_cache(1, torch.device("cpu"), torch.float32)
    x = torch.randn(seen + 4, 8)
    with_stranger = torch.cat([x[: seen - 1], torch.randn(1, 8)])
    attention(with_stranger, Packing.from_lengths(torch.tensor([seen])), cache)
    cache.forget_last()
    expected = attention(x, Packing.from_lengths(torch.tensor([len(x)])))
    for t in range(seen - 1, len(x)):
        got = attention.step(x[t : t + 1], cache, torch.tensor([0]))[0]
        torch.testing.assert_close(got, expected[t], atol=1e-5, rtol=1e-4)


def test_a_transformer_steps_as_it_runs() -> None:
    torch.manual_seed(0)
    model = SlidingWindowTransformer(TransformerConfig(width=8, layers=3, heads=2, window=4, mlp_width=8))
    x = torch.randn(20, 8)
    expected = model(x, Packing.from_lengths(torch.tensor([20])))
    caches = model.empty_caches(1, x.device)
    for t in range(20):
        got = model.step(x[t : t + 1], caches, torch.tensor([0]))[0]
        torch.testing.assert_close(got, expected[t], atol=1e-5, rtol=1e-4)


def test_nothing_at_all_is_attended_to() -> None:
    packing = Packing.from_lengths(torch.tensor([0, 0]))
    empty = torch.zeros(0, 2, 4)
    assert block_attention(empty, empty, empty, packing, 3).shape == (0, 2, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"heads": 0},
        {"window": 0},
        {"mlp_width": 0},
        {"layers": -1},
        {"width": 10, "heads": 4},
        {"width": 12, "heads": 4},
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TransformerConfig(**({"width": 8, "heads": 2} | wrong))


def test_shift_moves_each_row_by_itself() -> None:
    packing = Packing.from_lengths(torch.tensor([2, 0, 3]))
    shifted = packing.shift(torch.arange(1, 6), torch.tensor(0))
    assert shifted.tolist() == [0, 1, 0, 3, 4]
