"""What holds for every objective: it trains every backbone, its targets carry no gradient, it costs what docs say."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import BASE, CONSTANTS, Points, parsed, randomised, student, write_latents
from oracle import normal_grid
from torch import Tensor, nn

from facm import objectives
from facm.data.latents.store import LatentSet
from facm.flow import path
from facm.flow.guidance import Guidance
from facm.flow.interface import Point, Progress, Query
from facm.flow.time import TimeSampler
from facm.inference.sampler import for_network
from facm.networks import backbones
from facm.networks.backbones.mlp import MLP
from facm.runtime.resume import Work
from facm.training import loop as train
from facm.training import target_velocity
from facm.training.batch import Batch
from facm.training.passes import Passes
from facm.training.step import Step

ROOT = Path(__file__).parents[2]
NAMES = list(objectives.OBJECTIVES)
ROWS = 256


def objective_of(name: str, **changes: Any) -> Any:
    """With the constants of presets/base.yaml."""
    shared = {key: BASE["distill"][key] for key in objectives.SHARED}
    return objectives.build(name, BASE["objectives"][name] | changes, shared)


def points_network(objective: Any) -> nn.Module:
    """A small network without classes that takes the objective's conditions."""
    auxiliary = objective.conditioning == "auxiliary"
    return randomised(MLP(shape=(2,), num_classes=0, hidden=8, depth=1, auxiliary=auxiliary))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> LatentSet:
    return write_latents(tmp_path_factory.mktemp("latents"))


# Training


@pytest.mark.parametrize("mode", ["distill", "scratch"])
@pytest.mark.parametrize("backbone", CONSTANTS)
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_move_every_weight_and_log_what_collapse_shows_by(name, backbone, mode, latents, tmp_path) -> None:
    data: Any = Points() if backbone in backbones.POINTS else latents
    objective, guidance = objective_of(name), Guidance(w=2.0, t_low=0.1, null=data.num_classes)
    sizes = {"shape": data.shape, "num_classes": data.num_classes}
    auxiliary = objective.conditioning == "auxiliary"
    network = randomised(backbones.build(backbone, CONSTANTS[backbone], **sizes, auxiliary=auxiliary))
    velocity = target_velocity.Scratch(dataclasses.replace(guidance, conditioning=objective.conditioning))
    if mode == "distill":
        velocity = target_velocity.teacher(backbones.build(backbone, CONSTANTS[backbone], **sizes), guidance)
    before = copy.deepcopy(network.state_dict())
    p = parsed(distill__steps=2, distill__batch_size=8, distill__dropout=0.1)
    work, log = Work("distill", "k", tmp_path), str(tmp_path / "log")
    loop = train.Loop(train.Job("distill", network, objective, data, p.distill, velocity, p.runtime), work, log)
    loop.advance()
    loop.advance()
    assert loop.state.skipped == 0
    unmoved = [key for key, weight in network.named_parameters() if torch.equal(weight, before[key])]
    if name in ("shortcut", "cd"):  # no row may have been drawn at which a small piece is asked
        unmoved = [key for key in unmoved if not key.startswith(("y_embedder", "r_embedder"))]
    assert [key for key in unmoved if not key.startswith("y_embedder")] == []
    curves = set(loop.log.rows[-1])
    assert {f"loss_{term}" for term in objective.terms} | {"velocity_error", "grad_norm"} <= curves
    if name != "fm":
        assert {"g", "tangent"} <= curves


@pytest.mark.parametrize("name", NAMES)
def test_the_samplers_that_an_objective_names_can_draw_with_its_network(name) -> None:
    objective = objective_of(name)
    assert objective.samplers
    network = points_network(objective)
    for sampler in objective.samplers:
        drawing = for_network(sampler, objective.conditioning, "fm", nfe=3)
        x1, nfe = drawing(network, torch.randn(drawing.draws, 4, 2, dtype=torch.float64), None, None)
        assert nfe == 3 and x1.shape == (4, 2) and x1.isfinite().all()


