"""With dropout on, what users switch on together has the gradients of the published step, on one to three ranks."""

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from miniature import NETWORK, randomised
from torch import Tensor, nn

from benchmarks.published import Published
from facm.flow.guidance import Guidance
from facm.flow.interface import START
from facm.flow.time import TimeSampler
from facm.networks import backbones
from facm.objectives.facm import FACM
from facm.runtime import dist
from facm.training import target_velocity
from facm.training.batch import Batch
from facm.training.passes import Passes, Plan, prepare
from facm.training.step import Step

TIME = TimeSampler("arctan_lognormal", -0.8, 1.6)
SIZE = 8  # rows of the global batch; three processes have 2, 3 and 3 of them
PLANS = {
    "ddp": Plan(),
    "ddp, micro-batches": Plan(accumulate=2),
    "ddp, lean": Plan(lean=True),
    "ddp, checkpoint": Plan(checkpoint=True),
    "ddp, lean, checkpoint, micro-batches": Plan(lean=True, checkpoint=True, accumulate=2),
    "fsdp": Plan(parallel="fsdp"),
    "fsdp, micro-batches": Plan(parallel="fsdp", accumulate=2),
    "fsdp, lean": Plan(parallel="fsdp", lean=True),
    "fsdp, checkpoint": Plan(parallel="fsdp", checkpoint=True),
}
COMPILED = {
    "ddp": Plan(compile=True),
    "ddp, checkpoint": Plan(compile=True, checkpoint=True),
    "ddp, lean": Plan(compile=True, lean=True),
    "fsdp": Plan(compile=True, parallel="fsdp"),
    "fsdp, checkpoint": Plan(compile=True, parallel="fsdp", checkpoint=True),
}


BOUNDS = {torch.float32: (1e-6, 1e-4), torch.float64: (1e-12, 1e-10)}
"""Relative errors of all gradients together and of those of one weight, whose terms may cancel."""


def network(seed: int, dtype: torch.dtype) -> nn.Module:
    sizes: dict[str, Any] = {"shape": (2, 4, 4), "num_classes": 3, "dropout": 0.3}
    return randomised(backbones.build("lightningdit", NETWORK | {"depth": 2}, **sizes), seed).to(dtype)


def batch(dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, SIZE, 2, 4, 4, generator=generator).to(dtype)
    n, keys = torch.randn(SIZE, 1, generator=generator).to(dtype), torch.randint(2**62, (SIZE,), generator=generator)
    return Batch(x0, x1, torch.arange(SIZE) % 4, n, keys, SIZE)


def step(plan: Plan, dtype: torch.dtype) -> tuple[Step, Passes]:
    """A step of a student with dropout, from a guided teacher."""
    passes = prepare(network(1, dtype), plan)
    teacher = target_velocity.teacher(network(2, dtype), Guidance(w=2.0, null=3), plan)
    return Step(passes, FACM(), teacher, TIME, plan, null=3), passes


def gradients(plan: Plan, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients, and this process's shares of the losses, after two calls."""
    asked, passes = step(plan, dtype)
    mine = batch(dtype).rows(
        slice(dist.rank() * SIZE // dist.world_size(), (dist.rank() + 1) * SIZE // dist.world_size())
    )
    asked.gradients(mine, START)  # the second call proves that nothing is left over
    shares = asked.gradients(mine, START)
    found = {name: dist.gather_full(p.grad, everywhere=True) for name, p in passes.network.named_parameters()}
    return found | {"losses": torch.stack([shares["loss_fm"], shares["loss_cm"]])}


def published(dtype: torch.dtype) -> dict[str, Tensor]:
    """The same by the published step, in one process, each sample with the masks of its key."""
    student, teacher, rows = network(1, dtype), network(2, dtype), batch(dtype)

    def keyed(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return student(x, t, y, None, rows.keys)

    assert rows.y is not None
    step = Published(teacher=teacher, student=keyed, forward=keyed, null=3, w=2.0)
    losses = step(rows.x0, rows.x1, TIME(rows.n[:, 0]), rows.y)
    sum(losses.values()).backward()
    found = {name: p.grad for name, p in student.named_parameters()}
    return found | {"losses": torch.stack([losses["fm"], losses["cm"]]).detach()}


def compare(plans: dict[str, Plan], folder: Path, compiled: bool) -> None:
    """On one rank of several: raise AssertionError unless each plan has losses and gradients of the published step."""
    if compiled:
        _without_inductor()
    for name, plan in plans.items():
        for dtype in [torch.float64] if compiled else BOUNDS:
            single, found = torch.load(folder / f"{dtype}.pt"), gradients(plan, dtype)
            dist.sum_(found["losses"])
            assert found.keys() == single.keys()
            errors = {key: float((found[key] - single[key]).norm() / single[key].norm()) for key in single}
            both = [torch.cat([tensor.flatten() for tensor in gradient.values()]) for gradient in (found, single)]
            total = float((both[0] - both[1]).norm() / both[1].norm())
            assert total < BOUNDS[dtype][0], f"{name}, {dtype}: relative error {total:.1e}"
            worst = max(errors, key=errors.__getitem__)
            assert errors[worst] < BOUNDS[dtype][1], f"{name}, {dtype}, {worst}: relative error {errors[worst]:.1e}"


def _without_inductor() -> None:
    """Compile to graphs that run eagerly: what is traced is tested, not the code generator."""
    compile_ = torch.compile
    torch.compile = lambda function, **options: compile_(function, backend="aot_eager", **options)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Losses and gradients of the published step."""
    folder = tmp_path_factory.mktemp("single")
    for dtype in BOUNDS:
        torch.save(published(dtype), folder / f"{dtype}.pt")
    return folder


def test_every_plan_has_the_gradients_of_the_published_step(single: Path) -> None:
    compare(PLANS, single, False)


@pytest.mark.parametrize("num", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_plan_has_them_on_several_processes(num: int, single: Path) -> None:
    ranks.run(num, compare, PLANS, single, False)


@pytest.mark.slow
def test_compiled_plans_have_them_on_two_processes(single: Path) -> None:
    ranks.run(2, compare, COMPILED, single, True)
