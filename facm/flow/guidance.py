"""The target velocity v of both losses, with guidance baked in (arXiv 2507.03738, Eq. 9).

    v = v_base + w (v_cond - v_uncond)

No function here builds a graph, draws a random number or touches the network's train or eval mode: the caller gives a
teacher in eval mode, or the online or averaged student.

Deviations from the paper, all of them the published code's (ali-vilab/FACM, losses.py), are named options:
    t_low, t_high       Paper: "t_low 0.125". Code: outside the closed interval y stands for the null label. Here: so.
    teacher_condition   Paper: Algorithm 1 asks the teacher at c_FM. Code: at t. Here: t, because a teacher that was not
                        trained on both formats knows no other.
    scratch_condition   Paper: not said. Code: t, which in the expanded format is the condition of the average velocity.
                        Here: c_FM by default. In the auxiliary format both are (t, t).
    scratch_form        how the network that is being trained guides itself, with u = x1 - x0:

    paper   v = u + w (v_cond - v_uncond) for w > 1 and v = u for w = 1, as the paper says. The network learns this very
            v, so that d = v_cond - v_uncond follows d <- (what u tells) + w d: for w > 1 it grows without bound. On
            digits every such training ended in noise (docs/results.md, table 3).
    code    v = v_uncond + w (u - v_uncond), which is u at w = 1. Outside [t_low, t_high] it puts y for the null label,
            hence u + (w - 1) (u - F(x, t, y)): an extrapolation. Here: kept in this form only.
    mixed   v = w (1 - k) u + k v_cond + (1 - w (1 - k) - k) v_uncond, k = scratch_kappa: MeanFlow's (Geng et al. 2025,
            arXiv 2505.13447, Sec. 4.2), whose omega is w (1 - k) (XL/2: omega 0.2, k 0.92, so w = 2.5). v_cond comes
            from a network that learns v, the guided velocity: where it has, v = v_uncond + w (u - v_uncond), as strong
            as w in `distilled`, and with less noise for larger k. k = 0 is the code's form inside the interval.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.flow.interface import Network
from facm.flow.path import Condition, c_fm, check_conditioning, expand


def guided(v_cond: Tensor, v_uncond: Tensor, w: float) -> Tensor:
    """Return v = v_uncond + w (v_cond - v_uncond), classifier-free guidance (Ho & Salimans 2022)."""
    return v_uncond + w * (v_cond - v_uncond)


def cond_and_uncond(F: Network, x: Tensor, c: Condition, y: Tensor, y_uncond: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate F at both labels (B,) in one call with 2B rows, [cond; uncond]; two answers like x (B, ...)."""
    r = None if c.r is None else torch.cat([c.r, c.r])
    v_cond, v_uncond = F(torch.cat([x, x]), torch.cat([c.t, c.t]), torch.cat([y, y_uncond]), r).chunk(2)
    return v_cond, v_uncond


