"""What the benchmark suite does in a process of its own: one measurement of one contender.

Every task holds `contender` and `base`, the settings that all have in common; most hold `width` and `training`, the
recipe of the training that they are part of or measure. What each stage takes and gives stands with its function.
"""

from __future__ import annotations

import math
import resource
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.data import Corpus, DataConfig, DataError, open_corpus, train_loader
from abstractinator.data.document_files import find_units
from abstractinator.device import autocast, prepare_processor
from abstractinator.evaluation.held_out import rows_of
from benchmarks import budgeted_training
from benchmarks.budgeted_training import Recipe, Training, bits_per_byte, load_weights
from benchmarks.common import PeakMemory, count_parameters
from benchmarks.contenders import contender_class
from benchmarks.contenders.base import Contender, Setting
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
    """The text that all contenders share."""
    return open_corpus(DataConfig(path=base["data"], validation_bytes=_HELD_OUT))


def size(task: Task, corpus: Corpus, folder: Path) -> Result:
    """→ width, parameters, and what the run must know of the class: remark and modes."""
    kind, setting = contender_class(task["contender"]), _setting(task, corpus, folder)
    width = kind.fit(setting)
    return {
        "width": width,
        "parameters": count_parameters(kind(width, setting)),
        "remark": kind.remark,
        "modes": kind.modes,
    }


