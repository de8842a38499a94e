"""What the benchmark suite does in a process of its own: one measurement of one model.

Every task holds `baseline`, its name, and `base`, the settings that all have in common; most hold `config`, its
settings, and `training`, the recipe of the training that they are part of or measure. What each stage takes and gives
stands with its function.
"""

from __future__ import annotations

import math
import resource
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import benchmarks.kinds  # noqa: F401  registers the baselines
from abstractinator.checkpoints.models import load_model
from abstractinator.config.settings import build, to_dict
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Generates, require
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, Model, RowLayout
from abstractinator.data import Corpus, DataConfig, DataError, open_corpus, rows_of, train_loader
from abstractinator.data.document_files import find_units
from abstractinator.device import autocast, prepare_processor
from abstractinator.training.state import TrainingError
from abstractinator.training.step import train_step
from benchmarks import budgeted_training
from benchmarks.baselines import class_of, modes_of, positions_of, rates_of, remark_of, sized
from benchmarks.budgeted_training import Recipe, Training, bits_per_byte
from benchmarks.common import PeakMemory, count_parameters
from benchmarks.kinds.base import Setting
from benchmarks.pieces import Result, Task, key_of

# torch's counter knows only a GPU's fused kernels; these get shapes.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
_HELD_OUT = 2**21  # bytes of held-out text that what is measured is drawn from


def work(task: Task, folder: Path) -> Result:
    """Does one task; `folder` holds the trainings."""
    prepare_processor()
    torch.manual_seed(task["base"]["seed"])
    corpus = corpus_of(task["base"])
    result: Result = _STAGES[task["stage"]](task, corpus, folder)
    return result


def limit_memory() -> None:
    """Makes what does not fit into the memory that is free now fail by itself, and nobody else. Not for a GPU, of which
    the driver maps more memory than there is."""
    free = int(psutil.virtual_memory().available * 0.9)
    resource.setrlimit(resource.RLIMIT_DATA, (free, free))


def corpus_of(base: dict[str, Any]) -> Corpus:
    """The text that all models share."""
    return open_corpus(DataConfig(path=base["data"], validation_bytes=_HELD_OUT))


def size(task: Task, corpus: Corpus, folder: Path) -> Result:
    """→ config and parameters of the model, and what the run must know of it: remark and modes."""
    name, base = task["baseline"], task["base"]
    setting = Setting(base["parameters"], corpus, folder, base["seed"])
    config = sized(name, setting, base["autoencoder_fraction"])
    return {
        "config": to_dict(config),
        "parameters": count_parameters(class_of(name)(config)),
        "remark": remark_of(name),
        "modes": modes_of(name),
    }


