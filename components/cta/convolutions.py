"""The convolutions of the continuous text autoencoder: residual blocks, and both ways between two rates.

All see zeros where a row has no token, at every layer, so what a row becomes does not depend on the padding behind it.

Letters: B rows, C channels, N positions a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Root-mean-square norm over the channels of (B, C, N), with a learned gain (Zhang & Sennrich 2019)."""

    epsilon = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + self.epsilon)
        return x * (scale * self.gain).to(x.dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU and a convolution over three positions, twice, plus what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, 3, padding=1) for _ in range(2))
        self.activation = nn.SiLU()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, C, N), mask (B, 1, N): 1 where there is a token and 0 elsewhere → (B, C, N)."""
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(self.activation(norm(y)) * mask)
        return (x + y) * mask


def halved(channels: int) -> nn.Conv1d:
    """(B, C, N) → (B, 2C, N / 2)."""
    return nn.Conv1d(channels, 2 * channels, 4, stride=2, padding=1)


def doubled(channels: int) -> nn.ConvTranspose1d:
    """(B, 2C, N) → (B, C, 2N)."""
    return nn.ConvTranspose1d(2 * channels, channels, 4, stride=2, padding=1)


def masks_of(mask: Tensor, halvings: int) -> list[Tensor]:
    """(B, 1, N) at the rate of tokens → the masks of all rates, from the highest to the lowest: a position counts where
    one of its tokens does."""
    masks = [mask]
    for _ in range(halvings):
        masks.append(masks[-1].unflatten(-1, (-1, 2)).amax(-1))
    return masks
