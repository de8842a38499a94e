"""CALM: chunks, the autoencoder that stays as it is in the second phase, the energy loss, and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import assert_same_weights, losses_of, recorded_steps, stop_after, tiny_experiment, weights_of
from tiny_tokenizer import tokenizer_source

from abstractinator.checkpoints.checkpoint_file import load_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.models import load_model
from abstractinator.cli.main import main
from abstractinator.components.calm.calm import AUTOENCODER, CALM, LANGUAGE_MODEL
from abstractinator.components.calm.chunk_autoencoder import Posterior
from abstractinator.components.calm.chunks import after_bos, chunks_of
from abstractinator.components.calm.config import CALMConfig, ChunkAutoencoderConfig, EnergyHeadConfig
from abstractinator.components.calm.energy_head import energy_loss
from abstractinator.components.transformer import TransformerConfig
from abstractinator.config.settings import ConfigError
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.file_tokenizer import FileTokenizer
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data import rows_of
from abstractinator.training.loop import Interrupted, train

BYTES = ByteTokenizer()
BOS, EOS, PAD = BYTES.BOS, BYTES.EOS, BYTES.PAD
TEXTS = [b"", b"a", b"the cat sat on the mat", bytes(range(0, 256, 5)), "grün 猫".encode()]


def tiny_config(**changes: Any) -> CALMConfig:
    settings: dict[str, Any] = {
        "embedding_width": 8,
        "transformer": TransformerConfig(width=16, layers=2, heads=2, window=8, mlp_width=16),
        "autoencoder": ChunkAutoencoderConfig(width=16, mlp_width=16, latent_width=8),
        "head": EnergyHeadConfig(width=8, blocks=2, mlp_width=8, noise_width=4, samples=3, targets=5),
    }
    return CALMConfig(**(settings | changes))


def tiny(**changes: Any) -> CALM:
    torch.manual_seed(0)
    model = CALM(tiny_config(**changes)).eval()
    torch.nn.init.normal_(model.head.to_latent.weight, std=0.5)  # it begins as 0
    return model


def rows_of_texts(texts: list[bytes], size: int, length: int = 48) -> torch.Tensor:
    return rows_of(texts, RowLayout(length, multiple_of=size))


documents = st.lists(st.binary(max_size=30), min_size=1, max_size=5)


@settings(max_examples=40)
@given(texts=documents, size=st.integers(1, 6))
def test_documents_are_chunks_apart(texts: list[bytes], size: int) -> None:
    rows = rows_of_texts(texts, size, 30 * size)
    chunks = chunks_of(rows, size, BYTES)
    flat = chunks.ids.flatten()
    assert flat[flat != PAD].tolist() == [i for text in texts for i in [BOS, *text, EOS]]
    begins = (chunks.ids == BOS).any(-1)
    a_row = 30  # chunks; none of them but the last ones are of PAD alone
    expected = {int(i) for i in begins.nonzero()[:, 0]} | set(range(0, len(chunks.ids), a_row))
    assert expected == {int(i) for i in (chunks.packing.positions == 0).nonzero()[:, 0]}
    assert after_bos(chunks.ids, BYTES).sum() == sum(len(text) + 1 for text in texts)


@settings(max_examples=20)
@given(text=st.binary(min_size=8, max_size=40), at=st.integers(0, 39), size=st.integers(1, 5))
def test_no_chunk_sees_its_future(text: bytes, at: int, size: int) -> None:
    model = tiny(chunk_size=size)
    at %= len(text)
    other = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
    chunks = [chunks_of(rows_of_texts([each], size, 60), size, BYTES) for each in (text, other)]
    with torch.no_grad():
        one, two = (model.language_model(each) for each in chunks)
    first = int((chunks[0].ids != chunks[1].ids).any(-1).nonzero()[0])
    assert torch.allclose(one[:first], two[:first], atol=1e-5)
    assert not torch.allclose(one[first], two[first], atol=1e-5)


def test_the_energy_loss_is_least_where_the_distributions_are_the_same() -> None:
    torch.manual_seed(0)
    target = Posterior(torch.tensor([[1.0, -1.0]]), torch.full((1, 2), -0.5))
    y = target.mean + target.std * torch.randn(400, 1, 2)
    noise = torch.randn(400, 2)
    same = energy_loss(y, target, noise)
    for wrong in (y + 0.3, (y - target.mean) * 2 + target.mean, target.mean.expand(400, 1, 2)):
        assert energy_loss(wrong, target, noise) > same


def test_the_energy_loss_is_the_sum_that_the_paper_prints() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(4, 3, 5), torch.randn(7, 5)
    target = Posterior(torch.randn(3, 5), torch.randn(3, 5))
    y = target.mean + target.std * noise[:, None]  # (M, S, d)
    for alpha in (1.0, 0.5):
        cross = (x[:, None] - y[None]).norm(dim=-1).pow(alpha).mean((0, 1))
        pairs = (x[:, None] - x[None]).norm(dim=-1).pow(alpha).sum((0, 1)) / (4 * 3)
        assert torch.allclose(energy_loss(x, target, noise, alpha), 2 * cross - pairs, atol=1e-4)


def test_the_language_model_leaves_the_autoencoder_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command trains both, one after the other; a stop in either phase is resumed bit for bit."""
    config = tiny_config(autoencoder_fraction=0.5)
    steps = recorded_steps(monkeypatch)

    def experiment(**changes: Any) -> Any:
        return tiny_experiment(tmp_path, model=config, **changes)

    train(experiment(checkpoint_interval=4))
    expected, final = losses_of(steps), weights_of(tmp_path, 8)
    between = weights_of(tmp_path, 4)
    parts = {name.split(".")[0] for name in final if not torch.equal(final[name], between[name])}
    assert parts == {"language_model", "head"}
    for stop in (2, 6):
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Interrupted):
                train(experiment())
        first = losses_of(steps)
        torch.rand(5)
        train(experiment(resume_from_checkpoint="latest"))
        assert first + losses_of(steps) == expected
        assert_same_weights(final, weights_of(tmp_path, 8))


