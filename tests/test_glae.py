"""The generative language autoencoder: vectors, uniformity, iteration, and a language model that is causal."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_glae import W, tiny_glae, tiny_glae_config
from tiny_runs import (
    assert_same_weights,
    losses_of,
    recorded_steps,
    stop_after,
    tiny_experiment,
    weights_of,
    write_text,
)
from tiny_tokenizer import tokenizer_source

from abstractinator.cli.main import main
from abstractinator.components.glae.config import EncoderConfig, GlaeConfig
from abstractinator.components.glae.glae import Glae
from abstractinator.components.glae.iteration import Recurrence
from abstractinator.components.glae.uniformity import (
    attraction,
    largest_coding_rate,
    repulsive_infonce,
    total_coding_rate,
)
from abstractinator.config.settings import ConfigError
from abstractinator.contract.capabilities import Passage
from abstractinator.contract.file_tokenizer import FileTokenizer
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch, RowLayout
from abstractinator.data import rows_of
from abstractinator.training.loop import Interrupted, train

texts = st.lists(st.binary(max_size=W), min_size=1, max_size=5)
TEXTS = [b"", b"a", b"the cat sat on", "grün 猫".encode(), bytes(range(100, 116)), b"\x00\xff"]


@pytest.fixture(scope="module")
def learned() -> Glae:
    """A model that has learned a few texts by heart."""
    torch.manual_seed(0)
    model = Glae(tiny_glae_config(encoder=EncoderConfig(width=32, layers=1, heads=2, mlp_width=32))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    batch = Batch.of(rows_of([text * 3 for text in TEXTS] * 2 + TEXTS, RowLayout(2 * W + 2, "separate")))
    for _ in range(400):
        losses = model(batch)
        optimizer.zero_grad()
        (losses.total / losses.weight).backward()
        optimizer.step()
    return model.eval()


def test_texts_become_vectors_and_texts_again(learned: Glae) -> None:
    vectors = learned.embed(TEXTS[1:5])
    assert vectors.shape == (4, 3 * W + 8)
    assert learned.reconstruct(vectors) == TEXTS[1:5]
    assert learned.reconstruct(vectors.half()) == TEXTS[1:5]
    latents = learned.encode([b"the cat sat on" * 2, b""])
    assert latents.positions == 3 and latents.bits == 3 * 16 * (3 * W + 8)
    assert learned.decode(latents)[0][:14] == b"the cat sat on"


@settings(max_examples=25)
@given(texts)
def test_a_text_has_one_vector_whatever_stands_beside_it(some: list[bytes]) -> None:
    model = tiny_glae()
    together = model.embed(some)
    for text, vector in zip(some, together, strict=True):
        assert torch.allclose(model.embed([text])[0], vector, atol=1e-5)
    assert model.reconstruct(together) == [model.reconstruct(vector[None])[0] for vector in together]


# ---- uniformity ----


def test_the_coding_rate_is_the_formula_and_has_its_maximum() -> None:
    torch.manual_seed(0)
    for count, width in ((3, 8), (8, 8), (20, 8)):
        z = torch.nn.functional.normalize(torch.randn(count, width), dim=-1)
        whole = torch.eye(width) + width / (count * 0.25) * z.t() @ z
        assert float(total_coding_rate(z * 3, 0.5)) == pytest.approx(0.5 * float(torch.logdet(whole)), rel=1e-4)
        assert total_coding_rate(z, 0.5) <= largest_coding_rate(count, width, 0.5) + 1e-4
    assert float(total_coding_rate(torch.eye(8), 0.5)) == pytest.approx(largest_coding_rate(8, 8, 0.5), rel=1e-5)
    assert largest_coding_rate(99, 8, 0.5) == pytest.approx(8 / 2 * math.log(1 + 1 / 0.25))


@pytest.mark.parametrize("uniformity", ["tcr", "infonce"])
def test_training_on_uniformity_alone_spreads_vectors(uniformity: str) -> None:
    torch.manual_seed(0)
    vectors = torch.nn.Parameter(torch.ones(12, 6) + 0.1 * torch.randn(12, 6))
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    before = total_coding_rate(vectors, 0.5).item()
    for _ in range(100):
        loss = -total_coding_rate(vectors, 0.5) if uniformity == "tcr" else repulsive_infonce(vectors, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert total_coding_rate(vectors, 0.5).item() > 2 * before
    assert total_coding_rate(vectors, 0.5).item() > 0.9 * largest_coding_rate(12, 6, 0.5)


def test_one_text_alone_cannot_be_spread() -> None:
    for loss in (lambda v: total_coding_rate(v, 0.5), lambda v: repulsive_infonce(v, 0.1)):
        with pytest.raises(ValueError, match="at least 2 of them, not 1"):
            loss(torch.ones(1, 4))


def test_attraction_is_less_where_neighbours_are_near() -> None:
    neighbours = torch.zeros(4, 4, dtype=torch.bool)
    neighbours[0, 1] = neighbours[1, 0] = neighbours[2, 3] = neighbours[3, 2] = True
    near, far = torch.eye(4)[[0, 0, 1, 1]], torch.eye(4)[[0, 1, 0, 1]]
    assert attraction(near, neighbours, 0.1) < 0.1 < attraction(far, neighbours, 0.1)
    assert attraction(near, torch.zeros_like(neighbours), 0.1) == 0


# ---- iteration ----


@given(st.integers(1, 9), st.integers(0, 99))
def test_the_recurrence_at_once_is_that_in_steps(count: int, seed: int) -> None:
    recurrence, new = Recurrence(4), torch.randn(2, count, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        state, together = torch.zeros(2, 4), recurrence(new)
        for k in range(count):
            state = recurrence.step(state, new[:, k])
            assert torch.allclose(together[:, k], state, atol=1e-5)


@settings(max_examples=25)
@given(st.binary(max_size=5 * W), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_a_stream_is_embedded_the_same_in_pieces_of_any_size(text: bytes, sizes: list[int]) -> None:
    model, pieces, at = tiny_glae(), [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    pieces.append(text[at:])
    whole, parts = list(model.embed_stream([text])), list(model.embed_stream(pieces))
    assert len(whole) == len(parts) == max(1, -(-len(text) // W))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert all(vector.shape == whole[0].shape for vector in whole)
    last = text[(len(whole) - 1) * W :]
    assert torch.allclose(whole[-1][: 3 * W], model.embed([last])[0][: 3 * W], atol=1e-5)
    resumed = list(model.embed_stream([last], whole[-2] if len(whole) > 1 else None))
    assert torch.allclose(resumed[-1], whole[-1], atol=1e-5)


# ---- the language model ----


def log_p(model: Glae, context: bytes, text: bytes) -> float:
    return -model.score([Passage(context, text)], "exact")[0].nll


@settings(max_examples=25)
@given(text=st.binary(min_size=2, max_size=4 * W), cut=st.integers(0, 99))
def test_scores_of_parts_add_up(text: bytes, cut: int) -> None:
    """So no byte's probability depends on a later byte."""
    model, cut = tiny_glae(), 1 + cut % (len(text) - 1)
    parts = log_p(model, b"", text[:cut]) + log_p(model, text[:cut], text[cut:])
    assert log_p(model, b"", text) == pytest.approx(parts, rel=1e-4)


