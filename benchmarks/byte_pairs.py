"""Byte pairs: what a text takes without a learned model, as integers and by the frequency of its tokens.

A byte-pair encoding (Sennrich et al. 2016) over bytes restores every text, so it is the rival of every learned latent.
Merges are learned in the order of their use, so the encoding of n tokens is the beginning of a larger one's merges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abstractinator.contract.file_tokenizer import FileTokenizer

SIZES = (1_024, 4_096, 16_384, 65_536)


@dataclass(frozen=True)
class BytePairs:
    """tokens: ids of the encoding. bytes_per_token. raw_bits: log₂ tokens over that, a byte's share of an id.
    frequency_bits: −log₂ of the tokens' frequency in the training text, a byte."""

    tokens: int
    bytes_per_token: float
    raw_bits: float
    frequency_bits: float


def learn(texts: Sequence[bytes], tokens: int) -> str:
    """The text of a tokenizer.json of at most `tokens` byte pairs, learned from these texts; GPT-2's splitting."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=tokens, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator((text.decode("utf-8", "replace") for text in texts), trainer)
    return str(library.to_str())


def shortened(source: str, tokens: int) -> str:
    """The encoding of the first `tokens` tokens of a larger one."""
    content = json.loads(source)
    model = content["model"]
    kept = {token: number for token, number in model["vocab"].items() if number < tokens}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    content["model"] = model | {"vocab": kept, "merges": [pair for pair in merges if "".join(pair) in kept]}
    return json.dumps(content)


def measure(source: str, train: Sequence[bytes], held_out: Sequence[bytes]) -> BytePairs:
    """Of held-out texts; frequencies are those of the training texts, each token counted once more than it occurs."""
    tokenizer = FileTokenizer(source)
    counts = np.ones(tokenizer.text_size)
    for text in train:
        counts += np.bincount(tokenizer.text_ids(text), minlength=tokenizer.text_size)
    bits = -np.log2(counts / counts.sum())
    ids = [tokenizer.text_ids(text) for text in held_out]
    size, number = sum(map(len, held_out)), sum(map(len, ids))
    return BytePairs(
        tokenizer.text_size,
        size / number,
        math.log2(tokenizer.text_size) * number / size,
        float(sum(bits[each].sum() for each in ids)) / size,
    )


def table_of(train: Sequence[bytes], held_out: Sequence[bytes], sizes: Sequence[int] = SIZES) -> list[BytePairs]:
    """One row a size, from one training of the largest."""
    largest = learn(train, max(sizes))
    return [measure(shortened(largest, size), train, held_out) for size in sizes]
