"""What the model is compared with under the harness, and the benchmark that compares."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager
from tiny_evaluation import requests_of, write_tasks
from tiny_models import rows_of
from tiny_runs import write_text

import benchmarks.kinds  # noqa: F401  registers the baselines
from abstractinator.checkpoints.checkpoint_file import save_checkpoint
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import to_dict
from abstractinator.contract.capabilities import Passage
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.evaluation import harness
from abstractinator.evaluation.model_lm import model_lm
from benchmarks import real_evaluation
from benchmarks.byte_models import ChanceLM
from benchmarks.flat_transformer import FlatConfig
from benchmarks.kinds.flat import Flat


@pytest.fixture
def flat(tmp_path: Path) -> Any:
    """A flat transformer under the harness, from a checkpoint of the frame."""
    torch.manual_seed(0)
    config = FlatConfig(width=32, layers=2, heads=2)
    model = Flat(config)
    for block in model.model.blocks:  # not the identity that a block begins as
        torch.nn.init.normal_(block.attention.to_out.weight, std=0.3)
    experiment = ExperimentConfig(model=config, sequence_length=64)
    payload = {"config": to_dict(experiment), "model": model.state_dict(), "step": 1, "bytes_read": 1}
    save_checkpoint(tmp_path / "flat.pt", payload)
    return model_lm("flat")(str(tmp_path / "flat.pt"), device="cpu")


def test_by_default_flat_reads_no_more_than_a_row_of_its_training(flat: Any) -> None:
    assert flat.max_length == 64


def test_flat_scores_are_its_own_without_the_classes_that_cannot_follow(flat: Any) -> None:
    (score,) = flat.score([Passage(b"the cat", b" sat")])
    logits = flat.model.model.logits(rows_of([b"the cat sat"]))[0].detach()
    logits[:, [256, 258]] = -math.inf
    log_p = logits.log_softmax(-1)
    assert score.nll == pytest.approx(-sum(float(log_p[7 + i, byte]) for i, byte in enumerate(b" sat")), abs=1e-4)


def test_flat_scores_depend_on_no_batch_and_have_no_more_than_one_to_give(flat: Any) -> None:
    passages = [Passage(b"a" * n, b"bc"[: 1 + n % 2], begins=bool(n % 3)) for n in range(1, 9)]
    alone = [flat.score([passage])[0].nll for passage in passages]
    assert [score.nll for score in flat.score(passages)] == pytest.approx(alone, abs=1e-3)
    every = flat.score([Passage(b"the", bytes([byte])) for byte in range(256)])
    assert 0.9 < sum(math.exp(-score.nll) for score in every) < 1


def test_flat_writes_what_it_finds_most_probable(flat: Any) -> None:
    prompts = [b"the cat", b"a", b"two"]
    texts = flat.write(prompts, GenerationConfig(max_new_bytes=6, temperature=0.0))
    for prompt, text in zip(prompts, texts, strict=True):
        assert len(text) == 6
        every = flat.score([Passage(prompt, bytes([byte])) for byte in range(256)])
        assert min(range(256), key=lambda byte: every[byte].nll) == text[0]


def test_chance_takes_the_logarithm_of_its_choices() -> None:
    lm = ChanceLM()
    assert lm.loglikelihood(requests_of("loglikelihood", [("a", "bcd")]), True)[0][0] == pytest.approx(
        -3 * math.log(257)
    )
    assert [len(text) for text in lm.write([b"a", b"b"], GenerationConfig(max_new_bytes=5))] == [5, 5]


def test_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    common = ["--tasks", "tiny_choice,tiny_text", "--include-path", write_tasks(tmp_path / "tasks"), "--limit", "2"]
    common += ["--output", str(tmp_path / "result.json")]
    sizes = {"parameters": 100_000, "seconds": 0.4, "parts": 2, "sequence-length": 64, "batch-size": 2}
    paths = {"data": write_text(tmp_path / "text"), "keep": tmp_path / "kept"}
    training = [word for name, value in (sizes | paths).items() for word in (f"--{name}", str(value))]
    real_evaluation.main([*common, *training])
    first = json.loads((tmp_path / "result.json").read_text())["models"]
    assert [one["name"] for one in first] == ["exact", "two-part", "flat", "chance"]
    assert [one["requests"] for one in first] == [6, 6, 6, 6]
    chance = first[3]["results"]["tiny_text"]["bits_per_byte,none"]
    assert chance == pytest.approx(math.log2(257), abs=1e-3)
    printed = capsys.readouterr().out
    assert "tiny_text bits_per_byte" in printed and "requests per second" in printed

    files = ["--ours", str(tmp_path / "kept" / "abstractinator.pt"), "--flat", str(tmp_path / "kept" / "flat.pt")]
    real_evaluation.main([*common, *files])
    second = json.loads((tmp_path / "result.json").read_text())["models"]
    assert [one["results"] for one in second] == [one["results"] for one in first]
    with pytest.raises(SystemExit):
        real_evaluation.main([*common, *files[:2]])

    monkeypatch.setattr(real_evaluation, "train", lambda _: pytest.fail("a wrong task was trained for"))
    with pytest.raises(SystemExit):
        real_evaluation.main(["--tasks", "tiny_chose", *common[2:], *training])
    assert "no task 'tiny_chose'; the nearest are tiny_choice" in capsys.readouterr().err
