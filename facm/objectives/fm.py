"""Flow matching, plain or with mixed conditioning (arXiv 2507.03738, Eq. 1, 10 and App. A.3a).

The teacher's objective, and, as a student's, the control that learns no shortcut. A share of the samples is asked in
the FM format, the others in the CM format, all for the same velocity v; the network then starts a distillation with the
right velocity at both.

Paper: "for 50% of samples". Published code (ldit/transport.py): the second half of each process's batch. Here: drawn
for each sample, because halves would tie the format to the order of the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import Cosine, velocity_loss
from facm.flow.path import Condition, c_cm, c_fm
from facm.flow.time import TimeSampler
from facm.objectives import check_fields
from facm.runtime.ranges import Conditioning, Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class FM(Objective):
    """The flow-matching loss.

    Attributes:
        conditioning: plain (t), expanded (t | 2 - t) or auxiliary ((t, 1) | (t, t)).
        fraction: share of samples asked in the FM format, 0 to 1; of no effect with plain conditioning.
        cosine: auto | channel | sample | none, L_cos of eq. 10; none leaves eq. 1.
        cosine_eps: least norm in L_cos, above 0.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    conditioning: Conditioning = "expanded"
    fraction: Fraction = 0.5
    cosine: Cosine = "auto"
    cosine_eps: Positive = 1e-3

    normals = 2
    samplers = ("euler", "heun", "dpmpp", "edm")
    terms = ("fm",)

    def __post_init__(self) -> None:
        check_fields(self)

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 2) -> t (B,), and in_fm (B,) bool: asked in the FM format.

        The second normal decides: a sample is asked in the FM format where it is below Phi^-1(fraction).
        """
        t = time(n[:, 0])
        bound = torch.special.ndtri(torch.tensor(self.fraction, dtype=torch.float64)).item()  # -inf at 0, inf at 1
        return {"t": t, "in_fm": n[:, 1] < bound}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return L_FM = |F - v|^2 + L_cos(F, v), (B,), each sample in its format (Eq. 10, App. A.3a).

        `point` has x_t (B, ...), t and in_fm (B,) as `times` gave them, v like x_t, y (B,) or None.
        """
        (F,) = F_theta(self.query(point))
        return {"fm": self.loss(F, point.v)}

    def query(self, point: Point) -> Query:
        """F at c_FM or c_CM, each sample in its format."""
        c = self.condition(point.t, point.times["in_fm"])
        return Query(point.x_t, c.t, point.y, c.r)

    def loss(self, F: Tensor, v: Tensor) -> Tensor:
        """Return |F - v|^2 + L_cos(F, v), (B,) (Eq. 10)."""
        return velocity_loss(F, v, cosine=self.cosine, eps=self.cosine_eps)

    def condition(self, t: Tensor, in_fm: Tensor) -> Condition:
        """c_FM where in_fm (B,), else c_CM."""
        cm, fm = c_cm(t, self.conditioning), c_fm(t, self.conditioning)
        r = None if cm.r is None or fm.r is None else torch.where(in_fm, fm.r, cm.r)
        return Condition(torch.where(in_fm, fm.t, cm.t), r)
