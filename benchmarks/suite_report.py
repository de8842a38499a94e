"""The tables of the benchmark suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import table

_NONE = "–"


def report(results: dict[str, Any]) -> str:
    """All tables of a run, and in words what failed and what to keep in mind."""
    baselines = results["baselines"]
    done = [one for one in baselines if "parameters" in one]
    parts = [_quality(baselines, results), _costs(done)]
    for make in (_lengths, _generation, _sweep):
        if text := make(done):
            parts.append(text)
    notes = [f"{one['name']}: {one['remark']}" for one in done if one.get("remark")]
    failed = [f"{one['name']}, {stage}: {why}" for one in baselines for stage, why in one["failures"].items()]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else []), *(["\n".join(failed)] if failed else [])])


def _quality(baselines: list[dict[str, Any]], results: dict[str, Any]) -> str:
    """Who failed has a row, too, of dashes."""
    times = [one["time"]["seconds"] for one in baselines if "time" in one]
    budgets = [one["bytes"]["bytes"] for one in baselines if "bytes" in one]
    first = f"after {max(times):,.0f} s: exact" if times else "after equal time: exact"
    second = f"after {min(budgets) / 1e6:,.2f} MB: exact" if budgets else "after equal bytes: exact"
    header = ["", "parameters", first, "two-part", "MB seen", "bytes/s", second, "two-part"]
    rows = [
        [
            one["name"] + (" (failed)" if one["failures"].keys() & {"size", "time", "bytes"} else ""),
            _number(one, "parameters", form=",.0f"),
            _number(one, "time", "scores", "exact"),
            _number(one, "time", "scores", "two_part"),
            _number(one, "time", "bytes", form=",.2f", unit=1e6),
            _per(one, "time"),
            _number(one, "bytes", "scores", "exact"),
            _number(one, "bytes", "scores", "two_part"),
        ]
        for one in baselines
    ]
    return table(f"bits per byte of {results['held_out_bytes'] / 1e3:,.0f} kB of held-out text", header, rows)


def _costs(done: list[dict[str, Any]]) -> str:
    header = ["", "Mflop/byte forward", "Mflop/byte training", "bytes/position", "scoring bytes/s"]
    rows = [
        [
            one["name"],
            _number(one, "flops", "forward", form=",.2f", unit=1e6),
            _number(one, "flops", "training", form=",.2f", unit=1e6),
            _number(one, "time", "scores", "bytes_per_position", form=".2f"),
            _number(one, "time", "scores", "bytes_per_second", form=",.0f"),
        ]
        for one in done
    ]
    return table("cost, and bytes per position of the main network", header, rows)


def _lengths(done: list[dict[str, Any]]) -> str:
    lengths = sorted({int(length) for one in done for length in one.get("length", {})})
    header = ["", *(f"{length:,}: {what}" for length in lengths for what in ("bytes/s", "MB"))]
    rows = [
        [one["name"]]
        + [
            cell
            for length in lengths
            for cell in (
                _number(one, "length", str(length), "bytes_per_second", form=",.0f"),
                _number(one, "length", str(length), "memory_bytes", form=",.0f", unit=1e6),
            )
        ]
        for one in done
    ]
    return table("training at growing lengths of the rows", header, rows) if lengths else ""


def _generation(done: list[dict[str, Any]]) -> str:
    batches = sorted({int(name.split()[-1]) for one in done for name in one.get("generation", {})})
    rows = []
    for one in done:
        for mode in dict.fromkeys(name.split()[0] for name in one.get("generation", {})):
            cells = [_number(one, "generation", f"{mode} {n}", "bytes_per_second", form=",.1f") for n in batches]
            rows.append([f"{one['name']} ({mode})", *cells])
    return table("new bytes per second", ["", *(f"{n} at once" for n in batches)], rows) if batches else ""


def _sweep(done: list[dict[str, Any]]) -> str:
    rows = []
    for one in done:
        swept = one.get("sweep", [])
        swept = [each for each in swept if each.get("unit") == "bytes"] or swept  # all over the same bytes
        first = next((each for each in swept if all(each[name] == 1.0 for name in one["factors"])), {})
        used = next((each for each in reversed(swept) if one["factors"].items() <= each.items()), {})
        rows.append(
            [
                one["name"],
                str(len(one.get("sweep", []))),
                *(f"× {factor:g}" for factor in one["factors"].values()),
                _number(used, "learning_rate", form="g"),
                _number(used, "muon_learning_rate", form="g"),
                _number(first, "exact"),
                _number(used, "exact"),
            ]
        )
    header = ["", "trainings", "rows a step", "rates", "AdamW's", "AdamW", "Muon", "by default", "as swept"]
    title = "the sweep: factors on the defaults, learning rates in use, exact bits per byte of training text"
    if not any("sweep" in one for one in done):
        return "no sweep was made: rows a step and learning rates are everybody's defaults"
    return table(title, header, rows)


def _per(one: dict[str, Any], stage: str) -> str:
    found = one.get(stage)
    return f"{found['bytes'] / found['seconds']:,.0f}" if found and found["seconds"] else _NONE


def _number(one: dict[str, Any], *path: str, form: str = ".3f", unit: float = 1.0) -> str:
    """What lies at the path, as text; a dash where there is nothing."""
    found: Any = one
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return _NONE if found is None else format(found / unit, form)


def series(baselines: Sequence[dict[str, Any]], stage: str, *names: str) -> dict[str, list[tuple[float, ...]]]:
    """For the plots: by model the points of its curve or lengths, as far as all of `names` are there."""
    out = {}
    for one in baselines:
        found = one.get(stage, {})
        points = found["curve"] if "curve" in found else [{"length": int(k), **v} for k, v in found.items()]
        whole = [tuple(point[name] for name in names) for point in points if all(point.get(n) for n in names)]
        if whole:
            out[one["name"]] = whole
    return out
