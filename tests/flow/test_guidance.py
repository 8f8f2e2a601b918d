"""The guided target velocity, eq. 9."""

import pytest
import torch
from oracle import Analytic, golden, golden_network

from facm.flow.guidance import Guidance
from facm.flow.path import interpolate

NULL = 1000


class Spy:
    """A network that remembers how it was asked: v_cond = 3 x + t, v_uncond = x + t."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, t, y, r=None):
        self.asked.append((t, y, r))
        return torch.where((y == NULL)[:, None], x, 3 * x) + t[:, None]


class Counter:
    """A network that counts its evaluations; a call with 2B rows counts two."""

    def __init__(self, F, batch_size):
        self.F, self.batch_size, self.evaluations = F, batch_size, 0.0

    def __call__(self, x, t, y, r=None):
        self.evaluations += x.shape[0] / self.batch_size
        return self.F(x, t, y, r)


def batch():
    t = torch.tensor([0.0, 0.1, 0.125, 0.5, 0.9, 1.0], dtype=torch.float64)
    x, u = torch.randn(2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, t, torch.tensor([0, 1, 2, 3, 4, 5]), u


@pytest.mark.parametrize(("conditioning", "case"), [("expanded", "expanded"), ("auxiliary", "aux")])
def test_distillation_gives_the_published_guided_velocity(conditioning, case):
    g = golden()
    x_t = interpolate(g["x0"], g["x1"], g["t"])
    guidance = Guidance(w=1.75, t_low=0.125, null=NULL, conditioning=conditioning)
    v = guidance.distilled(golden_network(case, "teacher"), x_t, g["t"], g["y"])
    torch.testing.assert_close(v, g[f"{case}/v_cfg"], atol=2e-6, rtol=1e-5)


def test_distillation_guides_inside_the_closed_interval_and_is_conditional_outside():
    x, t, y, _ = batch()
    v = Guidance(w=2.0, t_low=0.125, t_high=0.9, null=NULL).distilled(Spy(), x, t, y)
    factor = torch.tensor([3.0, 3, 5, 5, 5, 3], dtype=x.dtype)[:, None]  # 3 or 1 + 2 (3 - 1)
    torch.testing.assert_close(v, factor * x + t[:, None])


@pytest.mark.parametrize(
    ("conditioning", "condition", "wanted_t", "wanted_r"),
    [
        ("plain", "t", lambda t: t, None),
        ("expanded", "t", lambda t: t, None),
        ("expanded", "fm", lambda t: 2 - t, None),
        ("auxiliary", "t", lambda t: t, lambda t: t),
        ("auxiliary", "fm", lambda t: t, lambda t: t),
    ],
)
def test_the_condition_of_teacher_and_of_scratch_is_an_option(conditioning, condition, wanted_t, wanted_r):
    x, t, y, u = batch()
    options = {"teacher_condition": condition, "scratch_condition": condition}
    guidance = Guidance(null=NULL, conditioning=conditioning, **options)
    for call in (lambda F: guidance.distilled(F, x, t, y), lambda F: guidance.scratch(F, x, t, y, u=u)):
        spy = Spy()
        call(spy)
        ((asked_t, _, asked_r),) = spy.asked
        assert torch.equal(asked_t, torch.cat([wanted_t(t)] * 2))
        assert asked_r is wanted_r is None or torch.equal(asked_r, torch.cat([wanted_r(t)] * 2))


def test_evaluations_are_counted_two_for_a_guided_one():
    x, t, y, u = batch()
    for w, null, labels, distilled, scratch in [(2.0, NULL, y, 2, 2), (1.0, NULL, y, 1, 0), (2.0, None, y, 1, 0)]:
        counter, guidance = Counter(Spy(), 6), Guidance(w=w, null=null)
        guidance.distilled(counter, x, t, labels)
        assert counter.evaluations == distilled
        guidance.scratch(counter, x, t, labels, u=u)
        assert counter.evaluations == distilled + scratch


def test_without_classes_there_is_one_call_and_no_guidance():
    x, t, _, u = batch()
    counter = Counter(lambda x, t, y, r: 2 * x, 6)
    torch.testing.assert_close(Guidance(w=2.0).distilled(counter, x, t, None), 2 * x)
    assert torch.equal(Guidance(w=2.0).scratch(counter, x, t, None, u=u), u)
    assert counter.evaluations == 1


def test_from_scratch_the_papers_form_adds_w_times_the_difference_inside_the_interval_only():
    x, t, y, u = batch()
    v = Guidance(w=2.0, t_low=0.125, t_high=0.9, null=NULL).scratch(Spy(), x, t, y, u=u)
    inside = torch.tensor([0.0, 0, 1, 1, 1, 0], dtype=x.dtype)[:, None]
    torch.testing.assert_close(v, u + 2 * inside * (3 * x - x))


def test_from_scratch_the_codes_form_extrapolates_outside_the_interval():
    x, t, y, u = batch()
    form = {"scratch_form": "code", "scratch_condition": "t"}
    counter = Counter(Spy(), 6)
    v = Guidance(w=2.0, t_low=0.125, t_high=0.9, null=NULL, **form).scratch(counter, x, t, y, u=u)
    factor = torch.tensor([3.0, 3, 1, 1, 1, 3], dtype=x.dtype)[:, None]  # y stands for the null label outside
    torch.testing.assert_close(v, 2 * u - (factor * x + t[:, None]))
    assert counter.evaluations == 1


@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.9])
def test_from_scratch_the_mixed_form_divides_the_guidance_between_the_data_and_the_network(kappa):
    x, t, y, u = batch()
    fields = {"w": 2.5, "t_low": 0.125, "t_high": 0.9, "null": NULL}
    v = Guidance(**fields, scratch_form="mixed", scratch_kappa=kappa).scratch(Spy(), x, t, y, u=u)
    inside = torch.tensor([False, False, True, True, True, False])[:, None]
    omega, c = 2.5 * (1 - kappa), (2 - t)[:, None]
    want = omega * u + kappa * (3 * x + c) + (1 - omega - kappa) * (x + c)
    torch.testing.assert_close(v, torch.where(inside, want, u))
    guided = x + 2.5 * (u - x)  # what a network whose v_uncond is x shall learn
    learned = lambda x, t, y, r: torch.where((y == NULL)[:, None], x, guided.repeat(2, 1))  # noqa: E731
    v = Guidance(**fields, scratch_form="mixed", scratch_kappa=kappa).scratch(learned, x, t, y, u=u)
    torch.testing.assert_close(v, torch.where(inside, guided, u), msg="a network that has learned it stays so")


@pytest.mark.parametrize(("form", "settles"), [("paper", False), ("code", True), ("mixed", True)])
def test_from_scratch_a_network_that_learns_what_it_is_told_settles_at_w_except_in_the_papers_form(form, settles):
    x, t, y, u = batch()
    guidance = Guidance(w=1.75, t_low=0.0, null=NULL, scratch_form=form)
    learned = u
    for _ in range(40):  # each time the target becomes the answer; v_uncond is x
        told = learned
        network = lambda x, t, y, r: torch.where((y == NULL)[:, None], x, told.repeat(len(y) // 6, 1))  # noqa: B023, E731
        learned = guidance.scratch(network, x, t, y, u=u)
    if settles:
        torch.testing.assert_close(learned, x + 1.75 * (u - x))
    else:
        assert (learned - x).abs().min() > 1e6 * (u - x).abs().max()


@pytest.mark.parametrize("form", ["paper", "code", "mixed"])
def test_from_scratch_a_dropped_label_and_w_1_give_the_datas_velocity(form):
    x, t, y, u = batch()
    dropped = torch.tensor([True, False, True, True, False, True])
    labels = torch.where(dropped, NULL, y)
    noisy = lambda x, t, y, r: torch.randn(x.shape, dtype=x.dtype)  # noqa: E731  (as a network with dropout is)
    v = Guidance(w=2.0, t_low=0.0, null=NULL, scratch_form=form).scratch(noisy, x, t, labels, u=u)
    assert torch.equal(v[dropped], u[dropped])
    assert (v[~dropped] != u[~dropped]).all()
    assert torch.equal(Guidance(w=1.0, null=NULL, scratch_form=form).scratch(Spy(), x, t, y, u=u), u)


@pytest.mark.parametrize("mode", [True, False])
def test_no_velocity_has_a_graph_and_no_mode_is_touched(mode):
    x, t, y, u = batch()
    layer = torch.nn.Linear(2, 2).double().train(mode)
    guidance = Guidance(null=NULL)
    assert not guidance.distilled(lambda x, t, y, r: layer(x), x, t, y).requires_grad
    assert not guidance.scratch(lambda x, t, y, r: layer(x), x, t, y, u=u).requires_grad
    assert layer.training is mode


def test_the_analytic_teacher_is_guided_as_eq_9_says():
    x0, x1, t, y = Analytic.batch()
    v = Guidance(w=1.75, null=NULL).distilled(Analytic.teacher, interpolate(x0, x1, t), t, y)
    plain = Analytic.teacher(interpolate(x0, x1, t), t, y)
    gap = Analytic.e(y) - 1  # of the label embeddings, the null label's being 1
    torch.testing.assert_close(v, plain + 0.75 * gap * (t >= 0.125)[:, None, None, None])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"w": 0.9}, r"params.yaml, distill.w: 0.9 must be at least 1"),
        ({"w": float("nan")}, r"distill.w"),
        ({"t_low": 0.5, "t_high": 0.4}, r"t_low 0.5, t_high 0.4 must satisfy 0 <= t_low <= t_high <= 1"),
        ({"t_high": 1.1}, r"t_high"),
        ({"conditioning": "both"}, r"distill.conditioning: 'both' is not one of plain"),
        ({"teacher_condition": "cm"}, r"distill.teacher_condition: 'cm' is not one of t, fm"),
        ({"scratch_form": "official"}, r"distill.scratch_form: 'official' is not one of paper, code"),
        ({"scratch_kappa": 1.0}, r"params.yaml, distill.scratch_kappa: 1.0 must be in \[0, 1\)"),
        ({"scratch_condition": "r"}, r"distill.scratch_condition"),
    ],
)
def test_wrong_constants_are_refused_with_value_rule_and_key(fields, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**fields)
