"""The samplers: closed forms of a Gaussian, then the authors' samples from the authors' weights."""

import pytest
import torch
from oracle import Gaussian, golden, golden_network

from facm import samplers
from facm.inference.sampler import for_network
from facm.samplers.anchored import SCHEDULES, Anchored, Schedule, even
from facm.samplers.consistency import Consistency, uniform_grid
from facm.samplers.dpmpp import DPMpp
from facm.samplers.edm import EDM
from facm.samplers.euler import Euler
from facm.samplers.heun import Heun
from facm.samplers.jumps import Jumps

GUIDED = {"w": 2.0, "t_low": 0.125}
DATA = Gaussian(mean=1.5, std=0.4)


def velocity(x, t, y=None, r=None):
    return DATA.velocity(x, t)


def average_velocity(x, t, y=None, r=None):
    return DATA.average_velocity(x, t)


def flow_map(x, t):
    """x_t -> x1 along the flow."""
    return DATA.flow_map(x, torch.full(x.shape[:1], t, dtype=x.dtype), torch.ones(x.shape[:1], dtype=x.dtype))


class Recorder:
    """A network F that remembers how it was asked."""

    def __init__(self, F=velocity):
        self.F, self.calls = F, []

    def __call__(self, x, t, y, r=None):
        self.calls.append((x, t, y, r))
        return self.F(x, t, y, r)


def x0(batch=64, draws=1):
    return samplers.noise(0, range(batch), draws, (2,))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("rule", "order"), [(Euler, 1), (Heun, 2)])
def test_the_error_falls_with_the_order_of_the_rule(rule, order):
    noise = x0()
    exact = flow_map(noise[0], 0.0)
    errors = [relative(rule(steps=n)(velocity, noise, None)[0], exact) for n in (40, 80, 160)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_a_shifted_grid_ends_at_the_same_place(shift):
    noise = x0()
    assert relative(Heun(steps=80, shift=shift)(velocity, noise, None)[0], flow_map(noise[0], 0.0)) < 3e-3
    grid = Euler(steps=10, shift=shift).grid()
    assert grid[0] == 0 and grid[-1] == 1 and (grid[5] < 0.5) == (shift == 0.3)


def test_the_exact_map_is_sampled_exactly_in_one_step():
    noise = x0()
    x1, nfe = Consistency()(average_velocity, noise, None)
    torch.testing.assert_close(x1, flow_map(noise[0], 0.0), rtol=1e-6, atol=1e-6)
    assert nfe == 1


def test_the_exact_map_keeps_the_distribution_at_every_step():
    x1, nfe = Consistency(t_grid=(0.0, 0.3, 0.7))(average_velocity, x0(5_000, 3), None)
    assert nfe == 3
    assert x1.mean().item() == pytest.approx(DATA.mean, abs=0.02)
    assert x1.std().item() == pytest.approx(DATA.std, rel=0.02)


def test_a_consistency_step_goes_back_with_the_next_noise():
    noise = x0(draws=2)
    x1, _ = Consistency(t_grid=(0.0, 0.7))(average_velocity, noise, None)
    first = flow_map(noise[0], 0.0)
    torch.testing.assert_close(x1, flow_map(0.7 * first + 0.3 * noise[1], 0.7), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["expanded", "aux"])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_consistency_samples_are_the_authors(kind, num):
    g = golden()
    noise = torch.cat([g["x0"].double().unsqueeze(0), g[f"{kind}/cm_noise_{num}"][:-1]])  # their last draw is unused
    sampler = samplers.build(
        "consistency", t_grid=uniform_grid(num), conditioning="auxiliary" if kind == "aux" else "expanded"
    )
    assert sampler.draws == num
    x1, nfe = sampler(golden_network(kind, "student"), noise, g["y"], 1000)
    assert relative(x1, g[f"{kind}/cm_sample_{num}"]) < 1e-6
    assert nfe == num and x1.dtype == torch.float64


@pytest.mark.parametrize("kind", ["expanded", "aux"])
@pytest.mark.parametrize(
    ("name", "key", "fields", "nfe"),
    [
        ("euler", "euler_10_cfg2", {"steps": 10, **GUIDED}, 18),
        ("euler", "euler_10_shift0.3", {"steps": 10, "shift": 0.3}, 10),
        ("heun", "heun_5_cfg2", {"steps": 5, **GUIDED}, 17),
    ],
)
def test_ode_samples_are_the_authors(kind, name, key, fields, nfe):
    g = golden()
    sampler = samplers.build(name, **fields, conditioning="auxiliary" if kind == "aux" else "expanded")
    x1, counted = sampler(golden_network(kind, "student"), g["x0"].double().unsqueeze(0), g["y"], 1000)
    assert relative(x1, g[f"{kind}/{key}"]) < 1e-6
    assert counted == nfe


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [
        (Heun(steps=8, w=1.5, t_low=0.125), 29),
        (Heun(steps=8, w=1.0, t_low=0.125), 15),
        (Euler(steps=8, w=1.5, t_low=0.125), 15),
        (Euler(steps=8, w=1.5, t_low=0.125, t_high=0.5), 12),
        (Euler(steps=8), 8),
    ],
)
def test_a_guided_evaluation_counts_two_and_is_one_call(sampler, nfe):
    F, y = Recorder(), torch.arange(4)
    _, counted = sampler(F, x0(4), y, 10)
    assert counted == nfe == sum(len(x) for x, *_ in F.calls) // 4
    assert len(F.calls) == (15 if isinstance(sampler, Heun) else 8)
    for x, t, labels, _ in F.calls:
        guided = sampler.w > 1 and sampler.t_low <= t[0] <= sampler.t_high
        assert labels.tolist() == [*range(4), *([10] * 4 if guided else [])]
        assert x.dtype == t.dtype == torch.float32 and len(x) == len(t) == len(labels)


