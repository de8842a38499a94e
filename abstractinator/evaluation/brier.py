"""BrierLM: how good samples of a model are, without a likelihood (Shao et al. 2025, arXiv 2510.27688, section 5).

Of n-grams of bytes, so that models compare whatever their tokens or chunks are. For a prefix, the next n bytes y and
two independent samples x₁ and x₂ of the model, the Brier score of the model's distribution P, 2 P(y) − Σ P(x)², is
estimated without bias by 1{x₁ = y} + 1{x₂ = y} − 1{x₁ = x₂}.

Letters: R prefixes, n = 1 … 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from abstractinator.contract.capabilities import Generates
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Model
from abstractinator.evaluation.at_rest import at_rest

LONGEST = 4  # bytes of an n-gram
_RESAMPLES = 1_000
_DRAWS = 2  # x₁ and x₂


@dataclass(frozen=True)
class Prefix:
    """context: bytes that the model is given. following: the LONGEST bytes that come next."""

    context: bytes
    following: bytes


@dataclass(frozen=True)
class BrierLM:
    """value: 100 × (∏ Brier-n)^¼, 0 where one of the four estimates is not above 0. low, high: its 95 % interval, by
    bootstrap over prefixes. scores: Brier-n for n = 1 … 4."""

    value: float
    low: float
    high: float
    scores: tuple[float, ...]

    @classmethod
    def of(cls, estimates: np.ndarray, seed: int = 0) -> BrierLM:
        """estimates: (R, 4), of each prefix and each n."""
        random = np.random.default_rng([seed, 2])
        size = len(estimates)
        resampled = [_combined(estimates[random.integers(size, size=size)].mean(0)) for _ in range(_RESAMPLES)]
        low, high = np.percentile(resampled, [2.5, 97.5])
        scores = estimates.mean(0)
        return cls(_combined(scores), float(low), float(high), tuple(float(score) for score in scores))

    def plain(self) -> dict[str, object]:
        return {"brier_lm": self.value, "low": self.low, "high": self.high, "brier": list(self.scores)}


def _combined(scores: np.ndarray) -> float:
    return 100 * float(np.prod(np.maximum(scores, 0.0))) ** (1 / LONGEST)


def choose_prefixes(documents: Sequence[bytes], count: int, context: int, seed: int = 0) -> list[Prefix]:
    """Prefixes of `context` bytes from everywhere in the documents, each place as likely as any other.

    They depend on the documents, `count`, `context` and `seed` alone. Raises ValueError where no document is long
    enough.
    """
    places = np.array([max(0, len(document) - context - LONGEST + 1) for document in documents])
    if not places.sum():
        raise ValueError(
            f"no document has {context + LONGEST} bytes, a context of {context} and the {LONGEST} after it; lower "
            "--context, or give longer texts by --data"
        )
    ends = places.cumsum()
    chosen = np.random.default_rng([seed, 0]).integers(ends[-1], size=count)
    found = []
    for place in chosen.tolist():
        index = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[index] - places[index])
        middle = start + context
        found.append(Prefix(documents[index][start:middle], documents[index][middle : middle + LONGEST]))
    return found


def brier_lm(model: Model, prefixes: Sequence[Prefix], *, batch_size: int = 64, seed: int = 0) -> BrierLM:
    """Of a model that is a `Generates`, in its `harness_mode`, at temperature 1 and with nothing cut off."""
    random = np.random.default_rng([seed, 1])
    draws: list[list[bytes]] = [[] for _ in range(_DRAWS)]
    with at_rest(model), tqdm(total=len(prefixes), desc="sampling", unit="prefix", delay=2.0, leave=False) as bar:
        for start in range(0, len(prefixes), batch_size):
            contexts = [prefix.context for prefix in prefixes[start : start + batch_size]]
            for samples in draws:
                samples += _samples(model, contexts, int(random.integers(2**62)))
            bar.update(len(contexts))
    return BrierLM.of(estimates_of([prefix.following for prefix in prefixes], *draws), seed)


def _samples(model: Model, contexts: list[bytes], seed: int) -> list[bytes]:
    """The next bytes of each context; fewer than LONGEST where the model ends the text."""
    assert isinstance(model, Generates)
    config = GenerationConfig(
        mode=model.harness_mode, max_new_bytes=LONGEST, temperature=1.0, top_k=0, top_p=1.0, seed=seed
    )
    texts = [bytearray() for _ in contexts]
    for piece in model.stream(contexts, config):
        texts[piece.prompt] += piece.data
    return [bytes(text) for text in texts]


def estimates_of(truth: Sequence[bytes], first: Sequence[bytes], second: Sequence[bytes]) -> np.ndarray:
    """(R, 4) estimates of Brier-n. A sample that ends before n bytes is another n-gram than every longer one."""
    estimates = np.empty((len(truth), LONGEST))
    for row, (y, x1, x2) in enumerate(zip(truth, first, second, strict=True)):
        for n in range(1, LONGEST + 1):
            estimates[row, n - 1] = (x1[:n] == y[:n]) + (x2[:n] == y[:n]) - float(x1[:n] == x2[:n])
    return estimates


def unigram_brier_lm(documents: Sequence[bytes], prefixes: Sequence[Prefix], seed: int = 0) -> BrierLM:
    """Of a sampler that draws each byte by its frequency in the documents; computed, not sampled."""
    counts = np.zeros(256)
    for text in documents:
        counts += np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)
    shares = counts / counts.sum()
    following = np.array([list(prefix.following) for prefix in prefixes])
    right = shares[following].cumprod(axis=1)
    agree = np.square(shares).sum() ** np.arange(1, LONGEST + 1)
    return BrierLM.of(2 * right - agree, seed)
