"""What a model is worth on held-out documents: bits per byte, reconstruction, codes.

Documents are laid out as in training (BOS, bytes, EOS, one after the other) and cut into rows. Everything is
measured over bytes; a document's end costs bits and counts as no byte.

Letters: B rows, T packed bytes, S packed codes, Q codes a segment, K codes in a codebook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from abstractinator.components.hierarchical.byte_segment_compressor import Compressed
from abstractinator.components.hierarchical.hierarchical_autoencoder import HierarchicalAutoencoder
from abstractinator.components.tokens import Tokens, pack_bytes
from abstractinator.data import ByteTokenizer
from abstractinator.device import autocast


@dataclass(frozen=True)
class LevelReport:
    """bytes_per_code: bytes per position of this level, with mended codes. raw_code_bits_per_byte: Q log₂ K over that,
    what the codes take when stored plainly. codebook_used_fraction: share of each codebook's K codes that occur, mean
    over Q.
    """

    bytes_per_code: float
    raw_code_bits_per_byte: float
    codebook_used_fraction: float


@dataclass(frozen=True)
class HeldOutReport:
    """bits_per_byte_exact: −log₂ p(x) of the predict path over the bytes that it predicts, all but a row's first
    token. bits_per_byte_two_part: −log₂ p(c) − log₂ p(x | c) over all bytes, since the codes of a row tell its first
    byte too. Both read the encoder's own codes. bytes: all of them.

    All else is of codes that are mended (see HierarchicalAutoencoder.compress). byte_accuracy: share of bytes that
    come back, greedily, from the highest codes down; a byte counts as back if it stands at its own place within its
    highest code's bytes. byte_accuracy_shuffled_codes: the same with the codes permuted among their places.
    sequence_accuracy: rows that come back without one error.
    """

    bits_per_byte_exact: float
    bits_per_byte_two_part: float
    byte_accuracy: float
    byte_accuracy_shuffled_codes: float
    sequence_accuracy: float
    levels: list[LevelReport]
    bytes: int


def rows_of(documents: list[bytes], row_length: int) -> Tensor:
    """(B, N) byte ids: documents with BOS and EOS one after the other, the last row filled up with PAD."""
    tokenizer = ByteTokenizer()
    stream = np.concatenate([tokenizer.encode(document, bos=True, eos=True) for document in documents])
    rows = np.full((-(-len(stream) // row_length), row_length), ByteTokenizer.PAD, dtype=np.int64)
    rows.reshape(-1)[: len(stream)] = stream
    return torch.from_numpy(rows)


class _Counts:
    """Sums over batches of rows, from which the report is made."""

    def __init__(self, model: HierarchicalAutoencoder) -> None:
        self.exact = self.two_part = 0.0
        self.predicted = self.bytes = self.right = self.right_shuffled = self.rows = self.whole_rows = 0
        self.codes = [0] * len(model.levels)
        self.used = [
            torch.zeros(level.compressor.code_alphabet.slots, level.compressor.code_alphabet.codebook_size)
            for level in model.levels
        ]


@torch.no_grad()
def evaluate_held_out(
    model: HierarchicalAutoencoder, rows: Tensor, *, batch_size: int, mixed_precision: bool, seed: int = 0
) -> HeldOutReport:
    """Scores (B, N) held-out rows in batches. Changes no state of the model and no global random state."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    counts, random = _Counts(model), torch.Generator().manual_seed(seed)
    for start in range(0, len(rows), batch_size):
        with autocast(device, mixed_precision):
            _count_batch(model, rows[start : start + batch_size].to(device), counts, random)
    model.train(was_training)
    return _report(model, counts)


