"""The two halves of the continuous text autoencoder.

Letters: B rows, N tokens a row, a multiple of the ratio; M = N / ratio latents; D latent_width; V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abstractinator.components.cta.config import CTAConfig
from abstractinator.components.cta.convolutions import ChannelNorm, ResidualBlock, doubled, halved, masks_of

_SMALLEST, _LARGEST = -20.0, 10.0  # log variance, for exponentials that are finite
_FIRST = -4.0  # log variance at first, about: with as much noise as signal, learning begins slowly


class TextEncoder(nn.Module):
    """Embedding → residual blocks → strided convolution, for each halving → residual block → 1×1 → mean and
    log variance."""

    def __init__(self, config: CTAConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.width)
        widths = [config.width << i for i in range(config.halvings + 1)]
        self.blocks = nn.ModuleList(_blocks(width, config.blocks) for width in widths[:-1])
        self.down = nn.ModuleList(halved(width) for width in widths[:-1])
        self.last = ResidualBlock(widths[-1])
        self.norm = ChannelNorm(widths[-1])
        self.to_latent = nn.Conv1d(widths[-1], 2 * config.latent_width, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) ids and (B, N) bool, true on tokens → mean and log variance, (B, D, M) each."""
        x = self.embedding(ids).transpose(1, 2)
        masks = masks_of(mask[:, None].to(x.dtype), len(self.down))
        x = x * masks[0]
        for blocks, down, here, below in zip(self.blocks, self.down, masks[:-1], masks[1:], strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, here)
            x = down(x) * below
        x = self.norm(self.last(x, masks[-1]))
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round what carries everything
            mean, log_variance = self.to_latent(x.float()).chunk(2, dim=1)
        return mean, (log_variance + _FIRST).clamp(_SMALLEST, _LARGEST)


class TextDecoder(nn.Module):
    """The encoder's mirror image: 1×1 → residual block → transposed convolution, for each doubling → residual blocks →
    1×1 → logits."""

    def __init__(self, config: CTAConfig, vocab_size: int) -> None:
        super().__init__()
        widths = [config.width << i for i in reversed(range(config.halvings + 1))]
        self.from_latent = nn.Conv1d(config.latent_width, widths[0], 1)
        self.first = ResidualBlock(widths[0])
        self.up = nn.ModuleList(doubled(width) for width in widths[1:])
        self.blocks = nn.ModuleList(_blocks(width, config.blocks) for width in widths[1:])
        self.norm = ChannelNorm(widths[-1])
        self.to_logits = nn.Conv1d(widths[-1], vocab_size, 1)

    def forward(self, latents: Tensor, mask: Tensor) -> Tensor:
        """(B, D, M) and (B, M) bool, true on latents → (B, N, V) logits of all tokens of these latents."""
        here = mask[:, None].to(latents.dtype)
        with torch.autocast(latents.device.type, enabled=False):
            x = self.from_latent(latents) * here
        x = self.first(x, here)
        for up, blocks in zip(self.up, self.blocks, strict=True):
            here = here.repeat_interleave(2, dim=-1)
            x = up(x) * here
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, here)
        return self.to_logits(self.norm(x)).transpose(1, 2)


def _blocks(width: int, number: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(width) for _ in range(number))
