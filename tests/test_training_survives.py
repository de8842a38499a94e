"""Whatever stops a training, a good checkpoint is left: losses that are not finite, a full disk, signals, kill -9."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import names_in, tiny_experiment, weights_of, write_config

from abstractinator.checkpoints import checkpoint_file as checkpoint
from abstractinator.checkpoints import checkpoint_folder
from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.cli import main as cli
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.contract.model import Batch
from abstractinator.training import loop
from abstractinator.training.loop import Interrupted, train
from abstractinator.training.state import RunState, TrainingError
from abstractinator.training.step import StepResult

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("elsewhere")


def not_finite_at(monkeypatch: pytest.MonkeyPatch, call: int, value: float) -> None:
    """The model's loss is that value at its so-manyth forward pass in training."""
    real, calls = HierarchicalAELM.forward, [0]

    def broken(self: HierarchicalAELM, batch: Batch, phase: str) -> Any:
        losses = real(self, batch, phase)
        calls[0] += self.training
        return dataclasses.replace(losses, total=losses.total * value) if calls[0] == call else losses

    monkeypatch.setattr(HierarchicalAELM, "forward", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    not_finite_at(monkeypatch, 5, value)
    with pytest.raises(TrainingError, match=r"infinite or NaN in steps 5 to 6,") as stopped:
        train(tiny_experiment(tmp_path, checkpoint_interval=2))
    assert Path(str(stopped.value).rpartition("resume_from_checkpoint=")[2]).is_file()
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "checkpoint_step4.pt"]
    assert all(torch.isfinite(x).all() for x in weights_of(tmp_path, 4).values())


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_finite_at(monkeypatch, 3, math.nan)
    with pytest.raises(TrainingError, match=r"in steps 1 to 3,.*, and start again$"):
        train(tiny_experiment(tmp_path, checkpoint_interval=3, log_interval=1000))
    assert names_in(tmp_path / "checkpoints") == []


def test_a_measurement_that_fails_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_validate", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        train(tiny_experiment(tmp_path, checkpoint_interval=4, validation_interval=4))
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step4.pt"]


def test_two_trainings_do_not_write_to_one_folder(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=1)
    train(config)
    with (
        checkpoint_folder.lock(config.checkpoint_dir),
        pytest.raises(CheckpointError, match=r"another.*checkpoint_dir="),
    ):
        train(config)
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step1.pt", "summary.json"]
    train(config)


def test_a_checkpoint_names_no_other_files_to_be_removed(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=2)
    train(config)
    path, other = tmp_path / "checkpoints" / "checkpoint_step2.pt", tmp_path / "precious"
    other.touch()
    payload = load_checkpoint(path)
    checkpoint.save_checkpoint(path, payload | {"written": {"../precious": 1.0, str(other): 2.0, path.name: 3.0}})
    resumed = dataclasses.replace(config, max_steps=6, checkpoint_interval=1, resume_from_checkpoint="latest")
    train(dataclasses.replace(resumed, checkpoints_kept=1))
    assert other.exists()
    assert len(checkpoint_folder.checkpoints(tmp_path / "checkpoints")) <= 2  # those of this run are


