"""What a run leaves in MLflow: its settings, metrics, sample texts and plots, in a local store.

The store of a project is `mlruns/<project_name>/`: a SQLite database `mlflow.db` with `artifacts/` beside it.
To look at it: `mlflow ui --backend-store-uri sqlite:///mlruns/<project_name>/mlflow.db`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_VALUE = 6000  # characters of a parameter, MLflow's limit
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_GIVE_UP_AFTER = 3  # failures in a row: a locked database blocks for seconds at every attempt


class Tracker:
    """The interface of all trackers; used as it is, the one that keeps nothing.

    As a context manager it ends the run: FINISHED, or FAILED after an exception, or KILLED after
    KeyboardInterrupt and SystemExit. No method raises for a failure of the store.
    """

    run_id: str | None = None
    """What `start_tracking` takes to go on with this run; None where nothing is tracked."""

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
    project_name: str | None, run_name: str, run_id: str | None = None, root: str | Path = "mlruns"
) -> Tracker:
    """The tracker of a new run, or of the earlier run `run_id` of the same project, taken up again.

    `project_name=None` gives a tracker that keeps nothing, and so does a store that cannot be opened, with a
    warning. A `run_id` that the store does not have begins a new run.
    """
    if project_name is None:
        return Tracker()
    try:
        return _MlflowTracker(Path(root) / project_name, project_name, run_name, run_id)
    except Exception as error:
        warnings.warn(f"this run is not tracked, MLflow's store failed: {_first_line(error)}", stacklevel=2)
        return Tracker()


class _MlflowTracker(Tracker):
    def __init__(self, folder: Path, project_name: str, run_name: str, run_id: str | None) -> None:
        self._failures, self._warned = 0, False
        self._client = _open_client(folder)
        artifacts = (folder / "artifacts").resolve().as_uri()
        experiment = self._client.get_experiment_by_name(project_name)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            experiment_id = self._client.create_experiment(project_name, artifact_location=artifacts)
        if run_id is not None and self._is_known(run_id):
            self._client.update_run(run_id, status="RUNNING")
            self.run_id = run_id
        else:
            self.run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id

    def _is_known(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(run_id)
        except MlflowException:
            return False
        return True

    def log_config(self, config: dict[str, Any]) -> None:
        self.log_text(json.dumps(config, indent=2), "config.json")
        self._try(lambda: self._log_params(config))

    def _log_params(self, config: dict[str, Any]) -> None:
        from mlflow.entities import Param

        # A parameter never changes in MLflow: a resumed run keeps its first values, config.json has the new.
        present = self._client.get_run(self.run_id).data.params
        flat = {_valid_key(key): value for key, value in _flatten(config, "")}
        params = [Param(key, value[:_MAX_VALUE]) for key, value in flat.items() if key not in present]
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_BATCH])

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        values = [Metric(_valid_key(key), float(value), now, step) for key, value in metrics.items()]
        for start in range(0, len(values), _METRICS_PER_BATCH):
            batch = values[start : start + _METRICS_PER_BATCH]
            self._try(partial(self._client.log_batch, self.run_id, metrics=batch))

    def log_text(self, text: str, artifact_file: str) -> None:
        self._try(lambda: self._client.log_text(self.run_id, text, artifact_file))

    def log_figure(self, figure: Figure, artifact_file: str) -> None:
        self._try(lambda: self._client.log_figure(self.run_id, figure, artifact_file))

    def end(self, status: str) -> None:
        self._try(lambda: self._client.set_terminated(self.run_id, status))

    def _try(self, action: Callable[[], object]) -> None:
        """Runs `action`; a training never stops for its tracking, so a failure is one warning."""
        if self._failures >= _GIVE_UP_AFTER:
            return
        try:
            action()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            if not self._warned:
                warnings.warn(f"tracking failed, the run goes on: {_first_line(error)}", stacklevel=3)
            self._warned = True


def _open_client(folder: Path) -> Any:
    """MLflow's client on the database in `folder`, created if missing; silent, and calling nobody."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # 1.3 s, which a run without tracking need not pay

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")


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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
