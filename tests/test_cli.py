"""The command line: what it prints, and one clear line with exit status 2 for each mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import tiny_experiment, write_config

from abstractinator import __version__
from abstractinator.checkpoints.checkpoint_file import save_checkpoint
from abstractinator.cli import main as cli
from abstractinator.components.hierarchical import generation, hierarchical_aelm
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import to_dict

SHAPE = "information"
LOSS_WEIGHTS = (
    "predict_loss_weight",
    "reconstruction_loss_weight",
    "top_lm_loss_weight",
    "rate_loss_weight",
    "aux_lm_loss_weight",
    "repetition_weight",
)
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A file with the settings of a tiny run."""
    return write_config(tmp_path / "tiny.py", tiny_experiment(tmp_path, SHAPE, max_steps=1))


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A checkpoint of a tiny model, with what `generate` and `info` read."""
    path = tmp_path / "checkpoint_step3.pt"
    payload = {
        "version": __version__,
        "kind": "hier_ae",
        "config": to_dict(tiny_experiment(tmp_path, SHAPE)),
        "model": tiny_model(SHAPE).state_dict(),
        "step": 3,
        "planned_steps": 8,
        "bytes_read": 1234,
        "seconds": 2.0,
    }
    save_checkpoint(path, payload)
    return str(path)


def mistake(capsys: Output, arguments: list[str]) -> str:
    """The one line of a command that fails."""
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("abstractinator: ")
    return lines[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lerning_rate=1", ["lerning_rate", "`learning_rate`"]),
        ("model.top_transformer_config.transformer.widht=8", ["transformer.widht", "transformer.width"]),
        ("batch_size=many", ["batch_size", "whole number"]),
        ("model.levels.0.compressor.quantizer.kind=fsk", ["quantizer.kind", "'fsq'"]),
        ("model.top_transformer_config.transformer.heads=3", ["heads (3)", "width (16)"]),
        ("model.top_transformer_config.transformer.window=0", ["window", "at least 1"]),
        ("model.levels.0.compressor.value_width=0", ["value_width", "at least 1"]),
        ("model.levels.0.compressor.layers=-1", ["layers", "at least 0"]),
        ("model.levels.0.compressor.mlp_width=0", ["mlp_width", "at least 1"]),
        ("model.levels.0.expander.position_width=0", ["position_width", "at least 1"]),
        ("model.levels.0.expander.ngram_rows=0", ["ngram_rows", "at least 1"]),
        ("model.levels.0.expander.ngram_sizes=[0,2]", ["ngram_sizes", "at least 1"]),
        ("model.levels.0.compressor.entropy_model.ngram_width=0", ["ngram_width", "at least 1"]),
        ("model.top_transformer_config.ngram_sizes=[0]", ["ngram_sizes", "at least 1"]),
        ("max_steps=0", ["max_steps", "at least 1"]),
        ("seed=-1", ["seed", "0 or more"]),
        ("weight_decay=-0.1", ["weight_decay", "0 or more"]),
        ("warmup_steps=-1", ["warmup_steps", "0 or more"]),
        *((f"model.{name}=-1", [name, "0 or more"]) for name in LOSS_WEIGHTS),
        ("pace=[]", ["pace is empty"]),
        ("pace=[[0,0]]", ["stride of pace", "at least 1, not 0"]),
        ("pace=[[0,2],[5,-1]]", ["stride of pace", "not -1"]),
        ("pace=[[0,1e999]]", ["pace.0.1", "a number, not inf"]),
        ("pace=[[-1,2]]", ["steps of pace", "0 or more, not -1"]),
        ("pace=[[9,2],[4,3]]", ["steps of pace must ascend", "9, 4"]),
        ("pace=[[4,2],[4,3]]", ["steps of pace must ascend", "4, 4"]),
        ("pace=[[4]]", ["pace.0", "a list of 2"]),
        ("scheduler_type=cosin", ["cosin"]),
        ("data.path=nowhere", ["nowhere", "does not exist"]),
        ("resume_from_checkpoint=latest", ["latest", "checkpoint_step"]),
        ("resume_from_checkpoint=nothing.pt", ["nothing.pt"]),
        ("checkpoint_dir=file/below", ["file/below", "checkpoint_dir"]),
        ("data.path=empty", ["empty"]),
        ("data.path=rows.jsonl", ["text_column_name", "body"]),
    ],
)
def test_a_mistake_in_a_training(tmp_path: Path, config: str, capsys: Output, override: str, words: list[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"body": "some text"}\n' * 9)
    message = mistake(capsys, ["train", "--config", config, override])
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.levels.0.compressor.quantizer.fsq_levels=[1000,1000,1000,1000]", "allocate"),
        ("model.top_transformer_config.ngram_rows=10000000000000", "allocate"),
        ("model.levels.0.compressor.quantizer.fsq_levels=[1000000,1000000,1000000,1000000]", "too big"),
    ],
)
def test_a_model_that_does_not_fit(config: str, capsys: Output, override: str, reason: str) -> None:
    message = mistake(capsys, ["train", "--config", config, override])
    assert "cannot be built" in message and reason in message and message.endswith("lower the sizes in `model`")


def test_a_training_that_does_not_fit(config: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(_: ExperimentConfig) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9.00 GiB")

    monkeypatch.setattr("abstractinator.training.loop.train", train)
    message = mistake(capsys, ["train", "--config", config])
    assert "lower batch_size" in message and "gradient_accumulation_steps" in message


def test_no_network_for_a_hub_corpus(config: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    message = mistake(capsys, ["train", "--config", config, "data.path=None", "data.dataset_name=someone/some-texts"])
    assert "someone/some-texts" in message


def test_a_configuration_file_that_is_not_there(capsys: Output) -> None:
    assert "other.py" in mistake(capsys, ["train", "--config", "other.py"])


@pytest.mark.parametrize("command", [["generate", "{}", "a"], ["info", "{}"]], ids=["generate", "info"])
@pytest.mark.parametrize("kind", ["missing", "folder", "corrupt", "cut", "foreign", "other model"])
def test_a_checkpoint_that_is_none(tmp_path: Path, saved: str, capsys: Output, command: list[str], kind: str) -> None:
    path = tmp_path / "checkpoint_step9.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "corrupt":
        path.write_bytes(b"not at all a checkpoint")
    elif kind == "cut":
        path.write_bytes(Path(saved).read_bytes()[:5000])
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "other model":
        save_checkpoint(path, {"config": {"model": {}}, "model": {"weight": torch.zeros(2)}, "version": "0.0.1"})
    assert str(path) in mistake(capsys, [part.format(path) for part in command])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a", "--max-new-bytes", "0"], "max_new_bytes"),
        (["a", "--temperature", "-1"], "temperature"),
        (["a", "--top-p", "2"], "top_p"),
        (["a", "--stop", ""], "stop"),
        (["a", "--no-repeat-ngram-size", "1"], "no_repeat_ngram_size"),
    ],
    ids=str,
)
def test_a_mistake_in_a_generation(saved: str, capsys: Output, arguments: list[str], word: str) -> None:
    assert word in mistake(capsys, ["generate", saved, *arguments])


@pytest.mark.parametrize("mode", ["plan", "exact", "speculative"])
def test_generate_writes_text(
    saved: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    prompt = b"\xff\x00 cat\n\xfe"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(prompt)))
    options = ["--mode", mode, "--max-new-bytes", "20", "--seed", "1", "--device", "cpu"]
    assert cli.main(["generate", saved, "-", *options]) == 0
    expected = tiny_model(SHAPE).generate_bytes(
        prompt, mode=mode, max_new_bytes=20, temperature=0.8, top_p=0.95, top_k=0, seed=1
    )
    assert capfdbinary.readouterr().out == expected  # byte for byte, as no terminal reads it
    assert expected


def test_a_terminal_gets_whole_characters(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However their bytes come, and what is no character is shown as one that says so."""
    text = "aé€😀".encode() + b"\xff" + b"z" + "€".encode()[:2]
    shown: list[bytes] = []
    buffer = SimpleNamespace(write=shown.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer, isatty=lambda: True, flush=lambda: None))
    monkeypatch.setattr(
        hierarchical_aelm, "stream_bytes", lambda *_: (generation.Piece(0, text[i : i + 1]) for i in range(len(text)))
    )
    assert cli.main(["generate", saved, "a", "--device", "cpu"]) == 0
    assert b"".join(shown).decode() == "aé€😀\ufffdz\ufffd\n"
    assert [part.decode() for part in shown if part] == ["a", "é", "€", "😀", "\ufffd", "z", "\ufffd\n"]


