"""Where to compute, and in which precision."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys

import torch


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Raises ValueError for a device that is not here."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = torch.device(name).type
    if not available.get(kind, False):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device={name} is not available on this machine (available: {here}); use device=auto")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(device: torch.device, mixed_precision: bool) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast where it pays, otherwise nothing."""
    if mixed_precision and has_bfloat16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def prepare_processor() -> None:
    """Makes steps on a CPU faster, of this process and from here on: to be called before anything is computed.

    Denormal numbers become 0: some processors take far longer for them, and probabilities of a trained attention come
    down to them. And glibc reuses freed buffers instead of giving them back, which saves page faults at every step.
    """
    torch.set_flush_denormal(True)  # threads inherit it, those that torch has begun already do not
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # another C library; its allocator stays as it is
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    # Before 2.35 glibc takes no more than 32 MB for the first. Where it took neither, the second would do harm: it ends
    # glibc's own adjusting of the first.
    if libc.mallopt(mmap_threshold, 1 << 30) or libc.mallopt(mmap_threshold, 1 << 25):
        libc.mallopt(trim_threshold, 1 << 30)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU where one computes, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
