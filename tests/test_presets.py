"""The settings that come with the project: each says what it seems to say, builds, and trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from abstractinator import registry
from abstractinator.config.experiment import ExperimentConfig, load_experiment
from abstractinator.config.settings import to_dict
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.model import Batch
from abstractinator.data import rows_of
from abstractinator.training.optimizers import build_optimizers
from abstractinator.training.state import new_model

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted((ROOT / "experiments").glob("*.py"))
SHORTEST = {"glae": 129}  # half of the shortest rows, by kind
# Of presets for a GPU, so that a step takes a moment.
SMALLER = {
    "fineweb_edu": [
        "model.top_transformer_config.transformer.layers=2",  # of 16
        "model.levels.0.expander.ngram_rows=64",
        "model.top_transformer_config.ngram_rows=64",
    ],
    "cta_25m": ["model.width=64"],  # of 256
    "calm_medium": ["model.transformer.layers=2", "model.transformer.width=256", "model.head.width=128"],
    "glae_7_layers": [
        "model.decoder.layers=2",
        "model.decoder.width=192",
        "model.decoder.window=64",
        "model.embedding_width=1216",
        "model.encoder.layers=1",
        "model.ngram_rows=64",
        "model.decoder_ngram_rows=64",
    ],
}


def test_the_default_file_says_what_the_defaults_are() -> None:
    assert to_dict(load_experiment(ROOT / "config.py", [])) == to_dict(ExperimentConfig())


def test_the_promised_presets_are_there() -> None:
    assert {"novels", "novels_codec", "two_level", "three_level", "fineweb_edu"} <= {path.stem for path in PRESETS}


@pytest.mark.parametrize(("name", "levels"), [("two_level", 2), ("three_level", 3), ("novels", 1), ("fineweb_edu", 1)])
def test_presets_have_as_many_levels_as_their_names_say(name: str, levels: int) -> None:
    assert len(load_experiment(ROOT / "experiments" / f"{name}.py", []).model.levels) == levels


class ManyTokens(ByteTokenizer):
    """As many tokens as Llama 3's tokenizer has; only their number counts here."""

    text_size, BOS, EOS, PAD, vocab_size = 128_256, 128_256, 128_257, 128_258, 128_259


# Of the paper's CALM-M, 371M, and of its autoencoder, 75M, which it counts apart.
@pytest.mark.parametrize(
    ("name", "tokenizer", "millions"),
    [
        ("cta_25m", ByteTokenizer(), 25),
        ("calm_medium", ManyTokens(), 371 + 75),
        ("glae_7_layers", ByteTokenizer(), 144),
    ],
)
def test_presets_have_the_sizes_that_they_state(name: str, tokenizer: ByteTokenizer, millions: float) -> None:
    config = load_experiment(ROOT / "experiments" / f"{name}.py", [])
    with torch.device("meta"):
        model = registry.class_of(config.model.kind)(config.model, tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(millions * 1e6, rel=0.06)
    assert model.layout(config.sequence_length).length == config.sequence_length


@pytest.mark.parametrize("path", [ROOT / "config.py", *PRESETS], ids=lambda path: path.stem)
def test_a_preset_makes_a_training_step(path: Path) -> None:
    config = load_experiment(path, SMALLER.get(path.stem, []))
    torch.manual_seed(0)
    model = new_model(config, torch.device("cpu")).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "to_logits" in name}
    optimizers = build_optimizers(
        model,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        weight_decay=config.weight_decay,
    )
    length = 2 * SHORTEST.get(config.model.kind, 48)
    rows = rows_of([bytes(torch.randint(256, (length - 2,)).tolist())] * 4, model.layout(length))
    losses = model(Batch.of(rows), model.phases()[-1].name)
    (losses.total / losses.weight).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.isfinite(losses.total)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert moved == list(before)
    assert all(torch.isfinite(p).all() for p in model.parameters())
