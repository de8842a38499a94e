"""What most people would train: transformers' LlamaForCausalLM over a byte-pair encoding of the same text.

The encoding is of bytes (each is a letter of the vocabulary), so any row can be written in it, and nats of tokens are
nats of bytes. A row's first byte, which nobody predicts, stays a token of its own. Letters: B rows, N tokens a row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from itertools import groupby

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from abstractinator.atomic_file import atomic_write
from abstractinator.components.token_head import IGNORED
from abstractinator.contract.byte_tokenizer import ByteTokenizer
from benchmarks.contenders.base import (
    Contender,
    Setting,
    fitting_width,
    heads_for,
    parameters_on_meta,
    predicted_bytes,
)

_TEXT = 16 * 2**20  # bytes of training text that the encoding is made from
# GPT-2's way of cutting text into words, over bytes: all that are part of a longer character count as letters.
_WORDS = r" ?[A-Za-z\u0080-\u00ff]+| ?[0-9]+| ?[^A-Za-z0-9\u0080-\u00ff\s]+|[\t\n\f\r ]+(?![^\t\n\f\r ])|[\x00-\x7f]"


class BpeLlama(Contender):
    """A Llama of `width`, about 64 times as wide as deep, with tied embeddings."""

    remark = "reads tokens; a row's last token may be cut by the end of the row"

    def __init__(self, width: int, setting: Setting) -> None:
        super().__init__()
        self.tokens = _vocabulary(setting.parameters)
        self.model = _model(width, self.tokens, setting.parameters)
        self.bpe = byte_pairs(setting, self.tokens)

    @classmethod
    def fit(cls, setting: Setting) -> int:
        tokens = _vocabulary(setting.parameters)
        return fitting_width(
            lambda width: parameters_on_meta(lambda: _model(width, tokens, setting.parameters)), setting.parameters
        )

    def encode(self, rows: Tensor) -> list[list[int]]:
        """(B, N) byte ids → the tokens of each row. Bytes between two special tokens are encoded together."""
        return [self._encode_row(row) for row in rows.tolist()]

    def _encode_row(self, row: list[int]) -> list[int]:
        special = {ByteTokenizer.BOS: self.tokens, ByteTokenizer.EOS: self.tokens + 1}
        row = [token for token in row if token != ByteTokenizer.PAD]
        out = []
        for is_byte, run in groupby(enumerate(row), key=lambda item: (item[0] == 0, item[1] < ByteTokenizer.BYTES)):
            values = [token for _, token in run]
            out += self._of_bytes(bytes(values)) if is_byte[1] else [special[token] for token in values]
        return out

    def _of_bytes(self, text: bytes) -> list[int]:
        ids: list[int] = self.bpe.encode(text.decode("latin-1")).ids
        return ids

    def nats(self, rows: Tensor) -> tuple[Tensor, int]:
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
    def stream(self, prompts: list[bytes], new_bytes: int, mode: str, seed: int) -> Iterator[int]:
        encoded = [[self.tokens, *self._of_bytes(prompt)] for prompt in prompts]
        longest = max(map(len, encoded))  # left padding, which a Llama's mask and positions leave without effect
        device = self.model.device
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in encoded], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
        return self._sample(out, mask, positions[:, -1:], new_bytes)

    @torch.no_grad()
    def _sample(self, out: CausalLMOutputWithPast, mask: Tensor, positions: Tensor, new_bytes: int) -> Iterator[int]:
        # A small text has fewer pairs than were asked for.
        lengths = torch.tensor([len(self.bpe.id_to_token(token)) for token in range(self.bpe.get_vocab_size())])
        made = torch.zeros(len(mask), dtype=torch.int64)
        while len(made):
            token = out.logits[:, -1, : len(lengths)].float().softmax(-1).multinomial(1)
            before = int(made.clamp(max=new_bytes).sum())
            made += lengths[token[:, 0].cpu()]
            yield int(made.clamp(max=new_bytes).sum()) - before  # what a row's last token makes too much is not counted
            going = (made < new_bytes).nonzero()[:, 0]
            if len(going) < len(made):
                made, going = made[going], going.to(mask.device)
                token, mask, positions = token[going], mask[going], positions[going]
                out.past_key_values.batch_select_indices(going)
            mask, positions = F.pad(mask, (0, 1), value=1), positions + 1
            if len(made):
                out = self.model(
                    input_ids=token,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )


def _vocabulary(parameters: int) -> int:
    """How many byte pairs suit a model of this size: 4,096 for four million parameters (trials: notes.md)."""
    return 2 ** min(15, max(9, round(math.log2(parameters / 1_000))))


def _model(width: int, tokens: int, parameters: int) -> LlamaForCausalLM:
    layers = max(2, round((parameters / (12 * 64**2)) ** (1 / 3)))
    heads = heads_for(width)
    config = LlamaConfig(
        vocab_size=tokens + 2,  # BOS and EOS
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 8) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2**17,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def byte_pairs(setting: Setting, tokens: int) -> Tokenizer:
    """The encoding of `tokens` byte pairs, trained on the first 16 MB of training documents and kept in the folder."""
    made_from = [tokens, setting.corpus.fingerprint, setting.seed, _WORDS, _TEXT, version("tokenizers")]
    path = setting.folder / f"byte_pairs_{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]}.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, initial_alphabet=[chr(byte) for byte in range(256)], show_progress=False
    )
    bpe.train_from_iterator(_texts(setting), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        bpe.save(str(temporary))
    return bpe


def _texts(setting: Setting) -> Iterator[str]:
    """The first training documents, a letter for each byte."""
    left = _TEXT
    for document in setting.corpus.train_documents(0, setting.seed):
        yield document[:left].decode("latin-1")
        left -= len(document)
        if left <= 0:
            return
