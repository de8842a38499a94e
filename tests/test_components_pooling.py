import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abstractinator.components.hierarchical.learned_query_attention import LearnedQueryAttention, segment_softmax
from abstractinator.components.hierarchical.segmentation import Segments
from abstractinator.components.packing import Packing

segment_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def segments_of(lengths: list[int]) -> Segments:
    """One row of segments with these lengths."""
    inner = Packing.from_lengths(torch.tensor(lengths))
    outer = Packing.from_lengths(torch.tensor([len(lengths)]))
    return Segments(outer, inner.rows, inner.positions, inner.lengths, inner.rows)


def pool_of(queries: int = 6) -> LearnedQueryAttention:
    torch.manual_seed(0)
    return LearnedQueryAttention(width=8, queries=queries, value_width=4)


@settings(max_examples=40)
@given(segment_lengths)
def test_segment_softmax_is_a_softmax_in_each_segment(lengths: list[int]) -> None:
    torch.manual_seed(0)
    scores = 30 * torch.randn(sum(lengths), 2)
    got = segment_softmax(scores, segments_of(lengths).of_token, len(lengths))
    expected = torch.cat([part.softmax(0) for part in scores.split(lengths)])
    torch.testing.assert_close(got, expected)


def test_segment_softmax_has_the_gradient_of_a_softmax() -> None:
    torch.manual_seed(0)
    lengths = [3, 1, 4]
    scores, weight = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)
    got = segment_softmax(scores, segments_of(lengths).of_token, 3)
    expected = torch.cat([part.softmax(0) for part in scores.split(lengths)])
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), scores) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=40)
@given(segment_lengths)
def test_pooling_equals_a_loop_over_segments(lengths: list[int]) -> None:
    pool = pool_of()
    x = torch.randn(sum(lengths), 8)
    expected = []
    for part in x.split(lengths):
        keys, values = pool.to_key_value(part).chunk(2, dim=1)
        offset = [min(i, 5) for i in range(len(part))]  # later ones count as the last that is distinguished
        weights = (keys @ pool.queries.T + pool.position_preference[offset]).softmax(0)
        expected.append((weights.T @ values).flatten())
    torch.testing.assert_close(pool(x, segments_of(lengths)), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_a_segment_reads_its_own_tokens_and_nothing_else() -> None:
    pool, lengths = pool_of(), [2, 3, 1, 4]
    x = torch.randn(10, 8, requires_grad=True)
    pooled = pool(x, segments_of(lengths))
    for segment, (start, length) in enumerate(zip([0, 2, 5, 6], lengths, strict=True)):
        (gradient,) = torch.autograd.grad(pooled[segment].sum(), x, retain_graph=True)
        touched = gradient.abs().sum(1) > 0
        assert touched.tolist() == [start <= t < start + length for t in range(10)]


def test_the_order_of_tokens_matters_from_the_start() -> None:
    pool, x = pool_of(queries=3), torch.randn(2, 8)
    a, b = (pool(y, segments_of([2])) for y in (x, x.flip(0)))
    assert not torch.allclose(a, b)
