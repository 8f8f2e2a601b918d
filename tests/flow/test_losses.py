"""Distances, per sample and unreduced."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from facm.flow import losses


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


def test_squared_errors_are_means_or_sums_over_all_but_the_batch():
    a, b = pair(5, 3, 2, 2)
    mean = torch.stack([((a[i] - b[i]) ** 2).sum() / 12 for i in range(5)])
    torch.testing.assert_close(losses.squared_error(a, b), mean)
    torch.testing.assert_close(losses.squared_error(a, b, "sum"), 12 * mean)


def test_the_cosine_is_per_position_over_channels_or_over_the_sample():
    a, b = pair(5, 3, 2, 2)
    torch.testing.assert_close(losses.cosine_loss(a, b), (1 - cosine_similarity(a, b, dim=1)).mean((1, 2)))
    whole = 1 - cosine_similarity(a.flatten(1), b.flatten(1), dim=1)
    torch.testing.assert_close(losses.cosine_loss(a, b, "sample"), whole)
    torch.testing.assert_close(losses.cosine_loss(a, a), torch.zeros(5, dtype=a.dtype), atol=1e-15, rtol=0)
    torch.testing.assert_close(losses.cosine_loss(a, -a), torch.full((5,), 2.0, dtype=a.dtype))


def test_the_cosine_term_is_automatic_in_the_number_of_channels():
    for shape, axis in [((5, 3, 2, 2), "channel"), ((5, 1, 2, 2), "sample"), ((5, 3), "sample")]:
        F, v = pair(*shape)
        wanted = losses.squared_error(F, v) + losses.cosine_loss(F, v, axis)
        torch.testing.assert_close(losses.velocity_loss(F, v), wanted)
    F, v = pair(5, 3, 2, 2)
    torch.testing.assert_close(losses.velocity_loss(F, v, cosine="none"), losses.squared_error(F, v))


@pytest.mark.parametrize(("shape", "cosine"), [((5, 1, 2, 2), "channel"), ((5, 1), "auto"), ((5, 1, 1, 1), "sample")])
def test_the_cosine_of_one_number_is_refused(shape, cosine):
    with pytest.raises(ValueError, match=r"cosine of one number is \+-1 and has no gradient.*cosine"):
        losses.velocity_loss(*pair(*shape), cosine=cosine)


def test_a_zero_output_has_a_bounded_cosine_gradient():
    v = pair(5, 3, 2, 2)[1]
    for scale in (0.0, 1e-12, 1e-6):
        F = (scale * pair(5, 3, 2, 2, seed=1)[0]).requires_grad_()
        losses.cosine_loss(F, v, "sample", eps=1e-3).sum().backward()
        assert 0 < F.grad.norm() < 5 * 1e3


def test_norm_l2_is_eq_18_and_its_denominator_carries_no_gradient():
    e = torch.tensor([0.0, 1e-4, 0.3, 20.0], dtype=torch.float64, requires_grad=True)
    loss = losses.norm_l2(e)
    torch.testing.assert_close(loss, e / (e + 1e-3).sqrt())
    (gradient,) = torch.autograd.grad(loss.sum(), e)
    torch.testing.assert_close(gradient, 1 / (e + 1e-3).sqrt())
    (whole,) = torch.autograd.grad(losses.norm_l2(e, sg_denominator=False).sum(), e)
    torch.testing.assert_close(whole, gradient * (1 - e / (2 * (e + 1e-3))))


def test_norm_l2_with_exponent_zero_is_the_squared_error():
    e = torch.rand(4)
    torch.testing.assert_close(losses.norm_l2(e, q=0.0), e)


def test_pseudo_huber_is_a_norm_far_away_and_a_square_near():
    a, b = pair(5, 3, 2, 2)
    distance = (a - b).flatten(1).norm(dim=1)
    torch.testing.assert_close(losses.pseudo_huber(a, b), distance)
    torch.testing.assert_close(losses.pseudo_huber(1e6 * a, 1e6 * b, 0.03), 1e6 * distance - 0.03)
    near = losses.pseudo_huber(1e-4 * a, 1e-4 * b, 0.5)
    torch.testing.assert_close(near, (1e-4 * distance) ** 2 / (2 * 0.5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("c", [0.0, 0.03])
def test_the_gradient_of_pseudo_huber_is_zero_where_there_is_no_distance(c):
    a = pair(5, 3, 2, 2)[0].requires_grad_()
    losses.pseudo_huber(a, a.detach(), c).sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_rms_is_the_root_of_the_mean_square_of_a_sample_without_a_gradient():
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]], requires_grad=True)
    torch.testing.assert_close(losses.rms(x), torch.tensor([12.5, 2.0]).sqrt())
    assert not losses.rms(x).requires_grad
