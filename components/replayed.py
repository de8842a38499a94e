"""Steps that are recorded once and then replayed, where the device can: many small kernels for the cost of one call.

On CUDA a recording is a CUDA graph. A processor has nothing of the kind; there a step is simply done.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., Tensor]
Recorder = Callable[[Step, list[Tensor]], Callable[[], Tensor]]
_WARM_UP = 2  # times that a step is done before it is recorded, for what it does only at first


def recorder_for(device_type: str) -> Recorder | None:
    """What records steps on a device; None where nothing can."""
    return cuda_graph if device_type == "cuda" else None


def cuda_graph(step: Step, inputs: list[Tensor]) -> Callable[[], Tensor]:
    """The step on these inputs, which may get other values later → what does it anew, and gives its result: always the
    same tensor."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step(*inputs)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class Replayed:
    """A step as a function of tensors, recorded when it is first done and again when shapes, or the places of what it
    writes to, have changed.

    The step must not look at values on the way, and doing it twice must be the same as once.
    """

    def __init__(self, step: Step, record: Recorder) -> None:
        self.step, self.record = step, record
        self._key: tuple[object, ...] = ()

    def __call__(self, inputs: list[Tensor], written: list[Tensor]) -> Tensor:
        """written: what the step writes to besides its result."""
        key = (*(x.shape for x in inputs), *(x.data_ptr() for x in written))
        if key != self._key:
            with torch.inference_mode(False):  # what is kept may be written in either mode
                self._inputs = [x.clone() for x in inputs]
            self._replay, self._key = self.record(self.step, self._inputs), key
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        return self._replay().clone()
