"""The training loop: from settings to a trained model, its checkpoints and its summary."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from abstractinator.checkpoints.checkpoint_file import (
    CheckpointError,
    check_writable,
    checkpoints,
    latest_checkpoint,
    sole_use,
)
from abstractinator.components.sliding_window_attention import kernel_for
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import ConfigError, to_dict
from abstractinator.data import Corpus, ReadAhead, open_corpus, train_loader
from abstractinator.device import has_bfloat16, peak_memory_bytes, pick_device, prepare_processor
from abstractinator.evaluation.held_out import HeldOutReport, evaluate_held_out, rows_of
from abstractinator.tracking.tracker import Tracker, start_tracking
from abstractinator.training import report
from abstractinator.training.interruption import Interruption
from abstractinator.training.pace import steps_in_time
from abstractinator.training.run_state import RunState, check_model, planned_steps
from abstractinator.training.schedule import check_schedule, fitted_steps
from abstractinator.training.step import StepResult, train_step


class Interrupted(BaseException):  # like KeyboardInterrupt, so that a run counts as killed, not as failed
    """The training was stopped by a signal, or by a reader who went away, after a checkpoint was written."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped; go on with resume_from_checkpoint={checkpoint}")
        self.signal_number, self.checkpoint = signal_number, checkpoint


def train(config: ExperimentConfig) -> report.Summary:
    """Trains as `config` says and returns what came of it; everything is also on disk.

    Writes checkpoints and summary.json into config.checkpoint_dir and metrics into ./mlruns. On a CPU the
    same settings give the same losses, also across a stop and a resume, if the number of steps is the same (see
    max_minutes). What lies in checkpoint_dir and is not this run's past, an earlier run or what came after the
    checkpoint gone back to, is moved to checkpoint_dir/earlier; a run that goes on from a checkpoint in another folder
    leaves that folder alone and is tracked as a run of its own.
    Raises ConfigError, DataError, CheckpointError or TrainingError for what a user can mend, and Interrupted
    after Ctrl-C or SIGTERM or where what is printed can no longer be written.
    """
    prepare_processor()
    device, folder = pick_device(config.device), Path(config.checkpoint_dir)
    resume_from = _resume_path(config, folder)
    # What is wrong with the settings shall be told before the text is opened, which can take long.
    check_schedule(config)
    check_model(config)
    planned = planned_steps(resume_from, config) if resume_from is not None else None
    check_writable(folder)
    with sole_use(folder):
        return _train(config, device, folder, resume_from, planned)


def _train(
    config: ExperimentConfig, device: torch.device, folder: Path, resume_from: Path | None, planned: int | None
) -> report.Summary:
    """planned: the steps of the run that is gone on with; None where they depend on the time that they take here."""
    corpus = open_corpus(config.data)
    held_out = rows_of(corpus.validation_documents(), config.sequence_length)
    batches_of = train_loader(corpus, config.sequence_length, config.batch_size, config.seed, config.num_epochs)
    loader = ReadAhead(batches_of, pinned=device.type == "cuda")
    total_steps = _total_steps(config, corpus)
    steps = planned or total_steps
    if planned is None and config.max_minutes is not None:
        steps = steps_in_time(RunState.begin(config, loader, total_steps, device), held_out, config.max_minutes)
    state = RunState.begin(config, loader, steps, device, total_steps)
    if resume_from is not None:
        state.restore(resume_from)
        if planned is None and steps <= state.step < total_steps:
            raise ConfigError(
                f"max_minutes={config.max_minutes:g} leaves {steps} steps in all on this machine, and {resume_from} "
                f"has {state.step} behind it: add max_minutes=None to go on to {total_steps}"
            )
    batches = state.batches()  # before anything is moved: other data are refused here
    if resume_from is not None and resume_from.parent.resolve() == folder.resolve():
        _set_aside(folder, "from after the step that is gone back to", after=state.step)
        there = {path.name for _, path in checkpoints(folder)}  # no other file shall be removed in its turn
        state.written = {name: worth for name, worth in state.written.items() if name in there}
    else:
        state.written, state.tracking_run_id = {}, None  # those of the run that is gone on from stay as they are
        _set_aside(folder, "of an earlier run")
    _say_what_begins(state, corpus, device, resume_from, total_steps)

    with start_tracking(config.project_name, config.run_name, state.tracking_run_id) as tracker:
        state.tracking_run_id = tracker.run_id
        tracker.log_config(to_dict(config))
        with Interruption() as interruption:
            try:
                with _progress_bar(state) as bar:
                    _loop(state, batches, tracker, held_out, folder, interruption, bar)
                return _finish(state, tracker, held_out, folder, interruption)
            except BrokenPipeError as error:  # nobody reads on; all that writes stands between two steps
                raise Interrupted(signal.SIGPIPE, _save(state, folder)) from error