def test_guidance_extrapolates_from_the_null_label():
    def F(x, t, y, r=None):
        return torch.where(y == 10, 1.0, 3.0).unsqueeze(-1).expand_as(x)

    noise = x0(4)
    x1, _ = Euler(steps=4, w=1.5)(F, noise, torch.arange(4), 10)
    torch.testing.assert_close(x1, noise[0] + 1 + 1.5 * (3 - 1))


def test_without_classes_nothing_is_guided():
    F = Recorder()
    assert Heun(steps=4, w=2.0)(F, x0(4), None, None)[1] == 7
    assert all(y is None for _, _, y, _ in F.calls)


@pytest.mark.parametrize(
    ("conditioning", "condition", "t", "r"),
    [
        ("plain", "t", 0.5, None),
        ("plain", "fm", 0.5, None),
        ("expanded", "t", 0.5, None),
        ("expanded", "fm", 1.5, None),
        ("auxiliary", "t", 0.5, 0.5),
        ("auxiliary", "fm", 0.5, 0.5),
    ],
)
def test_the_velocity_is_asked_at_its_condition(conditioning, condition, t, r):
    F = Recorder()
    Euler(steps=2, conditioning=conditioning, condition=condition)(F, x0(1), None)
    assert F.calls[1][1].item() == t
    assert (F.calls[1][3] is None) if r is None else F.calls[1][3].item() == r


@pytest.mark.parametrize(("conditioning", "r"), [("plain", None), ("expanded", None), ("auxiliary", 1.0)])
def test_the_shortcut_is_asked_at_c_cm(conditioning, r):
    F = Recorder()
    Consistency(t_grid=(0.0, 0.5), conditioning=conditioning)(F, x0(1, 2), None)
    assert F.calls[1][1].item() == 0.5
    assert (F.calls[1][3] is None) if r is None else F.calls[1][3].item() == r


def test_no_sampler_builds_a_graph():
    weight = torch.ones((), requires_grad=True)
    for sampler in [Consistency(), Euler(steps=2), Heun(steps=2)]:
        assert not sampler(lambda x, t, y, r=None: weight * x, x0(2), None)[0].requires_grad


def test_noise_depends_on_seed_and_index_only():
    together = samplers.noise(3, range(10), 2, (2, 4, 4))
    assert together.shape == (2, 10, 2, 4, 4) and together.dtype == torch.float64
    assert torch.equal(samplers.noise(3, [7, 2], 2, (2, 4, 4)), together[:, [7, 2]])
    assert torch.equal(samplers.noise(3, torch.tensor([7]), 1, (2, 4, 4)), together[:1, [7]])
    assert not torch.equal(samplers.noise(4, range(10), 2, (2, 4, 4)), together)
    assert len(torch.unique(together)) == together.numel()


