"""The FACM step as it was published, written again in plain functions: what the training step is compared with.

Source: ali-vilab/FACM, losses.py (arXiv 2507.03738, Algorithm 1, expanded time). x0 is noise, x1 data, t = 1 is data.
Nothing of facm/ is used, and what makes the step slow is kept: two calls of the teacher, and a derivative that records
a graph for a tangent without gradient. Published code: attention written out in the JVP. Here: the math kernel of
scaled_dot_product_attention, which computes the same; under autocast written out, since the tangent of that kernel's
softmax is refused on CUDA where its input is bfloat16 and its output float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Published:
    """The losses of one batch, by the published step.

    Attributes:
        teacher: frozen F(x, t, y) -> like x.
        student: the network as it is, for the derivative.
        forward: the same, for the FM pass; the published code compiles this one, and the teacher.
        null: the label that stands for none.
        w: guidance scale.
        t_low: below it nothing is guided.
        p: exponent of alpha = 1 - t^p.
        c: constant of eq. 18.
    """

    teacher: Network
    student: Network
    forward: Network
    null: int
    w: float = 1.75
    t_low: float = 0.125
    p: float = 0.5
    c: float = 1e-3

    def __call__(self, x0: Tensor, x1: Tensor, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the means of L_FM and L_CM, scalars with a graph (Eq. 8).

        Args:
            x0: noise (B, C, H, W).
            x1: data (B, C, H, W).
            t: (B,) in [0, 1].
            y: labels (B,).
        """
        s = t[:, None, None, None]
        x_t = (1 - s) * x0 + s * x1
        v = self.velocity(x_t, t, y)
        F_fm = self.forward(x_t, 2 - t, y)
        F_cm, dF_dt = self.derivative(x_t, t, y, v)
        return {"fm": self.fm(F_fm, v), "cm": self.cm(F_cm, dF_dt, v, t)}

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return v = v_uncond + w (v_cond - v_uncond), like x_t (Eq. 9)."""
        v_cond = self.teacher(x_t, t, y)
        v_uncond = self.teacher(x_t, t, torch.where(t < self.t_low, y, self.null))
        return v_uncond + self.w * (v_cond - v_uncond)

    def derivative(self, x_t: Tensor, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return F_CM, with its graph, and dF_dt, whose graph is thrown away after it was built (Eq. 17, line 6)."""
        with sdpa_kernel(SDPBackend.MATH), WrittenOut():
            answer = torch.func.jvp(lambda x, t: self.student(x, t, y), (x_t, t), (v, torch.ones_like(t)))
        return answer[0], answer[1].detach()

    def fm(self, F_fm: Tensor, v: Tensor) -> Tensor:
        """Return the mean of |F_FM - v|^2 + 1 - cos(F_FM, v) over channels (Eq. 10)."""
        return ((F_fm - v) ** 2).mean() + (1 - nnf.cosine_similarity(F_fm, v, dim=1)).mean()

    def cm(self, F_cm: Tensor, dF_dt: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Return the mean of beta(t) e / sg(e + c)^(1/2), e = |F_CM - v_tar|^2 (Eq. 11, 12, 14, 18)."""
        s = t[:, None, None, None]
        g = (F_cm.detach() - (v + (1 - s) * dF_dt)).clamp(-1, 1)
        v_tar = F_cm.detach() - (1 - s**self.p) * g
        e = ((F_cm - v_tar) ** 2).mean(dim=(1, 2, 3))
        return (torch.cos(math.pi / 2 * t) * e / (e + self.c).sqrt().detach()).mean()


class WrittenOut(TorchFunctionMode):
    """Under autocast, attention as products and a softmax of float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer for `scaled_dot_product_attention(q, k, v)`, (B, heads, N, d) each; leave all else as it is."""
        if func is not nnf.scaled_dot_product_attention or not torch.is_autocast_enabled(args[0].device.type):
            return func(*args, **(kwargs or {}))
        q, k, v = args
        S = q.shape[-1] ** -0.5 * (q @ k.mT)
        return torch.softmax(S.float(), dim=-1) @ v
