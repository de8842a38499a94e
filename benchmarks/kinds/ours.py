"""Our own model, in the proportions of the default preset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from abstractinator.training.segmentation_schedule import follow_or_freeze
from torch import Tensor

from abstractinator.components.hierarchical.code_expander import ExpanderConfig
from abstractinator.components.hierarchical.code_sequence_transformer import TopTransformerConfig
from abstractinator.components.hierarchical.generation import stream_bytes
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.components.tokens import BYTES
from abstractinator.components.transformer import TransformerConfig
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.contract.generation_config import GenerationConfig
from benchmarks.common import count_parameters
from benchmarks.contenders.base import Contender, Setting, closest_width

_DEFAULT = ModelConfig()
(_LEVEL,) = _DEFAULT.levels
_TABLES = (_LEVEL.expander, _DEFAULT.top_transformer_config)  # have one of n-grams
_DEFAULT_WIDTH = _DEFAULT.top_transformer_config.transformer.width
_Table = ExpanderConfig | TopTransformerConfig  # configurations with a table of n-grams


class Abstractinator(Contender):
    """HierarchicalAELM. width: of the transformer on top; at the default preset's number of parameters it is
    that preset, at others all widths go in proportion, but for the
    match model's, which is small."""

    learning_rate = ExperimentConfig.learning_rate
    muon_learning_rate = ExperimentConfig.muon_learning_rate
    modes = ("exact", "speculative", "plan")

    def __init__(self, width: int, setting: Setting) -> None:
        super().__init__()
        in_tables = setting.parameters - _without_tables(width)
        self.model = HierarchicalAELM(model_config(width, in_tables / _in_tables(width)))
        self.autoencoder_fraction = setting.autoencoder_fraction

    @classmethod
    def fit(cls, setting: Setting) -> int:
        # The tables take what is left, so a coarse step will do.
        in_tables = _in_tables(_DEFAULT_WIDTH) / (_without_tables(_DEFAULT_WIDTH) + _in_tables(_DEFAULT_WIDTH))
        return closest_width(_without_tables, round(setting.parameters * (1 - in_tables)), 8)

    def nats(self, rows: Tensor) -> tuple[Tensor, int]:
        losses = self.model(rows)
        return losses.predict * losses.bytes, losses.bytes

    def learn(self, rows: Tensor, done: float, first: bool) -> int:
        losses = self.model(rows, language_model=done >= self.autoencoder_fraction)
        losses.total.backward()
        follow_or_freeze(self.model, losses, done=done, first=first)
        return losses.bytes

    def two_part(self, rows: Tensor) -> tuple[Tensor, int]:
        losses = self.model(rows)
        return losses.two_part * losses.bytes, int((rows < BYTES.codebook_size).sum())

    def positions(self, rows: Tensor) -> int:
        return self.model(rows).compressed[-1].codes.packing.total

    def stream(self, prompts: list[bytes], new_bytes: int, mode: str, seed: int) -> Iterator[int]:
        config = GenerationConfig(mode, max_new_bytes=new_bytes, temperature=1.0, top_p=1.0, seed=seed)
        return (len(piece.data) for piece in stream_bytes(self.model, prompts, config))


def model_config(width: int, tables: float) -> ModelConfig:
    """The default preset with `width` on top, the other widths in proportion, and so many times the rows in tables."""

    def transformer(config: TransformerConfig) -> TransformerConfig:
        size = _scaled(config.width, width, 2 * config.heads)
        return replace(config, width=size, mlp_width=_scaled(config.mlp_width, width))

    level, top = _LEVEL, _DEFAULT.top_transformer_config

    def table(config: _Table) -> dict[str, int]:
        rows = max(1, round(config.ngram_rows * tables))
        return {"ngram_rows": rows, "ngram_width": _scaled(config.ngram_width, width)}

    compressor = replace(
        level.compressor,
        mlp_width=_scaled(level.compressor.mlp_width, width),
        value_width=_scaled(level.compressor.value_width, width),
    )
    expander = replace(
        level.expander,
        mlp_width=_scaled(level.expander.mlp_width, width),
        position_width=_scaled(level.expander.position_width, width),
        predictor=transformer(level.expander.predictor),
        **table(level.expander),
    )
    return replace(
        _DEFAULT,
        levels=(replace(level, compressor=compressor, expander=expander),),
        top_transformer_config=replace(top, transformer=transformer(top.transformer), **table(top)),
    )


def _scaled(size: int, width: int, multiple: int = 4) -> int:
    """A size of the default preset in proportion to `width`, as a multiple of `multiple`."""
    return max(1, round(size * width / _DEFAULT_WIDTH / multiple)) * multiple


def _without_tables(width: int) -> int:
    """Parameters of a model of this width without its tables of n-grams."""
    model = HierarchicalAELM(model_config(width, 0.0))  # of one row each
    return count_parameters(model) - sum(_scaled(config.ngram_width, width) for config in _TABLES)


def _in_tables(width: int) -> int:
    """Parameters of the tables of n-grams with as many rows as the default preset's."""
    return sum(config.ngram_rows * _scaled(config.ngram_width, width) for config in _TABLES)
