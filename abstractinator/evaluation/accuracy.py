"""How exactly a model reconstructs texts from its latents, greedily.

A token is right if the reconstruction has the same one at the same position, counted from the beginning; tokens that
the reconstruction lacks are wrong, and those that it has in addition make the sequence wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from abstractinator.contract.capabilities import Reconstructs
from abstractinator.contract.model import Model
from abstractinator.contract.tokenizer import Tokenizer
from abstractinator.evaluation.at_rest import at_rest
from abstractinator.evaluation.sequences import json_of


@dataclass(frozen=True)
class Accuracy:
    """tokens, right_tokens: of the model's tokenizer, bytes by default. sequences, right_sequences. positions: latents
    of all texts. stored_bits: what these take. bytes: of all texts."""

    tokens: int
    right_tokens: int
    sequences: int
    right_sequences: int
    positions: int
    stored_bits: float
    bytes: int

    def plain(self) -> dict[str, float]:
        """Shares and numbers a byte, as JSON."""
        size = max(self.bytes, 1)
        return {
            "token_accuracy": self.right_tokens / max(self.tokens, 1),
            "sequence_accuracy": self.right_sequences / max(self.sequences, 1),
            "positions_per_byte": self.positions / size,
            "stored_bits_per_byte": self.stored_bits / size,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class ErrorCase:
    """A text that is not reconstructed. index: of the text in its set."""

    index: int
    text: bytes
    reconstruction: bytes

    def plain(self, name: str) -> dict[str, Any]:
        """As a line of error_cases.jsonl; `differences` are the (start, end) of the stretches of bytes that differ."""
        texts = json_of(self.text) | json_of(self.reconstruction, "reconstruction")
        return {"set": name, "index": self.index, **texts, "differences": differences(self.text, self.reconstruction)}


def differences(text: bytes, restored: bytes) -> list[tuple[int, int]]:
    """The stretches of positions, (start, end), at which two texts differ; where one is longer, its rest differs."""
    size = max(len(text), len(restored))
    differs = np.ones(size + 2, dtype=bool)
    common = min(len(text), len(restored))
    a, b = (np.frombuffer(each, dtype=np.uint8)[:common] for each in (text, restored))
    differs[1 : 1 + common] = a != b
    differs[0] = differs[-1] = False
    edges = np.flatnonzero(differs[1:] != differs[:-1])
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def measure_accuracy(
    model: Model, texts: Sequence[bytes], *, batch_size: int, name: str = ""
) -> tuple[Accuracy, list[ErrorCase]]:
    """The accuracy of a model that is a `Reconstructs`, and what it gets wrong."""
    sums, cases = np.zeros(6), []
    with at_rest(model), tqdm(total=len(texts), desc=name, unit="text", delay=2.0, leave=False) as bar:
        for start, batch, restored, positions, bits in _reconstructed(model, texts, batch_size):
            sums[4:] += positions, bits
            for index, (text, again) in enumerate(zip(batch, restored, strict=True), start):
                right, tokens = _right_tokens(text, again, model.tokenizer)
                sums[:4] += tokens, right, 1, text == again
                if text != again:
                    cases.append(ErrorCase(index, text, again))
            bar.update(len(batch))
    tokens, right_tokens, sequences, right_sequences, positions = (int(each) for each in sums[:5])
    size = sum(map(len, texts))
    return Accuracy(tokens, right_tokens, sequences, right_sequences, positions, float(sums[5]), size), cases


def _reconstructed(
    model: Model, texts: Sequence[bytes], batch_size: int
) -> Iterator[tuple[int, Sequence[bytes], list[bytes], int, float]]:
    assert isinstance(model, Reconstructs)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        latents = model.encode(batch)
        yield start, batch, model.decode(latents), latents.positions, latents.bits


def _right_tokens(text: bytes, restored: bytes, tokenizer: Tokenizer) -> tuple[int, int]:
    """How many tokens are right, and of how many."""
    a, b = tokenizer.text_ids(text), tokenizer.text_ids(restored)
    common = min(len(a), len(b))
    return int((a[:common] == b[:common]).sum()), len(a)