def test_text_far_before_is_read_through_the_vector() -> None:
    """The transformer's windows reach over layers × W bytes; what lies before has its effect by the memory alone."""
    model = tiny_glae()
    near, far = b"x" * (3 * W), [b"some other words " * 2, b"nothing like them" * 2]
    one, two = (log_p(model, each + near, b"y") for each in far)
    assert one != two
    model.decoder.from_memory.weight.data.zero_()
    assert log_p(model, far[0] + near, b"y") == pytest.approx(log_p(model, far[1] + near, b"y"), abs=1e-5)


def test_a_batch_of_passages_scores_as_each_alone() -> None:
    model = tiny_glae()
    passages = [Passage(b"x" * (7 * n), b"yz" * (n + 1)) for n in range(6)]
    for passage, score in zip(passages, model.score(passages, "exact"), strict=True):
        assert model.score([passage], "exact")[0].nll == pytest.approx(score.nll, rel=1e-5)


@pytest.mark.parametrize("prompt", [b"", b"a", b"the cat sat on the mat, and the dog on the cat" * 2])
def test_it_generates_what_it_scores(prompt: bytes) -> None:
    """Greedy text is the most probable one, byte by byte, over several windows."""
    model = tiny_glae()
    config = GenerationConfig(max_new_bytes=3 * W, temperature=0.0, seed=0)
    text = b"".join(piece.data for piece in model.stream([prompt, b"beside"], config) if piece.prompt == 0)
    assert text
    assert model.score([Passage(prompt, text)], "exact")[0].is_greedy


@settings(max_examples=15)
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=4))
def test_two_halves_are_the_whole(some: list[bytes]) -> None:
    model, rows = tiny_glae(), rows_of(some, RowLayout(2 * W + 2, "separate"))
    with torch.no_grad():
        sums = [model.measure(Batch.of(part), torch.Generator()) for part in (rows, *rows.split(1))]
    for name in ("bytes", "language_nll", "tokens"):
        assert sum(float(part[name]) for part in sums[1:]) == pytest.approx(float(sums[0][name]), rel=1e-4), name


