"""MLflow's local store of a project: a folder with a SQLite database `mlflow.db` and `artifacts/` beside it.

A project can be moved and copied: the store holds absolute locations of artifacts, which are corrected when it is
opened.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any, BinaryIO

DATABASE = "mlflow.db"
_PATIENCE = 30.0  # seconds; to open a store takes some


def store_folder(root: str | Path, project_name: str) -> Path:
    """The folder of a project's store. Characters with a meaning in a URI or a path are replaced in its name."""
    return Path(root) / re.sub(r"[^\w\-. ]", "_", project_name)


def database_uri(path: Path) -> str:
    """The URI of a database file.

    In a URI `?`, `#` and `%` have a meaning of their own: where the path has one, it is given relative to the working
    folder, below which a store lies as a rule.
    """
    path = path.resolve()
    return f"sqlite:///{os.path.relpath(path) if set('?#%') & set(str(path)) else path}"


def open_store(folder: Path, project_name: str) -> tuple[Any, str]:
    """MLflow's client on the store in `folder`, created if missing, and the id of the project's experiment.

    Silent, and calls nobody. Two processes that open it at once wait for each other; raises TimeoutError
    after 30 s of it.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # 1.3 s, which a run without tracking need not pay

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is raised, and told in one line
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        _lock(file)
        location = (folder / "artifacts").resolve().as_uri()
        if not (folder / DATABASE).exists():
            _create(folder, location)
        client = MlflowClient(tracking_uri=database_uri(folder / DATABASE))
        experiment = client.get_experiment_by_name(project_name)
        if experiment is None:
            return client, client.create_experiment(project_name, artifact_location=location)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        if experiment.artifact_location != location:
            _correct_locations(folder, experiment.artifact_location, location)
        return client, experiment.experiment_id


def _lock(file: BinaryIO) -> None:
    """Waits for the other process that opens the store. Raises TimeoutError where that one does not come to an end."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {file.name} for {_PATIENCE:g} s") from None
            time.sleep(0.05)


def _create(folder: Path, location: str) -> None:
    """Creates the database, whole or not at all: MLflow could never open one whose tables are not all there."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for old in folder.glob(f".{DATABASE}.*"):
        old.unlink()  # of a process that was killed, or met a full disk
    new = folder / f".{DATABASE}.{uuid.uuid4().hex}"  # MLflow keeps an open file for every name that it has seen
    SqlAlchemyStore(database_uri(new), location).engine.dispose()
    new.rename(folder / DATABASE)


def _correct_locations(folder: Path, old: str, new: str) -> None:
    """The store was moved or copied: its artifacts are here now."""
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (new, old))
        database.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, len(old) + 1, f"{old}/"),
        )
    database.close()
