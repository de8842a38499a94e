"""CALM: what it learns, that it sees no future, that its autoencoder stays as it is, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_calm import TOKENS, document_rows, tiny_calm, tiny_calm_config
from tiny_runs import assert_same_weights, folders, losses_of, recorded_steps, stop_after, tiny_experiment, weights_of
from tiny_tokenizer import tokenizer_source

from abstractinator.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from abstractinator.checkpoints.errors import CheckpointError
from abstractinator.checkpoints.models import load_model
from abstractinator.cli.main import main
from abstractinator.components.calm.calm import AUTOENCODER, CALM, LANGUAGE_MODEL
from abstractinator.components.calm.calm_discrete import CALMDiscrete
from abstractinator.components.calm.chunk_autoencoder import Posterior
from abstractinator.components.calm.chunks import after_bos, chunks_of
from abstractinator.components.calm.config import (
    CALMConfig,
    CALMDiscreteConfig,
    ChunkAutoencoderConfig,
    EnergyHeadConfig,
)
from abstractinator.components.calm.energy_head import energy_loss
from abstractinator.components.calm.generation import ChunkMemory
from abstractinator.components.calm.latent_chunks import LatentChunks
from abstractinator.config.settings import ConfigError, build
from abstractinator.contract.capabilities import Scores, require
from abstractinator.contract.file_tokenizer import FileTokenizer
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data import rows_of
from abstractinator.training.loop import Interrupted, train
from abstractinator.training.optimizers import build_optimizers

B, E, P = TOKENS.BOS, TOKENS.EOS, TOKENS.PAD
ROOT = Path(__file__).resolve().parents[1]


def generated(model: CALM, prompts: list[bytes], **options: Any) -> list[bytes]:
    texts = [bytearray() for _ in prompts]
    for piece in model.stream(prompts, GenerationConfig(**{"seed": 0, "max_new_bytes": 30} | options)):
        texts[piece.prompt] += piece.data
    return [bytes(text) for text in texts]


def test_rows_become_chunks_of_documents_apart() -> None:
    rows = torch.tensor(
        [[1, 2, E, P, P, B, 3, 4, 5, E], [P, P, P, P, P, P, P, P, P, P], [7, E, B, 8, 9, E, P, P, P, P]]
    )
    chunks = chunks_of(rows, 2, TOKENS)
    assert chunks.ids.tolist() == [[1, 2], [E, P], [P, B], [3, 4], [5, E], [7, E], [B, 8], [9, E]]
    assert chunks.packing.lengths.tolist() == [2, 3, 1, 2]
    assert after_bos(chunks.ids, TOKENS).tolist()[2:] == [
        [False, False], [True, True], [True, True], [True, True], [False, True], [True, True]
    ]  # fmt: skip


@settings(max_examples=40)
@given(texts=st.lists(st.binary(max_size=30), min_size=1, max_size=5), size=st.integers(1, 6))
def test_chunks_hold_all_of_the_text_and_nothing_else(texts: list[bytes], size: int) -> None:
    chunks = chunks_of(rows_of(texts, RowLayout(30 * size, multiple_of=size)), size, TOKENS)
    flat = chunks.ids.flatten()
    assert flat[flat != P].tolist() == [i for text in texts for i in [B, *text, E]]
    assert (chunks.packing.positions[(chunks.ids == B).any(-1)] == 0).all()
    assert after_bos(chunks.ids, TOKENS).sum() == sum(len(text) + 1 for text in texts)


@settings(max_examples=20)
@given(data=st.data())
def test_no_position_sees_its_future_or_another_document(data: st.DataObject) -> None:
    model = tiny_calm()
    texts = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=3))
    rows = document_rows(texts, 4, 48)
    chunks = chunks_of(rows, 4, TOKENS)
    before, _ = model._predictions(chunks)
    changed = data.draw(st.integers(0, len(chunks.ids) - 1))
    other = chunks.ids.clone()
    other[changed] = (other[changed] + 1) % 256
    after, _ = model._predictions(type(chunks)(other, chunks.packing))
    position, row = chunks.packing.positions[changed], chunks.packing.rows[changed]
    source = chunks.follows.nonzero()[:, 0] - 1  # the last chunk that each hidden vector has read
    unseen = (chunks.packing.rows[source] != row) | (chunks.packing.positions[source] < position)
    torch.testing.assert_close(before[unseen], after[unseen])
    if (seen := source == changed).any():
        assert not torch.allclose(before[seen], after[seen])


def test_measurements_add_up_and_padding_changes_nothing() -> None:
    model = tiny_calm()
    texts = [b"some text", b"", b"another one that is longer", b"x"]
    with torch.no_grad():

        def sums(rows: torch.Tensor) -> dict[str, float]:
            found = model.measure(Batch.of(rows), torch.Generator().manual_seed(0))
            return {name: float(value) for name, value in found.items() if name != "energy_loss"}

        whole = sums(document_rows(texts, 4, 32))
        halves = [sums(document_rows(part, 4, 32)) for part in (texts[:2], texts[2:])]
        padded = sums(document_rows([*texts], 4, 48))
    assert whole["bytes"] == sum(map(len, texts)) and 0 < whole["wrong_bytes"] <= whole["bytes"]
    assert whole == pytest.approx({name: halves[0][name] + halves[1][name] for name in whole})
    assert whole == pytest.approx(padded)
    rows = document_rows(texts, 4, 32)
    with torch.no_grad():
        twice = [model.measure(Batch.of(rows), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert twice[0] == twice[1]


def test_losses_of_two_halves_add_up() -> None:
    """Of the autoencoder without what is drawn at random, and of the energy head with shared noise."""
    calm = tiny_calm(autoencoder=ChunkAutoencoderConfig(16, 16, 8, latent_dropout=0.0, token_dropout=0.0))
    rows = document_rows([b"some text", b"and another one"], 4, 32)
    chunks = chunks_of(rows, 4, TOKENS)
    posterior = calm.autoencoder.encode(chunks.ids)
    nll = calm.autoencoder.nll(posterior.mean, chunks.ids)
    assert nll.sum().item() == pytest.approx(
        sum(
            calm.autoencoder.nll(posterior.mean[part], chunks.ids[part]).sum().item()
            for part in (slice(3), slice(3, 99))
        )
    )
    losses = calm(Batch.of(rows), AUTOENCODER)
    assert losses.weight == len(chunks.ids) and losses.parts["nats_per_byte"].weight == 24


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_the_energy_loss_is_its_definition(exponent: float) -> None:
    torch.manual_seed(0)
    samples = torch.randn(4, 6, 5, requires_grad=True)
    target = Posterior(torch.randn(6, 5), 0.3 * torch.randn(6, 5))
    noise = torch.randn(7, 5)
    found = energy_loss(samples, target, noise, exponent)
    y = target.mean + target.std * noise[:, None]  # (M, S, d)
    cross = sum((x - each).norm(dim=-1) ** exponent for x in samples for each in y) / (4 * 7)
    pairs = sum((samples[i] - samples[j]).norm(dim=-1) ** exponent for i in range(4) for j in range(4) if i != j) / (
        4 * 3
    )
    expected = 2 * cross - pairs
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss.sum(), samples, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_energy_loss_is_least_for_the_target_itself() -> None:
    torch.manual_seed(0)
    target = Posterior(torch.zeros(2_000, 3), torch.zeros(2_000, 3))
    right = torch.randn(8, 2_000, 3)

    def loss(samples: torch.Tensor) -> float:
        return energy_loss(samples, target, torch.randn(200, 3)).mean().item()

    others = [right * 0, right * 0.7, right * 1.4, right + 0.5]
    assert all(loss(right) + 0.02 < loss(each) for each in others)


def test_samples_that_are_equal_have_gradients() -> None:
    """As at the beginning, where the last layer is zero."""
    samples = torch.zeros(3, 2, 4, requires_grad=True)
    energy_loss(samples, Posterior(torch.ones(2, 4), torch.zeros(2, 4)), torch.randn(5, 4)).sum().backward()
    assert samples.grad is not None and torch.isfinite(samples.grad).all() and samples.grad.abs().min() > 0


def test_each_phase_trains_its_own_part_and_no_bit_of_the_other() -> None:
    model = tiny_calm().train()
    optimizers = build_optimizers(model, learning_rate=0.1, muon_learning_rate=0.1, weight_decay=0.1)
    rows = document_rows([b"some text", b"another one that is longer"], 4, 32)
    for phase, trained in ((AUTOENCODER, ["autoencoder"]), (LANGUAGE_MODEL, ["language_model", "head"])) * 2:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        losses = model(Batch.of(rows), phase)
        (losses.total / losses.weight).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moved = {name.split(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
        assert moved == set(trained)


def test_the_autoencoder_restores_texts_of_any_length() -> None:
    model = tiny_calm(2, autoencoder=ChunkAutoencoderConfig(32, 32, 16)).train()
    parameters = list(model.autoencoder.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    random = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = [bytes((97 + torch.randint(4, (n,), generator=random)).tolist()) for n in (8, 9) * 8]
        losses = model(Batch.of(document_rows(rows, 2, 12)), AUTOENCODER)
        (losses.total / losses.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    texts = [b"", b"a", b"ab", b"dcb", b"abcd" * 7]
    latents = model.encode(texts)
    assert latents.positions == 0 + 1 + 1 + 2 + 14 and latents.bits == 18 * 16 * 16 + len(texts)
    assert model.decode(latents) == texts
    with torch.no_grad():
        sums = model.measure(Batch.of(document_rows(texts, 2, 32)), torch.Generator())
    assert model.metrics(sums)["byte_accuracy"].value == 1.0


def test_steps_equal_one_forward_pass() -> None:
    model = tiny_calm()
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([37, 3, 40])
    ids = torch.randint(256, (3, 40, 4), generator=random)
    memory = ChunkMemory(model.language_model, 3)
    with torch.no_grad():
        expected = []
        for row, length in zip(ids, lengths.tolist(), strict=True):
            expected.append(model.language_model(chunks_of(row[:length].reshape(1, -1), 4, TOKENS)))
        rows = torch.arange(3)
        first = memory.read(rows, ids[:, :5], lengths.clamp(max=5))
        long = rows[[0, 2]]
        second = memory.read(long, ids[long, 5:35], torch.tensor([30, 30]))
        third = memory.read(long, ids[long, 35:40], torch.tensor([2, 5]))
    for row in range(3):
        torch.testing.assert_close(first[row][: lengths[row]], expected[row][:5], atol=1e-4, rtol=0)
    for at, row in enumerate(long.tolist()):
        torch.testing.assert_close(second[at], expected[row][5:35], atol=1e-4, rtol=0)
        torch.testing.assert_close(third[at][: lengths[row] - 35], expected[row][35:], atol=1e-4, rtol=0)


def test_a_prompt_alone_is_continued_as_among_others() -> None:
    """Of a head that makes nothing of its noise, so that there is one continuation."""
    model = tiny_calm()
    torch.nn.init.zeros_(model.head.from_noise.weight)
    prompts = [b"", b"abc", b"a longer prompt " * 12, b"abcdefg"]
    together = generated(model, prompts, temperature=1.0, top_p=1.0)
    assert together == [generated(model, [prompt], temperature=1.0, top_p=1.0)[0] for prompt in prompts]
    assert together == generated(model, prompts, temperature=0.0) == generated(model, prompts)
    assert len(set(together)) > 1 and all(len(text) <= 30 for text in together)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 1.0},
        {"temperature": 0.3, "top_k": 3, "no_repeat_ngram_size": 3},
        {"mode": "exact", "temperature": 1.0, "top_p": 1.0},
        {"mode": "exact", "temperature": 0.9, "top_p": 1.0},
    ],
)
def test_modes_are_reproducible_and_bounded(options: dict[str, Any]) -> None:
    model = tiny_calm(2)
    first = generated(model, [b"ab", b""], max_new_bytes=7, **options)
    assert first == generated(model, [b"ab", b""], max_new_bytes=7, **options)
    assert all(len(text) <= 7 for text in first)
    if options.get("temperature") != 0.0:
        assert first != generated(model, [b"ab", b""], max_new_bytes=7, **options, seed=1)


def test_nothing_is_repeated_where_that_is_forbidden() -> None:
    model = tiny_calm(2)
    (text,) = generated(model, [b"abab"], max_new_bytes=60, no_repeat_ngram_size=3, temperature=1.0)
    whole = b"abab" + text
    grams = [whole[at : at + 3] for at in range(len(whole) - 2)]
    assert len(set(grams[2:])) == len(grams[2:]) > 0


def test_a_text_ends_at_eos_and_before_a_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_calm()
    chunks = iter([b"one ", b"two ", b"thr"])
    monkeypatch.setattr(LatentChunks, "draw", lambda self, hidden, count: [[tuple(next(chunks, b"x"))]] * len(hidden))
    options = {"temperature": 1.0, "top_p": 1.0}
    assert generated(model, [b"ab"], **options, stop=("wo",)) == [b"one t"]
    chunks = iter([(*b"one ",), (*b"t", E)])
    assert generated(model, [b"ab"], **options) == [b"one t"]


def test_nothing_comes_after_eos_within_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_calm()
    decoded = torch.tensor([97, E, 98, 99])
    monkeypatch.setattr(model.autoencoder, "decode", lambda latent: decoded.expand(*latent.shape[:-1], 4))
    assert generated(model, [b"ab", b""]) == [b"a", b"a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1.1}, "temperature must be at most 1 for a model without a likelihood"),
        ({"mode": "exact", "temperature": 0.0, "top_p": 1.0}, "mode exact has no temperature 0"),
        ({"mode": "exact", "top_p": 0.9}, "cannot follow top_p=0.9; use top_p=1, or mode batch"),
        ({"mode": "exact", "top_p": 1.0, "top_k": 5}, "cannot follow top_k=5"),
        ({"mode": "exact", "top_p": 1.0, "no_repeat_ngram_size": 4}, "cannot follow no_repeat_ngram_size=4"),
        ({"mode": "plan"}, "mode must be one of batch, exact, not 'plan'"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_calm().stream([b"a"], GenerationConfig(**options))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"autoencoder": {"latent_width": 0}}, "latent_width must be at least 1"),
        ({"autoencoder_fraction": 0.0}, "needs an autoencoder"),
        ({"autoencoder_fraction": 1.0}, "autoencoder_fraction must lie between 0 and 1"),
        ({"head": {"samples": 1}}, "samples must be at least 2"),
        ({"head": {"exponent": 2.0}}, "exponent must lie between 0 and 2"),
        ({"autoencoder": {"token_dropout": 1.0}}, "token_dropout must be at least 0 and below 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(CALMConfig, {"kind": "calm"} | settings)


def test_rows_that_do_not_divide_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 5"):
        train(tiny_experiment(tmp_path, model=tiny_calm_config(5)))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("stop", [2, 6], ids=["in the autoencoder", "in the language model"])
def test_it_is_resumed_bit_for_bit_in_either_phase(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    whole, halves = folders(tmp_path, "whole", "halves")
    model = tiny_calm_config()
    train(tiny_experiment(whole, model=model, checkpoint_interval=4))
    between, final = weights_of(whole, 4), weights_of(whole, 8)
    assert {name.split(".")[0] for name in final if not final[name].equal(between[name])} == {"language_model", "head"}
    assert [list(step.parts) for step in steps] == [["nats_per_byte", "kl"]] * 4 + [["energy_loss"]] * 4
    expected = losses_of(steps)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Interrupted):
            train(tiny_experiment(halves, model=model))
    first = losses_of(steps)
    train(tiny_experiment(halves, model=model, resume_from_checkpoint="latest"))
    assert first + losses_of(steps) == expected
    assert_same_weights(final, weights_of(halves, 8))


def test_it_is_trained_and_used_by_the_command_line(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    train(tiny_experiment(tmp_path, model=tiny_calm_config(), generation_interval=3, validation_interval=3))
    path = str(tmp_path / "checkpoints" / "checkpoint_step8.pt")
    out = capsysbinary.readouterr().out.decode(errors="replace")
    assert "reconstruction and energy loss" in out and "sample, batch" in out
    assert main(["generate", path, "the cat", "--max-new-bytes", "5"]) == 0
    assert main(["info", path]) == 0
    assert b"4 tokens, one latent of 8" in capsysbinary.readouterr().out
    assert main(["generate", path, "the cat", "--temperature", "1.5"]) == 2
    assert b"temperature must be at most 1" in capsysbinary.readouterr().err
    assert main(["brier", path, "--prefixes", "9", "--context", "20"]) == 0
    model, _ = load_model(path, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"cannot score texts; it can .*generate text"):
        require(model, Scores)


def test_a_checkpoint_without_its_autoencoder_or_with_another_is_refused(tmp_path: Path) -> None:
    train(tiny_experiment(tmp_path, model=tiny_calm_config()))
    path = tmp_path / "checkpoints" / "checkpoint_step8.pt"
    payload = load_checkpoint(path)
    weights = payload["model"]
    payload["model"] = {name: value for name, value in weights.items() if not name.startswith("autoencoder.")}
    save_checkpoint(path, payload)
    with pytest.raises(CheckpointError, match="does not hold a model"):
        load_model(path, torch.device("cpu"))
    other = tiny_calm(autoencoder=ChunkAutoencoderConfig(16, 16, latent_width=6)).autoencoder.state_dict()
    payload["model"] = weights | {f"autoencoder.{name}": value for name, value in other.items()}
    save_checkpoint(path, payload)
    with pytest.raises(CheckpointError, match="does not hold a model"):
        load_model(path, torch.device("cpu"))


def test_a_training_is_not_resumed_with_another_autoencoder(tmp_path: Path) -> None:
    train(tiny_experiment(tmp_path, model=tiny_calm_config()))
    other = tiny_calm_config(autoencoder=ChunkAutoencoderConfig(16, 16, latent_width=6))
    with pytest.raises(CheckpointError, match=r"model\.autoencoder\.latent_width"):
        train(tiny_experiment(tmp_path, model=other, resume_from_checkpoint="latest", max_steps=9))


def test_it_reads_the_tokens_of_a_file() -> None:
    model = CALM(tiny_calm_config(), FileTokenizer(tokenizer_source())).eval()
    text = b"the cat sat on the mat"
    latents = model.encode([text])
    assert latents.positions < 6 <= tiny_calm().encode([text]).positions
    assert len(generated(model, [b"the cat"])) == len(model.decode(latents)) == 1
    rows = rows_of([text], RowLayout(16, multiple_of=4), model.tokenizer)
    with torch.no_grad():
        assert model.measure(Batch.of(rows, model.tokenizer), torch.Generator())["bytes"] == len(text)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_it_is_as_large_as_its_twin() -> None:
    with torch.device("meta"):
        calm, twin = CALM(CALMConfig()), CALMDiscrete(CALMDiscreteConfig())
    assert 3.8e6 <= count(calm) <= 4.2e6
    assert count(twin) == pytest.approx(count(calm), rel=0.05)
    assert EnergyHeadConfig().targets == 100 and EnergyHeadConfig().samples == 8
