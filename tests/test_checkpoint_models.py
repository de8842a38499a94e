"""Models from checkpoints: what does not fit is refused at once, in one line, before anything is built."""

from __future__ import annotations

import copy
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from tiny_runs import tiny_experiment

from abstractinator import registry
from abstractinator.checkpoints.checkpoint_file import load_checkpoint, map_checkpoint, save_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.models import _Bounded, check_same_model, describe_model, load_model
from abstractinator.config.settings import to_dict
from abstractinator.training.loop import train

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def payload() -> dict[str, Any]:
    return {
        "version": "0.3.0",
        "config": {"model": to_dict(tiny_config("information"))},
        "model": tiny_model("information").state_dict(),
    }


def error_of(path: Path, payload: dict[str, Any]) -> str:
    save_checkpoint(path, payload)
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_model(path, CPU)
    assert time.monotonic() - start < 2.0
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_a_model_is_loaded_from_any_path(tmp_path: Path, payload: dict[str, Any]) -> None:
    path = tmp_path / "a,b=c d" / "checkpoint_step1.pt"
    save_checkpoint(path, payload)
    for given in (path, path.parent):
        model, rest = load_model(given, CPU)
        assert not model.training and model.kind == "hier_ae" and "model" not in rest
        assert all(torch.equal(x, payload["model"][name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": {}},
        {"config": {"model": None}},
        {"config": {"model": {"kind": "other"}}},
        {"model": None},
        {"model": [1, 2]},
        {"model": {}},
    ],
    ids=str,
)
def test_contents_that_are_no_model_are_refused(
    tmp_path: Path, payload: dict[str, Any], change: dict[str, Any]
) -> None:
    assert "does not hold a model" in error_of(tmp_path / "checkpoint_step1.pt", payload | change)


def test_a_model_is_described_without_reading_its_weights(tmp_path: Path, payload: dict[str, Any]) -> None:
    path = tmp_path / "checkpoint_step1.pt"
    save_checkpoint(path, payload)
    model, rest = describe_model(tmp_path)
    expected = tiny_model("information")
    assert rest["version"] == "0.3.0"
    assert not model.training and model.describe() == expected.describe()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in expected.parameters())

    whole, weight = path.read_bytes(), payload["model"]["top.start"].numpy().tobytes()
    path.write_bytes(whole.replace(weight, bytes(len(weight))))
    describe_model(path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path, CPU)
    save_checkpoint(path, payload | {"config": None})
    with pytest.raises(CheckpointError, match="does not hold a model"):
        describe_model(path)


@pytest.mark.parametrize(("name", "value"), [("width", 2**20), ("layers", 10**6), ("mlp_width", 2**40)])
def test_settings_larger_than_the_weights_are_refused_at_once(
    tmp_path: Path, payload: dict[str, Any], name: str, value: int
) -> None:
    payload["config"]["model"]["top_transformer_config"]["transformer"][name] = value
    assert "larger model than its weights" in error_of(tmp_path / "checkpoint_step1.pt", payload)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(1, 10**13),
        lambda: torch.arange(end=10**13),
        lambda: torch.zeros(10**7, 10**6),
        lambda: torch.randn((10**7, 10**6)),
        lambda: torch.empty(size=(10**13,)),
        lambda: torch.full((10**13,), 0.0),
    ],
)
def test_no_tensor_larger_than_the_bound_is_made(make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="larger model"), _Bounded(100):
        make()
    with _Bounded(100):
        assert torch.arange(5).tolist() == [0, 1, 2, 3, 4] and torch.zeros(10, 10).sum() == torch.zeros(()) == 0
        assert torch.nn.Linear(3, 4).weight.shape == (4, 3)


def test_codebooks_larger_than_those_in_the_file_are_refused_at_once(tmp_path: Path) -> None:
    config, weights = to_dict(tiny_config("increase")), tiny_model("increase").state_dict()
    for name, value in {"codes_per_segment": 10**6, "codebook_size": 2**40}.items():
        changed = copy.deepcopy(config)
        changed["levels"][0]["compressor"]["quantizer"][name] = value
        error_of(tmp_path / "checkpoint_step1.pt", {"config": {"model": changed}, "model": weights})


def test_weights_of_one_repeated_value_are_refused(tmp_path: Path, payload: dict[str, Any]) -> None:
    payload["model"]["top.start"] = torch.zeros(1).expand(2**40)
    assert "a tensor whose values it does not hold" in error_of(tmp_path / "checkpoint_step1.pt", payload)


