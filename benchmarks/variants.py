"""What is measured: ways to compute the gradient of one training step, all of one batch and from one set of weights."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.published import Network, Published
from facm.flow import path
from facm.flow.guidance import Guidance
from facm.flow.interface import START
from facm.flow.losses import velocity_loss
from facm.flow.time import TimeSampler
from facm.networks.backbones.lightningdit import LightningDiT
from facm.objectives.facm import FACM
from facm.training.batch import Batch
from facm.training.passes import DTYPES, Plan, prepare
from facm.training.step import Step
from facm.training.target_velocity import teacher

CHANNELS, CLASSES = 32, 1000

PLANS = {"joint": Plan(), "lean": Plan(lean=True), "checkpointed": Plan(checkpoint=True)}
"""Variants of facm.training.step.Step: name -> its plan, in float32, eager."""

NAMES = ("fm", "reference", *PLANS)

COMPILED = "+compile"
"""Ends the name of a compiled variant."""


@dataclass(frozen=True)
class Size:
    """Network and batch.

    Attributes:
        hidden: width D of a token.
        depth: number of blocks.
        heads: attention heads.
        tokens: N, a square; latents are CHANNELS x sqrt(N) x sqrt(N), patches 1.
        batch: B.

    Raises:
        ValueError: tokens is no square.
    """

    hidden: int
    depth: int
    heads: int
    tokens: int = 256
    batch: int = 4

    def __post_init__(self) -> None:
        if math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(f"--tokens {self.tokens} must be a square: the latents are")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample, (C, H, W)."""
        return (CHANNELS, math.isqrt(self.tokens), math.isqrt(self.tokens))


SIZES = {
    "tiny": Size(hidden=32, depth=2, heads=2, tokens=16),
    "A": Size(hidden=256, depth=6, heads=4),
    "S": Size(hidden=384, depth=12, heads=6),
    "B": Size(hidden=768, depth=12, heads=12),
    "XL": Size(hidden=1152, depth=28, heads=16),
}


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to compute a step.

    Attributes:
        network: whose gradients it fills; no other variant's.
        run: fills them and returns the detached mean of each term.
    """

    network: nn.Module
    run: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Workload:
    """Two networks of which no weight is zero, and a batch.

    Attributes:
        size: see `Size`.
        precision: float32 | bfloat16 (autocast), as in `facm.training.passes.Plan`.
        student: copied by every variant.
        teacher: frozen, in eval mode.
        batch: noise, latents, labels, normals.
    """

    size: Size
    precision: str
    student: nn.Module
    teacher: nn.Module
    batch: Batch

    @classmethod
    def create(
        cls, size: Size, device: torch.device, precision: str = "float32", dtype: torch.dtype = torch.float32
    ) -> "Workload":
        """Draw all of it; the same everywhere."""
        student, teacher = (randomised(size, seed).to(device, dtype) for seed in (0, 1))
        generator = torch.Generator().manual_seed(2)
        x0, x1 = (torch.randn(size.batch, *size.shape, generator=generator).to(device, dtype) for _ in range(2))
        y = torch.randint(CLASSES, (size.batch,), generator=generator).to(device)
        n = torch.randn(size.batch, 1, generator=generator).to(device, dtype)
        batch = Batch(x0, x1, y, n, None, size.batch)
        return cls(size, precision, student, teacher.eval().requires_grad_(False), batch)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.batch.x0.device

    @property
    def t(self) -> Tensor:
        """Times (B,)."""
        return TimeSampler()(self.batch.n[:, 0])

    @property
    def y(self) -> Tensor:
        """Labels (B,)."""
        assert self.batch.y is not None
        return self.batch.y

    def forward(self) -> Tensor:
        """One pass of the batch without a graph: F, the unit of FLOPs."""
        with torch.no_grad():
            return self.student(self.batch.x0, self.t, self.y)

    def variant(self, name: str) -> Variant:
        """Build a variant by its name, with or without COMPILED."""
        base, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
        network = copy.deepcopy(self.student)
        if base == "fm":
            return Variant(network, functools.partial(backward, network, self.flow_matching(network, compiled)))
        if base == "reference":
            return Variant(network, functools.partial(backward, network, self.published(network, compiled)))
        return self.step(network, dataclasses.replace(PLANS[base], precision=self.precision, compile=compiled))

    def step(self, network: nn.Module, plan: Plan, **constants: Any) -> Variant:
        """The training step, with `constants` of the FACM objective."""
        guided = teacher(copy.deepcopy(self.teacher), Guidance(null=CLASSES), plan)
        step = Step(prepare(network, plan), FACM(**constants), guided, TimeSampler(), plan, null=CLASSES)

        def run() -> dict[str, Tensor]:
            means = step.gradients(self.batch, START)
            return {term: means[f"loss_{term}"] for term in ("fm", "cm")}

        return Variant(network, run)

    def published(self, network: nn.Module, compiled: bool = False) -> Callable[[], dict[str, Tensor]]:
        """Losses of the published step, compiled as it ships: teacher and FM pass, not the derivative."""
        t = self.t
        published = Published(
            teacher=self.cast(self.teacher, compiled),
            student=self.cast(network),
            forward=self.cast(network, compiled),
            null=CLASSES,
        )
        return lambda: published(self.batch.x0, self.batch.x1, t, self.y)

    def flow_matching(self, network: nn.Module, compiled: bool = False) -> Callable[[], dict[str, Tensor]]:
        """Losses of plain flow matching: one query, no teacher."""
        F, x0, x1, t = self.cast(network, compiled), self.batch.x0, self.batch.x1, self.t
        return lambda: {"fm": velocity_loss(F(path.interpolate(x0, x1, t), t, self.y), x1 - x0).mean()}

    def cast(self, network: nn.Module, compiled: bool = False) -> Network:
        """F(x, t, y) -> at least float32, under autocast where the precision says so."""
        forward = torch.compile(network, fullgraph=True, dynamic=False) if compiled else network
        dtype = DTYPES[self.precision]

        def F(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                answer = forward(x, t, y)
            return answer.to(torch.promote_types(answer.dtype, torch.float32))

        return F


def gradient(network: nn.Module) -> Tensor:
    """All gradients of a network in one vector."""
    return torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])


def backward(network: nn.Module, losses: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Fill a network's gradients, as the training step does: drop the old ones, one backward pass of the sum."""
    network.zero_grad()
    means = losses()
    torch.stack(list(means.values())).sum().backward()
    return {term: mean.detach() for term, mean in means.items()}


def randomised(size: Size, seed: int) -> LightningDiT:
    """A network with every weight redrawn: gates and last layer start at zero, and nothing would depend on dF_dt."""
    network = LightningDiT(
        shape=size.shape, num_classes=CLASSES, patch_size=1, hidden=size.hidden, depth=size.depth, heads=size.heads
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn / weight[0].numel() ** 0.5 if weight.ndim > 1 else weight + 0.1 * drawn)
    return network
