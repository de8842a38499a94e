"""Vectors to codes and back. One contract, four kinds:

    fsq           finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505); no codebook to collapse
    vq            codebook moved by running means (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1)
    residual_vq   the same, each codebook quantizing what the ones before it left (SoundStream, arXiv 2107.03312)
    simvq         frozen codebook seen through one learned linear map (Zhu et al. 2024, arXiv 2411.02038)

Everything here runs in fp32: in bf16 a running mean with decay 0.99 stands still, and indices of one vector
differ from machine to machine.

Letters: S vectors, D width, Q codes a vector, K codes in a codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.bottlenecks.nearest_code import nearest_code
from abstractinator.components.transformer import GroupedLinear
from abstractinator.contract.model import TRAINING_ONLY

_NEAREST = 8  # codes of a codebook that count as neighbours of one

Kind = Literal["fsq", "vq", "residual_vq", "simvq"]


@dataclass(frozen=True)
class QuantizerConfig:
    """kind: see the module. codes_per_segment: Q. codebook_size: K of each codebook.

    fsq_levels: values per dimension of one FSQ code, their product being codebook_size; ignored elsewhere.
    decay: of the running means (vq, residual_vq). commitment: weight of ‖z − sg(code)‖² in the loss.
    revive_after: a code that was chosen by less than this share of an even split of the vectors, as a
    running mean, is moved onto a vector of the batch (vq, residual_vq); 0 switches it off.
    """

    kind: Kind = "fsq"
    codes_per_segment: int = 3
    codebook_size: int = 256
    fsq_levels: tuple[int, ...] = (2,) * 8
    decay: float = field(default=0.99, metadata=TRAINING_ONLY)
    commitment: float = field(default=0.25, metadata=TRAINING_ONLY)
    revive_after: float = field(default=0.05, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if self.codes_per_segment < 1:
            raise ValueError(f"codes_per_segment must be at least 1, not {self.codes_per_segment}")
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, not {self.codebook_size}")
        if self.kind == "fsq":
            if not self.fsq_levels or min(self.fsq_levels) < 2:
                raise ValueError(f"every one of fsq_levels must be at least 2, not {self.fsq_levels}")
            product = 1
            for level in self.fsq_levels:
                product *= level
            if product != self.codebook_size:
                raise ValueError(
                    f"codebook_size is {self.codebook_size} but the product of fsq_levels is {product}; "
                    "set both, for example codebook_size=512 fsq_levels=[8,8,8]"
                )
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {self.decay}")
        if self.commitment < 0:
            raise ValueError(f"commitment must be 0 or more, not {self.commitment}")
        if not 0 <= self.revive_after < 1:
            raise ValueError(f"revive_after must lie in [0, 1), not {self.revive_after}")


@dataclass(frozen=True)
class Quantized:
    """vectors: (S, D) with gradients to the input. codes: (S, Q) int64. loss: scalar of the quantizer's own.

    lattice: (S, Q·N) for fsq the rounded numbers, N a code, with gradients to what was rounded; otherwise None.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor
    lattice: Tensor | None = None


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The quantized value forward; its gradient to z (Bengio et al. 2013), and to the codes where they learn."""
    return quantized + (z - z.detach())


class EMACodebook(nn.Module):
    """K code vectors that are running means of the vectors assigned to them, with revival of dead codes."""

    codes: Tensor
    sums: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, size: int, width: int, decay: float, revive_after: float) -> None:
        super().__init__()
        self.decay, self.revive_after = decay, revive_after
        codes = torch.randn(size, width) * width**-0.5
        self.register_buffer("codes", codes)
        # Count 1 for each initial vector: with 0, the first division would blow codes up.
        self.register_buffer("sums", codes.clone())
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z: (S, D) → indices (S,), codes (S, D); in training the codebook follows z."""
        if self.training and len(z) and not self.started:
            self._start(z.detach())
        indices = nearest_code(z, self.codes)
        chosen = self.codes[indices]
        if self.training and len(z):
            self._follow(z.detach(), indices)
        return indices, chosen

    def of(self, indices: Tensor) -> Tensor:
        """(…) indices → (…, D) codes."""
        return self.codes[indices]

    @torch.no_grad()
    def _start(self, z: Tensor) -> None:
        """Begins at vectors of the first batch, which lie where the data lies."""
        picks = torch.randint(len(z), (len(self.codes),), device=z.device)
        noise = self.sums.normal_()  # its own values come last, so no further K×D array is needed
        torch.index_select(z.to(self.codes.dtype), 0, picks, out=self.codes)
        self.codes.add_(noise, alpha=float(z.std()) * 0.01 if z.numel() > 1 else 0.0)
        self.sums.copy_(self.codes)
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, z: Tensor, indices: Tensor) -> None:
        # Index-add in place: no S×K one-hot matrix and no second K×D array.
        keep = 1 - self.decay
        self.counts.mul_(self.decay).index_add_(0, indices, torch.ones_like(z[:, 0]), alpha=keep)
        self.sums.mul_(self.decay).index_add_(0, indices, z.to(self.sums.dtype), alpha=keep)
        torch.div(self.sums, self.counts.clamp(min=1e-6)[:, None], out=self.codes)
        dead = self.counts < self.revive_after * len(z) / len(self.codes)
        if self.revive_after and dead.any():
            self._revive(dead, z)

    def _revive(self, dead: Tensor, z: Tensor) -> None:
        """Moves dead codes onto vectors of the batch, with the count of an evenly used code."""
        places = dead.nonzero()[:, 0]
        picks = torch.randint(len(z), (len(places),), device=z.device)
        even = max(len(z) / len(self.codes), 1e-3)
        self.counts[places] = even
        for place, pick in zip(places.split(4096), picks.split(4096), strict=True):  # all K may be dead at once
            vectors = z[pick].to(self.codes.dtype)
            self.codes[place], self.sums[place] = vectors, vectors * even