def test_a_loss_that_is_not_finite_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    not_finite_at(monkeypatch, 3, math.nan)
    assert cli.main(["train", "--config", write_config(tmp_path / "c.py", tiny_experiment(tmp_path))]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("abstractinator: the loss or its gradient became infinite or NaN in steps 3 to 4, ")


def test_too_large_a_learning_rate_stops_the_training(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, checkpoint_interval=1, warmup_steps=0, checkpoints_kept=8)
    with pytest.raises(TrainingError, match=r"in steps \d"):
        train(dataclasses.replace(config, learning_rate=1e30))
    saved = list((tmp_path / "checkpoints").glob("*.pt"))
    assert saved
    for path in saved:
        assert all(torch.isfinite(x).all() for x in load_checkpoint(path)["model"].values())


def test_a_huge_learning_rate_leaves_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.train_step

    def rising(state: RunState, batches: Iterator[Batch]) -> StepResult | None:
        if state.step >= 4:
            state.base_rates = [30.0 for _ in state.base_rates]
        return real(state, batches)

    monkeypatch.setattr(loop, "train_step", rising)
    config = tiny_experiment(tmp_path, max_steps=12, checkpoint_interval=1, checkpoints_kept=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, autoencoder_fraction=0.0))
    with contextlib.suppress(TrainingError):  # whether or not the loss ends as nan
        train(config)
    kept = [step for step, _ in checkpoint_folder.checkpoints(tmp_path / "checkpoints")]
    assert len(kept) == 2
    assert kept[0] <= 4 < kept[1]


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_experiment(tmp_path, checkpoint_interval=2)
    real, writes = torch.save, [0]

    def full(content: object, file: Any) -> None:
        writes[0] += 1
        real(content, file)
        if writes[0] == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    assert cli.main(["train", "--config", write_config(tmp_path / "c.py", config)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in message and "checkpoint_step2.pt" in message
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert train(dataclasses.replace(config, resume_from_checkpoint="latest")).steps == 8


def signalled(folder: Path, numbers: list[signal.Signals], **settings: Any) -> tuple[int, str]:
    """A training that gets signals after its first checkpoint → its exit status and standard error."""
    config = tiny_experiment(folder, max_steps=100_000, **settings)
    command = [sys.executable, str(ROOT / "train.py"), "--config", write_config(folder / "c.py", config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while latest_checkpoint(folder / "checkpoints") is None and process.poll() is None:
            time.sleep(0.02)
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals, status: int) -> None:
    folder = tmp_path / "checkpoints"
    returned, err = signalled(tmp_path, [number], checkpoint_interval=20)
    assert returned == status, err
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert f"resume_from_checkpoint={latest}" in err
    assert "Traceback" not in err
    assert load_checkpoint(latest)["step"] >= 20


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    returned, err = signalled(tmp_path, [signal.SIGINT, signal.SIGINT], checkpoint_interval=5)
    assert returned == 130, err
    assert "Traceback" not in err
    latest = latest_checkpoint(folder)
    assert (latest is not None and load_checkpoint(latest)["step"] % 5 == 0) or "resume_from" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["_save", "evaluate_held_out"])
def test_a_signal_in_the_last_measurement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, number: signal.Signals
) -> None:
    real, config = getattr(loop, when), tiny_experiment(tmp_path, max_steps=2)
    handler = signal.getsignal(number)

    def stopping(*arguments: Any, **settings: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(loop, when, stopping)
        with pytest.raises(Interrupted) as stopped:
            train(config)
    assert stopped.value.signal_number == number
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt"]
    assert signal.getsignal(number) is handler
    resumed = dataclasses.replace(config, resume_from_checkpoint=str(stopped.value.checkpoint))
    assert train(resumed).steps == 2
    assert names_in(tmp_path / "checkpoints") == ["checkpoint_step2.pt", "summary.json"]


@pytest.mark.parametrize("heard", ["nothing", "what begins"])
def test_a_reader_who_goes_away_leaves_a_checkpoint(tmp_path: Path, heard: str) -> None:
    config = tiny_experiment(tmp_path, max_steps=100_000, log_interval=1)
    code = "from abstractinator.training import loop; loop._SECONDS_BETWEEN_LINES = 0.1\n"
    code += "import sys; from abstractinator.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "--config", write_config(tmp_path / "c.py", config)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    assert process.stdout is not None
    try:
        begun = b""
        while heard == "what begins" and b"training:" not in begun:
            begun += os.read(process.stdout.fileno(), 1 << 16)
        process.stdout.close()
        status = process.wait(timeout=250)
    finally:
        process.kill()
    assert status == 128 + signal.SIGPIPE
    if heard == "what begins":
        latest = latest_checkpoint(tmp_path / "checkpoints")
        assert latest is not None
        assert load_checkpoint(latest)["step"] >= 1


# Trains in forked children, each resuming where the one before was killed at a random moment.
KILLED = """
import os, random, signal, sys, time, torch
from abstractinator.config.experiment import load_experiment
from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.training.loop import train
torch.set_num_threads(1)
random.seed(0)
before = 0
for round in range(6):
    resume = [f"resume_from_checkpoint={'latest' if before else None}"]
    config = load_experiment(sys.argv[1], resume)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        train(config)
        os._exit(1)
    while latest_checkpoint(config.checkpoint_dir) is None or (
        load_checkpoint(latest_checkpoint(config.checkpoint_dir))["step"] <= before
    ):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child ended by itself"
        time.sleep(0.01)
    time.sleep(random.random() * 0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    payload = load_checkpoint(latest_checkpoint(config.checkpoint_dir))
    assert payload["step"] > before
    before = payload["step"]
print(before)
"""


def test_kills_at_random_moments_leave_a_checkpoint_to_resume(tmp_path: Path) -> None:
    config = tiny_experiment(tmp_path, max_steps=100_000, checkpoint_interval=1, checkpoints_kept=20)
    arguments = [sys.executable, "-c", KILLED, write_config(tmp_path / "c.py", config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this code, not an installed one
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6
