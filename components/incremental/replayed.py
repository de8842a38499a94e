"""Steps that are recorded once and then replayed, where the device can: many small kernels for the cost of one call.

On CUDA a recording is a CUDA graph. A processor has nothing of the kind; there a step is simply done.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., Tensor]
Recorder = Callable[[Step, list[Tensor]], Callable[[], Tensor]]
_NOT_RECORDED = 8  # steps of one shape, the first ones


def recorder_for(device_type: str) -> Recorder | None:
    """What records steps on a device; None where nothing can."""
    return cuda_graph if device_type == "cuda" else None


def cuda_graph(step: Step, inputs: list[Tensor]) -> Callable[[], Tensor]:
    """The step on these inputs, which may get other values later → what does it anew, and gives its result: always the
    same tensor."""
    with torch.cuda.device(inputs[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(*inputs)  # for what is done only the first time on a stream
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = step(*inputs)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class Replayed:
    """Does a step, always the same one, as a function of tensors. Where shapes, and the places of what it writes to,
    have been the same for some times, it is recorded, as a recording costs as much as several steps.

    The step must not look at values on the way, and doing it twice must be the same as once.
    """

    def __init__(self, record: Recorder) -> None:
        self.record = record
        self._key: tuple[object, ...] = ()
        self._times = 0
        self._recording: tuple[list[Tensor], Callable[[], Tensor]] | None = None

    def __call__(self, step: Step, inputs: list[Tensor], written: list[Tensor]) -> Tensor:
        """written: what the step writes to besides its result."""
        key = (*(x.shape for x in inputs), *(x.data_ptr() for x in written))
        if key != self._key:
            self._key, self._times, self._recording = key, 0, None
        if self._recording is None:
            self._times += 1
            if self._times <= _NOT_RECORDED:
                return step(*inputs)
            with torch.inference_mode(False):  # what is kept may be written in either mode
                own = [x.clone() for x in inputs]
            self._recording = own, self.record(step, own)
        own, replay = self._recording
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        return replay().clone()
