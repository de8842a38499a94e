"""Tracking against one real local store (its database takes seconds to create) and against a broken one."""

import fcntl
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from abstractinator.tracking import Tracker, start_tracking, store, ui_command

CONFIG = {"lr": 0.1, "levels": [{"dim": 8}, {"dim": 16}], "sizes": [1, 2], "long": "y" * 7000, "none": {}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlruns")


def run_of(root: Path, tracker: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root}/project/mlflow.db").get_run(tracker.run_id)


def test_a_run_is_kept_and_resumed(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_tracking("project", "first", root=root) as tracker:
        tracker.log_config(CONFIG)
        tracker.log_metrics({"loss": 2.0, "bits/byte": float("nan")}, step=1)
        tracker.log_text("hello", "samples/step1.txt")
        tracker.log_figure(Figure(), "plots/step1.png")
    run = run_of(root, tracker)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    short = {"lr": "0.1", "levels.0.dim": "8", "levels.1.dim": "16", "sizes": "[1, 2]", "none": "{}"}
    assert run.data.params == {**short, "long": "y" * 6000}
    assert run.data.metrics["loss"] == 2.0
    names = {path.name for path in (root / "project" / "artifacts").rglob("*") if path.is_file()}
    assert names == {"config.json", "step1.txt", "step1.png"}

    with start_tracking("project", "second", run_id=tracker.run_id, root=root) as resumed:
        assert run_of(root, resumed).info.status == "RUNNING"
        resumed.log_config({**CONFIG, "lr": 0.2, "new": True})  # a changed value is no failure
        resumed.log_metrics({"loss": 1.0}, step=2)
    assert resumed.run_id == tracker.run_id
    run = run_of(root, resumed)
    assert (run.data.params["lr"], run.data.params["new"], run.data.metrics["loss"]) == ("0.1", "True", 1.0)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_run_ended_is_kept(root: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), start_tracking("project", "run", run_id="unknown", root=root) as tracker:
        raise error
    assert run_of(root, tracker).info.status == status


def test_a_store_that_another_process_never_releases_is_given_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.2)
    (root / "project").mkdir(exist_ok=True)
    with open(root / "project" / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with start_tracking("project", "run", root=root) as tracker:
            assert not tracker.is_kept
    (message,) = caplog.messages
    assert message.startswith("this run is not tracked: ") and "another process has held" in message


def test_a_failing_store_warns_and_the_training_continues(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def locked(*_: object, **__: object) -> None:
        attempts.append(1)
        raise OSError("database is locked\nwith a long story")

    with start_tracking("project", "run", root=root) as tracker:
        assert tracker.run_id is not None  # once the store is open
        monkeypatch.setattr(tracker._client, "log_batch", locked)  # type: ignore[attr-defined]
        for step in range(6):
            tracker.log_metrics({"loss": 1.0}, step)
    expected = f"tracking in {root}/project failed, the run continues: OSError: database is locked"
    assert caplog.messages == [expected]
    assert len(attempts) == 3  # then it is left alone


def test_a_store_that_cannot_be_opened_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with start_tracking("project", "run", root=tmp_path / "file") as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.run_id is None and not tracker.is_kept
    (message,) = caplog.messages
    assert message.startswith(
        f"this run is not tracked: the store in {tmp_path}/file/project failed: NotADirectoryError"
    )


def test_without_mlflow_it_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with start_tracking("project", "run", root=tmp_path) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
    assert not tracker.is_kept
    advice = "mlflow is not installed; pip install 'abstractinator[tracking]'"
    assert caplog.messages == [f"this run is not tracked: {advice}"]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_one_line_and_not_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with full_disk(300_000), start_tracking("project", "run", root=tmp_path) as tracker:
        assert tracker.run_id is None
    with start_tracking("project", "run", root=tmp_path) as tracker:
        assert tracker.run_id is not None  # the database that could not be finished is made again
        with full_disk(1000):
            for step in range(4):
                tracker.log_metrics({"loss": 1.0}, step)
            tracker.end("FINISHED")
    assert len(caplog.messages) == 2, caplog.messages
    assert all("failed" in message and "OperationalError: disk I/O error" in message for message in caplog.messages)
    assert all(len(message.splitlines()) == 1 for message in caplog.messages)
    assert capfd.readouterr().err == ""


def test_a_project_can_be_copied_and_nothing_is_written_to_the_original(root: Path, tmp_path: Path) -> None:
    with start_tracking("project", "first", root=root) as first:
        first.log_text("one", "one.txt")
    before = sorted(path for path in root.rglob("*") if path.is_file())
    copy = tmp_path / "My runs? a%20b"
    shutil.copytree(root, copy)
    with start_tracking("project", "first", run_id=first.run_id, root=copy) as resumed:
        resumed.log_text("two", "two.txt")
    with start_tracking("project", "second", root=copy) as second:
        second.log_text("three", "three.txt")
    assert sorted(path for path in root.rglob("*") if path.is_file()) == before
    names = {path.name for path in copy.rglob("*.txt")}
    assert {"one.txt", "two.txt", "three.txt"} <= names


def test_first_runs_at_once_are_both_tracked(tmp_path: Path) -> None:
    trackers = [start_tracking("project", f"run {number}", root=tmp_path) for number in range(2)]
    assert None not in {tracker.run_id for tracker in trackers}
    for tracker in trackers:
        tracker.end("FINISHED")


def test_a_deleted_run_begins_a_new_one_and_a_deleted_experiment_is_restored(root: Path) -> None:
    with start_tracking("project", "run", root=root) as tracker:
        pass
    client = tracker._client  # type: ignore[attr-defined]
    client.delete_run(tracker.run_id)
    with start_tracking("project", "run", run_id=tracker.run_id, root=root) as again:
        pass
    assert again.run_id not in (None, tracker.run_id)
    client.delete_experiment(client.get_experiment_by_name("project").experiment_id)
    with start_tracking("project", "run", run_id=again.run_id, root=root) as again:
        again.log_metrics({"loss": 1.0}, 1)
    assert run_of(root, again).data.metrics == {"loss": 1.0}


@pytest.mark.parametrize("project", ["Default", "is it better?"])
def test_any_plain_name_is_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str) -> None:
    monkeypatch.chdir(tmp_path)
    with start_tracking(project, "run") as tracker:
        tracker.log_text("x", "x.txt")
    assert len(list((tmp_path / "mlruns").rglob("x.txt"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns"]
    *_, uri = shlex.split(ui_command(project))
    assert (tmp_path / uri.removeprefix("sqlite:///")).is_file()


def test_a_home_that_cannot_be_written_to_is_no_obstacle(tmp_path: Path) -> None:
    code = """
from abstractinator.tracking import start_tracking
with start_tracking("project", "run") as tracker:
    tracker.log_text("x", "x.txt")
assert tracker.is_kept
"""
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "HOME": "/proc/none"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob("x.txt"))) == 1


def test_without_a_project_nothing_is_kept_or_imported(tmp_path: Path) -> None:
    code = """
import sys
from abstractinator.tracking.tracker import start_tracking
with start_tracking(None, "run") as tracker:
    tracker.log_config({"a": 1})
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_text("x", "x.txt")
    tracker.log_figure(None, "x.png")
assert tracker.run_id is None
assert "mlflow" not in sys.modules
"""
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert not list(tmp_path.iterdir())