def test_a_stop_string_is_not_written(saved: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    options = ["--mode", "exact", "--max-new-bytes", "60", "--seed", "1", "--device", "cpu", "--temperature", "1"]
    assert cli.main(["generate", saved, "the cat", *options]) == 0
    whole = capfdbinary.readouterr().out
    stop = next(whole[i : i + 2].decode() for i in range(5, len(whole)) if whole[i : i + 2].isascii())
    assert cli.main(["generate", saved, "the cat", *options, "--stop", "never there", f"--stop={stop}"]) == 0
    assert capfdbinary.readouterr().out == whole[: whole.index(stop.encode())]


def test_info_shows_what_a_checkpoint_is(saved: str, capsys: Output) -> None:
    assert cli.main(["info", saved]) == 0
    shown = capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in tiny_model(SHAPE).parameters())
    for words in ("tiny", "3 of 8", "1,234", f"{parameters:,}", "information at", "2 × 16 fsq", "2 layers, 16 wide"):
        assert words in shown
    assert cli.main(["info", saved, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["step"] == 3
    assert content["config"]["run_name"] == "tiny"


def test_show_prints_the_settings_and_trains_nothing(tmp_path: Path, config: str, capsys: Output) -> None:
    assert cli.main(["train", "--config", config, "--show", "learning_rate=0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["learning_rate"] == 0.5
    assert not (tmp_path / "checkpoints").exists()


def test_overrides_stand_anywhere_and_the_last_counts(config: str, capsys: Output) -> None:
    line = ["train", "batch_size=3", "seed=1", "--config", config, "seed=2", "--show", "seed=3", "max_steps=4"]
    assert cli.main(line) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [shown[name] for name in ("batch_size", "seed", "max_steps")] == [3, 3, 4]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (["train", "--sho", "x=1", "--shwo"], "--shwo"),
        (["info", "x.pt", "seed=1"], "seed=1"),
        (["generate", "x.pt", "a", "b"], "b"),
    ],
    ids=str,
)
def test_what_is_no_option_is_refused(capsys: Output, line: list[str], word: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(line)
    assert left.value.code == 2
    assert f"unrecognized arguments: {word}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "usage", "near"),
    [
        (["generate", "x.pt", "a", "--max_new_bytes", "9"], "abstractinator generate", "--max-new-bytes"),
        (["evaluate", "--batchsize=9"], "abstractinator evaluate", "--batch_size"),
        (["train", "--shwo"], "abstractinator train", "--show"),
    ],
    ids=str,
)
def test_an_unknown_option_is_refused_with_the_nearest(capsys: Output, line: list[str], usage: str, near: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(line)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: {usage}") and f"did you mean {near}?" in error


def test_without_a_file_the_settings_are_those_of_config_py_here(tmp_path: Path, config: str, capsys: Output) -> None:
    (tmp_path / "config.py").write_text('exp_config = {"run_name": "from here"}\n')
    assert cli.main(["train", "--show"]) == 0
    assert json.loads(capsys.readouterr().out)["run_name"] == "from here"


def test_train_and_then_generate(tmp_path: Path, config: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", config]) == 0
    assert "bytes reconstructed" in capfd.readouterr().out
    written = []
    for checkpoint in (tmp_path / "checkpoints" / "checkpoint_step1.pt", tmp_path / "checkpoints"):
        assert cli.main(["generate", str(checkpoint), "the cat", "--seed", "0"]) == 0
        written.append(capfd.readouterr().out)
    assert written[0] == written[1]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["generate", "--help"], ["info", "--help"]])
def test_help(capsys: Output, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: abstractinator")


def test_an_unknown_subcommand_is_refused(capsys: Output) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["trian"])
    assert left.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_a_terminal_that_lacks_characters_gets_the_rest(tmp_path: Path, config: str) -> None:
    command = [sys.executable, "-m", "abstractinator", "train", "--config", config]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"bits per byte, exact" in done.stdout


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "abstractinator", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("abstractinator ")
