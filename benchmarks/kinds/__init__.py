"""The contenders of the benchmark suite, by name. Each is imported only when it takes part, so that a peer that is
not installed keeps nobody else from running."""

from __future__ import annotations

from importlib import import_module, metadata

from benchmarks.contenders.base import Contender

_CLASSES = {
    "abstractinator": "abstractinator:Abstractinator",
    "flat": "flat:Flat",
    "flat-window": "flat_window:FlatWindow",
    "blt": "blt:Blt",
    "megabyte": "megabyte:Megabyte",
    "h-net": "hnet:HNetBytes",
    "bpe-llama": "bpe_llama:BpeLlama",
}
NAMES = tuple(_CLASSES)

# The package that a peer comes in; the others are this project's own.
DISTRIBUTIONS = {
    "blt": "transformers",
    "megabyte": "MEGABYTE-pytorch",
    "h-net": "h-net-dynamic-chunking",
    "bpe-llama": "transformers",
}


def contender_class(name: str) -> type[Contender]:
    """The class of a contender. Raises ImportError where its package is missing."""
    module, _, attribute = _CLASSES[name].partition(":")
    found: type[Contender] = getattr(import_module(f"benchmarks.contenders.{module}"), attribute)
    return found


def version_of(name: str) -> str | None:
    """The installed version of a peer's package, "" for our own code, None where it is not installed."""
    if name not in DISTRIBUTIONS:
        return ""
    try:
        return metadata.version(DISTRIBUTIONS[name])
    except metadata.PackageNotFoundError:
        return None
