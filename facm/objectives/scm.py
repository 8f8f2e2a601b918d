"""Simplified continuous-time consistency models, sCM (Lu & Song 2024, arXiv 2410.11081), on the path of flow matching.

The consistency function f = x_t + (1 - t) F stays put along the trajectory where F = v + (1 - t) dF/dt. How far the
network is from that, the tangent, is followed for a step of bounded length, warmed up, under a learned weight:

    g   = beta(t) (sg(F) - v - r (1 - t) dF/dt),   r = min(1, step / (warmup steps))
    g_n = g / (rms(g) + c)
    L   = exp(-logvar(t)) |F - (sg(F) - g_n)|^2 + logvar(t)

Time as everywhere: t = 1 is data; sCM's angle runs the other way, hence the sign of g. Pixel norm, sCM's change to the
network ("adaptive double normalization"), is `backbones.<name>.pixel_norm`.

Paper: TrigFlow, x = cos(phi) x1 + sin(phi) x0. Published code (ali-vilab/FACM, losses.py, the baseline of the FACM
paper): none, as here. Its slip: logvar (B, 1, 1, 1) meets a loss (B,), so that weights are averaged over the batch.
Here: per sample, as in NVlabs/FastGen (methods/consistency_model/sCM.py); `weight: batch` is the slip. It also counts
micro-steps in the warm-up; here: optimizer steps.
Paper: g / (|g| + c), |.| a sum. FACM's code, and FastGen's by default: rms, which does not depend on the number of
pixels, as here. Left out: FastGen's prior weight 1 / sigma, which is unbounded at t = 1 and, depending on t alone, is
learned by logvar(t); FACM's code has none.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import rms, squared_error
from facm.flow.path import c_cm, expand
from facm.flow.time import WEIGHTINGS, weighting
from facm.objectives import check_fields
from facm.runtime.ranges import Conditioning, Count, Fraction, OneOf, Positive


@dataclass(frozen=True, kw_only=True)
class SCM(Objective):
    """The sCM loss.

    Attributes:
        conditioning: the network is asked at c_CM: expanded (t) or auxiliary (t, 1).
        beta: weight of g, a name of `facm.flow.time.WEIGHTINGS`; it acts before the normalisation, so that it matters
            only where g is about c or smaller, or with `tangent` clamp or none.
        p: exponent of the weighting 1 - t^p, above 0.
        warmup: share of the training's steps in which r grows to 1, 0 to 1; 0: r = 1 at once. Paper: 10,000 steps.
        tangent: normalize | clamp (sCM's alternative) | none: what bounds g.
        norm_c: c of the normalisation, above 0.
        clamp: g is clamped to [-clamp, clamp], above 0; for `tangent` clamp.
        weight: sample (learned, per sample) | batch (learned, averaged over the rows of a pass: published code) | none.
        width: width of the weight's network.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    conditioning: Conditioning = "expanded"
    beta: Annotated[str, OneOf(WEIGHTINGS)] = "cos"
    p: Positive = 0.5
    warmup: Fraction = 0.08
    tangent: Literal["normalize", "clamp", "none"] = "normalize"
    norm_c: Positive = 0.1
    clamp: Positive = 1.0
    weight: Literal["sample", "batch", "none"] = "sample"
    width: Count = 256

    normals = 1
    samplers = ("consistency",)
    terms = ("cm",)

    def __post_init__(self) -> None:
        check_fields(self)

    @cached_property
    def module(self) -> "AdaptiveWeight | None":
        """The weight's network, trained with the student; None where nothing is learned."""
        return None if self.weight == "none" else AdaptiveWeight(self.width)

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return L, (B,).

        `point` has x_t (B, ...), t (B,), v like x_t, y (B,) or None, progress.
        """
        c = c_cm(point.t, self.conditioning)
        ((F, dF_dt),) = F_theta(Query(point.x_t, c.t, point.y, c.r, dx=point.v, dt=1.0))
        point.watch("g", rms(residual(F, dF_dt, point.v, point.t)))
        point.watch("tangent", rms(dF_dt))
        e = squared_error(F, self.target(F, dF_dt, point.v, point.t, self.warmed(point.progress)))
        return {"cm": e if self.module is None else self.weighted(e, self.module(point.t), point)}

    def warmed(self, progress: Progress) -> float:
        """Return r = min(1, step / (warmup steps)), in (0, 1]: the tangent warm-up."""
        rising = self.warmup * progress.steps
        return min(1.0, progress.step / rising) if rising else 1.0

    def target(self, F: Tensor, dF_dt: Tensor, v: Tensor, t: Tensor, r: float = 1.0) -> Tensor:
        """Return sg(F) - g_n, like F; no gradient.

        Args:
            F: the student at c_CM, (B, ...).
            dF_dt: its total derivative, like F.
            v: target velocity, like F.
            t: (B,).
            r: share of dF_dt, in [0, 1].
        """
        beta = weighting(self.beta, self.p, "distill.beta")
        g = expand(beta(t), F) * residual(F, r * dF_dt, v, t)
        if self.tangent == "normalize":
            g = g / expand(rms(g) + self.norm_c, g)
        elif self.tangent == "clamp":
            g = g.clamp(-self.clamp, self.clamp)
        return F.detach() - g

    def weighted(self, e: Tensor, logvar: Tensor, point: Point) -> Tensor:
        """Return exp(-logvar) e + logvar, (B,); least where logvar = ln e.

        Args:
            e: squared error (B,).
            logvar: (B,).
            point: told of logvar.
        """
        point.watch("logvar", logvar)
        scale = torch.exp(-logvar)
        return (scale if self.weight == "sample" else scale.mean()) * e + logvar


def residual(F: Tensor, dF_dt: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return F - v - (1 - t) dF_dt, like F; no gradient. Zero for a consistent network."""
    return F.detach() - v.detach() - (1 - expand(t, F)) * dF_dt.detach()


class AdaptiveWeight(nn.Module):
    """logvar(t): a time embedding and a linear layer, which is zero at the start.

    Names as in the published code (AdaLoss in ldit/lightningdit.py), which draws the last layer, too, at random. One
    seed of its own draws the weights, and no other random number of the training changes.

    Args:
        width: of the embedding.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.logvar = nn.Sequential(TimeEmbedding(width), nn.Linear(width, 1))
        for parameter in self.logvar[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        return self.logvar(t)[:, 0]


class TimeEmbedding(nn.Module):
    """Time -> width: 128 cosines and sines at geometric frequencies from 1 to 1e-4 rad, then two layers."""

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        i = torch.arange(self.frequencies, device=t.device, dtype=t.dtype)
        angles = t.unsqueeze(-1) * torch.exp(-math.log(1e4) / self.frequencies * i)
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).to(next(self.parameters()).dtype))
