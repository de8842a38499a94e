"""The baselines of the benchmarks, each a kind of model of its own. Importing this registers them.

A kind is imported only when it is used, so that a peer that is not installed keeps no other from running.
"""

from __future__ import annotations

from importlib import metadata

from abstractinator import registry

_KINDS = {
    "flat": "benchmarks.kinds.flat:Flat",
    "flat-window": "benchmarks.kinds.flat_window:FlatWindow",
    "blt": "benchmarks.kinds.blt:Blt",
    "megabyte": "benchmarks.kinds.megabyte:Megabyte",
    "h-net": "benchmarks.kinds.hnet:HNetBytes",
    "bpe-llama": "benchmarks.kinds.bpe_llama:BpeLlama",
}

# The package that a peer comes in; the others are this project's own.
DISTRIBUTIONS = {
    "blt": "transformers",
    "megabyte": "MEGABYTE-pytorch",
    "h-net": "h-net-dynamic-chunking",
    "bpe-llama": "transformers",
}

for _name, _target in _KINDS.items():
    registry.register(_name, _target)


def version_of(name: str) -> str | None:
    """The installed version of a peer's package, "" for our own code, None where it is not installed."""
    if name not in DISTRIBUTIONS:
        return ""
    try:
        return metadata.version(DISTRIBUTIONS[name])
    except metadata.PackageNotFoundError:
        return None
