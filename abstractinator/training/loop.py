"""The training loop: from settings to a trained model, its checkpoints and its summary."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.checkpoint_folder import (
    archive,
    best_checkpoint,
    check_writable,
    latest_checkpoint,
    lock,
    remove_old_checkpoints,
)
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.models import check_same_model, check_same_tokenizer, check_weights
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import ConfigError, to_dict
from abstractinator.contract.model import Batch, Metric, Model, RowLayout, headline_parts
from abstractinator.data import Corpus, ReadAhead, count_rows, open_corpus, rows_of, train_loader
from abstractinator.data.tokenizers import open_tokenizer
from abstractinator.device import has_bfloat16, peak_memory_bytes, pick_device, prepare_processor
from abstractinator.evaluation.held_out import evaluate_held_out
from abstractinator.tracking import TRACKING_FOLDER, Tracker, start_tracking, ui_command
from abstractinator.training import report
from abstractinator.training.interruption import Interruption
from abstractinator.training.optimizers import learning_rates
from abstractinator.training.schedule import check_schedule, fitted_steps
from abstractinator.training.shared_cores import SharedCores
from abstractinator.training.state import RunState, new_model
from abstractinator.training.step import StepResult, train_step

_SECONDS_BETWEEN_LINES = 30.0  # of progress in a log file; a terminal gets one a second


class Interrupted(BaseException):  # like KeyboardInterrupt, so that a run counts as killed, not as failed
    """A signal, or the end of whoever reads the output, stopped the training after a checkpoint was written."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped; resume with resume_from_checkpoint={checkpoint}")
        self.signal_number, self.checkpoint = signal_number, checkpoint


def train(config: ExperimentConfig) -> report.Summary:
    """Trains as `config` says and returns the summary; everything is also on disk.

    Writes checkpoints and summary.json into config.checkpoint_dir and metrics into ./mlruns. Checkpoints of other runs
    in checkpoint_dir, and those after the one that is resumed, are moved to checkpoint_dir/earlier. On a CPU the same
    settings give the same losses, also across a stop and a resume, unless max_minutes shortens the run; the pace that
    is printed then repeats it.

    Raises ConfigError, DataError, CheckpointError or TrainingError for what a user can correct, and Interrupted after
    Ctrl-C, SIGTERM or SIGHUP, or where the output can no longer be written.
    """
    prepare_processor()
    device, folder = pick_device(config.device), Path(config.checkpoint_dir)
    resume_from = _resume_path(config, folder)
    # Wrong settings are reported before the text is opened, which can take long.
    check_schedule(config)
    payload = load_checkpoint(resume_from) if resume_from is not None else None
    tokenizer = open_tokenizer(config.data.tokenizer)
    if payload is not None and resume_from is not None:
        check_same_model(payload, config.model, resume_from)
        check_same_tokenizer(payload, tokenizer, resume_from)
        check_weights(payload, resume_from)
    model = new_model(config, device, tokenizer)
    _layout(config, model)
    check_writable(folder)
    with lock(folder):
        corpus = open_corpus(config.data, exclude=(folder, Path(TRACKING_FOLDER)))
        state, held_out = _begin(config, model, corpus)
        if payload is not None and resume_from is not None:
            _resume(state, payload, resume_from, folder)
        batches = state.batches()  # before anything is moved: other data are refused here
        _archive_others(state, folder, resume_from)
        if state.written and state.written[_newest(state)] is None:
            _rank(state, held_out)  # the run was stopped before it did that
        print(_opening_line(state, corpus, resume_from), flush=True)
        return _run(state, batches, held_out, folder)


def _begin(config: ExperimentConfig, model: Model, corpus: Corpus) -> tuple[RunState, Tensor]:
    """A new run and its held-out rows (B, N)."""
    layout = _layout(config, model)
    batches = train_loader(corpus, layout, config.batch_size, config.seed, config.num_epochs, tokenizer=model.tokenizer)
    loader = ReadAhead(batches, pinned=model.device.type == "cuda")
    random_state = torch.get_rng_state()  # initialisation and training share one random stream
    state = RunState.begin(config, model, loader, _planned_steps(config, model, corpus))
    held_out = rows_of(corpus.validation_documents(), layout, model.tokenizer)
    torch.set_rng_state(random_state)
    return state, held_out


def _layout(config: ExperimentConfig, model: Model) -> RowLayout:
    """The rows that the model learns from. Raises ConfigError for a sequence_length that does not suit it."""
    try:
        return model.layout(config.sequence_length)
    except ValueError as error:
        raise ConfigError(f"sequence_length={config.sequence_length}: {error}") from error


def _planned_steps(config: ExperimentConfig, model: Model, corpus: Corpus) -> int:
    """max_steps, or the steps of num_epochs, whichever is less; a stream is not read for that."""
    most = math.inf if config.max_steps is None else config.max_steps
    if config.num_epochs is None or corpus.size_bytes is None:
        return int(most)
    print("counting the text of an epoch", flush=True)
    rows = count_rows(corpus, _layout(config, model), config.num_epochs, config.seed, model.tokenizer)
    return int(min(most, max(1, math.ceil(rows / (config.batch_size * config.gradient_accumulation_steps)))))


