"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): a vector becomes a few rounded numbers.

Letters: S vectors, D width, Q codes a vector, N numbers a code, K = Π levels codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.bottlenecks.vector_quantizer import Quantized, VectorQuantizer, check_sizes
from abstractinator.components.transformer import GroupedLinear


@dataclass(frozen=True)
class FSQConfig:
    """codes_per_segment: Q. fsq_levels: values of each of the N numbers of a code; their product is K."""

    kind: Literal["fsq"] = "fsq"
    codes_per_segment: int = 3
    fsq_levels: tuple[int, ...] = (2,) * 8

    def __post_init__(self) -> None:
        if not self.fsq_levels or min(self.fsq_levels) < 2:
            raise ValueError(f"every one of fsq_levels must be at least 2, not {self.fsq_levels}")
        check_sizes(self)

    @property
    def codebook_size(self) -> int:
        return math.prod(self.fsq_levels)


class FSQ(VectorQuantizer):
    """Maps a vector to Q × N numbers and rounds each to one of its levels, evenly spaced from −1 to 1, by the rule that
    keeps the symmetry around 0 (arXiv 2411.19842, section 3.2). groups: see GroupedLinear."""

    levels: Tensor
    basis: Tensor
    lattice: Tensor

    def __init__(self, config: FSQConfig, width: int, groups: int = 1) -> None:
        super().__init__(config, width)
        self.config = config
        levels = torch.tensor(config.fsq_levels)
        basis = torch.tensor([math.prod(config.fsq_levels[:n]) for n in range(len(levels))])
        each = torch.arange(config.codebook_size)[:, None] // basis % levels
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        # (K, N) the numbers of every code.
        self.register_buffer("lattice", each * (2.0 / (levels - 1)) - 1.0, persistent=False)
        inner = config.codes_per_segment * len(levels)
        self.project_in = GroupedLinear(width, inner, groups, bias=True)
        self.project_out = GroupedLinear(inner, width, groups, bias=True)

    def quantize(self, z: Tensor) -> Quantized:
        numbers = self.project_in(z).view(len(z), self.config.codes_per_segment, -1)  # (S, Q, N)
        steps = self.levels - 1
        between = steps * (numbers.tanh() + 1) / 2.0 + 0.5
        rounded = between + (between.floor() - between).detach()  # straight through
        lattice = 2.0 / steps * rounded - 1.0
        index = (lattice.detach() + 1.0) / (2.0 / steps)
        codes = (index * self.basis).sum(-1).round().long()
        # Weights that have diverged give NaN here; the code must stay a code, so that the loss can show it.
        codes = codes.clamp(0, self.codebook_size - 1)
        flat = lattice.flatten(1)
        return Quantized(self.project_out(flat), codes, z.new_zeros(()), flat)

    def vectors_of(self, codes: Tensor) -> Tensor:
        return self.project_out(F.embedding(codes, self.lattice).flatten(1))

    def beside(self, codes: Tensor, slot: int) -> Tensor:
        steps, unit = [], 1
        for levels in self.config.fsq_levels:
            value = codes // unit % levels
            steps.append(torch.where(value < levels - 1, codes + unit, codes if levels > 2 else codes - unit))
            if levels > 2:  # with two values, up and down are the same
                steps.append(torch.where(value > 0, codes - unit, codes))
            unit *= levels
        return torch.stack(steps, dim=1)

    @torch.no_grad()
    def slopes(self, codes: Tensor, values: list[Tensor]) -> Tensor:
        """(S, Q·N) by how much the value of a code rises as one number of its lattice rises by 1.

        It is the slope between the codes below and above, at an end between the code and the one beside it. codes:
        (S, Q). values: for each slot (S, K or more), those of all its codes, up to a constant of the row.
        """
        out = []
        for slot, value in enumerate(values):
            code, unit = codes[:, slot], 1
            for dimension, levels in enumerate(self.config.fsq_levels):
                at = code // unit % levels
                below, above = (code + ((at + step).clamp(0, levels - 1) - at) * unit for step in (-1, 1))
                rise = (value.gather(1, above[:, None]) - value.gather(1, below[:, None]))[:, 0]
                out.append(rise / (self.lattice[above, dimension] - self.lattice[below, dimension]))
                unit *= levels
        return torch.stack(out, dim=1)
