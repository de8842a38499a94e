"""What most people would train: transformers' LlamaForCausalLM over a byte-pair encoding of the same text.

The encoding is of bytes (each is a letter of the vocabulary), so any row can be written in it, and nats of tokens are
nats of bytes. A row's first byte, which nobody predicts, stays a token of its own. Letters: B rows, N tokens a row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from abstractinator.atomic_file import atomic_write
from abstractinator.components.sampling import Sampler
from abstractinator.components.token_head import IGNORED
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.generation_config import GenerationConfig
from benchmarks.kinds.base import (
    Baseline,
    Setting,
    fitting_width,
    heads_for,
    parameters_on_meta,
    predicted_bytes,
)

_TEXT = 16 * 2**20  # bytes of training text that the encoding is made from
# GPT-2's way of cutting text into words, over bytes: all that are part of a longer character count as letters.
_WORDS = r" ?[A-Za-z\u0080-\u00ff]+| ?[0-9]+| ?[^A-Za-z0-9\u0080-\u00ff\s]+|[\t\n\f\r ]+(?![^\t\n\f\r ])|[\x00-\x7f]"


@dataclass(frozen=True)
class BpeLlamaConfig:
    """width, layers: of the Llama. tokens: byte pairs. encoding: the file of the byte-pair encoding (`byte_pairs`)."""

    kind: Literal["bpe-llama"] = "bpe-llama"
    width: int = 256
    layers: int = 4
    tokens: int = 4_096
    encoding: str = "byte_pairs.json"

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2 or self.layers < 1 or self.tokens < 256:
            raise ValueError("width must be even, layers at least 1 and tokens at least 256")


class BpeLlama(Baseline):
    """A Llama of `width`, about 64 times as wide as deep, with tied embeddings."""

    kind: ClassVar[str] = "bpe-llama"
    Config = BpeLlamaConfig
    remark: ClassVar[str] = "reads tokens; a row's last token may be cut by the end of the row"

    def __init__(self, config: BpeLlamaConfig) -> None:
        super().__init__(config)
        self.tokens = config.tokens
        self.model = _model(config)
        if not Path(config.encoding).is_file():
            raise ValueError(f"the byte-pair encoding {config.encoding} is missing")
        self.bpe = Tokenizer.from_file(config.encoding)

    @classmethod
    def sized(cls, setting: Setting) -> BpeLlamaConfig:
        tokens = _token_count(setting.parameters)
        layers = max(2, round((setting.parameters / (12 * 64**2)) ** (1 / 3)))

        def config(width: int) -> BpeLlamaConfig:
            return BpeLlamaConfig(width=width, layers=layers, tokens=tokens)

        width = fitting_width(lambda width: parameters_on_meta(lambda: _model(config(width))), setting.parameters)
        return replace(config(width), encoding=str(byte_pairs(setting, tokens)))

    def encode(self, rows: Tensor) -> list[list[int]]:
        """(B, N) byte ids → the tokens of each row. Bytes between two special tokens are encoded together."""
        return [self._encode_row(row) for row in rows.tolist()]

    def _encode_row(self, row: list[int]) -> list[int]:
        special = {ByteTokenizer.BOS: self.tokens, ByteTokenizer.EOS: self.tokens + 1}
        row = [token for token in row if token != ByteTokenizer.PAD]
        out = []
        for is_byte, run in groupby(enumerate(row), key=lambda item: (item[0] == 0, item[1] < ByteTokenizer.text_size)):
            values = [token for _, token in run]
            out += self._of_bytes(bytes(values)) if is_byte[1] else [special[token] for token in values]
        return out

    def _of_bytes(self, text: bytes) -> list[int]:
        ids: list[int] = self.bpe.encode(text.decode("latin-1")).ids
        return ids

    def nll(self, rows: Tensor) -> tuple[Tensor, int]:
        encoded = self.encode(rows)
        longest = max(2, *map(len, encoded))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in encoded], device=rows.device)
        lengths = torch.tensor([len(row) for row in encoded], device=rows.device)
        targets = ids[:, 1:]
        behind = torch.arange(1, longest, device=rows.device) >= lengths[:, None]
        targets = targets.masked_fill(behind | (targets == self.tokens), IGNORED)
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return nats, predicted_bytes(rows)

    def positions(self, rows: Tensor) -> int:
        return sum(max(0, len(row) - 1) for row in self.encode(rows))

    @torch.no_grad()
    def continuations(self, prompts: list[bytes], config: GenerationConfig) -> Iterator[list[bytes]]:
        """Of a batch all rows are read in each step, also those whose text has ended."""
        encoded = [[self.tokens, *self._of_bytes(prompt)] for prompt in prompts]
        longest = max(map(len, encoded))  # left padding, which a Llama's mask and positions leave without effect
        device, sample = self.device, Sampler(config, self.device)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in encoded], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
        positions = positions[:, -1:]
        # A small text has fewer pairs than were asked for.
        strings = [self.bpe.id_to_token(token).encode("latin-1") for token in range(self.bpe.get_vocab_size())]
        while True:
            token = sample(out.logits[:, -1, : len(strings)].float())
            yield [strings[index] for index in token.tolist()]
            mask, positions = F.pad(mask, (0, 1), value=1), positions + 1
            out = self.model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=out.past_key_values,
                use_cache=True,
            )


def _token_count(parameters: int) -> int:
    """How many byte pairs suit a model of this size: 4,096 for four million parameters (trials: notes.md)."""
    return 2 ** min(15, max(9, round(math.log2(parameters / 1_000))))


def _model(config: BpeLlamaConfig) -> LlamaForCausalLM:
    heads = heads_for(config.width)
    llama = LlamaConfig(
        vocab_size=config.tokens + 2,  # BOS and EOS
        hidden_size=config.width,
        intermediate_size=round(config.width * 8 / 3 / 8) * 8,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2**17,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(llama)


def byte_pairs(setting: Setting, tokens: int) -> Path:
    """The file of the encoding of `tokens` byte pairs, trained on the first 16 MB of training documents."""
    made_from = [tokens, setting.corpus.fingerprint, setting.seed, _WORDS, _TEXT, version("tokenizers")]
    path = setting.folder / f"byte_pairs_{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]}.json"
    if path.exists():
        return path
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, initial_alphabet=[chr(byte) for byte in range(256)], show_progress=False
    )
    bpe.train_from_iterator(_texts(setting), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        bpe.save(str(temporary))
    return path


def _texts(setting: Setting) -> Iterator[str]:
    """The first training documents, a letter for each byte."""
    left = _TEXT
    for document in setting.corpus.train_documents(0, setting.seed):
        yield document[:left].decode("latin-1")
        left -= len(document)
        if left <= 0:
            return
