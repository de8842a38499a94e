"""A tokenizer of a `tokenizers` file (tokenizer.json): byte-level byte pairs, such as those of GPT-2, Llama 3 and Qwen.

Such a file may do more than its byte pairs: normalise the text, add a space before it, find special tokens in it. All
of that loses or adds bytes, so only pre-tokenizer and merges are used, and whatever bytes go in come out again.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.tokenizer import Tokenizer
from abstractinator.messages import first_line

_PIECE = 1 << 20  # characters that are tokenized at once
_INVALID = re.compile("([\udc80-\udcff]+)")  # bytes that are not UTF-8, by `surrogateescape`
_SPACE = re.compile(r"\s(?=\S)")
_ADVICE = "use the tokenizer.json of a byte-level byte-pair tokenizer, such as GPT-2's, Llama 3's or Qwen's"


class FileTokenizer(Tokenizer):
    """source: the text of a tokenizer.json. Raises ValueError, which says what to do, where it cannot be used.

    Ids are those of the file. Bytes that are not UTF-8 become the tokens of single bytes.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        content = _content(source)
        vocabulary = _vocabulary(content)
        self.text_size = max(vocabulary.values()) + 1
        self.BOS, self.EOS, self.PAD = (self.text_size + i for i in range(3))
        self.vocab_size = self.text_size + 3
        self._library = _library(content)
        self._bytes = [b""] * self.text_size  # by id
        for token, number in vocabulary.items():
            self._bytes[number] = _bytes_of(token)
        self._lengths = np.array([len(each) for each in self._bytes] + [0] * 3)
        self._single = _single_bytes(self._bytes)

    def text_ids(self, text: bytes) -> np.ndarray:
        """Raises ValueError where the file's pre-tokenizer drops bytes."""
        parts = []
        for stretch in _INVALID.split(text.decode("utf-8", "surrogateescape")):
            if _INVALID.match(stretch):
                parts.append(self._single[np.frombuffer(stretch.encode("utf-8", "surrogateescape"), dtype=np.uint8)])
            else:
                parts += [self._ids_of(piece) for piece in _pieces(stretch)]
        ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
        if self._lengths[ids].sum() != len(text):
            raise ValueError(f"the tokenizer file does not keep all bytes of a text; {_ADVICE}")
        return ids

    def text_of(self, ids: np.ndarray) -> bytes:
        return b"".join([self._bytes[number] for number in ids.tolist()])

    def count_bytes(self, ids: Any) -> int:
        return int(self._lengths[np.asarray(ids)].sum())

    def _ids_of(self, text: str) -> np.ndarray:
        return np.array(self._library.encode(text, add_special_tokens=False).ids, dtype=np.uint32)


def tokenizer_of(source: str | None) -> Tokenizer:
    """The tokenizer of a file's text; without one, that of bytes. Raises ValueError."""
    return ByteTokenizer() if source is None else FileTokenizer(source)


def _content(source: str) -> dict[str, Any]:
    try:
        content = json.loads(source)
    except ValueError as error:
        raise ValueError(f"the tokenizer file is not JSON ({first_line(error)}); {_ADVICE}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"the tokenizer file is none of the library `tokenizers`; {_ADVICE}")
    return content


def _vocabulary(content: dict[str, Any]) -> dict[str, int]:
    """Token → id of a byte-level byte-pair model."""
    model = content["model"]
    vocabulary = model.get("vocab")
    byte_level = any(each.get("type") == "ByteLevel" for each in _steps(content.get("pre_tokenizer")))
    marked = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if "merges" not in model or not isinstance(vocabulary, dict) or not vocabulary or not byte_level or marked:
        raise ValueError(f"the tokenizer file is not of byte-level byte pairs, which keep every byte; {_ADVICE}")
    if not all(type(number) is int and 0 <= number < 1 << 24 for number in vocabulary.values()):
        raise ValueError(f"the tokenizer file has ids that are no numbers from 0 on and below 2**24; {_ADVICE}")
    return vocabulary


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """The pre-tokenizer, or those of a sequence."""
    if not isinstance(pre_tokenizer, dict):
        return []
    nested = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return [each for each in nested if isinstance(each, dict)] if isinstance(nested, list) else []


def _library(content: dict[str, Any]) -> Any:
    """The library's tokenizer, of pre-tokenizer and merges alone."""
    from tokenizers import Tokenizer as Library

    plain: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
    }
    plain |= {"pre_tokenizer": content["pre_tokenizer"], "post_processor": None, "decoder": None}
    for step in _steps(plain["pre_tokenizer"]):
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
    plain["model"] = content["model"] | {"dropout": None, "unk_token": None, "byte_fallback": False}
    try:
        return Library.from_str(json.dumps(plain))
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"the tokenizer file cannot be read ({first_line(error)}); {_ADVICE}") from error


def _alphabet() -> dict[str, int]:
    """The characters by which byte-level files write bytes: printable ones stand for themselves, the others follow
    from U+0100 on (Radford et al. 2019)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _alphabet()


def _bytes_of(token: str) -> bytes:
    """The bytes of a token; a special token, which the merges never make, may have other characters."""
    return bytes(_BYTE_OF[char] for char in token) if all(char in _BYTE_OF for char in token) else b""


def _single_bytes(tokens: list[bytes]) -> np.ndarray:
    """(256,) the ids of single bytes."""
    found = {token[0]: number for number, token in enumerate(tokens) if len(token) == 1}
    if missing := [byte for byte in range(256) if byte not in found]:
        raise ValueError(
            f"the tokenizer file lacks the token of byte {missing[0]} and {len(missing) - 1} others, so it cannot "
            f"write every text; {_ADVICE}"
        )
    return np.array([found[byte] for byte in range(256)], dtype=np.uint32)


def _pieces(text: str) -> list[str]:
    """The text in parts of about _PIECE characters, cut before a space where there is one, so that time and memory grow
    linearly with it."""
    pieces, start = [], 0
    while len(text) - start > _PIECE:
        space = _SPACE.search(text, start + _PIECE, start + 2 * _PIECE)
        end = space.start() if space else start + _PIECE
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]] if start < len(text) else pieces
