"""Every command and python block of README.md and docs/*.md does what it says, at a tiny size.

What changes an environment, takes hours or needs a network is only parsed, by the parser of the program itself.
"""

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
from tiny_tokenizer import write_tokenizer

from abstractinator import registry
from abstractinator.checkpoints.checkpoint_folder import latest_checkpoint
from abstractinator.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in FILES}
PROGRAM = r"(?:[A-Z_]+=\S+ )*(?:make|python|abstractinator|mlflow|pip) "
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)
TINY = [
    "data.path=my_novels/",
    "max_steps=1",
    "sequence_length=66",
    "batch_size=2",
    "generation.max_new_bytes=8",
    "device=cpu",
]
TINY_MODELS = {
    "hier_ae": ["model.levels.0.expander.ngram_rows=64", "model.top_transformer_config.ngram_rows=64"],
    "cta": ["model.width=8"],
    "glae": ["model.decoder.window=32", "model.embedding_width=224", "model.ngram_rows=64"],
}
# Fewer measurements than by default.
FEWER = {
    "testset": ["--sequences", "2", "--length", "16"],
    "accuracy": ["--sequences", "2", "--length", "16"],
    "brier": ["--prefixes", "4", "--context", "8"],
    "retrieval": ["--pairs", "4"],
}
PARAGRAPH = "In the {}th place the river ran on, and the long road of {} went by it to the old mill.\n\n"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in one language; those with commands have none."""
    return [body for _, found, body in BLOCK.findall(PAGES[page]) if found == language]


def commands() -> list[list[str]]:
    """The words of every command, each command once."""
    lines: list[str] = []
    for page, text in PAGES.items():
        lines += [line for block in blocks(page, "") for line in block.splitlines()]
        lines += re.findall(rf"(?<!`)`({PROGRAM}[^`]+)`", BLOCK.sub("", text))
    found = [shlex.split(line, comments=True) for line in lines if re.match(PROGRAM, line)]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


COMMANDS = commands()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a clone in which `python train.py` has run, though for one step only, with a task of its own."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "config.py").symlink_to(ROOT / "config.py")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    write_text(folder / "my_novels")
    write_tokenizer(folder / "tokenizer.json")
    (folder / "held_out.txt").write_text("".join(PARAGRAPH.format(n, n) for n in range(9)))
    (folder / "my_tasks").mkdir()
    (task,), (item,) = blocks("docs/evaluation.md", "yaml"), blocks("docs/evaluation.md", "json")
    (folder / "my_tasks" / "my_task.yaml").write_text(task)
    (folder / "my_tasks" / "items.jsonl").write_text(item)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("HF_HOME", str(folder / "hub"))
        assert cli.main(["train", *TINY, *TINY_MODELS["hier_ae"]]) == 0
        for kind in ("cta", "glae"):
            preset = ["--config", f"experiments/{kind}.py", *TINY, *TINY_MODELS[kind], "project_name=None"]
            assert cli.main(["train", *preset]) == 0
        yield folder


def train(arguments: list[str], folder: Path) -> None:
    if "--show" in arguments:
        assert cli.main(["train", *arguments]) == 0
        return
    resumes = "resume_from_checkpoint=latest" in arguments
    more = ["max_steps=2"] if resumes else ["checkpoint_dir=others"]
    preset = next((Path(word).stem for word in arguments if word.startswith("experiments/")), "hier_ae")
    tiny = [*TINY, *TINY_MODELS.get(preset, TINY_MODELS["hier_ae"])]
    assert cli.main(["train", *arguments, *tiny, "project_name=None", *more]) == 0
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
    """Local tasks are run; of others, whose data are on the hub, the harness's own parser reads the options."""
    from lm_eval._cli import HarnessCLI

    if "--include_path" in arguments:
        assert cli.main(["evaluate", *arguments]) == 0
        return
    monkeypatch.setattr("sys.argv", ["lm-eval", "run", *arguments])
    options = HarnessCLI().parse_args()
    checkpoint = (options.model_args or {}).get("checkpoint")
    assert options.tasks
    assert (options.model == "hier_ae") == (checkpoint is not None)
    assert checkpoint is None or latest_checkpoint(checkpoint) is not None


def mlflow(arguments: list[str], folder: Path) -> None:
    import click
    from mlflow.cli import cli as program

    command, option, uri = arguments
    found = program.get_command(click.Context(program), command)
    assert option in {name for parameter in found.params for name in parameter.opts}
    assert (folder / uri.removeprefix("sqlite:///")).is_file()


def install(what: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [extra for extra in what.removeprefix(".").strip("[]").split(",") if extra]
    assert what.startswith(".") and set(extras) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # of the environment
        words = words[1:]
    match words:
        case ["make", target, *settings]:
            if shutil.which("make") is None:
                pytest.skip("make is not installed")
            done = subprocess.run(["make", "-n", target, *settings], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        case ["abstractinator", command]:  # the name of a command
            with pytest.raises(SystemExit, match="0"):
                cli.main([command, "--help"])
        case ["python", "train.py", *arguments] | ["abstractinator", "train", *arguments]:
            train(arguments, folder)
        case ["python", "-m", name, *arguments] if name.startswith("benchmarks."):
            benchmark(name, arguments, monkeypatch)
        case ["python", "evaluate.py", *arguments] | ["abstractinator", "evaluate", *arguments]:
            evaluate(arguments, monkeypatch)
        case ["abstractinator", "generate", *arguments]:
            assert cli.main(["generate", *arguments, "--max-new-bytes", "8"]) == 0
        case ["abstractinator", command, *arguments]:
            assert cli.main([command, *arguments, *FEWER.get(command, [])]) == 0
        case ["mlflow", *arguments]:
            mlflow(arguments, folder)
        case ["pip", "install", *_, "-e", what]:
            install(what)
        case _:
            pytest.fail("no case of this test knows the command")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_blocks_of_a_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order. A block that begins with `# name.py` is that file; an example of 8 rows of bytes becomes smaller."""
    monkeypatch.setattr(registry, "_registered", {})
    for block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (folder / name[1]).write_text(block)
            continue  # a later block uses it
        exec(compile(block.replace("(8, 1024)", "(2, 32)"), page, "exec"), {})
    if page == "docs/architecture.md":
        assert latest_checkpoint("bigram_checkpoints") is not None


@pytest.mark.parametrize("page", [*PAGES, "notes.md"])
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    text = PAGES.get(page) or (ROOT / page).read_text("utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", BLOCK.sub("", text))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    assert [page for page in PAGES if page != "README.md" and f"({page})" not in PAGES["README.md"]] == []


def test_the_command_line_is_installed_under_its_name() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {
        "abstractinator": "abstractinator.cli.main:main"
    }


def test_the_pages_are_read() -> None:
    assert len(PAGES) == 8
    programs = {word for words in COMMANDS for word in words[:2] if re.fullmatch(r"[a-z]+", word)}
    assert {"make", "python", "abstractinator", "mlflow", "pip"} <= programs
