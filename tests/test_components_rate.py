"""The slope that code prediction has where codes were rounded: it is that of the costs, and following it pays."""

from dataclasses import replace

import pytest
import torch
from tiny_models import mean_loss, rows_of, tiny_config, tiny_model

from abstractinator.components.bottlenecks.fsq import FSQ, FSQConfig
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.losses import rate_of
from abstractinator.components.tokens import pack_bytes

ROWS = rows_of([b"the cat sat on the mat", b"and the dog, too"])


def fsq(*levels: int, slots: int = 2, width: int = 12) -> FSQ:
    torch.manual_seed(0)
    return FSQ(FSQConfig(codes_per_segment=slots, fsq_levels=levels), width)


@pytest.mark.parametrize("levels", [(2, 2, 2), (3, 5), (4, 2, 3), (7,)], ids=str)
def test_slopes_are_differences_between_codes_of_the_lattice(levels: tuple[int, ...]) -> None:
    quantizer = fsq(*levels)
    size, codes = quantizer.codebook_size, torch.randint(quantizer.codebook_size, (20, 2))
    nats = [torch.randn(20, size + (slot == 0)) for slot in range(2)]
    found = quantizer.slopes(codes, nats).view(20, 2, len(levels))
    book = quantizer.lattice
    for row in range(20):
        for slot in range(2):
            code = int(codes[row, slot])
            for dimension in range(len(levels)):
                others = [i for i in range(len(levels)) if i != dimension]
                line = [k for k in range(size) if torch.equal(book[k, others], book[code, others])]
                line.sort(key=lambda k, dimension=dimension: float(book[k, dimension]))
                index = line.index(code)
                low, high = line[max(index - 1, 0)], line[min(index + 1, len(line) - 1)]
                rise = nats[slot][row, high] - nats[slot][row, low]
                expected = rise / (book[high, dimension] - book[low, dimension])
                torch.testing.assert_close(found[row, slot, dimension], expected)


def test_who_follows_the_slopes_gets_cheaper_codes() -> None:
    quantizer, cost = fsq(2, 2, 2, 2, 2), torch.randn(2, 1, 32)
    z = torch.randn(50, 12).requires_grad_()

    def price(codes: torch.Tensor) -> torch.Tensor:
        return sum(cost[slot, 0][codes[:, slot]] for slot in range(2))  # type: ignore[return-value]

    before = price(quantizer(z).codes)
    for _ in range(100):
        quantized = quantizer(z)
        assert quantized.lattice is not None
        slopes = quantizer.slopes(quantized.codes, [cost[slot].expand(50, -1) for slot in range(2)])
        (gradient,) = torch.autograd.grad((slopes * quantized.lattice).sum(), z)
        z = (z - 0.3 * gradient).detach().requires_grad_()
    after = price(quantizer(z).codes)
    assert (after < before).sum() > 40 and (after - before).mean() < -1.0


def losses_and_gradients(weight: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = tiny_model("information")
    again = HierarchicalAELM(replace(tiny_config("information"), rate_loss_weight=weight)).train()
    again.load_state_dict(model.state_dict())
    torch.manual_seed(1)  # of the parts that are drawn beside the text
    total = mean_loss(again, ROWS)
    total.backward()
    return total.detach(), {name: p.grad for name, p in again.named_parameters() if p.grad is not None}


def test_the_rate_moves_what_makes_the_codes_and_nothing_else() -> None:
    (without, before), (total, after) = losses_and_gradients(0.0), losses_and_gradients(1.0)
    assert torch.equal(total, without)
    moved = {name for name in after if not torch.allclose(after[name], before[name], atol=1e-7)}
    assert "levels.0.compressor.quantizer.project_in.weight" in moved
    assert all(name.startswith("levels.0.compressor") for name in moved)
    assert not any("entropy_model" in name or "project_out" in name for name in moved)


@pytest.mark.parametrize(
    ("shape", "moves"),
    [("information-information", 2), ("threshold-fixed", 2), ("whitespace-both", 0), ("increase", 0)],
)
def test_the_rate_of_the_highest_level_reaches_all_below(shape: str, moves: int) -> None:
    model = tiny_model(shape).train()
    compressed = model.compress(pack_bytes(ROWS))
    _, contexts = model.predict(pack_bytes(ROWS), compressed)
    rate = rate_of(model, contexts[-1], compressed[-1])
    assert float(rate.detach()) == 0.0
    if not moves:  # kinds without a lattice
        assert not rate.requires_grad
        return
    rate.backward()
    moved = [level.compressor.position.weight.grad for level in model.levels]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in moved) == moves


def test_who_follows_the_rate_makes_codes_that_the_top_finds_cheaper() -> None:
    torch.manual_seed(0)
    model, rows = tiny_model("information").train(), rows_of([bytes(range(i, i + 60)) for i in range(0, 180, 20)])
    rounded = model.levels[0].compressor.quantizer.project_in
    optimizer, prices = torch.optim.SGD(rounded.parameters(), lr=1.0), []
    for _ in range(60):
        tokens = pack_bytes(rows)
        compressed = model.compress(tokens)
        contexts = model.predict(tokens, compressed)[1]
        prices.append(float(model.top.nll(contexts[-1], compressed[-1].codes).mean().detach()))
        optimizer.zero_grad()
        (rate_of(model, contexts[-1], compressed[-1]) / compressed[-1].codes.packing.total).backward()
        optimizer.step()
    assert sum(prices[-10:]) / 10 < prices[0] - 0.2


def test_repaired_codes_have_no_lattice() -> None:
    """It would be that of the codes before."""
    model, tokens = tiny_model("information"), pack_bytes(ROWS)
    with torch.no_grad():
        assert model.compress(tokens)[-1].encoded.quantized.lattice is not None
        assert model.compress(tokens, repair=True)[-1].encoded.quantized.lattice is None
