"""Shortcut models: the dyadic times, closed forms on a Gaussian, then a hand evaluation and the queries."""

import pytest
import torch
from oracle import Gaussian

from facm.flow import path
from facm.flow.interface import START, Point
from facm.flow.time import TimeSampler
from facm.networks.backbones.mlp import MLP
from facm.objectives.shortcut import Shortcut

LAW = Gaussian()


def tensors(num: int, *shape: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)


def point_at(t, d, velocity=None, y=None, seen=None) -> Point:
    """Points at given times; `seen` collects what is watched."""
    t, d = (torch.as_tensor(values, dtype=torch.float64) for values in (t, d))
    x0, x1 = tensors(2, len(t), 3)
    return Point(
        x0=x0,
        x1=x1,
        x_t=path.interpolate(x0, x1, t),
        y=y,
        times={"t": t, "d": d},
        velocity=velocity or (lambda x, t, y: x1 - x0),
        watch=(lambda name, values: seen.update({name: values})) if seen is not None else lambda name, values: None,
    )


def drawn(shortcut: Shortcut, num: int = 4000, dtype=torch.float32, sampler=None) -> dict[str, torch.Tensor]:
    n = torch.randn(num, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return shortcut.times(n, sampler or TimeSampler(), START)


def exact(x, t, y, r):
    """The exact average velocity from t to r, the velocity where r = t."""
    span = path.expand(r - t, x)
    jump = (LAW.flow_map(x, t, r) - x) / torch.where(span > 0, span, 1.0)
    return torch.where(span > 0, jump, LAW.velocity(x, t))


def wave(x, t, y, r):
    """A network that depends on everything it is asked."""
    return torch.sin(2 * x + t[:, None]) + torch.cos(3 * r[:, None] - x) + (0 if y is None else 0.1 * y[:, None])


def student(student=wave, ema=wave, asked=None):
    """F_theta whose online and averaged weights are functions; `asked` collects the queries of each call."""

    def F_theta(*queries):
        if asked is not None:
            asked.append(queries)
        return tuple(
            {"student": student, "ema": ema}[query.of](query.x, query.t, query.y, query.r) for query in queries
        )

    return F_theta


@pytest.mark.parametrize("bootstrap", [0.0, 0.25, 1.0])
def test_the_share_of_jumps_is_bootstrap(bootstrap):
    share = (drawn(Shortcut(bootstrap=bootstrap))["d"] > 0).double().mean()
    assert share == bootstrap if bootstrap in (0, 1) else abs(share - bootstrap) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 7, 20])
def test_every_d_is_as_frequent_and_t_a_multiple_of_2d_that_a_jump_does_not_overshoot(levels, dtype):
    times = drawn(Shortcut(levels=levels, bootstrap=1.0), dtype=dtype)
    t, d = times["t"], times["d"]
    assert t.dtype == d.dtype == dtype
    num = [(d == 0.5**k).sum().item() for k in range(1, levels + 1)]
    assert sum(num) == len(d)
    assert all(abs(count / len(d) - 1 / levels) < 0.02 for count in num)
    assert (torch.remainder(t, 2 * d) == 0).all()
    assert (t + 2 * d <= 1).all()
    if levels > 1:
        assert set(t[d == 0.25].tolist()) == {0.0, 0.5}


def test_velocities_are_learned_on_the_finest_grid_or_at_the_samplers_times():
    flow_rows = {"bootstrap": 0.0, "levels": 3}
    grid = drawn(Shortcut(**flow_rows))
    assert set(grid["t"].tolist()) == {k / 8 for k in range(8)}
    sampler = TimeSampler("logit_normal", 0.3, 0.7)
    n = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    times = Shortcut(flow_times="time", **flow_rows).times(n, sampler, START)
    assert torch.equal(times["t"], sampler(n[:, 1]))
    assert not times["d"].any()


def test_extreme_normals_stay_on_the_grid():
    n = torch.tensor([[-1.0, 40.0, 40.0], [-1.0, -40.0, -40.0], [1.0, 40.0, 0.0]])
    times = Shortcut(bootstrap=0.5, levels=7).times(n, TimeSampler(), START)
    assert times["t"].tolist() == [1 - 2 / 128, 0.0, 1 - 1 / 128]
    assert times["d"].tolist() == [1 / 128, 0.5, 0.0]


def test_exact_jumps_compose_and_have_no_loss_and_no_residual():
    seen = {}
    d = [0.5, 0.25, 0.25, 0.125, 0.125, 0.0, 0.0]
    point = point_at([0, 0, 0.5, 0.25, 0.75, 0, 0.875], d, lambda x, t, y: LAW.velocity(x, t), seen=seen)
    losses = Shortcut(levels=4)(student(exact, exact), point)
    assert losses["fm"].abs().max() < 1e-20
    assert losses["bootstrap"].abs().max() < 1e-20
    assert seen["g"].max() < 1e-10


