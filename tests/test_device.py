"""Where and in which precision is computed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from abstractinator.device import has_bfloat16


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_that_is_emulated_does_not_count(monkeypatch: pytest.MonkeyPatch, in_hardware: bool) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return in_hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert has_bfloat16(torch.device("cuda")) == in_hardware


def test_denormals_are_flushed_in_every_thread() -> None:
    code = "import torch\nfrom abstractinator.device import prepare_processor\nprepare_processor()\n"
    code += "torch.set_num_threads(2)\nsmallest = torch.full((2**22,), torch.finfo(torch.float32).tiny)\n"
    code += "print(int((smallest * 0.5).count_nonzero()), torch.set_flush_denormal(True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    left, is_supported = done.stdout.split()
    if is_supported == "False":
        pytest.skip("this processor cannot flush denormal numbers")
    assert left == "0"
