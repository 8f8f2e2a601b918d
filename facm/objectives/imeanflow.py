"""Improved MeanFlow (Geng et al. 2025, arXiv 2512.02012): MeanFlow as the regression of a velocity.

    V = F - (r - t) sg(dF/dt),    L = |V - v|^2

The total derivative follows the network's own velocity, dx/dt = F(x_t, t, r = t), so that V depends on x_t alone and
not on the sample's v, as it does in MeanFlow. Time and signs as in meanflow.py. Source: the paper's text as summarised
by its code (Lyy-iiis/imeanflow, imf.py).

Left out: guidance scale and interval as inputs of the network, because the target's guidance here is that of all
methods (distill.w); a second head for dx/dt, the paper's other choice, because every backbone would need one.
"""

from dataclasses import dataclass

from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import Reduction, norm_l2, rms, squared_error
from facm.flow.path import expand
from facm.flow.time import TimeSampler, two_times
from facm.objectives import check_fields
from facm.runtime.ranges import Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class IMeanFlow(Objective):
    """The improved MeanFlow loss.

    Attributes:
        equal: share of samples with r = t, 0 to 1.
        reduction: sum | mean of the squared errors over a sample.
        norm_c: c of the adaptive weight 1 / (e + c)^q, above 0.
        norm_q: its exponent, 0 to 1.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    equal: Fraction = 0.5
    reduction: Reduction = "sum"
    norm_c: Positive = 0.01
    norm_q: Fraction = 1.0

    conditioning = "auxiliary"
    normals = 3
    samplers = ("consistency", "jumps", "euler", "heun")
    terms = ("imeanflow",)

    def __post_init__(self) -> None:
        check_fields(self)

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 3) -> t (B,) and r (B,), t <= r: two draws in order, r = t for a share."""
        t, r = two_times(n, time, self.equal)
        return {"t": t, "r": r}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return L = e / sg(e + c)^q with e = |V - v|^2, (B,).

        `point` has x_t (B, ...), t and r (B,) as `times` gave them, v like x_t, y (B,) or None.
        """
        t, r = point.t, point.times["r"]
        (v_theta,) = F_theta(Query(point.x_t, t, point.y, t, grad=False))
        ((F, dF_dt),) = F_theta(Query(point.x_t, t, point.y, r, dx=v_theta, dt=1.0))
        V = F - expand(r - t, F) * dF_dt.detach()
        point.watch("g", rms(V - point.v))
        point.watch("tangent", rms(dF_dt))
        return {"imeanflow": norm_l2(squared_error(V, point.v, self.reduction), self.norm_c, self.norm_q)}