class FrozenCodebook(nn.Module):
    """SimVQ: K fixed random vectors through one learned linear map, so that every code moves with each step."""

    basis: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.randn(size, width) * width**-0.5)
        self.map = nn.Linear(width, width, bias=False)

    @property
    def codes(self) -> Tensor:
        return self.map(self.basis)

    def of(self, indices: Tensor) -> Tensor:
        """(…) indices → (…, D) codes."""
        return self.map(self.basis[indices])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z: (S, D) → indices (S,), codes (S, D) with gradients to the map."""
        indices = nearest_code(z, self.codes.detach())
        return indices, self.of(indices)


class VectorQuantizer(nn.Module):
    """Quantizes (S, D) vectors to (S, Q) codes; see QuantizerConfig.

    vq and simvq split a vector into Q parts, each with a codebook of its own; residual_vq and its codebooks
    work on the whole width; fsq maps the vector to Q × len(fsq_levels) numbers and rounds them.
    groups: parts side by side that the vectors consist of (see GroupedLinear). Raises ValueError where `width`
    cannot be split.
    """

    def __init__(self, config: QuantizerConfig, width: int, groups: int = 1) -> None:
        super().__init__()
        self.config, self.width = config, width
        slots, size = config.codes_per_segment, config.codebook_size
        if config.kind == "fsq":
            from vector_quantize_pytorch import FSQ

            inner = slots * len(config.fsq_levels)
            self.lattice = FSQ(
                list(config.fsq_levels), num_codebooks=slots, keep_num_codebooks_dim=True, preserve_symmetry=True
            )
            self.project_in = GroupedLinear(width, inner, groups, bias=True)
            self.project_out = GroupedLinear(inner, width, groups, bias=True)
            return
        if config.kind != "residual_vq" and width % slots:
            raise ValueError(f"codes_per_segment ({slots}) must divide the quantizer's width ({width})")
        part = width if config.kind == "residual_vq" else width // slots
        books = [
            FrozenCodebook(size, part)
            if config.kind == "simvq"
            else EMACodebook(size, part, config.decay, config.revive_after)
            for _ in range(slots)
        ]
        self.codebooks = cast(Sequence[EMACodebook | FrozenCodebook], nn.ModuleList(books))

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.config.codebook_size

    def forward(self, z: Tensor) -> Quantized:
        """z: (S, D), packed valid vectors (there is no mask: padding is never a vector). S may be 0."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if not len(z):
                empty = torch.zeros(0, self.config.codes_per_segment, dtype=torch.int64, device=z.device)
                return Quantized(z, empty, z.sum())
            if self.config.kind == "fsq":
                return self._fsq(z)
            if self.config.kind == "residual_vq":
                return self._residual(z)
            return self._split(z)

    def encode(self, z: Tensor) -> Tensor:
        """z: (S, D) → codes (S, Q); changes no state."""
        was_training = self.training
        try:
            return self.eval()(z).codes
        finally:
            self.train(was_training)

    def decode(self, codes: Tensor) -> Tensor:
        """codes: (S, Q) → the quantized vectors (S, D) that `forward` gave with them."""
        with torch.autocast(codes.device.type, enabled=False):
            if self.config.kind == "fsq":
                return self.project_out(F.embedding(codes, self.lattice.implicit_codebook).flatten(1))
            parts = [book.of(codes[:, q]) for q, book in enumerate(self.codebooks)]
            if self.config.kind == "residual_vq":
                return torch.stack(parts).sum(0)
            return torch.cat(parts, dim=1)

    @torch.no_grad()
    def part(self, slot: int) -> Tensor:
        """(K, D): `decode` of codes is the sum over slots of the one of that slot's code."""
        size, device = self.config.codebook_size, next(self.buffers()).device
        codes = torch.zeros(size, self.config.codes_per_segment, dtype=torch.int64, device=device)
        codes[:, slot] = torch.arange(size, device=device)
        vectors = self.decode(codes)
        return vectors - vectors[:1] if slot else vectors

    @torch.no_grad()
    def neighbours(self, codes: Tensor) -> Tensor:
        """codes: (S, Q) → (S, M, Q): what lies next to them. One slot of each differs: for fsq by one step in one
        dimension (at its last value it stays), for the others it is one of the nearest codes of that codebook."""
        with torch.autocast(codes.device.type, enabled=False):
            changed = [self._beside(codes[:, slot], slot) for slot in range(codes.shape[1])]  # (S, M / Q) each
        out = [codes[:, None].repeat(1, beside.shape[1], 1) for beside in changed]
        for slot, beside in enumerate(changed):
            out[slot][:, :, slot] = beside
        return torch.cat(out, dim=1)

    def _beside(self, codes: Tensor, slot: int) -> Tensor:
        """(S,) codes of one slot → (S, N) those next to each."""
        if self.config.kind != "fsq":
            book = self.codebooks[slot].codes
            count = min(_NEAREST + 1, len(book))
            parts = [  # rows are few, codes may be many
                torch.cdist(book[part], book).topk(count, largest=False).indices[:, 1:] for part in codes.split(256)
            ]
            return torch.cat(parts)
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
        """(S, Q·N) by how much the value of a code rises as one number of its lattice rises by 1; fsq alone.

        It is the slope between the codes below and above, at an end between the code and the one beside it. codes:
        (S, Q). values: for each slot (S, K or more), those of all its codes, up to a constant of the row.
        """
        book, out = self.lattice.implicit_codebook, []
        for slot, value in enumerate(values):
            code, unit = codes[:, slot], 1
            for dimension, levels in enumerate(self.config.fsq_levels):
                place = code // unit % levels
                below, above = (code + ((place + step).clamp(0, levels - 1) - place) * unit for step in (-1, 1))
                rise = (value.gather(1, above[:, None]) - value.gather(1, below[:, None]))[:, 0]
                out.append(rise / (book[above, dimension] - book[below, dimension]))
                unit *= levels
        return torch.stack(out, dim=1)

    def _fsq(self, z: Tensor) -> Quantized:
        lattice, codes = self.lattice(self.project_in(z)[None])
        # Weights gone astray give NaN here; the code must stay a code, so that the loss can show it.
        codes = codes[0].long().clamp(0, self.config.codebook_size - 1)
        return Quantized(self.project_out(lattice[0]), codes, z.new_zeros(()), lattice[0])

    def _split(self, z: Tensor) -> Quantized:
        parts = z.chunk(len(self.codebooks), dim=1)
        indices, codes = zip(*(book(part) for book, part in zip(self.codebooks, parts, strict=True)), strict=True)
        return self._straight(z, torch.cat(codes, dim=1), torch.stack(indices, dim=1))

    def _residual(self, z: Tensor) -> Quantized:
        left, total, indices = z, torch.zeros_like(z), []
        for book in self.codebooks:
            index, code = book(left)
            left, total = left - code.detach(), total + code
            indices.append(index)
        return self._straight(z, total, torch.stack(indices, dim=1))

    def _straight(self, z: Tensor, quantized: Tensor, codes: Tensor) -> Quantized:
        loss = self.config.commitment * F.mse_loss(z, quantized.detach())
        if self.config.kind == "simvq":
            loss = loss + F.mse_loss(quantized, z.detach())
        return Quantized(straight_through(z, quantized), codes, loss)