def _resume(state: RunState, payload: dict[str, Any], path: Path, folder: Path) -> None:
    state.restore(payload, path)
    clock = state.clock
    if clock.limit is not None and clock.seconds >= clock.limit and not clock.is_over:
        raise ConfigError(
            f"max_minutes={clock.limit / 60:g} is used up: {path} has {clock.seconds / 60:.1f} minutes of training "
            f"and {clock.done:.0%} of its steps; add max_minutes=None, or more minutes, to continue"
        )
    if path.parent.resolve() != folder.resolve():
        state.written, state.tracking_run_id = {}, None  # the other run keeps its files and its record


def _archive_others(state: RunState, folder: Path, resume_from: Path | None) -> None:
    """Moves what this run would overwrite, or be confused with, out of its way."""
    if resume_from is not None and resume_from.parent.resolve() == folder.resolve():
        archive(folder, "written after the step that is resumed", after=state.step)
        state.written = {name: metric for name, metric in state.written.items() if (folder / name).is_file()}
    else:
        archive(folder, "of an earlier run")


def _run(state: RunState, batches: Iterator[Batch], held_out: Tensor, folder: Path) -> report.Summary:
    config = state.config
    with start_tracking(config.project_name, config.run_name, state.tracking_run_id) as tracker:
        tracker.log_config(to_dict(config))
        with Interruption() as interruption:
            try:
                with _progress_bar(state) as bar, SharedCores() as cores:
                    _loop(state, batches, tracker, held_out, folder, interruption, cores, bar)
                return _finish(state, tracker, held_out, folder, interruption)
            except BrokenPipeError as error:  # nobody reads the output; it is written between two steps only
                raise Interrupted(signal.SIGPIPE, _save(state, tracker, folder)) from error


def _loop(
    state: RunState,
    batches: Iterator[Batch],
    tracker: Tracker,
    held_out: Tensor,
    folder: Path,
    interruption: Interruption,
    cores: SharedCores,
    bar: tqdm[Any],
) -> None:
    config, begin, earlier = state.config, time.monotonic(), state.seconds
    while not state.clock.is_over:
        result = train_step(state, batches)
        if result is None:
            break  # the last epoch is over
        state.seconds = earlier + time.monotonic() - begin
        cores.look()
        _update(bar, state)
        step = state.step
        if step % config.log_interval == 0:
            _log_step(state, result, tracker, bar)
        if interruption.signal is not None:
            raise Interrupted(interruption.signal, _save(state, tracker, folder))
        if state.clock.is_over:
            break  # `_finish` saves and measures
        if step % config.checkpoint_interval == 0:
            _save(state, tracker, folder)  # first, so that nothing is lost where a measurement fails
            _rank(state, held_out)
        if step % config.validation_interval == 0:
            state.check_finite()
            _validate(state, tracker, held_out)
        if step % config.generation_interval == 0:
            state.check_finite()
            tracker.log_text(report.samples(state.model, config), f"samples/step{step}.txt")


def _log_step(state: RunState, result: StepResult, tracker: Tracker, bar: tqdm[Any]) -> None:
    state.check_finite()
    means = result.values()
    state.history.append((state.step, means))
    metrics = {f"train/{name}": value for name, value in means.items()}
    metrics |= learning_rates(state.optimizers)
    metrics |= {
        "gradient_norm": result.gradient_norm.item(),
        "bytes_read": state.bytes_read,
        "bytes_per_second": state.bytes_read / max(state.clock.seconds, 1e-9),
    }
    tracker.log_metrics(metrics, state.step)
    shown = headline_parts(result.parts)[:2] or ["loss"]
    bar.set_postfix_str(", ".join(f"{name.replace('_', ' ')} {means[name]:.2f}" for name in shown), refresh=False)


