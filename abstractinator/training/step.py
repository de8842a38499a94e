"""One optimizer step, from batches to updated weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from abstractinator.contract.model import Batch, Mean
from abstractinator.device import autocast
from abstractinator.training.state import RunState


@dataclass(frozen=True)
class StepResult:
    """Of all micro-batches of the step together. loss: what was minimised. parts: what the kind reports, by name.
    gradient_norm: before clipping. All on the model's device."""

    loss: Mean
    parts: Mapping[str, Mean]
    gradient_norm: Tensor

    def values(self) -> dict[str, float]:
        """The loss and its parts as numbers; waits for a GPU."""
        return {"loss": self.loss.value.item()} | {name: mean.value.item() for name, mean in self.parts.items()}


def train_step(state: RunState, batches: Iterator[Batch]) -> StepResult | None:
    """One optimizer step on the next batches; None where no batch is left. Nothing here waits for a GPU."""
    start, config, model, clock = time.perf_counter(), state.config, state.model, state.clock
    phases = model.phases()
    phase, loss, divisor = clock.phase(phases), None, None
    parts: dict[str, Mean] = {}
    model.train()
    for batch in itertools.islice(batches, config.gradient_accumulation_steps):
        batch = batch.to(model.device)
        with autocast(batch.ids.device, config.mixed_precision):
            losses = model(batch, phase.name)
        divisor = losses.weight if divisor is None else divisor
        (losses.total / divisor).backward()
        model.after_backward(losses, done=clock.done, first=state.step == 0 and loss is None)
        total = Mean(losses.total.detach(), losses.weight)
        loss = total if loss is None else loss + total
        for name, mean in losses.parts.items():
            parts[name] = parts[name] + mean if name in parts else mean
        state.bytes_read += batch.bytes
        state.rows_read += len(batch.ids)
    if loss is None or divisor is None:
        return None
    if loss.weight is not divisor:  # several micro-batches: divide by the weight of all
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, divisor / loss.weight)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip_norm)
    finite = torch.isfinite(loss.total) & torch.isfinite(norm)
    state.finite = finite if state.finite is None else state.finite & finite
    state.set_learning_rates()
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    clock.tick(time.perf_counter() - start, phases)
    return StepResult(loss, parts, norm)