def sweep(task: Task, corpus: Corpus, folder: Path) -> Result:
    """A short training → learning_rate, muon_learning_rate, steps, bytes, exact: bits per byte of training documents in
    another order, None where the training diverged."""
    base = task["base"]
    training = _training(task, corpus)
    _warm_up(training, corpus)
    rates = [*training.state.base_rates, 0.0][:2]
    result: Result = {"learning_rate": rates[0], "muon_learning_rate": rates[1], "exact": None}
    try:
        training.run(1.0)
    except TrainingError:
        return result
    count = max(1, base["curve_bytes"] // training.recipe.sequence_length)
    rows = _training_rows(corpus, training.recipe.sequence_length, count, training.recipe.seed + 1).to(base["device"])
    exact = bits_per_byte(training.model, rows, base["batch_size"])["exact"]
    if exact is None or not math.isfinite(exact):
        return result
    return result | {"exact": exact, "steps": training.state.step, "bytes": training.state.bytes_read}


def part(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Part `part` of `parts` of a training, saved after it → seconds, bytes, steps so far, exact bits per byte."""
    base, parts = task["base"], task["training"]["parts"]
    training, path = _training(task, corpus), training_path(task, folder)
    if task["part"] == 0:
        path.unlink(missing_ok=True)  # of a training whose pieces were removed
    if path.exists():
        training.restore(path)
    done = round(training.share * parts)
    if done not in (task["part"], task["part"] + 1):
        raise FileNotFoundError(f"{path} is missing or of another part; remove this training's pieces to begin again")
    if done == task["part"]:  # otherwise the run was ended between saving the training and this
        _warm_up(training, corpus)
        training.run((task["part"] + 1) / parts)
        training.save(path)
    rows = _spread(held_out_rows(corpus, base), base["curve_bytes"])
    exact = bits_per_byte(training.model, rows, base["batch_size"])["exact"]
    state = training.state
    return {"seconds": state.clock.seconds, "bytes": state.bytes_read, "steps": state.step, "exact": exact}


def score(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Held-out documents by a trained model → exact, two_part: bits per byte; bytes_per_second of the scoring;
    bytes_per_position of the main network."""
    model, base = _trained(task, corpus, folder), task["base"]
    rows = held_out_rows(corpus, base)
    bits_per_byte(model, rows[: base["batch_size"]], base["batch_size"])  # what is slow the first time
    found: Result = {**bits_per_byte(model, rows, base["batch_size"])}
    with torch.no_grad(), autocast(rows.device, True):
        positions = sum(positions_of(model, few) for few in rows.split(base["batch_size"]))
    found["bytes_per_position"] = int((rows < ByteTokenizer.text_size).sum()) / max(positions, 1)
    return found


def flops(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Matrix products and attention, counted by torch over one batch in fp32; attention counts whole squares.

    → forward, training: operations per byte of a forward pass, and of forward and backward of a whole training step.
    """
    model, base = _trained(task, corpus, folder).cpu(), task["base"]  # a GPU's attention is counted otherwise
    batch = Batch.of(_training_rows(corpus, base["sequence_length"], base["batch_size"], base["seed"]))
    phase = model.phases()[-1].name
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as forward, torch.no_grad():
        count = float(model.eval()(batch, phase).weight)
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as training:
        losses = model.train()(batch, phase)
        (losses.total / losses.weight).backward()
    return {"forward": forward.get_total_flops() / count, "training": training.get_total_flops() / count}


def length(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Whole training steps of `step_bytes` in rows of `length` → bytes_per_second (median after the first step) and
    memory_bytes: how far the memory rises above that before the first step."""
    base, count = task["base"], max(1, task["step_bytes"] // task["length"])
    training = Training(_trained(task, corpus, folder), rates_of(task["baseline"]), corpus, _recipe(task))
    state = training.state
    state.clock.position = state.clock.planned // 2  # all losses are trained
    batches = [
        Batch.of(_training_rows(corpus, task["length"], count, base["seed"] + step))
        for step in range(task["steps"] + 1)
    ]
    torch.randn(64, 64) @ torch.randn(64, 64)  # loads what loads lazily
    peak, seconds = PeakMemory(torch.device(base["device"])), []
    for batch in batches:
        start = budgeted_training.clock()
        train_step(state, iter([batch]))
        seconds.append(budgeted_training.clock() - start)
    return {"bytes_per_second": batches[0].ids.numel() / statistics.median(seconds[1:]), "memory_bytes": peak.rise()}


def generation(task: Task, corpus: Corpus, folder: Path) -> Result:
    """`rows` continuations of held-out text at once, in `mode`, all of it after the prompts were read
    → bytes_per_second, None where the model ended its texts at once."""
    model = require(_trained(task, corpus, folder).eval(), Generates)
    text = b"".join(corpus.validation_documents())
    last = len(text) - task["prompt_bytes"]
    if last < 0:
        raise ValueError(f"the held-out text has {len(text):,} bytes; prompts of {task['prompt_bytes']:,} need more")
    starts = [last * i // max(task["rows"] - 1, 1) for i in range(task["rows"])]
    prompts = [text[start : start + task["prompt_bytes"]] for start in starts]
    config = GenerationConfig(
        task["mode"], max_new_bytes=task["new_bytes"], temperature=1.0, top_p=1.0, seed=task["base"]["seed"]
    )
    made = sum(len(piece.data) for piece in model.stream(prompts, replace(config, max_new_bytes=2)))  # slow at first
    pieces = model.stream(prompts, config)
    start = budgeted_training.clock()
    made = sum(len(piece.data) for piece in pieces)
    return {"bytes_per_second": made / (budgeted_training.clock() - start) if made else None}


_STAGES = {
    "size": size,
    "sweep": sweep,
    "part": part,
    "score": score,
    "flops": flops,
    "length": length,
    "generation": generation,
}


def held_out_rows(corpus: Corpus, base: dict[str, Any]) -> Tensor:
    """(B, N), the same for all models: about `held_out_bytes` from all over the first 2 MiB or so of the file
    `held_out`, or of the documents that the corpus holds out."""
    documents = corpus.validation_documents()
    if base["held_out"] is not None:
        _check_untrained(Path(base["held_out"]), base["data"])
        documents = []
        for unit in find_units(base["held_out"], DataConfig().text_column_name).train:
            if sum(map(len, documents)) < _HELD_OUT:
                documents += unit.read()
    return _spread(rows_of(documents or [b""], RowLayout(base["sequence_length"])), base["held_out_bytes"]).to(
        base["device"]
    )


def _check_untrained(held_out: Path, data: str | None) -> None:
    """Raises DataError where that file is among those that are trained on."""
    if data is None:
        return
    held_out, root = held_out.resolve(), Path(data).resolve()
    if held_out == root:
        raise DataError(f"--held-out and --data are the same file, {root}: give another text to be scored")
    if root not in held_out.parents:
        return
    trained = {unit.name for unit in find_units(str(root), DataConfig().text_column_name).train}
    if held_out.relative_to(root).as_posix() in trained:
        raise DataError(
            f"--held-out={held_out} is trained on: move it out of {root}, or name the files train… and test…"
        )


def _spread(rows: Tensor, wanted_bytes: int) -> Tensor:
    """About this number of bytes of the rows (B, N), at equal distances from the first to the last."""
    count = min(len(rows), max(1, wanted_bytes // rows.shape[1]))
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def training_path(task: Task, folder: Path) -> Path:
    """Where the training of `task["training"]` lies."""
    named = {name: task[name] for name in ("baseline", "version", "base", "config", "training")}
    return folder / f"{task['baseline']}_training_{key_of(named)}.pt"


def _training(task: Task, corpus: Corpus) -> Training:
    """A new training of a new model."""
    kind = class_of(task["baseline"])
    torch.manual_seed(task["base"]["seed"])
    model = kind(build(kind.Config, task["config"])).to(task["base"]["device"])
    return Training(model, rates_of(task["baseline"]), corpus, _recipe(task))


def _trained(task: Task, corpus: Corpus, folder: Path) -> Model:
    model, _ = load_model(training_path(task, folder), torch.device(task["base"]["device"]))
    return model


def _recipe(task: Task) -> Recipe:
    named = {field.name for field in fields(Recipe)}
    return Recipe(**{name: value for name, value in task["training"].items() if name in named})


def _training_rows(corpus: Corpus, row_length: int, batch_size: int, seed: int) -> Tensor:
    batch: Batch = next(iter(train_loader(corpus, RowLayout(row_length), batch_size, seed)))
    return batch.ids


def _warm_up(training: Training, corpus: Corpus) -> None:
    """What a process does slowly the first time does not count: one batch there and back that changes nothing."""
    model, recipe, state = training.model, training.recipe, torch.get_rng_state()
    batch = Batch.of(_training_rows(corpus, recipe.sequence_length, recipe.batch_size, recipe.seed)).to(model.device)
    with autocast(model.device, True):
        losses = model.eval()(batch, model.phases()[-1].name)
        (losses.total / losses.weight).backward()
    model.zero_grad(set_to_none=True)
    torch.set_rng_state(state)
