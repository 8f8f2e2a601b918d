"""sCM: closed forms, the equations by hand, every option, then the published code's losses and gradients."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from miniature import Points, parsed, randomised
from miniature import student as student_of
from oracle import Analytic, Gaussian, golden, golden_losses, golden_network

from facm import objectives
from facm.flow import path
from facm.flow.guidance import Guidance
from facm.flow.interface import Point, Progress
from facm.flow.time import TimeSampler
from facm.networks.backbones.mlp import MLP
from facm.objectives.scm import SCM, AdaptiveWeight, residual
from facm.runtime.resume import Work
from facm.training import loop as train
from facm.training import target_velocity

METHODS = ["dual", "func"]
BASE = yaml.safe_load((Path(__file__).parents[2] / "presets" / "base.yaml").read_text())
SHARED = {name: BASE["distill"][name] for name in objectives.SHARED}
T = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)
LATE = Progress(100, 100)  # the warm-up is over


def tensors(num: int, *shape: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)


def point_at(x_t, v, t, y=None, progress=LATE, watch=lambda name, values: None) -> Point:
    zero = torch.zeros_like(x_t)
    times = {"t": t}
    return Point(zero, zero, x_t, y, times, velocity=lambda x, t, y: v, progress=progress, watch=watch)


def answering(F, dF_dt):
    """A student that gives these answers whatever it is asked."""
    return lambda query: ((F, dF_dt),)


def loss_at(scm, F, dF_dt, v, progress=LATE):
    return scm(answering(F, dF_dt), point_at(torch.zeros_like(F), v, T, progress=progress))["cm"]


def with_random_weight(scm: SCM) -> SCM:
    """The objective with a logvar that differs from time to time."""
    generator = torch.Generator().manual_seed(1)
    for parameter in scm.module.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return scm


# Closed forms


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("conditioning", ["expanded", "auxiliary"])
@pytest.mark.parametrize("tangent", ["normalize", "clamp", "none"])
def test_with_the_exact_average_velocity_the_loss_and_its_gradient_vanish(tangent, conditioning, method):
    law, (x_t,), a = Gaussian(), tensors(1, 5, 3), torch.ones((), dtype=torch.float64, requires_grad=True)
    asked = []

    def network(x, t, y, r):
        asked.append(r)
        return a * law.average_velocity(x, t)

    scm, told = SCM(conditioning=conditioning, tangent=tangent), {}
    point = point_at(x_t, law.velocity(x_t, T), T, watch=told.__setitem__)
    loss = scm(student_of(network, method), point)["cm"]
    assert loss.abs().max() < 1e-18
    loss.sum().backward()
    assert a.grad.abs() < 1e-9
    assert told["g"].max() < 1e-10
    assert (asked[0] is None) == (conditioning == "expanded")
    early = SCM(tangent=tangent, warmup=1.0)(student_of(lambda x, t, y, r: law.average_velocity(x, t), method), point)
    assert early["cm"].abs().max() < 1e-18  # step 100 of 100
    begun = point_at(x_t, law.velocity(x_t, T), T, progress=Progress(1, 100))
    loss = SCM(tangent=tangent, warmup=1.0)(student_of(lambda x, t, y, r: law.average_velocity(x, t), method), begun)
    assert loss["cm"].max() > 1e-3  # during the warm-up the exact answer is not the target


def test_at_the_start_of_the_warm_up_the_target_is_the_velocity():
    law, (x_t,) = Gaussian(), tensors(1, 5, 3)
    v = law.velocity(x_t, T)
    (dF_dt,) = tensors(1, 5, 3)
    assert loss_at(SCM(), v, dF_dt, v, Progress(1, 10**9)).max() < 1e-12


# The equations, by hand


def hand_target(F, dF_dt, v, r=1.0, c=0.1):
    """sg(F) - g / (|g|_2 / sqrt(D) + c), sample by sample."""
    rows = []
    for i, t in enumerate(T.tolist()):
        g = math.cos(math.pi / 2 * t) * (F[i] - v[i] - r * (1 - t) * dF_dt[i])
        rows.append(F[i] - g / (g.norm() / math.sqrt(g.numel()) + c))
    return torch.stack(rows).detach()


def test_the_target_is_a_step_against_the_tangent_whose_length_is_bounded():
    F, dF_dt, v = tensors(3, 5, 2, 3, 3)
    torch.testing.assert_close(SCM().target(F, dF_dt, v, T), hand_target(F, dF_dt, v))
    torch.testing.assert_close(SCM().target(F, dF_dt, v, T, 0.25), hand_target(F, dF_dt, v, r=0.25))
    torch.testing.assert_close(SCM(norm_c=2.0).target(F, dF_dt, v, T), hand_target(F, dF_dt, v, c=2.0))
    far = SCM().target(F, 1e6 * dF_dt, v, T) - F
    assert (far.square().mean((1, 2, 3)).sqrt() - 1).abs().max() < 1e-4


def test_clamp_and_none_replace_the_normalisation():
    F, dF_dt, v = tensors(3, 5, 2, 3, 3)
    g = torch.cos(math.pi / 2 * T).reshape(5, 1, 1, 1) * residual(F, dF_dt, v, T)
    assert g.abs().max() > 0.6
    torch.testing.assert_close(SCM(tangent="none").target(F, dF_dt, v, T), F - g)
    torch.testing.assert_close(SCM(tangent="clamp", clamp=0.6).target(F, dF_dt, v, T), F - g.clamp(-0.6, 0.6))


def test_beta_weighs_the_tangent_before_it_is_normalised():
    F, dF_dt, v = tensors(3, 5, 3)
    g = residual(F, dF_dt, v, T)
    unweighted = SCM(beta="one", tangent="none").target(F, dF_dt, v, T)
    torch.testing.assert_close(unweighted, F - g)
    power = SCM(beta="power", p=2.0, tangent="none").target(F, dF_dt, v, T)
    torch.testing.assert_close(power, F - (1 - T**2).unsqueeze(1) * g)


def test_the_warm_up_lasts_its_share_of_the_training():
    scm = SCM(warmup=0.25)
    assert [scm.warmed(Progress(step, 400)) for step in (1, 50, 100, 101, 400)] == [0.01, 0.5, 1.0, 1.0, 1.0]
    assert SCM(warmup=0.0).warmed(Progress(1, 400)) == 1.0
    assert SCM(warmup=0.08).warmed(Progress(5000, 125_000)) == 0.5  # 10,000 steps, as in the paper


def test_gradients_reach_the_network_through_its_value_alone_and_are_the_normalised_tangent():
    F, dF_dt, v = (x.clone().requires_grad_() for x in tensors(3, 5, 3))
    scm = with_random_weight(SCM())
    logvar = scm.module(T).detach().double()
    loss_at(scm, F, dF_dt, v).sum().backward()
    assert dF_dt.grad is None and v.grad is None
    g_n = F.detach() - hand_target(F.detach(), dF_dt.detach(), v.detach())
    torch.testing.assert_close(F.grad, 2 / 3 * torch.exp(-logvar).unsqueeze(1) * g_n)


# The learned weight


def test_the_learned_weight_is_one_at_the_start_and_its_optimum_is_the_error_itself():
    F, dF_dt, v = tensors(3, 5, 3)
    scm = SCM()
    e = loss_at(SCM(weight="none"), F, dF_dt, v)
    loss = loss_at(scm, F, dF_dt, v)
    torch.testing.assert_close(loss, e)
    loss.sum().backward()
    last = scm.module.logvar[1]
    assert abs(last.bias.grad.item() - (1 - e).sum().item()) < 1e-5  # d/d logvar = 1 - e exp(-logvar)
    logvar = torch.log(e).detach().requires_grad_()
    scm.weighted(e.detach(), logvar, point_at(F, v, T)).sum().backward()
    assert logvar.grad.abs().max() < 1e-12


def test_each_sample_has_its_own_weight_unless_the_published_codes_average_is_asked_for():
    F, dF_dt, v = tensors(3, 5, 3)
    e = loss_at(SCM(weight="none"), F, dF_dt, v)
    scm = with_random_weight(SCM())
    logvar = scm.module(T).double()
    assert logvar.std() > 0.1
    torch.testing.assert_close(loss_at(scm, F, dF_dt, v), torch.exp(-logvar) * e + logvar)
    broadcast = torch.exp(-logvar).reshape(5, 1, 1, 1) * e + logvar.reshape(5, 1, 1, 1)  # (B, 1, 1, B)
    batch = loss_at(with_random_weight(SCM(weight="batch")), F, dF_dt, v)
    torch.testing.assert_close(batch.mean(), broadcast.mean())
    assert abs(batch.mean() - loss_at(scm, F, dF_dt, v).mean()) > 1e-3


def test_the_weights_network_disturbs_no_random_number_and_is_the_same_each_time():
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    first, second = SCM().module, SCM().module
    assert torch.equal(torch.rand(4), want)
    assert first is not second
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert SCM(weight="none").module is None
    scm = SCM()
    assert scm.module is scm.module


def test_after_two_steps_the_weights_network_has_moved_in_every_layer():
    network = MLP(shape=(3,), num_classes=2, hidden=8, depth=2)
    scm = SCM(width=16)
    before = [parameter.detach().clone() for parameter in scm.module.parameters()]
    optimizer = torch.optim.AdamW([*network.parameters(), *scm.module.parameters()], 1e-2, weight_decay=0.0)
    x_t, v = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    point = point_at(x_t, v, torch.linspace(0.01, 0.99, 16), y=torch.arange(16) % 3)
    for _ in range(2):
        optimizer.zero_grad()
        scm(student_of(network), point)["cm"].mean().backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, scm.module.parameters(), strict=True))


def test_a_killed_training_goes_on_with_the_weights_network_and_its_moments(tmp_path):
    def loop(key: str) -> train.Loop:
        data, p = Points(), parsed(distill__steps=4, distill__batch_size=8)
        network = randomised(MLP(shape=(2,), num_classes=3, hidden=8, depth=1))
        job = train.Job("distill", network, SCM(width=8), data, p.distill, target_velocity.Data(), p.runtime)
        return train.Loop(job, Work("distill", key, tmp_path), str(tmp_path / key))

    def state(run: train.Loop) -> list[torch.Tensor]:
        return [*run.state.network.parameters(), *run.job.objective.module.parameters()]

    whole, killed = loop("whole"), loop("killed")
    for _ in range(4):
        whole.advance()
    for _ in range(2):
        killed.advance()
    killed.save()
    killed.work.close()
    resumed = loop("killed")
    assert resumed.state.step == 2
    for _ in range(2):
        resumed.advance()
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))
    start = SCM(width=8).module.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(whole.job.objective.module.parameters(), start, strict=True))


# Times, names and constants


def test_one_normal_per_sample_becomes_its_time():
    n = torch.tensor([[-1.0], [0.0], [2.0]])
    assert torch.equal(SCM().times(n, TimeSampler(), LATE)["t"], TimeSampler()(n[:, 0]))


def build(shared=None, drop=None, **constants):
    block = {key: value for key, value in (BASE["objectives"]["scm"] | constants).items() if key != drop}
    return objectives.build("scm", block, SHARED | (shared or {}))


def test_the_defaults_are_those_of_base_yaml():
    assert build() == SCM()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": {"beta": "sin"}}, r"distill.beta: 'sin' is not one of one, power, cos"),
        ({"shared": {"p": 0}}, r"distill.p: 0 is outside \(0, inf\)"),
        ({"shared": {"conditioning": "auxilliary"}}, r"distill.conditioning: 'auxilliary' is not one of"),
        ({"warmup": 1.5}, r"objectives.scm.warmup: 1.5 is outside \[0, 1\]"),
        ({"warmup": 10000}, r"objectives.scm.warmup: 10000 is outside \[0, 1\]"),
        ({"tangent": "normalise"}, r"objectives.scm.tangent: 'normalise' is not one of .* \(did you mean 'normalize'"),
        ({"norm_c": 0}, r"objectives.scm.norm_c: 0 is outside \(0, inf\)"),
        ({"clamp": -1}, r"objectives.scm.clamp: -1 is outside \(0, inf\)"),
        ({"weight": True}, r"objectives.scm.weight: True is not one of sample, batch, none"),
        ({"width": 0}, r"objectives.scm.width: 0 is outside \[1, inf\)"),
        ({"width": 16.5}, r"objectives.scm.width: must be a whole number, got 16.5"),
        ({"drop": "weight"}, r"objectives.scm: 'weight' is missing"),
        ({"alpha": "one"}, r"objectives.scm: 'alpha' stands under distill"),
    ],
)
def test_wrong_constants_are_refused_with_value_rule_and_place(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


# The published code

PUBLISHED = Guidance(
    w=1.75, t_low=0.125, null=1000, conditioning="expanded", scratch_form="code", scratch_condition="t"
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("step", "total", "gradient"),
    [
        (5000, 0.6973186862, [0.09434056, 0.37764487, 0.06001542, -1.00194035]),
        (20000, 0.7135801221, [0.05708982, 0.38718915, 0.04683394, -1.00234983]),
    ],
)
def test_the_analytic_cases_of_the_published_code_are_met(step, total, gradient, method):
    x0, x1, t, y = Analytic.batch()
    student = Analytic(torch.tensor([0.7, -0.4, 0.3, 0.2], dtype=torch.float64, requires_grad=True))
    x_t = path.interpolate(x0, x1, t)
    v = PUBLISHED.distilled(Analytic.teacher, x_t, t, y)
    point = point_at(x_t, v, t, y=y, progress=Progress(step, 20000))
    loss = SCM(warmup=0.5, weight="none")(student_of(student, method), point)["cm"].mean()
    assert abs(loss.item() - total) < 1e-10
    loss.backward()
    torch.testing.assert_close(student.w.grad, torch.tensor(gradient, dtype=torch.float64), atol=6e-9, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_and_all_gradients_of_the_published_code_are_met_with_its_averaged_weights(method):
    g, case = golden(), "scm_distill_iter2500"
    scm, network = SCM(warmup=1.0, weight="batch"), golden_network("expanded", "student").train()
    scm.module.load_state_dict(golden("scm/AdaLoss/"))
    x_t, t, y = path.interpolate(g["x0"], g["x1"], g["t"]), g["t"], g["y"]
    point = point_at(x_t, g["expanded/v_cfg"], t, y=y, progress=Progress(2500, 10_000))
    loss = scm(student_of(network, method), point)["cm"].mean()
    loss.backward()
    assert abs(loss.item() - golden_losses()[case]["total"]) < 1e-5
    gradients = golden(f"{case}/grad/")
    named = dict(network.named_parameters()) | {f"AdaLoss.{k}": p for k, p in scm.module.named_parameters()}
    trained = {key: p.grad for key, p in named.items() if p.grad is not None}
    assert trained.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert (trained[key] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8, key


def test_the_golden_weights_network_fits_by_name_and_tells_its_samples_apart():
    head = AdaptiveWeight()
    head.load_state_dict(golden("scm/AdaLoss/"))
    assert head(golden()["t"]).std() > 1e-3
