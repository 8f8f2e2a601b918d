"""The target velocity v of a training step: from the data, a teacher, or the network itself (Eq. 1 and 9)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from facm.flow.guidance import Guidance
from facm.flow.interface import Network, Query
from facm.training.passes import EAGER, Passes, Plan, prepare


class TargetVelocity(Protocol):
    """A velocity field (x, t, y) -> v, given what only the training step knows."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, *, u: Tensor, online: Network, ema: Network) -> Tensor:
        """Return v like x (B, ...), without a graph.

        Args:
            x: (B, ...).
            t: (B,) in [0, 1].
            y: (B,) int64, or None.
            u: conditional velocity x1 - x0 of the batch, like x.
            online: the network that is trained.
            ema: the same with averaged weights.
        """


@dataclass(frozen=True)
class Data:
    """Plain flow matching: v = x1 - x0 (Eq. 1)."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, *, u: Tensor, online: Network, ema: Network) -> Tensor:
        """See `TargetVelocity`."""
        return u


@dataclass(frozen=True)
class Teacher:
    """Distillation: the guided velocity of a frozen network (Eq. 9); made by `teacher`."""

    passes: Passes
    guidance: Guidance

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, *, u: Tensor, online: Network, ema: Network) -> Tensor:
        """See `TargetVelocity`."""
        return self.guidance.distilled(self.frozen, x, t, y)

    @torch.no_grad()
    def frozen(self, x: Tensor, t: Tensor, y: Tensor | None, r: Tensor | None = None) -> Tensor:
        """The teacher, like x."""
        (F,) = self.passes([Query(x, t, y, r)])
        return F


def teacher(network: nn.Module, guidance: Guidance, plan: Plan = EAGER) -> Teacher:
    """Freeze a network, in eval mode, and prepare its passes as planned."""
    return Teacher(prepare(network.eval().requires_grad_(False), plan, trained=False), guidance)


@dataclass(frozen=True)
class Scratch:
    """From scratch: x1 - x0, guided by the network that is being trained (Eq. 9).

    Attributes:
        source: online | ema, which weights give v_cond and v_uncond.
    """

    guidance: Guidance
    source: str = "online"

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, *, u: Tensor, online: Network, ema: Network) -> Tensor:
        """See `TargetVelocity`."""
        return self.guidance.scratch(ema if self.source == "ema" else online, x, t, y, u=u)
