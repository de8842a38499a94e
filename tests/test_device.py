"""Where and in which precision is computed."""

from __future__ import annotations

import pytest
import torch

from abstractinator.device import has_bfloat16


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_that_is_emulated_does_not_count(monkeypatch: pytest.MonkeyPatch, in_hardware: bool) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return in_hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert has_bfloat16(torch.device("cuda")) == in_hardware
