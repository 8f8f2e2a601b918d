"""The objectives: closed forms, identities, then the published code's losses and gradients."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from miniature import student as student_of
from oracle import Analytic, Gaussian, golden, golden_losses, golden_network

from facm import objectives
from facm.flow import losses, path
from facm.flow.guidance import Guidance
from facm.flow.interface import Objective, Point, Progress, Query
from facm.flow.time import TimeSampler
from facm.networks.backbones.mlp import MLP
from facm.objectives.facm import FACM
from facm.objectives.fm import FM

METHODS = ["dual", "func"]
BASE = yaml.safe_load((Path(__file__).parents[2] / "presets" / "base.yaml").read_text())
SHARED = {name: BASE["distill"][name] for name in objectives.SHARED}


def point_at(x0, x1, t, v=None, y=None, in_fm=None) -> Point:
    x_t = path.interpolate(x0, x1, t)
    v = x1 - x0 if v is None else v
    times = {"t": t} if in_fm is None else {"t": t, "in_fm": in_fm}
    return Point(x0=x0, x1=x1, x_t=x_t, y=y, times=times, velocity=lambda x, t, y: v)


def tensors(num: int, *shape: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)


KEYS = torch.arange(5)
T = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)


def answers(F_fm, F_cm, dF_dt):
    """A student that gives these answers whatever it is asked."""
    return lambda *queries: tuple((F_cm, dF_dt) if query.dx is not None else F_fm for query in queries)


# FACM: closed forms


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("conditioning", ["expanded", "auxiliary"])
def test_with_the_exact_average_velocity_the_residual_of_eq_11_and_the_cm_loss_vanish(conditioning, method):
    law, (x_t,) = Gaussian(), tensors(1, 5, 3)
    F, v, facm = student_of(lambda x, t, y, r: law.average_velocity(x, t), method), law.velocity(x_t, T), FACM()
    c = path.c_cm(T, conditioning)
    ((v_bar, dv_bar),) = F(Query(x_t, c.t, None, c.r, dx=v, dt=1.0))
    assert facm.residual(v_bar, dv_bar, v, T).abs().max() < 1e-10
    assert facm.cm(v_bar, dv_bar, v, T).abs().max() < 1e-18
    torch.testing.assert_close(path.endpoint(x_t, T, v_bar), law.flow_map(x_t, T, torch.ones_like(T)))


def test_with_the_exact_velocity_the_fm_loss_vanishes():
    law, (x_t,) = Gaussian(), tensors(1, 5, 3)
    v = law.velocity(x_t, T)
    assert FACM().fm(v, v).abs().max() < 1e-14


@pytest.mark.parametrize("clamp", [None, 0.5, 1e9])
def test_the_target_of_eq_12_is_the_relaxation_of_eq_13_where_nothing_is_clamped(clamp):
    F, dF, v = tensors(3, 5, 2, 4, 4)
    facm = FACM(clamp=clamp)
    alpha = (1 - T**0.5)[:, None, None, None]
    v_bar = v + (1 - T)[:, None, None, None] * dF
    v_tar, relaxed = facm.target(F, facm.residual(F, dF, v, T), T), (1 - alpha) * F + alpha * v_bar
    free = (F - v_bar).abs() < (clamp or 1e9)
    torch.testing.assert_close(v_tar[free], relaxed[free])
    assert free.all() if clamp != 0.5 else not free.all()
    torch.testing.assert_close(((F - v_tar) / alpha)[~free].abs(), torch.full_like(F, clamp or 0.0)[~free])


def test_the_gradient_of_the_cm_loss_is_its_closed_form():
    F, dF, v = tensors(3, 5, 2, 4, 4)
    F.requires_grad_()
    FACM().cm(F, dF, v, T).sum().backward()
    expand = (slice(None), None, None, None)
    g = (F.detach() - v - (1 - T)[expand] * dF).clamp(-1, 1)
    alpha, beta = (1 - T**0.5)[expand], torch.cos(torch.pi / 2 * T)[expand]
    norm = ((alpha * g).square().mean((1, 2, 3), keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(F.grad, 2 * beta * alpha * g / (32 * norm))


def test_no_gradient_reaches_the_velocity_the_derivative_the_target_or_the_denominator():
    F_fm, F_cm, dF, v, x = (tensor.requires_grad_() for tensor in tensors(5, 5, 2, 4, 4))
    point = point_at(x, x, T, v=v.detach())
    terms = FACM()(answers(F_fm, F_cm, dF), point)
    gradients = torch.autograd.grad(terms["cm"].sum(), [F_cm, F_fm, dF, v], allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1:] == (None, None, None)
    facm = FACM()
    g = facm.residual(F_cm, dF, v, T)
    assert not g.requires_grad
    assert not facm.target(F_cm, g, T).requires_grad
    e = losses.squared_error(F_cm, facm.target(F_cm, g, T))
    weight = (torch.cos(torch.pi / 2 * T) / (e + 1e-3).sqrt()).detach()
    torch.testing.assert_close(gradients[0], torch.autograd.grad((weight * e).sum(), F_cm)[0])


def test_the_options_of_the_cm_loss_are_what_they_say():
    F, dF, v = tensors(3, 5, 2, 4, 4)
    mean = FACM(norm_q=0.0, alpha="one", beta="one", clamp=None).cm(F, dF, v, T)
    torch.testing.assert_close(mean, losses.squared_error(F, v + (1 - T)[:, None, None, None] * dF))
    total = FACM(norm_q=0.0, alpha="one", beta="one", clamp=None, reduction="sum").cm(F, dF, v, T)
    torch.testing.assert_close(total, 32 * mean)
    slopes = []
    for detached in (True, False):
        F_cm = F.clone().requires_grad_()
        FACM(norm_sg_denominator=detached, reduction="sum").cm(F_cm, dF, v, T).sum().backward()
        slopes.append(F_cm.grad)
    torch.testing.assert_close(slopes[1][:3], slopes[0][:3] / 2, rtol=1e-2, atol=0)  # eq. 18 at large e


def test_without_the_anchor_its_pass_is_not_made_and_the_cm_loss_is_the_same():
    network = MLP(shape=(3,), num_classes=0, hidden=8, depth=1).double()
    x0, x1 = tensors(2, 5, 3)
    asked = []

    def F_theta(*queries):
        asked.append(len(queries))
        return student_of(network)(*queries)

    with_anchor = FACM(anchor=2.0)(F_theta, point_at(x0, x1, T))
    half_anchor = FACM(anchor=1.0)(F_theta, point_at(x0, x1, T))
    without = FACM(anchor=0.0)(F_theta, point_at(x0, x1, T))
    assert asked == [2, 2, 1]
    assert torch.equal(with_anchor["cm"], without["cm"])
    torch.testing.assert_close(with_anchor["fm"], 2 * half_anchor["fm"])
    assert not without["fm"].any()


# The student


@pytest.mark.parametrize("method", METHODS)
def test_the_total_derivative_is_that_of_a_step_along_the_trajectory(method):
    network = MLP(shape=(3,), num_classes=4, hidden=16, depth=2, auxiliary=True).double()
    (x, v), y, h = tensors(2, 5, 3), torch.arange(5) % 4, 1e-6
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64))
    F, dF = student_of(network, method)(Query(x, T, y, torch.ones_like(T), dx=v, dt=1.0))[0]
    there, here = (network(x + s * v, T + s, y, torch.ones_like(T)) for s in (h, -h))
    torch.testing.assert_close(dF, (there - here).detach() / (2 * h), atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(F, network(x, T, y, torch.ones_like(T)))
    assert F.requires_grad
    assert not dF.requires_grad


def test_a_query_without_grad_has_no_graph():
    network, (x, v) = MLP(shape=(3,), num_classes=0, hidden=8, depth=1).double(), tensors(2, 5, 3)
    F, (F_cm, _), F_grad = student_of(network)(
        Query(x, T, None, grad=False), Query(x, T, None, dx=v, dt=1.0, grad=False), Query(x, T, None)
    )
    assert not F.requires_grad
    assert not F_cm.requires_grad
    assert F_grad.requires_grad


def generator_states(device: str) -> list[torch.Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if device == "cuda" else [])


CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("method", METHODS)
def test_all_passes_of_a_step_share_their_dropout_masks_and_leave_the_generators_alone(method, device):
    network = MLP(shape=(3,), num_classes=0, hidden=64, depth=2, dropout=0.5).to(device, torch.float64)
    x, v, t = (tensor.to(device) for tensor in [*tensors(2, 5, 3), T])
    student, before = student_of(network, method, KEYS.to(device)), generator_states(device)
    F_fm, (F_cm, dF), other = student(Query(x, t, None), Query(x, t, None, dx=v, dt=1.0), Query(x, 2 - t, None))
    assert all(torch.equal(a, b) for a, b in zip(generator_states(device), before, strict=True))
    torch.testing.assert_close(F_fm, F_cm)
    assert not torch.allclose(F_fm, other)
    h = 1e-6
    student.begin(KEYS.to(device))
    there, here = student(Query(x + h * v, t + h, None), Query(x - h * v, t - h, None))
    torch.testing.assert_close(dF, (there - here).detach() / (2 * h), atol=1e-8, rtol=1e-7)
    student.begin(KEYS.to(device) + 1)
    assert not torch.allclose(F_fm, student(Query(x, t, None))[0])
    student.begin(None)
    torch.testing.assert_close(student(Query(x, t, None))[0], network(x, t))


def test_gradients_asked_in_two_calls_are_refused():
    student = student_of(MLP(shape=(3,), num_classes=0, hidden=8, depth=1))
    x, query = torch.zeros(5, 3), Query(torch.zeros(5, 3), T.float(), None)
    student(query)
    student.frozen()(x, T.float(), None)
    with pytest.raises(RuntimeError, match="asked for gradients twice: put all queries with grad in one F_theta call"):
        student(query)
    student.begin(None)
    student(query)


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_that_would_never_fire_is_refused_by_name(kind):
    network = MLP(shape=(3,), num_classes=0, hidden=8, depth=1)
    student, x = student_of(network), torch.zeros(5, 3)
    getattr(network.head, kind)(lambda *_: None)
    student(Query(x, T.float(), None))  # without a derivative it fires
    student.begin(None)
    with pytest.raises(RuntimeError, match="module 'network.head' has a full backward hook, which never fires"):
        student(Query(x, T.float(), None, dx=x, dt=1.0))


# FM


@pytest.mark.parametrize("conditioning", ["plain", "expanded", "auxiliary"])
def test_fm_asks_its_fraction_of_the_samples_in_the_fm_format(conditioning):
    n = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    for fraction, low, high in [(0.0, 0, 0), (0.3, 0.28, 0.32), (0.5, 0.48, 0.52), (1.0, 1, 1)]:
        fm = FM(conditioning=conditioning, fraction=fraction)
        times = fm.times(n, TimeSampler(), Progress(1, 1))
        t, c = times["t"], fm.condition(times["t"], times["in_fm"])
        assert torch.equal(t, TimeSampler()(n[:, 0]))
        asked_fm = times["in_fm"]
        assert low <= asked_fm.double().mean() <= high
        for want, rows in [(path.c_fm(t, conditioning), asked_fm), (path.c_cm(t, conditioning), ~asked_fm)]:
            assert torch.equal(c.t[rows], want.t[rows])
            assert c.r is want.r is None or torch.equal(c.r[rows], want.r[rows])


def test_fm_is_eq_10_and_without_cosine_eq_1():
    x0, x1, F = tensors(3, 5, 2, 4, 4)
    point = point_at(x0, x1, T, in_fm=torch.ones_like(T, dtype=torch.bool))
    student = answers(F, None, None)
    torch.testing.assert_close(FM()(student, point)["fm"], losses.velocity_loss(F, x1 - x0))
    plain = FM(cosine="none")(student, point)["fm"]
    torch.testing.assert_close(plain, (F - x1 + x0).square().mean((1, 2, 3)))


# The registry


@pytest.mark.parametrize("conditioning", ["expanded", "auxiliary"])
@pytest.mark.parametrize("name", ["facm", "fm"])
def test_a_second_step_on_the_same_batch_has_a_smaller_loss(name, conditioning):
    objective = objectives.build(name, BASE["objectives"][name], SHARED | {"conditioning": conditioning})
    network = MLP(shape=(3,), num_classes=2, hidden=8, depth=2, auxiliary=conditioning == "auxiliary")
    optimizer, generator = torch.optim.AdamW(network.parameters(), 1e-2), torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 16, 3, generator=generator)
    times = objective.times(torch.randn(16, objective.normals, generator=generator), TimeSampler(), Progress(1, 1))
    point = point_at(x0, x1, times["t"], y=torch.arange(16) % 3, in_fm=times.get("in_fm"))
    totals = []
    for _ in range(2):
        terms = objective(student_of(network), point)
        assert set(terms) == set(objective.terms)
        assert all(term.shape == (16,) for term in terms.values())
        total = torch.stack([term.mean() for term in terms.values()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[1] < totals[0]


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_the_defaults_of_the_fields_are_those_of_base_yaml(name):
    cls = objectives.OBJECTIVES.load(name)
    fields = {field.name: field.default for field in dataclasses.fields(cls) if field.name not in objectives.SHARED}
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()} == (
        BASE["objectives"][name]
    )
    assert dataclasses.asdict(objectives.build(name, BASE["objectives"][name], SHARED)) == dataclasses.asdict(cls())


def test_a_class_that_is_no_objective_is_refused_with_the_base_to_take(monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES._classes, "fm", "Condition")
    with pytest.raises(TypeError, match=r"facm/objectives/fm.py: Condition must be a subclass of Objective.*from facm"):
        objectives.load("fm")


def test_an_objective_of_a_loss_alone_has_defaults_for_the_rest():
    class Least(Objective):
        def __call__(self, F_theta, point):
            return {"loss": point.t}

    least, n = Least(), torch.randn(4, 1)
    assert torch.equal(least.times(n, TimeSampler(), Progress(1, 1))["t"], TimeSampler()(n[:, 0]))
    assert (least.normals, least.group, least.samplers, least.tools) == (1, 1, ("consistency",), ())
    assert least.module is least.target_decay is least.phase(Progress(1, 1)) is None and not least.learns_velocity
    assert least.parts == (least,)
    with pytest.raises(NotImplementedError, match="Objective has no loss"):
        Objective()(None, None)


def test_an_objective_says_which_shared_fields_it_has_no_use_for():
    assert objectives.ignored("facm") == ()
    assert objectives.ignored("fm") == ("alpha", "beta", "p")


def changed(name="facm", shared=None, drop=None, **constants):
    block = {key: value for key, value in (BASE["objectives"].get(name, {}) | constants).items() if key != drop}
    return lambda: objectives.build(name, block, SHARED | (shared or {}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed("facn"), r"distill.objective: unknown 'facn' \(did you mean 'facm'\?\); known: cd, ect"),
        (changed(clampp=1), r"objectives.facm: unknown 'clampp' \(did you mean 'clamp'\?\); known: anchor"),
        (changed(alpha="one"), r"objectives.facm: 'alpha' stands under distill"),
        (changed(drop="norm_c"), r"objectives.facm: 'norm_c' is missing; presets/base.yaml"),
        (changed(shared={"alpah": 1}), r"params.yaml, distill: unknown 'alpah' \(did you mean 'alpha'\?\)"),
        (
            changed(shared={"alpha": "powr"}),
            r"distill.alpha: 'powr' is not one of one, power, cos \(did you mean 'power'",
        ),
        (
            changed(shared={"alpha": "cosine"}),
            r"distill.alpha: 'cosine' is not one of one, power, cos \(did you mean 'cos'\?",
        ),
        (changed(shared={"beta": 1}), r"distill.beta: 1 is not one of one, power, cos"),
        (changed(shared={"p": 0}), r"distill.p: 0 is outside \(0, inf\)"),
        (changed(shared={"conditioning": "plain"}), r"distill.conditioning: 'plain' asks v and v_bar alike"),
        (changed(norm_c="1e-3"), r"objectives.facm.norm_c: must be a number, got '1e-3' \(in quotes it is text"),
        (changed(norm_q=1.5), r"objectives.facm.norm_q: 1.5 is outside \[0, 1\]"),
        (changed(clamp=0.0), r"objectives.facm.clamp: 0.0 is outside \(0, inf\) or null"),
        (changed(anchor=-1), r"objectives.facm.anchor: -1 is outside \[0, inf\)"),
        (changed(anchor=True), r"objectives.facm.anchor: must be a number, got True"),
        (changed(norm_sg_denominator=1), r"objectives.facm.norm_sg_denominator: must be true or false, got 1"),
        (changed(reduction="avg"), r"objectives.facm.reduction: 'avg' is not one of mean, sum"),
        (changed(cosine="full"), r"objectives.facm.cosine: 'full' is not one of auto, channel, sample, none"),
        (changed(cosine_eps=0), r"objectives.facm.cosine_eps: 0 is outside \(0, inf\)"),
        (changed("fm", fraction=1.1), r"objectives.fm.fraction: 1.1 is outside \[0, 1\]"),
        (changed("fm", cosine=None), r"objectives.fm.cosine: None is not one of"),
        (changed("fm", cosine_eps=float("nan")), r"objectives.fm.cosine_eps: must be a finite number, got nan"),
    ],
)
def test_wrong_names_and_constants_are_refused_with_value_rule_and_place(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The published code

ANALYTIC = [
    ("expanded", "distill", 1.75, 2.8342610681, 0.3464345119, [0.96414891, 3.46526295, 1.13590224, -3.23394443]),
    ("expanded", "distill", 1.0, 1.5250786273, 0.3435539946, [0.79847433, 2.25480086, 1.0868307, -2.78144763]),
    ("expanded", "scratch", 1.0, 3.9679223752, 0.3026554000, [1.15052188, -0.08764737, 2.60453865, 0.55430696]),
    ("expanded", "scratch", 1.75, 7.9475886823, 0.3282299911, [1.63053953, 0.39097287, 4.05489359, 0.62534548]),
    ("auxiliary", "distill", 1.75, 4.5014094453, 0.3468163802, [0.48282739, 1.26448183, 0.22648771, -4.51580156]),
    ("auxiliary", "distill", 1.0, 2.7318558802, 0.3439186124, [0.44409353, 0.79986934, 0.22068328, -4.06279779]),
    ("auxiliary", "scratch", 1.0, 3.3006975728, 0.3031457304, [1.35873627, -0.04412137, 0.28846577, -0.0796499]),
    ("auxiliary", "scratch", 1.75, 6.9064744942, 0.3292797782, [2.02811559, 0.00104085, 0.43273638, -0.0711657]),
]


def published(conditioning: str, w: float) -> Guidance:
    """Eq. 9 as the published code has it."""
    return Guidance(w=w, t_low=0.125, null=1000, conditioning=conditioning, scratch_form="code", scratch_condition="t")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("conditioning", "mode", "w", "total", "cm", "gradient"), ANALYTIC)
def test_the_analytic_cases_of_the_published_code_are_met(conditioning, mode, w, total, cm, gradient, method):
    x0, x1, t, y = Analytic.batch()
    student = Analytic(torch.tensor([0.7, -0.4, 0.3, 0.2], dtype=torch.float64, requires_grad=True))
    x_t, u, guidance = path.interpolate(x0, x1, t), x1 - x0, published(conditioning, w)
    if mode == "distill":
        v = guidance.distilled(Analytic.teacher, x_t, t, y)
    else:
        v = guidance.scratch(student, x_t, t, y, u=u)
    facm = FACM(conditioning=conditioning, cosine_eps=1e-8)
    terms = facm(student_of(student, method), point_at(x0, x1, t, v=v, y=y))
    means = {name: term.mean() for name, term in terms.items()}
    assert abs(means["cm"].item() - cm) < 1e-10
    assert abs(means["fm"].item() + means["cm"].item() - total) < 1e-10
    (means["fm"] + means["cm"]).backward()
    torch.testing.assert_close(student.w.grad, torch.tensor(gradient, dtype=torch.float64), atol=6e-9, rtol=0)


CASES = [f"{case}/facm_{kind}" for case in ("expanded", "aux") for kind in ("distill", "scratch")]
CASES = [f"{case}_{kind}" for case in CASES for kind in ("cfg", "nocfg")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_the_losses_and_all_gradients_of_the_published_code_are_met(case, method):
    g, name, folder = golden(), case.replace("distill_cfg", "distill"), case.split("/")[0]
    x0, x1, t, y = g["x0"], g["x1"], g["t"], g["y"]
    conditioning = {"expanded": "expanded", "aux": "auxiliary"}[folder]
    guidance = published(conditioning, 1.0 if "nocfg" in case else 1.75)
    network = golden_network(folder, "student").train()
    x_t = path.interpolate(x0, x1, t)
    if "distill" in case:
        v = guidance.distilled(golden_network(folder, "teacher"), x_t, t, y)
    else:
        v = guidance.scratch(network, x_t, t, y, u=x1 - x0)
    terms = FACM(conditioning=conditioning)(student_of(network, method), point_at(x0, x1, t, v=v, y=y))
    means = {key: term.mean() for key, term in terms.items()}
    (means["fm"] + means["cm"]).backward()
    want = golden_losses()[name]
    for key, value in (means | {"total": means["fm"] + means["cm"]}).items():
        assert abs(value.item() - want[key]) < 1e-5 * want[key], key
    gradients = golden(f"{name}/grad/")
    trained = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    assert trained.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert (trained[key] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, key


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("folder", "conditioning"), [("expanded", "expanded"), ("aux", "auxiliary")])
def test_the_students_value_and_total_derivative_are_the_published_ones(folder, conditioning, method):
    g, c = golden(), path.c_cm(golden()["t"], conditioning)
    x_t, v = path.interpolate(g["x0"], g["x1"], g["t"]), g[f"{folder}/v_cfg"]
    student = student_of(golden_network(folder, "student"), method)
    ((F_cm, dF_dt),) = student(Query(x_t, c.t, g["y"], c.r, dx=v, dt=1.0))
    for got, want in [(F_cm, g[f"{folder}/F_cm"]), (dF_dt, g[f"{folder}/dFdt"])]:
        assert (got - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("name", ["check_number", "check_choice"])
def test_a_stale_import_says_what_took_its_place(name: str) -> None:
    with pytest.raises(ImportError, match=rf"{name} is gone: annotate the field .* check_fields\(self\)"):
        exec(f"from facm.objectives import {name}")
