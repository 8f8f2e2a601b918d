"""The training loop, the same for the teacher and for every student: `Loop.advance` is one step of it.

Algorithm 1 of arXiv 2507.03738: its batch here, lines 1, 3 and 4 (t, x_t, v) in `facm.training.step`, the others in
`facm.objectives.facm`.

Everything random in a step depends on (seed, step, place in the global batch) alone (facm/training/batch.py): a killed
run resumes without saved random states, and the number of processes changes results by rounding only. Bit-exact is a
resumed run of up to two processes; with more, DDP's first step after a start sums gradients in another order.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facm.data.latents.store import LatentSet
from facm.data.latents.tokens import TokenSet
from facm.flow.interface import Objective, Progress
from facm.flow.time import TimeSampler
from facm.networks import checkpoint
from facm.runtime import dist, files
from facm.runtime.log import TrainingLog, say
from facm.runtime.params import Optimizer, Runtime, Train, Training
from facm.runtime.resume import Work
from facm.runtime.signals import StopSignals
from facm.training.averages import Averages
from facm.training.batch import Batch, draw
from facm.training.passes import EAGER, Plan, prepare
from facm.training.state import State
from facm.training.step import Step
from facm.training.target_velocity import TargetVelocity

PATIENCE = 10  # steps in a row that are not finite: they stop a run
VELOCITY_ERRORS = 10  # per row of the log


class Diverged(RuntimeError):
    """Loss or gradient was not finite for PATIENCE steps in a row."""


@dataclass(frozen=True)
class Job:
    """One training: what is trained, on what, how."""

    name: str
    network: nn.Module
    objective: Objective
    latents: LatentSet
    settings: Training
    velocity: TargetVelocity
    runtime: Runtime
    plan: Plan = EAGER
    derivative: str = "dual"
    tools: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  # of facm.flow.interface.Point
    if_diverged: str = "fail"  # fail | record: end early, with the average as it is
    tokens: TokenSet | None = None  # of an encoder, for an objective that needs them


@dataclass(frozen=True)
class Trained:
    """Result: averaged weights (of rank 0), snapshots, and figures for the metrics file."""

    weights: dict[str, Tensor]
    snapshots: list[Path]
    figures: dict[str, float]


def plan_of(train: Train) -> Plan:
    """The block `train` of params.yaml as a Plan."""
    return Plan(**dataclasses.asdict(train))


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
        Diverged: ten non-finite steps in a row, with `if_diverged` fail.
        SystemExit: a signal at any rank, or the death of DVC, which started the run; the state is saved before.
    """
    loop = Loop(job, work, log_folder)
    with StopSignals() as signals:
        while loop.state.step < job.settings.steps:
            try:
                stop = loop.advance(signals.received)
            except Diverged as diverged:
                if job.if_diverged == "fail":
                    raise
                say(f"{diverged}\n{job.name}: recorded as unstable, as distill.if_diverged in params.yaml says")
                return loop.finish(stable=False)
            if stop and loop.state.step < job.settings.steps:
                signals.noticed()
                loop.save(wait=True)
                why = "because DVC, which started it, is gone" if work.orphaned else "by signal"
                say(f"{job.name}: stopped {why} at step {loop.state.step}, saved; the same command goes on from there")
                raise SystemExit(130)
    return loop.finish()