def test_noise_is_standard_normal_and_independent():
    noise = samplers.noise(0, range(4000), 2, (4,)).permute(1, 0, 2).flatten(1)
    assert noise.mean(0).abs().max() < 0.06
    assert (torch.cov(noise.T) - torch.eye(8)).abs().max() < 0.1
    assert abs((noise[:-1] * noise[1:]).mean()) < 0.02  # neighbouring indices
    assert abs((noise * samplers.noise(1, range(4000), 2, (4,)).permute(1, 0, 2).flatten(1)).mean()) < 0.02


def test_a_picture_does_not_depend_on_its_batch():
    network, y = golden_network("expanded", "student"), torch.arange(6)
    sampler = Consistency(t_grid=(0.0, 0.5))
    together, _ = sampler(network, samplers.noise(0, range(6), 2, (4, 4, 4)), y)
    alone, _ = sampler(network, samplers.noise(0, [4], 2, (4, 4, 4)), y[4:5])
    torch.testing.assert_close(alone[0], together[4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "nfe", "expected"),
    [
        ("consistency", 4, Consistency(t_grid=(0.0, 0.25, 0.5, 0.75), conditioning="auxiliary")),
        ("euler", 4, Euler(steps=4, conditioning="auxiliary", condition="fm")),
        ("heun", 7, Heun(steps=4, conditioning="auxiliary", condition="fm")),
    ],
)
def test_a_sampler_of_a_given_nfe_takes_that_many_evaluations(name, nfe, expected):
    sampler = for_network(name, "auxiliary", "fm", nfe=nfe, t_grid=None)
    assert sampler == expected
    assert sampler(velocity, x0(2, sampler.draws), None)[1] == nfe


def test_a_length_that_is_given_wins_over_nfe():
    assert for_network("consistency", "expanded", "fm", nfe=1, t_grid=[0.0, 0.7]).t_grid == (0.0, 0.7)
    assert for_network("heun", "expanded", "t", nfe=2, steps=8, w=1.5).steps == 8


