"""The training loop, the same for the teacher and for every student.

Everything random in step k is drawn from a generator seeded by (seed, k) alone, for the global batch, of which each
rank takes its rows: a killed run resumes bit-exactly without saved random states, and the number of processes changes
results by rounding only.
"""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from facm import checkpoint, dist, files, flow
from facm.data.latents import LatentSet
from facm.ema import PowerEMA
from facm.log import TrainingLog, say
from facm.params import Ema, Optimizer, Runtime, Time
from facm.point import Point, Progress
from facm.schedules import TimeSampler
from facm.source import Source
from facm.student import Student
from facm.work import Work

PATIENCE = 10  # non-finite steps in a row that stop a run


class Diverged(RuntimeError):
    """Loss or gradient was not finite for PATIENCE steps in a row."""


class Settings(Protocol):
    """What params.teacher and params.distill have in common."""

    steps: int
    batch_size: int
    seed: int
    label_dropout: float
    time: Time
    optimizer: Optimizer
    ema: Ema


@dataclass(frozen=True)
class Job:
    """One training: what is trained, on what, how."""

    name: str
    network: nn.Module
    objective: Any
    latents: LatentSet
    settings: Settings
    source: Source
    runtime: Runtime
    derivative: str = "dual"


@dataclass(frozen=True)
class Trained:
    """Result: averaged weights, snapshots, and figures for the metrics file."""

    weights: dict[str, Tensor]
    snapshots: list[Path]
    figures: dict[str, float]


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one step's draws."""

    x0: Tensor  # (B, C, H, W) noise
    x1: Tensor  # (B, C, H, W) normalised latents
    y: Tensor | None  # (B,) labels, dropped ones replaced by the null label
    n: Tensor  # (B, normals) standard normals for the times


