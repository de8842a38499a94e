"""Tiny models under the harness: trained and random weights, checkpoints of them, requests, an arithmetic coder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from tiny_models import mean_loss, rows_of, tiny_config, tiny_model

from abstractinator import __version__
from abstractinator.checkpoints.checkpoint_file import save_checkpoint
from abstractinator.components.hierarchical.hierarchical_aelm import HierarchicalAELM
from abstractinator.config.experiment import ExperimentConfig
from abstractinator.config.settings import to_dict

# One, two and three levels.
SHAPES = ("information", "threshold-fixed", "increase-threshold-fixed")
TEXT = b"the cat sat on a mat and saw one more dog under some very old green tree; "


@cache
def model_of(shape: str, weights: str) -> HierarchicalAELM:
    """In evaluation mode. weights: `random`, or `trained` for some steps on TEXT."""
    model = tiny_model(shape)
    if weights == "trained":
        rows = rows_of([(TEXT * 3)[start : start + 70] for start in range(0, 64, 8)])
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
        for _ in range(40):
            mean_loss(model, rows).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def save_tiny(path: Path, model: HierarchicalAELM, shape: str, /, **changes: Any) -> str:
    """A checkpoint of the model, with what an evaluation reads of it → its path."""
    config = ExperimentConfig(model=tiny_config(shape), sequence_length=16)
    payload = {
        "version": __version__,
        "config": to_dict(config),
        "model": model.state_dict(),
        "step": 3,
        "bytes_read": 1234,
    }
    save_checkpoint(path, payload | changes)
    return str(path)


def requests_of(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """Requests as the harness makes them."""
    return [Instance(kind, {}, tuple(args), number) for number, args in enumerate(arguments)]  # type: ignore[arg-type]


TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: gold
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_word": """
output_type: loglikelihood
doc_to_text: "{{query}}"
doc_to_target: "{{' ' + choices[0]}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "tiny_until": """
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def write_tasks(folder: Path) -> str:
    """A folder with one task of each kind, on the same five items → its path."""
    folder.mkdir()
    words = TEXT.decode().split()
    items = [
        {"query": " ".join(words[n : n + 4]), "choices": [words[n + 4], "zebra"], "gold": 0, "text": TEXT.decode()[n:]}
        for n in range(5)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'items.jsonl'}}}}}\ntest_split: test\n"
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}metadata: {{version: 1.0}}\n")
    return str(folder)


# ---- an arithmetic coder on integer frequencies (Witten, Neal & Cleary 1987) -------------------------------

_BITS, _TOTAL = 60, 1 << 24
_HALF, _QUARTER = 1 << (_BITS - 1), 1 << (_BITS - 2)


def _cumulative(logits: torch.Tensor) -> list[int]:
    """Of (classes,) logits: integers from 0 on, none of the classes impossible."""
    p = logits.double().softmax(-1)
    frequencies = 1 + (p * (_TOTAL - len(p))).long()
    return [0, *frequencies.cumsum(0).tolist()]


class _Interval:
    """The part of the code space that encoder and decoder have come to."""

    def __init__(self) -> None:
        self.low, self.high = 0, (1 << _BITS) - 1

    def narrow(self, cumulative: list[int], symbol: int) -> None:
        span, low = self.high - self.low + 1, self.low
        self.low = low + span * cumulative[symbol] // cumulative[-1]
        self.high = low + span * cumulative[symbol + 1] // cumulative[-1] - 1

    def doublings(self) -> list[int]:
        """Doubles the interval as often as it lies in one half (0, 1) or around the middle (2), and says which."""
        out = []
        while True:
            if self.high < _HALF:
                which, offset = 0, 0
            elif self.low >= _HALF:
                which, offset = 1, _HALF
            elif self.low >= _QUARTER and self.high < 3 * _QUARTER:
                which, offset = 2, _QUARTER
            else:
                return out
            out.append(which)
            self.low, self.high = 2 * (self.low - offset), 2 * (self.high - offset) + 1


class Encoder:
    """Writes symbols; `bits` is what came of it."""

    def __init__(self) -> None:
        self._interval, self._pending = _Interval(), 0
        self._out: list[int] = []

    def symbol(self, logits: torch.Tensor, true: int | None) -> int:
        assert true is not None
        self._interval.narrow(_cumulative(logits), true)
        for which in self._interval.doublings():
            if which == 2:
                self._pending += 1
            else:
                self._out += [which] + [1 - which] * self._pending
                self._pending = 0
        return true

    @property
    def bits(self) -> list[int]:
        """All that was written, ended so that the decoder cannot mistake it."""
        first = int(self._interval.low >= _QUARTER)
        return self._out + [first] + [1 - first] * (self._pending + 1)


class Decoder:
    """Reads back what an Encoder wrote, given the same logits in the same order."""

    def __init__(self, bits: list[int]) -> None:
        self._interval, self._bits = _Interval(), iter(bits)
        self._value = 0
        for _ in range(_BITS):
            self._value = 2 * self._value + next(self._bits, 0)

    def symbol(self, logits: torch.Tensor, true: int | None) -> int:
        cumulative = _cumulative(logits)
        span = self._interval.high - self._interval.low + 1
        target = ((self._value - self._interval.low + 1) * cumulative[-1] - 1) // span
        symbol = next(s for s in range(len(cumulative) - 1) if cumulative[s + 1] > target)
        self._interval.narrow(cumulative, symbol)
        for which in self._interval.doublings():
            offset = (0, _HALF, _QUARTER)[which]
            self._value = 2 * (self._value - offset) + next(self._bits, 0)
        return symbol
