"""What `calm` and `calm_discrete` share: a causal transformer with one position for each chunk.

Letters: S packed chunks, K tokens a chunk, E width of a token, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from abstractinator.components.calm.chunks import Chunks
from abstractinator.components.calm.config import ChunkModelConfig
from abstractinator.components.transformer import ResidualMLP, SlidingWindowTransformer


class ChunkTransformer(nn.Module):
    """The tokens of a chunk, embedded and compressed by a small MLP, are one position of a causal transformer.

    It reads tokens, not latents: the paper found BrierLM 4.70 against 3.25 (section 3.4).
    """

    def __init__(self, config: ChunkModelConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.transformer.width
        self.embedding = nn.Embedding(vocab_size, config.embedding_width)
        self.join = nn.Linear(config.chunk_size * config.embedding_width, width, bias=False)
        self.compress = ResidualMLP(width, config.transformer.mlp_width)
        self.transformer = SlidingWindowTransformer(config.transformer)

    def embed(self, ids: Tensor) -> Tensor:
        """(…, K) token ids → (…, D), a vector for each chunk."""
        return self.compress(self.join(self.embedding(ids).flatten(-2)))

    def forward(self, chunks: Chunks) -> Tensor:
        """→ (S, D): vector s is made from chunk s and those before it in its sequence."""
        return self.transformer(self.embed(chunks.ids), chunks.packing)
