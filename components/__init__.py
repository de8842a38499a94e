"""The parts of the models, and the models themselves; installed as `abstractinator.components`.

In a checkout this folder also has the name `components`: `from components import HierarchicalAutoencoder` gives
the very same classes.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "ByteSegmentCompressor": "hierarchical.byte_segment_compressor",
    "CodeExpander": "hierarchical.code_expander",
    "CodeSequenceTransformer": "hierarchical.code_sequence_transformer",
    "HierarchicalAELM": "hierarchical.hierarchical_aelm",
    "HierarchicalAutoencoder": "hierarchical.hierarchical_autoencoder",
    "LearnedQueryAttention": "hierarchical.learned_query_attention",
    "SlidingWindowAttention": "sliding_window_attention",
    "VectorQuantizer": "bottlenecks.vector_quantizer",
}
__all__ = sorted(_PUBLIC)

if __name__ == "components":
    __path__ = []  # its modules have one name only, and so one set of classes


def __getattr__(name: str) -> Any:
    """Imports a public class when it is first asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"abstractinator.components.{_PUBLIC[name]}"), name)
