"""Where the velocity of a training step comes from: the data, a teacher, or the student itself (Eq. 1 and 9).

A source is called once per step with what only that step knows, and answers with the velocity field of the batch.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from facm.flow.guidance import Guidance
from facm.flow.interface import Network, Query
from facm.training.passes import EAGER, Plan, prepare

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x (B, ...), t (B,), y (B,) or None) -> v like x, without a graph."""


class Source(Protocol):
    """A source of velocities."""

    def __call__(self, u: Tensor, network: Network, averaged: Network, /) -> Velocity:
        """Return the velocity field of one batch.

        Args:
            u: conditional velocity x1 - x0 of the batch (B, ...).
            network: the online network.
            averaged: the same with averaged weights.
        """


def data() -> Source:
    """Plain flow matching: v = x1 - x0 (Eq. 1)."""
    return lambda u, network, averaged: lambda x, t, y: u


def teacher(network: nn.Module, guidance: Guidance, plan: Plan = EAGER) -> Source:
    """Distillation: the guided velocity of a frozen network in eval mode (Eq. 9), computed as planned."""
    passes = prepare(network.eval().requires_grad_(False), plan, trained=False)

    @torch.no_grad()
    def frozen(x: Tensor, t: Tensor, y: Tensor | None, r: Tensor | None = None) -> Tensor:
        (F,) = passes([Query(x, t, y, r)])
        return F

    return lambda u, online, averaged: lambda x, t, y: guidance.distilled(frozen, x, t, y)


def scratch(guidance: Guidance, source: str = "online") -> Source:
    """From scratch: x1 - x0, guided by the network that is being trained (Eq. 9).

    Args:
        guidance: its constants.
        source: online | ema, which network gives v_cond and v_uncond.
    """

    def velocity(u: Tensor, online: Network, averaged: Network) -> Velocity:
        network = averaged if source == "ema" else online
        return lambda x, t, y: guidance.scratch(network, x, t, y, u=u)

    return velocity
