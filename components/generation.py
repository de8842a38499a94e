"""Text from a prompt, in two ways.

    plan    the prompt is compressed, its top codes are extended until EOS or a bound, and all new codes are
            decoded at once: one step of the top transformer a code, none a byte
    exact   bytes are sampled one by one from the predict path: the model's own distribution of text

Letters: B prompts, R rows still going, Q codes a segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from components.hierarchical_autoencoder import HierarchicalAutoencoder
from components.incremental import IncrementalModel
from components.packing import Packing
from components.tokens import BYTES, Tokens, pack_bytes

Mode = Literal["plan", "exact"]


@dataclass(frozen=True)
class GenerationConfig:
    """mode: see the module. max_new_bytes: bound on each continuation.

    temperature: 0 takes the most probable choice each time. top_k: only the k most probable choices, 0 for
    all. top_p: only the most probable choices that together reach p (Holtzman et al. 2020). seed: of the
    sampling, None for another result each time.
    """

    mode: Mode = "plan"
    max_new_bytes: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {self.mode!r}")
        if self.max_new_bytes < 1:
            raise ValueError(f"max_new_bytes must be at least 1, not {self.max_new_bytes}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, not {self.top_p}")


class Sampler:
    """Draws from logits as a GenerationConfig says; one random stream for a whole generation."""

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self.config = config
        self.random = torch.Generator(device)
        if config.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(config.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """(R, classes) → (R,) choices."""
        if self.config.temperature == 0:
            return logits.argmax(-1)
        ordered, index = (logits.float() / self.config.temperature).sort(-1, descending=True)
        if self.config.top_k:
            ordered[:, self.config.top_k :] = -math.inf
        p = ordered.softmax(-1)
        p = p.masked_fill(p.cumsum(-1) - p >= self.config.top_p, 0.0)
        return index.gather(1, torch.multinomial(p, 1, generator=self.random))[:, 0]


@torch.no_grad()
def generate_bytes(model: HierarchicalAutoencoder, prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
    """Continuations of the prompts, each without its prompt, ended by EOS or the bound.

    Prompts may differ in length and are not truncated: attention windows bound the memory, not the text.
    Raises ValueError for no prompt or an empty one.
    """
    if not prompts:
        raise ValueError("no prompt was given")
    if not all(prompts):
        raise ValueError("the prompt is empty; give at least one byte to continue from")
    was_training = model.training
    model.eval()
    try:
        return _Generation(model, prompts, config).run()
    finally:
        model.train(was_training)


class _Generation:
    """One call of `generate_bytes`: the incremental state of B rows and what they have said so far."""

    def __init__(self, model: HierarchicalAutoencoder, prompts: list[bytes], config: GenerationConfig) -> None:
        self.model, self.config = model, config
        self.prompts = prompts
        self.state = IncrementalModel(model, len(prompts))
        self.sample = Sampler(config, self.state.device)
        self.hidden = self.state.prefill([torch.tensor([BYTES.bos, *prompt]) for prompt in prompts])
        self.written = [bytearray() for _ in prompts]
        self.ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.state.device)

    def run(self) -> list[bytes]:
        if self.config.mode == "exact":
            self._write_bytes(until_boundary=False)
        else:
            # The prompt's last segment is open: its end is found on the exact path, then codes take over.
            self._write_bytes(until_boundary=True)
            self._write_codes()
        return [bytes(text[: self.config.max_new_bytes]) for text in self.written]

    def _full(self) -> Tensor:
        lengths = [len(text) for text in self.written]
        return torch.tensor(lengths, device=self.ended.device) >= self.config.max_new_bytes

    def _write_bytes(self, *, until_boundary: bool) -> None:
        """Samples bytes for every row until EOS or the bound, or until all its open segments are complete."""
        rows = torch.arange(len(self.written), device=self.ended.device)
        while True:
            going = ~(self.ended | self._full())[rows]
            if until_boundary:
                going &= ~self.state.at_boundary(rows)
            rows, hidden = rows[going], self.hidden[going]
            if not len(rows):
                return
            byte = self.sample(self.model.byte_head.slot_logits(hidden, rows.new_zeros(len(rows), 0)))
            self.ended[rows] = byte == BYTES.codebook_size
            rows, byte = rows[~self.ended[rows]], byte[byte < BYTES.codebook_size]
            for row, value in zip(rows.tolist(), byte.tolist(), strict=True):
                self.written[row].append(value)
            if not len(rows):
                return
            self.hidden = self.state.advance(rows, byte)

    def _write_codes(self) -> None:
        """Extends the top codes of every row, then decodes all of them at once."""
        top = self.model.top
        going = ~(self.ended | self._full())
        rows = going.nonzero()[:, 0]
        context = self.state.levels[-1].context[rows]
        codes: list[list[Tensor]] = [[] for _ in self.written]
        for _ in range(math.ceil(self.config.max_new_bytes / self.model.target_bytes_per_code)):
            ids = self._sample_code(context)
            plain = ids[:, 0] < top.alphabet.codebook_size
            rows, ids = rows[plain], ids[plain]
            if not len(rows):
                break
            for row, code in zip(rows.tolist(), ids, strict=True):
                codes[row].append(code)
            context = self.state.advance_top(rows, ids)
        self._decode(codes)

    def _sample_code(self, context: Tensor) -> Tensor:
        """(R, D) → codes (R, Q), drawn slot by slot; K in slot 0 is the end of the text."""
        ids = torch.zeros(len(context), 0, dtype=torch.int64, device=context.device)
        for _ in range(self.model.top.alphabet.slots):
            known = ids.clamp(max=self.model.top.alphabet.codebook_size - 1)
            ids = torch.cat([ids, self.sample(self.model.top.head.slot_logits(context, known))[:, None]], dim=1)
        return ids

    def _decode(self, codes: list[list[Tensor]]) -> None:
        """Decodes the new codes of every row, behind the codes of the text so far, which are their context."""
        texts = [
            torch.tensor([BYTES.bos, *prompt, *new]) for prompt, new in zip(self.prompts, self.written, strict=True)
        ]
        rows = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=BYTES.pad).to(self.ended.device)
        known = self.model.compress(pack_bytes(rows))[-1].codes
        known_rows = known.ids.split(known.packing.lengths.tolist())
        ids = [torch.cat([row, *(code[None] for code in new)]) for row, new in zip(known_rows, codes, strict=True)]
        lengths = torch.tensor([len(row) for row in ids], device=rows.device)
        packing = Packing.from_lengths(lengths)
        decoded = self.model.decompress(Tokens(torch.cat(ids), packing, known.alphabet))
        is_new = packing.positions >= known.packing.lengths[packing.rows]
        values, kept = decoded.tokens.ids[:, 0].tolist(), is_new[decoded.code].tolist()
        for row, value, keep in zip(decoded.tokens.packing.rows.tolist(), values, kept, strict=True):
            if keep:
                self.written[row].append(value)
