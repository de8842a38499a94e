"""The work of `benchmarks.siblings`: one training, or one measurement, in a process of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.checkpoints.models import load_model
from abstractinator.config.experiment import ExperimentConfig, load_experiment
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Generates, Passage, Reconstructs, Scores
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Model
from abstractinator.data import DataConfig, open_corpus, rows_of
from abstractinator.data.document_files import find_units
from abstractinator.device import prepare_processor
from abstractinator.evaluation.accuracy import measure_accuracy
from abstractinator.evaluation.brier import brier_lm, choose_prefixes, unigram_brier_lm
from abstractinator.evaluation.held_out import evaluate_held_out
from abstractinator.evaluation.sequences import TestSetConfig, random_sequences, real_sequences
from abstractinator.training.loop import train
from benchmarks.byte_pairs import table_of
from benchmarks.common import ROOT, count_parameters
from benchmarks.ours import AUTOENCODER_FRACTION, sized_config

KINDS = ("hier_ae", "cta", "calm", "calm_discrete", "glae")
_PLANNED, _WARM_UP, _DECAY = 20_000, 0.02, 0.4  # steps of the schedule, and shares of them
_NEVER = 10**9  # steps
_MEASURED_BYTES = 256 * 1024  # of held-out text, for the kind's own metrics
_SCORED = 128  # passages
_PROMPTS, _NEW_BYTES = 16, 128  # of the speed of generation

Base = dict[str, Any]


def work(task: dict[str, Any]) -> dict[str, Any]:
    """What a task of `benchmarks.siblings` comes to."""
    torch.set_num_threads(task["base"]["threads"])
    stages: dict[str, Callable[[str, Base], dict[str, Any]]] = {
        "train": _train,
        "measure": _measure,
        "pairs": lambda _, base: {"rows": [asdict(row) for row in table_of(_training_texts(base), _held_out(base))]},
    }
    return stages[task["stage"]](task["baseline"], task["base"])


def experiment_of(kind: str, base: Base) -> ExperimentConfig:
    """The kind's preset, with the text, the time and the schedule that all have in common."""
    preset = ROOT / "experiments" / f"{kind}.py"
    config = load_experiment(preset if preset.is_file() else None, [])
    if kind == "hier_ae":
        sized = replace(sized_config(base["parameters"]), autoencoder_fraction=AUTOENCODER_FRACTION)
        config = replace(config, model=sized)
    folder = Path(base["keep"]) / kind
    return replace(
        config,
        run_name=kind,
        project_name=None,
        data=DataConfig(path=base["data"], validation_bytes=_MEASURED_BYTES),
        seed=base["seed"],
        device="cpu",
        max_steps=_PLANNED,
        max_minutes=base["minutes"],
        scheduler_type="warmup_stable_decay",
        warmup_steps=round(_WARM_UP * _PLANNED),
        scheduler_specific_kwargs={"num_decay_steps": round(_DECAY * _PLANNED), "decay_type": "linear"},
        validation_interval=_NEVER,
        generation_interval=_NEVER,
        checkpoint_dir=str(folder),
        resume_from_checkpoint="latest" if latest_checkpoint(folder) else None,
    )


def _train(kind: str, base: Base) -> dict[str, Any]:
    summary = train(experiment_of(kind, base))
    return {
        "steps": summary.steps,
        "parameters": summary.parameters,
        "train_bytes_per_second": summary.train_bytes_per_second,
        "peak_memory_bytes": summary.peak_memory_bytes,
    }


def _measure(kind: str, base: Base) -> dict[str, Any]:
    prepare_processor()
    model, payload = load_model(Path(base["keep"]) / kind, torch.device("cpu"))
    documents = _held_out(base)
    rows = rows_of(documents, model.layout(payload["config"]["sequence_length"]), model.tokenizer)
    batch_size = payload["config"]["batch_size"]
    chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    metrics = evaluate_held_out(
        model, chosen[: _MEASURED_BYTES // rows.shape[1]], batch_size=batch_size, mixed_precision=False
    )
    found: dict[str, Any] = {"metrics": {name: metric.value for name, metric in metrics.items()}}
    found["parameters"] = count_parameters(model)
    if isinstance(model, Reconstructs):
        found["accuracy"] = {
            name: measure_accuracy(model, texts, batch_size=16)[0].plain() for name, texts in test_sets(base).items()
        }
    if isinstance(model, Scores):
        found["bits_per_byte"] = _bits_per_byte(model, documents)
    if isinstance(model, Generates):
        prefixes = choose_prefixes(documents, base["prefixes"], 256, base["seed"])
        found["brier"] = brier_lm(model, prefixes, seed=base["seed"]).plain()
        found["unigram_brier"] = unigram_brier_lm(documents, prefixes, base["seed"]).plain()
        found["new_bytes_per_second"] = _generation_speed(model, [prefix.context for prefix in prefixes[:_PROMPTS]])
    return found


def test_sets(base: Base) -> dict[str, list[bytes]]:
    """Sequences of real text, of random bytes and, where there is some, of text in other scripts."""
    tokenizer = ByteTokenizer()
    config = TestSetConfig(base["sequences"], base["length"], seed=base["seed"])
    sets = {
        "real": real_sequences(_held_out(base), tokenizer, config),
        "random": random_sequences(config, tokenizer),
    }
    if base["other"] is not None:
        other = [text for text in _texts(base["other"]) if sum(byte < 128 for byte in text) < len(text) / 2]
        sets["other"] = real_sequences(other, tokenizer, config)
    return {name: [tokenizer.decode(row) for row in rows] for name, rows in sets.items()}


def _bits_per_byte(model: Model, documents: list[bytes]) -> float:
    """−log₂ p of the first likelihood, in passages of 1,024 bytes that begin with nothing before them."""
    assert isinstance(model, Scores)
    config = TestSetConfig(min(_SCORED, sum(len(text) // 1024 for text in documents)), 1024)
    rows = real_sequences(documents, ByteTokenizer(), config)
    passages = [Passage(b"", ByteTokenizer().decode(row)) for row in rows]
    scores = [
        score for at in range(0, len(passages), 8) for score in model.score(passages[at : at + 8], model.scorings[0])
    ]
    return sum(score.nll for score in scores) / math.log(2) / sum(len(each.continuation) for each in passages)


def _generation_speed(model: Model, prompts: list[bytes]) -> float:
    """New bytes a second, for all prompts at once, in the mode whose samples BrierLM measures; after one byte each."""
    assert isinstance(model, Generates)
    config = GenerationConfig(mode=model.harness_mode, temperature=1.0, top_p=1.0, seed=0)
    list(model.stream(prompts, replace(config, max_new_bytes=1)))
    start = time.perf_counter()
    size = sum(len(piece.data) for piece in model.stream(prompts, replace(config, max_new_bytes=_NEW_BYTES)))
    return size / (time.perf_counter() - start)


def _texts(path: str) -> list[bytes]:
    """The documents of a file, or of the files of a folder that are not for training."""
    units = find_units(path, DataConfig().text_column_name)
    return [text for unit in units.validation or units.train for text in unit.read() if text]


def _held_out(base: Base) -> list[bytes]:
    if base["held_out"] is not None:
        return _texts(base["held_out"])
    return open_corpus(DataConfig(path=base["data"], validation_bytes=4 << 20)).validation_documents()


def _training_texts(base: Base) -> list[bytes]:
    return list(open_corpus(DataConfig(path=base["data"])).train_documents(0, base["seed"]))
