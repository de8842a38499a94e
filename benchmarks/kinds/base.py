"""What every baseline has in common: it is a kind of model, and its accounting is the same for all.

Rows are what the loader gives: (B, N) byte ids, documents one after the other as BOS bytes EOS, PAD only at the end of
the last. A row's first token is given; of all others the bytes are predicted. The nats of EOS count, EOS is no byte,
and BOS and PAD are not scored: as in the held-out measurement.

Letters: B rows, N tokens a row, V classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.sampling import Sampler, WrittenText
from abstractinator.components.token_head import IGNORED
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Piece
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, Losses, Mean, Metric, Model, Sums
from abstractinator.data import Corpus

_HEAD_WIDTH = 64
_TOLERANCE = 0.05  # of the number of parameters
_BITS = 1 / math.log(2)


@dataclass(frozen=True)
class Setting:
    """What a baseline is sized for. parameters: how many it is to have. folder: where it may keep what is made once
    from the training documents of `corpus`, which are read in the order of `seed`.
    """

    parameters: int
    corpus: Corpus
    folder: Path
    seed: int = 0


class Baseline(Model):
    """A language model of bytes to compare with: a kind whose loss is −log p of the bytes.

    learning_rate, muon_learning_rate: AdamW's and Muon's, from which a sweep starts. remark: what a reader of the table
    must know.
    """

    headline: ClassVar[str] = "bits_per_byte_exact"
    modes: ClassVar[tuple[str, ...]] = ("exact",)
    sample_modes: ClassVar[tuple[str, ...]] = ("exact",)
    harness_mode: ClassVar[str] = "exact"
    learning_rate: ClassVar[float] = 3e-3
    muon_learning_rate: ClassVar[float] = 0.02
    remark: ClassVar[str] = ""

    @classmethod
    @abstractmethod
    def sized(cls, setting: Setting) -> Any:
        """The Config with which the model has `setting.parameters` ± 5 %. Raises ValueError where there is none."""

    @abstractmethod
    def nll(self, rows: Tensor) -> tuple[Tensor, int]:
        """(B, N) → the sum of −log p of what is predicted, exact, in nats, and over how many bytes."""

    def nll_and_loss(self, rows: Tensor) -> tuple[Tensor, Tensor, int]:
        """`nll`, and the sum that is minimised in its place where it has further terms."""
        nll, count = self.nll(rows)
        return nll, nll, count

    @abstractmethod
    def positions(self, rows: Tensor) -> int:
        """How many positions of the main network these rows (B, N) take, BOS and EOS among them and PAD not."""

    @abstractmethod
    def continuations(self, prompts: list[bytes], config: GenerationConfig) -> Iterator[list[bytes]]:
        """More bytes of each of these prompts, which are of one length, step by step without an end; the prompts are
        read before the first step."""

    def forward(self, batch: Batch, phase: str) -> Losses:
        nll, loss, count = self.nll_and_loss(batch.ids)
        weight = torch.tensor(max(count, 1), device=batch.ids.device)
        return Losses(loss, weight, {"bits_per_byte_exact": Mean(nll.detach() * _BITS, weight)})

    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        nll, count = self.nll(batch.ids)
        return {"bytes": batch.bytes, "predicted_bytes": count, "exact_nll": float(nll)}

    def metrics(self, sums: Sums) -> dict[str, Metric]:
        bits = float(sums["exact_nll"]) * _BITS / max(float(sums["predicted_bytes"]), 1.0)
        return {"bits_per_byte_exact": Metric(bits, "bits per byte, exact")}

    def stream(self, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
        if not prompts:
            raise ValueError("no prompt was given")
        if config.mode not in (None, *self.modes):
            raise ValueError(f"mode must be one of {', '.join(self.modes)}, not {config.mode!r}")
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        groups = [list(same) for _, same in groupby(order, key=lambda index: len(prompts[index]))]
        steps = [self.continuations([prompts[index] for index in group], config) for group in groups]
        return self._pieces(groups, steps, prompts, config)

    def _pieces(
        self,
        groups: list[list[int]],
        steps: list[Iterator[list[bytes]]],
        prompts: Sequence[bytes],
        config: GenerationConfig,
    ) -> Iterator[Piece]:
        """Of each group of prompts the bytes of its steps, until all its texts have ended."""
        for group, more in zip(groups, steps, strict=True):
            texts = [WrittenText(prompts[index], config) for index in group]
            while not all(text.ended for text in texts):
                for index, text, data in zip(group, texts, next(more), strict=True):
                    text.write(data)
                    if shown := text.take():
                        yield Piece(index, shown)


def read_tokens(rows: Tensor) -> int:
    """After how many tokens of (B, N) something is predicted: all but PAD and a row's last."""
    return int((rows[:, :-1] != ByteTokenizer.PAD).sum())


