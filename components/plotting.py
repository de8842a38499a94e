"""One style for all figures, and the curves of losses: matplotlib Figures, without global state of pyplot and without a
display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = ["#2f6690", "#d1603d", "#3a7d44", "#8e5572", "#c99a2e", "#5b6c7d"]
_GRID = "#dddddd"


def loss_curves(steps: Sequence[int], series: Mapping[str, Sequence[float]]) -> Figure:
    """Named losses over steps; `series[name][i]` belongs to `steps[i]`, and a nan there is left out."""
    figure, (axis,) = panels(1, width=8.0)
    for (name, values), color in zip(series.items(), palette(len(series)), strict=True):
        losses = np.asarray(values, dtype=float)
        present = np.isfinite(losses)  # a series measured now and then is drawn through its own points
        marker = "o" if present.sum() <= 30 else None
        x, y = np.asarray(steps)[present], losses[present]
        axis.plot(x, y, label=name, color=color, linewidth=1.6, marker=marker, markersize=3.5)
    axis.set(xlabel="step", ylabel="loss")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if series:
        axis.legend(frameon=False)
    return figure


def panels(count: int, width: float = 5.2) -> tuple[Figure, list[Axes]]:
    """A figure with `count` dressed axes side by side."""
    figure = Figure(figsize=(width * max(1, count), 3.6), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0]) if count else []
    for axis in axes:
        dress(axis)
    return figure, axes


def dress(axis: Axes) -> None:
    """Gives an axis the common style."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def palette(count: int) -> list[str]:
    """So many colors, from the first on again where there are no more."""
    return [COLORS[index % len(COLORS)] for index in range(count)]
