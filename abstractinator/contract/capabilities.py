"""What a kind of model may offer in addition to training. Each capability has one consumer in the frame.

A kind that lacks one does not define it, and the command that needs it says so in one line (`require`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

C = TypeVar("C")


@dataclass(frozen=True)
class Latents:
    """What a model makes of texts. positions: how many there are for all texts together. bits: what they take when
    stored plainly. values: the kind's own form, which `decode` reads. unit: the name of a position, in the plural."""

    positions: int
    bits: float
    values: Any
    unit: str = "latents"


@runtime_checkable
class Reconstructs(Protocol):
    """Texts to latents and back. Consumer: the end of a training, which shows a text beside its reconstruction."""

    def encode(self, texts: Sequence[bytes]) -> Latents:
        """The latents from which `decode` restores the texts."""

    def decode(self, latents: Latents) -> list[bytes]:
        """The most probable texts, from the latents alone."""


@runtime_checkable
class Embeds(Protocol):
    """Texts to one vector each, and back. Consumer: the retrieval check.

    longest_text: tokens of the longest text that `embed` takes.
    """

    longest_text: int

    def embed(self, texts: Sequence[bytes]) -> Tensor:
        """(B, d) a vector for each text. Raises ValueError for a text that is too long for one."""

    def reconstruct(self, embeddings: Tensor) -> list[bytes]:
        """The most probable texts, greedily, from their vectors (B, d) alone."""


@dataclass(frozen=True)
class Passage:
    """Bytes to score and the bytes before them.

    context: given, not scored. continuation: scored, every byte once; not empty. begins: whether a document begins with
    the context; false for a window from the middle of one.
    """

    context: bytes
    continuation: bytes
    begins: bool = True

    def __len__(self) -> int:
        return self.begins + len(self.context) + len(self.continuation)


@dataclass(frozen=True)
class Score:
    """nll: −log p of the continuation, in nats. is_greedy: whether every byte of it is the most probable one."""

    nll: float
    is_greedy: bool


@runtime_checkable
class Scores(Protocol):
    """Likelihoods of texts. Consumer: lm-evaluation-harness (`evaluate`).

    scorings: names of the likelihoods that it has, the default first. window_context: for each of them, the bytes of
    context that a window from the middle of a text needs. length_factor: optional; how many rows of its training
    a passage may be long by default. Without it, one.
    """

    scorings: ClassVar[tuple[str, ...]]
    window_context: ClassVar[dict[str, int]]

    def score(self, passages: Sequence[Passage], scoring: str) -> list[Score]:
        """A score for each passage."""


@dataclass(frozen=True)
class Piece:
    """More bytes of one prompt's continuation. prompt: its index in the list of prompts."""

    prompt: int
    data: bytes


@runtime_checkable
class Generates(Protocol):
    """Continuations of prompts. Consumers: `generate`, samples in a training, the harness.

    modes: ways to generate, the default first. sample_modes: those shown in samples. harness_mode: the one whose
    distribution its likelihood measures.
    """

    modes: ClassVar[tuple[str, ...]]
    sample_modes: ClassVar[tuple[str, ...]]
    harness_mode: ClassVar[str]

    def stream(self, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
        """The continuations as they are made; an empty prompt is the beginning of a document. Raises ValueError for an
        unknown mode and for no prompt."""


@runtime_checkable
class Shows(Protocol):
    """Figures of what the model does with a batch. Consumer: the validation in a training."""

    def figures(self, batch: Batch) -> dict[str, Figure]:
        """matplotlib figures by name."""


_VERBS = {
    Reconstructs: "reconstruct texts",
    Embeds: "embed texts",
    Scores: "score texts",
    Generates: "generate text",
    Shows: "show figures",
}


def require(model: Model, capability: type[C]) -> C:
    """The model as one with a capability. Raises ValueError, in one line that says what it can, where it has not."""
    if not isinstance(model, capability):
        able = [verb for other, verb in _VERBS.items() if isinstance(model, other)]
        rest = f"; it can {', '.join(able)}" if able else ""
        raise ValueError(f"a model of kind {model.kind} cannot {_VERBS[capability]}{rest}")
    return model