def predicted_bytes(rows: Tensor) -> int:
    """How many bytes of (B, N) are predicted: all but a row's first token."""
    return int((rows[:, 1:] < ByteTokenizer.text_size).sum())


def targets_of(rows: Tensor) -> Tensor:
    """(B, N) → (B, N - 1) what is predicted at each position but the last; IGNORED for BOS and PAD."""
    targets = rows[:, 1:]
    return targets.masked_fill((targets == ByteTokenizer.BOS) | (targets == ByteTokenizer.PAD), IGNORED)


def nll_of(logits: Tensor, rows: Tensor) -> tuple[Tensor, int]:
    """Logits (B, N - 1, V) of the token after each of (B, N) but the last → sum of −log p, and over how many bytes."""
    nats = F.cross_entropy(logits.float().flatten(0, 1), targets_of(rows).flatten(), reduction="sum")
    return nats, predicted_bytes(rows)


def prompt_rows(prompts: list[bytes], model: nn.Module) -> Tensor:
    """(B, 1 + n) BOS and the bytes of prompts of one length n, where the model is."""
    rows = [[ByteTokenizer.BOS, *prompt] for prompt in prompts]
    return torch.tensor(rows, device=next(model.parameters()).device)


class ByteSampler:
    """Draws bytes from logits (B, V) as a GenerationConfig says; a text does not end."""

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self._sample = Sampler(config, device)

    def __call__(self, logits: Tensor) -> Tensor:
        return self._sample(logits[:, : ByteTokenizer.text_size].float())


def as_bytes(values: Tensor) -> list[bytes]:
    """(B,) → a byte for each row."""
    return [bytes([value]) for value in values.tolist()]


@torch.no_grad()
def reread(next_logits: Callable[[Tensor], Tensor], rows: Tensor, config: GenerationConfig) -> Iterator[list[bytes]]:
    """Generation without a cache: the whole text, which begins with `rows` (B, n), is read again for each byte.
    next_logits: (B, n) → (B, V)."""
    sample = ByteSampler(config, rows.device)
    while True:
        with torch.no_grad():
            byte = sample(next_logits(rows))
        rows = torch.cat([rows, byte[:, None]], dim=1)
        yield as_bytes(byte)


def fitting_width(count: Callable[[int], int], parameters: int) -> int:
    """The width for which `count`, which grows with it, gives `parameters` ± 5 %.

    The coarsest step that reaches it decides, since processors like round widths. Raises ValueError where none does.
    """
    for step in (16, 8, 4, 2):
        width = closest_width(count, parameters, step)
        if within_tolerance(count(width), parameters):
            return width
    raise ValueError(f"no size of about {parameters:,} parameters; the closest has {count(width):,}")


def closest_width(count: Callable[[int], int], parameters: int, step: int) -> int:
    """The multiple of `step` for which `count`, which grows with it, comes closest to `parameters`."""
    low, high = 1, 2
    while count(high * step) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * step) < parameters else (low, middle)
    return min((low * step, high * step), key=lambda width: abs(count(width) - parameters))


def heads_for(width: int) -> int:
    """How many attention heads suit this even width: the most that are at least 64 wide each, of one even width."""
    return next(heads for heads in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % (2 * heads) == 0)


def within_tolerance(count: int, parameters: int) -> bool:
    """Whether a model of `count` parameters counts as one of `parameters`."""
    return abs(count / parameters - 1) <= _TOLERANCE


def parameters_on_meta(build: Callable[[], nn.Module]) -> int:
    """How many parameters `build()` makes, without giving them memory or values."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())
