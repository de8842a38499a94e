"""GlaeModel with what it can do beside training. This is the kind `glae`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abstractinator.components.glae.decoding import greedy_texts
from abstractinator.components.glae.glae_model import GlaeModel
from abstractinator.components.glae.text_encoder import taken_apart
from abstractinator.components.glae.texts import texts_of

_AT_ONCE = 128  # texts


class Glae(GlaeModel):
    @torch.no_grad()
    def embed(self, texts: Sequence[bytes]) -> Tensor:
        """(B, d) fp32, one vector for each text. Raises ValueError for a text of more than W tokens."""
        rows = [self.tokenizer.encode(text).tolist() for text in texts]
        window = self.config.window
        for row in rows:
            if len(row) > window:
                raise ValueError(
                    f"a text of {len(row)} tokens is too long for one vector, which carries at most {window}: use "
                    "embed_stream for one vector of all of it, or encode for several that restore it"
                )
        parts = [rows[at : at + _AT_ONCE] for at in range(0, len(rows), _AT_ONCE)]
        vectors = [self.encoder(texts_of(part, window, self.device)) for part in parts]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.config.embedding_width, device=self.device)

    @torch.no_grad()
    def reconstruct(self, embeddings: Tensor) -> list[bytes]:
        """The most probable texts, token by token, from their vectors (B, d) alone; of a vector that was iterated, the
        last W tokens. Raises ValueError for vectors of another width."""
        width = self.config.embedding_width
        if embeddings.dim() != 2 or embeddings.shape[1] != width:
            raise ValueError(f"embeddings must be (B, {width}), not {tuple(embeddings.shape)}")
        texts: list[bytes] = []
        for part in embeddings.to(self.device).split(_AT_ONCE):
            carrier, memory = taken_apart(part, self.config.window, self.config.slot_width)
            texts += [self.tokenizer.decode(ids) for ids in greedy_texts(self.decoder, carrier, memory)]
        return texts
