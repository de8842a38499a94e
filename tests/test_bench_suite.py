"""A run of the side-by-side suite: in turns, with failures, interruptions and sweeps."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from abstractinator.data import DataConfig, open_corpus
from abstractinator.training import step as step_module
from benchmarks import budgeted_training, suite, suite_sweep, suite_work
from benchmarks.common import ROOT
from benchmarks.kinds import version_of
from benchmarks.kinds.base import within_tolerance
from benchmarks.pieces import code_fingerprint


class Interruption(BaseException):
    """Like the end of the process in the middle of a run."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, text: Path) -> Iterator[Any]:
    """Runs the suite in this process, each step taking an eighth of a second by the clock; → results, tasks done."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(budgeted_training, "clock", lambda: next(ticks) / 8)  # exact in binary
    monkeypatch.setattr(step_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 8))
    monkeypatch.setattr(suite_work, "prepare_processor", lambda: None)
    sizes = "--seconds 0.5 --parts 2 --sweep-seconds 0.25 --parameters 100000 --sequence-length 64 --batch-size 2"
    sizes += " --held-out-bytes 400 --curve-bytes 128 --lengths 64 128 --steps 1 --generation-rows 1 2"
    sizes += " --prompt-bytes 20 --new-bytes 6 --repeats 2"

    def run(
        output: Path, *baselines: str, fail: Any = lambda task: None, stages: str = ""
    ) -> tuple[dict[str, Any], list[str]]:
        done: list[str] = []

        def here(module: str, worker: dict[str, Any], timeout: float | None = None) -> dict[str, Any] | None:
            task = worker["task"]
            instead = fail(task)
            if instead is not None:
                raise instead
            unit = task.get("training", {}).get("unit", "")
            done.append(" ".join(map(str, (task["baseline"], task["stage"], unit, task.get("part", "")))))
            return suite_work.work(task, Path(worker["folder"]))

        monkeypatch.setattr(suite, "in_fresh_process", here)
        given = ["--data", str(text), "--output", str(output), "--baselines", *baselines, *sizes.split()]
        suite.main([*given, "--stages", *stages.split()] if stages else given)
        return json.loads((output / "suite.json").read_text()), done

    yield run


def suite_of(text: Path, output: Path) -> suite.Suite:
    """A run of the flat transformer alone."""
    options = suite.parser_of_options().parse_args(["--output", str(output), "--parameters", "50000"])
    options.data, options.baselines = str(text), ["flat"]
    return suite.Suite(options)


def test_a_whole_run_continues_after_a_crash_and_an_interruption(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, done = run(tmp_path / "once", "flat", "bpe-llama")
    assert [path.name for path in sorted((tmp_path / "once").glob("suite*.*"))] == [
        "suite.json",
        "suite_curves.png",
        "suite_lengths.png",
    ]
    printed = capsys.readouterr().out
    assert "bits per byte" in printed and "learning rates" in printed

    stopped: list[Any] = []

    def stop_once(task: dict[str, Any]) -> BaseException | None:
        if task["stage"] == "part" and task["part"] == 1 and not stopped:
            stopped.append(task)
            return Interruption()
        return None

    with pytest.raises(Interruption):
        run(tmp_path / "twice", "flat", "bpe-llama", fail=stop_once)
    again, done_after = run(tmp_path / "twice", "flat", "bpe-llama")
    before = done[: done.index("flat part seconds 1")]
    assert done_after == [name for name in done if name not in before]
    for one, other in zip(results["baselines"], again["baselines"], strict=True):
        for stage in ("time", "bytes"):
            assert one[stage]["curve"] == other[stage]["curve"] and one[stage]["steps"] == other[stage]["steps"]
            assert one[stage]["scores"]["exact"] == other[stage]["scores"]["exact"]
        assert one["sweep"] == other["sweep"] and one["factors"] == other["factors"]
        over_bytes = [each for each in one["sweep"] if each["unit"] == "bytes" and each["exact"] is not None]
        used = next(each for each in over_bytes if one["factors"].items() <= each.items())
        assert used["exact"] == min(each["exact"] for each in over_bytes)
        assert all(len(each["runs"]) == 2 for each in [*one["length"].values(), *one["generation"].values()])
        assert set(one["generation"]) == {"exact 1", "exact 2"} and set(one["length"]) == {"64", "128"}
        assert one["flops"]["training"] > one["flops"]["forward"] > 0 and not one["failures"]
    third, nothing = run(tmp_path / "twice", "flat", "bpe-llama")
    assert nothing == [] and third["baselines"] == again["baselines"]


def test_what_fails_is_reported_and_the_others_continue(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(task: dict[str, Any]) -> BaseException | None:
        if task["baseline"] == "flat-window" and task["stage"] == "part":
            return RuntimeError("worker ended with 1:\nValueError: this peer does not like the text")
        return None

    monkeypatch.setattr(suite, "version_of", lambda name: None if name == "megabyte" else version_of(name))
    results, _ = run(tmp_path, "abstractinator", "flat-window", "megabyte", fail=crash)
    ours, crashed, missing = results["baselines"]
    assert not ours["failures"] and ours["time"]["scores"]["two_part"] > 0 and "plan 2" in ours["generation"]
    assert crashed["failures"]["time"] == "ValueError: this peer does not like the text" and "time" not in crashed
    assert "not installed" in missing["failures"]["size"]
    printed = capsys.readouterr().out
    assert "does not like the text" in printed and "not installed" in printed


def test_a_measurement_runs_in_a_process_of_its_own(text: Path, tmp_path: Path) -> None:
    one = suite_of(text, tmp_path)
    found = one.measure(one.entries[0], "size")
    assert within_tolerance(found["parameters"], 50_000)
    assert found == one.measure(one.entries[0], "size") and len(list(one.pieces.folder.iterdir())) == 1


def test_the_sweep_continues_beyond_its_best_end_and_no_farther() -> None:
    assert suite_sweep.next_factor({}) == 1.0
    assert suite_sweep.next_factor({1.0: 2.0}) == 0.5 and suite_sweep.next_factor({1.0: 2.0}, least=1.0) == 2.0
    assert suite_sweep.next_factor({0.5: 3.0, 1.0: 2.0, 2.0: 2.5}) is None
    assert suite_sweep.next_factor({0.5: 2.0, 1.0: 3.0, 2.0: None}) == 0.25
    assert suite_sweep.next_factor({0.5: 2.0, 1.0: 3.0, 2.0: None}, least=0.5) is None
    assert suite_sweep.next_factor({0.5: 3.0, 1.0: 2.0, 2.0: 1.0}) == 4.0
    assert suite_sweep.next_factor({0.5: None, 1.0: None, 2.0: None}) == 0.25
    assert suite_sweep.next_factor({factor: -factor for factor in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)}) is None


def test_the_sweep_tunes_one_hyperparameter_after_the_other_from_the_best_so_far(
    monkeypatch: pytest.MonkeyPatch, text: Path, tmp_path: Path
) -> None:
    best = {"batch_size": 2, "rate": 4.0, "adamw_rate": 0.25}
    trainings: list[dict[str, Any]] = []

    def measure(entry: suite.Entry, stage: str, seconds: float, **task: Any) -> dict[str, Any]:
        trainings.append(task["training"])
        exact = sum(abs(math.log2(task["training"][name] / value)) for name, value in best.items())
        return {"exact": exact, "bytes": 100 * task["training"]["batch_size"]}

    run = suite_of(text, tmp_path)
    monkeypatch.setattr(run, "measure", measure)
    (entry,) = run.entries
    entry.config = {}
    run._sweep()
    assert entry.factors == {"batch": 0.25, "rate": 4.0, "adamw_rate": 0.25}
    assert run._training(entry, "bytes", 9.0)["batch_size"] == 2
    swept = [tuple(one[name] for name in (*entry.factors, "unit")) for one in entry.results["sweep"]]
    assert len(swept) == len(set(swept)) == 14 and swept[0] == (1.0, 1.0, 1.0, "seconds")
    # Rows a step in equal time, rates over as many bytes, whatever the machine's speed is by then, and all of them, the
    # one that the others are measured against too.
    assert (0.25, 1.0, 1.0, "bytes") in swept
    budgets = {(one["unit"], one["budget"]) for one in trainings if (one["rate"], one["adamw_rate"]) != (1.0, 1.0)}
    assert budgets == {("bytes", 200)}
    assert {one["unit"] for one in trainings if one["batch_size"] != 2} == {"seconds"}


@pytest.mark.parametrize("parent", ["no process", "this one"])
def test_a_worker_ends_with_its_parent(parent: str) -> None:
    code = "import os, sys, time\nfrom benchmarks.common import end_with\n"
    code += f"end_with({'2**22 + 1' if parent == 'no process' else 'os.getppid()'})\ntime.sleep(2)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert done.returncode == (1 if parent == "no process" else 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("", None, "is no file"),
        ("a.txt", "", "a.txt has no bytes"),
        ("b.jsonl", "", "b.jsonl has no bytes"),
        ("c.jsonl", '{"words": "a"}\n', "column 'text'"),
    ],
)
def test_what_is_scored_is_a_file_of_text(
    name: str, text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit):
        suite.main(["--held-out", str(tmp_path / name), "--output", str(tmp_path)])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_result_that_cannot_be_written_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, text: Path, tmp_path: Path
) -> None:
    run = suite_of(text, tmp_path)
    (tmp_path / "suite_state").write_text("a file where the folder should be")
    monkeypatch.setattr(suite, "in_fresh_process", lambda *_, timeout: {"config": {}, "parameters": 50_000})
    with pytest.raises(FileExistsError):
        run.run()


def test_what_a_sweep_found_is_used_by_a_stage_asked_for_later(run: Any, tmp_path: Path) -> None:
    first, _ = run(tmp_path, "flat", stages="sweep")
    (swept,) = first["baselines"]
    later, done = run(tmp_path, "flat", stages="time")
    assert later["baselines"][0]["factors"] == swept["factors"]
    assert done[0] == "flat part seconds 0"


def test_a_given_number_of_bytes_needs_no_training_in_equal_time(run: Any, tmp_path: Path) -> None:
    results, done = run(tmp_path, "flat", stages="bytes --bytes 2000 --sweep-seconds 0")
    assert done == ["flat size  ", "flat part bytes 0", "flat part bytes 1", "flat score bytes "]
    assert results["baselines"][0]["bytes"]["bytes"] == pytest.approx(2000, rel=0.1)


def test_what_another_run_has_swept_is_not_swept_again(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = run(tmp_path / "first", "flat", stages="sweep")
    (swept,) = first["baselines"]
    swept["factors"] = {"batch": 0.5, "rate": 2.0, "adamw_rate": 4.0}
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(first))
    from_earlier = f"sweep --sweep-from {earlier}"
    later, done = run(tmp_path / "later", "flat", "flat-window", stages=from_earlier)
    assert [one["factors"] == swept["factors"] for one in later["baselines"]] == [True, False]
    assert later["baselines"][0]["sweep"] == swept["sweep"]
    assert {name.split()[0] for name in done if "sweep" in name} == {"flat-window"}
    for broken, message in (
        ({**first, "parameters": 7}, "has parameters 7, this run 100000"),
        ({"baselines": []}, "is no result of this version of the suite (KeyError: 'settings')"),
        ({**first, "baselines": [{**swept, "sweep": [{"batch_size": 1.0}]}]}, "(KeyError: 'batch')"),
        ({**first, "baselines": []}, "has no sweep"),
        ({**first, "settings": {**first["settings"], "device": "cuda"}}, "has device cuda, this run cpu"),
        ({**first, "baselines": [{**swept, "factors": {**swept["factors"], "rate": 0}}]}, "factors must be positive"),
    ):
        earlier.write_text(json.dumps(broken))
        with pytest.raises(SystemExit):
            run(tmp_path / "later", "flat", stages=from_earlier)
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_factor_that_fails_keeps_no_other_from_being_tried(
    monkeypatch: pytest.MonkeyPatch, text: Path, tmp_path: Path
) -> None:
    def measure(entry: suite.Entry, stage: str, seconds: float, **task: Any) -> dict[str, Any]:
        if task["training"]["batch_size"] > 8:
            raise RuntimeError("too large")
        return {"exact": -task["training"]["rate"], "bytes": 1}

    run = suite_of(text, tmp_path)
    monkeypatch.setattr(run, "measure", measure)
    (entry,) = run.entries
    entry.config = {}
    run._sweep()
    assert entry.factors["batch"] == 1.0 and entry.factors["rate"] == 16.0
    assert entry.failures == {"sweep batch × 2": "too large"}


def test_a_baseline_that_diverges_in_the_sweep_is_named(
    monkeypatch: pytest.MonkeyPatch, text: Path, tmp_path: Path
) -> None:
    run = suite_of(text, tmp_path)
    monkeypatch.setattr(run, "measure", lambda *_, **__: {"exact": None})
    (entry,) = run.entries
    entry.config = {}
    run._sweep()
    assert set(entry.factors.values()) == {1.0} and "diverged" in entry.failures["sweep"]


def test_the_held_out_rows_come_from_all_over_the_text(text: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("".join(f"{number:04}" for number in range(1000)))
    base = {"data": str(text), "held_out": str(tmp_path / "test.txt"), "held_out_bytes": 256}
    base |= {"sequence_length": 64, "device": "cpu"}
    rows = suite_work.held_out_rows(open_corpus(DataConfig(path=str(text))), base)
    assert [int(bytes(row[1:5].tolist())) for row in rows] == [0, 240, 496, 752]
    assert rows.shape == (4, 64)


def test_what_is_trained_on_is_not_scored(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("some words of a text that is there. " * 40)
    with pytest.raises(SystemExit):
        suite.main(["--data", str(tmp_path), "--held-out", str(tmp_path / "b.txt"), "--output", str(tmp_path / "out")])
    assert "b.txt is trained on" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "a.txt").rename(tmp_path / "train.txt")
    (tmp_path / "b.txt").rename(tmp_path / "test.txt")
    base = {"data": str(tmp_path), "held_out": str(tmp_path / "test.txt"), "held_out_bytes": 256}
    base |= {"sequence_length": 64, "device": "cpu"}
    assert len(suite_work.held_out_rows(suite_work.corpus_of(base), base)) == 4


def test_a_changed_source_ends_the_run(monkeypatch: pytest.MonkeyPatch, text: Path, tmp_path: Path) -> None:
    run = suite_of(text, tmp_path)
    monkeypatch.setattr(suite, "code_fingerprint", lambda: "another")
    with pytest.raises(SystemExit, match="source has changed"):
        run.run()


def test_the_fingerprint_holds_all_of_the_source_that_a_measurement_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, benchmarks.suite_work, benchmarks.baselines as b, benchmarks.kinds as k\n"
    code += "[b.class_of(name) for name in b.NAMES if k.version_of(name) is not None]\n"
    code += "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {Path(line).resolve() for line in done.stdout.splitlines() if line.startswith("/")}
    read: set[Path] = set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path) or b"")
    code_fingerprint()
    inside = {path for path in imported if ROOT in path.parents and ".venv" not in path.parts}
    assert inside and inside - read <= {ROOT / "benchmarks" / "__init__.py"}


def test_what_took_too_long_is_measured_again_only_with_more_time(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = suite.parser_of_options().parse_args(["--output", str(tmp_path), "--parameters", "100000"])
    one = suite.Suite(options)
    entry, asked = one.entries[1], []
    monkeypatch.setattr(suite, "in_fresh_process", lambda *_, timeout: asked.append(timeout))
    for limit in (5.0, 5.0, 2.0, 9.0):
        options.time_limit = limit
        with pytest.raises(suite.TooLong, match="took more than"):
            one.measure(entry, "generation")
    assert asked == [5.0, 9.0]