def test_the_smallest_jumps_target_is_missed_by_its_length_because_its_halves_are_velocities():
    misses = []
    for levels in (4, 5, 6):
        point = point_at([0.25, 0.5, 0.75], [0.5**levels] * 3, lambda x, t, y: LAW.velocity(x, t))
        misses.append(Shortcut(levels=levels)(student(exact, exact), point)["bootstrap"].sqrt())
    for finer, coarser in zip(misses[1:], misses[:-1], strict=True):
        ratio = coarser / finer
        assert (ratio > 1.7).all()
        assert (ratio < 2.4).all()


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_losses_are_those_of_a_hand_evaluation(with_labels):
    t, d = torch.tensor([0.5, 0.25, 0.75, 0.0]).double(), torch.tensor([0.25, 0.0, 0.125, 0.5]).double()
    y = torch.tensor([2, 1, 0, 3]) if with_labels else None
    seen, online, averaged = {}, wave, lambda x, t, y, r: 0.5 * wave(x, t, y, r)
    point = point_at(t, d, y=y, seen=seen)
    got = Shortcut(levels=3)(student(online, averaged), point)
    fm, bootstrap, g, tangent = [], [], [], []
    for i in range(4):
        one = (slice(i, i + 1),)
        x, v = point.x_t[one], (point.x1 - point.x0)[one]
        ti, di, yi = t[one], d[one], None if y is None else y[one]
        F = online(x, ti, yi, ti + 2 * di)
        if di == 0:
            error, slope = F - v, 0 * F
            fm.append(error.square().mean())
            bootstrap.append(torch.zeros(()))
        else:
            step = 0 * di if di == 0.125 else di
            s1 = averaged(x, ti, yi, ti + step)
            s2 = averaged(x + di * s1, ti + di, yi, ti + di + step)
            error, slope = F - (s1 + s2) / 2, (s2 - F) / di
            fm.append(torch.zeros(()))
            bootstrap.append(error.square().mean())
        g.append(error.square().mean().sqrt())
        tangent.append(slope.square().mean().sqrt() / 0.25)
    for name, want in [("fm", fm), ("bootstrap", bootstrap)]:
        torch.testing.assert_close(got[name], torch.stack(want).double())
    torch.testing.assert_close(seen["g"], torch.stack(g))
    torch.testing.assert_close(seen["tangent"], torch.stack(tangent))


@pytest.mark.parametrize(("target", "of"), [("ema", "ema"), ("online", "student")])
def test_two_small_calls_without_grad_and_one_whole_call_with_grad_are_made(target, of):
    asked = []
    point = point_at([0.5, 0.25, 0.0], [0.25, 0.0, 0.5], y=torch.tensor([5, 6, 7]))
    Shortcut(target=target)(student(asked=asked), point)
    told = [[(len(q.x), q.of, q.grad) for q in call] for call in asked]
    assert told == [[(2, of, False)], [(2, of, False)], [(3, "student", True)]]
    (first,), (second,), (last,) = asked
    assert first.y.tolist() == second.y.tolist() == [5, 7]
    assert (first.t.tolist(), first.r.tolist()) == ([0.5, 0.0], [0.75, 0.5])
    assert (second.t.tolist(), second.r.tolist()) == ([0.75, 0.5], [1.0, 1.0])
    assert (last.t.tolist(), last.r.tolist()) == ([0.5, 0.25, 0.0], [1.0, 0.25, 1.0])


def test_without_jumps_the_network_is_asked_once():
    asked = []
    losses = Shortcut()(student(asked=asked), point_at([0.5, 0.25], [0.0, 0.0]))
    assert len(asked) == 1
    assert not losses["bootstrap"].any()
    assert losses["fm"].all()


def test_a_gradient_reaches_the_one_answer_at_t_only():
    answers = []

    def F_theta(*queries):
        answers.extend(torch.sin(query.x.detach()).requires_grad_() for query in queries)
        return tuple(answers[-len(queries) :])

    losses = Shortcut()(F_theta, point_at([0.5, 0.25], [0.25, 0.0]))
    (losses["fm"] + losses["bootstrap"]).sum().backward()
    s1, s2, F = answers
    assert s1.grad is None
    assert s2.grad is None
    assert (F.grad != 0).all()


def test_the_targets_velocity_is_not_overwritten():
    point = point_at([0.5, 0.25], [0.25, 0.0])
    before = point.v.clone()
    Shortcut()(student(), point)
    assert torch.equal(point.v, before)


def test_a_network_that_is_trained_on_both_learns_jumps_that_compose():
    network = MLP(shape=(1,), num_classes=0, hidden=32, depth=2, auxiliary=True)
    shortcut, generator = Shortcut(levels=2, bootstrap=0.5, target="online"), torch.Generator().manual_seed(0)
    optimizer, totals = torch.optim.Adam(network.parameters(), 1e-2), []
    F_theta = student(network)

    def velocity(x, t, y):
        return LAW.velocity(x, t)

    for _ in range(150):
        x0, x1 = torch.randn(2, 128, 1, generator=generator)
        x1 = LAW.mean + LAW.std * x1
        times = shortcut.times(torch.randn(128, 3, generator=generator), TimeSampler(), START)
        x_t = path.interpolate(x0, x1, times["t"])
        losses = shortcut(F_theta, Point(x0=x0, x1=x1, x_t=x_t, y=None, times=times, velocity=velocity))
        total = (losses["fm"] + losses["bootstrap"]).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-10:]) < 0.05 * sum(totals[:10])
    x0, t = torch.linspace(-1.5, 1.5, 7)[:, None], torch.zeros(7)
    with torch.no_grad():
        jump = x0 + network(x0, t, None, t + 1)
    want = LAW.flow_map(x0, t, t + 1)
    assert (jump - want).abs().max() < 0.3 * (want - x0).abs().max()


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"bootstrap": 1.5}, r"objectives.shortcut.bootstrap: 1.5 is outside \[0, 1\]"),
        ({"levels": 0}, r"objectives.shortcut.levels: 0 is outside \[1, 20\]"),
        ({"levels": 7.0}, r"objectives.shortcut.levels: must be a whole number, got 7.0 \(write 7\)"),
        ({"levels": True}, r"objectives.shortcut.levels: must be a whole number, got True"),
        ({"target": "student"}, r"objectives.shortcut.target: 'student' is not one of ema, online"),
        ({"flow_times": "times"}, r"objectives.shortcut.flow_times: 'times' is not one of grid, time"),
    ],
)
def test_wrong_constants_are_refused_with_value_rule_and_key(constants, message):
    with pytest.raises(ValueError, match=message):
        Shortcut(**constants)
