"""ECT, iCT and CD: consistency of two neighbouring points of one trajectory."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from miniature import student as student_of
from oracle import Gaussian, normal_grid
from torch import Tensor

from facm.flow import path
from facm.flow.interface import Point, Progress
from facm.flow.time import TimeSampler, karras, sigma_of, time_of
from facm.objectives.cd import CD
from facm.objectives.ect import ECT
from facm.objectives.ict import ICT

KINDS, LAW = [ECT, ICT, CD], Gaussian()
T = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def point(s: Tensor, velocity=None, x_t: Tensor | None = None, **fields) -> Point:
    x = normal(5, 3) if x_t is None else x_t
    velocity = velocity or (lambda x, t, y: LAW.velocity(x, t))
    return Point(**{"x0": x, "x1": x, "x_t": x, "y": None, "times": {"t": T, "s": s}, "velocity": velocity} | fields)


def exact(x, t, y, r=None):
    return LAW.average_velocity(x, t)


@pytest.mark.parametrize("conditioning", ["expanded", "auxiliary"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_exact_jump_on_the_exact_trajectory_the_loss_and_g_vanish(kind, conditioning):
    s, seen = T + 0.3 * (1 - T), {}

    def chord(x, t, y):  # the step that lands on the trajectory
        return (LAW.flow_map(x, T, s) - x) / path.expand(s - T, x)

    objective = kind(conditioning=conditioning, **({"solver": "euler"} if kind is CD else {}))
    asked = point(s, chord, watch=lambda name, values: seen.update({name: values}))
    (loss,) = objective(student_of(exact), asked).values()
    assert loss.abs().max() < 1e-8
    assert seen["g"].max() < 1e-10 and seen["tangent"].min() > 0.01


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_a_step_of_the_teacher_misses_the_trajectory_with_its_order(solver, order):
    """g, the miss over the step, falls with the order of the rule."""
    missed = []
    for share in (0.1, 0.05, 0.025):
        seen = {}
        asked = point(T + share * (1 - T), watch=lambda name, values, seen=seen: seen.update({name: values}))
        CD(solver=solver)(student_of(exact), asked)
        missed.append(seen["g"])
    for coarse, fine in ((missed[0], missed[1]), (missed[1], missed[2])):
        assert (coarse / fine).mean().item() == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_papers(kind):
    F, F_s, v, x = (normal(5, 3, seed=seed) for seed in range(4))
    s = T + 0.4 * (1 - T)
    asked = []

    def F_theta(*queries):
        asked.extend(queries)
        return F, F_s

    objective = kind(solver="euler", distance="pseudo_huber", c=0.2) if kind is CD else kind()
    (loss,) = objective(F_theta, point(s, lambda x, t, y: v, x)).values()
    column = slice(None), None
    x_s = x + (s - T)[column] * v
    gap = x + (1 - T)[column] * F - x_s - (1 - s)[column] * F_s
    c = {ECT: 0.0, ICT: 0.00054 * math.sqrt(3), CD: 0.2}[kind]
    distance = (gap.square().sum(1) + c**2).sqrt() - c
    weight = 1.0 if kind is CD else 1 / ((1 - T) / T - (1 - s) / s)
    torch.testing.assert_close(loss, weight * distance)
    assert torch.equal(asked[0].x, x) and torch.equal(asked[0].t, T) and asked[0].grad
    torch.testing.assert_close(asked[1].x, x_s)
    assert torch.equal(asked[1].t, s) and not asked[1].grad and asked[1].of == "student"


@pytest.mark.parametrize(("of", "decay"), [("ema", None), ("target", 0.95)])
def test_cd_can_ask_an_average_and_take_squares(of, decay):
    F, F_s, x, asked = normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2), []
    (loss,) = CD(target=of)(lambda *queries: asked.extend(queries) or (F, F_s), point(T + 0.01, x_t=x)).values()
    assert asked[1].of == of and CD(target=of).target_decay == decay and CD().target_decay is None
    f_s = asked[1].x + (0.99 - T)[:, None] * F_s
    torch.testing.assert_close(loss, (x + (1 - T)[:, None] * F - f_s).square().mean(1))


def test_cd_can_leave_the_distance_to_a_tool():
    F, F_s, x, asked = normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2), []
    cd, handed = CD(distance="lpips"), []

    def lpips(a, b):
        handed.extend((a, b))
        return (a - b).abs().sum(1)

    at = dataclasses.replace(point(T + 0.01, x_t=x), tools={"lpips": lpips})
    (loss,) = cd(lambda *queries: asked.extend(queries) or (F, F_s), at).values()
    f_t, f_s = x + (1 - T)[:, None] * F, asked[1].x + (0.99 - T)[:, None] * F_s
    torch.testing.assert_close(handed[0], f_t)
    torch.testing.assert_close(handed[1], f_s)
    torch.testing.assert_close(loss, (f_t - f_s).abs().sum(1))
    assert cd.tools == ("lpips",) and CD().tools == ()


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_target(kind):
    F, F_s = normal(5, 3).requires_grad_(), normal(5, 3, seed=1).requires_grad_()
    (loss,) = kind()(lambda *queries: (F, F_s), point(T + 0.01)).values()
    gradients = torch.autograd.grad(loss.sum(), [F, F_s], allow_unused=True)
    assert gradients[0].abs().min() > 0 and gradients[1] is None


# Times


def test_ect_shrinks_the_distance_by_q_with_every_stage():
    n, ect = normal_grid(101)[:, None], ECT()
    assert [ect.stage(Progress(step, 16)) for step in (1, 2, 3, 16)] == [0, 0, 1, 7]
    time = TimeSampler("logit_normal", -1.1, 2.0)
    gaps = []
    for step in range(1, 9):
        times = ect.times(n, time, Progress(step, 8))
        sigma, low = sigma_of(times["t"]), sigma_of(times["s"])
        ratio = 1 - 2.0**-step * (1 + 8 * torch.sigmoid(-sigma))
        torch.testing.assert_close(low, sigma * ratio.clamp(min=0), atol=1e-9, rtol=1e-6)
        assert (times["s"] > times["t"]).all() and (times["s"] <= 1).all()
        gaps.append((times["s"] - times["t"]).mean().item())
    assert all(a > b for a, b in pairwise(gaps))
    assert (ect.times(n, time, Progress(1, 8))["s"] == 1).any(), "the target is the data itself"


def test_the_points_of_ect_stay_apart_in_float32_to_its_last_stage():
    n = torch.cat([normal_grid(1001), torch.tensor([-60.0, 60.0])])[:, None].float()
    for ect in (ECT(q=256.0, stages=1), ECT(stages=13), ECT(q=4.0, stages=6)):
        times = ect.times(n, TimeSampler("logit_normal", -1.1, 2.0), Progress(ect.stages, ect.stages))
        assert (times["s"] > times["t"]).all() and (times["s"] <= 1).all()
        x = normal(len(n), 2).float()
        asked = point(times["s"], lambda x, t, y: -x, x, times=times)
        (loss,) = ect(student_of(lambda x, t, y, r: x * torch.sin(9 * path.expand(t, x))), asked).values()
        assert loss.isfinite().all()


def test_ict_doubles_its_grid_and_draws_neighbours_by_the_law_of_ln_sigma():
    ict, steps = ICT(s0=10, s1=80), 400
    assert [ict.intervals(Progress(step, steps)) for step in (1, 100, 101, 201, 301, 400)] == [10, 10, 20, 40, 80, 80]
    n = normal_grid(20000)[:, None]
    times = ict.times(n, TimeSampler(), Progress(1, steps))
    levels = karras(11).flip(0)
    levels[0] = 0.0
    t, s = (time_of(levels)[i] for i in (slice(1, None), slice(None, -1)))
    edges = torch.special.ndtr((levels.log() + 1.1) / 2.0)
    for i in range(10):
        here = (times["t"] - t[i]).abs() < 1e-12
        assert torch.equal(times["s"][here], s[i].expand(int(here.sum())))
        share = ((edges[i + 1] - edges[i]) / edges[-1]).item()
        assert here.double().mean().item() == pytest.approx(share, abs=2e-4)
    assert ict.intervals(Progress(1, 2)) == 10, "fewer steps than doublings"


def test_cd_draws_every_pair_of_neighbours_as_often():
    times = CD(levels=5).times(normal_grid(4000)[:, None], TimeSampler(), Progress(1, 1))
    pairs, counts = torch.stack([times["t"], times["s"]]).unique(dim=1, return_counts=True)
    assert counts.tolist() == [1000] * 4
    torch.testing.assert_close(pairs[1][:-1], pairs[0][1:])
    assert pairs[1][-1] == 1 and pairs[0][0].item() == pytest.approx(1 / 81)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extreme", [-9.0, 9.0])
def test_extreme_draws_stay_finite(kind, extreme):
    objective = kind()
    times = objective.times(torch.full((5, 1), extreme), TimeSampler(), Progress(1, 10))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    asked = Point(x0=x, x1=x, x_t=x, y=None, times=times, velocity=lambda x, t, y: -x)
    (loss,) = objective(student_of(lambda x, t, y, r: x), asked).values()
    assert loss.isfinite().all() and loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ECT(stages=0), r"params.yaml, objectives.ect.stages: 0 is outside \[1, inf\)"),
        (lambda: ECT(stages=1.5), "objectives.ect.stages: must be a whole number, got 1.5"),
        (lambda: ECT(q=1), r"objectives.ect.q: 1 is outside \(1, inf\)"),
        (lambda: ECT(q=256), r"objectives.ect: q 256 in 8 stages ends at a distance of 5e-20, must be at least 0.0001"),
        (lambda: ECT(c=-1), r"objectives.ect.c: -1 is outside \[0, inf\)"),
        (lambda: ICT(s0=0), r"objectives.ict.s0: 0 is outside \[1, inf\)"),
        (lambda: ICT(s0=20, s1=10), r"objectives.ict.s1: 10 must be at least s0 20"),
        (lambda: ICT(huber="1e-3"), r"objectives.ict.huber: must be a number, got '1e-3' \(in quotes"),
        (lambda: CD(levels=1), r"objectives.cd.levels: 1 is outside \[2, inf\)"),
        (lambda: CD(solver="heum"), r"objectives.cd.solver: 'heum' is not one of euler, heun \(did you mean 'heun'"),
        (lambda: CD(target="mean"), "objectives.cd.target: 'mean' is not one of online, ema, target"),
        (lambda: CD(decay=1), r"objectives.cd.decay: 1 is outside \[0, 0.9999\]"),
        (lambda: CD(distance="lpip"), r"objectives.cd.distance: 'lpip' is not one of l2, .*did you mean 'lpips'"),
    ],
)
def test_wrong_constants_are_refused_with_value_rule_and_key(call, message):
    with pytest.raises(ValueError, match=message):
        call()
