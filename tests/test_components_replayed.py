"""Recordings as a graph on a GPU has them: of fixed inputs, into one output, and blind to all else."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from components import incremental_transformer
from components.generation import generate_bytes
from components.replayed import Replayed, Step, recorder_for
from components.sampling import GenerationConfig


class Recorder:
    """Stands in for `cuda_graph`: whether a step may be replayed is up to the caller here as there."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, step: Step, inputs: list[Tensor]) -> Callable[[], Tensor]:
        self.recordings += 1
        shape = step(*inputs).shape
        with torch.inference_mode(False):
            result = torch.empty(shape)

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(step(*inputs))

        return replay


def test_only_a_gpu_records() -> None:
    assert recorder_for("cpu") is None
    assert recorder_for("cuda") is not None


@pytest.mark.parametrize("inference", [True, False])
def test_a_step_is_recorded_again_only_when_shapes_or_places_change(inference: bool) -> None:
    recorder, memory = Recorder(), torch.zeros(2)

    def step(x: Tensor) -> Tensor:
        memory[: len(x)] = x
        return 2 * x

    with torch.inference_mode(inference):
        replayed = Replayed(step, recorder)
        one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        first = replayed([one], written=[memory])
        second = replayed([two], written=[memory])
        assert first.tolist() == [2.0, 4.0] and second.tolist() == [6.0, 8.0]  # the first is not written over
        assert memory.tolist() == [3.0, 4.0] and one.tolist() == [1.0, 2.0]
        assert (recorder.recordings, recorder.replays) == (1, 2)
    replayed([two], written=[memory])  # outside of inference mode, too
    memory = torch.zeros(2)
    replayed([one], written=[memory])
    assert recorder.recordings == 2 and memory.tolist() == [1.0, 2.0]
    assert replayed([torch.full((1,), 5.0)], written=[memory]).tolist() == [10.0]
    assert recorder.recordings == 3 and memory.tolist() == [5.0, 2.0]


@pytest.mark.parametrize("mode", ["exact", "plan", "speculative"])
@pytest.mark.parametrize("prompts", [[b"the cat"], [b"a", b"the cat sat on the mat", b"\xff\x00 \n"]], ids=len)
def test_generation_from_recordings_is_generation(
    mode: str, prompts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recorder = tiny_model("threshold"), Recorder()
    config = GenerationConfig(mode=mode, max_new_bytes=60, seed=3, stop=("e",))  # rows end at different times
    plain = generate_bytes(model, prompts, config)
    monkeypatch.setattr(incremental_transformer, "recorder_for", lambda device: recorder)
    assert generate_bytes(model, prompts, config) == plain
    assert recorder.replays > recorder.recordings > 0
