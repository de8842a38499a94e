"""What a run leaves in MLflow: its settings, metrics, sample texts and plots, in a local store (store.py).

`ui_command` gives the command that shows it. The store is opened, and written to, in a thread of its own, so that
a training does not wait for it.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

from abstractinator.tracking.store import DATABASE, open_store, store_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)
TRACKING_FOLDER = "mlruns"
_MAX_VALUE = 6000  # characters of a parameter, MLflow's limit
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_GIVE_UP_AFTER = 3  # failures in a row: a locked database blocks for seconds at every attempt


class Tracker:
    """The interface of all trackers; used as it is, the one that keeps nothing.

    As a context manager it ends the run: FINISHED, or FAILED after an exception, or KILLED after
    KeyboardInterrupt and SystemExit. No method raises for a failure of the store.
    """

    @property
    def run_id(self) -> str | None:
        """What `start_tracking` takes to resume this run; None where nothing is tracked. Waits for the store."""
        return None

    @property
    def is_kept(self) -> bool:
        """Whether what is logged is kept. Waits for the store."""
        return self.run_id is not None

    def log_config(self, config: dict[str, Any]) -> None:
        """The nested plain dict of settings: as flat parameters `data.path`, and whole as `config.json`."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """The values of several metrics at one step."""

    def log_text(self, text: str, artifact_file: str) -> None:
        """A text under a relative name such as `samples/step100.txt`."""

    def log_figure(self, figure: Figure, artifact_file: str) -> None:
        """A matplotlib figure under a relative name such as `plots/step100.png`."""

    def end(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end("FINISHED")
        else:
            self.end("FAILED" if issubclass(kind, Exception) else "KILLED")


def start_tracking(
    project_name: str | None, run_name: str, run_id: str | None = None, root: str | Path = TRACKING_FOLDER
) -> Tracker:
    """The tracker of a new run, or of the earlier run `run_id` of the same project, which is resumed.

    `project_name=None` gives a tracker that keeps nothing, and so does a store that cannot be opened, with a
    warning. A `run_id` that the store does not have, or that was deleted, begins a new run.
    """
    if project_name is None:
        return Tracker()
    return _MlflowTracker(store_folder(root, project_name), project_name, run_name, run_id)


def ui_command(project_name: str, root: str | Path = TRACKING_FOLDER) -> str:
    """The shell command that shows a project."""
    folder = store_folder(root, project_name)
    return f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{folder / DATABASE}')}"


class _MlflowTracker(Tracker):
    def __init__(self, folder: Path, project_name: str, run_name: str, run_id: str | None) -> None:
        self._folder, self._failures, self._warned = folder, 0, False
        self._run_id: str | None = None
        self._client: Any = None
        self._is_open = Event()
        self._actions: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, args=(project_name, run_name, run_id), name="tracking", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        self._is_open.wait()
        return self._run_id

    def _work(self, project_name: str, run_name: str, run_id: str | None) -> None:
        """Opens the store, then does what is asked for, in order, until None comes."""
        try:
            self._client, experiment_id = open_store(self._folder, project_name)
            if run_id is not None and self._is_known(run_id):
                self._client.update_run(run_id, status="RUNNING")
                self._run_id = run_id
            else:
                self._run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        except ModuleNotFoundError as error:
            advice = "pip install 'abstractinator[tracking]'"
            self._warn(f"this run is not tracked: {error.name} is not installed; {advice}")
        except Exception as error:
            self._warn(f"this run is not tracked: the store in {self._folder} failed: {_cause(error)}")
        self._is_open.set()
        while (action := self._actions.get()) is not None:
            self._try(action)

    def _warn(self, message: str) -> None:
        if not self._warned:
            _log.warning(message)
        self._warned = True

    def _is_known(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def log_config(self, config: dict[str, Any]) -> None:
        self.log_text(json.dumps(config, indent=2), "config.json")
        self._actions.put(lambda: self._log_params(config))

    def _log_params(self, config: dict[str, Any]) -> None:
        from mlflow.entities import Param

        # A parameter never changes in MLflow: a resumed run keeps its first values, config.json has the new.
        present = self._client.get_run(self._run_id).data.params
        flat = {_valid_key(key): value for key, value in _flatten(config, "")}
        params = [Param(key, value[:_MAX_VALUE]) for key, value in flat.items() if key not in present]
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_PER_BATCH])

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        now, numbers = int(1000 * time.time()), {name: float(value) for name, value in metrics.items()}
        self._actions.put(partial(self._log_metrics, numbers, step, now))

    def _log_metrics(self, metrics: dict[str, float], step: int, now: int) -> None:
        from mlflow.entities import Metric

        values = [Metric(_valid_key(key), value, now, step) for key, value in metrics.items()]
        for start in range(0, len(values), _METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=values[start : start + _METRICS_PER_BATCH])

    def log_text(self, text: str, artifact_file: str) -> None:
        self._actions.put(lambda: self._client.log_text(self._run_id, text, artifact_file))

    def log_figure(self, figure: Figure, artifact_file: str) -> None:
        self._actions.put(lambda: self._client.log_figure(self._run_id, figure, artifact_file))

    def end(self, status: str) -> None:
        self._actions.put(lambda: self._client.set_terminated(self._run_id, status))
        self._actions.put(None)
        self._thread.join()

    def _try(self, action: Callable[[], object]) -> None:
        """Does `action`; a training never stops for its tracking, so failures are one warning."""
        if self._run_id is None or self._failures >= _GIVE_UP_AFTER:
            return
        try:
            action()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            self._warn(f"tracking in {self._folder} failed, the run continues: {_cause(error)}")


def _flatten(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The leaves of nested dicts and lists of dicts with their dotted paths; a flat list is one value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}.{index}")
    else:
        yield path, str(value)


def _valid_key(key: str) -> str:
    """`key` in the characters and the length that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def _cause(error: BaseException) -> str:
    """The first error of a chain, in one line: MLflow tells it with pages of SQL."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
