"""The metrics of a model on held-out rows: whatever its kind measures, summed over batches.

Letters: B rows, N token ids a row.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from tqdm import tqdm

from abstractinator.contract.model import Batch, Metric, Model, Sums
from abstractinator.device import autocast
from abstractinator.evaluation.at_rest import at_rest

LEAST_SECONDS = 30.0  # that a measurement may take in any case


def evaluate_held_out(
    model: Model, rows: Tensor, *, batch_size: int, mixed_precision: bool, seconds: float | None = None, seed: int = 0
) -> dict[str, Metric]:
    """The kind's metrics of held-out rows (B, N), and over how many bytes (`bytes`).

    seconds: after them no further batch is measured, so that an untrained model, of which some measurements take
    minutes, cannot hold up a run; None measures all. Batches come in a random order, so that any number of them is a
    fair sample. Changes no state of the model and no global random state.
    """
    start, parts = time.monotonic(), rows.split(batch_size)
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist()
    generator, sums = torch.Generator().manual_seed(seed), Sums()
    with at_rest(model):
        for index in tqdm(order, desc="measuring", unit="batch", leave=False, delay=2.0, mininterval=1.0):
            with autocast(model.device, mixed_precision):
                measured = model.measure(Batch.of(parts[index], model.tokenizer).to(model.device), generator)
            for name, value in measured.items():
                sums[name] = sums[name] + value if name in sums else value
            if seconds is not None and time.monotonic() - start > max(seconds, LEAST_SECONDS):
                break
        metrics = model.metrics(sums)
    return metrics | {"bytes": Metric(float(sums["bytes"]), "held-out bytes measured", ",.0f")}