def draw(job: Job, step: int) -> Batch:
    """Batch of step `step` (from 1), this rank's rows of it."""
    settings, latents = job.settings, job.latents
    generator = _generator(settings.seed, step)
    indices = batch_indices(step, settings.batch_size, latents.num, settings.seed)
    size = len(indices)
    x0 = torch.randn((size, *latents.shape), generator=generator)
    n = torch.randn((size, job.objective.normals), generator=generator)
    flips = torch.rand(size, generator=generator) < 0.5 if latents.flips else None
    dropped = torch.rand(size, generator=generator) < settings.label_dropout
    rows = slice(dist.rank() * size // dist.world_size(), (dist.rank() + 1) * size // dist.world_size())
    x1, y = latents.batch(indices[rows], None if flips is None else flips[rows])
    if y is not None:
        y = torch.where(dropped[rows], latents.num_classes, y)
    device = dist.device()
    parts = (x0[rows], x1, y, n[rows])
    return Batch(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


def batch_indices(step: int, batch_size: int, num: int, seed: int) -> Tensor:
    """Indices of step `step` (from 1): epochs are seeded permutations, joined end to end."""
    first = (step - 1) * batch_size
    epochs = range(first // num, (first + batch_size - 1) // num + 1)
    order = torch.cat([torch.randperm(num, generator=_generator(seed, epoch, 1)) for epoch in epochs])
    offset = first - epochs[0] * num
    return order[offset : offset + batch_size]


def learning_rate(step: int, optimizer: Optimizer, steps: int) -> float:
    """Linear warm-up, then constant or cosine to zero; step counts from 1."""
    warm = min(1.0, step / optimizer.warmup) if optimizer.warmup else 1.0
    if optimizer.schedule == "constant":
        return optimizer.lr * warm
    done = max(0.0, (step - optimizer.warmup) / max(1, steps - optimizer.warmup))
    return optimizer.lr * warm * 0.5 * (1 + math.cos(math.pi * done))


def train(job: Job, work: Work, log_folder: str) -> Trained:
    """Train to `settings.steps`, resuming from the work folder's last save.

    Raises:
        Diverged: ten non-finite steps in a row.
        SystemExit: SIGINT or SIGTERM, after the state was saved.
    """
    loop = _Loop(job, work, log_folder)
    with _stop_signals() as stopped:
        while loop.step < job.settings.steps:
            loop.advance()
            if stopped and loop.step < job.settings.steps:
                loop.save()
                say(f"{job.name}: stopped by signal at step {loop.step}, saved; the same command goes on from there")
                raise SystemExit(130)
    return loop.finish()


class _Loop:
    """State of one training run."""

    def __init__(self, job: Job, work: Work, log_folder: str):
        self.job, self.work, settings = job, work, job.settings
        if settings.batch_size % dist.world_size():
            raise ValueError(
                f"params.yaml, {job.name}.batch_size: {settings.batch_size} must be a multiple of the "
                f"{dist.world_size()} processes (FACM_NPROC)"
            )
        self.device = dist.device()
        self.network = job.network.to(self.device).train()
        self.student = Student(self.network, method=job.derivative, averaged=self._averaged)
        module = getattr(job.objective, "module", None)  # what an objective trains besides the network
        self.parameters = [*self.network.parameters(), *(module.parameters() if module is not None else ())]
        self.time = TimeSampler(settings.time.sampler, settings.time.mean, settings.time.std)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.optimizer.lr,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
            fused=True,
        )
        self.ema = PowerEMA(self.network.state_dict(), settings.ema.sigma_rels)
        self.step, self.skipped, self.in_a_row, self.last_save = 0, 0, 0, 0
        self.interval: list[dict[str, float]] = []
        self.watched: dict[str, Tensor] = {}
        rows = self._restore()
        self.log = TrainingLog(log_folder, job.name, settings.steps, rows) if dist.is_main() else None

    def advance(self) -> None:
        """One optimizer step."""
        settings, self.step = self.job.settings, self.step + 1
        batch = draw(self.job, self.step)
        self.student.seed = _seed(settings.seed, self.step, 2 + dist.rank())
        point = self._point(batch)
        losses = self.job.objective(self.student, point)
        means = {f"loss_{name}": loss.mean() for name, loss in losses.items()}
        self.optimizer.zero_grad()
        torch.stack(list(means.values())).sum().backward()
        told = means | {name: watched.mean() for name, watched in self.watched.items()}
        figures = torch.stack([figure.detach() for figure in told.values()])
        dist.mean_([figures, *(p.grad for p in self.parameters if p.grad is not None)])
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.optimizer.clip)
        values = dict(zip(told, figures.tolist(), strict=True)) | {"grad_norm": float(norm)}
        decisive = {name: values[name] for name in (*means, "grad_norm")}  # the same on all ranks
        if all(map(math.isfinite, decisive.values())):
            self._update(values)
        else:
            self._skip(point, decisive)
        self._tell()

    def finish(self) -> Trained:
        """Averaged weights and figures of the finished run."""
        if self.log is not None:
            self.log.close()
        last = self.log.rows[-1] if self.log is not None and self.log.rows else {}
        figures = {name: value for name, value in last.items() if name.startswith("loss_")}
        figures |= {"steps": self.step, "skipped": self.skipped}
        snapshots = sorted((self.work.folder / "ema").glob("*.safetensors"))
        return Trained(self.ema.weights(self.job.settings.ema.sigma_rel), snapshots, figures)

    def save(self) -> None:
        """Write the unfinished state (rank 0)."""
        if self.log is not None:
            self.work.save(
                {
                    "step": self.step,
                    "network": self.network.state_dict(),
                    "module": self._module_state(),
                    "optimizer": self.optimizer.state_dict(),
                    "ema": self.ema.state_dict(),
                    "rows": self.log.rows,
                    "interval": self.interval,
                    "skipped": self.skipped,
                    "in_a_row": self.in_a_row,
                }
            )
        self.last_save = self.step
        dist.barrier()

    def _restore(self) -> list[dict[str, float]]:
        state = self.work.load()
        if state is None:
            return []
        self.network.load_state_dict(state["network"])
        if state["module"]:
            self.job.objective.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step = self.last_save = state["step"]
        self.skipped, self.in_a_row, self.interval = state["skipped"], state["in_a_row"], state["interval"]
        say(f"{self.job.name}: resumed at step {self.step} from {self.work.folder}")
        return state["rows"]

    def _module_state(self) -> dict[str, Tensor]:
        module = getattr(self.job.objective, "module", None)
        return module.state_dict() if module is not None else {}

    def _point(self, batch: Batch) -> Point:
        """The batch at the objective's own times."""
        progress = Progress(self.step, self.job.settings.steps)
        times = self.job.objective.times(batch.n, self.time, progress)
        self.watched.clear()
        return Point(
            x0=batch.x0,
            x1=batch.x1,
            x_t=flow.interpolate(batch.x0, batch.x1, times["t"]),
            y=batch.y,
            times=times,
            velocity=self.job.source(batch.x1 - batch.x0, self.student.frozen(), self.student.frozen("ema")),
            progress=progress,
            null=self.job.latents.num_classes or None,
            watch=self.watched.__setitem__,
        )

    @torch.no_grad()
    def _averaged(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network with averaged weights, no gradient."""
        weights = self.ema.weights(self.job.settings.ema.sigma_rel)
        return torch.func.functional_call(self.network, weights, args, kwargs)

    def _update(self, values: dict[str, float]) -> None:
        settings, self.in_a_row = self.job.settings, 0
        rate = learning_rate(self.step, settings.optimizer, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.ema.update(self.network.state_dict(), self.step)
        self.interval.append(values | {"lr": rate})

    def _skip(self, point: Point, values: dict[str, float]) -> None:
        """A step whose loss or gradient is not finite changes nothing; too many in a row end the run."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == PATIENCE:
            place = f"step {self.last_save} in {self.work.folder}" if self.last_save else "none"
            figures = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise Diverged(
                f"{self.job.name}: {PATIENCE} steps in a row without a finite loss and gradient, the last at step "
                f"{self.step}, t in [{float(point.t.min()):.4f}, {float(point.t.max()):.4f}], {figures}; "
                f"last save: {place}. Lower {self.job.name}.optimizer.lr in params.yaml, "
                "or look at the curves with `dvc plots show`"
            )

    def _tell(self) -> None:
        """Log, snapshot and save where one is due."""
        settings, runtime = self.job.settings, self.job.runtime
        if self.log is not None:
            self.log.advance(self.step)
        if (self.step % runtime.log_every == 0 or self.step == settings.steps) and self.interval:
            names = self.interval[-1]
            row = {name: sum(values[name] for values in self.interval) / len(self.interval) for name in names}
            row |= {"step": self.step, "grad_norm_max": max(values["grad_norm"] for values in self.interval)}
            row |= {"skipped": self.skipped}
            self.interval = []
            if self.log is not None:
                self.log.row(row)
        if self.step in snapshot_steps(settings.steps, settings.ema.snapshots) and dist.is_main():
            self._snapshot()
        if self.step % runtime.save_every == 0 and self.step < settings.steps:
            self.save()

    def _snapshot(self) -> None:
        folder = self.work.folder / "ema"
        folder.mkdir(exist_ok=True)
        for sigma_rel in self.job.settings.ema.sigma_rels:
            name = checkpoint.snapshot_name(self.step, sigma_rel)
            files.save_tensors(folder / name, self.ema.weights(sigma_rel))


def snapshot_steps(steps: int, num: int) -> set[int]:
    """`num` steps spread evenly, the last of them at the end."""
    return {round(steps * (i + 1) / num) for i in range(num)} - {0}


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying, so that the loop can save first."""
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(kind, lambda number, frame: received.append(number)) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, previous, strict=True):
            signal.signal(kind, handler)


def _seed(*words: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _generator(*words: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*words))
