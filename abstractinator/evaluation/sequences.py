"""Test sets of sequences of one length: real text without rare tokens, and random tokens.

A file has one JSON object a line: {"text": …}, or {"base64": …} where a sequence is not UTF-8.

Letters: n sequences, N tokens each, V the ids that stand for text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abstractinator.atomic_file import atomic_write
from abstractinator.contract.tokenizer import Tokenizer


@dataclass(frozen=True)
class TestSetConfig:
    """sequences: n, the most. length: N. percentile: of the training frequencies of the tokens that occur; a sequence
    with a token below it, or with one that does not occur, is left out. seed: of cuts and random tokens."""

    __test__ = False  # no test of pytest's

    sequences: int = 5_000
    length: int = 512
    percentile: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ValueError(f"--sequences must be at least 1, not {self.sequences}")
        if self.length < 2:
            raise ValueError(f"--length must be at least 2 tokens, not {self.length}")
        if not 0 <= self.percentile < 100:
            raise ValueError(f"--percentile must be 0 or more and below 100, not {self.percentile:g}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"--seed must be 0 or more and below 2**64, not {self.seed}")


def token_counts(documents: Iterable[bytes], tokenizer: Tokenizer) -> np.ndarray:
    """(V,) how often each token occurs."""
    counts = np.zeros(tokenizer.text_size, dtype=np.int64)
    for document in documents:
        counts += np.bincount(tokenizer.text_ids(document), minlength=tokenizer.text_size)
    return counts


def common_tokens(counts: np.ndarray, percentile: float) -> np.ndarray:
    """(V,) bool: tokens that occur, and not more rarely than this percentile of those that do."""
    seen = counts[counts > 0]
    if not len(seen):
        raise ValueError("the training text has no tokens; name a file or folder with text by --train")
    common: np.ndarray = counts >= max(1.0, float(np.percentile(seen, percentile)))
    return common


def real_sequences(
    documents: Sequence[bytes], tokenizer: Tokenizer, config: TestSetConfig, common: np.ndarray | None = None
) -> np.ndarray:
    """(n, N) ids of text: each document is cut, from a random beginning on, into sequences that do not overlap, and n
    of all of them are drawn. common: see `common_tokens`; None allows all tokens.

    Raises ValueError where fewer than n remain.
    """
    random, found = np.random.default_rng(config.seed), []
    for document in documents:
        ids = tokenizer.text_ids(document)
        spare = len(ids) % config.length if len(ids) >= config.length else 0
        start = int(random.integers(spare + 1))
        whole = (len(ids) - start) // config.length
        found.append(ids[start : start + whole * config.length].reshape(whole, config.length))
    sequences = np.concatenate(found) if found else np.zeros((0, config.length), dtype=np.int64)
    cut = len(sequences)
    if common is not None and cut:
        sequences = sequences[common[sequences].all(axis=1)]
    if len(sequences) < config.sequences:
        raise ValueError(
            f"the text has {cut:,} sequences of {config.length} tokens, of which {len(sequences):,} have no rare "
            f"token; {config.sequences:,} are wanted: give more text, or lower --sequences, --length or --percentile"
        )
    return sequences[np.sort(random.permutation(len(sequences))[: config.sequences])].astype(np.int64)


def random_sequences(config: TestSetConfig, tokenizer: Tokenizer) -> np.ndarray:
    """(n, N) ids, each of the V equally probable."""
    random = np.random.default_rng([config.seed, 1])
    return random.integers(tokenizer.text_size, size=(config.sequences, config.length))


def statistics_of(counts: np.ndarray, common: np.ndarray) -> dict[str, Any]:
    """What is known of the tokens of a training text."""
    shares = counts[counts > 0] / counts.sum()
    return {
        "vocabulary": len(counts),
        "tokens": int(counts.sum()),
        "different_tokens": int((counts > 0).sum()),
        "common_tokens": int(common.sum()),
        "smallest_count_of_a_common_token": int(counts[common].min()),
        "bits_per_token_by_frequency": float(-(shares * np.log2(shares)).sum()),
        "counts": counts.tolist(),
    }


def json_of(text: bytes, name: str = "text") -> dict[str, str]:
    """{name: text}, or {name_base64: …} for bytes that are not UTF-8; "text" becomes "base64"."""
    try:
        return {name: text.decode()}
    except UnicodeDecodeError:
        return {"base64" if name == "text" else f"{name}_base64": base64.b64encode(text).decode()}


def write_sequences(path: Path, texts: Iterable[bytes]) -> None:
    """Writes a test set, atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(json_of(text), ensure_ascii=False) + "\n" for text in texts)


def read_sequences(path: Path) -> list[bytes]:
    """The texts of a test set. Raises ValueError, which names the line, for a file that is none."""
    texts = []
    with open(path, encoding="utf-8", errors="strict") as file:
        try:
            for number, line in enumerate(file, 1):
                texts.append(_text_of(line, path, number))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is no test set, as it is not UTF-8; make one by abstractinator testset"
            ) from error
    if not texts:
        raise ValueError(f"{path} has no sequences; make a test set by abstractinator testset")
    return texts


def _text_of(line: str, path: Path, number: int) -> bytes:
    try:
        entry = json.loads(line)
        return entry["text"].encode() if "text" in entry else base64.b64decode(entry["base64"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}, line {number}: not a JSON object with `text` or `base64`; make a test set by abstractinator "
            "testset"
        ) from error
