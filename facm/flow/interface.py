"""The interface between a loss and the training step: `Objective`, and what it is given.

An objective is called with `F_theta`, which evaluates the student at queries, and with a `Point`, which holds
everything else that a loss may use. What a later method needs fits into `times`, `tools` and `Query.of`, so that the
signature never grows and no finished result becomes stale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

from facm.flow.time import TimeSampler

Network = Callable[..., Tensor]
"""F(x (B, ...), t (B,), y (B,) or None, r (B,) or None) -> like x."""

Answers = tuple[Any, ...]
"""One entry per query: F, or (F, dF_dt) where the query has dx, or (F, tokens) where it asks for tokens."""

FTheta = Callable[..., Answers]
"""The student as an objective sees it: queries in, as many answers out, in order.

All queries of a step that need a gradient come in one call, so that the step can batch them.
"""


class Progress(NamedTuple):
    """How far a training is: `step` counts from 1 to `steps`. Schedules and phases depend on nothing else."""

    step: int
    steps: int


START = Progress(1, 1)


class Query(NamedTuple):
    """One evaluation of a network, F(x, t, y, r); with `dx` the answer is (F, dF_dt), without it F.

    Attributes:
        x: (B, C, H, W) or (B, D).
        t: time condition (B,): t of c_CM or c_FM.
        y: labels (B,) int64, or None.
        r: second time condition (B,), or None.
        dx: tangent of x, like x; None: no derivative.
        dt: tangent of t, (B,) or a number for all samples.
        dr: tangent of r, the same way; None: r is held constant.
        grad: False: the answer carries no graph. dF_dt never carries one.
        of: whose weights: student | ema (the average) | phase (a copy of the average, made when the objective's
            phase began) | target (weights that follow the student's with the objective's `target_decay`); all but the
            student's never with a graph.
        rows: which rows of the batch these are, (B,) bool, where they are not all; they keep their dropout masks.
        tokens: the answer is (F, projected tokens (B, N, features)), of a network that has a projector; without dx.
        key: of the dropout masks, (B,) int64; the training step sets it, None: no dropout.
    """

    x: Tensor
    t: Tensor
    y: Tensor | None
    r: Tensor | None = None
    dx: Tensor | None = None
    dt: Tensor | float | None = None
    dr: Tensor | float | None = None
    grad: bool = True
    of: str = "student"
    rows: Tensor | None = None
    tokens: bool = False
    key: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """Where a loss is asked, and what may be known there. No tensor here carries a gradient.

    Attributes:
        x0: noise (B, ...).
        x1: data (B, ...).
        x_t: (1 - t) x0 + t x1.
        y: labels (B,) int64 after label dropout, or None.
        times: what the objective's `times` made: `t` (B,) in [0, 1], and whatever else it draws.
        velocity: (x, t, y) -> v, the guided velocity anywhere (Eq. 9).
        progress: of the training.
        null: the label that stands for none; None without classes.
        tools: further functions by name, for objectives that say they need them (`tools`, names). The stage makes them,
            since objectives know tensors only. `lpips`: (a, b) like x_t -> their perceptual distance (B,), with a
            gradient to a alone.
        watch: (name, values (B,)) -> None; the step logs their mean.
    """

    x0: Tensor
    x1: Tensor
    x_t: Tensor
    y: Tensor | None
    times: Mapping[str, Tensor]
    velocity: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    progress: Progress = START
    null: int | None = None
    tools: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    watch: Callable[[str, Tensor], None] = lambda name, values: None

    @property
    def t(self) -> Tensor:
        """Time (B,)."""
        return self.times["t"]

    @cached_property
    def v(self) -> Tensor:
        """Target velocity at (x_t, t), like x_t; asked once, when it is first needed."""
        return self.velocity(self.x_t, self.t, self.y)


class Objective:
    """A training method: how its times come about, and its loss. Subclasses are frozen dataclasses of its constants.

    A subclass sets what differs from the defaults, as a class attribute (`normals = 2`), a field or a property. It
    draws nothing at random and knows tensors only.

    Attributes:
        conditioning: plain | expanded | auxiliary, the network's time conditions, see `facm.flow.path`.
        normals: standard normals per sample that `times` is given.
        terms: names of the losses that a call returns.
        group: consecutive rows of a batch that belong together; no process or micro-batch is given a part of them.
        ragged: whether the number of rows of its queries differs from step to step.
    """

    conditioning: str = "expanded"
    normals: int = 1
    terms: tuple[str, ...] = ("loss",)
    group: int = 1
    ragged: bool = False

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that fit its students; `euler` among them says that a student learns the velocity."""
        return ("consistency",)

    @property
    def other_weights(self) -> tuple[str, ...]:
        """Which weights its queries name in `of` beside the student's: ema, phase, target."""
        return ()

    @property
    def target_decay(self) -> float | None:
        """Decay per step of the weights that answer queries of "target", 0 to below 1; None: there are none."""
        return None

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of what it needs in `point.tools`; the stage makes them (stages/distill.py)."""
        return ()

    @property
    def module(self) -> nn.Module | None:
        """Trained weights of its own, beside the network's."""
        return None

    @property
    def parts(self) -> tuple[Callable[[FTheta, Point], dict[str, Tensor]], ...]:
        """Its terms as objectives of their own, whose sum it is: with `train.lean` each has its own backward pass."""
        return (self,)

    @property
    def learns_velocity(self) -> bool:
        """Whether its students answer with the velocity at c_FM, so that an ODE sampler can follow it."""
        return "euler" in self.samplers

    def phase(self, progress: Progress) -> int | None:
        """Number of the phase; where it changes, the averaged weights are copied for queries of "phase"."""
        return None

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, normals) -> t (B,) in [0, 1] and whatever else the loss needs, by name."""
        return {"t": time(n[:, 0])}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return the losses by term, one value per sample, (B,) each."""
        raise NotImplementedError(f"{type(self).__name__} has no loss: define __call__(F_theta, point)")
