"""GlaeModel with what it can do beside training. This is the kind `glae`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from abstractinator.components.glae.decoding import greedy_texts
from abstractinator.components.glae.generation import MODE, stream_tokens
from abstractinator.components.glae.glae_model import GlaeModel
from abstractinator.components.glae.measures import STORED_BITS
from abstractinator.components.glae.scoring import exact_scores
from abstractinator.components.glae.text_encoder import joined, taken_apart
from abstractinator.components.glae.texts import texts_of
from abstractinator.contract.capabilities import Latents, Passage, Piece, Score
from abstractinator.contract.generation_config import GenerationConfig

_AT_ONCE = 128  # texts


class Glae(GlaeModel):
    """modes: `exact`, token by token. scorings: `exact`, -log p(x) of the language model."""

    modes: ClassVar[tuple[str, ...]] = (MODE,)
    sample_modes: ClassVar[tuple[str, ...]] = (MODE,)
    harness_mode: ClassVar[str] = MODE
    scorings: ClassVar[tuple[str, ...]] = ("exact",)
    window_context: ClassVar[dict[str, int]] = {"exact": 0}

    @property
    def longest_text(self) -> int:
        """W: bytes, or tokens of a tokenizer file, of the longest text that `embed` takes."""
        return self.config.window

    @torch.no_grad()
    def embed(self, texts: Sequence[bytes]) -> Tensor:
        """(B, d) fp32, one vector for each text. Raises ValueError for a text of more than W tokens."""
        rows = [self.tokenizer.encode(text).tolist() for text in texts]
        for row in rows:
            if len(row) > self.longest_text:
                raise ValueError(
                    f"a text of {len(row)} tokens is too long for one vector, which carries at most "
                    f"{self.longest_text}: use embed_stream for one vector of what it is about, or encode for several "
                    "that restore it"
                )
        return self._embed(rows)

    def _embed(self, rows: list[list[int]]) -> Tensor:
        """Token ids of each text, at most W → (B, d)."""
        parts = [rows[at : at + _AT_ONCE] for at in range(0, len(rows), _AT_ONCE)]
        vectors = [self.encoder(texts_of(part, self.longest_text, self.device)) for part in parts]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.config.embedding_width, device=self.device)

    @torch.no_grad()
    def embed_stream(self, pieces: Iterable[bytes], embedding: Tensor | None = None) -> Iterator[Tensor]:
        """A text of any length in pieces of any size → (d,) E_1, E_2, …, E_t = Embed([E_{t-1}; the next W bytes]).

        embedding: E_0, of what was read before; by default nothing was. Holds one vector and the pieces that are not
        embedded yet; the last vector may be of fewer than W bytes, and is that of the whole text. With a tokenizer file
        a piece is at most as many bytes as make W tokens.
        """
        held = b""
        for piece in pieces:
            held += piece
            while len(held) > self.longest_text:
                embedding = self.extended(embedding, held[: self.longest_text])
                held = held[self.longest_text :]
                yield embedding
        if held or embedding is None:
            yield self.extended(embedding, held)

    @torch.no_grad()
    def extended(self, embedding: Tensor | None, text: bytes) -> Tensor:
        """(d,) Embed([E; text]) of a text that `embed` takes. Its carrier is that of the text."""
        new = self.embed([text])
        if embedding is None:
            return new[0]
        size = (self.longest_text, self.config.slot_width)
        carrier, memory = taken_apart(new, *size)
        _, before = taken_apart(self.checked(embedding[None]), *size)
        return joined(carrier, self.recurrence.step(before, memory))[0]

    @torch.no_grad()
    def reconstruct(self, embeddings: Tensor) -> list[bytes]:
        """The most probable texts, token by token, from their vectors (B, d) alone; of a vector that was iterated, the
        text that came last. Raises ValueError for vectors of another width."""
        texts: list[bytes] = []
        for part in self.checked(embeddings).split(_AT_ONCE):
            carrier, memory = taken_apart(part, self.longest_text, self.config.slot_width)
            texts += [self.tokenizer.decode(ids) for ids in greedy_texts(self.decoder, carrier, memory)]
        return texts

    def checked(self, embeddings: Tensor) -> Tensor:
        """(B, d) on the model's device. Raises ValueError for another width."""
        width = self.config.embedding_width
        if embeddings.dim() != 2 or embeddings.shape[1] != width:
            raise ValueError(f"embeddings must be (B, {width}), not {tuple(embeddings.shape)}")
        return embeddings.to(self.device)

    @torch.no_grad()
    def encode(self, texts: Sequence[bytes]) -> Latents:
        """Vectors in fp16, as many for each text as it needs: one for every W tokens."""
        rows = [self.tokenizer.encode(text).tolist() for text in texts]
        size = self.longest_text
        parts = [[row[at : at + size] for at in range(0, max(len(row), 1), size)] for row in rows]
        vectors = self._embed([part for row in parts for part in row]).half()
        return Latents(
            len(vectors), STORED_BITS * vectors.numel(), vectors.split([len(row) for row in parts]), "vectors"
        )

    def decode(self, latents: Latents) -> list[bytes]:
        counts = [len(vectors) for vectors in latents.values]
        if not counts:
            return []
        found = iter(self.reconstruct(torch.cat(list(latents.values))))
        return [b"".join(next(found) for _ in range(count)) for count in counts]

    def score(self, passages: Sequence[Passage], scoring: str) -> list[Score]:
        return exact_scores(self, passages)

    def stream(self, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
        return stream_tokens(self, prompts, config)

    def describe(self) -> dict[str, str]:
        config = self.config
        return {
            "vector": f"{config.embedding_width} numbers: {config.slot_width} for each of {config.window} tokens, "
            f"{config.memory_width} of memory",
            "decoder": f"{config.decoder.layers} layers, {config.decoder.width} wide, window {config.window} tokens",
        }
