"""`evaluate`: the harness's options, table and files; one clear line for each mistake, before work starts."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from tiny_calm import tiny_calm_config, tiny_discrete_config
from tiny_evaluation import TASKS, model_of, save_tiny, write_tasks
from tiny_glae import tiny_glae_config
from tiny_runs import tiny_experiment

from abstractinator.cli import main as cli
from abstractinator.components.cta.config import CTAConfig
from abstractinator.evaluation import harness
from abstractinator.evaluation.options import DEFAULT_TASKS, EvaluationOptions, add_options
from abstractinator.training.loop import train

SHAPE = "information"
ROOT = Path(__file__).resolve().parent.parent
Output = pytest.CaptureFixture[str]

# evaluate.py as a script, without the harness's fifteen thousand tasks, which take seconds to index.
EVALUATE = f"""
import functools, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from abstractinator.evaluation import harness
harness.TaskManager = functools.partial(harness.TaskManager, include_defaults=False)
runpy.run_path({str(ROOT / "evaluate.py")!r}, run_name="__main__")
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and none of the harness's own tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save_tiny(tmp_path / "checkpoint_step3.pt", model_of(SHAPE, "trained"), SHAPE)


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    return write_tasks(tmp_path / "tasks")


def command(checkpoint: str, tasks: str, names: str, *more: str) -> list[str]:
    model_args = ["--model_args", f"checkpoint={checkpoint}"]
    return ["evaluate", *model_args, "--device", "cpu", "--include_path", tasks, "--tasks", names, *more]


def results_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text())


def test_all_kinds_of_tasks(tmp_path: Path, checkpoint: str, tasks: str, capsys: Output) -> None:
    more = ["--output_path", "out", "--log_samples", "--mlflow", "scores", "--batch_size", "auto", "--seed", "3"]
    assert cli.main(command(checkpoint, tasks, "tiny_*", *more)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("hier_ae (checkpoint=") and "scoring: exact" in printed
    for words in (*TASKS, "|acc ", "|perplexity", "|bits_per_byte", "|exact_match", " Tasks "):
        assert words in printed
    results = results_in(tmp_path / "out")
    assert results["config"]["model"] == results["model_source"] == "hier_ae"
    assert results["model_name"] == checkpoint
    assert results["config"]["scoring"] == "exact"
    assert results["config"]["checkpoint_steps"] == 3
    assert results["config"]["torch_seed"] == 3
    assert 0 < results["results"]["tiny_text"]["bits_per_byte,none"] < 8
    assert results["n-samples"]["tiny_choice"]["effective"] == 5
    written = printed.splitlines()[-1].removeprefix("wrote ").split(", ")
    assert sorted(written) == sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "out").rglob("*.json*"))
    samples = [path.read_text().splitlines() for path in sorted((tmp_path / "out").rglob("samples_*.jsonl"))]
    assert [len(lines) for lines in samples] == [5, 5, 5, 5]
    _check_mlflow(tmp_path / "mlruns" / "scores" / "mlflow.db", results["results"])