def test_a_kind_that_fails_for_any_reason_is_one_line(
    tmp_path: Path, payload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"no package for {name}")

    monkeypatch.setattr(registry, "class_of", missing)
    assert error_of(tmp_path / "checkpoint_step1.pt", payload).endswith("no package for hier_ae")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, payload: dict[str, Any], value: float) -> None:
    payload["model"]["top.start"][3] = value
    assert "the weight top.start has values that are infinite or NaN" in error_of(
        tmp_path / "checkpoint_step1.pt", payload
    )


def test_compressed_records_are_refused_before_they_are_read(tmp_path: Path, payload: dict[str, Any]) -> None:
    path, bomb = tmp_path / "checkpoint_step1.pt", tmp_path / "checkpoint_step2.pt"
    save_checkpoint(path, payload)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
        packed.writestr("archive/data/bomb", bytes(50_000_000))
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="compressed records"):
        load_checkpoint(bomb)
    assert time.monotonic() - start < 0.2
    with pytest.raises(CheckpointError, match="compressed records"):
        map_checkpoint(bomb)


def test_records_larger_than_the_file_are_refused_before_they_are_read(
    tmp_path: Path, payload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint_step1.pt"
    save_checkpoint(path, payload)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # in the directory; the sizes come at 20
    struct.pack_into("<II", content, entry + 20, 3_000_000_000, 3_000_000_000)
    path.write_bytes(content)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("records are read"))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_kind_is_named_as_such(tmp_path: Path, payload: dict[str, Any]) -> None:
    config = tiny_experiment(tmp_path)
    payload["config"]["model"]["kind"] = "flat"
    with pytest.raises(CheckpointError, match=r"x\.pt is of kind flat, and model\.kind is hier_ae"):
        check_same_model(payload, config.model, Path("x.pt"))


def test_settings_of_the_training_may_differ(tmp_path: Path) -> None:
    model = to_dict(tiny_config("increase"))
    payload = {"config": {"model": model}}
    model["rate_loss_weight"] = 7.0
    model["levels"][0]["compressor"]["quantizer"]["commitment"] = 0.5
    check_same_model(payload, tiny_experiment(tmp_path, "increase").model, Path("x.pt"))
    model["levels"][0]["expander"]["match_window"] += 1
    with pytest.raises(CheckpointError, match=r"these settings differ: model\.levels\.0\.expander\.match_window\."):
        check_same_model(payload, tiny_experiment(tmp_path, "increase").model, Path("x.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "holds no settings of a model"),
        ({"model": None}, "does not hold a model"),
        ({"model": [1, 2]}, "does not hold a model"),
        ({"model": {"x": torch.zeros(1)}}, "cannot be resumed"),
        ({"optimizers": []}, "cannot be resumed"),
        ({"optimizers": None}, "cannot be resumed"),
        ({"clock": {}}, "cannot be resumed"),
        ({"written": 7}, "cannot be resumed"),
        ({"random": []}, "cannot be resumed"),
        ("nan", "the weight top.start has values that are infinite or NaN; use an earlier checkpoint"),
    ],
    ids=str,
)
def test_a_run_is_not_resumed_from_other_contents(whole_run: Path, change: Any, message: str) -> None:
    path = whole_run / "checkpoints" / "checkpoint_step1.pt"
    payload = load_checkpoint(path)
    if change == "nan":
        payload["model"]["top.start"][0] = float("nan")
    else:
        payload |= change
    broken = whole_run / "checkpoints" / "a,b=c.pt"
    save_checkpoint(broken, payload)
    with pytest.raises(CheckpointError) as caught:
        train(tiny_experiment(whole_run, max_steps=2, resume_from_checkpoint=str(broken)))
    assert message in str(caught.value) and str(broken) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of a training of one step."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(tiny_experiment(folder, max_steps=1))
    return folder


def test_loading_a_model_imports_no_training_and_nothing_heavy() -> None:
    code = """
import sys
import abstractinator.checkpoints.models, abstractinator.tracking
from abstractinator import registry
registry.class_of("hier_ae")
heavy = {"transformers", "mlflow", "datasets", "matplotlib", "lm_eval", "pandas", "sqlalchemy"}
frame = {f"abstractinator.{name}" for name in ("training", "evaluation", "cli")}
print(sorted((heavy | frame) & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_loading_a_model_does_not_import_the_compiler(tmp_path: Path, payload: dict[str, Any]) -> None:
    save_checkpoint(tmp_path / "checkpoint_step1.pt", payload)
    code = "import sys, torch\nfrom abstractinator.checkpoints.models import load_model\n"
    code += f"load_model({str(tmp_path)!r}, torch.device('cpu'))\nprint('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr
