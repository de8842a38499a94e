"""Weights in large pages, where the system has them.

A step that reads every weight once to make a byte or a code is bound by that reading, and in pages of 4 kB finding them
is a good part of it.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_PAGE = 2 << 20


def in_large_pages(x: Tensor) -> Tensor:
    """A contiguous copy of x: for CPUs in whole large pages, where it fills a good part of one and the system has them
    (Linux); its last page is not shared with others."""
    if x.device.type != "cpu" or x.nbytes < _PAGE // 8 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return x.clone(memory_format=torch.contiguous_format)
    size = -(-x.nbytes // _PAGE) * _PAGE + _PAGE  # one more, as the first may begin anywhere
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    begin = -torch.frombuffer(pages, dtype=torch.uint8).data_ptr() % _PAGE
    copy = torch.frombuffer(pages, dtype=x.dtype, count=x.numel(), offset=begin)  # keeps the pages
    return copy.view(x.shape).copy_(x)