def _check_mlflow(store: Path, results: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    (run,) = client.search_runs([client.get_experiment_by_name("scores").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["scoring"] == "exact"
    for task, metric in (("tiny_choice", "acc"), ("tiny_text", "bits_per_byte")):
        assert run.data.metrics[f"{task}/{metric}"] == pytest.approx(results[task][f"{metric},none"])


def test_two_part_scores_are_said_to_be_that(tmp_path: Path, checkpoint: str, tasks: str, capsys: Output) -> None:
    arguments = command(checkpoint, tasks, "tiny_text", "--limit", "2", "--output_path", "out")
    exact = lm_eval.simple_evaluate(
        "hier_ae", f"checkpoint={checkpoint},device=cpu", tasks=[str(Path(tasks) / "tiny_text.yaml")], limit=2,
        task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
    )  # fmt: skip
    arguments[2:3] = [f"checkpoint={checkpoint}", "scoring=two_part"]
    assert cli.main(arguments) == 0
    assert "scoring: two_part" in capsys.readouterr().out
    two_part = results_in(tmp_path / "out")
    assert two_part["config"]["scoring"] == "two_part" and exact["config"]["scoring"] == "exact"
    task, metric = "tiny_text", "bits_per_byte,none"
    assert two_part["results"][task][metric] > exact["results"][task][metric]


def test_the_harness_s_own_models_work_beside_ours(tmp_path: Path, tasks: str, capsys: Output) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path / "gpt")
    config = GPT2Config(vocab_size=len(symbols), n_positions=64, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    arguments = ["evaluate", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'gpt'}", "use_accelerate=False"]
    arguments += ["--device", "cpu", "--include_path", tasks, "--tasks", "tiny_choice", "--limit", "0.4"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("hf (") and "tiny_choice" in printed


def test_several_processes_find_what_one_does(tmp_path: Path, checkpoint: str, tasks: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = command(checkpoint, tasks, "tiny_choice,tiny_text")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", EVALUATE, *arguments[1:], "--output_path", "two", "--log_samples"],
            env=os.environ
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert cli.main([*arguments, "--output_path", "one"]) == 0
    printed = [worker.communicate(timeout=200) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    assert "tiny_choice" in printed[0][0] and printed[1][0] == ""
    assert "fatal" not in printed[0][1]  # of git, which finds no repository here
    one, two = results_in(tmp_path / "one")["results"], results_in(tmp_path / "two")["results"]
    assert two["tiny_text"]["bits_per_byte,none"] == pytest.approx(one["tiny_text"]["bits_per_byte,none"], abs=1e-4)
    assert two["tiny_choice"]["acc,none"] == one["tiny_choice"]["acc,none"]
    (samples,) = (tmp_path / "two").rglob("samples_tiny_choice*")
    assert sorted(json.loads(line)["doc_id"] for line in samples.read_text().splitlines()) == [0, 1, 2, 3, 4]


# ---- mistakes ----------------------------------------------------------------------------------------------


def mistake(capsys: Output, arguments: list[str]) -> str:
    """The one line of a command that fails; nothing was scored."""
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("abstractinator: ") and "Traceback" not in printed.err
    assert "Running" not in printed.err and printed.out == ""
    return last


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", "tiny_chioce"], ["'tiny_chioce'", "tiny_choice"]),
        (["--tasks", "x" * 40], ["lm-eval ls tasks"]),
        (["--tasks", ","], ["--tasks is empty"]),
        (["--limit", "0"], ["--limit", "above 0"]),
        (["--limit", "-3"], ["--limit", "above 0"]),
        (["--limit", "nan"], ["--limit", "above 0"]),
        (["--limit", "2.5"], ["--limit", "2.5"]),
        (["--num_fewshot", "-1"], ["--num_fewshot"]),
        (["--seed", "1,2"], ["--seed", "1,2"]),
        (["--seed", "one"], ["--seed", "one"]),
        (["--log_samples"], ["--log_samples", "--output_path"]),
        (["--include_path", "nowhere"], ["--include_path=nowhere"]),
        (["--output_path", "file/below"], ["--output_path=file/below"]),
        (["--batch_size", "some"], ["batch_size", "auto"]),
        (["--device", "cuda:63"], ["cuda:63"]),
        (["--model", "hier_ea"], ["hier_ea", "hier_ae"]),
        (["--model_args", "checkpoint"], ["key=value", "checkpoint"]),
        (["--model_args", "scoring=exact"], ["checkpoint=…"]),
        (["--model_args", "checkpoint="], ["checkpoint=…"]),
        (
            ["--model_args", "checkpoint=a.pt", "--model_args", "checkpoint=b.pt"],
            ["--model_args", "`checkpoint` twice"],
        ),
        (["--gen_kwargs", "top_p=2"], ["top_p", "not 2"]),
        (["--gen_kwargs", "temprature=1"], ["`temprature`", "temperature"]),
        (["--gen_kwargs", "temperature"], ["--gen_kwargs", "key=value", "temperature"]),
        (["--model_args", "checkpoint=nothing.pt"], ["nothing.pt"]),
        (["--model_args", "checkpoint=foreign.pt"], ["foreign.pt", "another program"]),
        (["--model_args", "checkpoint=future.pt"], ["future.pt", "0.0.1"]),
        (["--model_args", "checkpoint=foreign.pt scorin=exact"], ["`scorin`", "`scoring`"]),
        (["--model_args", "checkpoint=foreign.pt generation=fast"], ["generation must be one of plan", "'fast'"]),
        (["--model", "hf", "--model_args", "revision=main"], ["--model hf", "'pretrained'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake(
    tmp_path: Path, checkpoint: str, tasks: str, capsys: Output, more: list[str], words: list[str]
) -> None:
    (tmp_path / "file").touch()
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    save_tiny(
        tmp_path / "future.pt", model_of(SHAPE, "random"), SHAPE, version="0.0.1", model={"weight": torch.ones(2)}
    )
    arguments = command(checkpoint, tasks, "tiny_word")
    if "--model_args" in more:  # instead of the right ones
        arguments = [word for word in arguments if word not in ("--model_args", f"checkpoint={checkpoint}")]
    message = mistake(capsys, [*arguments, *more])
    assert [word for word in words if word not in message] == [], message


def test_a_task_whose_file_cannot_be_read(tmp_path: Path, checkpoint: str, tasks: str, capsys: Output) -> None:
    (Path(tasks) / "tiny_broken.yaml").write_text("task: tiny_broken\ndoc_to_text: '{{a}\n  b: [")
    message = mistake(capsys, command(checkpoint, tasks, "tiny_broken", "--output_path", "new/out"))
    assert "tiny_broken.yaml" in message and "line 2" in message
    assert not (tmp_path / "new").exists()  # nothing was evaluated


def test_generation_that_a_task_cannot_have_is_refused_before_any_task_is_scored(
    checkpoint: str, tasks: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(tasks) / "tiny_until.yaml"
    path.write_text(path.read_text().replace("do_sample: false", "do_sample: false, num_beams: 1"))
    (Path(tasks) / "both.yaml").write_text("group: both\ntask: [tiny_word, tiny_until]\n")
    monkeypatch.setattr(harness, "simple_evaluate", lambda **_: pytest.fail("work had begun"))
    for names in ("tiny_text,tiny_until", "both"):
        assert cli.main(command(checkpoint, tasks, names)) == 2
        assert "task tiny_until: there is no generation argument `num_beams`" in capsys.readouterr().err


def test_the_harness_is_left_as_it_was(checkpoint: str, tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, during = lm_eval.loggers.utils.get_git_commit_hash, []

    def simple_evaluate(**_: object) -> None:
        during.append(evaluator.get_git_commit_hash)
        raise ValueError("stopped")

    monkeypatch.setattr(harness, "simple_evaluate", simple_evaluate)
    assert evaluator.get_git_commit_hash is theirs
    assert cli.main(command(checkpoint, tasks, "tiny_word")) == 2
    assert during == [harness._git_commit] and evaluator.get_git_commit_hash is theirs


def test_an_empty_context_is_continued(tmp_path: Path, checkpoint: str, tasks: str) -> None:
    path = Path(tasks) / "tiny_until.yaml"
    path.write_text(path.read_text().replace("{{query}}", ""))
    assert cli.main(command(checkpoint, tasks, "tiny_until", "--output_path", "out")) == 0
    assert results_in(tmp_path / "out")["results"]["tiny_until"]["exact_match,none"] == 0


def test_options_add_up() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    words = "--model_args a=1 b=2 --tasks one two,three one --model_args c=3 --gen_kwargs d=4 --gen_kwargs e=5"
    options = EvaluationOptions.of(parser.parse_args(words.split()))
    assert options.model_args == ("a=1", "b=2", "c=3")
    assert options.gen_kwargs == ("d=4", "e=5")
    assert options.task_names == ["one", "two", "three"]
    assert EvaluationOptions.of(parser.parse_args([])) == EvaluationOptions()


def test_no_network_for_a_hub_task(
    tmp_path: Path, checkpoint: str, tasks: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/texts' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    text = (Path(tasks) / "tiny_word.yaml").read_text().replace("dataset_path: json", "dataset_path: someone/texts")
    (Path(tasks) / "tiny_hub.yaml").write_text(text.replace("tiny_word", "tiny_hub"))
    message = mistake(capsys, command(checkpoint, tasks, "tiny_hub"))
    for words in ("tiny_hub", "someone/texts", "dataset_path: json", "--include_path"):
        assert words in message


def test_a_task_whose_file_is_missing(tmp_path: Path, checkpoint: str, tasks: str, capsys: Output) -> None:
    (Path(tasks) / "items.jsonl").unlink()
    message = mistake(capsys, command(checkpoint, tasks, "tiny_word"))
    assert "tiny_word" in message and "items.jsonl" in message


def test_half_a_pair_of_surrogates_in_json(tmp_path: Path, checkpoint: str, tasks: str, capsys: Output) -> None:
    item = '{"query": "a \\ud83d b", "choices": ["b"], "gold": 0, "text": "c"}\n'
    (Path(tasks) / "items.jsonl").write_text(2 * item)
    message = mistake(capsys, command(checkpoint, tasks, "tiny_word"))
    assert "tiny_word" in message and "surrogate" in message


def test_help(capsys: Output) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{field.name}" in shown for field in fields(EvaluationOptions))


def test_default_tasks_and_seeds() -> None:
    options = EvaluationOptions()
    assert options.task_names == DEFAULT_TASKS.split(",")
    assert set(options.task_names) >= {"lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge"}
    assert set(options.task_names) >= {"openbookqa", "winogrande"}
    assert options.seeds == (0, 1234, 1234, 1234)
    assert EvaluationOptions(seed="7").seeds == (7, 7, 7, 7)
    assert EvaluationOptions(seed="1,None,2,3").seeds == (1, None, 2, 3)


def test_importing_the_adapter_registers_it_and_keeps_the_others() -> None:
    program = "import abstractinator.evaluation.model_lm as m; from lm_eval.api.registry import get_model as g"
    check = "; assert issubclass(g('hier_ae'), m.ModelLM) and g('hf').__name__ == 'HFLM'; print('registered')"
    done = subprocess.run([sys.executable, "-c", program + check], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("registered\n", 0), done.stderr


@pytest.mark.parametrize("config", [tiny_discrete_config(), tiny_glae_config()], ids=lambda config: config.kind)
def test_every_kind_with_a_likelihood_is_evaluated(config: Any, tmp_path: Path, tasks: str, capsys: Output) -> None:
    train(tiny_experiment(tmp_path, model=config))
    words = ["--model", config.kind, "--model_args", "checkpoint=checkpoints", "--include_path", tasks]
    assert cli.main(["evaluate", *words, "--tasks", "tiny_text,tiny_choice", "--output_path", "out"]) == 0
    [results] = Path("out").rglob("results_*.json")
    assert 5 < json.loads(results.read_text())["results"]["tiny_text"]["bits_per_byte,none"] < 12


@pytest.mark.parametrize("config", [tiny_calm_config(), CTAConfig(width=8)], ids=lambda config: config.kind)
def test_a_kind_without_a_likelihood_says_what_it_can_do(
    config: Any, tmp_path: Path, tasks: str, capsys: Output
) -> None:
    train(tiny_experiment(tmp_path, model=config))
    words = ["evaluate", "--model", config.kind, "--include_path", tasks, "--tasks", "tiny_choice", "--model_args"]
    assert cli.main([*words, "checkpoint=checkpoints"]) == 2
    assert f"a model of kind {config.kind} cannot score texts; it can reconstruct texts" in capsys.readouterr().err
    assert cli.main([*words, "checkpoint=checkpoints,scoring=exact"]) == 2
    assert f"a model of kind {config.kind} has no scoring" in capsys.readouterr().err
