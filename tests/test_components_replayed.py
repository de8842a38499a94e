"""Recordings as a graph on a GPU has them: of fixed inputs and fixed memory, into one output, and blind to all else."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from abstractinator.components.hierarchical.generation import generate_bytes
from abstractinator.components.hierarchical.incremental_model import IncrementalModel
from abstractinator.components.incremental import incremental_transformer, replayed
from abstractinator.components.incremental.replayed import Replayed, Step, recorder_for
from abstractinator.components.sampling import GenerationConfig


class Recorder:
    """Stands in for `cuda_graph`: the operations of a step on tensors that stay the same ones."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, step: Step, inputs: list[Tensor]) -> Callable[[], Tensor]:
        self.recordings += 1
        operations = make_fx(step)(*inputs)
        shape = step(*inputs).shape
        with torch.inference_mode(False):
            result = torch.empty(shape)

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(operations(*inputs))

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(incremental_transformer, "recorder_for", lambda device: recorder)
    monkeypatch.setattr(replayed, "_NOT_RECORDED", 1)
    return recorder


def test_only_a_gpu_records() -> None:
    assert recorder_for("cpu") is None
    assert recorder_for("cuda") is not None


@pytest.mark.parametrize("inference", [True, False])
def test_a_step_is_recorded_when_shapes_and_places_stay(inference: bool, recorder: Recorder) -> None:
    memory, done = torch.zeros(2), Replayed(recorder)

    def step(x: Tensor) -> Tensor:
        memory[: len(x)] = x
        return 2 * x

    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    with torch.inference_mode(inference):
        first = [done(step, [one], written=[memory]) for _ in range(3)][-1]
        second = done(step, [two], written=[memory])
        assert first.tolist() == [2.0, 4.0] and second.tolist() == [6.0, 8.0]  # the first is not written over
        assert memory.tolist() == [3.0, 4.0] and one.tolist() == [1.0, 2.0]
        assert (recorder.recordings, recorder.replays) == (1, 3)
    done(step, [two], written=[memory])  # outside of inference mode, too
    memory = torch.zeros(2)
    for times in range(2):
        done(step, [one], written=[memory])
        assert recorder.recordings == 1 + times and memory.tolist() == [1.0, 2.0]
    for times in range(2):
        assert done(step, [torch.full((1,), 5.0)], written=[memory]).tolist() == [10.0]
        assert recorder.recordings == 2 + times and memory.tolist() == [5.0, 2.0]


@pytest.mark.parametrize("mode", ["exact", "plan", "speculative"])
@pytest.mark.parametrize("prompts", [[b"the cat"], [b"a", b"the cat sat on the mat", b"\xff\x00 \n"]], ids=len)
def test_generation_from_recordings_is_generation(
    mode: str, prompts: list[bytes], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("threshold")
    config = GenerationConfig(mode=mode, max_new_bytes=60, seed=3, stop=("e",))  # rows end at different times
    recorded = generate_bytes(model, prompts, config)
    assert recorder.replays > recorder.recordings > 0
    monkeypatch.undo()
    assert generate_bytes(model, prompts, config) == recorded


@torch.no_grad()
def test_rows_that_are_kept_are_recorded_anew(recorder: Recorder) -> None:
    state, every = IncrementalModel(tiny_model("fixed"), 2), torch.arange(2)
    for byte in b"the cat":
        state.read(every, torch.full((2, 1), byte), torch.ones(2, dtype=torch.int64))
    recordings, replays = recorder.recordings, recorder.replays
    assert recordings and replays
    state.keep(every)  # the same rows, but in other places
    for byte in b"sat":
        state.read(every, torch.full((2, 1), byte), torch.ones(2, dtype=torch.int64))
    assert recorder.recordings > recordings and recorder.replays > replays


def test_what_was_recorded_goes_with_its_state(recorder: Recorder) -> None:
    state = IncrementalModel(tiny_model("fixed"), 1)
    state.prefill([b"the cat sat"])
    gone = weakref.ref(state.top.transformer)
    gc.disable()
    try:
        del state
        assert gone() is None
    finally:
        gc.enable()
