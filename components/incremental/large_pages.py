"""Weights in large pages, where the system has them.

A step that reads every weight once to make a byte or a code is bound by that reading, and in pages of 4 kB finding them
is a good part of it.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch
from torch import Tensor

_PAGE = 2 << 20
_CHUNK = 32 << 20  # what is asked of the system at once; only pages that are written to take memory
_ALIGNMENT = 64
_lock = threading.Lock()
_NONE = torch.empty(0, dtype=torch.uint8)
_room = _NONE  # what is left of the newest chunk; tensors keep the chunk that they lie in


def begin_chunk() -> None:
    """What comes now lies apart from what came before, so that its memory is given back as soon as it is not used."""
    global _room
    with _lock:
        _room = _NONE


def in_large_pages(x: Tensor) -> Tensor:
    """A contiguous copy of x, on a CPU side by side with others in pages that are large where the system has such."""
    global _room
    if x.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return x.clone(memory_format=torch.contiguous_format)
    size = -(-x.nbytes // _ALIGNMENT) * _ALIGNMENT
    with _lock:
        if size > len(_room):
            _room = _new_chunk(max(size, _CHUNK))
        place, _room = _room[: x.nbytes], _room[size:]
    return place.view(x.dtype).view(x.shape).copy_(x)


def _new_chunk(size: int) -> Tensor:
    """(size,) bytes that begin with a large page."""
    pages = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a system that knows no large pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    with torch.inference_mode(False):  # parts of it may be written in either mode
        chunk = torch.frombuffer(pages, dtype=torch.uint8)  # keeps the pages
    begin = -chunk.data_ptr() % _PAGE
    return chunk[begin : begin + size]
