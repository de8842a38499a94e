"""Figures of what a hierarchy does with some rows: segment lengths, code usage, and the entropy of each byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from abstractinator.components.hierarchical.hierarchy import Hierarchy
from abstractinator.components.plotting import COLORS, dress, palette, panels
from abstractinator.components.tokens import BYTES, tokens_of
from abstractinator.contract.model import Batch

_BOUNDARY = "#d1603d"
_BYTES_PER_LINE = 80
_STRETCH = slice(64, 64 + 160)  # bytes whose entropies are drawn


@torch.no_grad()
def figures_of(model: Hierarchy, batch: Batch) -> dict[str, Figure]:
    """matplotlib figures by name."""
    compressed = model.compress(tokens_of(batch.ids))
    names = [f"level {number}" for number in range(1, len(compressed) + 1)]
    counts = []
    for c in compressed:
        plain = c.codes.ids[~c.codes.special]
        size = c.codes.vocabulary.codebook_size
        counts.append(torch.bincount(plain.flatten(), minlength=size)[:size].cpu().numpy())
    made = {
        "segment_lengths": segment_lengths([c.segments.lengths.cpu().numpy() for c in compressed], names),
        "code_usage": code_usage(counts, names),
    }
    lowest = compressed[0]
    if lowest.entropies is not None:
        values = lowest.tokens.ids[_STRETCH, 0].cpu().numpy()
        entropies = np.nan_to_num(lowest.entropies[_STRETCH].cpu().numpy(), posinf=0.0)
        starts = (lowest.segments.offsets[_STRETCH] == 0).cpu().numpy()
        text = bytes(np.where(values < BYTES.codebook_size, values, 0).astype(np.uint8))
        made["entropy_trace"] = entropy_trace(text, entropies, starts)
    return made


def segment_lengths(lengths: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """A histogram of segment lengths for each level, with its mean.

    `lengths[i]` holds the lengths, in tokens of level i, of any number of segments; `names[i]` is its name.
    """
    figure, axes = panels(len(lengths))
    for axis, values, name, color in zip(axes, lengths, names, palette(len(lengths)), strict=True):
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
    figure, axes = panels(len(counts))
    for axis, values, name, color in zip(axes, counts, names, palette(len(counts)), strict=True):
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
    dress(axis)
    positions = np.arange(len(text))
    axis.bar(positions, entropies, width=0.9, color=COLORS[0])
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
