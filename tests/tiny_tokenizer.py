"""A small tokenizer file: byte-level byte pairs of a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ["the cat sat on the mat, and the dog sat on the cat", "Dokument again, and again", "grün – 猫 🎉"]


def tokenizer_source(size: int = 300, **changes: Any) -> str:
    """The text of a tokenizer.json; changes: entries of it that are replaced."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    library.train_from_iterator(WORDS * 4, trainer)
    return json.dumps(json.loads(library.to_str()) | changes)


def write_tokenizer(path: Path, size: int = 300) -> str:
    path.write_text(tokenizer_source(size), encoding="utf-8")
    return str(path)
