"""The path, its two velocities, and the closed forms that the other tests lean on."""

import pytest
import torch
from oracle import Gaussian, Mixture, runge_kutta

from facm.flow import path


def points(num: int = 7, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    return x, torch.rand(num, generator=generator, dtype=torch.float64) * 0.95


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 4, 3)])
def test_the_path_starts_at_noise_ends_at_data_and_moves_by_their_difference(shape):
    x0, x1 = torch.randn(2, *shape, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    assert torch.equal(path.interpolate(x0, x1, torch.zeros(5)), x0)
    assert torch.equal(path.interpolate(x0, x1, torch.ones(5)), x1)
    moved = path.interpolate(x0, x1, t + 0.125) - path.interpolate(x0, x1, t)
    torch.testing.assert_close(moved, 0.125 * (x1 - x0))


def test_the_average_velocity_of_eq_3_leads_to_the_endpoint():
    x_t, x1 = torch.randn(2, 5, 2, 4, 3, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64) * 0.9
    torch.testing.assert_close(path.endpoint(x_t, t, path.average_velocity(x_t, x1, t)), x1)


def test_the_endpoint_at_t_1_is_the_point_itself():
    x_t, F = torch.randn(2, 5, 2)
    assert torch.equal(path.endpoint(x_t, torch.ones(5), F), x_t)


def test_the_conditions_are_those_of_section_3_2_2():
    t = torch.tensor([0.0, 0.25, 1.0])
    for conditioning, cm, fm in [
        ("plain", (t, None), (t, None)),
        ("expanded", (t, None), (2 - t, None)),
        ("auxiliary", (t, torch.ones(3)), (t, t)),
    ]:
        for got, wanted in [(path.c_cm(t, conditioning), cm), (path.c_fm(t, conditioning), fm)]:
            assert torch.equal(got.t, wanted[0])
            assert got.r is wanted[1] is None or torch.equal(got.r, wanted[1])


def test_an_unknown_conditioning_is_refused_with_list_and_place():
    with pytest.raises(ValueError, match=r"conditioning: 'expnded' is not one of plain, expanded, auxiliary"):
        path.c_fm(torch.zeros(1), "expnded")


@pytest.mark.parametrize("law", [Gaussian(), Mixture()])
def test_the_closed_form_velocity_carries_points_along_the_closed_form_map(law):
    x, _ = points()
    t, r = torch.full((7,), 0.1, dtype=torch.float64), torch.full((7,), 0.9, dtype=torch.float64)
    torch.testing.assert_close(runge_kutta(law.velocity, x, 0.1, 0.9, 200), law.flow_map(x, t, r), atol=1e-7, rtol=0)


def test_the_gaussian_average_velocity_is_eq_3_of_the_flow_map_and_obeys_eq_5():
    law, (x, t) = Gaussian(), points()
    v, v_bar, h = law.velocity(x, t), law.average_velocity(x, t), 1e-5
    dv_bar = (law.average_velocity(x + h * v, t + h) - law.average_velocity(x - h * v, t - h)) / (2 * h)
    torch.testing.assert_close(v_bar, path.average_velocity(x, law.flow_map(x, t, torch.ones_like(t)), t))
    torch.testing.assert_close(v_bar, v + (1 - t)[:, None] * dv_bar, atol=1e-8, rtol=0)


def test_the_mixture_velocity_is_the_mean_of_the_data_velocity_given_the_point():
    law, num = Mixture(), 400_000
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(num, 2, generator=generator), law.sample(num, generator)
    t = torch.full((num,), 0.6)
    x_t = path.interpolate(x0, x1, t)
    u, v = x1 - x0, law.velocity(x_t, t)
    for test_function in (torch.ones_like(x_t), x_t, torch.sin(2 * x_t)):  # E[(u - v) h(x_t)] = 0 for every h
        assert ((u - v) * test_function).mean().abs() < 4e-3
