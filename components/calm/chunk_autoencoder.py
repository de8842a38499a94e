"""The chunk autoencoder of CALM (Shao et al. 2025, arXiv 2510.27688): K tokens to one vector and back.

Each chunk is coded alone, without any context, so the same tokens always have the same latent distribution.

Letters: S chunks, K tokens a chunk, V token ids, D width, d latent width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.calm.chunks import Chunks
from abstractinator.components.calm.config import ChunkAutoencoderConfig
from abstractinator.components.transformer import ResidualMLP, RMSNorm
from abstractinator.contract.tokenizer import Tokenizer


@dataclass(frozen=True)
class Posterior:
    """The normal distribution of a chunk's latent: mean and log_std, both (S, d) in fp32."""

    mean: Tensor
    log_std: Tensor

    @property
    def std(self) -> Tensor:
        return self.log_std.exp()

    def kl(self) -> Tensor:
        """(S, d) KL(q‖p) to the standard normal distribution, in nats."""
        return 0.5 * (self.mean.square() + (2 * self.log_std).exp() - 1) - self.log_std


class ChunkAutoencoder(nn.Module):
    """Tokens → residual block each → joined → residual block → normal distribution of the latent, and back.

    The output layer is the embedding of the tokens. It has no output for PAD, which no text holds.
    """

    def __init__(self, config: ChunkAutoencoderConfig, chunk_size: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.chunk_size, self.tokenizer = config, chunk_size, tokenizer
        width, mlp_width, joined = config.width, config.mlp_width, chunk_size * config.width
        self.embedding = nn.Embedding(tokenizer.vocab_size, width)
        self.read_token = ResidualMLP(width, mlp_width)
        self.join = nn.Linear(joined, width)
        self.read_chunk = nn.Sequential(ResidualMLP(width, mlp_width), RMSNorm(width))
        self.to_posterior = nn.Linear(width, 2 * config.latent_width)
        self.from_latent = nn.Linear(config.latent_width, width)
        self.write_chunk = ResidualMLP(width, mlp_width)
        self.split = nn.Linear(width, joined)
        self.write_token = nn.Sequential(ResidualMLP(width, mlp_width), RMSNorm(width))

    def encode(self, ids: Tensor) -> Posterior:
        """(S, K) token ids → the distribution of their latents."""
        tokens = self.read_token(self.embedding(ids))  # (S, K, D)
        chunk = self.read_chunk(self.join(tokens.flatten(1)))  # (S, D)
        mean, log_std = self.to_posterior(chunk).float().chunk(2, dim=-1)
        return Posterior(mean, log_std)

    def logits(self, latent: Tensor) -> Tensor:
        """(…, d) latents → (…, K, V - 1) logits of all tokens but PAD, fp32."""
        chunk = self.write_chunk(self.from_latent(latent))  # (…, D)
        tokens = self.write_token(self.split(chunk).unflatten(-1, (self.chunk_size, self.config.width)))
        output = self.embedding.weight[: self.tokenizer.PAD] * self.config.width**-0.5
        return F.linear(tokens, output.to(tokens.dtype)).float()

    def forward(self, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """The losses of training: −log p(token | latent) and KL(q‖p), clamped, both (S,) in nats.

        Some tokens are hidden from the encoder, and some numbers of the latent from the decoder, so that nearby latents
        decode to nearly the same tokens.
        """
        ids, config = chunks.ids, self.config
        if config.token_dropout:
            hidden = torch.rand(ids.shape, device=ids.device) < config.token_dropout
            ids = ids.masked_fill(hidden, self.tokenizer.PAD)
        posterior = self.encode(ids)
        latent = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        nll = self.nll(F.dropout(latent, config.latent_dropout), chunks.ids)
        return nll, posterior.kl().clamp(min=config.kl_floor).sum(-1)

    def nll(self, latent: Tensor, ids: Tensor) -> Tensor:
        """−log p of ids (S, K) given latents (S, d) → (S,), in nats; PAD costs nothing."""
        nll = F.cross_entropy(
            self.logits(latent).flatten(0, 1), ids.flatten(), ignore_index=self.tokenizer.PAD, reduction="none"
        )
        return nll.view(ids.shape).sum(-1)

    def decode(self, latent: Tensor, *, begins: bool = False) -> Tensor:
        """(…, d) latents → (…, K) the most probable tokens. begins: whether a chunk may hold a document's beginning."""
        logits = self.logits(latent)
        if not begins:
            logits[..., self.tokenizer.BOS] = -torch.inf
        return logits.argmax(-1)
