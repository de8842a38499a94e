"""Each benchmark runs at a tiny size, and the flat baseline is what it says it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_level, tiny_transformer
from torch.utils.flop_counter import FlopCounterMode

from abstractinator.atomic_file import atomic_write
from abstractinator.checkpoints.checkpoint_file import save_checkpoint
from abstractinator.components.hierarchical.code_sequence_transformer import TopTransformerConfig
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.components.hierarchical.hierarchy import ModelConfig
from abstractinator.components.packing import Packing
from abstractinator.components.transformer import TransformerConfig
from abstractinator.config.experiment import load_experiment
from abstractinator.config.settings import to_dict
from abstractinator.contract.model import Batch
from abstractinator.training.schedule import build_schedule
from benchmarks import (
    budgeted_training,
    generation_speed,
    gpu_marks,
    length_scaling,
    quantizer_memory,
    shared_cores,
)
from benchmarks.baselines import Rates
from benchmarks.common import PeakMemory, count_parameters, in_fresh_process
from benchmarks.flat_transformer import FlatByteTransformer, FlatConfig, flat_config


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Paths of a tiny experiment, of some text and of a result file."""
    top = TopTransformerConfig(tiny_transformer(), ngram_rows=64, ngram_width=8)
    model = ModelConfig(levels=(tiny_level("threshold", "fsq"),), top_transformer_config=top)
    config, data = tmp_path / "tiny.py", tmp_path / "text"
    settings = {"model": to_dict(model)}
    config.write_text(f"exp_config = {settings!r}\n")
    data.mkdir()
    for number in range(120):
        (data / f"{number}.txt").write_text(f"Document {number} says {number * number} again and again. " * 4)
    return {"config": str(config), "data": str(data), "output": str(tmp_path / "out" / "result.json")}


