"""Checkpoints: whole or not there, checked, and without code."""

import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from abstractinator.checkpoints import checkpoint_file as module
from abstractinator.checkpoints.checkpoint_file import load_checkpoint, map_checkpoint, save_checkpoint
from abstractinator.checkpoints.checkpoint_folder import check_writable, latest_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.random_state import random_state, set_random_state

ROOT = Path(__file__).resolve().parents[1]

# Saves step 1, then has children save step 2 and kills each when so much of its 64 MiB is written.
KILLED = """
import os, signal, sys, torch
from pathlib import Path
from abstractinator.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder / "checkpoint_step1.pt", {"step": 1})
weights = torch.zeros(16, 2**20)
for fraction in [0.0, 0.3, 0.6, 0.95]:
    child = os.fork()
    if child == 0:
        save_checkpoint(folder / "checkpoint_step2.pt", {"step": 2, "weights": weights})
        os._exit(0)
    temporary = folder / f".checkpoint_step2.pt.{child}.tmp"
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if temporary.exists() and temporary.stat().st_size >= fraction * 2**26:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
    latest = load_checkpoint(latest_checkpoint(folder))
    print(latest["step"], "cut" if temporary.exists() else "whole", len(list(folder.glob(".*"))))
save_checkpoint(folder / "checkpoint_step3.pt", {"step": 3})
"""

# A file of at most 1 MiB stands for a full disk: the write fails midway with an OSError.
FULL_DISK = """
import resource, sys, torch
from abstractinator.checkpoints.checkpoint_file import save_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
folder = sys.argv[1]
save_checkpoint(f"{folder}/checkpoint_step1.pt", {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
try:
    save_checkpoint(f"{folder}/checkpoint_step2.pt", {"weights": torch.zeros(4, 2**20)})
except CheckpointError as error:
    print(error)
"""


def run(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_step7.pt"
    save_checkpoint(path, {"step": 7, "weights": torch.arange(1000.0), "config": {"name": "x", "sizes": [1, 2]}})
    return path


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    return str(caught.value)


def test_a_checkpoint_is_read_as_it_was_written(saved: Path) -> None:
    content = load_checkpoint(saved)
    assert content["step"] == 7
    assert content["config"] == {"name": "x", "sizes": [1, 2]}
    assert torch.equal(content["weights"], torch.arange(1000.0))
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"payload\['loss'\]\[0\] is a float64"):
        save_checkpoint(tmp_path / "checkpoint_step1.pt", {"loss": [np.float64(1.0)]})
    assert not list(tmp_path.iterdir())


def test_the_latest_is_the_one_with_the_largest_step(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for name in ["checkpoint_step9.pt", "checkpoint_step10.pt", "checkpoint_stepx.pt", "other_step99.pt"]:
        (tmp_path / name).touch()
    (tmp_path / ".checkpoint_step11.pt.1.tmp").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_step10.pt"


# ---- writes that break off ----


def test_a_kill_during_a_write_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    lines = run(KILLED, tmp_path).splitlines()
    assert len(lines) == 4
    assert "1 cut 1" in lines  # at least one child was caught at its write; the dead child's file is then removed
    assert all(line.split()[2] in "01" for line in lines), lines
    assert not list(tmp_path.glob(".*"))
    assert load_checkpoint(tmp_path / "checkpoint_step1.pt")["step"] == 1


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    printed = run(FULL_DISK, tmp_path)
    assert "cannot write" in printed and "checkpoint_step1.pt; free disk space" in printed
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint_step1.pt"]
    assert load_checkpoint(tmp_path / "checkpoint_step1.pt")["step"] == 1


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_sync_leaves_the_previous_content(
    saved: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save_checkpoint(saved, {"step": 8})
    assert load_checkpoint(saved)["step"] == 7
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_an_unwritable_folder_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*Not a directory.*checkpoint_dir"):
        check_writable(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match="there is no earlier checkpoint"):
        save_checkpoint(tmp_path / "file" / "checkpoint_step1.pt", {})
    check_writable(tmp_path / "new" / "checkpoints")
    assert not list((tmp_path / "new" / "checkpoints").iterdir())


# ---- files that are not what they should be ----


def test_no_flipped_bit_is_silent(saved: Path) -> None:
    whole, before = saved.read_bytes(), load_checkpoint(saved)
    for offset in range(0, len(whole), 37):
        saved.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << offset % 8]) + whole[offset + 1 :])
        try:  # a flip in the padding between records changes nothing
            content = load_checkpoint(saved)
        except CheckpointError:
            continue
        assert torch.equal(content.pop("weights"), before["weights"])
        assert content == {key: value for key, value in before.items() if key != "weights"}