def _count_batch(model: HierarchicalAutoencoder, rows: Tensor, counts: _Counts, random: torch.Generator) -> None:
    losses = model(rows)
    counts.exact += float(losses.predict) * losses.bytes
    counts.two_part += float(losses.two_part) * losses.bytes
    counts.predicted += losses.bytes

    tokens = pack_bytes(rows)
    levels = model.compress(tokens, mend=True)
    for i, compressed in enumerate(levels):
        plain = compressed.codes.ids[~compressed.codes.special].cpu()
        counts.codes[i] += len(plain)
        for slot, used in enumerate(counts.used[i]):
            used += torch.bincount(plain[:, slot], minlength=len(used))
    top = levels[-1].codes
    top_of_byte = _top_code_of_byte(model, levels)
    right = bytes_back(model, top, tokens, top_of_byte)
    shuffled = Tokens(_shuffled(top, random), top.packing, top.alphabet)
    counts.right += int(right.sum())
    counts.right_shuffled += int(bytes_back(model, shuffled, tokens, top_of_byte).sum())
    counts.bytes += int((~tokens.special).sum())
    wrong = torch.zeros(len(rows), device=rows.device).index_add_(
        0, tokens.packing.rows, (~right & ~tokens.special).float()
    )
    counts.rows += len(rows)
    counts.whole_rows += int((wrong == 0).sum())


def _top_code_of_byte(model: HierarchicalAutoencoder, compressed: list[Compressed]) -> Tensor:
    """(T,) the highest code that each byte is a part of."""
    index = compressed[0].segments.of_token
    for level in compressed[1:]:
        index = level.segments.of_token[index]
    return index


def _shuffled(codes: Tokens, random: torch.Generator) -> Tensor:
    """The ids with all plain codes permuted among their places."""
    ids = codes.ids.clone()
    plain = (~codes.special).nonzero()[:, 0]
    ids[plain] = codes.ids[plain[torch.randperm(len(plain), generator=random).to(plain.device)]]
    return ids


def bytes_back(model: HierarchicalAutoencoder, codes: Tokens, tokens: Tokens, code_of_byte: Tensor) -> Tensor:
    """(T,) bool: which bytes of `tokens` come back at their place when `codes` are decompressed; false on specials."""
    decoded = model.decompress(codes)
    starts = torch.searchsorted(decoded.code, torch.arange(codes.packing.total, device=codes.ids.device))
    lengths = torch.bincount(decoded.code, minlength=codes.packing.total)
    first = torch.searchsorted(code_of_byte, code_of_byte)  # where the byte's own code begins
    place = torch.arange(len(code_of_byte), device=code_of_byte.device) - first
    there = place < lengths[code_of_byte]
    found = decoded.tokens.ids[(starts[code_of_byte] + place).clamp(max=max(len(decoded.code) - 1, 0)), 0]
    # Bytes inserted after a code's true end make its last byte an error, so that no wrong text counts as whole.
    true_lengths = torch.bincount(code_of_byte, minlength=codes.packing.total)
    overrun = (place == true_lengths[code_of_byte] - 1) & (lengths > true_lengths)[code_of_byte]
    return there & ~overrun & (found == tokens.ids[:, 0]) & ~tokens.special


def _report(model: HierarchicalAutoencoder, counts: _Counts) -> HeldOutReport:
    levels = []
    for level, codes, used in zip(model.levels, counts.codes, counts.used, strict=True):
        alphabet = level.compressor.code_alphabet
        bits = alphabet.slots * math.log2(alphabet.codebook_size)
        levels.append(
            LevelReport(
                bytes_per_code=counts.bytes / max(codes, 1),
                raw_code_bits_per_byte=bits * codes / max(counts.bytes, 1),
                codebook_used_fraction=float((used > 0).float().mean()),
            )
        )
    return HeldOutReport(
        bits_per_byte_exact=counts.exact / math.log(2) / max(counts.predicted, 1),
        bits_per_byte_two_part=counts.two_part / math.log(2) / max(counts.bytes, 1),
        byte_accuracy=counts.right / max(counts.bytes, 1),
        byte_accuracy_shuffled_codes=counts.right_shuffled / max(counts.bytes, 1),
        sequence_accuracy=counts.whole_rows / max(counts.rows, 1),
        levels=levels,
        bytes=counts.bytes,
    )
