"""What generation may say: the sampler, the settings, the bounds of a text; see components/sampling.py."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abstractinator.components.sampling import Sampler, WrittenText, repeats
from abstractinator.contract.generation_config import GenerationConfig


@given(st.text("ab", max_size=30), st.integers(0, 4))
def test_repeats_are_what_would_complete_a_run_once_more(text: str, size: int) -> None:
    expected = {letter for letter in "ab" if size and (text + letter)[-size:] in text and len(text) >= size}
    assert repeats(text, size) == expected


@settings(max_examples=200)
@example(parts=["baa", "b"], stops=["a", "baab"], bound=4)
@given(
    st.lists(st.text("ab", max_size=5)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 20)
)
def test_text_is_shown_as_soon_as_no_stop_string_can_begin_with_it(
    parts: list[str], stops: list[str], bound: int
) -> None:
    whole = "".join(parts)[:bound].encode()
    found = [(at + len(stop), at) for stop in stops if (at := whole.find(stop.encode())) >= 0]
    expected = whole[: min(found)[1]] if found else whole
    text = WrittenText(b"prompt", GenerationConfig(max_new_bytes=bound, stop=tuple(stops)))
    shown, written = b"", b""
    for part in parts:
        text.write(part.encode())
        written = (written + part.encode())[:bound]
        shown += text.take()
        assert expected.startswith(shown)
        if not text.ended:
            begins = [
                n
                for n in range(len(written) + 1)
                for stop in stops
                if stop.encode().startswith(written[len(written) - n :])
            ]
            assert len(shown) == len(written) - max(begins, default=0)
    text.end()
    assert shown + text.take() == expected
    assert text.ended


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


@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, {"top_p": 1.0}, {"temperature": 100.0, "top_p": 1.0}])
def test_what_is_barred_is_not_drawn(settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5000, 16)
    barred = torch.rand(logits.shape) < 0.7
    barred[:, 3] = False
    chosen = Sampler(GenerationConfig(seed=0, **settings), logits.device)(logits.masked_fill(barred, -torch.inf))
    assert not barred.gather(1, chosen[:, None]).any()


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
        {"no_repeat_ngram_size": -1},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 9, "repetition_window": 8},
        {"repetition_window": 0},
        {"stop": ("",)},
        {"stop": (b"a", b"")},
        {"stop": "word"},
        {"stop": (7,)},
        {"stop": ("\ud800",)},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        GenerationConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"seed": True}, "seed"),
        ({"max_new_bytes": 5.5}, "max_new_bytes"),
        ({"max_new_bytes": None}, "max_new_bytes"),
        ({"top_k": 1.5}, "top_k"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("inf")}, "temperature must be .* finite, not inf"),
        ({"temperature": float("nan")}, "temperature must be .* finite, not nan"),
        ({"stop": None}, "stop must be a list"),
        ({"no_repeat_ngram_size": 2000}, r"no_repeat_ngram_size \(2000\) must not be above repetition_window"),
    ],
    ids=str,
)
def test_settings_of_a_wrong_kind_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GenerationConfig(**settings)
