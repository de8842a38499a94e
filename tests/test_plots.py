"""Every plot draws to a PNG, for ordinary numbers and for none."""

import io
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from abstractinator.components.hierarchical.figures import code_usage, entropy_trace, segment_lengths
from abstractinator.components.plotting import loss_curves

RNG = np.random.default_rng(0)
TEXT = bytes(range(256)) + b"costs $5 or $6"


def drawn(figure: Figure) -> list[str]:
    """The titles of a figure, which has been drawn."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        assert file.getvalue().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    return [axis.get_title() for axis in figure.axes]


def test_segment_lengths() -> None:
    figure = segment_lengths([np.array([1, 2, 3, 2]), np.array([], dtype=int)], ["bytes", "codes"])
    assert drawn(figure) == ["bytes: mean 2.00, longest 3", "codes"]


def test_code_usage() -> None:
    figure = code_usage([np.array([0, 5, 1, 0]), np.zeros(8, dtype=int)], ["a", "b"])
    assert drawn(figure) == ["a: 2 of 4 codes used (50.0%)", "b: 0 of 8 codes used (0.0%)"]


def test_entropy_trace() -> None:
    figure = entropy_trace(TEXT, RNG.exponential(size=len(TEXT)), RNG.random(len(TEXT)) < 0.2)
    assert len(drawn(figure)) == 4  # lines of 80 bytes
    drawn(entropy_trace(b"", np.zeros(0), np.zeros(0, dtype=bool)))
    with pytest.raises(ValueError, match="must be of one length"):
        entropy_trace(b"abc", np.zeros(2), np.zeros(3, dtype=bool))


def test_loss_curves() -> None:
    nan = float("nan")
    figure = loss_curves([1, 2, 3], {"train": [3.0, 2.0, 1.0], "validation": [nan, 2.5, nan]})
    drawn(figure)
    legend = figure.axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["train", "validation"]
    drawn(loss_curves([], {}))
