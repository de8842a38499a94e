"""ByteTokenizer: any bytes and any str survive."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.tokenizer import text_to_bytes
from abstractinator.data import DataConfig

TOKENIZER = ByteTokenizer()


@given(st.binary(), st.booleans(), st.booleans())
def test_any_bytes_round_trip(data: bytes, bos: bool, eos: bool) -> None:
    ids = TOKENIZER.encode(data, bos=bos, eos=eos)
    assert ids.shape == (len(data) + bos + eos,)
    assert TOKENIZER.decode(ids) == data
    assert TOKENIZER.decode(ids.tolist()) == data


@given(st.text(st.characters(exclude_categories=[])))
def test_any_str_has_bytes(text: str) -> None:
    data = text_to_bytes(text)
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert data == text.encode()
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == data


@given(st.binary())
def test_undecodable_bytes_come_back_from_a_str(data: bytes) -> None:
    assert text_to_bytes(data.decode("utf-8", "surrogateescape")) == data


def test_half_of_a_surrogate_pair_keeps_its_three_bytes() -> None:
    assert text_to_bytes("a\ud800b") == b"a\xed\xa0\x80b"


def test_specials_are_dropped() -> None:
    assert TOKENIZER.decode([256, 104, 105, 257, 258]) == b"hi"
    assert TOKENIZER.encode(b"", bos=True, eos=True).tolist() == [256, 257]


@pytest.mark.parametrize("ids", [[259], [-1], np.zeros((2, 2), dtype=np.int64), [0.5]])
def test_bad_ids_are_refused(ids: object) -> None:
    with pytest.raises(ValueError):
        TOKENIZER.decode(ids)  # type: ignore[arg-type]


def test_the_package_imports_lightly() -> None:
    code = (
        "import sys, abstractinator.data.data_config, abstractinator.data as d; d.DataConfig();"
        "print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "a", "dataset_name": "b"},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"validation_bytes": 0},
        {"shuffle_buffer": 0},
    ],
)
def test_bad_config_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DataConfig(**settings)
