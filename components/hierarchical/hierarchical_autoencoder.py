"""The whole model: levels of compressors and expanders with one transformer on top.

    bytes ─▶ compressor ─▶ codes¹ ─▶ compressor ─▶ codes² … ─▶ CodeSequenceTransformer ─▶ next code, context
      ▲                      ▲                                      │                        │
      └───── expander ───────┴───── expander ───────────────────────┘ decompress             │
      └───── expander ───────┴───── expander ────────────────────────────────────────────────┘ predict

Letters: B rows, N bytes a row, T packed bytes, S packed segments of a level, D width, Q codes a segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from abstractinator.components.hierarchical.byte_segment_compressor import (
    ByteSegmentCompressor,
    Compressed,
    CompressorConfig,
)
from abstractinator.components.hierarchical.code_expander import CodeExpander, ExpanderConfig
from abstractinator.components.hierarchical.code_sequence_transformer import (
    CodeSequenceTransformer,
    TopTransformerConfig,
)
from abstractinator.components.packing import Packing, gather_rows
from abstractinator.components.sliding_window_attention import SlidingWindowAttention
from abstractinator.components.token_head import DepthHead, chunked, targets_of
from abstractinator.components.tokens import BYTES, Vocabulary, Tokens, pack_bytes
from abstractinator.components.transformer import GroupedLinear, SwiGLU

_STEEPEST = 2.0  # bound of a slope, in nats per unit of the lattice


@dataclass(frozen=True)
class LevelConfig:
    """One level, up and down: what was compressor_level_configs and expander_* in the first version."""

    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    expander: ExpanderConfig = field(default_factory=ExpanderConfig)


@dataclass(frozen=True)
class ModelConfig:
    """levels: from the bytes up. The loss weights multiply losses in nats per byte (see Losses); the quantizers' own
    losses, squared distances, are added as they are (see QuantizerConfig.commitment).

    rate_loss_weight: of what the highest codes cost, in what makes them (see `_rate`), where they are of kind fsq.

    repetition_weight: a segment that occurs n times in a batch weighs n to this power in the reconstruction loss; parts
    of segments (segment_parts.py) weigh 1.
    """

    levels: tuple[LevelConfig, ...] = (LevelConfig(),)
    top_transformer_config: TopTransformerConfig = field(default_factory=TopTransformerConfig)
    predict_loss_weight: float = 1.0
    reconstruction_loss_weight: float = 2.0
    top_lm_loss_weight: float = 0.6
    rate_loss_weight: float = 0.3
    aux_lm_loss_weight: float = 1.0
    repetition_weight: float = 0.5

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; a model has at least one level")
        for name, value in vars(self).items():
            if name.endswith("_weight") and value < 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")


@dataclass(frozen=True)
class Decompressed:
    """tokens: the bytes, T of them, packed. code: (T,) the place of the highest code that each came from."""

    tokens: Tokens
    code: Tensor


class Level(nn.Module):
    """A compressor and the expander that undoes it."""

    compressor: ByteSegmentCompressor
    expander: CodeExpander

    def __init__(self, config: LevelConfig, vocabulary: Vocabulary, lower_vector_width: int, context_width: int) -> None:
        super().__init__()
        self.compressor = ByteSegmentCompressor(config.compressor, vocabulary, lower_vector_width)
        self.expander = CodeExpander(
            config.expander,
            vocabulary,
            vector_width=config.compressor.width,
            context_width=context_width,
            longest=config.compressor.segmentation.max_tokens_per_code,
            lower_vector_width=lower_vector_width,
        )

    def compress(self, tokens: Tokens, *, repair: bool = False) -> Compressed:
        """Tokens → codes. repair: a segment that does not come back from its codes gets others (code_search.py), or is
        cut into parts with codes of their own (segment_parts.py)."""
        return self.compressor(tokens, self.expander if repair else None)

    def reconstruction_nll(self, compressed: Compressed) -> Tensor:
        """(U,) −log p(tokens | code) of each distinct segment."""
        encoded = compressed.encoded
        return self.expander.reconstruction_nll(encoded.vectors, encoded.distinct.tokens, encoded.distinct.segments)

    @torch.no_grad()
    def decompress(self, codes: Tokens) -> tuple[Tokens, Tensor]:
        """Codes, of which the ids are read → their most probable tokens (T), and the code of each (T,)."""
        compressor = self.compressor
        size, special = codes.vocabulary.codebook_size, codes.special
        vectors = compressor.quantizer.decode(codes.ids.clamp(max=size - 1))
        ids, lengths = self.expander.expand(vectors)
        ids[special, 0] = codes.ids[special, :1] - size + compressor.vocabulary.codebook_size
        lengths = lengths.masked_fill(special, 1)

        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (S, L)
        per_row = torch.zeros_like(codes.packing.lengths).index_add_(0, codes.packing.rows, lengths)
        return Tokens(ids[inside], Packing.from_lengths(per_row), compressor.vocabulary), inside.nonzero()[:, 0]


@dataclass(frozen=True)
class Losses:
    """Every loss of one batch, and what they were measured on.

    In nats over `bytes`, the number of bytes that the exact path predicts, all but a row's first token:
    predict: −log p(x), the exact path. codes: −log p(highest codes). reconstruction: per level, −log p(its
    tokens | its codes). entropy: per level, of the entropy model, 0 where there is none or it is frozen. Codes tell
    a row's first byte too, so codes and reconstruction are nats per byte only up to one byte a row.
    quantizer: per level, squared distances, no nats. total: the weighted sum that is trained. Where the
    autoencoder was trained alone, predict and codes are those of a uniform guess.
    """

    total: Tensor
    predict: Tensor
    codes: Tensor
    reconstruction: list[Tensor]
    entropy: list[Tensor]
    quantizer: list[Tensor]
    bytes: int
    compressed: list[Compressed]

    @property
    def two_part(self) -> Tensor:
        """−log p(codes) − Σ log p(tokens | codes), in nats over `bytes`: what a coder takes that sends the codes and
        then the bytes. An upper bound of −log Σ p(c) p(x | c) over all codes c, this scheme's probability of x; of the
        predict path, which is another model of x, it bounds nothing.
        """
        return self.codes + torch.stack(self.reconstruction).sum()


class HierarchicalAutoencoder(nn.Module):
    """Bytes to codes and back, level upon level, and a language model of bytes over the codes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        top_width = config.top_transformer_config.transformer.width
        vocabulary, vector_width, levels = BYTES, 0, []
        for i, level in enumerate(config.levels):
            above = config.levels[i + 1].expander.predictor.width if i + 1 < len(config.levels) else top_width
            levels.append(Level(level, vocabulary, vector_width, above))
            vocabulary, vector_width = levels[-1].compressor.code_vocabulary, level.compressor.width
        self.levels = cast(Sequence[Level], nn.ModuleList(levels))
        self.top = CodeSequenceTransformer(config.top_transformer_config, vocabulary, vector_width)
        self.byte_head = DepthHead(config.levels[0].expander.predictor.width, BYTES)
        self.apply(_initialize)

    def compress(self, tokens: Tokens, *, repair: bool = False) -> list[Compressed]:
        """Packed bytes (see `pack_bytes`) → what each level makes of them, from the lowest up.

        repair: whether codes are checked by decoding and repaired: for those that `decompress` is to read. The language
        model reads the encoder's own, over which it was trained.
        """
        out: list[Compressed] = []
        for level in self.levels:
            out.append(level.compress(tokens, repair=repair))
            tokens = out[-1].codes
        return out

    @torch.no_grad()
    def decompress(self, codes: Tokens) -> Decompressed:
        """The highest codes → bytes, greedily, all of a level at once.

        Nothing but `codes.ids` is read. Special codes become the special tokens they stand for.
        """
        tokens, code = codes, torch.arange(codes.packing.total, device=codes.ids.device)
        for level in reversed(self.levels):
            tokens, of_token = level.decompress(tokens)
            code = code[of_token]
        return Decompressed(tokens, code)

    @property
    def target_bytes_per_code(self) -> float:
        """Bytes that a highest code stands for, about."""
        targets = (level.compressor.segmentation.target_tokens_per_code for level in self.config.levels)
        return math.prod(targets)

    def generate_bytes(self, prompt: bytes | list[bytes], **settings: Any) -> Any:
        """The continuation of a prompt, or of each prompt of a list; settings as in GenerationConfig.

        Raises TypeError for a setting that there is not, ValueError for one that cannot be.
        """
        from abstractinator.components.hierarchical.generation import generate_bytes
        from abstractinator.components.sampling import GenerationConfig

        names = [each.name for each in fields(GenerationConfig)]
        if unknown := settings.keys() - names:
            raise TypeError(
                f"there is no setting {', '.join(sorted(unknown))}; those of generation: {', '.join(names)}"
            )
        prompts = prompt if isinstance(prompt, list) else [prompt]
        texts = generate_bytes(self, prompts, GenerationConfig(**settings))
        return texts if isinstance(prompt, list) else texts[0]

    def predict(self, tokens: Tokens, compressed: list[Compressed]) -> tuple[Tensor, list[Tensor]]:
        """The exact way down → hidden vectors (T, D) before each byte, and per level the contexts (S, C) before
        each of its segments, made from what came before the segment."""
        lower = [tokens, *(c.codes for c in compressed)]
        contexts = [self.top(lower[-1])]
        for i in reversed(range(len(self.levels))):
            contexts.insert(0, self.levels[i].expander.predict(contexts[0], lower[i], compressed[i].segments))
        return contexts[0], contexts[1:]

    def forward(self, rows: Tensor, *, language_model: bool = True) -> Losses:
        """(B, N) byte ids, PAD at the ends of rows → Losses. The first token of a row is not predicted.

        language_model: False leaves out the top and the predict path, most of the cost: bytes → codes → bytes is
        then trained alone, and bytes and codes count as guessed.
        """
        tokens = pack_bytes(rows)
        compressed = self.compress(tokens)
        bytes_ = max(int(((tokens.packing.positions > 0) & ~tokens.special).sum()), 1)
        if language_model:
            hidden, contexts = self.predict(tokens, compressed)
            byte_nll = self.byte_head.nll(hidden, targets_of(tokens)).masked_fill(tokens.packing.positions == 0, 0.0)
            code_nll = self.top.nll(contexts[-1], compressed[-1].codes)
            rate = self._rate(contexts[-1], compressed[-1])
        else:
            codes = compressed[-1].codes
            guess = codes.vocabulary.slots * math.log(codes.vocabulary.codebook_size)
            byte_nll = torch.tensor(bytes_ * math.log(BYTES.codebook_size + 1), device=rows.device)
            code_nll = torch.tensor(codes.packing.total * guess, device=rows.device)
            rate = byte_nll.new_zeros(())
        reconstruction = [self._reconstruction(level, c) for level, c in zip(self.levels, compressed, strict=True)]
        entropy = [
            c.entropy_nll.sum() / bytes_ if c.entropy_nll is not None else byte_nll.new_zeros(()) for c in compressed
        ]
        quantizer = [c.encoded.quantized.loss for c in compressed]
        config = self.config
        return Losses(
            total=config.predict_loss_weight * byte_nll.sum() / bytes_
            + config.top_lm_loss_weight * code_nll.sum() / bytes_
            + config.rate_loss_weight * rate / bytes_
            + config.reconstruction_loss_weight * torch.stack([even for _, even in reconstruction]).sum() / bytes_
            + config.aux_lm_loss_weight * torch.stack(entropy).sum()
            + torch.stack(quantizer).sum(),
            predict=byte_nll.sum() / bytes_,
            codes=code_nll.sum() / bytes_,
            reconstruction=[nats / bytes_ for nats, _ in reconstruction],
            entropy=entropy,
            quantizer=quantizer,
            bytes=bytes_,
            compressed=compressed,
        )

    def _rate(self, context: Tensor, highest: Compressed) -> Tensor:
        """0, with a gradient to the numbers that were rounded to the highest codes, and to all below: the slope of
        −log p(codes).

        A code has no gradient, so nothing else would keep the compressor from codes that the top cannot guess (the rate
        of learned image codecs, Ballé et al. 2017, arXiv 1611.01704). In the slope's place stands what the codes beside
        it on the lattice would cost; that further slots would be guessed from another code is left out.
        """
        lattice, plain = highest.encoded.quantized.lattice, (~highest.codes.special).nonzero()[:, 0]
        if lattice is None or not lattice.requires_grad or not self.config.rate_loss_weight:
            return context.new_zeros(())
        head, quantizer = self.top.head, self.levels[-1].compressor.quantizer

        def slopes(hidden: Tensor, codes: Tensor) -> Tensor:
            return -quantizer.slopes(codes, head.logits(hidden, codes))  # −log p falls where a logit rises

        with torch.no_grad():
            found = chunked(slopes, context[plain], highest.codes.ids[plain], head.classes)
        moved = gather_rows(lattice - lattice.detach(), highest.encoded.distinct.of_segment[plain])
        return (found.clamp(-_STEEPEST, _STEEPEST) * moved).sum()

    def _reconstruction(self, level: Level, compressed: Compressed) -> tuple[Tensor, Tensor]:
        """Nats to tell a level's tokens given its codes, and the same with rare segments weighing more, for training.

        Frequent segments are learned soon whatever their weight; leaving more of the gradient to the rare ones
        is what the accuracy in the end depends on.
        """
        nats, distinct = level.reconstruction_nll(compressed), compressed.encoded.distinct
        counts = distinct.counts.to(nats.dtype)
        # Parts, which occur 0 times in the text, weigh as much as what occurs once.
        weights = counts.clamp(min=1) ** self.config.repetition_weight
        even = (weights * nats).sum() * (counts.sum() / weights[counts > 0].sum().clamp(min=1e-9))
        return (counts * nats).sum(), even


def _initialize(module: nn.Module) -> None:
    """Matrices at 1/√fan-in, embeddings small, so that all parts of a sum begin alike; what blocks add, at nothing."""
    if isinstance(module, SwiGLU | SlidingWindowAttention):
        nn.init.zeros_(module.to_out.weight)  # after its own turn, as children come first
    elif isinstance(module, GroupedLinear):
        module.initialize()
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        nn.init.normal_(module.weight, std=0.1)
