"""The base class of every kind of model, and what training and measuring exchange with it.

Letters: B rows, N token ids a row.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.tokenizer import Tokenizer

Sums = dict[str, float | Tensor]
"""Additive quantities of held-out text, on the CPU: those of two batches are added key by key."""

_BYTES = ByteTokenizer()
# Named so here and in transformers; or one of a list of that name.
_OUTPUT_LAYER = re.compile(r"(.*\.)?(to_logits|lm_head)(\.\d+)*")
_SMALLEST_SIDE = 32  # an orthogonal update of a 384×9 matrix would move all of it at once


@dataclass(frozen=True)
class RowLayout:
    """How documents become rows of token ids.

    length: N, token ids in a row. documents: "packed" ones are each BOS, text, EOS, and rows are cut from all of them
    end to end; of "separate" ones each row has one text: BOS, at most N − 2 token ids, EOS, PAD …, and a longer
    document becomes several rows. multiple_of: K, of packed documents; each is filled up with PAD, before its BOS, to a
    multiple of K ids, so that it ends where a chunk of K ids ends.
    """

    length: int
    documents: Literal["packed", "separate"] = "packed"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        least = 2 if self.documents == "packed" else 3
        if self.length < least:
            raise ValueError(f"a row has at least {least} token ids, not {self.length}")
        if self.multiple_of < 1 or self.length % self.multiple_of:
            raise ValueError(
                f"a row of {self.length} token ids does not divide into chunks of {self.multiple_of}; set "
                f"sequence_length to a multiple of {self.multiple_of}"
            )


@dataclass(frozen=True)
class Batch:
    """ids: (B, N) int64 token ids, PAD where the layout puts it. bytes: how many raw bytes they stand for."""

    ids: Tensor
    bytes: int

    @classmethod
    def of(cls, ids: Tensor, tokenizer: Tokenizer = _BYTES) -> Batch:
        """A batch of rows (B, N) on the CPU."""
        return cls(ids, tokenizer.count_bytes(ids))

    def pinned(self) -> Batch:
        """The same batch in memory from which a GPU copies by itself."""
        return replace(self, ids=self.ids.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device. A pinned batch is copied without waiting for the copy."""
        return replace(self, ids=self.ids.to(device, non_blocking=self.ids.is_pinned()))


@dataclass(frozen=True)
class Phase:
    """A part of a training, in which the same losses are trained.

    end: share of the training after which it is over; the last phase ends at 1. cost: time of a step, relative to the
    other phases; a first guess from which the frame plans a training that is limited in time.
    """

    name: str
    end: float = 1.0
    cost: float = 1.0


@dataclass(frozen=True)
class Mean:
    """A mean that adds up: `total / weight`, both scalar tensors, summed over micro-batches and ranks apart."""

    total: Tensor
    weight: Tensor

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> Tensor:
        """The mean; 0 where nothing was weighed."""
        return self.total / self.weight.clamp(min=1e-12)


@dataclass(frozen=True)
class Losses:
    """What one micro-batch costs.

    total: the sum to be minimised, with gradients. weight: what to divide it by, such as the predicted bytes; the frame
    divides once, by the weight of all micro-batches of a step. parts: what to report, by name, the most telling first
    (see `headline_parts`). A phase reports only what it trains.
    """

    total: Tensor
    weight: Tensor
    parts: Mapping[str, Mean]


def headline_parts(names: Iterable[str]) -> list[str]:
    """The parts that people are shown: curves of all of them, the first two in the progress bar. A name with a "/",
    such as `group/part`, is a detail, which is logged and not shown."""
    return [name for name in names if "/" not in name]


@dataclass(frozen=True)
class Metric:
    """A measured number. label, form: how it is shown to people, such as "bits per byte" and ".3f"."""

    value: float
    label: str
    form: str = ".3f"

    def __str__(self) -> str:
        return format(self.value, self.form)


class Model(nn.Module, ABC):
    """A kind of model. `capabilities` has what it may offer in addition; what it cannot do, it does not define.

    kind: the name in `model.kind` and in checkpoints. Config: the dataclass of its settings, with a field `kind`, whose
    values are checked when it is made; a field with metadata `TRAINING_ONLY` says how it learns and not what it is, and
    may differ when a run is resumed. headline: the held-out metric that ranks checkpoints, the lowest is the best.

    takes_tokenizer: whether the constructor takes a tokenizer as its second argument. A kind that does not reads bytes.

    The constructor reads no values that torch.nn.init sets: where a checkpoint is loaded, they are not set.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    headline: ClassVar[str]
    takes_tokenizer: ClassVar[bool] = False

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None) -> None:
        """tokenizer: of the ids in batches; None is that of bytes."""
        super().__init__()
        self.config, self.tokenizer = config, tokenizer or _BYTES

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def layout(self, length: int) -> RowLayout:
        """The rows that this kind learns from and is measured on, of `length` token ids."""
        return RowLayout(length)

    def phases(self) -> tuple[Phase, ...]:
        """The phases of a training, in order; there is at least one."""
        return (Phase("all"),)

    @abstractmethod
    def forward(self, batch: Batch, phase: str) -> Losses:
        """The losses of a batch on the model's device. It is all that a training step calls before `backward`."""

    def after_backward(self, losses: Losses, *, done: float, first: bool) -> None:
        """Changes what has no gradients, such as thresholds: called after each micro-batch's backward pass.

        done: share of the training that is over. first: whether this is the first micro-batch of the training.
        """

    @abstractmethod
    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        """Additive sums over held-out rows on the model's device, in evaluation mode and without gradients.

        generator: on the CPU, for what is drawn at random. Among the sums is `bytes`, the raw bytes measured.
        """

    @abstractmethod
    def metrics(self, sums: Sums) -> dict[str, Metric]:
        """What sums of any number of batches come to, `headline` among them, in the order in which people read it."""

    def describe(self) -> dict[str, str]:
        """What this model is, as rows of a table: name and text."""
        return {}

    def muon_parameters(self) -> list[nn.Parameter]:
        """The parameters for Muon: weights of hidden linear and convolution layers. AdamW gets the others.

        An output layer is called `to_logits` or `lm_head`, or is one of a list of that name. A kind whose output layer
        has another name defines this method itself.
        """
        layers = {
            id(module.weight)
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
            and not _OUTPUT_LAYER.fullmatch(name)
            and min(module.weight.flatten(1).shape) >= _SMALLEST_SIDE
        }
        return [parameter for parameter in self.parameters() if id(parameter) in layers and parameter.requires_grad]


TRAINING_ONLY: dict[str, Any] = {"training_only": True}
"""Metadata of a setting that may differ when a run is resumed: `field(default=…, metadata=TRAINING_ONLY)`."""
