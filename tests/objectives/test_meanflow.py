"""MeanFlow and improved MeanFlow: the exact average velocity, the published code's values, what each option does."""

import pytest
import torch
from miniature import student as student_of
from oracle import Analytic, Gaussian, golden, golden_losses, golden_network
from torch import Tensor

from facm.flow import path
from facm.flow.guidance import Guidance
from facm.flow.interface import Point, Progress
from facm.flow.time import TimeSampler, two_times
from facm.objectives.imeanflow import IMeanFlow
from facm.objectives.meanflow import MeanFlow

METHODS, BOTH = ["dual", "func"], [MeanFlow, IMeanFlow]
LAW = Gaussian()
T = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.9], dtype=torch.float64)
R = torch.tensor([0.02, 0.7, 1.0, 0.85, 1.0], dtype=torch.float64)


def average_velocity(x: Tensor, t: Tensor, y: Tensor | None, r: Tensor) -> Tensor:
    """The exact average velocity from t to r, without a division by r - t."""
    t, r = path.expand(t, x), path.expand(r, x)
    slope = ((r + t) * (1 + LAW.std**2) - 2) / (LAW.spread(t) * (LAW.spread(r) + LAW.spread(t)))
    return LAW.mean + slope * (x - t * LAW.mean)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def point(t: Tensor = T, r: Tensor = R, v: Tensor | None = None, x_t: Tensor | None = None, **fields) -> Point:
    x = normal(len(t), 3) if x_t is None else x_t
    velocity = (lambda x, t, y: LAW.velocity(x, t)) if v is None else (lambda x, t, y: v)
    return Point(**{"x0": x, "x1": x, "x_t": x, "y": None, "times": {"t": t, "r": r}, "velocity": velocity} | fields)


def test_the_average_velocity_of_these_tests_takes_t_to_r():
    x = normal(5, 3)
    moved = x + path.expand(R - T, x) * average_velocity(x, T, None, R)
    torch.testing.assert_close(moved, LAW.flow_map(x, T, R))
    torch.testing.assert_close(average_velocity(x, T, None, T), LAW.velocity(x, T))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
def test_with_the_exact_average_velocity_the_loss_and_g_vanish(kind, method):
    seen = {}
    losses = kind()(student_of(average_velocity, method), point(watch=lambda name, values: seen.update({name: values})))
    (loss,) = losses.values()
    assert loss.abs().max() < 1e-18
    assert seen["g"].max() < 1e-10
    assert seen["tangent"].min() > 0.1


@pytest.mark.parametrize("kind", BOTH)
def test_the_loss_is_the_weighted_distance_from_the_meanflow_identity(kind):
    F, dF, v, x = (normal(5, 2, 4, 4, seed=seed) for seed in range(4))
    F.requires_grad_()
    tangents = []

    def F_theta(query):
        if query.dx is None:
            return (5 * query.x,)  # the network's own velocity, r = t
        tangents.append((query.dx, query.dt, query.dr))
        return ((F, dF),)

    e = (F - v - path.expand(R - T, v) * dF).square().flatten(1).sum(1)
    (loss,) = kind(norm_c=0.2, norm_q=0.75)(F_theta, point(v=v, x_t=x)).values()
    torch.testing.assert_close(loss, e / (e + 0.2) ** 0.75)
    (gradient,) = torch.autograd.grad(loss.sum(), F, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad((e / (e + 0.2).detach() ** 0.75).sum(), F)[0])
    ((dx, dt, dr),) = tangents
    assert torch.equal(dx, v if kind is MeanFlow else 5 * x) and dt == 1.0 and dr is None
    (mean,) = kind(norm_q=0.0, reduction="mean")(F_theta, point(v=v, x_t=x)).values()
    torch.testing.assert_close(mean, e / 32)


