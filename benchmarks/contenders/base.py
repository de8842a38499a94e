"""What every contender of the suite can do, and the accounting that is the same for all.

Rows are what our loader gives: (B, N) byte ids, documents one after the other as BOS bytes EOS, PAD only behind the
last. A row's first token is given; of all others the bytes are predicted. The nats of EOS count, EOS is no byte, and
BOS and PAD are not scored: as in `evaluate_held_out`.

Letters: B rows, N tokens a row, V classes.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.token_head import IGNORED
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.data import Corpus

_HEAD_WIDTH = 64
_TOLERANCE = 0.05  # of the number of parameters


@dataclass(frozen=True)
class Setting:
    """What a contender is built for. parameters: how many it shall have. folder: where it may keep what is made once
    from the training documents of `corpus`, which are read in the order of `seed`.

    autoencoder_fraction: see ExperimentConfig; of our own model's training.
    """

    parameters: int
    corpus: Corpus
    folder: Path
    seed: int = 0
    autoencoder_fraction: float = 0.05


def add_autoencoder_fraction(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark that trains our own model in so much time."""
    default = Setting.autoencoder_fraction
    parser.add_argument("--autoencoder-fraction", type=float, default=default, help="of our training; see config.py")


class Contender(nn.Module, ABC):
    """A language model of bytes in training. Every size of it follows from one number, `width`.

    learning_rate, muon_learning_rate: AdamW's and Muon's, from which the sweep goes out. modes: the ways in which it
    generates, the one that samples its own distribution of bytes first. remark: what a reader of the table must know.
    """

    learning_rate = 3e-3
    muon_learning_rate = 0.02
    modes: tuple[str, ...] = ("exact",)
    remark = ""

    @classmethod
    @abstractmethod
    def fit(cls, setting: Setting) -> int:
        """The width at which the model has `setting.parameters` ± 5 %. Raises ValueError where there is none."""

    @abstractmethod
    def nats(self, rows: Tensor) -> tuple[Tensor, int]:
        """(B, N) → the sum of −log p of what is predicted, exact, and over how many bytes."""

    def learn(self, rows: Tensor, done: float, first: bool) -> int:
        """Adds to the gradients those of the loss on (B, N) → how many bytes were predicted.

        done: share of the training that is behind. first: whether this is the training's first batch.
        """
        nats, bytes_ = self.nats(rows)
        (nats / max(bytes_, 1)).backward()
        return bytes_

    def two_part(self, rows: Tensor) -> tuple[Tensor, int] | None:
        """(B, N) → nats of codes and of bytes given codes, and over how many bytes; None where there are no codes."""
        return None

    @abstractmethod
    def positions(self, rows: Tensor) -> int:
        """How many positions of the main network these rows (B, N) take, BOS and EOS among them and PAD not."""

    @abstractmethod
    def stream(self, prompts: list[bytes], new_bytes: int, mode: str, seed: int) -> Iterator[int]:
        """Reads the prompts, which are of one length, in this call; then samples continuations of about `new_bytes`
        each, at temperature 1, and gives the number of new bytes as they come.

        seed: of a contender that draws from a generator of its own; the others draw from torch's.
        """


def read_tokens(rows: Tensor) -> int:
    """How many tokens of (B, N) something is predicted behind: all but PAD and a row's last."""
    return int((rows[:, :-1] != ByteTokenizer.PAD).sum())


def predicted_bytes(rows: Tensor) -> int:
    """How many bytes of (B, N) are predicted: all but a row's first token."""
    return int((rows[:, 1:] < ByteTokenizer.BYTES).sum())


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


def sample_bytes(logits: Tensor) -> Tensor:
    """(B, V) logits → (B,) bytes drawn at temperature 1; the text does not end."""
    return logits[:, : ByteTokenizer.BYTES].float().softmax(-1).multinomial(1)[:, 0]


def stream_by_rereading(next_logits: Callable[[Tensor], Tensor], rows: Tensor, new_bytes: int) -> Iterator[int]:
    """Generation without a cache: the whole text, of which `rows` (B, n) is the beginning, is read anew for each byte.
    next_logits: (B, n) → (B, V)."""
    for _ in range(new_bytes):
        rows = torch.cat([rows, sample_bytes(next_logits(rows))[:, None]], dim=1)
        yield len(rows)


def fitting_width(count: Callable[[int], int], parameters: int) -> int:
    """The width for which `count`, which grows with it, gives `parameters` ± 5 %.

    The coarsest step that comes there decides, since processors like round widths. Raises ValueError where none does.
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
