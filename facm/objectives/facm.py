"""Flow-Anchored Consistency Models (Peng et al. 2025, arXiv 2507.03738), Algorithm 1.

    L_FACM = L_FM + L_CM    (Eq. 8)

One network learns the flow's velocity v, the anchor, at c_FM, and the average velocity to the data, the shortcut, at
c_CM. Time as everywhere: t = 1 is data.

Paper: squared errors are sums; Algorithm 1 has no clamp, the text has; it is not said what carries a gradient.
Published code (ali-vilab/FACM, losses.py): means; g clamped to [-1, 1] before alpha; v, dF_dt, g, v_tar and the
denominator of eq. 18 carry none. Here: as the code, each an option.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import Cosine, Reduction, norm_l2, rms, squared_error, velocity_loss
from facm.flow.path import c_cm, c_fm, expand
from facm.flow.time import WEIGHTINGS, TimeSampler, weighting
from facm.objectives import check_fields
from facm.runtime.ranges import Conditioning, Fraction, NonNegative, OneOf, Positive


@dataclass(frozen=True, kw_only=True)
class FACM(Objective):
    """The FACM loss.

    Attributes:
        conditioning: expanded (t | 2 - t) or auxiliary ((t, 1) | (t, t)), Sec. 3.2.2.
        alpha: relaxation alpha(t) of eq. 12, a name of `facm.flow.time.WEIGHTINGS`.
        beta: weight beta(t) of eq. 14, the same way.
        p: exponent of the weighting 1 - t^p, above 0.
        anchor: weight of L_FM in eq. 8; 0: no anchor, and its pass is not made.
        clamp: g is clamped to [-clamp, clamp]; None: it is not.
        norm_c: c of eq. 18, above 0.
        norm_q: exponent of its denominator, 0 to 1.
        norm_sg_denominator: its denominator carries no gradient.
        reduction: mean | sum of the squared errors over a sample.
        cosine: auto | channel | sample | none, L_cos of eq. 10.
        cosine_eps: least norm in L_cos, above 0.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    conditioning: Conditioning = "expanded"
    alpha: Annotated[str, OneOf(WEIGHTINGS)] = "power"
    beta: Annotated[str, OneOf(WEIGHTINGS)] = "cos"
    p: Positive = 0.5
    anchor: NonNegative = 1.0
    clamp: Positive | None = 1.0
    norm_c: Positive = 1e-3
    norm_q: Fraction = 0.5
    norm_sg_denominator: bool = True
    reduction: Reduction = "mean"
    cosine: Cosine = "auto"
    cosine_eps: Positive = 1e-3

    normals = 1
    terms = ("fm", "cm")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.conditioning == "plain":
            raise ValueError(
                "params.yaml, distill.conditioning: 'plain' asks v and v_bar alike, FACM needs two formats"
            )

    @property
    def samplers(self) -> tuple[str, ...]:
        # Without the anchor no velocity is learned that an ODE sampler could follow.
        return ("consistency",) if self.anchor == 0 else ("consistency", "anchored", "euler", "heun", "dpmpp", "edm")

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 1) -> t (B,) (Algorithm 1, line 1)."""
        return {"t": time(n[:, 0])}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return L_FM and L_CM, each (B,) (Eq. 8, Algorithm 1).

        `point` has x_t (B, ...), t (B,), v like x_t, y (B,) or None.
        """
        if self.anchor == 0:
            return {"fm": torch.zeros_like(point.t)} | self.accelerator(F_theta, point)
        F_fm, (F_cm, dF_dt) = F_theta(self.fm_query(point), self.cm_query(point))  # lines 5 and 6, in one call
        return {"fm": self.anchor * self.fm(F_fm, point.v), "cm": self.shortcut(F_cm, dF_dt, point)}  # lines 7 to 9

    @property
    def parts(self) -> tuple[Callable[[FTheta, Point], dict[str, Tensor]], ...]:
        return (self,) if self.anchor == 0 else (self.anchored, self.accelerator)

    def anchored(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return L_FM alone, (B,)."""
        (F_fm,) = F_theta(self.fm_query(point))
        return {"fm": self.anchor * self.fm(F_fm, point.v)}

    def accelerator(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return L_CM alone, (B,)."""
        ((F_cm, dF_dt),) = F_theta(self.cm_query(point))
        return {"cm": self.shortcut(F_cm, dF_dt, point)}

    def fm_query(self, point: Point) -> Query:
        """F_FM = F(x_t, c_FM) (lines 2 and 5)."""
        fm = c_fm(point.t, self.conditioning)
        return Query(point.x_t, fm.t, point.y, fm.r)

    def cm_query(self, point: Point) -> Query:
        """F_CM = F(x_t, c_CM) and dF_dt, its derivative with tangents (v, 1) (Eq. 17, lines 2 and 6)."""
        cm = c_cm(point.t, self.conditioning)
        return Query(point.x_t, cm.t, point.y, cm.r, dx=point.v, dt=1.0)

    def shortcut(self, F_cm: Tensor, dF_dt: Tensor, point: Point) -> Tensor:
        """Return L_CM, (B,), and log its residual."""
        self.watch(point, F_cm, dF_dt)
        return self.cm(F_cm, dF_dt, point.v, point.t)

    def watch(self, point: Point, F_cm: Tensor, dF_dt: Tensor) -> None:
        """Log the root mean squares of g and of dF_dt, which grow where the anchor is lost (Sec. 3.1.2)."""
        g = self.residual(F_cm, dF_dt, point.v, point.t)
        point.watch("g", rms(g))
        point.watch("tangent", rms(dF_dt))

    def fm(self, F_fm: Tensor, v: Tensor) -> Tensor:
        """Return L_FM = |F_FM - v|^2 + L_cos(F_FM, v), (B,): the anchor (Eq. 10)."""
        return velocity_loss(F_fm, v, cosine=self.cosine, eps=self.cosine_eps, reduction=self.reduction)

    def cm(self, F_cm: Tensor, dF_dt: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Return L_CM = beta(t) L_norm(F_CM, v_tar), (B,): the accelerator (Eq. 14).

        Args:
            F_cm: the student at c_CM, (B, ...); the only argument that carries a gradient.
            dF_dt: its total derivative, like F_cm.
            v: target velocity, like F_cm.
            t: (B,).
        """
        beta = weighting(self.beta, self.p, "distill.beta")
        v_tar = self.target(F_cm, self.residual(F_cm, dF_dt, v, t), t)
        e = squared_error(F_cm, v_tar, self.reduction)
        return beta(t) * norm_l2(e, self.norm_c, self.norm_q, sg_denominator=self.norm_sg_denominator)

    def residual(self, F_cm: Tensor, dF_dt: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Return g = sg(F_CM) - (v + (1 - t) dF_dt), clamped, like F_cm; no gradient (Eq. 11, line 7)."""
        v_bar = v.detach() + (1 - expand(t, v)) * dF_dt.detach()
        g = F_cm.detach() - v_bar
        return g if self.clamp is None else g.clamp(-self.clamp, self.clamp)

    def target(self, F_cm: Tensor, g: Tensor, t: Tensor) -> Tensor:
        """Return v_tar = sg(F_CM) - alpha(t) g, like F_cm; no gradient (Eq. 12).

        Without a clamp this is line 8, (1 - alpha) sg(F_CM) + alpha v_bar (Eq. 13).
        """
        alpha = weighting(self.alpha, self.p, "distill.alpha")
        return F_cm.detach() - expand(alpha(t), g) * g
