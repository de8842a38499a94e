"""Settings that are made before torch is imported, and that leave what the user has set."""

from __future__ import annotations

import os

import pytest

from abstractinator import processor

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["4000", None, "128"]),
        ({"GOMP_SPINCOUNT": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"}, ["7", None, "9"]),
        ({"OMP_WAIT_POLICY": "active"}, [None, "active", "128"]),
    ],
    ids=str,
)
def test_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: list[str | None]
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    processor.limit_spinning()
    processor.limit_kernels()
    assert [os.environ.get(name) for name in NAMES] == expected
