"""The decoder, token by token: greedy texts from vectors, and the steps of generation.

Letters: R rows, W window, s numbers of a carrier's position, D memory width, V text tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.glae.decoder import Decoder
from abstractinator.components.incremental.incremental_transformer import IncrementalTransformer
from abstractinator.components.token_embedding import HISTORY
from abstractinator.components.token_hash import ngram_hashes, token_hash


class DecoderSteps:
    """The decoder for rows that are read a few tokens at a time, each beginning empty; equals `Decoder.hidden`.

    ahead: tokens that are read at once, at most. Memory: the last W keys and values of each layer.
    """

    def __init__(self, decoder: Decoder, rows: int, ahead: int = 1) -> None:
        self.decoder = decoder
        self.transformer = IncrementalTransformer(decoder.transformer, rows, ahead)
        device = decoder.from_memory.weight.device
        self.past = torch.full((rows, decoder.embedding.reach - 1), HISTORY, device=device)  # the newest comes last
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)

    def read(self, rows: Tensor, tokens: Tensor, added: Tensor) -> Tensor:
        """rows: (R,) ascending; tokens: (R, n) the next ones of each; added: (R, n, width) → logits (R, n, V + 1) of
        what comes behind each."""
        count = tokens.shape[1]
        x = self._embedded(rows, tokens) + added
        positions = self.positions[rows][:, None] + torch.arange(count, device=rows.device)
        hidden = self.transformer.step(x, self.transformer.entries(rows, positions))
        self.positions[rows] += count
        [logits] = self.decoder.head.logits(hidden)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these, which become 0 … R - 1."""
        for ring in self.transformer.rings():
            ring.keep(rows)
        self.past, self.positions = self.past[rows], self.positions[rows]

    def _embedded(self, rows: Tensor, tokens: Tensor) -> Tensor:
        embedding, count = self.decoder.embedding, tokens.shape[1]
        hashes = torch.cat([self.past[rows], token_hash(tokens[..., None])], dim=1)
        self.past[rows] = hashes[:, count:]
        newest_first = hashes.unfold(1, embedding.reach, 1).flip(-1)  # (R, n, reach)
        ngrams = embedding.ngram_rows_of(ngram_hashes(newest_first).flatten(0, 1))
        return embedding.slots[0](tokens) + embedding.from_ngrams(embedding.ngrams(ngrams)).unflatten(0, tokens.shape)


@torch.no_grad()
def greedy_texts(decoder: Decoder, carrier: Tensor, memory: Tensor) -> list[list[int]]:
    """(R, W, s) and (R, D) → the most probable token after token, up to the end, or W of them."""
    count, window = carrier.shape[:2]
    added = decoder.of_carrier(carrier) + decoder.of_memory(memory)[:, None]  # (R, W, width)
    end, rows = decoder.vocabulary.codebook_size, torch.arange(count, device=carrier.device)
    steps, token = DecoderSteps(decoder, count), torch.full_like(rows, decoder.vocabulary.bos)
    found = torch.full((count, window), end, device=carrier.device)
    going = torch.ones_like(rows, dtype=torch.bool)
    for at in range(window):
        token = steps.read(rows, token[:, None], added[:, at : at + 1])[:, 0].argmax(-1)
        going &= token != end
        if not going.any():
            break
        found[:, at] = torch.where(going, token, end)
        token = torch.where(going, token, 0)
    lengths = (F.pad(found, (0, 1), value=end) == end).long().argmax(1)
    return [row[:length] for row, length in zip(found.tolist(), lengths.tolist(), strict=True)]