class Loop:
    """One training run: its state, and what happens in each step."""

    def __init__(self, job: Job, work: Work, log_folder: str):
        self.job, self.work, settings = job, work, job.settings
        check_batch(job.name, settings.batch_size, job.objective.group, job.plan.accumulate)
        passes = prepare(job.network.train(), job.plan, job.derivative)
        averages = Averages(passes.network, job.objective, settings.ema, job.plan, job.derivative)
        self.training_step = Step(
            passes,
            job.objective,
            job.velocity,
            TimeSampler(settings.time.sampler, settings.time.mean, settings.time.std),
            job.plan,
            null=job.latents.num_classes or None,
            others=averages.passes,
            tools=job.tools,
            watch_every=max(1, job.runtime.log_every // VELOCITY_ERRORS),
        )
        parameters = self.training_step.parameters
        self.state = State(passes.network, job.objective.module, parameters, averages, settings.optimizer)
        rows = self._restore()
        self.first, self.last_save = self.state.step + 1, self.state.step
        self.log = TrainingLog(log_folder, job.name, settings.steps, rows, self.last_save) if dist.is_main() else None

    def advance(self, stopped: Sequence[int] = ()) -> bool:
        """One optimizer step; returns whether the run must stop, the same on all ranks."""
        state, job, settings = self.state, self.job, self.job.settings
        state.step += 1
        progress = Progress(state.step, settings.steps)
        state.averages.enter_phase(job.objective.phase(progress))

        # Noise, data, labels and normals for the times; the gradient of the losses (Algorithm 1, in step.py).
        batch = draw(job.latents, settings, job.objective.normals, state.step, job.objective.group, job.tokens)
        shares = self.training_step.gradients(batch, progress)

        # Means over the global batch, and whether any rank was told to stop: one exchange.
        stop = torch.tensor(float(bool(stopped) or self.work.orphaned), device=batch.x0.device)
        *means, stop_anywhere = dist.sum_(torch.stack([*shares.values(), stop])).tolist()
        values = dict(zip(shares, means, strict=True))
        norm = nn.utils.clip_grad_norm_(state.parameters, settings.optimizer.clip)
        values["grad_norm"] = float(dist.gather_full(norm, everywhere=True))

        # A step whose loss or gradient is not finite changes nothing: no weight, no average, no mean of the log.
        decisive = {name: value for name, value in values.items() if name.startswith(("loss_", "grad_norm"))}
        if all(map(math.isfinite, decisive.values())):
            rate = learning_rate(state.step, settings.optimizer, settings.steps)
            state.update(rate)
            state.interval.append(values | {"lr": rate})
        else:
            self._skip(batch, decisive)

        self._report()
        if state.step in snapshot_steps(settings.steps, settings.ema.snapshots):
            self._snapshot()
        if state.step % job.runtime.save_every == 0 and state.step < settings.steps:
            self.save()
        return stop_anywhere > 0

    def finish(self, *, stable: bool = True) -> Trained:
        """Averaged weights and figures of the run, finished or, where not `stable`, given up."""
        if self.log is not None:
            self.log.close()
        last = self.log.rows[-1] if self.log is not None and self.log.rows else {}
        figures = {name: value for name, value in last.items() if name.startswith("loss_")}
        figures |= {"steps": self.state.step, "skipped": self.state.skipped, "stable": stable}
        snapshots = sorted((self.work.folder / "ema").glob("*.safetensors"))
        return Trained(dist.gather_full(self.state.averages.weights()), snapshots, figures)

    def save(self, *, wait: bool = False) -> None:
        """Write the unfinished state (rank 0), unless it is written; `wait` until it is on disk."""
        if self.state.step > self.last_save:
            saved = dist.gather_full(self.state.state_dict())
            if self.log is not None:
                self.work.save(saved | {"rows": self.log.rows})
            self.last_save = self.state.step
        if wait:
            self.work.flush()
        dist.barrier()

    def _restore(self) -> list[dict[str, float]]:
        """Go on from the last save, if there is one; returns the rows of its log."""
        saved = self.work.load()
        if saved is None:
            return []
        self.state.load_state_dict(saved)
        say(f"{self.job.name}: resumed at step {self.state.step} from {self.work.folder}")
        rows: list[dict[str, float]] = saved["rows"]
        return rows

    def _skip(self, batch: Batch, values: dict[str, float]) -> None:
        """Count a step that is not finite; too many in a row end the run."""
        state, name = self.state, self.job.name
        state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
        if state.in_a_row < PATIENCE:
            return
        self.work.flush()  # a save that failed has its own cause, which is reported instead
        t = self.training_step.times(batch, Progress(state.step, self.job.settings.steps))["t"]
        place = f"step {self.last_save} in {self.work.folder}" if self.last_save else "none"
        figures = ", ".join(f"{key} {value:g}" for key, value in values.items())
        raise Diverged(
            f"{name}: {PATIENCE} steps in a row without a finite loss and gradient, the last at step "
            f"{state.step}, t in [{float(t.min()):.4f}, {float(t.max()):.4f}], {figures}; "
            f"last save: {place}. Lower {name}.optimizer.lr in params.yaml, "
            "or look at the curves with `dvc plots show`"
        )

    def _report(self) -> None:
        """Move the bar on, and write a row of the log where one is due."""
        state, steps = self.state, self.job.settings.steps
        if self.log is not None:
            self.log.advance(state.step)
            if state.step == self.first and self.job.plan.compile:
                self.log.compiled(state.step)
        if (state.step % self.job.runtime.log_every == 0 or state.step == steps) and state.interval:
            row = summary(state.interval) | {"step": state.step, "skipped": state.skipped}
            state.interval = []
            if self.log is not None:
                self.log.row(row)

    def _snapshot(self) -> None:
        """Keep the averages of this step, from which one of any length is made afterwards."""
        folder = self.work.folder / "ema"
        folder.mkdir(exist_ok=True)
        for sigma_rel in self.job.settings.ema.sigma_rels:
            weights = dist.gather_full(self.state.averages.ema.weights(sigma_rel))
            if dist.is_main():
                files.save_tensors(folder / checkpoint.snapshot_name(self.state.step, sigma_rel), weights)


def summary(interval: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the steps of an interval, of each value over those that have it, and the largest gradient norm."""
    names = dict.fromkeys(name for values in interval for name in values)
    columns = {name: [values[name] for values in interval if name in values] for name in names}
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    return means | {"grad_norm_max": max(columns["grad_norm"])}


def snapshot_steps(steps: int, num: int) -> set[int]:
    """`num` steps spread evenly, the last of them at the end."""
    return {round(steps * (i + 1) / num) for i in range(num)} - {0}


def check_batch(name: str, size: int, group: int, accumulate: int) -> None:
    """Raise ValueError unless every process and micro-batch has a row, or a group of rows.

    Args:
        name: teacher | distill.
        size: rows of the global batch.
        group: rows that belong together (the objective's `group`), 1 or more.
        accumulate: micro-batches.
    """
    ranks = dist.world_size()
    if not size % group and size // group >= ranks * accumulate:
        return
    needed = f"hold whole groups of {group} (the objective's `group`), at least" if group > 1 else "be at least"
    raise ValueError(
        f"params.yaml, {name}.batch_size: {size} must {needed} {ranks * accumulate}, one for each of {ranks} "
        f"processes (FACM_NPROC) and {accumulate} micro-batches (train.accumulate)"
    )
