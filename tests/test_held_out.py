"""What counts as a reconstructed byte, and over how many bytes the bits are shared."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import losses_of, padded, tiny_model

from abstractinator.components.hierarchical.hierarchy import Decompressed
from abstractinator.components.hierarchical.measures import reconstructed_bytes
from abstractinator.components.packing import Packing
from abstractinator.components.tokens import BYTES, Tokens, Vocabulary, pack_bytes
from abstractinator.evaluation import held_out
from abstractinator.evaluation.held_out import evaluate_held_out

BOS, EOS = BYTES.bos, BYTES.eos
SEGMENTS: list[list[int]] = [[BOS], [*b"abc"], [*b"de"], [EOS]]


def packed(segments: list[list[int]]) -> Tokens:
    return pack_bytes(torch.tensor([[token for segment in segments for token in segment]]))


def reconstructed(decoded: list[list[int]]) -> str:
    """SEGMENTS, and what their codes are decoded to → `+` for a byte that is right and `-` for one that is not."""
    tokens = packed(SEGMENTS)
    code_of_byte = torch.tensor([s for s, segment in enumerate(SEGMENTS) for _ in segment])
    codes = Tokens(torch.zeros(len(SEGMENTS), 1).long(), Packing.from_lengths(torch.tensor([4])), Vocabulary(16))
    model: Any = SimpleNamespace(
        decompress=lambda _: Decompressed(
            packed(decoded),
            torch.tensor([s for s, segment in enumerate(decoded) for _ in segment]),
        )
    )
    return "".join("+" if right else "-" for right in reconstructed_bytes(model, codes, tokens, code_of_byte))


@pytest.mark.parametrize(
    ("decoded", "right"),
    [
        ([[BOS], [*b"abc"], [*b"de"], [EOS]], "-+++++-"),
        ([[BOS], [*b"aXc"], [*b"de"], [EOS]], "-+-+++-"),
        ([[BOS], [*b"ab"], [*b"de"], [EOS]], "-++-++-"),  # too short: what is missing
        ([[BOS], [*b"abcd"], [*b"de"], [EOS]], "-++-++-"),  # too long: its last byte, though that is there
        ([[BOS], [*b"abcabc"], [*b"dede"], [EOS]], "-++-+--"),
        ([[BOS], [*b"aXcd"], [*b"d"], [EOS]], "-+--+--"),
        ([[BOS], [*b"Xabc"], [*b"de"], [EOS]], "----++-"),  # moved by one
    ],
    ids=str,
)
def test_a_byte_is_right_at_its_offset_in_a_segment_of_the_right_length(decoded: list[list[int]], right: str) -> None:
    assert reconstructed(decoded) == right


@pytest.mark.parametrize("shape", ["information", "threshold-fixed"])
def test_bits_are_shared_by_the_bytes_that_they_tell(shape: str) -> None:
    model = tiny_model(shape)
    # Rows as cut from a long text: the second and third begin in the middle of a document.
    rows = padded([[BOS, *b"the cat, th"], [*b"e end", EOS, BOS, *b"some"], [*b" more of it"]])
    told, predicted = 31, 29  # all bytes, and those that are not a row's first token
    with torch.no_grad():
        losses = losses_of(model, rows)
    assert losses.weight.item() == predicted
    measured = evaluate_held_out(model, rows, batch_size=8, mixed_precision=False)
    assert measured["bytes"].value == told
    assert losses.predict is not None
    exact, two_part = (measured[f"bits_per_byte_{name}"].value for name in ("exact", "two_part"))
    assert exact == pytest.approx(float(losses.predict) / predicted / math.log(2), rel=1e-5)
    assert two_part == pytest.approx(float(losses.two_part) / told / math.log(2), rel=1e-5)
    row_by_row = evaluate_held_out(model, rows, batch_size=1, mixed_precision=False)
    assert row_by_row["bits_per_byte_two_part"].value == pytest.approx(two_part, rel=1e-4)


def test_a_measurement_ends_in_its_time_and_says_over_how_much_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, now = tiny_model("information"), [0.0]
    rows = padded([[BOS, *b"the cat"]] * 20)
    monkeypatch.setattr(held_out, "time", SimpleNamespace(monotonic=lambda: now[0]))
    real = type(model).measure

    def slow(self: Any, *arguments: Any) -> Any:
        now[0] += 10.0
        return real(self, *arguments)

    monkeypatch.setattr(type(model), "measure", slow)
    settings: Any = {"batch_size": 1, "mixed_precision": False}
    assert evaluate_held_out(model, rows, **settings)["bytes"].value == 20 * 7
    assert evaluate_held_out(model, rows, seconds=1.0, **settings)["bytes"].value == 4 * 7  # it may take 30 s
    assert evaluate_held_out(model, rows, seconds=95.0, **settings)["bytes"].value == 10 * 7
