"""Every command of README.md does what stands there, at a tiny size; what takes an environment is parsed only."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import write_text

from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.cli import main as cli
from abstractinator.evaluation.model_args import parse_model_args
from abstractinator.evaluation.options import EvaluationOptions

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM = r"(?:make|python|abstractinator|mlflow|pip) "
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
LINES = [line for language, block in BLOCKS if not language for line in block.splitlines()]
INLINE = re.findall(rf"(?<!`)`({PROGRAM}[^`]+)`", README)
COMMANDS = [line for line in dict.fromkeys([*LINES, *INLINE]) if re.match(PROGRAM, line)]
PYTHON = [block for language, block in BLOCKS if language == "python"]

TINY = [
    "data.path=my_novels/",
    "max_steps=1",
    "sequence_length=64",
    "batch_size=2",
    "generation.max_new_bytes=8",
    "device=cpu",
    "model.levels.0.expander.ngram_rows=64",
    "model.top_transformer_config.ngram_rows=64",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a clone in which `python train.py` has run, though for one step only."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "config.py").symlink_to(ROOT / "config.py")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    write_text(folder / "my_novels")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", *TINY]) == 0
        yield folder


def train(arguments: list[str], folder: Path) -> None:
    if "--show" in arguments:
        assert cli.main(["train", *arguments]) == 0
        return
    resumes = "resume_from_checkpoint=latest" in arguments
    more = ["max_steps=2"] if resumes else ["checkpoint_dir=others"]
    assert cli.main(["train", *arguments, *TINY, "project_name=None", *more]) == 0
    assert (folder / ("checkpoints/checkpoint_step2.pt" if resumes else "others/checkpoint_step1.pt")).is_file()


def benchmark(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Parsed(Exception):
        pass

    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, given: list[str] | None = None) -> None:
        real(self, given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(Parsed):
        importlib.import_module(name).main(arguments)


def evaluate(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where the harness's tasks would come from the hub."""
    wanted: list[EvaluationOptions] = []

    def read(options: argparse.Namespace) -> int:
        wanted.append(EvaluationOptions.of(options))
        return 0

    monkeypatch.setattr(cli, "_evaluate", read)
    assert cli.main(["evaluate", *arguments]) == 0
    given = parse_model_args(list(wanted[0].model_args))
    assert "checkpoint" not in given or latest_checkpoint(given["checkpoint"]) is not None


def mlflow(arguments: list[str], folder: Path) -> None:
    import click
    from mlflow.cli import cli as program

    command, option, uri = arguments
    found = program.get_command(click.Context(program), command)
    assert option in {name for parameter in found.params for name in parameter.opts}
    assert (folder / uri.removeprefix("sqlite:///")).is_file()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match shlex.split(line, comments=True):
        case ["make", target]:
            if shutil.which("make") is None:
                pytest.skip("make is not installed")
            done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        case ["python", "train.py", *arguments]:
            train(arguments, folder)
        case ["python", "-m", name, *arguments] if name.startswith("benchmarks."):
            benchmark(name, arguments, monkeypatch)
        case ["python", "evaluate.py", *arguments] | ["abstractinator", "evaluate", *arguments]:
            evaluate(arguments, monkeypatch)
        case ["abstractinator", *arguments]:
            assert cli.main(arguments) == 0
        case ["mlflow", *arguments]:
            mlflow(arguments, folder)
        case ["pip", "install", *_, "-e", what]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            extras = what.removeprefix(".").strip("[]")
            assert what.startswith(".") and (not extras or extras in project["optional-dependencies"])
        case _:
            pytest.fail("nothing here knows how to try this command")


@pytest.mark.parametrize("block", PYTHON)
def test_a_python_block(block: str, folder: Path) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_the_command_line_is_installed_under_its_name() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {
        "abstractinator": "abstractinator.cli:main"
    }


def test_the_readme_is_read() -> None:
    assert PYTHON
    programs = {line.split()[0] for line in COMMANDS}
    assert programs == {"make", "python", "abstractinator", "mlflow", "pip"}