def _loop(
    state: RunState,
    batches: Iterator[Tensor],
    tracker: Tracker,
    held_out: Tensor,
    folder: Path,
    interruption: Interruption,
    bar: tqdm[Any],
) -> None:
    config = state.config
    session_start, earlier_seconds = time.monotonic(), state.seconds
    while state.step < state.total_steps:
        step_start = time.monotonic()
        result = train_step(state, batches)
        if result is None:
            break  # the last epoch is over
        state.training_seconds += time.monotonic() - step_start
        state.seconds = earlier_seconds + time.monotonic() - session_start
        state.judge_checkpoint(result.losses)
        bar.update(state.bytes_read - bar.n)

        if state.step % config.log_interval == 0:
            _log_step(state, result, tracker, bar)
        if interruption.signal is not None:
            raise Interrupted(interruption.signal, _save(state, folder))
        if state.step == state.total_steps:
            break  # what is left is done at the end of every run
        if state.step % config.checkpoint_interval == 0:
            _save(state, folder)  # first, so that nothing is lost where what follows fails
        if state.step % config.validation_interval == 0:
            _validate(state, tracker, held_out)
        if state.step % config.generation_interval == 0:
            tracker.log_text(report.samples(state.model, config), f"samples/step{state.step}.txt")


def _log_step(state: RunState, result: StepResult, tracker: Tracker, bar: tqdm[Any]) -> None:
    metrics = report.loss_metrics(result.losses)
    metrics |= {
        "gradient_norm": result.gradient_norm,
        "learning_rate": state.optimizers[0].param_groups[0]["lr"],
        "bytes_read": state.bytes_read,
        "bytes_per_second": state.bytes_read / state.training_seconds,
    }
    state.history.append([state.step, metrics["train/bits_per_byte_exact"], metrics["train/bits_per_byte_two_part"]])
    tracker.log_metrics(metrics, state.step)
    bar.set_postfix_str(
        f"bits/byte exact {metrics['train/bits_per_byte_exact']:.2f} two-part "
        f"{metrics['train/bits_per_byte_two_part']:.2f}"
    )


def _validate(state: RunState, tracker: Tracker, held_out: Tensor) -> HeldOutReport:
    measured = evaluate_held_out(
        state.model, held_out, batch_size=state.config.batch_size, mixed_precision=state.config.mixed_precision
    )
    tracker.log_metrics(report.held_out_metrics(measured), state.step)
    for name, figure in report.figures(state.model, held_out, state.history).items():
        tracker.log_figure(figure, f"plots/{name}_step{state.step}.png")
    return measured


def _save(state: RunState, folder: Path) -> Path:
    """Writes a checkpoint and removes this run's oldest ones beyond checkpoints_kept, but not the best."""
    path = folder / f"checkpoint_step{state.step}.pt"
    state.written.setdefault(path.name, math.inf)  # before it is written, so that a resumed run knows it too
    state.save(path)
    for name in list(state.written)[: -state.config.checkpoints_kept]:
        if name != state.best_checkpoint:
            del state.written[name]
            (folder / name).unlink(missing_ok=True)
    return path


def _finish(
    state: RunState, tracker: Tracker, held_out: Tensor, folder: Path, interruption: Interruption
) -> report.Summary:
    """Saves, measures and shows what the run came to; a signal ends this at once, and a resume does it again."""
    checkpoint = _save(state, folder)
    interruption.stop_at_once(lambda number: Interrupted(number, checkpoint))
    measured = _validate(state, tracker, held_out)
    summary = report.Summary.of(state, measured, peak_memory_bytes(next(state.model.parameters()).device))
    summary.write(folder / "summary.json")
    reconstruction = report.reconstruction(state.model, held_out)
    samples = report.samples(state.model, state.config)
    tracker.log_text(f"{reconstruction}\n{samples}", f"samples/step{state.step}.txt")
    tracker.log_text(summary.table(), "summary.txt")
    print(f"\n{reconstruction}\n\n{samples}\n\n{summary.table()}\n")
    print(f"wrote {checkpoint} and {folder / 'summary.json'}")
    if tracker.run_id is not None:
        project = f"mlruns/{state.config.project_name}"
        print(f"metrics, samples and plots: mlflow ui --backend-store-uri sqlite:///{project}/mlflow.db")
    return summary


