"""CALM, Continuous Autoregressive Language Model (Shao et al. 2025, arXiv 2510.27688). This is the kind `calm`.

    chunk s ─▶ ChunkTransformer ─▶ hidden ─▶ EnergyHead(noise) ─▶ latent of chunk s + 1 ─▶ decoder ─▶ K tokens

Letters: S packed chunks, K tokens a chunk, D width, d latent width, N samples of the model, M of the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from abstractinator.components.calm.chunk_autoencoder import ChunkAutoencoder, Posterior
from abstractinator.components.calm.chunk_transformer import ChunkTransformer
from abstractinator.components.calm.chunks import Chunks, after_bos, chunks_of, fill_before
from abstractinator.components.calm.config import CALMConfig
from abstractinator.components.calm.energy_head import EnergyHead, energy_loss
from abstractinator.components.calm.generation import stream_chunks
from abstractinator.components.calm.latent_chunks import MODES, LatentChunks
from abstractinator.contract.capabilities import Latents, Piece
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, Losses, Mean, Metric, Model, Phase, RowLayout, Sums
from abstractinator.contract.tokenizer import Tokenizer

AUTOENCODER, LANGUAGE_MODEL = "autoencoder", "language_model"  # the phases of a training
_STORED_BITS = 16  # of each number of a latent
_BITS = 1 / math.log(2)


class CALM(Model):
    """A chunk autoencoder, and a language model of its latents, which has samples and no likelihood.

    modes: see latent_chunks.py.
    """

    kind: ClassVar[str] = "calm"
    Config = CALMConfig
    headline: ClassVar[str] = "loss"
    takes_tokenizer: ClassVar[bool] = True
    modes: ClassVar[tuple[str, ...]] = MODES
    sample_modes: ClassVar[tuple[str, ...]] = MODES[:1]
    harness_mode: ClassVar[str] = MODES[0]

    def __init__(self, config: CALMConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
        width, latent_width = config.transformer.width, config.autoencoder.latent_width
        self.autoencoder = ChunkAutoencoder(config.autoencoder, config.chunk_size, self.tokenizer)
        self.language_model = ChunkTransformer(config, self.tokenizer.vocab_size)
        self.head = EnergyHead(config.head, width, latent_width)

    def layout(self, length: int) -> RowLayout:
        return RowLayout(length, multiple_of=self.config.chunk_size)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(AUTOENCODER, self.config.autoencoder_fraction, cost=1.0), Phase(LANGUAGE_MODEL, cost=3.0))

    def forward(self, batch: Batch, phase: str) -> Losses:
        chunks = self._chunks(batch)
        return self.reconstruct(chunks, batch) if phase == AUTOENCODER else self.predict(chunks)

    def reconstruct(self, chunks: Chunks, batch: Batch) -> Losses:
        """The losses of the autoencoder."""
        nll, kl = self.autoencoder(chunks)
        total, count = nll.sum() + self.config.autoencoder.kl_weight * kl.sum(), _number(len(nll), nll)
        byte_count = _number(batch.bytes, nll)
        return Losses(total, count, {"nats_per_byte": Mean(nll.detach().sum(), byte_count), "kl": _mean(kl, count)})

    def predict(self, chunks: Chunks) -> Losses:
        """The losses of the language model, over the autoencoder as it is: nothing here has a gradient for it."""
        config = self.config.head
        hidden, target = self._predictions(chunks)
        samples = self.head(hidden, self.head.noise(config.samples, len(hidden), hidden.device))
        noise = torch.randn(config.targets, target.mean.shape[-1], device=hidden.device)
        energy, count = energy_loss(samples, target, noise, config.exponent), _number(len(hidden), hidden)
        return Losses(energy.sum(), count, {"energy_loss": _mean(energy, count)})

    def _predictions(self, chunks: Chunks) -> tuple[Tensor, Posterior]:
        """Of all chunks that follow another one: the hidden vector before each (S, D), and its posterior."""
        hidden = self.language_model(chunks)[:-1][chunks.follows[1:]]
        with torch.no_grad():
            return hidden, self.autoencoder.encode(chunks.ids[chunks.follows])

    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        """See `metrics`."""
        chunks, config, count_bytes = self._chunks(batch), self.config.head, self.tokenizer.count_bytes
        posterior = self.autoencoder.encode(chunks.ids)
        wrong = self.autoencoder.decode(posterior.mean, begins=True) != chunks.ids
        wrong &= after_bos(chunks.ids, self.tokenizer)
        hidden, target = self._predictions(chunks)
        noise = torch.randn(config.targets, target.mean.shape[-1], generator=generator).to(hidden.device)
        samples = self.head(hidden, self.head.noise(config.samples, len(hidden), hidden.device, generator))
        return {
            "bytes": batch.bytes,
            "wrong_bytes": count_bytes(chunks.ids[wrong].cpu()),
            "chunks": len(chunks.ids),
            "wrong_chunks": int(wrong.any(-1).sum()),
            "nll": float(self.autoencoder.nll(posterior.mean, chunks.ids).double().sum()),
            "kl": float(posterior.kl().double().sum()),
            "predicted_chunks": len(hidden),
            "energy_loss": float(energy_loss(samples, target, noise, config.exponent).double().sum()),
        }

    def metrics(self, sums: Sums) -> dict[str, Metric]:
        """loss: of the autoencoder by μ, in nats a chunk, and of the energy head; while the first is trained the second
        hardly changes, and the other way round. byte_accuracy, chunk_accuracy: reconstructed by μ, greedily. rate:
        KL(q‖p), which bits-back coding would reach."""
        total = {name: float(value) for name, value in sums.items()}
        count, chunks = max(total["bytes"], 1.0), max(total["chunks"], 1.0)
        energy = total["energy_loss"] / max(total["predicted_chunks"], 1.0)
        stored = _STORED_BITS * self.config.autoencoder.latent_width * chunks / count
        return {
            "loss": Metric(total["nll"] / chunks + energy, "reconstruction and energy loss, a chunk"),
            "energy_loss": Metric(energy, "  energy loss"),
            "byte_accuracy": Metric(1 - total["wrong_bytes"] / count, "bytes reconstructed", ".3%"),
            "chunk_accuracy": Metric(1 - total["wrong_chunks"] / chunks, "chunks reconstructed whole", ".2%"),
            "positions_per_byte": Metric(chunks / count, "positions per byte"),
            "rate_bits_per_byte": Metric(total["kl"] * _BITS / count, "latent: rate, bits per byte", ".2f"),
            "stored_bits_per_byte": Metric(stored, "latent: as stored (fp16), bits per byte", ".1f"),
        }

    def describe(self) -> dict[str, str]:
        config = self.config
        return {
            "chunks": f"{config.chunk_size} tokens, one latent of {config.autoencoder.latent_width}",
            "top": f"{config.transformer.layers} layers, {config.transformer.width} wide, window "
            f"{config.transformer.window} chunks",
        }

    @torch.no_grad()
    def encode(self, texts: Sequence[bytes]) -> Latents:
        """The means of the chunks of each text in half precision, and how many tokens its last chunk has.

        Without BOS and EOS: in long documents these are too rare to be learned, and one that is lost would shift all
        bytes after it. What the last chunk lacks is filled up with PAD, by which tokens are hidden in training.
        """
        size, pad = self.config.chunk_size, self.tokenizer.PAD
        rows = [self.tokenizer.encode(text).tolist() for text in texts]
        filled = [row + [pad] * (-len(row) % size) for row in rows]
        ids = torch.tensor([token for row in filled for token in row], dtype=torch.int64, device=self.device)
        mean = self.autoencoder.encode(ids.view(-1, size)).mean.half()
        bits = _STORED_BITS * mean.numel() + len(rows) * math.ceil(math.log2(size))
        means = mean.split([len(row) // size for row in filled])
        return Latents(len(mean), bits, list(zip(means, map(len, rows), strict=True)))

    @torch.no_grad()
    def decode(self, latents: Latents) -> list[bytes]:
        """The most probable text token at each position: as many of each text as it had."""
        return [self._text(mean.float(), tokens) for mean, tokens in latents.values]

    def _text(self, mean: Tensor, tokens: int) -> bytes:
        ids = self.autoencoder.logits(mean)[..., : self.tokenizer.text_size].argmax(-1)
        return self.tokenizer.text_of(ids.flatten()[:tokens].cpu().numpy())

    def stream(self, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
        """See latent_chunks.py. Raises ValueError in addition for a temperature above 1 and for settings that a mode
        has no way to follow."""
        config = replace(config, mode=config.mode or MODES[0])
        return stream_chunks(self, self, prompts, config, LatentChunks(self.autoencoder, self.head, config))

    def prompt_chunks(self, prompt: bytes) -> tuple[list[list[int]], list[int]]:
        """The chunks of a document that begins with a prompt and so far ends with a whole chunk."""
        ids = self.tokenizer.encode(prompt, bos=True).tolist()
        return fill_before(ids, self.config.chunk_size, self.tokenizer), []

    def first_hidden(self) -> Tensor:
        """Before a document's first chunk, which is always given."""
        return torch.zeros(self.config.transformer.width, device=self.device)

    def _chunks(self, batch: Batch) -> Chunks:
        return chunks_of(batch.ids, self.config.chunk_size, self.tokenizer)


def _number(value: float, like: Tensor) -> Tensor:
    return torch.tensor(float(value), device=like.device)


def _mean(values: Tensor, count: Tensor) -> Mean:
    return Mean(values.detach().sum(), count)
