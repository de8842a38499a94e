"""All kinds of quantizer: their settings, and the quantizer of settings."""

from __future__ import annotations

from abstractinator.components.bottlenecks.fsq import FSQ, FSQConfig
from abstractinator.components.bottlenecks.residual_vq import ResidualVQ, ResidualVQConfig
from abstractinator.components.bottlenecks.simvq import SimVQ, SimVQConfig
from abstractinator.components.bottlenecks.vector_quantizer import VectorQuantizer
from abstractinator.components.bottlenecks.vq import VQ, VQConfig

QuantizerConfig = FSQConfig | VQConfig | ResidualVQConfig | SimVQConfig


def quantizer_of(config: QuantizerConfig, width: int, groups: int = 1) -> VectorQuantizer:
    """The quantizer of vectors of `width`. groups: parts side by side that a vector consists of (see GroupedLinear).

    Raises ValueError where the width cannot be split into the codes of a kind.
    """
    match config:
        case FSQConfig():
            return FSQ(config, width, groups)
        case VQConfig():
            return VQ(config, width)
        case ResidualVQConfig():
            return ResidualVQ(config, width)
        case SimVQConfig():
            return SimVQ(config, width)
