"""facm/training/step.py by what can be counted: FLOPs in passes of one network, graphs, calls of the teacher.

F is one forward pass of a batch, a attention's share of it. A step needs 9 F, and the tangent's attention 1.5 a F.
"""

import pytest
import torch
from torch import Tensor

from benchmarks import meter
from benchmarks.variants import PLANS, SIZES, Size, Workload, gradient
from facm.objectives.facm import FACM

NETWORKS = {"tiny": SIZES["tiny"], "much attention": Size(hidden=32, depth=3, heads=2, tokens=144, batch=2)}


def workload(size: str = "tiny") -> Workload:
    return Workload.create(NETWORKS[size], torch.device("cpu"))


@pytest.mark.parametrize("size", NETWORKS)
@pytest.mark.parametrize("plan", ["joint", "lean"])
def test_a_step_costs_nine_passes_and_the_tangents_attention(size: str, plan: str) -> None:
    load = workload(size)
    counts = meter.flops(load.forward)
    F, a = sum(counts.values()), meter.attention_share(counts)
    assert sum(meter.flops(load.variant(plan).run).values()) <= 1.01 * (9 + 1.5 * a) * F


def test_a_recomputed_step_costs_three_passes_more() -> None:
    load = workload("much attention")
    counts = meter.flops(load.forward)
    F, a = sum(counts.values()), meter.attention_share(counts)
    assert sum(meter.flops(load.variant("checkpointed").run).values()) <= 1.01 * (12 + 3 * a) * F


@pytest.mark.parametrize("plan", PLANS)
def test_the_primal_has_a_graph_and_the_tangent_none(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    cm = FACM.cm

    def spy(self: FACM, F_cm: Tensor, dF_dt: Tensor, v: Tensor, t: Tensor) -> Tensor:
        seen.append((F_cm, dF_dt))
        return cm(self, F_cm, dF_dt, v, t)

    monkeypatch.setattr(FACM, "cm", spy)
    workload().variant(plan).run()
    ((F_cm, dF_dt),) = seen
    assert F_cm.requires_grad
    assert dF_dt.grad_fn is None and not dF_dt.requires_grad
    assert float(dF_dt.norm()) > 0


@pytest.mark.parametrize("plan", PLANS)
def test_the_teacher_is_called_once_with_both_halves_of_the_guidance(plan: str) -> None:
    load, rows = workload(), []
    load.teacher.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    load.step(load.student, PLANS[plan]).run()
    assert rows == [2 * load.size.batch]


def test_gradients_are_those_of_one_step_however_often_it_is_run() -> None:
    variant = workload().variant("joint")
    variant.run()
    once = gradient(variant.network)
    variant.run()
    assert torch.equal(gradient(variant.network), once)
