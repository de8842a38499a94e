"""A run of lm-evaluation-harness: checks first, then its own work, table and files."""

from __future__ import annotations

import difflib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval import evaluator, simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table, sanitize_model_name

from abstractinator import registry
from abstractinator.evaluation.generation_requests import generation_request
from abstractinator.evaluation.model_args import parse_model_args
from abstractinator.evaluation.model_lm import register_kinds
from abstractinator.evaluation.options import EvaluationOptions
from abstractinator.messages import first_line
from abstractinator.tracking import start_tracking


def evaluate(options: EvaluationOptions) -> dict[str, Any] | None:
    """Evaluates, prints the harness's table and returns its results; None on all processes but the first.

    Raises ValueError or OSError, before any request is scored, for invalid options, tasks and checkpoints.
    """
    register_kinds()
    model_args, gen_kwargs = _model_args(options), _gen_kwargs(options)
    if options.output_path is not None:
        _check_writable(options.output_path)
    lm = _model(options, model_args)  # before the tasks: the harness's index of them alone takes long
    print("reading the harness's index of tasks", file=sys.stderr)
    manager, names = find_tasks(options.task_names, options.include_path, model_args)
    tasks = load_tasks(names, manager)
    if options.model in registry.names():
        check_generation(tasks, gen_kwargs)
    tracker = EvaluationTracker(output_path=options.output_path)
    random_seed, numpy_seed, torch_seed, fewshot_seed = options.seeds
    with _silent_git(), redirect_stdout(sys.stderr):  # where what it says on the way belongs
        results = simple_evaluate(
            model=lm,
            model_args=model_args,
            tasks=tasks,
            num_fewshot=options.num_fewshot,
            batch_size=options.batch_size,
            device=options.device,
            gen_kwargs=gen_kwargs or None,
            limit=options.limit,
            log_samples=options.log_samples,
            evaluation_tracker=tracker,
            task_manager=manager,
            random_seed=random_seed,
            numpy_random_seed=numpy_seed,
            torch_random_seed=torch_seed,
            fewshot_random_seed=fewshot_seed,
        )
    if results is None:
        return None
    results["config"]["model"] = tracker.general_config_tracker.model_source = options.model
    written = _save(results, tracker)
    text = _report(results, options)
    print(text)
    if written:
        print(f"wrote {', '.join(map(str, written))}")
    if options.mlflow is not None:
        _record(results, options, text)
    return results


def _model_args(options: EvaluationOptions) -> dict[str, Any]:
    arguments = parse_model_args(list(options.model_args))
    if options.model == "hf" and "use_accelerate" in arguments:
        arguments["parallelize"] = arguments.pop("use_accelerate")  # what the harness calls it today
    return arguments


def _gen_kwargs(options: EvaluationOptions) -> dict[str, Any]:
    """What all generation is to be done with. Raises ValueError for what our kinds do not take."""
    arguments = parse_model_args(list(options.gen_kwargs), "--gen_kwargs")
    if options.model in registry.names() and arguments:
        generation_request(arguments)  # as each request will be, hours later
    return arguments


def _model(options: EvaluationOptions, model_args: dict[str, Any]) -> LM:
    """The model, made as the harness makes it. Raises ValueError for arguments that it does not have, or lacks."""
    kind = get_model(options.model)
    try:
        inspect.signature(kind).bind(**model_args)
    except TypeError as error:
        raise ValueError(f"--model_args do not suit --model {options.model}: {error}") from error
    return kind.create_from_arg_obj(model_args, {"batch_size": options.batch_size, "device": options.device})


def _git_commit() -> str | None:
    """The commit of the current folder, None outside of a git repository."""
    try:
        done = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True)
    except OSError:
        return None  # there is no git
    return done.stdout.strip() or None


@contextmanager
def _silent_git() -> Iterator[None]:
    """Meanwhile the harness asks `_git_commit`: its own way lets git print its error where there is no repository."""
    theirs = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = _git_commit
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = theirs


