"""Every loss of a Hierarchy, as sums over a batch.

Letters: T packed bytes, S packed segments, U distinct segments, D width, Q codes a segment, N numbers of a lattice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from abstractinator.components.bottlenecks.fsq import FSQ
from abstractinator.components.hierarchical.byte_segment_compressor import Compressed
from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.hierarchical.level import Level
from abstractinator.components.packing import gather_rows
from abstractinator.components.token_head import chunked, targets_of
from abstractinator.components.tokens import Tokens
from abstractinator.contract.model import Losses, Mean

_STEEPEST = 2.0  # bound of a slope, in nats per unit of the lattice
_BITS = 1 / math.log(2)
Predicted = tuple[Tensor, list[Tensor]]
"""What `Hierarchy.predict` gives."""


@dataclass(frozen=True)
class HierarchicalLosses(Losses):
    """The losses, and what they were measured on.

    weight: the bytes that the exact path predicts, all but a row's first token. In nats, summed:
    predict: −log p(x) of the exact path. codes: −log p(highest codes). reconstruction: per level, −log p(its tokens |
    its codes). Codes also tell a row's first byte, so codes and reconstruction are sums over up to one byte a row more.
    predict and codes are None in the phase that trains the autoencoder alone.
    """

    predict: Tensor | None
    codes: Tensor | None
    reconstruction: list[Tensor]
    compressed: list[Compressed]

    @property
    def two_part(self) -> Tensor:
        """−log p(codes) − Σ log p(tokens | codes), in nats: what a coder takes that sends the codes and then the bytes.

        An upper bound of −log Σ p(c) p(x | c) over all codes c, this scheme's probability of x. The exact path is
        another model of x, which it does not bound.
        """
        assert self.codes is not None, "the phase `autoencoder` has no model of the codes"
        return self.codes + torch.stack(self.reconstruction).sum()


def losses_of(
    model: Hierarchy, tokens: Tokens, compressed: list[Compressed], predicted: Predicted | None
) -> HierarchicalLosses:
    """tokens: packed bytes. predicted: None where the autoencoder is trained alone."""
    config, total, predict, codes = model.config, None, None, None
    weight = ((tokens.packing.positions > 0) & ~tokens.special).sum().clamp(min=1)
    parts: dict[str, Mean] = {}
    reconstruction = [_reconstruction(level, c, model) for level, c in zip(model.levels, compressed, strict=True)]
    whole = torch.stack([nll for nll, _ in reconstruction]).sum().detach()
    if predicted is not None:
        hidden, contexts = predicted
        byte_nll = model.byte_head.nll(hidden, targets_of(tokens)).masked_fill(tokens.packing.positions == 0, 0.0)
        predict, codes = byte_nll.sum(), model.top.nll(contexts[-1], compressed[-1].codes).sum()
        total = config.predict_loss_weight * predict + config.top_lm_loss_weight * codes
        total = total + config.rate_loss_weight * rate_of(model, contexts[-1], compressed[-1])
        parts["bits_per_byte_exact"] = Mean(predict.detach() * _BITS, weight)
        parts["bits_per_byte_two_part"] = Mean((codes.detach() + whole) * _BITS, weight)
        parts["code_bits_per_byte"] = Mean(codes.detach() * _BITS, weight)
    even = config.reconstruction_loss_weight * torch.stack([even for _, even in reconstruction]).sum()
    total = even if total is None else total + even
    if learning := [c.entropy_nll.sum() for c in compressed if c.entropy_nll is not None]:
        total = total + config.aux_lm_loss_weight * torch.stack(learning).sum()
    # A mean of squares, not nats; weighted by the bytes, as everything else is.
    total = total + torch.stack([c.encoded.quantized.loss for c in compressed]).sum() * weight
    for number, ((nll, _), c) in enumerate(zip(reconstruction, compressed, strict=True), 1):
        parts |= _level_parts(f"level{number}", nll.detach(), c, weight)
    return HierarchicalLosses(total, weight, parts, predict, codes, [nll for nll, _ in reconstruction], compressed)


def _level_parts(name: str, nll: Tensor, compressed: Compressed, weight: Tensor) -> dict[str, Mean]:
    """What is reported of a level."""
    codes = torch.full_like(weight, max(compressed.codes.packing.total, 1))
    parts = {
        f"{name}/reconstruction_bits_per_byte": Mean(nll * _BITS, weight),
        f"{name}/quantizer_loss": Mean(compressed.encoded.quantized.loss.detach() * weight, weight),
        f"{name}/bytes_per_code": Mean(weight, codes),
    }
    if compressed.entropy_nll is not None:
        entropy = compressed.entropy_nll.sum().detach()
        parts[f"{name}/entropy_model_bits_per_byte"] = Mean(entropy * _BITS, weight)
    return parts


def _reconstruction(level: Level, compressed: Compressed, model: Hierarchy) -> tuple[Tensor, Tensor]:
    """−log p of a level's tokens given its codes, in nats, and the same with rare segments weighing more, for training.

    Frequent segments are learned soon whatever their weight; leaving more of the gradient to the rare ones
    is what the accuracy in the end depends on.
    """
    nll, distinct = level.reconstruction_nll(compressed), compressed.encoded.distinct
    counts = distinct.counts.to(nll.dtype)
    # Parts, which occur 0 times in the text, weigh as much as what occurs once.
    weights = counts.clamp(min=1) ** model.config.repetition_weight
    even = (weights * nll).sum() * (counts.sum() / weights[counts > 0].sum().clamp(min=1e-9))
    return (counts * nll).sum(), even


def rate_of(model: Hierarchy, context: Tensor, highest: Compressed) -> Tensor:
    """0, with a gradient to the numbers that were rounded to the highest codes: the slope of −log p(codes).

    A code has no gradient, so without this the compressor would be free to choose codes that the top cannot guess (the
    rate of learned image codecs, Ballé et al. 2017, arXiv 1611.01704). The slope is the difference in cost between the
    neighbouring codes on the lattice; that later slots would be guessed from another code is left out.
    """
    lattice, plain = highest.encoded.quantized.lattice, (~highest.codes.special).nonzero()[:, 0]
    head, quantizer = model.top.head, model.levels[-1].compressor.quantizer
    learns = lattice is not None and lattice.requires_grad and bool(model.config.rate_loss_weight)
    if lattice is None or not learns or not isinstance(quantizer, FSQ):
        return context.new_zeros(())

    def slopes(hidden: Tensor, codes: Tensor) -> Tensor:
        return -quantizer.slopes(codes, head.logits(hidden, codes))  # −log p falls where a logit rises

    with torch.no_grad():
        found = chunked(slopes, context[plain], highest.codes.ids[plain], head.classes)
    moved = gather_rows(lattice - lattice.detach(), highest.encoded.distinct.of_segment[plain])
    return (found.clamp(-_STEEPEST, _STEEPEST) * moved).sum()
