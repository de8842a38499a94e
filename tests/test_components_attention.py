import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator.components import sliding_window_attention
from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer
from abstractinator.components.packing import Packing
from abstractinator.components.sliding_window_attention import (
    Kernel,
    SlidingWindowAttention,
    _flex_mask,
    block_attention,
    flash_attention,
    flex_attention,
    kernel_for,
    naive_attention,
)
from abstractinator.components.transformer import SlidingWindowTransformer, TransformerConfig

row_lengths = st.lists(st.integers(0, 45), min_size=1, max_size=5).filter(any)
windows = st.integers(1, 20)


def projections(total: int, heads: int = 2, width: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(total)
    return [torch.randn(total, heads, width, requires_grad=True) for _ in range(3)]


@settings(max_examples=60)
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


@settings(max_examples=10)
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


@settings(max_examples=30)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=5).filter(any), st.integers(1, 400))
def test_flex_attention_lists_every_block_that_is_seen_and_few_others(lengths: list[int], window: int) -> None:
    packing = Packing.from_lengths(torch.tensor(lengths))
    index = torch.arange(-(-packing.total // 128) * 128)
    seen = (index[:, None] >= index) & (index[:, None] - index < window)
    seen = seen.view(len(index) // 128, 128, -1, 128).any(3).any(1)
    mask = _flex_mask(packing, window)
    assert torch.equal(mask.to_dense()[0, 0].bool(), seen)
    assert mask.seq_lengths == (packing.total, packing.total)


def test_a_long_text_needs_no_square_mask() -> None:
    packing = Packing.from_lengths(torch.tensor([200_000, 62_144]))  # T×T would be 64 GiB even of single bytes
    mask = _flex_mask(packing, 512)
    assert int(mask.kv_num_blocks.max()) == 5


@pytest.mark.parametrize("flash_attn_is_installed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_follows_device_and_precision(
    monkeypatch: pytest.MonkeyPatch, flash_attn_is_installed: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: flash_attn_is_installed or None)
    choose = kernel_for.__wrapped__
    assert choose("cpu", dtype) is choose("mps", dtype) is block_attention
    half = dtype != torch.float32
    assert choose("cuda", dtype) is (flash_attention if half and flash_attn_is_installed else flex_attention)


def test_attention_asks_for_the_kernel_of_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.dtype]] = []

    def ask(device_type: str, dtype: torch.dtype) -> Kernel:
        asked.append((device_type, dtype))
        return block_attention

    monkeypatch.setattr(sliding_window_attention, "kernel_for", ask)
    attention, packing = SlidingWindowAttention(8, 2, 3), Packing.from_lengths(torch.tensor([5]))
    with torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(5, 8), packing)
        with torch.autocast("cpu", enabled=False):
            attention(torch.randn(5, 8), packing)
    assert asked == [("cpu", torch.bfloat16), ("cpu", torch.float32)]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), windows, st.integers(1, 6), st.data())
def test_steps_equal_forward(lengths: list[int], window: int, ahead: int, data: st.DataObject) -> None:
    """Some tokens at a time, of some rows, and with others in between that are rolled back."""
    torch.manual_seed(0)
    model = SlidingWindowTransformer(TransformerConfig(width=8, layers=2, heads=2, window=window, mlp_width=8))
    packing = Packing.from_lengths(torch.tensor(lengths))
    x = torch.randn(packing.total, 8)
    expected = model(x, packing)
    incremental, seen = IncrementalTransformer(model, len(lengths), ahead), [0] * len(lengths)
    while rows := [b for b, n in enumerate(lengths) if seen[b] < n]:
        count = data.draw(st.integers(1, min(ahead, *(lengths[b] - seen[b] for b in rows))))
        positions = torch.tensor([[seen[b] + i for i in range(count)] for b in rows])
        at = packing.offsets[rows][:, None] + positions
        strange = positions[:, :1] + torch.arange(data.draw(st.integers(1, ahead)))
        incremental.step(torch.randn(*strange.shape, 8), incremental.entries(torch.tensor(rows), strange))
        entries = incremental.entries(torch.tensor(rows), positions)
        if data.draw(st.booleans()):  # at once, or one by one to entries that were computed at once
            got = incremental.step(x[at], entries)
        else:
            parts = zip(x[at].split(1, 1), entries.each(), strict=True)
            got = torch.cat([incremental.step(*part) for part in parts], dim=1)
        torch.testing.assert_close(got, expected[at], atol=1e-5, rtol=1e-4)
        for b in rows:
            seen[b] += count


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
