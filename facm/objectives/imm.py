"""Inductive moment matching (Zhou, Ermon, Song 2025, arXiv 2503.07565), Algorithm 3.

Jumps to time s from t and from a time r a little nearer to the data give the same distribution if the network is
consistent; a kernel's maximum mean discrepancy (MMD) over groups of M samples compares them. The second jump, of the
same weights, carries no gradient.

Time as everywhere: t = 1 is data, t < r <= s. The paper's time is tau = 1 - t, where s <= r < t; its letters stand for
the same points here. Its Euler-FM network (App. C.5) on the OT-FM path is our velocity F with its sign turned, asked
for the jump to s: x_s = x_t + (s - t) F(x_t, t, s). Its sigma_d, the deviation of data and of noise, is 1 here.

    x_r = DDIM(x_t, x1, r, t) = x_t + (r - t) v    (Eq. 11)

since v = x1 - x0 from scratch. When distilling, v is the teacher's, and x_r its Euler step: the paper trains from
scratch only, and this one formula is both.

Source: text and Table 5 of the paper. Training code is not published (lumalabs/imm draws pictures only); a public
loss written for its networks agrees in kernel, grouping, decrement of eta and minimum gap; it drops labels of the
first jump only, the paper of both.
Labels. Paper: each sample of a group has its own, dropped on its own; the kernel sees pictures only, hence a group
compares mixtures of classes. Here: so; groups of one class would change the batches that all methods share.
Paper: r may be as close to t as the decrement of eta makes it, which is 1e-6 at the noise end; the minimum gap (App.
I.6) is for low precision and comes with time conditions of 1000 t. Here: the gap is always there, because time is fed
raw and a jump's rounding errors must stay below y - z; s keeps it too, so that the kernel's width s - t is never 0.
Paper: guidance is applied when pictures are drawn. Here: it is in v, as for all methods.
F(x, t, t) is never asked: the network keeps no velocity of its own.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.linalg import vector_norm

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import rms
from facm.flow.path import expand
from facm.flow.time import TimeSampler, sigma_of, time_of, uniform
from facm.objectives import check_fields
from facm.runtime.ranges import Count, Fraction, NonNegative, Positive, Range, Scale


@dataclass(frozen=True, kw_only=True)
class IMM(Objective):
    """The IMM loss.

    Attributes:
        group: M, consecutive samples that share t, r, s and are compared; with 1 nothing is left of the distribution,
            and the loss is a consistency loss 2 w (1 - k(y, z)).
        tau_low: least tau = 1 - t, epsilon in the paper, from 0.
        tau_high: largest, T in the paper, below 1.
        k: r is nearer to the data than t by a 2^k-th part of the range of eta = tau / (1 - tau), at least 0.
        gap: least r - t, above 0; it must fit between tau_low and tau_high.
        a: exponent of the weight w, at least 1 (paper: 1 or 2).
        b: its shift of the log signal-to-noise ratio.
        eps: least distance in the kernel, above 0; there its gradient is 0.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    group: Count = 4
    tau_low: Fraction = 0.0
    tau_high: Annotated[float, Range(0, 0.9999)] = 0.994
    k: NonNegative = 12
    gap: Positive = 1e-4
    a: Scale = 1.0
    b: float = 4.0
    eps: Positive = 1e-8

    conditioning = "auxiliary"
    normals = 2
    samplers = ("consistency", "jumps")
    terms = ("mmd",)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.tau_low + self.gap < self.tau_high:
            raise ValueError(
                f"params.yaml, objectives.imm: tau_low {self.tau_low!r} plus gap {self.gap!r} must be below "
                f"tau_high {self.tau_high!r}"
            )

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 2), B a multiple of `group` -> t, r, s, each (B,), t + gap <= r <= s (Sec. 4.2).

        Of a group the first sample's normals count. t and s are uniform, `time` has no part in it.

        Raises:
            ValueError: the last group is not whole.
        """
        if len(n) % self.group:
            raise ValueError(
                f"params.yaml, objectives.imm.group: {len(n)} samples are not whole groups of {self.group}"
            )
        shares = uniform(n[:: self.group].repeat_interleave(self.group, 0), 0.0, 1.0)
        low, high = 1 - self.tau_high, 1 - self.tau_low
        t = low + (high - self.gap - low) * shares[:, 0]
        s = t + self.gap + (high - self.gap - t) * shares[:, 1]
        return {"t": t, "r": self.nearer(t, s), "s": s}

    def nearer(self, t: Tensor, s: Tensor) -> Tensor:
        """Return r(s, t) in [t + gap, s], (B,): a constant decrement of eta, which is `sigma_of(t)` (App. C.6, I.6)."""
        eta_min, eta_max = (tau / (1 - tau) for tau in (self.tau_low, self.tau_high))
        eta = (sigma_of(t) - (eta_max - eta_min) / 2**self.k).clamp(min=0)
        return torch.minimum(s, torch.maximum(t + self.gap, time_of(eta)))

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return w(s, t) MMD^2 of the group, for each of its samples, (B,) (Eq. 67).

        `point` has x_t (B, ...), t, r, s (B,) as `times` gave them, v like x_t, y (B,) or None.
        """
        t, r, s = (expand(point.times[name], point.x_t) for name in ("t", "r", "s"))
        x_r = point.x_t + (r - t) * point.v
        from_t = Query(point.x_t, point.t, point.y, point.times["s"])
        from_r = Query(x_r, point.times["r"], point.y, point.times["s"], grad=False)
        F_t, F_r = F_theta(from_t, from_r)
        y, z = point.x_t + (s - t) * F_t, (x_r + (s - r) * F_r).detach()
        point.watch("g", rms((y - z) / (r - t)))  # both jumps are to s: the residual over the step from t to r
        point.watch("tangent", rms((F_r - F_t) / (r - t)))
        return {"mmd": self.weight(point.t) * self.mmd(y, z, point.times["s"] - point.t)}

    def mmd(self, y: Tensor, z: Tensor, width: Tensor) -> Tensor:
        """Return 1 / M^2 sum_jk k(y_j, y_k) + k(z_j, z_k) - 2 k(y_j, z_k) of each sample's group, (B,) (Eq. 67).

        Args:
            y: jumps from t, (B, ...).
            z: jumps from r, like y.
            width: |c_out(s, t)| = s - t, (B,), above 0, one value per group.
        """
        y, z = (jumps.flatten(1).unflatten(0, (-1, self.group)) for jumps in (y, z))
        width = width[:: self.group, None, None]
        matrices = self.kernel(y, y, width) + self.kernel(z, z, width) - 2 * self.kernel(y, z, width)
        return matrices.mean((1, 2)).repeat_interleave(self.group)

    def kernel(self, a: Tensor, b: Tensor, width: Tensor) -> Tensor:
        """Return k(a_j, b_k) = exp(-max(|a_j - b_k|, eps) / (D width)), (groups, M, M) (Sec. 4.2, App. C.8).

        Args:
            a: (groups, M, D).
            b: like a.
            width: (groups, 1, 1).
        """
        distance = vector_norm(a[:, :, None] - b[:, None], dim=3).clamp(min=self.eps)
        return torch.exp(-distance / (a.shape[2] * width))

    def weight(self, t: Tensor) -> Tensor:
        """Return w(s, t), (B,), for t inside (0, 1) (Eq. 13).

        1/2 sigmoid(b - lambda) (-d lambda / d tau) t^a / (t^2 + (1 - t)^2), lambda = 2 ln(t / (1 - t)); with
        sigmoid(b - lambda) about e^b (1 - t)^2 near the data it falls to 0 there.
        """
        slope = 2 / (t * (1 - t))
        return 0.5 * torch.sigmoid(self.b - 2 * torch.logit(t)) * slope * t**self.a / (t**2 + (1 - t) ** 2)