def sweep(task: Task, corpus: Corpus, folder: Path) -> Result:
    """A short training → learning_rate, muon_learning_rate, steps, bytes, exact: bits per byte of training documents in
    another order, None where the training went astray."""
    contender, recipe, base = _fresh(task, corpus, folder), _recipe(task), task["base"]
    training = Training(contender, corpus, recipe)
    _warm_up(contender, corpus, recipe)
    rates = [*training.rates, 0.0][:2]
    result: Result = {"learning_rate": rates[0], "muon_learning_rate": rates[1], "exact": None}
    try:
        training.run(1.0)
    except FloatingPointError:
        return result
    count = max(1, base["curve_bytes"] // recipe.sequence_length)
    rows = _training_rows(corpus, recipe.sequence_length, count, recipe.seed + 1).to(base["device"])
    exact = bits_per_byte(contender, rows, base["batch_size"])["exact"]
    return result | (
        {"exact": exact, "steps": training.steps, "bytes": training.bytes}
        if exact is not None and math.isfinite(exact)
        else {}
    )


def part(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Part `part` of `parts` of a training, put away after it → seconds, bytes, steps so far, exact bits per byte."""
    contender, base = _fresh(task, corpus, folder), task["base"]
    training, path = Training(contender, corpus, _recipe(task)), training_path(task, folder)
    if task["part"] == 0:
        path.unlink(missing_ok=True)  # of a training whose pieces were removed
    if path.exists():
        training.restore(path)
    if training.parts not in (task["part"], task["part"] + 1):
        raise FileNotFoundError(f"{path} is missing or of another part; remove this training's pieces to begin again")
    if training.parts == task["part"]:  # otherwise the run was ended between putting the training away and this
        _warm_up(contender, corpus, training.recipe)
        training.run((task["part"] + 1) / task["training"]["parts"])
        training.save(path)
    rows = _spread(held_out_rows(corpus, base), base["curve_bytes"])
    exact = bits_per_byte(contender, rows, base["batch_size"])["exact"]
    return {"seconds": training.seconds, "bytes": training.bytes, "steps": training.steps, "exact": exact}


def score(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Held-out documents by a trained model → exact, two_part: bits per byte; bytes_per_second of the exact score;
    bytes_per_position of the main network."""
    contender, base = _trained(task, corpus, folder), task["base"]
    rows = held_out_rows(corpus, base)
    _warm_up(contender, corpus, _recipe(task))
    found: Result = {**bits_per_byte(contender, rows, base["batch_size"])}
    with torch.no_grad(), autocast(rows.device, True):
        positions = sum(contender.positions(few) for few in rows.split(base["batch_size"]))
    found["bytes_per_position"] = int((rows < ByteTokenizer.BYTES).sum()) / max(positions, 1)
    return found


def flops(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Matrix products and attention, counted by torch over one batch in fp32; attention counts whole squares.

    → forward, training: operations per byte of a forward pass, and of forward and backward of a whole training step.
    """
    contender, base = _trained(task, corpus, folder).cpu(), task["base"]  # a GPU's attention is counted otherwise
    rows = _training_rows(corpus, base["sequence_length"], base["batch_size"], base["seed"])
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as forward, torch.no_grad():
        _, count = contender.eval().nats(rows)
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as training:
        contender.train().learn(rows, 0.9, False)
    return {"forward": forward.get_total_flops() / count, "training": training.get_total_flops() / count}


def length(task: Task, corpus: Corpus, folder: Path) -> Result:
    """Whole training steps of `step_bytes` in rows of `length` → bytes_per_second (median after the first step) and
    memory_bytes: how far the memory rises above that before the first step."""
    contender, base = _trained(task, corpus, folder), task["base"]
    training, device = Training(contender, corpus, _recipe(task)), torch.device(base["device"])
    count = max(1, task["step_bytes"] // task["length"])
    rows = [
        _training_rows(corpus, task["length"], count, base["seed"] + step).to(device)
        for step in range(task["steps"] + 1)
    ]
    torch.randn(64, 64) @ torch.randn(64, 64)  # loads what loads lazily
    contender.train()
    peak, seconds = PeakMemory(device), []
    for some in rows:
        start = budgeted_training.clock()
        training.step(some, 0.5)
        seconds.append(budgeted_training.clock() - start)
    return {"bytes_per_second": rows[0].numel() / statistics.median(seconds[1:]), "memory_bytes": peak.rise()}


def generation(task: Task, corpus: Corpus, folder: Path) -> Result:
    """`rows` continuations of held-out text at once, in `mode`, all of it after the prompts were read
    → bytes_per_second, None where the model ended its texts at once."""
    contender = _trained(task, corpus, folder).eval()
    text = b"".join(corpus.validation_documents())
    last = len(text) - task["prompt_bytes"]
    if last < 0:
        raise ValueError(f"the held-out text has {len(text):,} bytes; prompts of {task['prompt_bytes']:,} need more")
    starts = [last * i // max(task["rows"] - 1, 1) for i in range(task["rows"])]
    prompts = [text[start : start + task["prompt_bytes"]] for start in starts]
    sum(contender.stream(prompts, 2, task["mode"], task["base"]["seed"]))  # what is slow the first time
    pieces = contender.stream(prompts, task["new_bytes"], task["mode"], task["base"]["seed"])
    start = budgeted_training.clock()
    made = sum(pieces)
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
    """(B, N), the same for all contenders: about `held_out_bytes` from all over the first 2 MiB or so of the file
    `held_out`, or of the documents that the corpus holds out."""
    documents = corpus.validation_documents()
    if base["held_out"] is not None:
        _check_untrained(Path(base["held_out"]), base["data"])
        documents = []
        for unit in find_units(base["held_out"], DataConfig().text_column_name).train:
            if sum(map(len, documents)) < _HELD_OUT:
                documents += unit.read()
    return _spread(rows_of(documents or [b""], base["sequence_length"]), base["held_out_bytes"]).to(base["device"])


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
    """About so many bytes of the rows (B, N), at equal distances from the first to the last."""
    count = min(len(rows), max(1, wanted_bytes // rows.shape[1]))
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def training_path(task: Task, folder: Path) -> Path:
    """Where the training of `task["training"]` lies."""
    named = {name: task[name] for name in ("contender", "version", "base", "width", "training")}
    return folder / f"{task['contender']}_training_{key_of(named)}.pt"


def _setting(task: Task, corpus: Corpus, folder: Path) -> Setting:
    base = task["base"]
    return Setting(base["parameters"], corpus, folder, base["seed"], base["autoencoder_fraction"])


def _fresh(task: Task, corpus: Corpus, folder: Path) -> Contender:
    contender = contender_class(task["contender"])(task["width"], _setting(task, corpus, folder))
    return contender.to(task["base"]["device"])


def _trained(task: Task, corpus: Corpus, folder: Path) -> Contender:
    contender = _fresh(task, corpus, folder)
    load_weights(contender, load_checkpoint(training_path(task, folder)))
    return contender


def _recipe(task: Task) -> Recipe:
    named = {field.name for field in fields(Recipe)}
    return Recipe(**{name: value for name, value in task["training"].items() if name in named})


def _training_rows(corpus: Corpus, row_length: int, batch_size: int, seed: int) -> Tensor:
    rows: Tensor = next(iter(train_loader(corpus, row_length, batch_size, seed)))
    return rows


def _warm_up(contender: Contender, corpus: Corpus, recipe: Recipe) -> None:
    """What a process does slowly the first time does not count: one batch there and back that changes nothing."""
    state = torch.get_rng_state()
    rows = _training_rows(corpus, recipe.sequence_length, recipe.batch_size, recipe.seed)
    rows = rows.to(next(contender.parameters()).device)
    with autocast(rows.device, True):
        contender.eval().nats(rows)[0].backward()
    contender.zero_grad(set_to_none=True)
    torch.set_rng_state(state)
