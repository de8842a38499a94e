"""One causal transformer in two roles: it decodes vectors, and it is a language model of [vector; last W tokens].

It predicts a token from the tokens before it and from what is added to each position. In the first role these are the
carrier's numbers around that position and the memory of the vector; in the second the memory alone, as the tokens that
the carrier holds lie in the transformer's own window.

Letters: M texts or rows, n positions, W window, s numbers of a carrier's position, D memory width, V text tokens;
T packed positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.glae.config import GlaeConfig
from abstractinator.components.packing import Packing
from abstractinator.components.token_embedding import TokenEmbedding
from abstractinator.components.token_head import IGNORED, ParallelHead
from abstractinator.components.tokens import Tokens, Vocabulary
from abstractinator.components.transformer import ResidualMLP, RMSNorm, SlidingWindowTransformer

REACH = 2
"""Positions to either side of a token whose carried numbers its prediction reads."""
_SHARPNESS = 150.0  # β at first: neighbours on the grid of bytes are 13 nats apart


@dataclass(frozen=True)
class Reading:
    """Rows to read and what to predict there.

    inputs: (M, n) the token before each position. targets: (M, n) the token there, V for the end, IGNORED where nothing
    is predicted. added: (M, n, width) to the inputs' vectors. lengths: (M,) how many positions of each row are read.
    near: (M, n, V + 1) what is added to the logits of each token and the end, or None.
    """

    inputs: Tensor
    targets: Tensor
    added: Tensor
    lengths: Tensor
    near: Tensor | None = None

    @property
    def read(self) -> Tensor:
        """(M, n) bool, true on the positions that are read."""
        return torch.arange(self.inputs.shape[1], device=self.inputs.device) < self.lengths[:, None]

    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """inputs, targets and added of the positions that are read: (T,), (T,), (T, width)."""
        read = self.read
        return self.inputs[read], self.targets[read], self.added[read]


class Decoder(nn.Module):
    def __init__(self, config: GlaeConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        width = config.decoder.width
        self.vocabulary = vocabulary
        sizes, rows, hidden = config.decoder_ngram_sizes, config.decoder_ngram_rows, config.decoder_ngram_width
        self.embedding = TokenEmbedding(vocabulary, width, sizes, rows, hidden)
        self.from_carrier = nn.Linear((2 * REACH + 1) * config.slot_width, width)
        self.carrier_mlp = ResidualMLP(width, width)
        self.memory_norm = RMSNorm(config.memory_width)
        self.from_memory = nn.Linear(config.memory_width, width, bias=False)
        self.transformer = SlidingWindowTransformer(config.decoder)
        self.head = ParallelHead(width, vocabulary)
        self.log_sharpness = nn.Parameter(torch.full((), math.log(_SHARPNESS)))

    def of_carrier(self, carrier: Tensor) -> Tensor:
        """(M, W, s) → (M, W, width), of the numbers around each position."""
        around = F.pad(carrier, (0, 0, REACH, REACH)).unfold(1, 2 * REACH + 1, 1).flatten(2)
        return self.carrier_mlp(self.from_carrier(around))

    def nearness(self, carrier: Tensor, points: Tensor) -> Tensor:
        """(M, W, s) and the points (V + 1, s) of tokens → (M, W, V + 1) logits: -β ‖carried - point‖², β learned.

        So the carrier's points are tied to the output, as embeddings are in a language model, and the transformer
        learns what they do not say.
        """
        with torch.autocast(carrier.device.type, enabled=False):
            squares = points.square().sum(-1) - 2 * carrier.float() @ points.t()  # but for what all tokens share
            return -self.log_sharpness.float().exp() * squares

    def of_memory(self, memory: Tensor) -> Tensor:
        """(…, D) → (…, width); zeros for a memory of zeros. Its length does not matter."""
        return self.from_memory(self.memory_norm(memory))

    def reading(self, ids: Tensor, lengths: Tensor, added: Tensor, ends: Tensor, near: Tensor | None = None) -> Reading:
        """Of texts (M, n): each begins behind BOS; the end behind it is predicted where `ends` (M,) and where there is
        room."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        inputs = F.pad(ids, (1, 0), value=self.vocabulary.bos)[:, :-1]
        behind = torch.where(ends, self.vocabulary.codebook_size, IGNORED)[:, None]
        targets = torch.where(positions < lengths[:, None], ids, behind)
        return Reading(inputs, targets, added, (lengths + 1).clamp(max=ids.shape[1]), near)

    def hidden(self, inputs: Tensor, added: Tensor, lengths: Tensor) -> Tensor:
        """(T,) tokens and (T, width) of rows of these lengths → (T, width), from which what comes next is predicted."""
        packing = Packing.from_lengths(lengths)
        embedded = self.embedding(Tokens(inputs[:, None], packing, self.vocabulary))
        return self.transformer(embedded + added, packing)

    def forward(self, *readings: Reading) -> list[tuple[Tensor, Tensor]]:
        """For each reading -log p of its targets and whether each is the most probable token, both (T,), and 0 and true
        where a target is IGNORED. All readings are read in one pass."""
        parts = [reading.packed() for reading in readings]
        inputs, targets, added = (torch.cat(part) for part in zip(*parts, strict=True))
        hidden = self.hidden(inputs, added, torch.cat([reading.lengths for reading in readings]))
        [logits] = self.head.logits(hidden)
        parts_of_logits = logits.split([len(part[0]) for part in parts])
        pairs = zip(readings, parts_of_logits, strict=True)
        logits = torch.cat([some if each.near is None else some + each.near[each.read] for each, some in pairs])
        nll = F.cross_entropy(logits, targets, reduction="none")
        right = (logits.argmax(-1) == targets) | (targets == IGNORED)
        counts = [len(part[0]) for part in parts]
        return list(zip(nll.split(counts), right.split(counts), strict=True))