# ---- in the frame ----


def experiment(folder: Path, **changes: Any) -> Any:
    return tiny_experiment(folder, model=tiny_glae_config(**changes), sequence_length=2 * W + 2)


def test_a_stopped_training_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded_steps(monkeypatch)
    train(experiment(tmp_path))
    expected, weights = losses_of(steps), weights_of(tmp_path, 8)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(experiment(tmp_path))
    first = losses_of(steps)
    torch.rand(7)
    train(replace(experiment(tmp_path), resume_from_checkpoint="latest"))
    assert first + losses_of(steps) == expected
    assert_same_weights(weights, weights_of(tmp_path, 8))


def test_rows_that_hold_but_one_text_are_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at least 2 texts.*set sequence_length to 34"):
        train(tiny_experiment(tmp_path, model=tiny_glae_config(), sequence_length=W + 2))


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("embedding_width=0", "embedding_width must be at least 1"),
        ("embedding_width=500", "multiple of decoder.window"),
        ("uniformity=best", "uniformity"),
        ("tcr_epsilon=0.0", "tcr_epsilon"),
        ("noise=-1.0", "noise"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: str, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--show", "model.kind=glae", f"model.{setting}"]) == 2
    assert match in capsys.readouterr().err


def test_texts_and_vectors_that_do_not_fit_are_refused() -> None:
    model = tiny_glae()
    with pytest.raises(ValueError, match=r"17 tokens is too long for one vector.*embed_stream"):
        model.embed([b"x" * (W + 1)])
    with pytest.raises(ValueError, match=r"\(B, 56\), not \(2, 9\)"):
        model.reconstruct(torch.ones(2, 9))
    with pytest.raises(ValueError, match="mode must be exact"):
        model.stream([b"x"], GenerationConfig(mode="plan"))


def test_it_reads_the_tokens_of_a_file() -> None:
    model = Glae(tiny_glae_config(), FileTokenizer(tokenizer_source())).eval()
    vectors = model.embed([b"the cat sat on the mat, and"])  # longer than W bytes
    assert isinstance(model.reconstruct(vectors)[0], bytes)


def test_every_command_works(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text")
    train(experiment(tmp_path))
    paragraphs = "\n\n".join(
        f"In the {n}th place the river ran on, and the long road of {n} went by it." for n in range(30)
    )
    (tmp_path / "paragraphs.txt").write_text(paragraphs)
    capsys.readouterr()
    assert main(["info", "checkpoints"]) == 0
    assert "56 numbers: 3 for each of 16 tokens, 8 of memory" in capsys.readouterr().out
    assert main(["retrieval", "checkpoints", "--data", "paragraphs.txt", "--pairs", "20"]) == 0
    out = capsys.readouterr().out
    assert "glae, 8 steps" in out and "n-grams" in out and "ratio" in out
    assert main(["brier", "checkpoints", "--prefixes", "8", "--context", "20"]) == 0
    assert main(["accuracy", "checkpoints", "--length", "16", "--sequences", "8"]) == 0


def test_texts_are_restored_from_the_beginning() -> None:
    """Before any training, and for every byte: its point is the nearest."""
    torch.manual_seed(0)
    model = Glae(tiny_glae_config()).eval()
    points = model.encoder.carrier.points
    distances = torch.cdist(points, points) + 9 * torch.eye(len(points))
    assert points.shape == (257, 3) and distances.min() > 0.2 and points.abs().max() <= 0.9001
    texts = [bytes(range(at, at + W)) for at in range(0, 256, W)] + [b"", b"a", b"\x00" * 5]
    assert model.reconstruct(model.embed(texts).half()) == texts


def test_nearness_is_the_squared_distance() -> None:
    decoder, carrier, points = tiny_glae().decoder, torch.rand(2, 4, 3), torch.rand(257, 3)
    with torch.no_grad():
        found = decoder.nearness(carrier, points).softmax(-1)
        plain = -decoder.log_sharpness.exp() * (carrier[:, :, None] - points).square().sum(-1)
    torch.testing.assert_close(found, plain.softmax(-1), rtol=1e-3, atol=1e-5)


def test_the_default_has_the_size_of_all_that_are_compared() -> None:
    with torch.device("meta"):
        assert 3.8e6 <= sum(parameter.numel() for parameter in Glae(GlaeConfig()).parameters()) <= 4.2e6
