"""The quality of a hierarchy on held-out rows: bits per byte, reconstruction, codes; as additive sums.

Everything is measured over bytes; a document's end costs bits and counts as no byte.

Letters: B rows, T packed bytes, S packed codes, Q codes a segment, K codes in a codebook.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abstractinator.components.hierarchical.byte_segment_compressor import Compressed
from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.hierarchical.losses import losses_of
from abstractinator.components.tokens import Tokens, tokens_of
from abstractinator.contract.model import Batch, Metric, Sums

_BITS = 1 / math.log(2)


def measure_rows(model: Hierarchy, batch: Batch, generator: torch.Generator) -> Sums:
    """The sums of a batch; see `metrics_of` for what they come to."""
    tokens = tokens_of(batch.ids)
    compressed = model.compress(tokens)
    losses = losses_of(model, tokens, compressed, model.predict(tokens, compressed))
    assert losses.predict is not None and losses.codes is not None
    levels = model.compress(tokens, repair=True)
    top = levels[-1].codes
    top_of_byte = _top_code_of_byte(levels)
    right = reconstructed_bytes(model, top, tokens, top_of_byte)
    shuffled = Tokens(_shuffled(top, generator), top.packing, top.vocabulary)
    wrong = torch.zeros(len(batch.ids), device=right.device).index_add_(
        0, tokens.packing.rows, (~right & ~tokens.special).float()
    )
    sums: Sums = {
        "bytes": int((~tokens.special).sum()),
        "predicted_bytes": int(losses.weight),
        "exact_nll": float(losses.predict),
        "two_part_nll": float(losses.two_part),
        "codes_nll": float(losses.codes),
        "right_bytes": int(right.sum()),
        "right_bytes_shuffled": int(reconstructed_bytes(model, shuffled, tokens, top_of_byte).sum()),
        "rows": len(batch.ids),
        "right_rows": int((wrong == 0).sum()),
    }
    for number, level in enumerate(levels, 1):
        codes = level.codes
        plain = codes.ids[~codes.special]
        size = codes.vocabulary.codebook_size
        used = [torch.bincount(plain[:, slot], minlength=size) for slot in range(codes.vocabulary.slots)]
        sums |= {f"level{number}/codes": len(plain), f"level{number}/uses": torch.stack(used).cpu()}
    return sums


def metrics_of(model: Hierarchy, sums: Sums) -> dict[str, Metric]:
    """bits_per_byte_exact: −log₂ p(x) of the predict path over the bytes that it predicts, all but a row's first token.
    bits_per_byte_two_part: −log₂ p(c) − log₂ p(x | c) over all bytes, since the codes of a row tell its first byte,
    too. code_bits_per_byte: its first part alone, what the highest codes take when they are entropy-coded by the model
    on top. All three read the encoder's own codes.

    All else is of repaired codes (see Level.compress). byte_accuracy: share of bytes that are reconstructed, greedily,
    from the highest codes down; a byte is right if it stands at its own position within its highest code's bytes.
    byte_accuracy_shuffled_codes: the same with the codes permuted. sequence_accuracy: rows without an error. Per level:
    bytes_per_code; raw_code_bits_per_byte, Q log₂ K over that, what codes take when stored plainly;
    codebook_used_fraction, share of the K codes of each codebook that occur, mean over Q.
    """
    count = max(float(sums["bytes"]), 1.0)
    metrics = {
        "bits_per_byte_exact": Metric(
            float(sums["exact_nll"]) * _BITS / max(float(sums["predicted_bytes"]), 1.0), "bits per byte, exact"
        ),
        "bits_per_byte_two_part": Metric(float(sums["two_part_nll"]) * _BITS / count, "bits per byte, two-part"),
        "code_bits_per_byte": Metric(float(sums["codes_nll"]) * _BITS / count, "  of it the codes"),
        "byte_accuracy": Metric(float(sums["right_bytes"]) / count, "bytes reconstructed", ".2%"),
        "byte_accuracy_shuffled_codes": Metric(
            float(sums["right_bytes_shuffled"]) / count, "  with shuffled codes", ".2%"
        ),
        "sequence_accuracy": Metric(
            float(sums["right_rows"]) / max(float(sums["rows"]), 1.0), "sequences reconstructed whole", ".2%"
        ),
    }
    for number, level in enumerate(model.levels, 1):
        vocabulary, name, label = level.compressor.code_vocabulary, f"level{number}", f"level {number}"
        codes, uses = float(sums[f"{name}/codes"]), sums[f"{name}/uses"]
        bits = vocabulary.slots * math.log2(vocabulary.codebook_size)
        used = float((torch.as_tensor(uses) > 0).float().mean())
        metrics |= {
            f"{name}/bytes_per_code": Metric(count / max(codes, 1.0), f"{label}: bytes per code", ".2f"),
            f"{name}/raw_code_bits_per_byte": Metric(bits * codes / count, f"{label}: raw code bits per byte", ".2f"),
            f"{name}/codebook_used_fraction": Metric(used, f"{label}: codebook used", ".1%"),
        }
    return metrics


def reconstructed_bytes(model: Hierarchy, codes: Tokens, tokens: Tokens, code_of_byte: Tensor) -> Tensor:
    """(T,) bool: which bytes of `tokens` are right when `codes` are decompressed; false on specials."""
    decoded = model.decompress(codes)
    starts = torch.searchsorted(decoded.code, torch.arange(codes.packing.total, device=codes.ids.device))
    lengths = torch.bincount(decoded.code, minlength=codes.packing.total)
    first = torch.searchsorted(code_of_byte, code_of_byte)  # where the byte's own code begins
    offset = torch.arange(len(code_of_byte), device=code_of_byte.device) - first
    exists = offset < lengths[code_of_byte]
    found = decoded.tokens.ids[(starts[code_of_byte] + offset).clamp(max=max(len(decoded.code) - 1, 0)), 0]
    # Bytes inserted after a code's true end make its last byte an error, so that no wrong text counts as whole.
    true_lengths = torch.bincount(code_of_byte, minlength=codes.packing.total)
    overrun = (offset == true_lengths[code_of_byte] - 1) & (lengths > true_lengths)[code_of_byte]
    return exists & ~overrun & (found == tokens.ids[:, 0]) & ~tokens.special


def _top_code_of_byte(compressed: list[Compressed]) -> Tensor:
    """(T,) index of the highest code that each byte is a part of."""
    index = compressed[0].segments.of_token
    for level in compressed[1:]:
        index = level.segments.of_token[index]
    return index


def _shuffled(codes: Tokens, generator: torch.Generator) -> Tensor:
    """The ids with all plain codes permuted."""
    ids = codes.ids.clone()
    plain = (~codes.special).nonzero()[:, 0]
    ids[plain] = codes.ids[plain[torch.randperm(len(plain), generator=generator).to(plain.device)]]
    return ids
