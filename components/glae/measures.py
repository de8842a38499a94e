"""The quality of a Glae on held-out rows: texts that are decoded exactly, how far apart vectors lie, bits per byte.

Letters: B rows, M texts, W tokens of the longest text, d embedding width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abstractinator.components.glae.config import GlaeConfig
from abstractinator.components.glae.decoding import greedy_texts
from abstractinator.components.glae.text_encoder import joined, taken_apart
from abstractinator.components.glae.texts import Texts, cut_rows
from abstractinator.components.glae.uniformity import largest_coding_rate, total_coding_rate
from abstractinator.contract.model import Batch, Metric, Sums

if TYPE_CHECKING:
    from abstractinator.components.glae.decoder import Decoder, Reading
    from abstractinator.components.glae.text_encoder import TextEncoder
    from abstractinator.contract.tokenizer import Tokenizer

STORED_BITS = 16  # of each number of a vector
LENGTHS = (8, 16, 32, 64, 128)  # of texts that are decoded, in tokens
_DECODED = 16  # texts of each length and batch


def lengths_of(config: GlaeConfig) -> list[int]:
    """The lengths that a vector can carry."""
    return [length for length in LENGTHS if length <= config.window] or [config.window]


def measure_rows(
    config: GlaeConfig,
    encoder: TextEncoder,
    decoder: Decoder,
    language: Reading,
    batch: Batch,
    tokenizer: Tokenizer,
) -> Sums:
    """language: the reading of the batch's rows by the language model. See `metrics_of` for what the sums come to."""
    texts = cut_rows(batch.ids, config.window, tokenizer)
    texts = texts.of(texts.lengths > 0)
    ((nll, _),) = decoder(language)
    sums: Sums = {"bytes": batch.bytes, "language_nll": float(nll.double().sum()), "tokens": int(texts.lengths.sum())}
    if len(texts.lengths) > 1:
        vectors = joined(encoder.carrier(texts), encoder.memory(texts))
        largest = largest_coding_rate(len(vectors), vectors.shape[1], config.tcr_epsilon)
        sums |= {"coding_rate": float(total_coding_rate(vectors, config.tcr_epsilon)) / largest, "coding_rates": 1}
    else:
        sums |= {"coding_rate": 0.0, "coding_rates": 0}
    for length in lengths_of(config):
        chosen = texts.of((texts.lengths >= length).nonzero()[:_DECODED, 0])
        chosen = chosen.beginnings(torch.full_like(chosen.lengths, length))
        sums[f"exact/{length}"] = sum(exact_texts(config, encoder, decoder, chosen))
        sums[f"texts/{length}"] = len(chosen.lengths)
    return sums


def exact_texts(config: GlaeConfig, encoder: TextEncoder, decoder: Decoder, texts: Texts) -> list[bool]:
    """Whether each text is decoded exactly from its vector in half precision, greedily."""
    if not len(texts.lengths):
        return []
    vectors: Tensor = joined(encoder.carrier(texts), encoder.memory(texts)).half()
    found = greedy_texts(decoder, *taken_apart(vectors, config.window, config.slot_width))
    rows = [row[:size] for row, size in zip(texts.ids.tolist(), texts.lengths.tolist(), strict=True)]
    return [text == row for text, row in zip(found, rows, strict=True)]


def metrics_of(config: GlaeConfig, sums: Sums) -> dict[str, Metric]:
    """not_exact: share of texts that are not decoded exactly, mean over the lengths. exact_<length>: share of texts of
    that many tokens that are, greedily. coding_rate: of a batch's vectors over the largest one. bits_per_byte_exact:
    −log₂ p of the language model. stored_bits_per_byte: of a vector for each text of the longest length."""
    total = {name: float(value) for name, value in sums.items()}
    size = max(total["bytes"], 1.0)
    exact = {n: total[f"exact/{n}"] / max(total[f"texts/{n}"], 1.0) for n in lengths_of(config)}
    stored = STORED_BITS * config.embedding_width * total["tokens"] / config.window
    return {
        **{f"exact_{n}": Metric(share, f"texts of {n} tokens decoded exactly", ".2%") for n, share in exact.items()},
        "not_exact": Metric(1 - sum(exact.values()) / len(exact), "  not exactly, of all lengths", ".2%"),
        "coding_rate": Metric(
            total["coding_rate"] / max(total["coding_rates"], 1.0), "total coding rate over its maximum"
        ),
        "bits_per_byte_exact": Metric(total["language_nll"] / math.log(2) / size, "bits per byte, exact"),
        "stored_bits_per_byte": Metric(stored / size, "bits per byte of full vectors, stored", ".1f"),
    }
