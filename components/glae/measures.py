"""What is measured on held-out rows, and the metrics that it comes to.

Letters: B rows, N token ids a row, M texts, W tokens of the longest text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from abstractinator.components.glae.config import GlaeConfig
from abstractinator.components.glae.decoding import greedy_texts
from abstractinator.components.glae.text_encoder import joined
from abstractinator.components.glae.texts import Texts, cut_rows
from abstractinator.components.glae.uniformity import largest_coding_rate, total_coding_rate
from abstractinator.contract.model import Batch, Metric, Sums

if TYPE_CHECKING:
    from abstractinator.components.glae.glae_model import GlaeModel

LENGTHS = (8, 32, 128)
"""Tokens of the texts that are decoded greedily; those up to W, and W itself where it is shorter."""
STORED_BITS = 16
"""Of a number of a vector, as fp16."""
_DECODED = 4  # texts of each length and batch, decoding being the slow part


def lengths_of(window: int) -> tuple[int, ...]:
    """The lengths of texts that a model of this W is measured at."""
    return (*(length for length in LENGTHS if length < window), min(window, LENGTHS[-1]))


def measure_rows(model: GlaeModel, batch: Batch, generator: torch.Generator) -> Sums:
    """See `metrics_of`."""
    config, size = model.config, model.config.window
    rows = cut_rows(batch.ids, size, model.tokenizer)
    memories = model.encoder.memory(rows)
    there = rows.lengths > 0
    texts, memory = rows.of(there), memories[there]
    carrier = model.encoder.carrier(texts)
    readings = model.decoding(texts, carrier, memory), model.language(rows, memories, batch.ids.shape)
    (nll, _), (row_nll, _) = model.decoder(*readings)
    vectors = joined(carrier, memory)
    sums: Sums = {
        "bytes": batch.bytes,
        "reconstruction_nll": float(nll.double().sum()),
        "nll": float(row_nll.double().sum()),
        "texts": len(vectors),
        "rate": float(total_coding_rate(vectors, config.tcr_epsilon)) if len(vectors) > 1 else 0.0,
        "largest_rate": largest_coding_rate(len(vectors), vectors.shape[1], config.tcr_epsilon),
    }
    return sums | _greedy(model, texts, generator)


def _greedy(model: GlaeModel, texts: Texts, generator: torch.Generator) -> Sums:
    """How many texts of each length, drawn from those that are long enough, are decoded exactly; all in one go."""
    lengths, index, sizes = lengths_of(model.config.window), [], []
    for length in lengths:
        long = (texts.lengths >= length).nonzero()[:, 0].cpu()
        chosen = long[torch.randperm(len(long), generator=generator)[:_DECODED]]
        index.append(chosen)
        sizes.append(torch.full_like(chosen, length))
    device = texts.ids.device
    chosen = torch.cat(index).to(device)
    shortened = texts.of(chosen).beginnings(torch.cat(sizes).to(device))
    found = greedy_texts(model.decoder, model.encoder.carrier(shortened), model.encoder.memory(shortened))
    sums: Sums = {f"{name}_{length}": 0 for length in lengths for name in ("exact", "decoded")}
    for row, ids, size in zip(found, shortened.ids.tolist(), shortened.lengths.tolist(), strict=True):
        sums[f"exact_{size}"] += row == ids[:size]
        sums[f"decoded_{size}"] += 1
    return sums


def metrics_of(config: GlaeConfig, sums: Sums) -> dict[str, Metric]:
    """not_exact: share of texts, of all measured lengths alike, that greedy decoding does not restore exactly, and a
    thousandth of the reconstruction's bits a byte, which decides between equals. bits_per_byte_exact: of the language
    model. rate_share: the total coding rate of a batch's texts over the largest that so many can have."""
    values = {name: float(value) for name, value in sums.items()}
    size = max(values["bytes"], 1.0)
    lengths = [length for length in lengths_of(config.window) if values[f"decoded_{length}"]]
    exact = {length: values[f"exact_{length}"] / values[f"decoded_{length}"] for length in lengths}
    reconstruction = values["reconstruction_nll"] / math.log(2) / size
    wrong = 1 - sum(exact.values()) / max(len(exact), 1)
    stored = STORED_BITS * config.embedding_width * values["texts"] / size
    return {
        "not_exact": Metric(wrong + reconstruction / 1000, "texts not restored exactly", ".4f"),
        **{
            f"exact_{length}": Metric(share, f"  restored exactly, {length} tokens", ".2%")
            for length, share in exact.items()
        },
        "reconstruction_bits_per_byte": Metric(reconstruction, "reconstruction, bits per byte", ".4f"),
        "rate_share": Metric(values["rate"] / values["largest_rate"], "total coding rate / its maximum"),
        "bits_per_byte_exact": Metric(values["nll"] / math.log(2) / size, "bits per byte (exact)"),
        "stored_bits_per_byte": Metric(stored, "vectors as stored (fp16), bits per byte", ".1f"),
    }
