import copy
import random

import pytest
import torch
from tiny_models import SHAPES, random_text, rows_of, tiny_model

from components.generation import GenerationConfig, Sampler
from components.hierarchical_autoencoder import HierarchicalAutoencoder
from components.tokens import BYTES, pack_bytes

MODELS: dict[str, HierarchicalAutoencoder] = {}
every_shape = pytest.mark.parametrize("shape", SHAPES)
some_shapes = pytest.mark.parametrize("shape", ["threshold", "whitespace-both", "increase-threshold-fixed"])
both_modes = pytest.mark.parametrize("mode", ["exact", "plan"])
PROMPTS = [b"a", b"the cat sat on the mat", b"\xff\x00 \n", b"x y z"]


def model_of(shape: str) -> HierarchicalAutoencoder:
    """Made once; no test changes it."""
    if shape not in MODELS:
        MODELS[shape] = tiny_model(shape)
    return MODELS[shape]


def ending_model(shape: str) -> HierarchicalAutoencoder:
    """Every byte and every code is followed by the end."""
    model = copy.deepcopy(model_of(shape))
    hidden = torch.ones(1, model.byte_head.to_logits[0].in_features)
    model.byte_head.to_logits[0].register_forward_hook(always_the_end)
    model.top.head.to_logits[0].register_forward_hook(always_the_end)
    assert model.byte_head.slot_logits(hidden, torch.zeros(1, 0)).argmax() == BYTES.codebook_size
    return model


def always_the_end(_: torch.nn.Module, __: object, logits: torch.Tensor) -> torch.Tensor:
    logits = torch.zeros_like(logits)
    logits[..., -1] = 50.0
    return logits


def greedy_by_full_forwards(model: HierarchicalAutoencoder, prompt: bytes, bound: int) -> bytes:
    text = prompt
    with torch.no_grad():
        for _ in range(bound):
            tokens = pack_bytes(rows_of([text + b"?"]))  # what stands in the last place changes nothing there
            hidden, _ = model.predict(tokens, model.compress(tokens))
            best = int(model.byte_head.slot_logits(hidden[-1:], torch.zeros(1, 0)).argmax())
            if best == BYTES.codebook_size:
                break
            text += bytes([best])
    return text[len(prompt) :]


@every_shape
def test_greedy_exact_text_is_the_argmax_of_full_forwards(shape: str) -> None:
    model = model_of(shape)
    for prompt in PROMPTS[:2]:
        got = model.generate_bytes(prompt, mode="exact", temperature=0, max_new_bytes=20)
        assert got == greedy_by_full_forwards(model, prompt, 20)


@every_shape
@both_modes
def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(shape: str, mode: str) -> None:
    model = model_of(shape)
    settings = {"mode": mode, "temperature": 0, "max_new_bytes": 17}
    together = model.generate_bytes(PROMPTS, **settings)
    assert together == [model.generate_bytes(prompt, **settings) for prompt in PROMPTS]
    assert any(together)


@every_shape
@both_modes
@pytest.mark.parametrize("bound", [1, 2, 13])
def test_no_more_bytes_than_asked_for(shape: str, mode: str, bound: int) -> None:
    out = model_of(shape).generate_bytes(PROMPTS, mode=mode, max_new_bytes=bound, temperature=1.0, top_p=1.0, seed=0)
    assert max(map(len, out)) <= bound
    assert any(out)


@some_shapes
@both_modes
def test_a_seed_repeats_the_text_and_another_does_not(shape: str, mode: str) -> None:
    settings = {"mode": mode, "temperature": 1.5, "top_p": 1.0, "max_new_bytes": 30}
    first, again, other = (model_of(shape).generate_bytes(PROMPTS, seed=seed, **settings) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@some_shapes
@both_modes
def test_the_end_ends_the_text(shape: str, mode: str) -> None:
    out = ending_model(shape).generate_bytes(PROMPTS, mode=mode, max_new_bytes=30, seed=0)
    assert out == [b""] * len(PROMPTS)


@some_shapes
def test_rows_end_by_themselves(shape: str) -> None:
    """The model's own sampling, with the end made likely: rows of one batch end at different places."""
    model = copy.deepcopy(model_of(shape))
    model.byte_head.to_logits[0].register_forward_hook(likely_end)
    out = model.generate_bytes(PROMPTS * 4, mode="exact", max_new_bytes=60, temperature=1.0, top_p=1.0, seed=0)
    assert len({len(text) for text in out}) > 2
    assert max(map(len, out)) < 60


def likely_end(_: torch.nn.Module, __: object, logits: torch.Tensor) -> torch.Tensor:
    end = logits[..., :-1].logsumexp(-1, keepdim=True) - 1
    return torch.cat([logits[..., :-1], end], dim=-1)


@both_modes
def test_an_empty_prompt_is_refused(mode: str) -> None:
    for prompt in (b"", [b"a", b""], []):
        with pytest.raises(ValueError, match="prompt"):
            model_of("fixed").generate_bytes(prompt, mode=mode)


@both_modes
def test_a_prompt_longer_than_every_window_is_read(mode: str) -> None:
    prompt = random_text(random.Random(0), 500)
    assert len(model_of("threshold-fixed").generate_bytes(prompt, mode=mode, max_new_bytes=9, seed=0)) <= 9


@both_modes
def test_generation_leaves_the_model_as_it_was(mode: str) -> None:
    model = tiny_model("whitespace-both").train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.generate_bytes(PROMPTS, mode=mode, max_new_bytes=9, seed=0)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def draws(config: GenerationConfig, logits: torch.Tensor, count: int = 4000) -> torch.Tensor:
    """How often each class is drawn, as a share."""
    sample = Sampler(config, logits.device)
    return torch.bincount(sample(logits.expand(count, -1)), minlength=len(logits)) / count


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0, "top_p": 1.0}, [0.1, 0.5, 0.15, 0.25]),
        ({"temperature": 0.5, "top_p": 1.0}, [0.0290, 0.7246, 0.0652, 0.1812]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"temperature": 1.0, "top_p": 0.7}, [0, 2 / 3, 0, 1 / 3]),
        ({"temperature": 1.0, "top_p": 0.01}, [0, 1, 0, 0]),
        ({"temperature": 0}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_samples_follow_the_distribution_asked_for(settings: dict[str, float], expected: list[float]) -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    got = draws(GenerationConfig(seed=0, **settings), logits)  # type: ignore[arg-type]
    wanted = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(got, wanted, atol=0.03, rtol=0)
    assert torch.equal(got > 0, wanted > 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_bytes": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"mode": "guess"},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        GenerationConfig(**wrong)  # type: ignore[arg-type]