def velocity_condition(t: Tensor, conditioning: str, condition: str) -> Condition:
    """The time arguments that ask a network for v at t (B,).

    Args:
        t: (B,).
        conditioning: of the network, see `facm.flow.path`.
        condition: fm: c_FM; t: an expanded network at t, as teachers are, which are velocities there. Plain and
            auxiliary networks have one condition for v, t and (t, r = t).
    """
    return Condition(t, None) if (conditioning, condition) == ("expanded", "t") else c_fm(t, conditioning)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The constants of eq. 9; the fields are keys of `distill` in params.yaml, except `null`.

    Attributes:
        w: guidance scale, at least 1; 1: no guidance.
        t_low: guided only for t in [t_low, t_high], both within [0, 1].
        t_high: the upper end.
        null: the label that stands for none; None where the data have no classes, and then nothing is guided.
        conditioning: what c_FM is, see `facm.flow.path.c_fm`.
        teacher_condition: t | fm, the condition at which the teacher is asked.
        scratch_form: paper | code | mixed, the form of eq. 9 from scratch.
        scratch_kappa: of the mixed form, in [0, 1): how much of the guidance is by the network's own v_cond.
        scratch_condition: fm | t, the condition at which the network is asked from scratch.

    Raises:
        ValueError: a value outside its range; the message names value, rule and key.
    """

    w: float = 1.75
    t_low: float = 0.125
    t_high: float = 1.0
    null: int | None = None
    conditioning: str = "expanded"
    teacher_condition: str = "t"
    scratch_form: str = "paper"
    scratch_kappa: float = 0.5
    scratch_condition: str = "fm"

    def __post_init__(self) -> None:
        if not self.w >= 1:
            raise ValueError(f"params.yaml, distill.w: {self.w!r} must be at least 1 (1: no guidance)")
        if not 0 <= self.t_low <= self.t_high <= 1:
            interval = f"t_low {self.t_low!r}, t_high {self.t_high!r}"
            raise ValueError(f"params.yaml, distill: {interval} must satisfy 0 <= t_low <= t_high <= 1")
        check_conditioning(self.conditioning, "distill.conditioning")
        _one_of(self.teacher_condition, ("t", "fm"), "teacher_condition")
        _one_of(self.scratch_form, ("paper", "code", "mixed"), "scratch_form")
        if not 0 <= self.scratch_kappa < 1:
            raise ValueError(f"params.yaml, distill.scratch_kappa: {self.scratch_kappa!r} must be in [0, 1)")
        _one_of(self.scratch_condition, ("fm", "t"), "scratch_condition")

    def inside(self, t: Tensor) -> Tensor:
        """Where t (B,) lies in [t_low, t_high], (B,) bool; both ends belong to it."""
        return (t >= self.t_low) & (t <= self.t_high)

    @torch.no_grad()
    def distilled(self, F: Network, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Return v = v_uncond + w (v_cond - v_uncond), from one call of the teacher with 2B rows (Eq. 9).

        Outside [t_low, t_high] the null label is replaced by y, so that v = v_cond there. With w = 1, or without
        classes, v = v_cond from one call with B rows.

        Args:
            F: the teacher, in eval mode.
            x: (B, ...).
            t: (B,) in [0, 1].
            y: labels (B,) int64, or None.

        Returns:
            v like x, without a graph.
        """
        c = velocity_condition(t, self.conditioning, self.teacher_condition)
        if y is None or self.null is None or self.w == 1:
            return F(x, c.t, y, c.r)
        return guided(*cond_and_uncond(F, x, c, y, torch.where(self.inside(t), self.null, y)), self.w)

    @torch.no_grad()
    def scratch(self, F: Network, x: Tensor, t: Tensor, y: Tensor | None, *, u: Tensor) -> Tensor:
        """Return v from the data's velocity u = x1 - x0 and the network that is being trained (Eq. 9); see above.

        v = u where y is the null label (a dropped label has nothing to guide towards; MeanFlow does the same) and,
        except in the code's form, outside [t_low, t_high].

        Args:
            F: the online or the averaged network, in whatever mode it is.
            x: x_t (B, ...).
            t: (B,) in [0, 1].
            y: labels (B,) int64 after label dropout, or None.
            u: like x.

        Returns:
            v like x, without a graph.
        """
        if y is None or self.null is None or self.w == 1:
            return u
        c = velocity_condition(t, self.conditioning, self.scratch_condition)
        dropped = y == self.null
        if self.scratch_form == "code":
            v_uncond = F(x, c.t, torch.where(self.inside(t), self.null, y), c.r)
            return torch.where(expand(dropped, u), u, guided(u, v_uncond, self.w))
        v_cond, v_uncond = cond_and_uncond(F, x, c, y, torch.full_like(y, self.null))
        if self.scratch_form == "mixed":
            k = self.scratch_kappa
            omega = self.w * (1 - k)
            v = omega * u + k * v_cond + (1 - omega - k) * v_uncond
        else:
            v = u + self.w * (v_cond - v_uncond)
        return torch.where(expand(self.inside(t) & ~dropped, u), v, u)


def _one_of(value: str, known: tuple[str, ...], key: str) -> None:
    """Raise ValueError, naming the key of `distill`, unless the value is known."""
    if value not in known:
        raise ValueError(f"params.yaml, distill.{key}: {value!r} is not one of {', '.join(known)}")
