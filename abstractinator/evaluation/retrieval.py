"""Whether vectors of texts tell what they are about: one half of a paragraph is to find the other among many.

Beside it stands what needs no model: a bag of byte n-grams, weighted by tf–idf (Salton & Buckley 1988).

Letters: P pairs, d width of a vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from abstractinator.contract.capabilities import Embeds
from abstractinator.contract.model import Model
from abstractinator.evaluation.at_rest import at_rest

_SIZES = (3, 4, 5)  # of n-grams, in bytes
_BUCKETS = 1 << 20  # into which they are hashed
_AT_ONCE = 64  # texts
_SHORTEST = 64  # bytes of a paragraph


@dataclass(frozen=True)
class Pair:
    """The two halves of a paragraph."""

    query: bytes
    target: bytes


@dataclass(frozen=True)
class Found:
    """recall_1, recall_10: share of the queries whose target is the nearest, or among the ten nearest. mrr: mean of
    1 / rank of the target (mean reciprocal rank)."""

    recall_1: float
    recall_10: float
    mrr: float


def paragraphs(documents: Sequence[bytes]) -> Iterator[bytes]:
    """The parts of documents between empty lines, without white space at the ends; those of _SHORTEST bytes and more,
    each once."""
    seen = set()
    for document in documents:
        for part in document.replace(b"\r\n", b"\n").split(b"\n\n"):
            paragraph = part.strip()
            if len(paragraph) >= _SHORTEST and paragraph not in seen:
                seen.add(paragraph)
                yield paragraph


def choose_pairs(documents: Sequence[bytes], count: int, longest: int, seed: int = 0) -> list[Pair]:
    """`count` paragraphs of the documents, drawn at random, in halves.

    A paragraph is cut at the space nearest to its middle. Of each half the bytes next to the cut are taken, `longest`
    of them at most. Raises ValueError where there are fewer paragraphs.
    """
    found = list(paragraphs(documents))
    if len(found) < count:
        raise ValueError(
            f"the text has {len(found):,} different paragraphs of {_SHORTEST} bytes and more, and {count:,} are "
            "wanted: lower --pairs, or give more text by --data"
        )
    chosen = np.random.default_rng(seed).permutation(len(found))[:count]
    return [halves(found[index], longest) for index in chosen.tolist()]


def halves(paragraph: bytes, longest: int) -> Pair:
    middle = len(paragraph) // 2
    before, after = paragraph.rfind(b" ", 0, middle + 1), paragraph.find(b" ", middle)
    spaces = [at for at in (before, after) if 0 < at < len(paragraph) - 1]
    cut = min(spaces, key=lambda at: abs(at - middle), default=middle)
    return Pair(paragraph[max(0, cut - longest) : cut], paragraph[cut:].lstrip(b" ")[:longest])


def embedded(model: Model, texts: Sequence[bytes]) -> Tensor:
    """(P, d) of a model that is an `Embeds`."""
    assert isinstance(model, Embeds)
    vectors = []
    with at_rest(model), tqdm(total=len(texts), desc="embedding", unit="text", delay=2.0, leave=False) as bar:
        for start in range(0, len(texts), _AT_ONCE):
            vectors.append(model.embed(texts[start : start + _AT_ONCE]).float().cpu())
            bar.update(len(vectors[-1]))
    return torch.cat(vectors)


def retrieve(queries: Tensor, targets: Tensor) -> Found:
    """The i-th query (P, d) is to find the i-th target (P, d) by cosine; of equal ones, half of the others come
    first."""
    return _ranked(F.normalize(queries, dim=-1) @ F.normalize(targets, dim=-1).t())


def retrieve_by_ngrams(pairs: Sequence[Pair]) -> Found:
    """The same by bags of byte n-grams, weighted by (1 + log tf) · log(2P / df) of these very texts."""
    texts = [pair.query for pair in pairs] + [pair.target for pair in pairs]
    counts = [_ngrams(text) for text in texts]
    frequency = np.zeros(_BUCKETS)
    for ids, _ in counts:
        frequency[ids] += 1
    weights = []
    for ids, number in counts:
        weight = (1 + np.log(number)) * np.log(len(texts) / frequency[ids])
        weights.append(weight / max(float(np.linalg.norm(weight)), 1e-9))
    half = len(pairs)
    bags = [(ids, weight) for (ids, _), weight in zip(counts, weights, strict=True)]
    queries, targets = _matrix(bags[:half]), _matrix(bags[half:])
    with warnings.catch_warnings():  # torch calls its sparse products a beta
        warnings.filterwarnings("ignore", message="Sparse CSR")
        return _ranked(torch.sparse.mm(queries, targets.t()).to_dense())


def _ngrams(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of a text's n-grams, and how often each occurs."""
    data = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)
    hashes = []
    for size in _SIZES:
        if len(data) >= size:
            windows = np.lib.stride_tricks.sliding_window_view(data, size)
            key = (windows << (8 * np.arange(size, dtype=np.uint64))).sum(axis=1, dtype=np.uint64)
            mixed = (key + np.uint64(size)) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing, modulo 2**64
            hashes.append((mixed >> np.uint64(44)).astype(np.int64))
    return np.unique(np.concatenate(hashes) if hashes else np.zeros(1, dtype=np.int64), return_counts=True)


def _matrix(bags: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """Sparse (P, _BUCKETS)."""
    rows = np.repeat(np.arange(len(bags)), [len(ids) for ids, _ in bags])
    columns, values = (np.concatenate([bag[i] for bag in bags]) for i in range(2))
    index = torch.from_numpy(np.stack([rows, columns]))
    return torch.sparse_coo_tensor(
        index, torch.from_numpy(values).float(), (len(bags), _BUCKETS), check_invariants=False
    ).coalesce()


def _ranked(similar: Tensor) -> Found:
    """(P, P) of queries and targets."""
    own = similar.diagonal()[:, None]
    ranks = 1 + (similar > own).sum(1) + ((similar == own).sum(1) - 1) / 2
    return Found(float((ranks <= 1).float().mean()), float((ranks <= 10).float().mean()), float((1 / ranks).mean()))
