"""CALM's discrete twin: the same transformer of chunks, and a head that predicts tokens. The kind `calm_discrete`.

What `calm` spends on the autoencoder and the energy head, parameters and time, it spends on its own head. It is what
latents have to be compared with: the same steps over chunks, with a likelihood.

Letters: S packed chunks, K tokens a chunk, D width, V token ids, P passages, C scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.calm.chunk_transformer import ChunkTransformer
from abstractinator.components.calm.chunks import Chunks, after_bos, chunks_of
from abstractinator.components.calm.config import CALMDiscreteConfig
from abstractinator.components.calm.generation import stream_chunks
from abstractinator.components.calm.token_chunks import MODES, TokenChunks, with_mode
from abstractinator.components.calm.token_head import ChunkTokenHead
from abstractinator.contract.capabilities import Passage, Piece, Score
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, Losses, Mean, Metric, Model, RowLayout, Sums
from abstractinator.contract.tokenizer import Tokenizer

_BITS = 1 / math.log(2)


class CALMDiscrete(Model):
    """A language model of tokens with one step of its transformer for each chunk of K tokens."""

    kind: ClassVar[str] = "calm_discrete"
    Config = CALMDiscreteConfig
    headline: ClassVar[str] = "bits_per_byte"
    takes_tokenizer: ClassVar[bool] = True
    modes: ClassVar[tuple[str, ...]] = MODES
    sample_modes: ClassVar[tuple[str, ...]] = MODES
    harness_mode: ClassVar[str] = MODES[0]
    scorings: ClassVar[tuple[str, ...]] = ("exact",)
    window_context: ClassVar[dict[str, int]] = {"exact": 1}

    def __init__(self, config: CALMDiscreteConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
        width = config.transformer.width
        self.language_model = ChunkTransformer(config, self.tokenizer.vocab_size)
        self.start = nn.Parameter(0.1 * torch.randn(width))
        self.head = ChunkTokenHead(config.head, config.chunk_size, width, self.tokenizer)

    def layout(self, length: int) -> RowLayout:
        return RowLayout(length, multiple_of=self.config.chunk_size)

    def logits(self, chunks: Chunks) -> Tensor:
        """(S, K, V): of each token, from the chunks and the tokens of its own chunk before it."""
        hidden = chunks.packing.shift(self.language_model(chunks), self.start)
        return self.head(hidden, chunks.ids[:, :-1])

    def nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """−log p of all tokens but BOS and the first of a row, in nats, summed; the bytes among them."""
        chunks = chunks_of(batch.ids, self.config.chunk_size, self.tokenizer)
        scored = after_bos(chunks.ids, self.tokenizer)
        scored[chunks.packing.positions == 0, 0] = False  # nothing is known of a text from the middle before it begins
        targets = chunks.ids[scored]
        nll = F.cross_entropy(self.logits(chunks)[scored], targets, reduction="sum")
        return nll, torch.tensor(float(self.tokenizer.count_bytes(targets.cpu())), device=nll.device)

    def forward(self, batch: Batch, phase: str) -> Losses:
        total, count = self.nll(batch)
        return Losses(total, count, {"bits_per_byte": Mean(total.detach() * _BITS, count)})

    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        nll, count = self.nll(batch)
        chunks = chunks_of(batch.ids, self.config.chunk_size, self.tokenizer)
        return {"bytes": batch.bytes, "predicted_bytes": float(count), "nll": float(nll), "chunks": len(chunks.ids)}

    def metrics(self, sums: Sums) -> dict[str, Metric]:
        """bits_per_byte: −log₂ p(x) over the bytes that are predicted; a document's end costs bits and is no byte."""
        bits = float(sums["nll"]) * _BITS / max(float(sums["predicted_bytes"]), 1.0)
        positions = float(sums["chunks"]) / max(float(sums["bytes"]), 1.0)
        return {
            "bits_per_byte": Metric(bits, "bits per byte"),
            "positions_per_byte": Metric(positions, "positions per byte"),
        }

    def describe(self) -> dict[str, str]:
        transformer = self.config.transformer
        return {
            "chunks": f"{self.config.chunk_size} tokens, predicted one after the other",
            "top": f"{transformer.layers} layers, {transformer.width} wide, window {transformer.window} chunks",
        }

    @torch.no_grad()
    def score(self, passages: Sequence[Passage], scoring: str) -> list[Score]:
        """−log p of each continuation. The first chunk begins with the passage, so where context and continuation
        part makes no difference to a token's probability."""
        contexts = [self.tokenizer.encode(passage.context, bos=passage.begins).tolist() for passage in passages]
        continuations = [self.tokenizer.encode(passage.continuation).tolist() for passage in passages]
        rows = [context + rest for context, rest in zip(contexts, continuations, strict=True)]
        size, pad = self.config.chunk_size, self.tokenizer.PAD
        longest = -(-max(map(len, rows)) // size) * size
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=self.device)
        chunks = chunks_of(ids, size, self.tokenizer)
        logits, scores = self.logits(chunks).flatten(0, 1), []
        firsts = (chunks.packing.offsets * size).tolist()
        for first, context, targets in zip(firsts, contexts, continuations, strict=True):
            begin = first + len(context)
            scores.append(_score(logits[begin : begin + len(targets)], torch.tensor(targets, device=self.device)))
        return scores

    def stream(self, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
        config = with_mode(config)
        return stream_chunks(self, self, prompts, config, TokenChunks(self.head, self.config.chunk_size, config))

    def prompt_chunks(self, prompt: bytes) -> tuple[list[list[int]], list[int]]:
        """The whole chunks of a document that begins with a prompt, and what of it begins the next one."""
        ids, size = self.tokenizer.encode(prompt, bos=True).tolist(), self.config.chunk_size
        whole = len(ids) // size * size
        return [ids[at : at + size] for at in range(0, whole, size)], ids[whole:]

    def first_hidden(self) -> Tensor:
        """Before a document's first chunk."""
        return self.start.detach()


def _score(logits: Tensor, targets: Tensor) -> Score:
    nll = F.cross_entropy(logits, targets, reduction="none").double().sum()
    return Score(float(nll), bool((logits.argmax(-1) == targets).all()))
