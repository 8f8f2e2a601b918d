"""The training loop, the same for the teacher and for every student.

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
from facm.networks.ema import PowerEMA, TargetEMA
from facm.runtime import dist, files
from facm.runtime.log import TrainingLog, say
from facm.runtime.params import Optimizer, Runtime, Train, Training
from facm.runtime.resume import Work
from facm.runtime.signals import StopSignals
from facm.training.batch import Batch, draw
from facm.training.passes import EAGER, Passes, Plan, prepare
from facm.training.step import Step
from facm.training.target_velocity import TargetVelocity

PATIENCE = 10  # non-finite steps in a row that stop a run
LOOKS = 10  # at the velocity error, per line of the log


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
    loop = _Loop(job, work, log_folder)
    with StopSignals() as signals:
        while loop.step < job.settings.steps:
            try:
                stop = loop.advance(signals.received)
            except Diverged as diverged:
                if job.if_diverged == "fail":
                    raise
                say(f"{diverged}\n{job.name}: recorded as unstable, as distill.if_diverged in params.yaml says")
                return loop.finish(stable=False)
            if stop and loop.step < job.settings.steps:
                signals.noticed()
                loop.save(wait=True)
                why = "because DVC, which started it, is gone" if work.orphaned else "by signal"
                say(f"{job.name}: stopped {why} at step {loop.step}, saved; the same command goes on from there")
                raise SystemExit(130)
    return loop.finish()


class _Loop:
    """State of one training run."""

    def __init__(self, job: Job, work: Work, log_folder: str):
        self.job, self.work, settings = job, work, job.settings
        check_batch(job.name, settings.batch_size, job.objective.group, job.plan.accumulate)
        passes = prepare(job.network.train(), job.plan, job.derivative)
        self.network = passes.network
        time = TimeSampler(settings.time.sampler, settings.time.mean, settings.time.std)
        null = job.latents.num_classes or None
        self.training_step = Step(
            passes,
            job.objective,
            job.velocity,
            time,
            job.plan,
            null=null,
            others={"ema": self._averaged, "phase": self._of_phase, "target": self._of_target},
            tools=job.tools,
            watch_every=max(1, job.runtime.log_every // LOOKS),
        )
        self.parameters = self.training_step.parameters
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.optimizer.lr,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
            fused=True,
        )
        self.ema = PowerEMA(self.network.state_dict(), settings.ema.sigma_rels)
        self.target = self._make_target()
        self.step, self.skipped, self.in_a_row, self.last_save = 0, 0, 0, 0
        self.phase, self.phase_weights = -1, dict[str, Tensor]()  # a frozen copy, where the objective has phases
        self.interval: list[dict[str, float]] = []
        rows = self._restore()
        self.first = self.step + 1
        self.log = TrainingLog(log_folder, job.name, settings.steps, rows, self.step) if dist.is_main() else None

    def advance(self, stopped: Sequence[int] = ()) -> bool:
        """One optimizer step; returns whether the run must stop, the same on all ranks."""
        settings, self.step = self.job.settings, self.step + 1
        objective, progress = self.job.objective, Progress(self.step, settings.steps)
        self._enter_phase(progress)
        batch = draw(self.job.latents, settings, objective.normals, self.step, objective.group, self.job.tokens)
        shares = self.training_step.gradients(batch, progress)
        stop = torch.tensor(float(bool(stopped) or self.work.orphaned), device=batch.x0.device)
        told = dist.sum_(torch.stack([*shares.values(), stop])).tolist()
        values = dict(zip(shares, told[:-1], strict=True))
        norm = dist.gather_full(nn.utils.clip_grad_norm_(self.parameters, settings.optimizer.clip), everywhere=True)
        values["grad_norm"] = float(norm)
        decisive = {name: value for name, value in values.items() if name.startswith(("loss_", "grad_norm"))}
        if all(map(math.isfinite, decisive.values())):
            self._update(values)
        else:
            self._skip(batch, decisive)
        self._tell()
        return told[-1] > 0

    def finish(self, *, stable: bool = True) -> Trained:
        """Averaged weights and figures of the run, finished or, where not `stable`, given up."""
        if self.log is not None:
            self.log.close()
        last = self.log.rows[-1] if self.log is not None and self.log.rows else {}
        figures = {name: value for name, value in last.items() if name.startswith("loss_")}
        figures |= {"steps": self.step, "skipped": self.skipped, "stable": stable}
        snapshots = sorted((self.work.folder / "ema").glob("*.safetensors"))
        return Trained(dist.gather_full(self.ema.weights(self.job.settings.ema.sigma_rel)), snapshots, figures)

    def save(self, *, wait: bool = False) -> None:
        """Write the unfinished state (rank 0), unless it is written; `wait` until it is on disk."""
        if self.step > self.last_save:
            self._write()
        if wait:
            self.work.flush()
        dist.barrier()

    def _write(self) -> None:
        tensors = {
            "network": dict(self.network.state_dict()),
            "module": self._module_state(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "phase_weights": self.phase_weights,
            "target": self.target.weights if self.target is not None else {},
        }
        tensors = dist.gather_full(tensors)
        if self.log is not None:
            counters = {"step": self.step, "skipped": self.skipped, "in_a_row": self.in_a_row, "phase": self.phase}
            told = {"rows": self.log.rows, "interval": self.interval}
            self.work.save(tensors | counters | told)
        self.last_save = self.step

    def _restore(self) -> list[dict[str, float]]:
        state = self.work.load()
        if state is None:
            return []
        own = self.network.state_dict()
        self.network.load_state_dict({n: dist.sharded_like(tensor, own[n]) for n, tensor in state["network"].items()})
        if (module := self.job.objective.module) is not None:
            module.load_state_dict(state["module"])
        for i, moments in state["optimizer"]["state"].items():
            moments.update({n: dist.sharded_like(tensor, self.parameters[i]) for n, tensor in moments.items()})
        self.optimizer.load_state_dict(state["optimizer"])
        averages = self.ema.state_dict()
        for length, saved in state["ema"].items():
            saved.update({n: dist.sharded_like(tensor, averages[length][n]) for n, tensor in saved.items()})
        self.ema.load_state_dict(state["ema"])
        self.phase = state["phase"]
        self.phase_weights = {name: tensor.to(own[name].device) for name, tensor in state["phase_weights"].items()}
        if self.target is not None:
            self.target.load(state["target"])
        self.step = self.last_save = state["step"]
        self.skipped, self.in_a_row, self.interval = state["skipped"], state["in_a_row"], state["interval"]
        say(f"{self.job.name}: resumed at step {self.step} from {self.work.folder}")
        return state["rows"]

    def _module_state(self) -> dict[str, Tensor]:
        module = self.job.objective.module
        return module.state_dict() if module is not None else {}

    def _make_target(self) -> TargetEMA | None:
        """The target network, where the objective states its decay."""
        decay = self.job.objective.target_decay
        if decay is None:
            return None
        self._refuse_sharded()
        return TargetEMA(self.network.state_dict(), decay)

    def _enter_phase(self, progress: Progress) -> None:
        """Copy the averaged weights where the objective begins another phase."""
        phase = self.job.objective.phase(progress)
        if phase is not None and phase != self.phase:
            self.phase = phase
            weights = self.ema.weights(self.job.settings.ema.sigma_rel)
            self.phase_weights = {name: tensor.clone() for name, tensor in weights.items()}

    def _averaged(self) -> Passes:
        """The passes through the averaged weights."""
        return self._through(self.ema.weights(self.job.settings.ema.sigma_rel))

    def _of_phase(self) -> Passes:
        """The passes through the copy of the phase."""
        return self._through(self.phase_weights)

    def _of_target(self) -> Passes:
        """The passes through the target network.

        Raises:
            ValueError: there is none.
        """
        if self.target is None:
            name = type(self.job.objective).__name__
            raise ValueError(f"{name} asks a target network, but states no `target_decay`: none is kept")
        return self._through(self.target.weights)

    def _through(self, weights: dict[str, Tensor]) -> Passes:
        self._refuse_sharded()

        def network(*args: Any) -> Tensor:
            return torch.func.functional_call(self.network, weights, args)

        return Passes(network, self.job.derivative, self.job.plan.precision)

    def _refuse_sharded(self) -> None:
        """Raise ValueError under fsdp, which spreads the weights that a copy would be made of."""
        if self.job.plan.sharded:
            raise ValueError("params.yaml, train.parallel: fsdp keeps no network of averaged weights: set it to ddp")

    def _update(self, values: dict[str, float]) -> None:
        settings, self.in_a_row = self.job.settings, 0
        rate = learning_rate(self.step, settings.optimizer, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.ema.update(self.network.state_dict(), self.step)
        if self.target is not None:
            self.target.update(self.network.state_dict())
        self.interval.append(values | {"lr": rate})

    def _skip(self, batch: Batch, values: dict[str, float]) -> None:
        """A step whose loss or gradient is not finite changes nothing; too many in a row end the run."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == PATIENCE:
            self.work.flush()  # a save that failed has its own cause, which is told instead
            t = self.training_step.times(batch, Progress(self.step, self.job.settings.steps))["t"]
            place = f"step {self.last_save} in {self.work.folder}" if self.last_save else "none"
            figures = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise Diverged(
                f"{self.job.name}: {PATIENCE} steps in a row without a finite loss and gradient, the last at step "
                f"{self.step}, t in [{float(t.min()):.4f}, {float(t.max()):.4f}], {figures}; "
                f"last save: {place}. Lower {self.job.name}.optimizer.lr in params.yaml, "
                "or look at the curves with `dvc plots show`"
            )

    def _tell(self) -> None:
        """Log, snapshot and save where one is due."""
        settings, runtime = self.job.settings, self.job.runtime
        if self.log is not None:
            self.log.advance(self.step)
            if self.step == self.first and self.job.plan.compile:
                self.log.compiled(self.step)
        if (self.step % runtime.log_every == 0 or self.step == settings.steps) and self.interval:
            names = dict.fromkeys(name for values in self.interval for name in values)
            columns = {name: [values[name] for values in self.interval if name in values] for name in names}
            row = {name: sum(column) / len(column) for name, column in columns.items()}
            row |= {"step": self.step, "grad_norm_max": max(values["grad_norm"] for values in self.interval)}
            row |= {"skipped": self.skipped}
            self.interval = []
            if self.log is not None:
                self.log.row(row)
        if self.step in snapshot_steps(settings.steps, settings.ema.snapshots):
            self._snapshot()
        if self.step % runtime.save_every == 0 and self.step < settings.steps:
            self.save()

    def _snapshot(self) -> None:
        folder = self.work.folder / "ema"
        folder.mkdir(exist_ok=True)
        for sigma_rel in self.job.settings.ema.sigma_rels:
            weights = dist.gather_full(self.ema.weights(sigma_rel))
            if dist.is_main():
                files.save_tensors(folder / checkpoint.snapshot_name(self.step, sigma_rel), weights)


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