def _total_steps(config: ExperimentConfig, corpus: Corpus) -> int:
    """max_steps, or what num_epochs of the corpus come to, whichever is less; a stream is not read for that."""
    most = math.inf if config.max_steps is None else config.max_steps
    if config.num_epochs is None or corpus.size_bytes is None:
        return int(most)
    step_tokens = config.sequence_length * config.batch_size * config.gradient_accumulation_steps
    print("counting the text of an epoch")
    steps, tokens = 1, 0
    for document in corpus.train_documents(0, config.seed):  # sizes of files and tables are not those of their text
        tokens += len(document) + 2  # BOS and EOS
        steps = math.ceil(config.num_epochs * tokens / step_tokens)
        if steps >= most:
            return int(most)
    return steps


def _resume_path(config: ExperimentConfig, folder: Path) -> Path | None:
    if config.resume_from_checkpoint != "latest":
        return Path(config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    newest = latest_checkpoint(folder)
    if newest is None:
        raise CheckpointError(f"resume_from_checkpoint=latest, but {folder} holds no checkpoint_step*.pt to go on from")
    return newest


def _set_aside(folder: Path, what: str, *, after: int = -1) -> None:
    """Moves checkpoints of steps beyond `after`, and the summary that came of them, out of the way: what is written
    now neither overwrites nor is taken for theirs."""
    aside = [path for step, path in checkpoints(folder) if step > after]
    if aside or after < 0:
        aside += folder.glob("summary.json")
    if aside:
        place = folder / "earlier" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        place.mkdir(parents=True)
        for file in aside:
            file.rename(place / file.name)
        print(f"moved {len(aside)} file(s) {what} to {place}")


def _say_what_begins(
    state: RunState, corpus: Corpus, device: torch.device, resume_from: Path | None, wanted_steps: int
) -> None:
    size = f"{corpus.size_bytes / 1e6:.1f} MB" if corpus.size_bytes else "streamed"
    mixed = state.config.mixed_precision and has_bfloat16(device)
    kernel = kernel_for(device.type, torch.bfloat16 if mixed else torch.float32)
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    print(
        f"{state.config.run_name}: {parameters / 1e6:.1f}M parameters, {len(state.model.levels)} level(s); "
        f"{corpus.name} ({size}); {device.type}, {kernel.__name__}, {'bf16 autocast' if mixed else 'fp32'}; "
        f"{state.total_steps} steps" + (f", going on from {resume_from}" if resume_from else ""),
        flush=True,
    )
    warmup, arguments = fitted_steps(state.config, state.total_steps, wanted_steps)
    schedule = f"warmup_steps={warmup}"
    if "num_decay_steps" in arguments:
        schedule += f" scheduler_specific_kwargs.num_decay_steps={arguments['num_decay_steps']}"
    if state.total_steps < wanted_steps:
        print(
            f"max_minutes={state.config.max_minutes:g} leaves {state.total_steps} of {wanted_steps} steps on this "
            f"machine; what repeats this run anywhere: the same settings and max_minutes=None "
            f"max_steps={state.total_steps} {schedule}"
        )
    elif (warmup, arguments) != (state.config.warmup_steps, state.config.scheduler_specific_kwargs):
        print(f"{state.total_steps} steps are too few for the whole schedule; it is shortened: {schedule}")


def _progress_bar(state: RunState) -> tqdm[Any]:
    config = state.config
    step_bytes = config.sequence_length * config.batch_size * config.gradient_accumulation_steps
    return tqdm(
        total=state.total_steps * step_bytes, initial=state.bytes_read, unit="B", unit_scale=True,
        mininterval=1.0, desc="training", dynamic_ncols=True,
    )  # fmt: skip
