"""Figures in one style, as matplotlib Figures: without global state of pyplot and without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

_COLORS = ["#2f6690", "#d1603d", "#3a7d44", "#8e5572", "#c99a2e", "#5b6c7d"]
_BOUNDARY = "#d1603d"
_GRID = "#dddddd"
_BYTES_PER_LINE = 80


def segment_lengths(lengths: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """A histogram of segment lengths for each level, with its mean.

    `lengths[i]` holds the lengths, in tokens of level i, of any number of segments; `names[i]` is its name.
    """
    figure, axes = _panels(len(lengths))
    for axis, values, name, color in zip(axes, lengths, names, _palette(len(lengths)), strict=True):
        axis.set(title=name, xlabel="tokens in a segment", ylabel="segments")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(values) == 0:
            continue
        size, count = np.unique(values, return_counts=True)
        axis.bar(size, count / count.sum(), width=0.85, color=color)
        mean = float(np.mean(values))
        axis.axvline(mean, color="#222222", linewidth=1, linestyle="--")
        axis.set_title(f"{name}: mean {mean:.2f}, longest {size[-1]}")
    return figure


def code_usage(counts: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """How often each code is used, the most used first, on log scale; the used part is in the title.

    `counts[i]`, of shape (K,), counts each code of level i; `names[i]` names the level.
    """
    figure, axes = _panels(len(counts))
    for axis, values, name, color in zip(axes, counts, names, _palette(len(counts)), strict=True):
        ranked = np.sort(np.asarray(values))[::-1]
        used = int((ranked > 0).sum())
        axis.set_title(f"{name}: {used:,} of {len(ranked):,} codes used ({used / max(1, len(ranked)):.1%})")
        axis.set(xlabel="codes by rank", ylabel="times used", xlim=(0, max(1, len(ranked))))
        if used:
            axis.set_yscale("log")
            axis.step(np.arange(used + 1), np.append(ranked[:used], ranked[used - 1]), where="post", color=color)
            axis.fill_between(np.arange(used), ranked[:used], step="post", color=color, alpha=0.25)
            axis.set_ylim(bottom=0.7)
    return figure


def entropy_trace(text: bytes, entropies: np.ndarray, starts: np.ndarray) -> Figure:
    """The entropy of each byte given those before it, as bars over the text, and where segments begin.

    `entropies`, of shape (N,), is in nats; `starts`, of shape (N,), is true at the first byte of a segment.
    The text runs over as many lines as it needs; bytes that do not print are shown as ·.
    """
    if not len(text) == len(entropies) == len(starts):
        sizes = f"{len(text)} bytes, {len(entropies)} entropies, {len(starts)} starts"
        raise ValueError(f"text, entropies and starts must be of one length, not {sizes}")
    lines = max(1, -(-len(text) // _BYTES_PER_LINE))
    figure = Figure(figsize=(13, 0.6 + 1.3 * lines), layout="constrained")
    axes = figure.subplots(lines, 1, sharey=True, squeeze=False)[:, 0]
    top = 1.05 * max(float(np.max(entropies, initial=0.0)), 1e-3)
    for line, axis in enumerate(axes):
        here = slice(line * _BYTES_PER_LINE, (line + 1) * _BYTES_PER_LINE)
        _trace_line(axis, text[here], np.asarray(entropies)[here], np.asarray(starts, dtype=bool)[here])
        axis.set_ylim(0, top)
    mean = len(text) / max(1, int(np.sum(starts)))
    figure.suptitle(f"Entropy of each byte, in nats; a line begins a segment ({mean:.2f} bytes on average)")
    return figure


def _trace_line(axis: Axes, text: bytes, entropies: np.ndarray, starts: np.ndarray) -> None:
    _dress(axis)
    positions = np.arange(len(text))
    axis.bar(positions, entropies, width=0.9, color=_COLORS[0])
    for position in positions[starts]:
        axis.axvline(position - 0.5, color=_BOUNDARY, linewidth=1.2)
    labels = [_printable(byte) for byte in text]
    axis.set_xticks(positions, labels, fontfamily="monospace", fontsize=9)
    axis.tick_params(axis="x", length=0, pad=2)
    axis.grid(visible=False, axis="x")
    axis.set_xlim(-0.6, _BYTES_PER_LINE - 0.4)


def _printable(byte: int) -> str:
    if byte == 0x20:
        return " "
    # "$" would begin a formula
    return "\\$" if byte == 0x24 else chr(byte) if 0x20 < byte < 0x7F else "·"


def loss_curves(steps: Sequence[int], series: Mapping[str, Sequence[float]]) -> Figure:
    """Named losses over steps; `series[name][i]` belongs to `steps[i]`, and a nan there is left out."""
    figure, (axis,) = _panels(1, width=8.0)
    for (name, values), color in zip(series.items(), _palette(len(series)), strict=True):
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


def _panels(count: int, width: float = 5.2) -> tuple[Figure, list[Axes]]:
    """A figure with `count` dressed axes side by side."""
    figure = Figure(figsize=(width * max(1, count), 3.6), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0]) if count else []
    for axis in axes:
        _dress(axis)
    return figure, axes


def _dress(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def _palette(count: int) -> list[str]:
    return [_COLORS[index % len(_COLORS)] for index in range(count)]
