"""Settings of the processor that must be made before torch is imported. This module imports nothing heavy."""

from __future__ import annotations

import os

_SPINS = "4000"
_KERNELS = "128"


def limit_spinning() -> None:
    """Lets threads that wait for one another spin only briefly before they sleep (GNU OpenMP).

    A step of a small model has thousands of short parallel regions. Where another program keeps a core busy, a thread
    that spins keeps the one from running for which it waits: a training takes eight times as long. With few spins it
    loses far less, and on an idle machine almost nothing; training.shared_cores does the rest. What the user has set
    stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def limit_kernels() -> None:
    """Keeps fewer matrix products that oneDNN has prepared, each for the shapes of its matrices.

    By default it keeps 1,024. The number of segments differs from batch to batch, so hardly one is used again, and they
    take a gigabyte. What the user has set stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)
