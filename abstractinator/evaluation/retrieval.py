"""Retrieval: the first half of a paragraph has to find its second half among those of all paragraphs, by cosine.

A paragraph is cut at the space nearest its middle. Of a half that is longer than a vector carries, only the part next
to the cut is taken, so that both methods read the same bytes. Beside the model stands a bag of byte n-grams: every 3-,
4- and 5-gram of a half, weighed by log(1 + count) × idf; the idf is estimated on the halves themselves.

Letters: P pairs, n distinct n-grams.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from abstractinator.contract.capabilities import Embeds, require
from abstractinator.contract.model import Model
from abstractinator.evaluation.at_rest import at_rest

_SHORTEST = 64  # bytes of a half; shorter ones say hardly what they are about
_SIZES = (3, 4, 5)
_AT_ONCE = 128  # texts


@dataclass(frozen=True)
class Ranks:
    """How often the other half came first, and among the first ten; the mean of 1 / its rank."""

    recall_at_1: float
    recall_at_10: float
    mrr: float

    @classmethod
    def of(cls, similarity: Tensor) -> Ranks:
        """similarity: (P, P) of query i and candidate j. Candidates that are equally similar count as better."""
        better = (similarity >= similarity.diagonal()[:, None]).sum(1).clamp(min=1).double()
        return cls(*(float(share.double().mean()) for share in (better <= 1, better <= 10, 1 / better)))


@dataclass(frozen=True)
class Retrieval:
    """pairs: how many paragraphs. bytes_a_half: on average. model, ngrams: of the two methods."""

    pairs: int
    bytes_a_half: float
    model: Ranks
    ngrams: Ranks

    @property
    def ratio(self) -> float:
        """The model's MRR over that of the n-grams."""
        return self.model.mrr / max(self.ngrams.mrr, 1e-12)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        rest = {"model": vars(self.model), "ngrams": vars(self.ngrams), "mrr_ratio": self.ratio}
        return {"pairs": self.pairs, "bytes_a_half": self.bytes_a_half} | rest


def halves(documents: Sequence[bytes], count: int, longest: int, seed: int) -> list[tuple[bytes, bytes]]:
    """`count` different paragraphs, drawn by seed, each as two texts of at most `longest` bytes next to the cut.

    A paragraph ends at an empty line, its lines are joined, and each half has at least 64 bytes. Raises ValueError
    where there are fewer of them.
    """
    paragraphs = {b" ".join(text.split()): None for document in documents for text in re.split(rb"\n\s*\n", document)}
    pairs = [pair for text in paragraphs if (pair := _cut(text)) and min(map(len, pair)) >= _SHORTEST]
    if len(pairs) < count:
        raise ValueError(f"the text has {len(pairs):,} paragraphs of at least 128 bytes, not {count:,}; set --pairs")
    chosen = random.Random(seed).sample(pairs, count)
    return [(_last(first, longest), _first(second, longest)) for first, second in chosen]


def _cut(text: bytes) -> tuple[bytes, bytes] | None:
    """Around the space nearest the middle; None without a space."""
    middle = len(text) // 2
    before, after = text.rfind(b" ", 0, middle + 1), text.find(b" ", middle)
    at = min((place for place in (before, after) if place >= 0), key=lambda place: abs(place - middle), default=-1)
    return (text[:at], text[at + 1 :]) if at >= 0 else None


def _first(text: bytes, longest: int) -> bytes:
    """The first `longest` bytes, up to the end of a character."""
    while longest and longest < len(text) and text[longest] & 0xC0 == 0x80:
        longest -= 1
    return text[:longest]


def _last(text: bytes, longest: int) -> bytes:
    """The last `longest` bytes, from the beginning of a character on."""
    at = max(len(text) - longest, 0)
    while 0 < at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return text[at:]


def ngram_similarity(queries: Sequence[bytes], candidates: Sequence[bytes]) -> Tensor:
    """(P, P) cosines of bags of n-grams."""
    bags = [
        Counter(text[i : i + n] for n in _SIZES for i in range(len(text) - n + 1)) for text in (*queries, *candidates)
    ]
    documents = Counter(gram for bag in bags for gram in bag)
    column = {gram: i for i, gram in enumerate(documents)}
    rows = torch.tensor([row for row, bag in enumerate(bags) for _ in bag])
    columns = torch.tensor([column[gram] for bag in bags for gram in bag])
    values = [math.log1p(n) * math.log((len(bags) + 1) / (documents[g] + 1)) for bag in bags for g, n in bag.items()]
    weights = torch.tensor(values)
    norms = torch.zeros(len(bags)).index_add_(0, rows, weights.square()).sqrt().clamp(min=1e-12)
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), weights / norms[rows], (len(bags), len(column)), check_invariants=True
    ).coalesce()
    half = len(queries)
    index = torch.arange(len(bags))
    return torch.sparse.mm(matrix.index_select(0, index[:half]), matrix.index_select(0, index[half:]).t()).to_dense()


def model_similarity(model: Model, queries: Sequence[bytes], candidates: Sequence[bytes]) -> Tensor:
    """(P, P) cosines of the model's vectors."""
    embeds, texts, vectors = require(model, Embeds), [*queries, *candidates], []
    with at_rest(model):
        for at in tqdm(range(0, len(texts), _AT_ONCE), desc="embedding", unit="batch", delay=2.0, leave=False):
            vectors.append(embeds.embed(texts[at : at + _AT_ONCE]).float().cpu())
    unit = F.normalize(torch.cat(vectors), dim=1)
    return unit[: len(queries)] @ unit[len(queries) :].t()


def measure_retrieval(model: Model, documents: Sequence[bytes], *, pairs: int, seed: int) -> Retrieval:
    """Of a model that is an `Embeds`. Raises ValueError for one that is not, and for text with too few paragraphs."""
    if pairs < 2:
        raise ValueError(f"--pairs must be at least 2, not {pairs}")
    require(model, Embeds)
    found = halves(documents, pairs, getattr(model, "longest_text", 512), seed)
    queries, candidates = [first for first, _ in found], [second for _, second in found]
    size = sum(map(len, [*queries, *candidates])) / (2 * pairs)
    return Retrieval(
        pairs,
        size,
        Ranks.of(model_similarity(model, queries, candidates)),
        Ranks.of(ngram_similarity(queries, candidates)),
    )
