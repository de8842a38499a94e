"""HierarchicalAutoencoder with its engine: it generates, scores, encodes and shows. This is the kind `hier_ae`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch

from abstractinator.components.hierarchical.generation import MODES, stream_bytes
from abstractinator.components.hierarchical.hierarchical_autoencoder import HierarchicalAutoencoder
from abstractinator.components.hierarchical.scoring import exact_scores, two_part_scores
from abstractinator.components.tokens import BYTES, Tokens
from abstractinator.contract.capabilities import Latents, Passage, Piece, Score
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class HierarchicalAELM(HierarchicalAutoencoder):
    """A hierarchical autoencoder that is also a language model of bytes.

    modes: see generation.py. scorings: `exact`, −log p(x) of the predict path; `two_part`, −log p(codes) −
    log p(bytes | codes), an upper bound (see scoring.py).
    """

    modes: ClassVar[tuple[str, ...]] = MODES
    sample_modes: ClassVar[tuple[str, ...]] = ("exact", "plan")
    harness_mode: ClassVar[str] = "exact"
    scorings: ClassVar[tuple[str, ...]] = ("exact", "two_part")
    # In two parts the segment of a byte of context would be paid for once more.
    window_context: ClassVar[dict[str, int]] = {"exact": 1, "two_part": 0}
    length_factor: ClassVar[int] = 8  # bits per byte were not seen to rise up to here

    def stream(self, prompts: Sequence[bytes], config: GenerationConfig) -> Iterator[Piece]:
        return stream_bytes(self, prompts, config)

    @overload
    def generate_bytes(self, prompt: bytes, **settings: Any) -> bytes: ...

    @overload
    def generate_bytes(self, prompt: list[bytes], **settings: Any) -> list[bytes]: ...

    def generate_bytes(self, prompt: bytes | list[bytes], **settings: Any) -> bytes | list[bytes]:
        """The continuation of a prompt, or of each prompt of a list; settings are those of GenerationConfig.

        Raises TypeError for an unknown setting, ValueError for a wrong value.
        """
        names = [each.name for each in fields(GenerationConfig)]
        if unknown := settings.keys() - names:
            raise TypeError(f"unknown setting {', '.join(sorted(unknown))}; the settings are {', '.join(names)}")
        prompts = prompt if isinstance(prompt, list) else [prompt]
        texts = [bytearray() for _ in prompts]
        for piece in self.stream(prompts, GenerationConfig(**settings)):
            texts[piece.prompt] += piece.data
        return [bytes(text) for text in texts] if isinstance(prompt, list) else bytes(texts[0])

    def score(self, passages: Sequence[Passage], scoring: str) -> list[Score]:
        return {"exact": exact_scores, "two_part": two_part_scores}[scoring](self, passages)

    @torch.no_grad()
    def encode(self, texts: Sequence[bytes]) -> Latents:
        """The highest codes of each text, repaired so that `decode` restores it."""
        codes = self.compress(list(texts), repair=True)[-1].codes
        count = int((~codes.special).sum())
        return Latents(count, count * self.bits_per_code, codes, "codes")

    @torch.no_grad()
    def decode(self, latents: Latents) -> list[bytes]:
        codes: Tokens = latents.values
        tokens = self.decompress(codes).tokens
        rows = tokens.ids[:, 0].split(tokens.packing.lengths.tolist())
        return [bytes(row[row < BYTES.codebook_size].tolist()) for row in rows]

    def figures(self, batch: Batch) -> dict[str, Figure]:
        from abstractinator.components.hierarchical.figures import figures_of  # imports matplotlib

        return figures_of(self, batch)
