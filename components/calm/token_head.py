"""The discrete head: a chunk's tokens one after the other, each given the hidden vector and the tokens before it.

Letters: S chunks, K tokens a chunk, k ≤ K of them known, W width, D width of the hidden vector, V token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from abstractinator.components.calm.config import TokenHeadConfig
from abstractinator.components.transformer import ResidualMLP, RMSNorm
from abstractinator.contract.tokenizer import Tokenizer


class ChunkTokenHead(nn.Module):
    """p(chunk | h) = Π p(token k | h, tokens before it), over text tokens and EOS.

    What token k reads is a sum of a vector for each token before it, by place and id, so all tokens of a chunk are
    trained at once, and one more token costs one pass when a chunk is written.
    """

    def __init__(self, config: TokenHeadConfig, chunk_size: int, hidden_width: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.from_hidden = nn.Linear(hidden_width, config.width, bias=False)
        self.places = nn.Embedding(chunk_size, config.width)
        tables = nn.ModuleList(nn.Embedding(tokenizer.vocab_size, config.width) for _ in range(chunk_size - 1))
        self.earlier = cast(Sequence[nn.Embedding], tables)
        self.blocks = nn.Sequential(
            *(ResidualMLP(config.width, config.mlp_width) for _ in range(config.blocks)), RMSNorm(config.width)
        )
        self.to_logits = nn.Linear(config.width, tokenizer.vocab_size, bias=False)

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden: (S, D), ids: (S, k) the first tokens of each chunk, k < K → (S, k + 1, V) logits, fp32.

        Those of token k depend on the tokens before it alone.
        """
        known = [table(ids[:, place]) for place, table in zip(range(ids.shape[1]), self.earlier, strict=False)]
        read = torch.stack([self.from_hidden(hidden), *known], dim=1).cumsum(1)  # (S, k + 1, W)
        places = self.places.weight[: ids.shape[1] + 1]
        logits = self.to_logits(self.blocks(read + places)).float()
        logits[..., [self.tokenizer.BOS, self.tokenizer.PAD]] = -torch.inf
        return logits
