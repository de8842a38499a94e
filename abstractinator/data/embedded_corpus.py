"""The corpus that every Python brings along: its standard library's sources and language reference."""

import os
import sysconfig
from pathlib import Path

from abstractinator.data.data_config import DataError
from abstractinator.data.formats.source import Source
from abstractinator.data.formats.text import TextUnit
from abstractinator.data.formats.units import DocumentUnit, MemoryUnit

# Not part of the library's own text: installed packages and tests.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled"}

# Generated tables, near-duplicates of each other (encodings); the reference's topics, which are
# documents of their own below.
_SKIPPED_PACKAGES = {"encodings", "pydoc_data"}


def _library_files(root: Path) -> list[Path]:
    """The library's own sources, relative to `root`, sorted; skipped folders are not even listed."""
    found: list[Path] = []
    for folder, below, names in os.walk(root):
        here = Path(folder).relative_to(root)
        skipped = _SKIPPED_FOLDERS | (_SKIPPED_PACKAGES if here == Path() else set())
        below[:] = [name for name in below if name not in skipped]
        # _sysconfigdata has the build's settings: machine paths, no prose.
        found += [here / name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
    return sorted(found)


def embedded_units() -> list[DocumentUnit]:
    """The embedded corpus as documents in a fixed order: each source file, then each reference topic.

    About 12 MB. The text depends on the running Python's version only. Raises DataError where this
    Python is installed without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    units: list[DocumentUnit] = [
        TextUnit(relative.as_posix(), Source(root / relative), (root / relative).stat().st_size)
        for relative in _library_files(root)
    ]
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems ship the reference apart
        pass
    else:
        units.append(MemoryUnit("pydoc_data.topics", tuple(topics[name].encode() for name in sorted(topics))))
    if not units:
        raise DataError(
            "this Python is installed without the sources of its standard library, which are the default "
            "corpus; give a file or folder of your own with data.path=…"
        )
    return units
