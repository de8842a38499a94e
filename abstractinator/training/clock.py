"""Where a training is in its plan, also where the time is too short for all planned steps.

Learning rates and phases follow the planned steps, P of them. Without a time limit each step is one planned step. With
a limit each step counts for `stride` ≥ 1 planned steps. The stride is planned again while the training runs,
from the time that steps take then, so the training ends in time whatever else the machine has to do, and still goes
through its whole schedule. The list of strides repeats such a run exactly (`pace`).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from abstractinator.contract.model import Phase

Pace = list[tuple[int, float]]
"""(step, stride): from this step on each step counts for `stride` planned ones; ascending, the first at step 0."""

_FIRST_PLAN = 4  # steps before the first plan; the first steps are slower than the others
_RECENT = 15  # steps from which the time of a step is taken
_PLANS = 50  # about how often a training plans again
_TOLERANCE = 0.03  # a stride that changes by less stays as it is


@dataclass
class Clock:
    """planned: P. limit: seconds that the steps may take, None without a limit. pace: see Pace; given, it is followed.

    step: optimizer steps done. position: planned steps over, a whole number as long as every stride is 1. seconds: time
    in the steps.
    """

    planned: int
    limit: float | None = None
    pace: Pace = field(default_factory=list)
    step: int = 0
    position: float = 0
    seconds: float = 0.0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT), repr=False)
    _phase: str = field(default="", repr=False)
    _next_plan: float = field(default=0.0, repr=False)

    @property
    def done(self) -> float:
        """Share of the training that is over."""
        return self.position / self.planned

    @property
    def is_over(self) -> bool:
        """Whether no planned step is left."""
        return self.position >= self.planned

    @property
    def stride(self) -> float:
        """Planned steps that the next step counts for."""
        return next((stride for step, stride in reversed(self.pace) if step <= self.step), 1)

    @property
    def steps_left(self) -> float:
        """Steps that are left at the current stride, about."""
        return max(0.0, (self.planned - self.position) / self.stride)

    def phase(self, phases: Sequence[Phase]) -> Phase:
        """The phase of the next step."""
        return next((phase for phase in phases if self.done < phase.end), phases[-1])

    def tick(self, seconds: float, phases: Sequence[Phase]) -> None:
        """Notes that a step is over, and how long it took."""
        phase = self.phase(phases)
        if phase.name != self._phase:
            self._recent.clear()  # its steps take another time
            self._phase, self._next_plan = phase.name, 0.0
        self._recent.append(seconds)
        self.position += self.stride
        self.step += 1
        self.seconds += seconds
        if self.limit is not None and len(self._recent) >= _FIRST_PLAN and self.seconds >= self._next_plan:
            self._plan(self.limit, phase, phases)

    def _plan(self, limit: float, phase: Phase, phases: Sequence[Phase]) -> None:
        """Sets the stride at which what is left of the plan takes what is left of the time."""
        self._next_plan = self.seconds + limit / _PLANS
        left = limit - self.seconds
        needed = self._seconds_at_stride_one(phase, phases)
        stride = max(1.0, needed / left if left > 0 else self.planned - self.position)
        if abs(stride / self.stride - 1) > _TOLERANCE:
            self.pace.append((self.step, round(stride, 3)))

    def _seconds_at_stride_one(self, phase: Phase, phases: Sequence[Phase]) -> float:
        """Time of all planned steps that are left: of other phases as their relative costs say."""
        step = statistics.median(self._recent) / phase.cost
        begin, needed = self.position, 0.0
        for each in phases:
            end = max(begin, each.end * self.planned)
            needed += (end - begin) * step * each.cost
            begin = end
        return needed

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: plain values."""
        return {
            "step": self.step,
            "position": self.position,
            "seconds": self.seconds,
            "limit": self.limit,
            "pace": [list(entry) for entry in self.pace],
            "recent": list(self._recent),
            "phase": self._phase,
            "next_plan": self._next_plan,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a state. A pace that was given when this was made replaces the saved one from here on, and so
        does another limit: each step is one planned step again, until the next plan."""
        self.step, self.position, self.seconds = state["step"], state["position"], state["seconds"]
        self._recent.extend(state["recent"])
        self._phase, self._next_plan = state["phase"], state["next_plan"]
        if self.pace:
            return
        self.pace = [(int(step), float(stride)) for step, stride in state["pace"]]
        if self.limit != state["limit"]:
            self._next_plan = 0.0
            if self.stride != 1:
                self.pace = [*(entry for entry in self.pace if entry[0] < self.step), (self.step, 1.0)]
