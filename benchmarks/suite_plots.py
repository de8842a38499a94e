"""The pictures of the benchmark suite."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from benchmarks.suite_report import series

_COLORS = ["#d1603d", "#2f6690", "#7aa6c9", "#8e5572", "#3a7d44", "#c99a2e", "#5b6c7d"]


def write_plots(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes bits per byte over seconds and bytes, and speed and memory over lengths; → the files that there are."""
    baselines = results["baselines"]
    colors = {one["name"]: color for one, color in zip(baselines, cycle(_COLORS), strict=False)}
    pictures = {
        "suite_curves.png": [
            ("seconds of training", "held-out bits per byte", series(baselines, "time", "seconds", "exact")),
            ("bytes seen in equal time", "held-out bits per byte", series(baselines, "time", "bytes", "exact")),
            ("of equally many bytes seen", "held-out bits per byte", series(baselines, "bytes", "bytes", "exact")),
        ],
        "suite_lengths.png": [
            ("bytes in a row", "training bytes per second", series(baselines, "length", "length", "bytes_per_second")),
            ("bytes in a row", "memory of a step, bytes", series(baselines, "length", "length", "memory_bytes")),
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, panels in pictures.items():
        if filled := [panel for panel in panels if panel[2]]:
            side_by_side(filled, colors, log_y=name == "suite_lengths.png").savefig(folder / name, dpi=120)
            written.append(folder / name)
    return written


def side_by_side(
    panels: list[tuple[str, str, dict[str, list[tuple[float, ...]]]]], colors: dict[str, str], *, log_y: bool
) -> Figure:
    """Panels of (x label, y label, points by model); x on a log scale, y too where `log_y`. One legend for all."""
    figure = Figure(figsize=(5.2 * len(panels), 4.5), layout="constrained")
    for axis, (x_label, y_label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in lines.items():
            x, y = zip(*points, strict=True)
            axis.plot(x, y, label=name, color=colors[name], marker="o", markersize=3.5, linewidth=1.6)
        axis.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log" if log_y else "linear")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.6)
        for side in (axis.xaxis, axis.yaxis) if log_y else (axis.xaxis,):
            side.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter(EngFormatter(sep=""))
            side.set_minor_locator(NullLocator())
    shown = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), frameon=False)
    return figure
