"""The kind `cta`: a convolutional variational autoencoder of token sequences.

Letters: B rows, N tokens a row, M latents a row, D numbers of a latent, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from abstractinator.components.cta.autoencoder import TextDecoder, TextEncoder
from abstractinator.components.cta.config import CTAConfig
from abstractinator.contract.capabilities import Latents
from abstractinator.contract.model import Batch, Losses, Mean, Metric, Model, Sums
from abstractinator.contract.tokenizer import Tokenizer

_BITS = 1 / math.log(2)
_STORED_BITS = 16  # a number of a latent, as a float of half precision
_TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class _Stored:
    """Some texts' latents: means (B, D, M) in half precision; tokens (B,) how many each text has. The latents of a text
    tell that but for what the last one stands for, which takes log₂ ratio bits."""

    means: Tensor
    tokens: Tensor


class ContinuousTextAutoencoder(Model):
    """Tokens to a sequence of Gaussian latents, `ratio` times shorter, and back.

    In training a latent is drawn, z = μ + σε (Kingma & Welling 2014); everything else reads μ. A latent depends on the
    tokens around it, not only on its own. Nothing in it predicts text: it neither scores nor generates.
    """

    kind: ClassVar[str] = "cta"
    Config = CTAConfig
    headline: ClassVar[str] = "reconstruction_bits_per_byte"
    takes_tokenizer: ClassVar[bool] = True

    def __init__(self, config: CTAConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
        self.encoder = TextEncoder(config, self.tokenizer.vocab_size)
        self.decoder = TextDecoder(config, self.tokenizer.vocab_size)

    def forward(self, batch: Batch, phase: str) -> Losses:
        """Mean cross-entropy of a token + kl_weight × mean divergence of a latent number."""
        ids, mask, below = self._padded(batch.ids)
        mean, log_variance = self.encoder(ids, mask)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        cross_entropy = self._cross_entropy(self.decoder(latents, below), ids)
        divergence = _divergence(mean, log_variance, below)
        tokens, numbers = mask.sum(), below.sum() * self.config.latent_width
        total = cross_entropy + self.config.kl_weight * divergence * tokens / numbers.clamp(min=1)
        size = tokens.new_tensor(max(batch.bytes, 1))
        parts = {
            "reconstruction_bits_per_byte": Mean(cross_entropy.detach() * _BITS, size),
            "kl_bits_per_byte": Mean(divergence.detach() * _BITS, size),
        }
        return Losses(total, tokens, parts)

    def measure(self, batch: Batch, generator: torch.Generator) -> Sums:
        """Sums over rows that are reconstructed from μ, in the precision in which it is stored."""
        ids, mask, below = self._padded(batch.ids)
        mean, log_variance = self.encoder(ids, mask)
        logits = self.decoder(_rounded(mean), below)
        wrong = (logits.argmax(-1) != ids) & mask
        is_text = ids < self.tokenizer.text_size
        return {
            "bytes": batch.bytes,
            "text_tokens": int(is_text.sum()),
            "right_text_tokens": int((is_text & ~wrong).sum()),
            "rows": int(mask.any(1).sum()),
            "right_rows": int((mask.any(1) & ~wrong.any(1)).sum()),
            "latents": int(below.sum()),
            "cross_entropy": float(self._cross_entropy(logits, ids)),
            "kl": float(_divergence(mean, log_variance, below)),
        }

    def metrics(self, sums: Sums) -> dict[str, Metric]:
        """reconstruction_bits_per_byte: cross-entropy of all tokens, from μ. token_accuracy: of text tokens, greedily.
        sequence_accuracy: rows without an error. stored_bits_per_byte: numbers of half precision. kl_bits_per_byte: the
        divergence, which bits-back coding would reach."""
        size = max(float(sums["bytes"]), 1.0)
        latents, unit = float(sums["latents"]), "bytes" if self.tokenizer.source is None else "tokens"
        stored = latents * self.config.latent_width * _STORED_BITS
        return {
            "token_accuracy": Metric(
                float(sums["right_text_tokens"]) / max(float(sums["text_tokens"]), 1.0), f"{unit} reconstructed", ".3%"
            ),
            "sequence_accuracy": Metric(
                float(sums["right_rows"]) / max(float(sums["rows"]), 1.0), "sequences reconstructed whole", ".2%"
            ),
            "reconstruction_bits_per_byte": Metric(
                float(sums["cross_entropy"]) * _BITS / size, "reconstruction, bits per byte", ".4f"
            ),
            "bytes_per_latent": Metric(size / max(latents, 1.0), "bytes per latent", ".2f"),
            "stored_bits_per_byte": Metric(stored / size, "bits per byte of latents, stored", ".2f"),
            "kl_bits_per_byte": Metric(float(sums["kl"]) * _BITS / size, "  as their KL divergence", ".2f"),
        }

    def describe(self) -> dict[str, str]:
        config = self.config
        return {
            "latents": f"{config.latent_width} numbers for {config.ratio} tokens",
            "widths": " → ".join(str(config.width << i) for i in range(config.halvings + 1)),
        }

    @torch.no_grad()
    def encode(self, texts: Sequence[bytes]) -> Latents:
        """The means of each text in half precision, and how many tokens its last latent stands for.

        Without BOS and EOS: in long documents these are too rare to be learned, and one that is lost would shift all
        bytes after it.
        """
        groups = [self._stored(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        positions = sum(int(_latents_of(group.tokens, self.config.ratio).sum()) for group in groups)
        bits = positions * self.config.latent_width * _STORED_BITS + len(texts) * self.config.halvings
        return Latents(positions, bits, groups)

    @torch.no_grad()
    def decode(self, latents: Latents) -> list[bytes]:
        """The most probable text token at each position: as many of each text as it had."""
        groups: list[_Stored] = latents.values
        return [text for group in groups for text in self._texts_of(group)]

    def _stored(self, texts: Sequence[bytes]) -> _Stored:
        rows = [torch.from_numpy(self.tokenizer.encode(text)) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.PAD)
        ids, mask, _ = self._padded(ids.to(self.device))
        if not ids.numel():  # all texts are empty
            return _Stored(torch.empty(len(rows), self.config.latent_width, 0), mask.sum(1))
        return _Stored(_rounded(self.encoder(ids, mask)[0]).half(), mask.sum(1))

    def _texts_of(self, group: _Stored) -> Iterator[bytes]:
        if not group.means.numel():
            yield from [b""] * len(group.tokens)
            return
        positions = torch.arange(group.means.shape[-1], device=group.means.device)
        mask = positions < _latents_of(group.tokens, self.config.ratio)[:, None]
        ids = self.decoder(group.means.float(), mask)[..., : self.tokenizer.text_size].argmax(-1).cpu().numpy()
        for row, tokens in zip(ids, group.tokens.tolist(), strict=True):
            yield self.tokenizer.text_of(row[:tokens])

    def _padded(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B, any) → rows (B, N), N a multiple of the ratio; true on tokens (B, N); true on latents (B, M)."""
        ids = F.pad(ids, (0, -ids.shape[1] % self.config.ratio), value=self.tokenizer.PAD)
        mask = ids != self.tokenizer.PAD
        return ids, mask, mask.unflatten(1, (-1, self.config.ratio)).any(-1)

    def _cross_entropy(self, logits: Tensor, ids: Tensor) -> Tensor:
        """The sum over tokens, in nats."""
        return F.cross_entropy(
            logits.flatten(0, 1).float(), ids.flatten(), ignore_index=self.tokenizer.PAD, reduction="sum"
        )


def _latents_of(tokens: Tensor, ratio: int) -> Tensor:
    """(B,) numbers of tokens → of latents."""
    return (tokens + ratio - 1) // ratio


def _rounded(mean: Tensor) -> Tensor:
    """Means as they are when stored in half precision, whose largest number is 65,504."""
    largest = torch.finfo(torch.float16).max
    return mean.clamp(-largest, largest).half().float()


def _divergence(mean: Tensor, log_variance: Tensor, below: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) summed over all numbers of all latents, in nats: ½(μ² + σ² − 1 − log σ²)."""
    each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return (each * below[:, None]).sum()
