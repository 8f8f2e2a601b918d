"""MeanFlow (Geng et al. 2025, arXiv 2505.13447): the average velocity between any two times.

    F(x_t, t, r) = v + (r - t) dF/dt    (its Eq. 6, the MeanFlow identity)

dF/dt is the total derivative along the flow, dx/dt = v, with r held; then x_r = x_t + (r - t) F. Its time is 1 - t, its
r <= t is our r >= t, its velocity is -v. r = t is the instantaneous velocity, r = 1 the shortcut to the data.

Paper and its code: squared errors are sums over a sample; a share of samples has r = t (75 % on ImageNet, from
scratch). FACM's reproduction (ali-vilab/FACM, losses.py): means, and no r = t when distilling. Here: `reduction`,
`equal`. Both embed r or r - t beside t; here it is the network's r embedding, zero at the start of a distillation.
The paper guides its target from scratch by itself: distill.scratch_form `mixed`.
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
class MeanFlow(Objective):
    """The MeanFlow loss.

    Attributes:
        equal: share of samples with r = t, 0 to 1.
        reduction: sum | mean of the squared errors over a sample.
        norm_c: c of the adaptive weight 1 / (e + c)^q, above 0.
        norm_q: its exponent, 0 to 1.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    equal: Fraction = 0.0
    reduction: Reduction = "sum"
    norm_c: Positive = 1e-3
    norm_q: Fraction = 1.0

    conditioning = "auxiliary"
    normals = 3
    samplers = ("consistency", "jumps", "euler", "heun")
    terms = ("meanflow",)

    def __post_init__(self) -> None:
        check_fields(self)

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 3) -> t (B,) and r (B,), t <= r: two draws in order, r = t for a share."""
        t, r = two_times(n, time, self.equal)
        return {"t": t, "r": r}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return L = e / sg(e + c)^q with e = |F - sg(v + (r - t) dF/dt)|^2, (B,) (its Eq. 9, 22).

        `point` has x_t (B, ...), t and r (B,) as `times` gave them, v like x_t, y (B,) or None.
        """
        r, v = point.times["r"], point.v
        ((F, dF_dt),) = F_theta(Query(point.x_t, point.t, point.y, r, dx=v, dt=1.0))
        u_tar = v + expand(r - point.t, v) * dF_dt
        point.watch("g", rms(F - u_tar))
        point.watch("tangent", rms(dF_dt))
        e = squared_error(F, u_tar.detach(), self.reduction)
        return {"meanflow": norm_l2(e, self.norm_c, self.norm_q)}