@pytest.mark.parametrize("grid", [(), (0.1, 0.5), (0.0, 0.5, 0.5), (0.0, 0.7, 0.3), (0.0, 1.0), (0.0, float("nan"))])
def test_a_grid_that_is_no_grid_is_refused(grid):
    with pytest.raises(ValueError, match=r"sample.t_grid: .* must start at 0 \(noise\), increase and stay below 1"):
        Consistency(t_grid=grid)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: samplers.build("huen"),
            r"sampler: unknown 'huen' \(did you mean 'heun'\?\); known: anchored, consistency, dpmpp, edm",
        ),
        (lambda: samplers.build("heun", step=3), r"sampler heun: unknown 'step' \(did you mean 'steps'\?\)"),
        (lambda: samplers.build("consistency", w=2.0), "sampler consistency: unknown 'w'"),
        (lambda: samplers.build("consistency", conditioning="aux"), "'aux' is not one of plain, expanded, auxiliary"),
        (lambda: Euler(steps=0), r"baseline or sample, steps: 0 is outside \[1, inf\)"),
        (lambda: Euler(w=0.5), r"baseline or sample, w: 0.5 is outside \[1, inf\)"),
        (lambda: Euler(t_low=0.6, t_high=0.5), "0 <= t_low <= t_high <= 1"),
        (lambda: Euler(shift=-1.0), r"shift: -1.0 is outside \[0, inf\)"),
        (lambda: Euler(condition="cm"), "condition: 'cm' is not one of t, fm"),
        (lambda: Heun.length_for(4), "sample.nfe: 4 is not 2 N - 1, what Heun takes for N steps: set 3 or 5"),
        (lambda: Heun.length_for(0), "set 1"),
        (lambda: EDM.length_for(4), "sample.nfe: 4 is not 2 N - 1, what edm takes for N steps, at least 2: set 3 or 5"),
        (lambda: EDM.length_for(1), "set 3"),
        (lambda: EDM(steps=1), "steps 1 must be at least 2 for edm"),
        (lambda: EDM(shift=0.3), "shift 0.3 has no part in edm"),
        (lambda: Jumps.length_for(0), "sample.nfe: 0 must be at least 1"),
        (lambda: Jumps(conditioning="expanded"), "sample.sampler: jumps ask .* conditioning 'expanded' does not know"),
        (lambda: Jumps(t_grid=(0.5,)), r"sample.t_grid: \[0.5\] must start at 0"),
        (lambda: Anchored(nfe=17), r"nfe 17 has no schedule, known: 1 to 16"),
        (lambda: Anchored(nfe=4, flow=(0.0, 0.5)), "this schedule takes 2 evaluations, nfe is 4"),
        (lambda: Anchored(nfe=2, flow=(0.1, 0.5)), r"flow \[0.1, 0.5\] must start at 0"),
        (lambda: Anchored(nfe=1, order=3), r"order 3 must be 1 \(Euler\) or 2 \(midpoint\)"),
        (lambda: Anchored(nfe=2, jumps=(1.0,)), r"jumps \[1.0\] must increase within \(0, 1\)"),
        (lambda: Anchored(nfe=2, jumps=(0.5,), renoise=1.5), r"renoise: 1.5 is outside \[0, 1\]"),
        (lambda: Anchored(conditioning="plain"), "conditioning 'plain' knows no anchor"),
        (lambda: Euler.length_for(0), "sample.nfe: 0 must be at least 1"),
        (lambda: uniform_grid(0), "sample.nfe: 0 must be at least 1"),
        (lambda: for_network("heun", "expanded", "t"), "needs nfe or steps"),
        (lambda: for_network("euler", "expanded", "t", nfe=4, w=1.5), "counts two, set steps and not nfe"),
        (lambda: for_network("euler", "expanded", "t", nfe=4, shfit=1.5), "did you mean 'shift'"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Jumps


def average_between(x, t, y, r):
    """The exact average velocity from t to r."""
    return (DATA.flow_map(x.double(), t.double(), r.double()) - x) / (r - t)[:, None]


@pytest.mark.parametrize("grid", [(0.0,), (0.0, 0.2, 0.9), uniform_grid(8)])
def test_exact_jumps_end_where_the_flow_ends(grid):
    noise, F = x0(), Recorder(average_between)
    x1, nfe = Jumps(t_grid=grid)(F, noise, None)
    assert relative(x1, flow_map(noise[0], 0.0)) < 1e-6
    assert nfe == len(F.calls) == len(grid) and x1.dtype == torch.float64
    assert [call[1][0].item() for call in F.calls] == pytest.approx(grid)
    assert [call[3][0].item() for call in F.calls] == pytest.approx([*grid[1:], 1.0])


# The teacher's samplers


@pytest.mark.parametrize("rule", [DPMpp, EDM])
def test_the_error_of_the_teachers_samplers_falls_with_the_square_of_the_steps(rule):
    noise, end = x0(), {DPMpp: 0.0, EDM: 1 / 81}[rule]
    start = {DPMpp: noise[0], EDM: 80 / 81 * noise[0]}[rule]
    exact = flow_map(start, end)
    errors = [relative(rule(steps=n)(velocity, noise, None)[0], exact) for n in (20, 40, 80)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_dpmpp_takes_any_number_of_steps_and_an_evaluation_for_each(steps):
    F, sampler = Recorder(), DPMpp(steps=steps)
    x1, nfe = sampler(F, x0(), None)
    assert nfe == len(F.calls) == steps and x1.isfinite().all()
    grid = sampler.grid()
    assert len(grid) == steps + 1 and grid[0] == 0 and grid[-1] == 1 and sorted(set(grid)) == grid


@pytest.mark.parametrize("steps", [3, 9])
def test_dpmpp_agrees_with_diffusers_where_both_are_defined(steps, monkeypatch):
    from diffusers import DPMSolverMultistepScheduler

    inner = torch.sigmoid(torch.linspace(-4, 4, steps, dtype=torch.float64)).tolist()
    monkeypatch.setattr(DPMpp, "grid", lambda self: [*inner, 1.0])
    start = x0()[0]
    ours, _ = DPMpp(steps=steps)(velocity, start[None], None)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor([*(1 - t for t in inner), 0.0])
    x = start.float()
    for t, timestep in zip(inner, scheduler.timesteps, strict=True):
        at = torch.full((len(x),), t, dtype=torch.float64)
        x = scheduler.step(-velocity(x.double(), at).float(), timestep, x).prev_sample
    assert relative(x.double(), ours) < 1e-5


@pytest.mark.parametrize(("sampler", "nfe"), [(DPMpp(steps=8, w=1.5, t_low=0.125), 12), (EDM(steps=4, w=1.5), 14)])
def test_guided_evaluations_of_the_teachers_samplers_count_two(sampler, nfe):
    F, y = Recorder(), torch.arange(4)
    assert sampler(F, x0(4), y, 10)[1] == nfe == sum(len(x) for x, *_ in F.calls) // 4


def test_edm_takes_35_evaluations_for_18_steps():
    F = Recorder()
    assert EDM(steps=18)(F, x0(), None)[1] == len(F.calls) == 35
    assert EDM.length_for(35) == 18


# The anchored sampler


def knows_both(x, t, y, r=None):
    """An exact student in the expanded format: the average velocity at t, the velocity at 2 - t."""
    if t[0] <= 1:
        return DATA.average_velocity(x, t)
    return DATA.velocity(x, 2 - t)


@pytest.mark.parametrize("nfe", SCHEDULES)
def test_every_recommended_schedule_takes_its_nfe_and_nearly_follows_the_flow(nfe):
    F, sampler = Recorder(knows_both), for_network("anchored", "expanded", "fm", nfe=nfe)
    noise = x0(draws=sampler.draws)
    x1, counted = sampler(F, noise, None)
    assert counted == len(F.calls) == nfe
    if not SCHEDULES[nfe].jumps:
        assert relative(x1, flow_map(noise[0], 0.0)) < 0.3


@pytest.mark.parametrize("order", [1, 2])
def test_what_the_velocity_steps_miss_falls_with_their_order(order):
    noise = x0()
    exact = flow_map(noise[0], 0.0)
    errors = []
    for intervals in (8, 16, 32):
        sampler = Anchored(nfe=order * intervals + 1, flow=even(0.6, intervals), order=order)
        errors.append(relative(sampler(knows_both, noise, None)[0], exact))
    assert errors[0] / errors[1] > 0.8 * 2**order  # the midpoint rule does better here: by 8
    assert errors[1] / errors[2] > 0.8 * 2**order


def test_without_velocity_steps_and_with_fresh_noise_it_is_eq_19():
    noise = x0(draws=3)
    ours = Anchored(nfe=3, jumps=(0.3, 0.7))
    assert ours.draws == 3
    torch.testing.assert_close(
        ours(knows_both, noise, None)[0], Consistency(t_grid=(0.0, 0.3, 0.7))(average_velocity, noise, None)[0]
    )


def test_without_fresh_noise_an_exact_student_stays_on_its_trajectory():
    noise = x0()
    sampler = Anchored(nfe=4, flow=(0.0, 0.01), jumps=(0.3, 0.7), renoise=0.0)
    assert sampler.draws == 1
    once = Anchored(nfe=2, flow=(0.0, 0.01))(knows_both, noise, None)[0]
    x1 = sampler(knows_both, noise, None)[0]
    # the noise that a jump implies is that of a straight path, not the trajectory's own: near, not equal
    assert relative(x1, once) < 0.5 and not torch.allclose(x1, once)


def test_part_of_the_noise_can_be_fresh():
    noise, t = x0(draws=2), 0.0
    first = flow_map(noise[0], t)
    x1, _ = Anchored(nfe=2, jumps=(0.7,), renoise=0.6)(knows_both, noise, None)
    z = 0.8 * noise[0] + 0.6 * noise[1]
    torch.testing.assert_close(x1, flow_map(0.7 * first + 0.3 * z, 0.7), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("conditioning", ["expanded", "auxiliary"])
def test_velocities_are_asked_at_c_fm_and_the_jump_at_c_cm(conditioning):
    F = Recorder(lambda x, t, y, r=None: x)
    Anchored(nfe=3, flow=(0.0, 0.5), order=2, conditioning=conditioning)(F, x0(4), torch.arange(4))
    asked = [(t[0].item(), None if r is None else r[0].item()) for _, t, _, r in F.calls]
    if conditioning == "expanded":
        assert asked == [(2.0, None), (1.75, None), (0.5, None)]
    else:
        assert asked == [(0.0, 0.0), (0.25, 0.25), (0.5, 1.0)]
    assert Schedule(flow=(0.0, 0.5), order=2).nfe == 3


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1, 10**20])
def test_a_seed_whose_noise_would_be_another_one_s_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed {seed}: it must lie between 0 and {2**63 - 1}"):
        samplers.noise(seed, range(2), 1, (1, 2, 2))
