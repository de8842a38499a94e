import itertools

import pytest
import torch

from abstractinator.components import token_head
from abstractinator.components.incremental.folded import FoldedDepthHead
from abstractinator.components.packing import Packing
from abstractinator.components.token_head import IGNORED, DepthHead, ParallelHead, targets_of
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary

TINY = Vocabulary(codebook_size=3, slots=2)


def probabilities(head: DepthHead | ParallelHead, hidden: torch.Tensor) -> torch.Tensor:
    """(T, tokens + 1): of every token of the vocabulary, in order, and of the end."""
    vocabulary = head.vocabulary
    every = list(itertools.product(range(vocabulary.codebook_size), repeat=vocabulary.slots))
    targets = torch.tensor([*every, (vocabulary.codebook_size, *[IGNORED] * (vocabulary.slots - 1))])
    return torch.stack([torch.exp(-head.nll(hidden, t.expand(len(hidden), -1))) for t in targets], dim=1)


@pytest.mark.parametrize("head_type", [DepthHead, ParallelHead])
@pytest.mark.parametrize("vocabulary", [TINY, BYTES, Vocabulary(4, 3)], ids=str)
def test_the_probabilities_of_all_tokens_and_the_end_sum_to_one(head_type, vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    p = probabilities(head_type(8, vocabulary), torch.randn(5, 8))
    torch.testing.assert_close(p.sum(1), torch.ones(5))
    assert p.std(dim=1).min() > 0


def test_slots_depend_on_each_other_in_the_depth_head_alone() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 8)
    for head_type, dependent in ((DepthHead, True), (ParallelHead, False)):
        table = probabilities(head_type(8, TINY), hidden)[0, :-1].view(3, 3)
        second = table / table.sum(1, keepdim=True)  # of the second slot, given each first
        assert torch.allclose(second[0], second[1], atol=1e-6) != dependent


def test_slot_logits_are_those_that_the_likelihood_uses() -> None:
    torch.manual_seed(0)
    head, hidden, targets = DepthHead(8, TINY), torch.randn(4, 8), torch.randint(3, (4, 2))
    nats = torch.zeros(4)
    for slot in range(2):
        log_p = head.slot_logits(hidden, targets[:, :slot]).log_softmax(-1)
        nats -= log_p.gather(1, targets[:, slot : slot + 1])[:, 0]
    torch.testing.assert_close(head.nll(hidden, targets), nats)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("head_type", [DepthHead, ParallelHead])
def test_nats_of_many_vectors_come_from_logits_that_are_never_all_there(
    head_type, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head, targets = head_type(8, Vocabulary(codebook_size=40, slots=2)), torch.randint(40, (50, 2))
    targets[::7] = IGNORED
    hidden, weights = torch.randn(50, 8), torch.rand(50)
    kept: list[int] = []

    def nats_and_gradients() -> tuple[torch.Tensor, list[torch.Tensor]]:
        x = hidden.clone().requires_grad_()
        kept.clear()
        keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
        with keep, torch.autocast("cpu", enabled=autocast):
            nats = head.nll(x, targets)
        return nats, list(torch.autograd.grad((weights * nats).sum(), [x, *head.parameters()]))

    nats, gradients = nats_and_gradients()
    assert sum(kept) > 50 * 2 * 40  # all logits, at the least
    monkeypatch.setattr(token_head, "_CHUNK_LOGITS", 330)  # four vectors at a time
    in_parts, gradients_in_parts = nats_and_gradients()
    assert sum(kept) == hidden.numel() + targets.numel()
    tolerance = {"rtol": 2e-2, "atol": 1e-2} if autocast else {}
    torch.testing.assert_close(in_parts, nats, **tolerance)
    torch.testing.assert_close(gradients_in_parts, gradients, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(head.nll(hidden, targets), in_parts, **tolerance)


@pytest.mark.parametrize("vocabulary", [TINY, BYTES, Vocabulary(4, 3)], ids=str)
def test_the_folded_head_is_the_head(vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    head, hidden = DepthHead(8, vocabulary), torch.randn(5, 8)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(1.0, 0.5)  # gains, too
    folded, codes = FoldedDepthHead(head), torch.randint(vocabulary.codebook_size, (5, vocabulary.slots))
    for slot in range(vocabulary.slots):
        got = folded.slot_logits(hidden, codes[:, :slot])
        assert not got.requires_grad
        torch.testing.assert_close(got, head.slot_logits(hidden, codes[:, :slot]).detach(), atol=1e-4, rtol=1e-5)


def test_what_is_not_scored_costs_nothing() -> None:
    ignored = torch.full((4, 2), IGNORED)
    for head in (DepthHead(8, TINY), ParallelHead(8, TINY)):
        assert head.nll(torch.randn(4, 8), ignored).tolist() == [0, 0, 0, 0]


def test_eos_is_the_class_after_the_codes_and_bos_is_no_target() -> None:
    ids = torch.tensor([[TINY.bos] * 2, [2, 1], [TINY.eos] * 2])
    tokens = Tokens(ids, Packing.from_lengths(torch.tensor([3])), TINY)
    assert targets_of(tokens).tolist() == [[IGNORED, IGNORED], [2, 1], [3, IGNORED]]
    assert torch.equal(tokens.ids, ids)
