"""IMM: times of a group, closed forms on a Gaussian, then a hand evaluation of the group's loss."""

import math

import pytest
import torch
from miniature import student as student_of
from oracle import Gaussian

from facm.flow import path
from facm.flow.interface import START, Point
from facm.flow.time import TimeSampler
from facm.objectives.imm import IMM

LAW = Gaussian()


def tensors(num: int, *shape: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)


def drawn(imm: IMM, num: int = 4000, dtype=torch.float64) -> dict[str, torch.Tensor]:
    n = torch.randn(num, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return imm.times(n, TimeSampler(), START)


def point_at(times, velocity=None, y=None, seen=None, dim: int = 3) -> Point:
    """Points at given times; `seen` collects what is watched."""
    x0, x1 = (x.to(times["t"].dtype) for x in tensors(2, len(times["t"]), dim))
    return Point(
        x0=x0,
        x1=x1,
        x_t=path.interpolate(x0, x1, times["t"]),
        y=y,
        times=times,
        velocity=velocity or (lambda x, t, y: x1 - x0),
        watch=(lambda name, values: seen.update({name: values})) if seen is not None else lambda name, values: None,
    )


def exact(x, t, y, r):
    """The exact average velocity from t to r > t."""
    return (LAW.flow_map(x, t, r) - x) / path.expand(r - t, x)


def wave(x, t, y, r):
    """A network that depends on everything it is asked."""
    return torch.sin(2 * x + t[:, None]) + torch.cos(3 * r[:, None] - x) + (0 if y is None else 0.1 * y[:, None])


def test_samples_of_a_group_share_the_times_of_its_first():
    imm = IMM(group=4)
    n = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    times, moved = imm.times(n, TimeSampler(), START), n.clone()
    moved[1:4] += 1
    for name, values in times.items():
        assert (values.reshape(3, 4) == values.reshape(3, 4)[:, :1]).all()
        assert torch.equal(imm.times(moved, TimeSampler(), START)[name], values)
        alone = IMM(group=1).times(n[::4], TimeSampler(), START)
        assert torch.equal(alone[name], values[::4])


def test_half_a_group_is_refused():
    with pytest.raises(ValueError, match=r"objectives.imm.group: 10 samples are not whole groups of 4"):
        drawn(IMM(), 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constants", [{}, {"tau_low": 0.006, "k": 15, "gap": 1e-3}, {"k": 0}, {"k": 1, "gap": 0.2}])
def test_t_r_and_s_are_in_order_off_the_ends_and_a_gap_apart(constants, dtype):
    imm = IMM(group=1, **constants)
    times = drawn(imm, dtype=dtype)
    t, r, s = times["t"], times["r"], times["s"]
    slack = 1e-6 if dtype == torch.float32 else 1e-12
    assert (t >= 1 - imm.tau_high - slack).all()
    assert (r - t >= imm.gap - slack).all()
    assert (s >= r).all()
    assert (s <= 1 - imm.tau_low + slack).all()


def test_t_is_uniform_and_s_uniform_beyond_it():
    times = drawn(IMM(group=1, tau_low=0.1), 4000)
    share = (times["t"] - 0.006) / (0.9 - 0.006)
    beyond = (times["s"] - times["t"]) / (0.9 - times["t"])
    for uniform in (share, beyond):
        order = uniform.sort().values
        assert (order - (torch.arange(4000) + 0.5) / 4000).abs().max() < 0.03


def test_r_is_a_constant_decrement_of_eta_but_no_further_than_s_and_no_nearer_than_the_gap():
    imm, t = IMM(k=12, gap=1e-4), torch.tensor([0.006, 0.2, 0.5, 0.5, 0.9], dtype=torch.float64)
    s = torch.tensor([0.9, 0.9, 0.9, 0.505, 1.0], dtype=torch.float64)
    r = imm.nearer(t, s)
    step = (0.994 / 0.006) / 2**12
    assert r[0] == t[0] + 1e-4
    torch.testing.assert_close((1 - t[1:3]) / t[1:3] - (1 - r[1:3]) / r[1:3], torch.full((2,), step).double())
    assert r[3] == s[3]
    torch.testing.assert_close((1 - t[4]) / t[4] - (1 - r[4]) / r[4], torch.tensor(step).double())
    whole = IMM(k=0).nearer(t, s)  # one step over all of eta: straight to s
    assert torch.equal(whole, s)


def test_from_scratch_x_r_is_the_ddim_interpolant_of_eq_11():
    asked, times = [], drawn(IMM(), 8)
    point = point_at(times)

    def F_theta(*queries):
        asked.extend(queries)
        return tuple(torch.zeros_like(query.x) for query in queries)

    IMM()(F_theta, point)
    t, r = times["t"][:, None], times["r"][:, None]
    ddim = (r - (1 - r) / (1 - t) * t) * point.x1 + (1 - r) / (1 - t) * point.x_t
    torch.testing.assert_close(asked[1].x, ddim)
    torch.testing.assert_close(asked[1].x, path.interpolate(point.x0, point.x1, times["r"]))


def test_both_jumps_go_to_s_with_the_samples_labels_and_one_of_them_has_a_gradient():
    asked, times, y = [], drawn(IMM(group=2), 4), torch.tensor([3, 1, 0, 2])

    def F_theta(*queries):
        asked.append(queries)
        return tuple(wave(query.x, query.t, query.y, query.r) for query in queries)

    IMM(group=2)(F_theta, point_at(times, y=y))
    ((first, second),) = asked
    assert torch.equal(first.t, times["t"])
    assert torch.equal(second.t, times["r"])
    for query in (first, second):
        assert torch.equal(query.r, times["s"])
        assert query.y is y
        assert query.of == "student"
    assert first.grad
    assert not second.grad


@pytest.mark.parametrize("group", [1, 4])
def test_with_the_exact_flow_map_on_a_trajectory_the_loss_its_gradient_and_the_residual_vanish(group):
    imm, seen = IMM(group=group), {}
    times = drawn(imm, 16)
    shift = torch.zeros(16, 3, dtype=torch.float64, requires_grad=True)

    def velocity(x, t, y):  # of the trajectory from t to r, so that the Euler step is exact
        return exact(x, t, y, times["r"])

    def jump(x, t, r):  # also where r = t
        return exact(x, t, None, torch.where(r > t, r, r + 1e-3))

    def F_theta(*queries):
        (a, b) = (jump(query.x, query.t, query.r) for query in queries)
        return a + shift, b

    loss = imm(F_theta, point_at(times, velocity, seen=seen))["mmd"]
    loss.sum().backward()
    assert loss.abs().max() < 1e-9
    assert shift.grad.abs().max() < 1e-9
    assert seen["g"].max() < 1e-9


def test_with_the_velocity_as_teacher_the_residual_falls_with_the_gap():
    residuals = []
    for gap in (0.08, 0.04, 0.02):
        t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
        seen, times = {}, {"t": t, "r": t + gap, "s": torch.full_like(t, 0.95)}
        IMM(group=2)(student_of(exact), point_at(times, lambda x, t, y: LAW.velocity(x, t), seen=seen))
        residuals.append(seen["g"])
    for finer, coarser in zip(residuals[1:], residuals[:-1], strict=True):
        assert ((coarser / finer > 1.6) & (coarser / finer < 2.5)).all()


def test_the_loss_is_eq_67_with_the_weight_of_eq_13():
    imm, seen = IMM(group=3, a=2.0, b=5.0), {}
    times = drawn(imm, 6)
    point = point_at(times, y=torch.arange(6), seen=seen)
    got = imm(student_of(wave), point)["mmd"]
    t, r, s = (times[name] for name in ("t", "r", "s"))
    x_r = path.interpolate(point.x0, point.x1, r)
    y = [point.x_t[i] + (s[i] - t[i]) * wave(point.x_t, t, point.y, s)[i] for i in range(6)]
    z = [x_r[i] + (s[i] - r[i]) * wave(x_r, r, point.y, s)[i] for i in range(6)]
    groups = []
    for first in (0, 3):
        total, rows = 0.0, range(first, first + 3)
        tau, width = 1 - t[first].item(), (s - t)[first].item()
        for i in rows:
            for j in rows:
                for a, b, sign in ((y[i], y[j], 1), (z[i], z[j], 1), (y[i], z[j], -2)):
                    total += sign * math.exp(-max((a - b).norm().item(), 1e-8) / (3 * width))
        log_snr = 2 * math.log((1 - tau) / tau)
        rise = 2 / tau + 2 / (1 - tau)  # -d log_snr / d tau
        w = 0.5 / (1 + math.exp(log_snr - 5.0)) * rise * (1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2)
        groups += [w * total / 9] * 3
    torch.testing.assert_close(got, torch.tensor(groups, dtype=torch.float64))
    torch.testing.assert_close(
        seen["g"], torch.stack([(a - b).square().mean().sqrt() for a, b in zip(y, z, strict=True)]) / (r - t)
    )
    slope = (wave(x_r, r, point.y, s) - wave(point.x_t, t, point.y, s)) / (r - t)[:, None]
    torch.testing.assert_close(seen["tangent"], slope.square().mean(1).sqrt())


def test_a_group_of_one_is_a_consistency_loss():
    imm = IMM(group=1)
    times = drawn(imm, 5)
    point = point_at(times)
    got = imm(student_of(wave), point)["mmd"]
    x_r = path.interpolate(point.x0, point.x1, times["r"])
    y = point.x_t + (times["s"] - times["t"])[:, None] * wave(point.x_t, times["t"], None, times["s"])
    z = x_r + (times["s"] - times["r"])[:, None] * wave(x_r, times["r"], None, times["s"])
    k = torch.exp(-(y - z).norm(dim=1) / (3 * (times["s"] - times["t"])))
    want = 2 * imm.weight(times["t"]) * (1 - k)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-8)  # k(y, y) is exp(-eps / (D (s - t))), not 1


def test_samples_attract_what_they_match_and_repel_each_other():
    imm, width = IMM(group=2), torch.ones(2, dtype=torch.float64)
    y = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    far = torch.tensor([[0.0, 50.0], [1.0, 50.0]], dtype=torch.float64)
    imm.mmd(y, far, width).sum().backward()
    apart = -y.grad
    assert apart[0, 0] < 0 < apart[1, 0]
    y.grad = None
    imm.mmd(y, y.detach() + torch.tensor([0.0, 0.3], dtype=torch.float64), width).sum().backward()
    assert (-y.grad[:, 1] > 0).all()


@pytest.mark.parametrize("group", [1, 4])
def test_equal_jumps_have_no_discrepancy_and_no_gradient(group):
    (z,) = tensors(1, 8, 3, 2, 2)
    y = z.clone().requires_grad_()
    loss = IMM(group=group).mmd(y, z, torch.full((8,), 0.5, dtype=torch.float64))
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert y.grad.abs().max() < 1e-12


def test_groups_are_independent():
    imm, (y, z) = IMM(group=2), tensors(2, 6, 3)
    width = torch.tensor([0.2, 0.2, 0.5, 0.5, 0.9, 0.9], dtype=torch.float64)
    whole = imm.mmd(y, z, width)
    parts = torch.cat([imm.mmd(y[i : i + 2], z[i : i + 2], width[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(whole, parts)


def test_a_gradient_reaches_the_jump_from_t_only():
    answers, times = [], drawn(IMM(), 4)

    def F_theta(*queries):
        answers.extend(torch.sin(query.x.detach()).requires_grad_() for query in queries)
        return tuple(answers)

    IMM()(F_theta, point_at(times))["mmd"].sum().backward()
    assert answers[0].grad.any()
    assert answers[1].grad is None


def test_everything_is_finite_in_single_precision_at_the_ends_of_all_times():
    imm, seen = IMM(group=1), {}
    n = torch.tensor([[-40.0, -40.0], [-40.0, 40.0], [40.0, -40.0], [40.0, 40.0], [0.0, -40.0]])
    times = imm.times(n, TimeSampler(), START)
    network = torch.nn.Linear(64, 64)
    point = point_at(times, seen=seen, dim=64)
    loss = imm(student_of(lambda x, t, y, r: network(x)), point)["mmd"]
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(network.weight.grad).all()
    assert all(torch.isfinite(values).all() for values in seen.values())
    assert (imm.weight(times["t"]) > 0).all()


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"group": 0}, r"objectives.imm.group: 0 is outside \[1, inf\)"),
        ({"group": 4.0}, r"objectives.imm.group: must be a whole number, got 4.0 \(write 4\)"),
        ({"tau_low": -0.1}, r"objectives.imm.tau_low: -0.1 is outside \[0, 1\]"),
        ({"tau_high": 1.0}, r"objectives.imm.tau_high: 1.0 is outside \[0, 0.9999\]"),
        ({"gap": 0}, r"objectives.imm.gap: 0 is outside \(0, inf\)"),
        ({"tau_low": 0.5, "tau_high": 0.6, "gap": 0.1}, r"tau_low 0.5 plus gap 0.1 must be below tau_high 0.6"),
        ({"k": -1}, r"objectives.imm.k: -1 is outside \[0, inf\)"),
        ({"a": 0.5}, r"objectives.imm.a: 0.5 is outside \[1, inf\)"),
        ({"b": float("nan")}, r"objectives.imm.b: must be a finite number, got nan"),
        ({"b": "4"}, r"objectives.imm.b: must be a number, got '4'"),
        ({"eps": 0.0}, r"objectives.imm.eps: 0.0 is outside \(0, inf\)"),
    ],
)
def test_wrong_constants_are_refused_with_value_rule_and_key(constants, message):
    with pytest.raises(ValueError, match=message):
        IMM(**constants)
