"""Distances between velocities (arXiv 2507.03738, Eq. 10 and 18), and between points, as other methods have them.

Every function returns one value per sample, (B,).

Deviations: the paper writes sums, ||.||^2; the published code takes means over everything but the batch. Here: means
(`reduction="sum"` for the paper's notation), because the CM term grows by sqrt(D) under a sum and the FM term by D.
The paper's cosine is one over the whole vector; the published code takes it per position over the channels. Here:
the code's, but over the whole sample where there is one channel, because the cosine of one number is +-1.
"""

from typing import Literal

from torch import Tensor
from torch.linalg import vector_norm

Reduction = Literal["mean", "sum"]
CosineAxis = Literal["channel", "sample"]
Cosine = Literal["auto", "channel", "sample", "none"]


def squared_error(a: Tensor, b: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return e = mean (or sum) of (a - b)^2 over all axes but the batch, (B,).

    Args:
        a: (B, ...).
        b: like a.
        reduction: mean, or sum as the paper writes it.
    """
    error = (a - b).square().flatten(1)
    return error.sum(1) if reduction == "sum" else error.mean(1)


def cosine_loss(a: Tensor, b: Tensor, axis: CosineAxis = "channel", eps: float = 1e-3) -> Tensor:
    """Return L_cos = 1 - a.b / (|a| |b|), averaged over the positions that remain, (B,) in [0, 2] (Sec. 3.2.1).

    Args:
        a: (B, C, H, W) or (B, D).
        b: like a.
        axis: channel: one cosine per position over axis 1; sample: one over everything but the batch.
        eps: least norm in the denominator. The gradient is at most of the order 1 / eps; without it a zero-initialised
            output starts with a gradient of 1e8.

    Raises:
        ValueError: the cosine of one number was asked for.
    """
    if axis == "sample":
        a, b = a.flatten(1), b.flatten(1)
    if a.shape[1] == 1:
        raise ValueError(
            f"L_cos over the {axis} axis of length one: the cosine of one number is +-1 and has no gradient; "
            "params.yaml, teacher.cosine or objectives.<name>.cosine: set 'auto' or 'sample', or 'none' for 1-D points"
        )
    norms = vector_norm(a, dim=1).clamp(min=eps) * vector_norm(b, dim=1).clamp(min=eps)
    return (1 - (a * b).sum(1) / norms).reshape(a.shape[0], -1).mean(1)


def velocity_loss(
    F: Tensor, v: Tensor, *, cosine: Cosine = "auto", eps: float = 1e-3, reduction: Reduction = "mean"
) -> Tensor:
    """Return |F - v|^2 + L_cos(F, v), (B,): the distance of flow matching (Eq. 10).

    Args:
        F: the network's answer at c_FM, (B, C, H, W) or (B, D).
        v: target velocity, like F.
        cosine: auto: per position over the channels where C > 1, else over the sample; none: no cosine term.
        eps: least norm in the cosine.
        reduction: of the squared error.

    Raises:
        ValueError: `cosine` asks for the cosine of one number.
    """
    error = squared_error(F, v, reduction)
    if cosine == "none":
        return error
    if cosine == "auto":
        cosine = "channel" if F.shape[1] > 1 else "sample"
    return error + cosine_loss(F, v, cosine, eps)


def pseudo_huber(a: Tensor, b: Tensor, c: float = 0.0) -> Tensor:
    """Return sqrt(|a - b|^2 + c^2) - c, |.|^2 a sum over all axes but the batch, (B,) (Charbonnier et al. 1997).

    Args:
        a: (B, ...).
        b: like a.
        c: at least 0; 0: the norm |a - b|, whose gradient is 0 where a = b.
    """
    if c == 0:
        return vector_norm((a - b).flatten(1), dim=1)
    return (squared_error(a, b, "sum") + c**2).sqrt() - c


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of x (B, ...) over all axes but the batch, (B,); without a gradient."""
    return x.detach().square().flatten(1).mean(1).sqrt()


def norm_l2(e: Tensor, c: float = 1e-3, q: float = 0.5, *, sg_denominator: bool = True) -> Tensor:
    """Return L_norm = e / (e + c)^q, (B,) (Eq. 18, App. A.2).

    Args:
        e: squared error per sample (B,).
        c: small constant, above 0.
        q: 0.5 is eq. 18; 1 is MeanFlow's choice, 0 the plain squared error.
        sg_denominator: the denominator carries no gradient. Paper: not said. Published code: detached. With False the
            gradient at large e is halved (q = 0.5).
    """
    denominator = (e + c) ** q
    return e / (denominator.detach() if sg_denominator else denominator)
