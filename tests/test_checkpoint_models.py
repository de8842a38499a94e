"""Models from checkpoints: what does not fit is refused at once, in one line, before anything is built."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from tiny_runs import tiny_experiment

from abstractinator.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.models import check_same_model, load_model
from abstractinator.config.settings import to_dict

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(("name", "value"), [("width", 2**20), ("layers", 10**6), ("mlp_width", 2**40)])
def test_settings_larger_than_the_weights_are_refused_at_once(
    tmp_path: Path, payload: dict[str, Any], name: str, value: int
) -> None:
    payload["config"]["model"]["top_transformer_config"]["transformer"][name] = value
    assert "larger model than its weights" in error_of(tmp_path / "checkpoint_step1.pt", payload)


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
