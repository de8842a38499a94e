"""The continuous text autoencoder: what padding and neighbours may change, and what is trained and measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import assert_same_weights, losses_of, recorded_steps, stop_after, tiny_experiment, weights_of
from tiny_tokenizer import tokenizer_source

from abstractinator.cli.main import main
from abstractinator.components.cta.config import CTAConfig
from abstractinator.components.cta.continuous_text_autoencoder import ContinuousTextAutoencoder
from abstractinator.contract.file_tokenizer import FileTokenizer
from abstractinator.contract.model import Batch, Model, Sums
from abstractinator.training.loop import Interrupted, train

PAD = 258
TEXTS = [b"", b"a", b"the cat sat on the mat", bytes(range(0, 256, 8)), "grün 猫".encode()]


def tiny(**changes: int) -> ContinuousTextAutoencoder:
    torch.manual_seed(0)
    return ContinuousTextAutoencoder(CTAConfig(**{"width": 16} | changes)).eval()  # type: ignore[arg-type]


@torch.no_grad()
def measured(model: ContinuousTextAutoencoder, rows: torch.Tensor) -> Sums:
    return model.measure(Batch.of(rows), torch.Generator())


def text_rows() -> torch.Tensor:
    """Rows that begin and end anywhere in a document, as most rows of long documents do: without special tokens."""
    rows = [torch.tensor(list(text), dtype=torch.int64) for text in TEXTS]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


@pytest.fixture(scope="module")
def learned() -> ContinuousTextAutoencoder:
    """A model that has learned a few texts by heart."""
    model = tiny(width=32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    batch = Batch.of(text_rows())
    for _ in range(120):
        losses = model(batch, "all")
        optimizer.zero_grad()
        (losses.total / losses.weight).backward()
        optimizer.step()
    return model.eval()


def test_it_learns_what_it_is_shown(learned: ContinuousTextAutoencoder) -> None:
    latents = learned.encode(TEXTS)
    assert learned.decode(latents) == TEXTS
    assert latents.positions == sum(-(-len(text) // 4) for text in TEXTS)
    assert latents.bits == latents.positions * 4 * 16 + len(TEXTS) * 2  # which of four tokens is a text's last
    sums = measured(learned, text_rows())
    assert learned.metrics(sums)["token_accuracy"].value == 1.0
    assert learned.metrics(sums)["sequence_accuracy"].value == 1.0


@pytest.mark.parametrize("ratio", [2, 4, 8])
@settings(max_examples=25)
@given(texts=st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_what_stands_beside_a_text_does_not_change_it(ratio: int, texts: list[bytes]) -> None:
    model = tiny(ratio=ratio)
    (together,) = model.encode(texts).values
    for index, text in enumerate(texts):
        (alone,) = model.encode([text]).values
        assert together.tokens[index] == alone.tokens[0] == len(text)
        count = -(-len(text) // ratio)
        assert alone.means.shape[-1] == count
        assert torch.allclose(together.means[index, :, :count].float(), alone.means[0].float(), atol=2e-3)
    assert model.decode(model.encode(texts)) == [model.decode(model.encode([text]))[0] for text in texts]


@given(texts=st.lists(st.binary(max_size=20), max_size=4))
@settings(max_examples=25)
def test_every_text_has_its_length_and_no_byte_is_shifted(texts: list[bytes]) -> None:
    """Also where a model has learned nothing, and where it mistakes every token for a special one."""
    model = tiny()
    for bias in (torch.zeros(259), torch.tensor([0.0] * 256 + [1e6] * 3)):
        model.decoder.to_logits.bias = torch.nn.Parameter(bias)
        assert [len(text) for text in model.decode(model.encode(texts))] == [len(text) for text in texts]


def test_means_that_half_precision_cannot_hold_are_bounded() -> None:
    model = tiny()
    torch.nn.init.constant_(model.encoder.to_latent.bias, 1e6)  # type: ignore[arg-type]
    (stored,) = model.encode([b"text"]).values
    assert torch.isfinite(stored.means).all()
    assert torch.isfinite(torch.tensor(measured(model, torch.full((1, 8), 65))["cross_entropy"]))


@given(rows=st.integers(1, 4), length=st.integers(2, 40), padding=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_padding_is_in_no_sum(rows: int, length: int, padding: int, seed: int) -> None:
    model, random = tiny(), torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (rows, length), generator=random)
    padded = torch.nn.functional.pad(ids, (0, padding), value=PAD)
    one, other = measured(model, ids), measured(model, padded)
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-4), name
    losses = model(Batch.of(padded), "all")
    assert losses.weight == rows * length


def test_two_halves_are_the_whole() -> None:
    model, random = tiny(), torch.Generator().manual_seed(1)
    ids = torch.randint(259, (4, 33), generator=random)
    whole = measured(model, ids)
    halves = [measured(model, part) for part in ids.split(2)]
    for name, value in whole.items():
        assert halves[0][name] + halves[1][name] == pytest.approx(value, rel=1e-5), name


def test_a_latent_is_drawn_in_training_alone() -> None:
    model = tiny()
    batch = Batch.of(torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0)))
    assert model(batch, "all").total != model(batch, "all").total
    assert measured(model, batch.ids) == measured(model, batch.ids)


def test_every_convolution_but_the_first_and_last_is_for_muon() -> None:
    model = tiny(width=32)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = {names[id(parameter)] for parameter in model.muon_parameters()}
    assert {"encoder.down.0.weight", "decoder.up.1.weight", "encoder.last.convolutions.0.weight"} <= chosen
    assert not [name for name in chosen if "to_logits" in name or "latent" in name or "embedding" in name]


def test_it_reads_the_tokens_of_a_file() -> None:
    tokenizer = FileTokenizer(tokenizer_source())
    model: Model = ContinuousTextAutoencoder(CTAConfig(width=16), tokenizer)
    assert isinstance(model, ContinuousTextAutoencoder)
    latents = model.encode([b"the cat sat on the mat"])
    assert latents.positions < 6
    assert isinstance(model.decode(latents)[0], bytes)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("ratio=3", "power of two"),
        ("ratio=1", "power of two"),
        ("latent_width=0", "latent_width must be at least 1"),
        ("width=0", "width must be at least 1"),
        ("kl_weight=-1.0", "kl_weight"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: str, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--show", "model.kind=cta", f"model.{setting}"]) == 2
    assert match in capsys.readouterr().err


def test_a_stopped_training_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    config = CTAConfig(width=8)
    train(tiny_experiment(tmp_path, model=config))
    expected, weights = losses_of(steps), weights_of(tmp_path, 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(tiny_experiment(tmp_path, model=config))
    first = losses_of(steps)
    torch.rand(7)
    train(tiny_experiment(tmp_path, model=config, resume_from_checkpoint="latest"))
    assert first + losses_of(steps) == expected
    assert_same_weights(weights, weights_of(tmp_path, 8))


def test_what_it_cannot_do_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_experiment(tmp_path, model=CTAConfig(width=8)))
    checkpoint = str(tmp_path / "checkpoints")
    assert main(["info", checkpoint]) == 0
    assert "4 numbers for 4 tokens" in capsys.readouterr().out
    assert main(["generate", checkpoint, "x"]) == 2
    assert "a model of kind cta cannot generate text" in capsys.readouterr().err
