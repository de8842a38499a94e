"""A training beside other programs: threads sleep instead of spinning, and the results stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from abstractinator.training import shared_cores
from abstractinator.training.shared_cores import SharedCores, _seconds_waited

on_linux = pytest.mark.skipif(_seconds_waited() is None, reason="the system does not say how long threads wait")


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The seconds of waiting that are reported, and no pause between two looks."""
    seconds: list[float | None] = [0.0]
    monkeypatch.setattr(shared_cores, "_seconds_waited", lambda: seconds[0])
    monkeypatch.setattr(shared_cores, "_INTERVAL", 0.0)
    return seconds


def idle_threads() -> int:
    return sum(thread.name == "idle" for thread in threading.enumerate())


def ended() -> bool:
    deadline = time.monotonic() + 10
    while idle_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not idle_threads()


def gradients() -> list[Tensor]:
    """Of sums that threads share."""
    torch.manual_seed(0)
    norm, layer = torch.nn.LayerNorm(256), torch.nn.Linear(256, 256)
    layer(norm(torch.randn(4096, 256))).square().sum().backward()
    return [p.grad for part in (norm, layer) for p in part.parameters() if p.grad is not None]


@pytest.mark.usefixtures("two_threads")
def test_idle_threads_are_there_while_others_want_the_cores(
    waited: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    before = gradients()
    with SharedCores() as cores:
        cores.look()
        assert not cores.found and not idle_threads()
        waited[0] = 1e6
        cores.look()
        assert cores.found and idle_threads() == 1
        assert all(torch.equal(one, other) for one, other in zip(gradients(), before, strict=True))
        cores.look()
        assert not cores.found and ended()
        waited[0] = 2e6
        cores.look()
        assert cores.found
    assert not cores.found and ended()
    assert all(torch.equal(one, other) for one, other in zip(gradients(), before, strict=True))


@pytest.mark.parametrize(("threads", "cores", "pools"), [(2, 2, 1), (8, 16, 2), (16, 16, 1), (1, 2, 0), (4, 2, 0)])
def test_as_many_idle_threads_are_added_as_exceed_the_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, pools: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    end = shared_cores._add_idle_threads()
    assert idle_threads() == pools
    assert not pools or threads + pools * (threads - 1) > cores
    end.set()
    assert ended()


def test_where_the_system_does_not_say_nothing_is_done(waited: list[float | None]) -> None:
    waited[0] = None
    with SharedCores() as cores:
        cores.look()
        assert not cores.found


@on_linux
def test_threads_that_end_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda folder: [str(threading.get_native_id()), "999999999"])
    assert _seconds_waited() is not None


@on_linux
def test_waiting_for_a_core_is_seen() -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        begin, waited = time.monotonic(), _seconds_waited()
        while time.monotonic() < begin + 1:
            pass
        seconds, later = time.monotonic() - begin, _seconds_waited()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert waited is not None and later is not None
    assert later - waited > shared_cores._SHARED * seconds
