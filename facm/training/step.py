"""One training step's gradient: times, x_t and v, the objective, the backward passes.

Costs, in forward passes F of one batch (arXiv 2507.03738, Algorithm 1): guided teacher 2, FM and CM 2, tangent 1 + a,
backward 4, where a is attention's share of F; three plain flow-matching steps.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facm.flow import path
from facm.flow.interface import Objective, Point, Progress
from facm.flow.losses import rms
from facm.flow.time import TimeSampler
from facm.runtime import dist
from facm.training.batch import Batch
from facm.training.passes import EAGER, NO_OTHERS, Others, Passes, Plan, Student
from facm.training.target_velocity import TargetVelocity

NO_TOOLS: Mapping[str, Callable[..., Any]] = MappingProxyType({})


class Step:
    """Fills the gradients of a student's weights for one batch.

    Args:
        passes: through the student's network, as `facm.training.passes.prepare` made them from `plan`.
        objective: see facm/objectives.
        velocity: the target velocity.
        time: sampler of times.
        plan: see `facm.training.passes.Plan`.
        null: the label that stands for none; None without classes.
        others: see `Student`.
        tools: what `Point.tools` holds.
        watch_every: steps between two measurements of the velocity error, see `gradients`; 0: none.

    Raises:
        ValueError: an objective with trained weights of its own, under fsdp, or one whose tools were not given.
    """

    def __init__(
        self,
        passes: Passes,
        objective: Objective,
        velocity: TargetVelocity,
        time: TimeSampler,
        plan: Plan = EAGER,
        *,
        null: int | None = None,
        others: Others = NO_OTHERS,
        tools: Mapping[str, Callable[..., Any]] = NO_TOOLS,
        watch_every: int = 0,
    ) -> None:
        self.objective, self.velocity, self.time, self.plan, self.null = objective, velocity, time, plan, null
        self.watch_every, self.tools = watch_every, tools
        if missing := [name for name in objective.tools if name not in tools]:
            raise ValueError(f"{type(objective).__name__} asks for the tools {', '.join(missing)}: none were given")
        module = objective.module
        if plan.sharded and module is not None:
            raise ValueError("params.yaml, train.parallel: fsdp does not fit an objective with weights of its own: ddp")
        self.own = list(module.to(dist.device()).parameters()) if module is not None else []
        self.parameters = [*passes.parameters(), *self.own]
        self.wrapped = self._wrap(passes)
        self.student = Student(passes, wrapped=self.wrapped, others=others)

    def gradients(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Set every `.grad` to that of the loss, averaged over the global batch.

        Args:
            batch: this rank's rows.
            progress: of the training.

        Returns:
            `loss_<term>`, what the objective watches and, every `watch_every` steps, `velocity_error`: the root mean
            square distance of the network at c_FM from v, which grows where the anchor is lost (Sec. 3.1.2). This
            rank's share of the mean over the global batch, () each; the sum over ranks is the mean.
        """
        shares: dict[str, Tensor] = {}
        measured = self.watch_every > 0 and progress.step % self.watch_every == 0

        def watch(name: str, values: Tensor) -> None:
            shares[name] = shares.get(name, 0.0) + values.detach().sum() / batch.size

        for parameter in self.parameters:
            parameter.grad = None
        parts = self.objective.parts if self.plan.lean else (self.objective,)
        last = self.plan.accumulate * len(parts) - 1
        for i, rows in enumerate(batch.split(self.plan.accumulate, self.objective.group)):
            point = self._point(rows, progress, watch)
            if measured:
                watch("velocity_error", self._velocity_error(point))
            for j, part in enumerate(parts):
                self.student.begin(rows.keys)
                with self._synchronised(i * len(parts) + j == last):
                    losses = part(self.student, point)
                    loss = torch.stack([term.sum() for term in losses.values()]).sum() / batch.size
                    (dist.world_size() * loss).backward()  # gradients are averaged over ranks: this makes them a sum
                for name, term in losses.items():
                    watch(f"loss_{name}", term)
        dist.mean_([parameter.grad for parameter in self.own if parameter.grad is not None])
        return shares

    def times(self, rows: Batch, progress: Progress) -> Mapping[str, Tensor]:
        """The objective's times of a batch."""
        return self.objective.times(rows.n, self.time, progress)

    def _velocity_error(self, point: Point) -> Tensor:
        """Distance of the student at c_FM from the target velocity, (B,)."""
        fm = path.c_fm(point.t, self.objective.conditioning)
        return rms(self.student.frozen()(point.x_t, fm.t, point.y, fm.r) - point.v)

    def _point(self, rows: Batch, progress: Progress, watch: Callable[[str, Tensor], None]) -> Point:
        """Everything that the loss of these rows may use (Algorithm 1, lines 1, 3 and 4)."""
        times = self.times(rows, progress)  # line 1
        x_t = path.interpolate(rows.x0, rows.x1, times["t"])  # line 3
        self.student.begin(rows.keys)
        online, ema = self.student.frozen(), self.student.frozen("ema")
        velocity = functools.partial(self.velocity, u=rows.x1 - rows.x0, online=online, ema=ema)  # line 4, when needed
        tokens: Mapping[str, Callable[..., Any]] = {} if rows.tokens is None else {"tokens": lambda: rows.tokens}
        return Point(
            x0=rows.x0,
            x1=rows.x1,
            x_t=x_t,
            y=rows.y,
            times=times,
            velocity=velocity,
            progress=progress,
            null=self.null,
            tools={**self.tools, **tokens},
            watch=watch,
        )

    def _wrap(self, passes: Passes) -> nn.Module:
        """DDP around the passes where several processes hold whole networks."""
        if dist.world_size() == 1 or self.plan.sharded:
            return passes
        known = inspect.signature(DistributedDataParallel).parameters
        constant = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.15
        options: dict[str, Any] = {constant: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(passes, **options)

    @contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """Average gradients over ranks in the last backward pass of a step only."""
        if self.plan.sharded:
            self.wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        elif isinstance(self.wrapped, DistributedDataParallel) and not last:
            with self.wrapped.no_sync():
                yield
        else:
            yield