# Gradients


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_queries_with_a_gradient_carries_one(name) -> None:
    objective = objective_of(name)
    network = points_network(objective)
    frozen = copy.deepcopy(network.double())
    rate = torch.ones((), dtype=torch.float64, requires_grad=True)

    def F_theta(*queries):
        answers = []
        for query in queries:
            answering = network if query.grad and query.of == "student" else frozen
            F = answering(query.x, query.t, query.y, query.r)
            answers.append(F if query.dx is None else (F, rate * query.dx + frozen(query.x, query.t, query.y, query.r)))
        return tuple(answers)

    losses = objective(F_theta, point(objective, lambda x, t, y: 1 - x))
    torch.stack([term.sum() for term in losses.values()]).sum().backward()
    assert set(losses) == set(objective.terms)
    assert all(term.shape == (ROWS,) for term in losses.values())
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())
    assert all(weight.grad is None for weight in [*frozen.parameters(), rate])


def point(objective: Any, velocity: Any) -> Point:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, ROWS, 2, dtype=torch.float64, generator=generator).unbind(0)
    times = objective.times(normals(objective), TimeSampler(), Progress(2, 4))
    return Point(
        x0=x0, x1=x1, x_t=path.interpolate(x0, x1, times["t"]), y=None, times=times, velocity=velocity,
        progress=Progress(2, 4),
    )  # fmt: skip


def normals(objective: Any) -> Tensor:
    """Quantiles of the normal in each column, in an order of its own, so that shares of rows are exact."""
    generator = torch.Generator().manual_seed(1)
    columns = [normal_grid(ROWS)[torch.randperm(ROWS, generator=generator)] for _ in range(objective.normals)]
    return torch.stack(columns, 1)


# Cost


def documented() -> dict[str, list[float]]:
    """docs/methods.md: passes with gradient, tangents, passes without, velocities, forward passes in all."""
    table = (ROOT / "docs/methods.md").read_text().partition("## What a step costs")[2]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.MULTILINE)
    return {name: [float(cell) for cell in cells.split("|")[:5]] for name, cells in rows}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_costs_the_forward_passes_that_the_docs_tell(name) -> None:
    objective = objective_of(name)
    data, rows = Points(), {"graph": 0, "tangent": 0, "frozen": 0, "teacher": 0}
    sizes = {"shape": data.shape, "num_classes": data.num_classes, "hidden": 8, "depth": 1}
    network = MLP(**sizes, auxiliary=objective.conditioning == "auxiliary")

    def asked(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        rows["graph" if torch.is_grad_enabled() else "frozen"] += x.shape[0]
        rows["tangent"] += x.shape[0] if not isinstance(x, Tensor) else 0

    def teacher_asked(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        rows["teacher"] += arguments[0].shape[0]

    teacher = MLP(**sizes)
    network.register_forward_pre_hook(asked)
    teacher.register_forward_pre_hook(teacher_asked)
    passes = Passes(network)
    others = dict.fromkeys(("ema", "phase", "target"), lambda: Passes(network))
    velocity = target_velocity.teacher(teacher, Guidance(w=2.0, null=3))
    step = Step(passes, objective, velocity, TimeSampler(), null=3, others=others)
    y = torch.arange(ROWS) % 3
    x0, x1 = torch.randn(2, ROWS, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    step.gradients(Batch(x0, x1, y, normals(objective).float(), None, ROWS), Progress(1, 100))
    graph, tangent, frozen, velocities = (rows[key] / ROWS for key in ("graph", "tangent", "frozen", "teacher"))
    velocities /= 2
    total = 3 * graph + tangent + frozen + 2 * velocities
    assert [graph, tangent, frozen, velocities, total] == documented()[name]


# A student of exact answers


def test_the_fake_student_of_these_tests_is_asked_as_the_real_one() -> None:
    network = MLP(shape=(2,), num_classes=0, hidden=8, depth=1)
    objective = objective_of("facm")
    losses = objective(student(network.double()), point(objective, lambda x, t, y: -x))
    assert set(losses) == {"fm", "cm"}


def test_some_rows_keep_the_dropout_masks_that_they_have_in_the_whole_batch() -> None:
    network = randomised(MLP(shape=(2,), num_classes=0, hidden=8, depth=1, dropout=0.5)).train()
    x, t = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 6)
    rows = torch.tensor([True, False, True, True, False, False])
    asking = student(network, keys=torch.arange(6))
    (whole,) = asking(Query(x, t, None, grad=False))
    (some,) = asking(Query(x[rows], t[rows], None, grad=False, rows=rows))
    torch.testing.assert_close(some, whole[rows])
    assert not torch.allclose(some, network(x[rows], t[rows]), atol=0.01), "there are masks"