def test_a_flipped_weight_and_a_cut_file(saved: Path) -> None:
    whole = saved.read_bytes()
    at = whole.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    saved.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "is damaged or cut short: use an earlier checkpoint" in error_of(saved)
    for length in [len(whole) - 1, len(whole) // 2, 10]:
        saved.write_bytes(whole[:length])
        assert "is damaged or cut short" in error_of(saved)


def test_a_damaged_file_names_the_one_to_use(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save_checkpoint(tmp_path / f"checkpoint_step{step}.pt", {"step": step})
    last = tmp_path / "checkpoint_step10.pt"
    last.write_bytes(last.read_bytes()[:-1])
    assert error_of(last).endswith(f"use an earlier checkpoint, such as {tmp_path / 'checkpoint_step9.pt'}")


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_step1.pt"
    for content in [b"", b"no checkpoint at all", pickle.dumps({"a": 1})]:
        path.write_bytes(content)
        assert error_of(path) == f"{path} is not a checkpoint"
    for payload in [{"state_dict": {}}, [1, 2], torch.zeros(2)]:
        torch.save(payload, path)
        assert "written by another program: it lacks the mark 'abstractinator-checkpoint'" in error_of(path)


@pytest.mark.parametrize(
    ("version", "advice"), [(9, "update this program"), (1, "train again, or use abstractinator 0.0.1")]
)
def test_another_version_says_which(saved: Path, version: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT_VERSION", version)
        save_checkpoint(saved, {"version": "0.0.1"})
    this = f"this program reads version {module.FORMAT_VERSION}: {advice}"
    assert f"has checkpoint format version {version}; {this}" in error_of(saved)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02]K\x03a.",
        b"\x80\x02N.",
        b"\x80\x02q",
        b"\x80\x02h\x07.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    ],
)
def test_malformed_contents_are_one_line(saved: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(saved) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)
    for read in (load_checkpoint, map_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(saved)
        assert "\n" not in str(caught.value) and str(saved) in str(caught.value)


class Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_step1.pt"
    torch.save(
        {"format": module.FORMAT, "format_version": module.FORMAT_VERSION, "x": Evil(str(tmp_path / "pwned"))}, path
    )
    assert "is not loaded: it holds objects that only running its code could restore" in error_of(path)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_file_lists_those_there_are(saved: Path) -> None:
    assert error_of(saved.with_name("checkpoint_step8.pt")).endswith("there are: checkpoint_step7.pt")
    assert error_of(saved.parent).endswith(f"is a folder; give a file, such as {saved}")
    assert error_of(saved.parent / "none" / "x.pt").endswith(f"; {saved.parent / 'none'} holds no checkpoints")


# ---- random states ----


def draw() -> list[Any]:
    normal = [random.gauss(0, 1), float(np.random.standard_normal())]  # each keeps a second value back
    return [*normal, random.random(), float(np.random.rand()), torch.rand(3).tolist()]


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    draw()
    save_checkpoint(tmp_path / "checkpoint_step1.pt", {"random": random_state()})
    first = draw()
    draw()
    set_random_state(load_checkpoint(tmp_path / "checkpoint_step1.pt")["random"])
    assert draw() == first
