"""The table and the plot of `benchmarks.siblings`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import table

# What entropy coding makes of the latents, by kind: the metric's name.
_CODED = {"hier_ae": "code_bits_per_byte", "cta": "kl_bits_per_byte", "calm": "rate_bits_per_byte"}
_COLORS = {
    "hier_ae": "#d1603d",
    "cta": "#2f6690",
    "calm": "#3a7d44",
    "calm_discrete": "#8e5572",
    "glae": "#c99a2e",
    "byte pairs": "#5b6c7d",
}


def report(results: dict[str, Any]) -> str:
    """Two tables: what latents cost and restore; what the models predict, and how fast."""
    return f"{_latents(results)}\n\n{_models(results)}"


def _latents(results: dict[str, Any]) -> str:
    header = ["", "positions/byte", "stored bits/byte", "coded", "real", "whole", "random", "other scripts"]
    rows = []
    for one in results["kinds"]:
        if "accuracy" not in one:
            continue
        accuracy = one["accuracy"]
        real = accuracy["real"]
        rows.append(
            [
                one["kind"],
                f"{real['positions_per_byte']:.3f}",
                f"{real['stored_bits_per_byte']:.2f}",
                _shown(one["metrics"].get(_CODED.get(one["kind"], "")), ".2f"),
                f"{real['token_accuracy']:.3%}",
                f"{real['sequence_accuracy']:.1%}",
                f"{accuracy['random']['token_accuracy']:.2%}",
                _shown(accuracy.get("other", {}).get("token_accuracy"), ".2%"),
            ]
        )
    for pairs in results["byte_pairs"]:
        rows.append(
            [
                f"byte pairs, {pairs['tokens']:,}",
                f"{1 / pairs['bytes_per_token']:.3f}",
                f"{pairs['raw_bits']:.2f}",
                f"{pairs['frequency_bits']:.2f}",
                "100%",
                "100%",
                "100%",
                "100%",
            ]
        )
    return table("latents: what they cost, and the bytes that are reconstructed", header, rows)


def _models(results: dict[str, Any]) -> str:
    header = ["", "parameters", "bits/byte", "BrierLM", "95 %", "new bytes/s", "training bytes/s", "steps"]
    rows = []
    for one in results["kinds"]:
        brier, training = one.get("brier"), one["training"]
        rows.append(
            [
                one["kind"],
                f"{one['parameters'] / 1e6:.2f}M",
                _shown(one.get("bits_per_byte"), ".3f"),
                _shown(brier and brier["brier_lm"], ".2f"),
                f"{brier['low']:.2f} … {brier['high']:.2f}" if brier else "–",
                _shown(one.get("new_bytes_per_second"), ",.0f"),
                f"{training['train_bytes_per_second']:,.0f}",
                f"{training['steps']:,}",
            ]
        )
    unigram = next((one["unigram_brier"] for one in results["kinds"] if "unigram_brier" in one), None)
    if unigram:
        interval = f"{unigram['low']:.2f} … {unigram['high']:.2f}"
        rows.append(["bytes by frequency", "–", "–", f"{unigram['brier_lm']:.2f}", interval, "–", "–", "–"])
    return table("models: likelihood, samples, speed", header, rows)


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def write_plot(results: dict[str, Any], path: Path) -> None:
    """Bytes that are wrong over stored bits per byte, and BrierLM with its intervals."""
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for one in results["kinds"]:
        if "accuracy" in one:
            for name, marker in (("real", "o"), ("random", "x"), ("other", "^")):
                if name in one["accuracy"]:
                    accuracy = one["accuracy"][name]
                    wrong = max(1 - accuracy["token_accuracy"], 1e-6)
                    left.scatter(accuracy["stored_bits_per_byte"], wrong, color=_COLORS[one["kind"]], marker=marker)
            left.scatter([], [], color=_COLORS[one["kind"]], label=one["kind"])
    for pairs in results["byte_pairs"]:
        left.scatter(pairs["raw_bits"], 1e-6, color=_COLORS["byte pairs"], marker="s")
    left.scatter([], [], color=_COLORS["byte pairs"], marker="s", label="byte pairs")
    for name, marker in (("real text", "o"), ("random bytes", "x"), ("other scripts", "^")):
        left.scatter([], [], color="#999999", marker=marker, label=name)
    left.set(
        xscale="log", yscale="log", xlabel="stored bits per byte", ylabel="share of bytes that are wrong (10⁻⁶: none)"
    )
    left.legend(frameon=False, fontsize=8)
    sampled = [one for one in results["kinds"] if one.get("brier")]
    for at, one in enumerate(sampled):
        brier = one["brier"]
        error = [[brier["brier_lm"] - brier["low"]], [brier["high"] - brier["brier_lm"]]]
        right.bar(at, brier["brier_lm"], yerr=error, color=_COLORS[one["kind"]], capsize=4)
    right.set(xticks=range(len(sampled)), xticklabels=[one["kind"] for one in sampled], ylabel="BrierLM")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
