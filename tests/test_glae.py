"""The kind glae: vectors of texts, the texts from them, vectors of text without end, and the language model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_weights, folders, losses_of, recorded_steps, stop_after, tiny_experiment, weights_of
from torch import Tensor

from abstractinator.components.glae.config import EncoderConfig, GlaeConfig
from abstractinator.components.glae.glae import Glae
from abstractinator.components.glae.iteration import Recurrence
from abstractinator.components.glae.text_encoder import joined, taken_apart
from abstractinator.components.glae.uniformity import (
    attraction,
    largest_coding_rate,
    repulsive_infonce,
    total_coding_rate,
    unit_rows,
)
from abstractinator.components.transformer import TransformerConfig
from abstractinator.config.experiment import load_experiment
from abstractinator.contract.capabilities import Embeds, Generates, Passage, Reconstructs, Scores
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.model import Batch
from abstractinator.data import rows_of
from abstractinator.training.loop import Interrupted, train
from abstractinator.training.optimizers import build_optimizers
from abstractinator.training.state import new_model

W = 8
TEXT = bytes(torch.randint(97, 105, (37,), generator=torch.Generator().manual_seed(1)).tolist())
ROOT = Path(__file__).resolve().parents[1]


def tiny(**changes: Any) -> GlaeConfig:
    config = GlaeConfig(
        embedding_width=40,
        memory_width=8,
        ngram_sizes=(2, 3),
        ngram_rows=64,
        ngram_width=16,
        encoder=EncoderConfig(width=16, layers=1, heads=2, mlp_width=16),
        decoder=TransformerConfig(width=32, layers=2, heads=2, window=W, mlp_width=32),
        decoder_ngram_rows=64,
        decoder_ngram_width=8,
    )
    return replace(config, **changes)


@pytest.fixture
def model() -> Glae:
    """With weights of which every part matters; as they are initialised, blocks add nothing."""
    torch.manual_seed(0)
    made = Glae(tiny()).eval()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def batch_of(model: Glae, *texts: bytes, length: int = 40) -> Batch:
    return Batch.of(rows_of(list(texts), model.layout(length)))


def bits(model: Glae, text: bytes, context: bytes = b"") -> float:
    return model.score([Passage(context, text)], "exact")[0].nll


@pytest.mark.parametrize(("count", "width"), [(5, 12), (12, 5), (6, 6)])
def test_the_coding_rate_is_its_definition_and_at_most_its_maximum(count: int, width: int) -> None:
    vectors, epsilon = torch.randn(count, width, generator=torch.Generator().manual_seed(0)), 0.4
    z = unit_rows(vectors).double()
    plain = 0.5 * torch.logdet(torch.eye(width) + width / (count * epsilon**2) * z.t() @ z)
    rate = total_coding_rate(vectors, epsilon)
    assert float(rate) == pytest.approx(float(plain), rel=1e-5)
    largest = largest_coding_rate(count, width, epsilon)
    assert 0 < float(rate) < largest
    if width <= count:
        assert largest == pytest.approx(width / 2 * math.log(1 + 1 / epsilon**2))
    even = torch.eye(max(count, width))[:count, :width] if count <= width else torch.eye(width).repeat(12, 1)
    assert float(total_coding_rate(even, epsilon)) == pytest.approx(
        largest_coding_rate(len(even), width, epsilon), rel=1e-5
    )


def test_both_losses_drive_vectors_apart() -> None:
    near = torch.tensor([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0], [1.0, 0.0, 0.1]])
    assert total_coding_rate(torch.eye(3), 0.5) > total_coding_rate(near, 0.5)
    assert repulsive_infonce(torch.eye(3), 0.1) < repulsive_infonce(near, 0.1)
    assert float(repulsive_infonce(torch.eye(3), 0.1)) == pytest.approx(math.log(2))
    for loss in (total_coding_rate, repulsive_infonce):
        with pytest.raises(ValueError, match="needs at least 2 of them, not 1"):
            loss(torch.ones(1, 4), 0.5)


def test_attraction_is_least_where_neighbours_lie_together() -> None:
    neighbours = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    together, crossed = torch.eye(2)[[0, 0, 1, 1]], torch.eye(2)[[0, 1, 0, 1]]
    assert attraction(together, neighbours, 0.1) < 1e-3 < attraction(crossed, neighbours, 0.1)
    two = torch.randn(2, 3, requires_grad=True)  # no others: nothing to tell apart, and no NaN
    cost = attraction(two, neighbours[:2, :2], 0.1)
    cost.backward()
    assert float(cost) == 0 and torch.isfinite(two.grad).all() if two.grad is not None else False


def test_it_has_the_capabilities(model: Glae) -> None:
    for capability in (Embeds, Reconstructs, Scores, Generates):
        assert isinstance(model, capability)


def test_a_text_has_one_vector_alone_or_among_others(model: Glae) -> None:
    texts = [TEXT[:W], b"", TEXT[3:6], TEXT[:1]]
    vectors = model.embed(texts)
    assert vectors.shape == (4, 40)
    for text, vector in zip(texts, vectors, strict=True):
        torch.testing.assert_close(model.embed([text])[0], vector)
    assert len({model.reconstruct(vectors)[i] == model.reconstruct(vectors[i : i + 1])[0] for i in range(4)}) == 1
    assert model.embed([]).shape == (0, 40)


def test_parts_of_a_vector(model: Glae) -> None:
    carrier, memory = torch.rand(3, W, 4), torch.rand(3, 8)
    for found, expected in zip(taken_apart(joined(carrier, memory), W, 4), (carrier, memory), strict=True):
        torch.testing.assert_close(found, expected)


def test_greedy_decoding_equals_the_parallel_decoder(model: Glae) -> None:
    """Reading back what was written, every token is the most probable one, and the end comes where it was written."""
    vectors = model.embed([TEXT[:W], TEXT[4:7], b"z"])
    found = model.reconstruct(vectors)
    from abstractinator.components.glae.texts import texts_of

    texts = texts_of([list(text) for text in found], W, model.device)
    carrier, memory = taken_apart(vectors, W, 4)
    with torch.no_grad():
        [(_, right)] = model.decoder(model.decoding(texts, carrier, memory))
    assert right.all()


def test_it_learns_to_restore_texts(model: Glae) -> None:
    torch.manual_seed(0)
    model = Glae(tiny(uniformity_weight=0.01, noise=0.0))
    optimizers = build_optimizers(model, learning_rate=2e-2, muon_learning_rate=0.02, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        texts = [bytes(torch.randint(97, 101, (38,), generator=generator).tolist()) for _ in range(8)]
        losses = model(batch_of(model, *texts))
        (losses.total / losses.weight).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    texts = [bytes(torch.randint(97, 101, (size,), generator=generator).tolist()) for size in range(1, W + 1)] * 4
    vectors = model.embed(texts)
    right = sum(a == b for a, b in zip(model.reconstruct(vectors), texts, strict=True))
    assert right / len(texts) > 0.8
    assert model.reconstruct(vectors.half()) == model.reconstruct(vectors)
    whole = b"".join(texts)[:60]
    [restored] = model.decode(model.encode([whole]))
    assert len(restored) == len(whole)


def test_any_text_is_encoded(model: Glae) -> None:
    latents = model.encode([TEXT, b"", TEXT[:W]])
    assert latents.positions == 5 + 1 + 1 and latents.bits == 16 * 40 * 7
    assert len(model.decode(latents)) == 3
    assert model.decode(model.encode([])) == []


def test_a_stream_is_the_recursion(model: Glae) -> None:
    recursion: list[Tensor] = []
    for at in range(0, len(TEXT), W):
        recursion.append(model.extended(recursion[-1] if recursion else None, TEXT[at : at + W]))
    for size in (1, 5, 100):
        stream = list(model.embed_stream(TEXT[at : at + size] for at in range(0, len(TEXT), size)))
        torch.testing.assert_close(torch.stack(stream), torch.stack(recursion))
    torch.testing.assert_close(recursion[0], model.embed([TEXT[:W]])[0])
    later = list(model.embed_stream([TEXT[W:]], recursion[0]))
    torch.testing.assert_close(later[-1], recursion[-1])
    assert not torch.allclose(later[-1], model.embed([TEXT[-5:]])[0])  # what came before is in it


def test_a_stream_needs_no_more_memory_for_a_longer_text(model: Glae) -> None:
    last = None
    for last in model.embed_stream(b"x" * 40 for _ in range(200)):
        assert last.shape == (40,)
    assert last is not None and torch.isfinite(last).all() and last.norm() < 2 / (1 - model.recurrence.decay.max())


def test_the_recurrence_at_once_is_step_by_step() -> None:
    recurrence, new = Recurrence(5), torch.randn(2, 7, 5)
    state, states = torch.zeros(2, 5), []
    for each in new.unbind(1):
        state = recurrence.step(state, each)
        states.append(state)
    torch.testing.assert_close(recurrence(new), torch.stack(states, dim=1))


def test_a_byte_is_predicted_from_what_came_before_alone(model: Glae) -> None:
    for at in (0, 3, W - 1, W, 2 * W + 1, 20):
        changed = TEXT[: at + 1] + bytes(255 - byte for byte in TEXT[at + 1 :])
        assert bits(model, TEXT[: at + 1]) == pytest.approx(bits(model, changed[: at + 1]))
        scores = [model.score([Passage(text[:at], text[at : at + 1])], "exact")[0].nll for text in (TEXT, changed)]
        assert scores[0] == pytest.approx(scores[1])
        both = model.score([Passage(TEXT[:at], TEXT[at:]), Passage(changed[:at], changed[at:])], "exact")
        alone = [bits(model, text[at:], text[:at]) for text in (TEXT, changed)]
        assert [score.nll for score in both] == pytest.approx(alone)


def test_scores_add_up_and_see_far_back(model: Glae) -> None:
    stepwise = sum(bits(model, TEXT[at : at + 1], TEXT[:at]) for at in range(len(TEXT)))
    assert bits(model, TEXT) == pytest.approx(stepwise, rel=1e-5)
    other = bytes(255 - byte for byte in TEXT[:4]) + TEXT[4:]
    assert bits(model, TEXT[-1:], TEXT[:-1]) != pytest.approx(bits(model, TEXT[-1:], other[:-1]), rel=1e-7)


def test_generation_draws_what_is_scored(model: Glae) -> None:
    from abstractinator.components.glae.generation import LanguageSteps

    with torch.inference_mode():
        steps = LanguageSteps(model, 2)
        logits = [steps.read_row(0, [256, *TEXT[:20]]), steps.read_row(1, [256, *TEXT[:3]])]
        for at in range(20, len(TEXT)):
            nll = -float(logits[0].log_softmax(-1)[TEXT[at]])
            assert nll == pytest.approx(bits(model, TEXT[at : at + 1], TEXT[:at]), rel=1e-4)
            logits[0] = steps.read(torch.tensor([0]), torch.tensor([[TEXT[at]]]))[0]
    greedy = GenerationConfig(max_new_bytes=20, temperature=0)
    texts = {0: b"", 1: b""}
    for piece in model.stream([TEXT[:3], TEXT[:19]], greedy):
        texts[piece.prompt] += piece.data
    assert texts[1]
    assert model.score([Passage(TEXT[:19], texts[1])], "exact")[0].is_greedy
    alone = b"".join(piece.data for piece in model.stream([TEXT[:3]], greedy))
    assert alone == texts[0]


def test_padding_and_other_rows_change_nothing(model: Glae) -> None:
    model.config = replace(model.config, uniformity_weight=0.0, attraction_weight=0.0)
    short, long = TEXT[:11], TEXT
    apart = [model(batch_of(model, text)) for text in (short, long)]
    together = model(batch_of(model, short, long))
    assert float(together.total) == pytest.approx(sum(float(losses.total) for losses in apart), rel=1e-5)
    assert float(together.weight) == sum(float(losses.weight) for losses in apart)
    padded = rows_of([short], model.layout(60))
    assert float(model(Batch.of(padded)).total) == pytest.approx(float(apart[0].total), rel=1e-5)


def test_measures_add_up(model: Glae) -> None:
    with torch.no_grad():
        sums = [model.measure(batch_of(model, text), torch.Generator()) for text in (TEXT, TEXT[::-1])]
        whole = model.measure(batch_of(model, TEXT, TEXT[::-1]), torch.Generator())
    for name in ("bytes", "nll", "reconstruction_nll", "texts"):
        assert float(whole[name]) == pytest.approx(sum(float(each[name]) for each in sums), rel=1e-5)
    metrics = model.metrics(whole)
    assert metrics["bits_per_byte_exact"].value == pytest.approx(
        (bits(model, TEXT) + bits(model, TEXT[::-1]) + _end_cost(model)) / math.log(2) / (2 * len(TEXT)), rel=1e-4
    )
    assert 0 <= metrics["rate_share"].value <= 1 and metrics["not_exact"].value > 0


def _end_cost(model: Glae) -> float:
    """Nats of the ends of both texts, which rows of 40 ids have room for."""
    ends = 0.0
    for text in (TEXT, TEXT[::-1]):
        from abstractinator.components.glae.generation import LanguageSteps

        with torch.inference_mode():
            logits = LanguageSteps(model, 1).read_row(0, [256, *text])
        ends -= float(logits.log_softmax(-1)[256])
    return ends


def test_texts_of_all_lengths_are_learned_from(model: Glae) -> None:
    from abstractinator.components.glae.texts import texts_of

    texts = texts_of([list(TEXT[:W])] * 2000, W, model.device)
    torch.manual_seed(0)
    counts = model.train().shortened(texts).lengths.bincount(minlength=W + 1)
    assert len(counts) == W + 1 and counts.min() > 100 and counts[W] > 300
    assert model.eval().shortened(texts) is texts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding_width": 0}, "embedding_width must be at least 1, not 0"),
        ({"memory_width": 0}, "memory_width must be at least 1, not 0"),
        ({"embedding_width": 41}, r"embedding_width - memory_width \(41 - 8\) must be a multiple of decoder.window"),
        ({"embedding_width": 8}, "must be a multiple"),
        ({"uniformity": "none"}, "uniformity must be tcr or infonce, not 'none'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"tcr_epsilon": math.nan}, "tcr_epsilon must be above 0"),
        ({"noise": -1.0}, "noise must be 0 or more"),
        ({"ngram_sizes": ()}, "at least one size each"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**changes)


def test_input_that_does_not_fit(model: Glae) -> None:
    with pytest.raises(
        ValueError, match=r"9 tokens is too long for one vector, which carries at most 8: use embed_str"
    ):
        model.embed([b"x" * 9])
    with pytest.raises(ValueError, match=r"embeddings must be \(B, 40\), not \(2, 41\)"):
        model.reconstruct(torch.zeros(2, 41))
    with pytest.raises(ValueError, match="mode must be exact, not 'plan'"):
        model.stream([b""], GenerationConfig(mode="plan"))
    with pytest.raises(ValueError, match="sequence_length=17 is too short: uniformity compares at least 2 texts"):
        model.layout(17)


@pytest.mark.parametrize("uniformity", ["tcr", "infonce"])
def test_a_stopped_training_goes_on_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uniformity: Any
) -> None:
    steps = recorded_steps(monkeypatch)
    whole, halves = folders(tmp_path, "whole", "halves")
    config = tiny(uniformity=uniformity)
    train(tiny_experiment(whole, model=config))
    expected = losses_of(steps)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train(tiny_experiment(halves, model=config))
    first = losses_of(steps)
    torch.rand(11)
    train(tiny_experiment(halves, model=config, resume_from_checkpoint="latest"))
    assert first + losses_of(steps) == expected
    assert_same_weights(weights_of(whole, 8), weights_of(halves, 8))


def test_the_presets_have_the_size_that_they_say() -> None:
    with torch.device("meta"):
        model = new_model(load_experiment(ROOT / "experiments" / "glae_7_layers.py", []), torch.device("meta"))
        assert isinstance(model, Glae)
        layers = len(model.encoder.carrier.blocks) + len(model.decoder.transformer.blocks)
        default = sum(parameter.numel() for parameter in Glae(GlaeConfig()).parameters())
    assert layers == 7 and 3.8e6 <= default <= 4.2e6