@pytest.mark.parametrize("kind", BOTH)
def test_no_gradient_reaches_the_derivative(kind):
    F, dF = normal(5, 3, seed=1).requires_grad_(), normal(5, 3, seed=2).requires_grad_()
    (loss,) = kind()(lambda query: (query.x,) if query.dx is None else ((F, dF),), point()).values()
    assert torch.autograd.grad(loss.sum(), [F, dF], allow_unused=True)[1] is None


def test_t_comes_before_r_and_a_share_has_them_equal():
    n, time = normal(4000, 3), TimeSampler()
    t, r = two_times(n, time, 0.0)
    assert (t <= r).all() and (t < r).double().mean() > 0.99
    assert torch.equal(torch.minimum(time(n[:, 0]), time(n[:, 1])), t)
    for share in (0.25, 0.75, 1.0):
        t_equal, r_equal = two_times(n, time, share)
        assert torch.equal(t_equal, t)
        assert (t_equal == r_equal).double().mean().item() == pytest.approx(share, abs=0.03)
    assert MeanFlow(equal=0.25).times(n, time, Progress(1, 1)).keys() == {"t", "r"}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"equal": 1.5}, r"equal: 1.5 is outside \[0, 1\]"),
        ({"reduction": "total"}, "reduction: 'total' is not one of mean, sum"),
        ({"norm_c": 0}, r"norm_c: 0 is outside \(0, inf\)"),
        ({"norm_q": "1e-3"}, r"norm_q: must be a number, got '1e-3' \(in quotes"),
    ],
)
def test_wrong_constants_are_refused_with_value_rule_and_key(kind, fields, message):
    with pytest.raises(ValueError, match=f"params.yaml, objectives.{kind.__name__.lower()}.{message}"):
        kind(**fields)


# The published reproduction (ali-vilab/FACM): means, exponent 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("mode", "total", "gradient"),
    [
        ("distill", 0.9991009064, [0.19619206, 0.05996683, 0.25359238, -0.69748707]),
        ("scratch", 0.9994008565, [0.29803517, -0.03773637, 0.05127721, -0.00105072]),
    ],
)
def test_the_analytic_cases_of_the_published_code_are_met(mode, total, gradient, method):
    x0, x1, t, y = Analytic.batch()
    student = Analytic(torch.tensor([0.7, -0.4, 0.3, 0.2], dtype=torch.float64, requires_grad=True))
    x_t = path.interpolate(x0, x1, t)
    guidance = Guidance(w=1.75, t_low=0.125, null=1000, conditioning="auxiliary")
    v = guidance.distilled(Analytic.teacher, x_t, t, y) if mode == "distill" else x1 - x0
    asked = point(t, 1 - 0.5 * (1 - t), v=v, x_t=x_t, y=y)
    loss = MeanFlow(reduction="mean")(student_of(student, method), asked)["meanflow"].mean()
    assert abs(loss.item() - total) < 1e-10
    loss.backward()
    torch.testing.assert_close(student.w.grad, torch.tensor(gradient, dtype=torch.float64), atol=6e-9, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_and_all_gradients_of_the_published_code_are_met(method):
    g, name = golden(), "meanflow_distill"
    t, r = torch.minimum(g["t"], g["meanflow_r"]), torch.maximum(g["t"], g["meanflow_r"])
    x_t = path.interpolate(g["x0"], g["x1"], t)
    guidance = Guidance(w=1.75, t_low=0.125, null=1000, conditioning="auxiliary")
    v = guidance.distilled(golden_network("aux", "teacher"), x_t, t, g["y"])
    network = golden_network("aux", "student").train()
    asked = point(t, r, v=v, x_t=x_t, y=g["y"])
    loss = MeanFlow(reduction="mean")(student_of(network, method), asked)["meanflow"].mean()
    loss.backward()
    assert abs(loss.item() - golden_losses()[name]["total"]) < 1e-5
    gradients = golden(f"{name}/grad/")
    trained = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    assert trained.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert (trained[key] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8, key