@pytest.mark.parametrize("phase", [AUTOENCODER, LANGUAGE_MODEL])
def test_each_phase_trains_its_own_part(phase: str) -> None:
    model = tiny().train()
    losses = model(Batch.of(rows_of_texts(TEXTS, 4)), phase)
    losses.total.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == ({"autoencoder"} if phase == AUTOENCODER else {"language_model", "head"})


@settings(max_examples=20)
@given(documents)
def test_two_halves_are_the_whole(texts: list[bytes]) -> None:
    model, rows = tiny(), rows_of_texts(texts * 2, 4, 24)
    with torch.no_grad():
        sums = [model.measure(Batch.of(part), torch.Generator()) for part in (rows, *rows.split(1))]
    for name, value in sums[0].items():
        if name != "energy_loss":  # is of samples
            assert sum(part[name] for part in sums[1:]) == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_texts_become_latents_and_texts_again() -> None:
    torch.manual_seed(0)
    parts = ChunkAutoencoderConfig(width=48, mlp_width=64, latent_width=32, latent_dropout=0.0, token_dropout=0.0)
    model = CALM(tiny_config(autoencoder=parts)).train()
    optimizer = torch.optim.AdamW(model.autoencoder.parameters(), lr=4e-3)
    batch = Batch.of(rows_of_texts(TEXTS, 4))
    for _ in range(300):
        losses = model(batch, AUTOENCODER)
        optimizer.zero_grad()
        (losses.total / losses.weight).backward()
        optimizer.step()
    model.eval()
    latents = model.encode(TEXTS)
    assert model.decode(latents) == TEXTS
    assert latents.positions == sum(-(-(len(text) + 2) // 4) for text in TEXTS)
    assert latents.bits == latents.positions * 32 * 16


def written(model: Any, prompts: list[bytes], **settings: Any) -> list[bytes]:
    texts = [bytearray() for _ in prompts]
    for piece in model.stream(prompts, GenerationConfig(**({"seed": 0, "max_new_bytes": 12} | settings))):
        texts[piece.prompt] += piece.data
    return [bytes(text) for text in texts]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_step_computes_what_forward_does(size: int) -> None:
    """The hidden vector before each generated chunk is that of the whole text."""
    model = tiny(chunk_size=size)
    seen: list[torch.Tensor] = []
    draw = model.head.forward

    def remember(hidden: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen.append(hidden[0].clone())
        return draw(hidden, noise)

    model.head.forward = remember  # type: ignore[method-assign]
    prompt = b"It was a cold morning, and the rain fell on the roof"
    (text,) = written(model, [prompt], temperature=1.0, top_p=1.0)
    front = [PAD] * (-(len(prompt) + 1) % size)
    whole = torch.tensor([[*front, BOS, *prompt, *text[: len(text) // size * size]]])
    with torch.no_grad():
        hidden = model.language_model(chunks_of(whole, size, BYTES))
    first = (len(front) + 1 + len(prompt)) // size - 1
    for index, each in enumerate(seen[: len(text) // size]):
        assert torch.allclose(each, hidden[first + index], atol=1e-4)


def test_generation_follows_its_settings() -> None:
    model = tiny()
    prompts = [b"", b"a", b"the cat sat"]
    for chosen in ({"mode": "batch"}, {"mode": "batch", "temperature": 0.0, "no_repeat_ngram_size": 4}):
        texts = written(model, prompts, **chosen)
        assert texts == written(model, prompts, **chosen)
        assert all(len(text) <= 12 for text in texts)
    assert written(model, [b"x"], mode="exact", temperature=1.0, top_p=1.0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"temperature": 1.2}, "temperature must be at most 1"),
        ({"mode": "exact", "temperature": 0.0, "top_p": 1.0}, "no temperature 0"),
        ({"mode": "exact", "top_p": 0.9}, "cannot follow top_p"),
        ({"mode": "exact", "top_k": 3}, "cannot follow top_k"),
        ({"mode": "plan"}, "mode must be one of batch, exact"),
    ],
)
def test_settings_that_a_sampler_cannot_follow_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        written(tiny(), [b"a"], **settings)
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig(temperature=-0.1)


def test_it_reads_the_tokens_of_a_file() -> None:
    model = CALM(tiny_config(), FileTokenizer(tokenizer_source()))
    assert model.encode([b"the cat sat on the mat"]).positions < 4
    assert len(written(model.eval(), [b"the cat"])) == 1


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("chunk_size=0", "chunk_size must be at least 1"),
        ("autoencoder.latent_width=0", "latent_width must be at least 1"),
        ("autoencoder_fraction=0.0", "needs an autoencoder"),
        ("head.samples=1", "samples must be at least 2"),
        ("head.exponent=2.0", "exponent must lie"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: str, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--show", "model.kind=calm", f"model.{setting}"]) == 2
    assert match in capsys.readouterr().err


def test_rows_that_chunks_do_not_fill_are_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sequence_length=62.*chunks of 4.*multiple of 4"):
        train(tiny_experiment(tmp_path, model=tiny_config(), sequence_length=62))


def test_a_checkpoint_without_its_autoencoder_or_with_another_is_refused(tmp_path: Path) -> None:
    train(tiny_experiment(tmp_path, model=tiny_config()))
    path = tmp_path / "checkpoints" / "checkpoint_step8.pt"
    payload = load_checkpoint(path)
    weights = payload["model"]
    without = {name: tensor for name, tensor in weights.items() if not name.startswith("autoencoder.")}
    other = weights | {"autoencoder.to_posterior.weight": torch.zeros(4, 16)}
    for changed in (without, other):
        torch.save(payload | {"model": changed}, path)
        with pytest.raises(CheckpointError, match="autoencoder"):
            load_model(path, torch.device("cpu"))
    torch.save(payload, path)
    wider = tiny_config(autoencoder=ChunkAutoencoderConfig(width=16, mlp_width=16, latent_width=16))
    with pytest.raises(CheckpointError, match=r"model\.autoencoder\.latent_width"):
        train(tiny_experiment(tmp_path, model=wider, resume_from_checkpoint="latest", max_steps=9))


def test_what_it_cannot_do_is_told_in_one_line(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_experiment(tmp_path, model=tiny_config()))
    assert main(["info", "checkpoints"]) == 0
    assert b"4 tokens, one latent of 8" in capsysbinary.readouterr().out
    assert main(["generate", "checkpoints", "x", "--seed", "0", "--max-new-bytes", "8"]) == 0
    assert len(capsysbinary.readouterr().out) <= 8
    from tiny_evaluation import write_tasks

    tasks = write_tasks(tmp_path / "tasks")
    name = "tiny_choice"
    arguments = ["--model", "calm", "--model_args", "checkpoint=checkpoints", "--include_path", str(tasks)]
    assert main(["evaluate", *arguments, "--tasks", name]) == 2
    told = b"a model of kind calm cannot score texts; it can reconstruct texts, generate text"
    assert told in capsysbinary.readouterr().err
