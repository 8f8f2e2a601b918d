"""Times and weightings."""

import math

import pytest
import torch
from oracle import golden, normal_grid, uniform_grid

from facm.flow import time
from facm.flow.time import TimeSampler, weighting


def test_eq_20_gives_the_published_times():
    n, t = golden("time/")["normal"], golden("time/")["t"]
    torch.testing.assert_close(TimeSampler("arctan_lognormal", -0.8, 1.6)(n), t, atol=2e-7, rtol=0)


@pytest.mark.parametrize(
    ("mean", "std", "quantiles", "average", "below"),
    [
        (-0.8, 1.6, (0.101, 0.412, 0.730, 0.903, 0.979), 0.645, 0.066),
        (-1.0, 1.4, (0.169, 0.517, 0.775, 0.909, 0.977), 0.692, 0.031),
    ],
)
def test_eq_20_has_the_quantiles_of_its_two_settings(mean, std, quantiles, average, below):
    """The wanted figures were recorded by sampling: good to 1e-3."""
    t = TimeSampler("arctan_lognormal", mean, std)(normal_grid(20_000))
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=t.dtype)
    torch.testing.assert_close(t.quantile(levels), torch.tensor(quantiles, dtype=t.dtype), atol=1.5e-3, rtol=0)
    assert abs(t.mean() - average) < 1.5e-3
    assert abs((t < 0.125).double().mean() - below) < 1.5e-3


def test_uniform_times_are_the_quantile_levels_of_the_normals():
    torch.testing.assert_close(TimeSampler("uniform")(normal_grid(1000)), uniform_grid(1000))


def test_logit_normal_times_lean_to_the_data_for_a_negative_mean_as_in_eq_20():
    n = normal_grid(1001)
    t = TimeSampler("logit_normal", -0.8, 1.6)(n)
    torch.testing.assert_close(torch.logit(1 - t), -0.8 + 1.6 * n)
    assert t.median() > 0.5


def test_the_weightings_are_those_of_table_4():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    for name, p, wanted in [("one", 0.5, [1, 1, 1]), ("power", 0.5, [1, 0.5, 0]), ("power", 2.0, [1, 0.9375, 0])]:
        torch.testing.assert_close(weighting(name, p)(t), torch.tensor(wanted, dtype=torch.float64))
    wanted = torch.tensor([1, math.cos(math.pi / 8), 0], dtype=torch.float64)
    torch.testing.assert_close(weighting("cos", 0.5)(t), wanted, atol=1e-15, rtol=0)


def test_the_shift_keeps_the_ends_and_is_the_identity_at_0_and_1():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(time.shift(t, 0), t)
    torch.testing.assert_close(time.shift(t, 1.0), t)
    shifted = time.shift(t, 0.3)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] < t[1:-1]).all()
    torch.testing.assert_close(time.shift(shifted, 1 / 0.3), t)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TimeSampler("lognormal", place="teacher.time"),
            r"params.yaml, teacher.time.sampler: 'lognormal' is not",
        ),
        (lambda: TimeSampler(std=0.0), r"params.yaml, distill.time.std: 0.0 must be above 0"),
        (lambda: weighting("poly", 0.5), r"params.yaml, distill.alpha: 'poly' is not one of one, power, cos"),
        (lambda: weighting("poly", 0.5, "distill.beta"), r"distill.beta"),
        (lambda: weighting("power", -1.0), r"params.yaml, distill.p: -1.0 must be above 0"),
        (lambda: time.shift(torch.zeros(1), -1), r"shift: -1 must not be negative"),
    ],
)
def test_wrong_names_and_constants_are_refused_with_list_and_place(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sigma_and_time_are_each_others_inverse():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(time.time_of(time.sigma_of(t)), t)
    n = torch.linspace(-3, 3, 31, dtype=torch.float64)
    levels = time.time_of(torch.exp(-1.1 + 2.0 * n))  # the log-normal noise level of EDM, ECT
    torch.testing.assert_close(levels, time.logit_normal(n, -1.1, 2.0))


def test_karras_levels_fall_evenly_in_the_seventh_root():
    levels = time.karras(18)
    assert levels[0].item() == pytest.approx(80) and levels[-1].item() == pytest.approx(0.002)
    torch.testing.assert_close(
        (levels ** (1 / 7)).diff(), torch.full((17,), (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17).double()
    )
    with pytest.raises(ValueError, match="num 1 must be at least 2"):
        time.karras(1)