def leave_other_processes() -> None:
    """To be called at the end of a program: threads of the talk between processes would abort it when Python ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# ---- tasks -------------------------------------------------------------------------------------------------


def find_tasks(
    names: list[str], include_path: str | None = None, metadata: dict[str, Any] | None = None
) -> tuple[TaskManager, list[str]]:
    """The tasks, groups, tags and task files that names and patterns stand for; their data are not touched.

    include_path: a folder of task files, in addition to the harness's own. metadata: what tasks may ask of the model's
    arguments. Raises ValueError for a name that does not exist, with the nearest.
    """
    manager = TaskManager(include_path=include_path, metadata=metadata)
    found: list[str] = []
    for name in names:
        matches = [name] if Path(name).suffix == ".yaml" and Path(name).is_file() else manager.match_tasks([name])
        if not matches:
            near = difflib.get_close_matches(name, manager.all_tasks, 3, cutoff=0.5)
            advice = f"the nearest are {', '.join(near)}" if near else "`lm-eval ls tasks` lists them"
            raise ValueError(f"there is no task {name!r}; {advice}{_broken_files(include_path)}")
        found += matches
    return manager, list(dict.fromkeys(found))


def _broken_files(folder: str | None) -> str:
    """The first task file that cannot be read, and why, in words; the harness passes over such files in silence."""
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            return f"; the task file {path} cannot be read: {' '.join(str(error).split())}"
    return ""


def load_tasks(names: list[str], manager: TaskManager) -> list[Any]:
    """Tasks and groups with their data, as simple_evaluate takes them.

    Raises ValueError where the data cannot be had.
    """
    return [task for name in names for task in _loaded(name, manager)]


def _loaded(name: str, manager: TaskManager) -> list[Any]:
    """The task, the group, or the tasks of the tag of this name."""
    try:
        loaded = manager.load([name])
    except ConnectionError as error:
        raise ValueError(
            f"the data of task {name} are on the Hugging Face hub, which cannot be reached ({first_line(error)}). Run "
            f"once with a network, so that they are kept, or use local files: write a task file with `dataset_path: "
            f"json` and `dataset_kwargs: {{data_files: {{test: FILE.jsonl}}}}`, and give its folder as --include_path"
        ) from error
    except Exception as error:  # whatever a task file, its Python or its data can do wrong
        why = error.__cause__ if isinstance(error.__cause__, Exception) else error  # datasets hides it there
        raise ValueError(f"task {name} cannot be loaded: {type(why).__name__}: {first_line(why)}") from error
    group = loaded.get("groups", {}).get(name)
    return [group] if group is not None else list(loaded["tasks"].values())


def check_generation(tasks: Iterable[Any], gen_kwargs: dict[str, Any]) -> None:
    """Raises ValueError, naming the task, for arguments of generation that our kinds do not take.

    tasks: Tasks, and Groups of them. gen_kwargs: the user's, which update those of a task.
    """
    for task in tasks:
        if isinstance(task, Group):
            check_generation(task, gen_kwargs)
        elif task.OUTPUT_TYPE == "generate_until":
            try:
                generation_request((task.config.generation_kwargs or {}) | gen_kwargs)
            except ValueError as error:
                raise ValueError(f"task {task.config.task}: {error}") from error


# ---- results -----------------------------------------------------------------------------------------------


def _check_writable(path: str) -> None:
    """Raises ValueError where the results could not be written at the end."""
    folder = _folder_of(path)
    try:
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:
        raise ValueError(f"--output_path={path} cannot be written to ({error.strerror})") from error
    if not there.is_dir():
        raise ValueError(f"--output_path={path} cannot be written to: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"--output_path={path} cannot be written to: {there} is write-protected")


def _folder_of(output_path: str) -> Path:
    """Where the harness puts its files, or a folder for each model."""
    return Path(output_path).parent if Path(output_path).suffix == ".json" else Path(output_path)


def _save(results: dict[str, Any], tracker: EvaluationTracker) -> list[Path]:
    """The harness's files, under --output_path if there is one → where. Takes the samples out of the results."""
    names = tracker.general_config_tracker
    if "checkpoint" in results["config"]:  # the harness knows no such thing and would make up a name for the folder
        names.model_name = str(results["config"]["checkpoint"])
        names.model_name_sanitized = sanitize_model_name(names.model_name)
    samples = results.pop("samples", None)
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, task_samples in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=task_samples)
    # Where the tracker could not write, it has warned, and has no date_id.
    if tracker.output_path is None or not hasattr(tracker, "date_id"):
        return []
    folder, end = _folder_of(tracker.output_path), f"*_{tracker.date_id}.json*"
    return sorted([*folder.glob(end), *(folder / str(names.model_name_sanitized)).glob(end)])


def _report(results: dict[str, Any], options: EvaluationOptions) -> str:
    """The harness's table under a line that says what was measured, and how."""
    config = results["config"]
    scoring = f", scoring: {config['scoring']}" if "scoring" in config else ""
    line = (
        f"{options.model} ({', '.join(f'{k}={v}' for k, v in config['model_args'].items())}){scoring}, "
        f"limit: {options.limit}, num_fewshot: {options.num_fewshot}, batch_size: {options.batch_size}"
    )
    tables = [make_table(results)] + ([make_table(results, "groups")] if "groups" in results else [])
    return "\n".join([line, *tables])


def _record(results: dict[str, Any], options: EvaluationOptions, text: str) -> None:
    """Settings, every number and the table, as a run of the project in ./mlruns."""
    metrics = {
        f"{task}/{name}".replace(",none", "").replace(",", "/"): float(value)
        for task, values in results["results"].items()
        for name, value in values.items()
        if isinstance(value, int | float) and name != "sample_len"
    }
    with start_tracking(options.mlflow, f"evaluate {options.model}") as tracker:
        tracker.log_config({key: value for key, value in results["config"].items() if value is not None})
        tracker.log_metrics(metrics, step=results["config"].get("checkpoint_steps", 0))
        tracker.log_text(text, "results.txt")