def _rank(state: RunState, held_out: Tensor) -> None:
    """Notes the newest checkpoint's headline metric on a few held-out rows, always the same ones."""
    rows = held_out[:: max(1, len(held_out) // state.config.batch_size)][: state.config.batch_size]
    measured = _measured(state, rows)
    state.written[_newest(state)] = measured[state.model.headline].value


def _newest(state: RunState) -> str:
    """The name of the checkpoint that was written last."""
    return next(reversed(state.written))


def _measured(state: RunState, rows: Tensor) -> dict[str, Metric]:
    """The metrics of held-out rows, of as many as are measured in the time that the training has taken so far."""
    config, seconds = state.config, state.clock.seconds
    return evaluate_held_out(
        state.model, rows, batch_size=config.batch_size, mixed_precision=config.mixed_precision, seconds=seconds
    )


def _validate(state: RunState, tracker: Tracker, held_out: Tensor) -> dict[str, Metric]:
    measured = _measured(state, held_out)
    tracker.log_metrics(report.held_out_metrics(measured), state.step)
    if tracker.is_kept:
        for name, figure in report.figures(state.model, held_out, state.history).items():
            tracker.log_figure(figure, f"plots/{name}_step{state.step}.png")
    return measured


def _save(state: RunState, tracker: Tracker, folder: Path) -> Path:
    """Writes a checkpoint, and removes this run's oldest ones beyond checkpoints_kept, but not the best one."""
    state.check_finite()  # first: the message names an earlier checkpoint
    path = folder / f"checkpoint_step{state.step}.pt"
    state.tracking_run_id = tracker.run_id
    state.written.setdefault(path.name, None)  # before it is written, so that a resumed run knows it, too
    state.save(path)
    remove_old_checkpoints(folder, state.written, state.config.checkpoints_kept)
    return path


def _finish(
    state: RunState, tracker: Tracker, held_out: Tensor, folder: Path, interruption: Interruption
) -> report.Summary:
    """Saves, measures and shows the result; a signal ends this at once, and a resume does it again."""
    checkpoint = _save(state, tracker, folder)
    interruption.stop_at_once(lambda number: Interrupted(number, checkpoint))
    _rank(state, held_out)
    measured = _validate(state, tracker, held_out)
    summary = report.Summary(
        run_name=state.config.run_name,
        kind=state.model.kind,
        held_out=measured,
        train_bytes_per_second=state.bytes_read / max(state.clock.seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(state.model.device),
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        steps=state.step,
        seconds=state.seconds,
        best_checkpoint=best_checkpoint(state.written),
    )
    summary.write(folder / "summary.json")
    shown = [report.reconstruction(state.model, held_out), report.samples(state.model, state.config)]
    examples = "\n\n".join(part for part in shown if part)
    tracker.log_text(examples, f"samples/step{state.step}.txt")
    tracker.log_text(summary.table(), "summary.txt")
    print(f"\n{examples}\n\n{summary.table()}\n")
    print(f"wrote {checkpoint} and {folder / 'summary.json'}")
    if tracker.is_kept and state.config.project_name is not None:
        print(f"metrics, samples and plots: {ui_command(state.config.project_name)}")
    if state.clock.pace and state.config.pace is None:
        print(f"this run again, on any machine: the same settings and {_repeated(state)}")
    return summary


def _repeated(state: RunState) -> str:
    """The overrides that repeat a run which was limited in time."""
    pace = [list(entry) for entry in state.clock.pace]
    return f"max_minutes=None max_steps={state.clock.planned} pace='{pace}'"


def _resume_path(config: ExperimentConfig, folder: Path) -> Path | None:
    if config.resume_from_checkpoint != "latest":
        return Path(config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    newest = latest_checkpoint(folder)
    if newest is None:
        raise CheckpointError(f"resume_from_checkpoint=latest, but {folder} holds no checkpoint_step*.pt to resume")
    return newest


def _opening_line(state: RunState, corpus: Corpus, resume_from: Path | None) -> str:
    config, clock, device = state.config, state.clock, state.model.device
    size = f"{corpus.size_bytes / 1e6:.1f} MB" if corpus.size_bytes else "streamed"
    precision = "bf16 autocast" if config.mixed_precision and has_bfloat16(device) else "fp32"
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    line = (
        f"{config.run_name}: {state.model.kind}, {parameters / 1e6:.1f}M parameters; {corpus.name} ({size}); "
        f"{device.type}, {precision}; {clock.planned} steps"
    )
    if clock.limit is not None:
        line += f", or fewer in {clock.limit / 60:g} minutes"
    if resume_from is not None:
        line += f"; resumed from {resume_from} at step {state.step}"
    warmup, decay = fitted_steps(config, clock.planned)
    if decay < config.scheduler_specific_kwargs.get("num_decay_steps", 0):
        line += (
            f"\n{clock.planned} steps are too few for the whole schedule; it is shortened: warmup_steps={warmup} "
            f"scheduler_specific_kwargs.num_decay_steps={decay}"
        )
    return line


def _progress_bar(state: RunState) -> tqdm[Any]:
    interval = 1.0 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    return tqdm(
        total=_total_bytes(state), initial=state.bytes_read, unit="B", unit_scale=True,
        mininterval=interval, maxinterval=interval, desc="training", dynamic_ncols=True,
    )  # fmt: skip


def _update(bar: tqdm[Any], state: RunState) -> None:
    bar.total = _total_bytes(state)
    bar.update(state.bytes_read - bar.n)


def _total_bytes(state: RunState) -> int:
    """Bytes of the whole training, about, at its present pace."""
    config = state.config
    row_bytes = config.sequence_length * config.batch_size * config.gradient_accumulation_steps
    step_bytes = state.bytes_read / state.step if state.step else row_bytes
    return state.bytes_read + int(state.clock.steps_left * step_bytes)
