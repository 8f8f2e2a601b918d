"""The OT-FM probability flow and how its two velocities are asked for (arXiv 2507.03738, Sec. 2 and 3.2.2).

Time convention of the whole package: x0 is noise, x1 is data, t runs from 0 (noise) to 1 (data). A network
F(x, t, y, r) answers with the instantaneous velocity v at the condition c_FM, and with the average velocity to the
data, v_bar, at the condition c_CM.
"""

from typing import NamedTuple

from torch import Tensor, ones_like

CONDITIONINGS = ("plain", "expanded", "auxiliary")


class Condition(NamedTuple):
    """The time arguments of a network: t (B,) in [0, 2], and r (B,) in [0, 1] or None where the network has no r."""

    t: Tensor
    r: Tensor | None


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Give t (B,) as many trailing axes of length one as x (B, ...) needs to broadcast: (B, 1, ...)."""
    return t.reshape(t.shape[0], *[1] * (x.ndim - 1))


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """Return x_t = (1 - t) x0 + t x1 (Sec. 2.1).

    Args:
        x0: noise (B, ...).
        x1: data (B, ...).
        t: (B,) in [0, 1].
    """
    t = expand(t, x1)
    return (1 - t) * x0 + t * x1


def endpoint(x_t: Tensor, t: Tensor, F: Tensor) -> Tensor:
    """Return f_theta = x_t + (1 - t) F, the data end of the trajectory if F is its average velocity (Sec. 2.2).

    Along the trajectory f_theta does not change, d f_theta / dt = 0, where F = v + (1 - t) dF/dt (Eq. 2, 6).

    Args:
        x_t: point on the path (B, ...).
        t: (B,) in [0, 1].
        F: the network's answer at c_CM, like x_t.
    """
    return x_t + (1 - expand(t, x_t)) * F


def average_velocity(x_t: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """Return v_bar = (x1 - x_t) / (1 - t), which takes x_t to x1 in the remaining time (Eq. 3).

    The time derivative of (1 - t) v_bar = x1 - x_t, namely -v_bar + (1 - t) d v_bar / dt = -v (Eq. 4), gives the
    identity v_bar = v + (1 - t) d v_bar / dt (Eq. 5), to which the shortcut is trained.

    Args:
        x_t: point on the trajectory (B, ...).
        x1: end of the same trajectory (B, ...).
        t: (B,) in [0, 1), without 1.
    """
    return (x1 - x_t) / (1 - expand(t, x_t))


def c_cm(t: Tensor, conditioning: str) -> Condition:
    """The condition at which a network gives the average velocity from t (B,) to 1 (Sec. 3.2.2).

    plain and expanded: t; auxiliary: (t, r = 1). In each, d c_CM / dt is 1 for t and 0 for r (Eq. 17).

    Raises:
        ValueError: unknown conditioning.
    """
    check_conditioning(conditioning)
    return Condition(t, ones_like(t) if conditioning == "auxiliary" else None)


def c_fm(t: Tensor, conditioning: str) -> Condition:
    """The condition at which a network gives the instantaneous velocity at t (B,) (Sec. 3.2.2).

    plain: t; expanded: 2 - t; auxiliary: (t, r = t). At t = 1 it is c_CM, and v + (1 - t) dF/dt tends to v (Eq. 15), so
    the expanded formats join there without a jump.

    Raises:
        ValueError: unknown conditioning.
    """
    check_conditioning(conditioning)
    if conditioning == "expanded":
        return Condition(2 - t, None)
    return Condition(t, t if conditioning == "auxiliary" else None)


def check_conditioning(conditioning: str, place: str = "teacher.conditioning or distill.conditioning") -> None:
    """Raise ValueError, naming the place in params.yaml, unless the conditioning is one of CONDITIONINGS."""
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"params.yaml, {place}: {conditioning!r} is not one of {', '.join(CONDITIONINGS)}")