def _options(files: dict[str, str], *names: str) -> list[str]:
    return [part for name in names for part in (f"--{name}", files[name])]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in this process: a fresh one takes seconds to import torch."""
    for module in (generation_speed, length_scaling, quantizer_memory):
        monkeypatch.setattr(module, "in_fresh_process", lambda name, task, *_, module=module, **__: module.work(task))


@pytest.mark.parametrize("parameters", [30_000, 300_000, 2_000_000, 23_000_000])
def test_sized_meets_the_wanted_number(parameters: int) -> None:
    with torch.device("meta"):
        model = FlatByteTransformer.sized(parameters)
    assert count_parameters(model) == pytest.approx(parameters, rel=0.03)


def test_sized_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="no flat transformer"):
        flat_config(100)


def _flat() -> FlatByteTransformer:
    torch.manual_seed(0)
    model = FlatByteTransformer(FlatConfig(width=32, layers=2, heads=2))
    for block in model.blocks:  # not the identity that a block begins as
        torch.nn.init.normal_(block.attention.to_out.weight, std=0.3)
        torch.nn.init.normal_(block.mlp.mlp.to_out.weight, std=0.3)
    return model.eval()


def test_flat_transformer_sees_the_whole_past_and_no_future() -> None:
    model, rows = _flat(), torch.randint(256, (1, 24))
    before = model.logits(rows)
    rows[0, 10] = (rows[0, 10] + 1) % 256
    moved = (model.logits(rows) - before).abs().amax(-1)[0] > 1e-6
    assert not moved[:10].any() and moved[10:].all()


def test_flat_transformer_scores_bytes_and_ends_but_no_beginnings_and_no_padding() -> None:
    model = _flat()
    rows = torch.tensor([[256, 65, 66, 257, 256, 67, 258, 258]])
    nats, bytes_ = model.score(rows)
    log_p = model.logits(rows).detach().log_softmax(-1)[0]
    expected = -sum(float(log_p[i, rows[0, i + 1]]) for i in (0, 1, 2, 4))
    assert bytes_ == 3 and float(nats.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(model(rows).detach()) == pytest.approx(expected / 3, rel=1e-4)


def test_flat_transformer_steps_as_it_runs_while_its_cache_lasts() -> None:
    model, rows = _flat(), torch.randint(256, (2, 24))
    whole, cut = model.empty_cache(2, 24), model.empty_cache(2, 8)
    steps, with_less = (torch.stack([model.step(byte, cache) for byte in rows.T], dim=1) for cache in (whole, cut))
    expected = model.logits(rows).detach()
    torch.testing.assert_close(steps, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(with_less[:, :8], expected[:, :8], atol=1e-4, rtol=0)
    assert not torch.allclose(with_less[:, 8:], expected[:, 8:], atol=1e-4)


@pytest.mark.parametrize("unit", ["seconds", "bytes"])
def test_the_schedule_of_a_budget_rises_holds_and_falls(unit: Any) -> None:
    recipe = budgeted_training.Recipe(unit, 1e6, sequence_length=100, batch_size=10, seed=0)
    planned = recipe.planned_steps
    schedule = build_schedule(recipe.experiment(FlatConfig(), Rates(1e-3, 1e-2)), planned)
    rates = [schedule(planned * done / 100) for done in range(101)]
    assert rates[0] == 0 and all(rate == 1 for rate in rates[2:61])
    assert rates[80] == pytest.approx(0.5) and rates[100] == 0


def test_length_scaling_script(here: None, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = _words("--lengths 64 128 --step-bytes 128 --steps 1 --repeats 1 --flat-parameters 30000")
    length_scaling.main([*sizes, *_options(files, "config", "data", "output")])
    assert "µs/byte" in capsys.readouterr().out
    cases = _result(files)["cases"]
    assert [(c["baseline"], c["length"]) for c in cases] == [(n, k) for n in ("ours", "flat") for k in (64, 128)]
    assert cases[0]["microseconds_per_byte_ratio"] == 1


def test_length_that_takes_too_long_is_a_dash() -> None:
    cases = [{"baseline": "flat", "length": 1, "bytes": 8.0, "microseconds_per_byte": 2.0}]
    cases.append({"baseline": "flat", "length": 2, "bytes": None, "microseconds_per_byte": None})  # type: ignore
    rows = length_scaling.rows_of_table(length_scaling.with_ratios(cases))
    assert rows[1][2:] == ["–"] * 4


def test_quantizer_memory_script(here: None, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = _words("--codes 100 --width 8 --vectors 50 --library-limit-gb 0")
    quantizer_memory.main([*sizes, *_options(files, "output")])
    assert "library vq" in capsys.readouterr().out
    result = _result(files)
    assert len(result["cases"]) == 10 and result["worst_bytes"] >= 0


def test_shared_cores_script(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_cores, "_CASES", {"one core busy": True})
    monkeypatch.setattr(shared_cores, "_THREADS", {"default threads": {}})
    sizes = f"--steps 1 --repeats 1 --minutes 0 data.path={files['data']} sequence_length=64 batch_size=2"
    shared_cores.main([*_words(sizes), *_options(files, "config", "output")])
    assert "share of the better" in capsys.readouterr().out
    (speed,) = _result(files)["bytes_per_second"]["one core busy"]["default threads"]
    assert speed > 0


def test_shared_cores_table_marks_what_is_too_slow() -> None:
    def rows(default: float) -> list[list[str]]:
        threads = {"default threads": [default], "one thread": [1000.0]}
        return shared_cores.rows_of_table({"idle": threads, "one core busy": threads})

    assert [row[-1] for row in rows(700.0)] == ["0.70", "0.70 ✗"]
    assert [row[-1] for row in rows(1500.0)] == ["1.00", "1.00 ✓"]


def test_gpu_marks_script_says_that_there_is_no_gpu(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--device cpu --repeats 2 --product 32 --tokens 64 100 --heads 2 1 --windows 8 4 --row-tokens 32"
    sizes += " --codes 50 --width 8 --vectors 20 sequence_length=64 batch_size=2 gradient_accumulation_steps=2"
    gpu_marks.main([*_words(sizes), *_options(files, "config", "data", "output")])
    assert "this is no GPU" in capsys.readouterr().out
    result = _result(files)
    assert [(case["tokens"], case["share"]) for case in result["attention"]] == [(64, None), (99, None)]
    assert result["codes"]["share"] > 0 and result["utilisation"]["bytes_per_second"] > 0


def test_operations_of_a_step_are_those_that_torch_counts(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rate's pass through the head is no part of the model, but torch would count it.
    model = HierarchicalAELM(load_experiment(files["config"], ["model.rate_loss_weight=0"]).model)
    batch, attended = Batch.of(torch.randint(256, (2, 64))), []
    original = gpu_marks._attended
    monkeypatch.setattr(gpu_marks, "_attended", lambda *given: attended.append(original(*given)) or 0)
    torch.manual_seed(0)  # of the parts that are drawn beside the text
    linear = gpu_marks.operations_of(model, batch)
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        model(batch).total.backward()
    counted = counter.get_flop_counts()["Global"]
    # Pooling multiplies a little beside its layers.
    assert linear == pytest.approx(sum(counted[p] for p in (torch.ops.aten.mm, torch.ops.aten.addmm)), rel=0.005)
    assert len(attended) == 3


def test_attention_counts_what_a_token_sees() -> None:
    config = TransformerConfig(width=8, layers=3, heads=2, window=4)
    packing = Packing.from_lengths(torch.tensor([2, 6]))
    seen = 1 + 2 + 1 + 2 + 3 + 4 + 4 + 4
    assert gpu_marks._attended(config, packing) == 3 * 12 * 8 * seen


def test_gpu_marks_refuses_shapes_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_marks.main(_words("--tokens 64 --heads 1 2 --windows 8 8"))
    assert "a number for every shape" in capsys.readouterr().err


def test_generation_speed_script(
    here: None, files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    experiment = load_experiment(files["config"], [f"data.path={files['data']}"])
    torch.manual_seed(0)
    payload = {
        "version": "0",
        "config": to_dict(experiment),
        "model": HierarchicalAELM(experiment.model).state_dict(),
    }
    save_checkpoint(tmp_path / "checkpoint_step1.pt", payload)
    sizes = _words("--batch-sizes 1 2 --prompt-bytes 20 --new-bytes 12 --flat-context 16 --repeats 1 --memory-bytes 40")
    sizes += _words("--quality-prompts 3 --quality-prompt-bytes 10 --sample-bytes 9")
    generation_speed.main(["--checkpoint", str(tmp_path / "checkpoint_step1.pt"), *sizes, *_options(files, "output")])
    assert "BrierLM" in capsys.readouterr().out
    result = _result(files)
    names = ["flat", "plan", "exact", "speculative"]
    assert [(s["rows"], s["name"]) for s in result["speed"]] == [(rows, name) for rows in (1, 2) for name in names]
    assert all(s["bytes_per_second"] > 0 for s in result["speed"]) and result["speed"][0]["ratio"] == 1
    assert set(result["memory_rise_bytes"]) == set(names[1:])


def test_brier_of_continuations_that_are_always_right_is_one() -> None:
    prompts = generation_speed.prompts_of(bytes(range(100)), 5, 10)
    true = {prompt[:-4]: prompt[-4:] for prompt in prompts}
    assert len(true) == 5 and prompts[-1][-1] == 99
    model: Any = SimpleNamespace(generate_bytes=lambda some, **_: [true[prompt] for prompt in some])
    assert generation_speed.brier(model, prompts, "exact", 2) == [1.0] * 4
    # x wrong and y right is [0] + [1] - [0]; both wrong alike is [0] + [0] - [1].
    for right, expected in ((1, 1.0), (2, -1.0)):
        model.generate_bytes = lambda some, right=right, **_: [
            true[p] if i == right else b"\xff" * 4 for i, p in enumerate(some)
        ]
        assert generation_speed.brier(model, prompts, "exact", 1) == [expected] * 4


def test_a_file_that_is_not_written_whole_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("whole")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("ha")
        raise KeyboardInterrupt
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_worker_runs_in_a_process_of_its_own() -> None:
    task = {"kind": "simvq", "case": "encode", "limit": 0, "codes": 100, "width": 8, "vectors": 50}
    done = in_fresh_process("benchmarks.quantizer_memory", task, exact_memory=True)
    assert done is not None and done["seconds"] > 0


def test_peak_memory_sees_what_was_freed_again() -> None:
    torch.ones(30 << 20, dtype=torch.uint8)  # lifts the high-water mark before
    peak = PeakMemory()
    torch.ones(60 << 20, dtype=torch.uint8)
    assert 55 << 20 < peak.rise() < 70 << 20


def _words(text: str) -> list[str]:
    return text.split()


def _result(files: dict[str, str]) -> dict[str, Any]:
    return json.loads(Path(files["output"]).read_text())
