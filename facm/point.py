"""What an objective is given and what it may ask: the interface between a loss and the training step.

An objective is called with `F_theta`, which answers queries with the student, and with a `Point`, which holds
everything else that a loss may use. A new method needs a new field here at most, never a new signature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Network = Callable[..., Tensor]
"""F(x (B, ...), t (B,), y (B,) or None, r (B,) or None) -> like x."""

Answers = tuple[Any, ...]
"""One entry per query: F, or (F, dF_dt) where the query has dx."""


@dataclass(frozen=True, eq=False)
class Query:
    """One evaluation of the student, F(x, t, y, r); with `dx` the answer is (F, dF_dt), without it F.

    Attributes:
        x: (B, C, H, W) or (B, D).
        t: time condition (B,): t of c_CM or c_FM.
        y: labels (B,) int64, or None.
        r: second time condition (B,), or None.
        dx: tangent of x, like x; None: no derivative is asked.
        dt: tangent of the time condition; a number stands for all samples.
        dr: tangent of r, the same way; None: r does not move.
        grad: False: the answer carries no graph. dF_dt never carries one.
    """

    x: Tensor
    t: Tensor
    y: Tensor | None
    r: Tensor | None = None
    dx: Tensor | None = None
    dt: Tensor | float | None = None
    dr: Tensor | float | None = None
    grad: bool = True


@dataclass(frozen=True, eq=False)
class Point:
    """Where a loss is asked, and what may be known there. No tensor here carries a gradient.

    Attributes:
        x0: noise (B, ...).
        x1: data (B, ...).
        t: (B,) in [0, 1].
        x_t: (1 - t) x0 + t x1.
        v: target velocity at (x_t, t), guided (Eq. 9).
        y: labels (B,) int64 after label dropout, or None.
        velocity: (x, t, y) -> v, the same velocity anywhere; counted.
        r: second time (B,) of objectives that draw two, else None.
        F_ema: the averaged network, of objectives that use one, else None.
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    x_t: Tensor
    v: Tensor
    y: Tensor | None
    velocity: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    r: Tensor | None = None
    F_ema: Network | None = None


FTheta = Callable[..., Answers]
"""The student as an objective sees it: queries in, as many answers out, in order."""
