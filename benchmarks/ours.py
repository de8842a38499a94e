"""Our own model beside the baselines: its option, and its settings at other sizes, in the proportions of the default
preset."""

from __future__ import annotations

import argparse
from dataclasses import replace

from abstractinator.components.hierarchical.code_expander import ExpanderConfig
from abstractinator.components.hierarchical.code_sequence_transformer import TopTransformerConfig
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.components.transformer import TransformerConfig
from benchmarks.common import count_parameters
from benchmarks.kinds.base import closest_width

AUTOENCODER_FRACTION = 0.05  # of a training of minutes
_DEFAULT = ModelConfig()
(_LEVEL,) = _DEFAULT.levels
_TABLES = (_LEVEL.expander, _DEFAULT.top_transformer_config)  # have one of n-grams
_DEFAULT_WIDTH = _DEFAULT.top_transformer_config.transformer.width
_Table = ExpanderConfig | TopTransformerConfig  # configurations with a table of n-grams


def add_autoencoder_fraction(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark that trains our own model in so much time."""
    parser.add_argument(
        "--autoencoder-fraction",
        type=float,
        default=AUTOENCODER_FRACTION,
        help="of our training; see the settings of hier_ae",
    )


def sized_config(parameters: int) -> ModelConfig:
    """The settings at about this number of parameters: at the default preset's own number they are that preset. At
    others all widths but the small one of the match model scale in proportion, and the tables of n-grams take what is
    left."""
    in_tables = _in_tables(_DEFAULT_WIDTH) / (_without_tables(_DEFAULT_WIDTH) + _in_tables(_DEFAULT_WIDTH))
    # The tables take what is left, so a coarse step will do.
    width = closest_width(_without_tables, round(parameters * (1 - in_tables)), 8)
    return model_config(width, (parameters - _without_tables(width)) / _in_tables(width))


def model_config(width: int, tables: float) -> ModelConfig:
    """The default preset, `width` wide on top, other widths in proportion, and `tables` times the tables' rows."""

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
