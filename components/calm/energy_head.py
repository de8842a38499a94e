"""The energy head of CALM (arXiv 2510.27688, section 3.3) and its loss: samples of the next latent, no likelihood.

Letters: S chunks, N samples of the model, M samples of the target, W width, D width of the hidden vector, d latent
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abstractinator.components.calm.chunk_autoencoder import Posterior
from abstractinator.components.calm.config import EnergyHeadConfig
from abstractinator.components.transformer import RMSNorm

_SMALLEST = 1e-8  # a squared distance, below which there is no gradient


class EnergyBlock(nn.Module):
    """x + SwiGLU(norm(x), hidden); the part of the hidden vector is computed once for all samples."""

    def __init__(self, width: int, mlp_width: int, hidden_width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.from_x = nn.Linear(width, 2 * mlp_width, bias=False)
        self.from_hidden = nn.Linear(hidden_width, 2 * mlp_width)
        self.to_out = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x: (N, S, W), hidden: (S, D) → (N, S, W)."""
        gate, value = (self.from_x(self.norm(x)) + self.from_hidden(hidden)).chunk(2, dim=-1)
        return x + self.to_out(F.silu(gate) * value)


class EnergyHead(nn.Module):
    """Noise and a hidden vector → a sample of the next latent. It begins as 0 for every noise."""

    def __init__(self, config: EnergyHeadConfig, hidden_width: int, latent_width: int) -> None:
        super().__init__()
        self.config = config
        self.from_noise = nn.Linear(config.noise_width, config.width)
        self.from_hidden = nn.Linear(hidden_width, config.width)
        blocks = nn.ModuleList(EnergyBlock(config.width, config.mlp_width, hidden_width) for _ in range(config.blocks))
        self.blocks = cast(Sequence[EnergyBlock], blocks)
        self.norm = RMSNorm(config.width)
        self.to_latent = nn.Linear(config.width, latent_width)
        nn.init.zeros_(self.to_latent.weight)
        nn.init.zeros_(self.to_latent.bias)

    def noise(self, samples: int, chunks: int, device: torch.device, random: torch.Generator | None = None) -> Tensor:
        """(N, S, noise_width) of the uniform distribution on −½ … ½."""
        on = device if random is None else random.device
        return torch.rand(samples, chunks, self.config.noise_width, device=on, generator=random).to(device) - 0.5

    def forward(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """hidden: (S, D), noise: (N, S, noise_width) → samples (N, S, d), fp32."""
        x = self.from_noise(noise) + self.from_hidden(hidden)
        for block in self.blocks:
            x = block(x, hidden)
        return self.to_latent(self.norm(x)).float()


def energy_loss(samples: Tensor, target: Posterior, noise: Tensor, exponent: float = 1.0) -> Tensor:
    """The energy loss, (S,): 2 E‖x − y‖^α − E‖x − x'‖^α, least where x and y have the same distribution.

    samples: (N, S, d), x. target: of y. noise: (M, d) standard normal, from which M samples y of each target are made.
    All chunks share it: the loss of each is unbiased all the same, and nothing of M × S × d numbers is ever made.
    """
    with torch.autocast(samples.device.type, enabled=False):
        cross = _distances_to_target(samples.float(), target, noise, exponent).mean((0, 2))
        first, second = torch.triu_indices(len(samples), len(samples), 1, device=samples.device)
        pairs = _power((samples[first] - samples[second]).float().square().sum(-1), exponent)
        return 2 * cross - pairs.mean(0)


def _distances_to_target(samples: Tensor, target: Posterior, noise: Tensor, exponent: float) -> Tensor:
    """(N, S, M) ‖x − y‖^α of samples (N, S, d) and y = mean + std · noise.

    ‖x − mean‖² + ‖std · noise‖² − 2 (x − mean)·(std · noise), which rounds little, as all three are about as large.
    """
    offset = samples - target.mean  # (N, S, d)
    products = (offset * target.std) @ noise.t()  # (N, S, M)
    lengths = target.std.square() @ noise.square().t()  # (S, M)
    return _power(offset.square().sum(-1, keepdim=True) + lengths - 2 * products, exponent)


def _power(squared: Tensor, exponent: float) -> Tensor:
    """Squared distances → distances to the power of α, with a gradient of 0 where they are 0."""
    return squared.clamp(min=_SMALLEST) ** (exponent / 2)
