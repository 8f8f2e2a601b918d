"""The anchored sampler: a FACM student follows its flow for a while, then jumps.

The student knows two things, the velocity at c_FM (the anchor) and the average velocity to the data at c_CM (the
shortcut). Eq. 19 uses the second alone and re-noises between jumps; here the first evaluations follow the flow, where
it bends most, and one jump ends it, without fresh noise. Not in the paper, whose Sec. 5 leaves few-step sampling open.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from facm.flow.path import c_cm, c_fm, endpoint
from facm.runtime.ranges import Conditioning, Count, Fraction, check_fields


@dataclass(frozen=True)
class Schedule:
    """What is done with an NFE; see `Anchored`."""

    flow: tuple[float, ...] = (0.0,)
    order: int = 1
    jumps: tuple[float, ...] = ()
    renoise: float = 1.0

    @property
    def nfe(self) -> int:
        """Network evaluations."""
        return self.order * (len(self.flow) - 1) + 1 + len(self.jumps)


def even(end: float, intervals: int) -> tuple[float, ...]:
    """Times from 0 to `end`."""
    return tuple(end * i / intervals for i in range(intervals + 1))


def recommended(nfe: int) -> Schedule:
    """The schedule that did best on digits (LOG.md), nfe from 1.

    From 3: midpoint steps, the more the farther, then a jump; where nfe is even also a second jump, from half way to
    the data, with half of the noise fresh. Below, one velocity step is not worth its evaluation: eq. 19.
    """
    if nfe < 3:
        return Schedule(jumps=(0.7,) * (nfe - 1))
    intervals = (nfe - 1) // 2
    end = {1: 0.6, 2: 0.7, 3: 0.8, 4: 0.85}.get(intervals, 0.9)
    again = ((1 + end) / 2,) if nfe % 2 == 0 else ()
    return Schedule(flow=even(end, intervals), order=2, jumps=again, renoise=0.5 if again else 1.0)


SCHEDULES = {nfe: recommended(nfe) for nfe in range(1, 17)}


@dataclass(frozen=True)
class Anchored:
    """Velocity steps from 0 to flow[-1], a jump to the data, then, if any, further jumps from re-noised points.

    Attributes:
        nfe: evaluations; names the recommended schedule, SCHEDULES[nfe], for what is not given.
        flow: times of the velocity steps, increasing from 0; (0,) makes none.
        order: 1: Euler's rule, an evaluation per interval | 2: the midpoint rule, two.
        jumps: times in (0, 1), increasing, to which it goes back after a jump to jump again.
        renoise: share c in [0, 1] of fresh noise there: (1 - s) (sqrt(1 - c^2) z + c noise), z being the noise that the
            last jump implies; 1 is eq. 19, 0 draws none.
        conditioning: of the network, expanded or auxiliary.

    Raises:
        ValueError: a value that breaks its rule, or a schedule that takes another number of evaluations.
    """

    nfe: Count = 3
    flow: tuple[float, ...] | None = None
    order: int | None = None
    jumps: tuple[float, ...] | None = None
    renoise: Fraction | None = None
    conditioning: Conditioning = "expanded"

    length: ClassVar[str] = "nfe"

    def __post_init__(self) -> None:
        check_fields(self, lambda field: f"sample (anchored), {field}")
        where = "params.yaml, sample (anchored)"
        if self.conditioning == "plain":
            raise ValueError(f"{where}: a network of conditioning 'plain' knows no anchor: set sampler consistency")
        given = {name: getattr(self, name) for name in ("flow", "order", "jumps", "renoise")}
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
        if not given and self.nfe not in SCHEDULES:
            raise ValueError(f"{where}: nfe {self.nfe} has no schedule, known: {min(SCHEDULES)} to {max(SCHEDULES)}")
        schedule = Schedule(**given) if given else SCHEDULES[self.nfe]
        object.__setattr__(self, "schedule", schedule)
        _check(schedule, where)
        if schedule.nfe != self.nfe:
            raise ValueError(f"{where}: this schedule takes {schedule.nfe} evaluations, nfe is {self.nfe}")

    @staticmethod
    def length_for(nfe: int) -> int:
        """The NFE itself."""
        return nfe

    @property
    def draws(self) -> int:
        """Noises per picture: x0, and one for each further jump with fresh noise."""
        schedule: Schedule = self.schedule  # type: ignore[attr-defined]
        return 1 + (len(schedule.jumps) if schedule.renoise > 0 else 0)

    @torch.no_grad()
    def __call__(
        self, F: Callable[..., Tensor], noise: Tensor, y: Tensor | None, null: Any = None
    ) -> tuple[Tensor, int]:
        """Draw pictures.

        Args:
            F: the student, asked in float32.
            noise: (draws, B, ...) float64.
            y: (B,) int64 labels or None.
            null: has no part in it; guidance is in the student.

        Returns:
            x1 (B, ...) float64 and the NFE.
        """
        schedule: Schedule = self.schedule  # type: ignore[attr-defined]
        x, fresh = noise[0], schedule.renoise
        for t, t_next in pairwise(schedule.flow):
            v = self._ask(F, x, t, y, c_fm)
            if schedule.order == 2:
                v = self._ask(F, x + (t_next - t) / 2 * v, (t + t_next) / 2, y, c_fm)
            x = x + (t_next - t) * v
        t = schedule.flow[-1]
        x1 = self._jump(F, x, t, y)
        for i, s in enumerate(schedule.jumps):
            z = (x - t * x1) / (1 - t)
            if fresh > 0:
                z = (1 - fresh**2) ** 0.5 * z + fresh * noise[1 + i]
            x, t = s * x1 + (1 - s) * z, s
            x1 = self._jump(F, x, t, y)
        return x1, schedule.nfe

    def _jump(self, F: Callable[..., Tensor], x: Tensor, t: float, y: Tensor | None) -> Tensor:
        times = torch.full(x.shape[:1], t, dtype=x.dtype, device=x.device)
        return endpoint(x, times, self._ask(F, x, t, y, c_cm))

    def _ask(self, F: Callable[..., Tensor], x: Tensor, t: float, y: Tensor | None, condition: Any) -> Tensor:
        c = condition(torch.full(x.shape[:1], t, dtype=torch.float32, device=x.device), self.conditioning)
        return F(x.float(), c.t, y, c.r).to(x.dtype)


def _check(schedule: Schedule, where: str) -> None:
    flow, jumps = schedule.flow, schedule.jumps
    if not flow or flow[0] != 0 or not flow[-1] < 1 or any(not a < b for a, b in pairwise(flow)):
        raise ValueError(f"{where}: flow {list(flow)} must start at 0 (noise), increase and stay below 1 (data)")
    if schedule.order not in (1, 2):
        raise ValueError(f"{where}: order {schedule.order!r} must be 1 (Euler) or 2 (midpoint)")
    if any(not 0 < s < 1 for s in jumps) or any(not a < b for a, b in pairwise(jumps)):
        raise ValueError(f"{where}: jumps {list(jumps)} must increase within (0, 1)")
