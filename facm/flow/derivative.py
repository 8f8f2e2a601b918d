"""The total derivative of a network along its trajectory (arXiv 2507.03738, Eq. 7; Appendix A.1, Eq. 16 and 17).

Time convention: x0 noise, x1 data, t from 0 to 1. Paper: one JVP with tangents (v, 1), "not readily accelerated by
torch.compile". Published code: torch.func.jvp with grad, which records a graph for a tangent that is detached anyway.
Here: the tangent never has a graph, and the default method traces under torch.compile.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from facm.flow.dual import Dual
from facm.flow.interface import Network


def total_derivative(
    F: Network,
    x: Tensor,
    t: Tensor,
    y: Tensor | None,
    r: Tensor | None = None,
    *,
    dx: Tensor,
    dt: Tensor | float,
    dr: Tensor | float | None = None,
    method: str = "dual",
) -> tuple[Tensor, Tensor]:
    """Return F and dF/dt = (dF/dx) dx + (dF/dt) dt + (dF/dr) dr, all at (x, t, y, r) (Eq. 7, 16, 17).

    Along the flow dx = v, dt = 1, and r is a constant of c_CM (Eq. 17).

    Args:
        F: network (x, t, y, r) -> like x.
        x: (B, C, H, W) or (B, D), floating.
        t: (B,), the time condition.
        y: (B,) int64, or None.
        r: (B,), or None.
        dx: like x; graphs of dx, dt and dr are ignored.
        dt: (B,) or a number for all samples.
        dr: the same; None: r is held constant.
        method: dual | func, see METHODS.

    Returns:
        F: like x, with its graph where grad is enabled.
        dF_dt: shape of F, without a graph; float32 (float64 where F is), which is what targets are computed in.

    Raises:
        ValueError: unknown method, dr without r, or a tangent of the wrong shape.
        TypeError: method "dual" meets an operation that has no rule.
    """
    if r is None and dr is not None:
        raise ValueError("got dr without r: give r (B,), or leave dr out")
    pairs = [(x, dx), (t, dt)] if r is None or dr is None else [(x, dx), (t, dt), (r, dr)]
    primals, tangents = [primal for primal, _ in pairs], [_like(tangent, primal) for primal, tangent in pairs]

    def network(x: Any, t: Any, r: Any = r) -> Tensor:
        return F(x, t, y, r)

    value, derivative = _method(method)(network, primals, tangents)
    return value, at_least_float32(derivative)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it has fewer bits: what losses and targets are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def by_dual(network: Network, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One pass on dual numbers."""
    answer: Any = network(*[Dual(primal, tangent) for primal, tangent in zip(primals, tangents, strict=True)])
    if not isinstance(answer, Dual):
        raise TypeError(f'the network returned a {type(answer).__name__}, which has no tangent: use method="func"')
    return answer.primal, answer.tangent


def by_func(network: Network, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One ordinary pass, then torch.func.jvp.

    The fused attention kernels have no forward derivative, hence the math kernel. The pass with grad comes first, so
    that autocast caches its copies of the weights with a graph.
    """
    value = network(*primals)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return value, torch.func.jvp(network, tuple(primals), tuple(tangents))[1]


METHODS = {"dual": by_dual, "func": by_func}
"""dual: dual numbers (facm/flow/dual.py), one pass. func: torch.func.jvp, for foreign networks with operations that
have no rule there; two passes, unfused attention in the second one."""


def _method(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    if name not in METHODS:
        raise ValueError(f"unknown derivative method '{name}': known are {', '.join(METHODS)}")
    return METHODS[name]


def _like(tangent: Tensor | float, primal: Tensor) -> Tensor:
    """A tangent in shape and dtype of its primal, without a graph; a number stands for all samples."""
    if not isinstance(tangent, Tensor):
        return torch.full_like(primal, tangent)
    if tangent.shape != primal.shape:
        raise ValueError(f"got a tangent {tuple(tangent.shape)} for {tuple(primal.shape)}: their shapes must be equal")
    return tangent.detach().to(primal.dtype)
