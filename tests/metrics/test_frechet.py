"""Mean, covariance and Fréchet distance against closed forms; gathered part by part against at once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from facm.metrics import frechet
from facm.metrics.frechet import RunningMoments, frechet_distance, statistics


def normal(num: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gathered(features: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of rows that come in parts of `size`."""
    rows = RunningMoments()
    for part in features.split(size):
        rows.add(part)
    return rows.statistics()


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 100 rows in place of 10,000."""
    monkeypatch.setattr(frechet, "CHUNK", 100)


def test_statistics_are_float64_mean_and_covariance() -> None:
    features = normal(50, 3).float()
    mu, sigma = statistics(features)
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(mu, features.double().mean(0).numpy(), atol=1e-12)
    np.testing.assert_allclose(sigma, features.T.cov().numpy(), atol=1e-5)


def test_identical_sets_have_distance_0() -> None:
    one = statistics(normal(500, 16))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_a_shift_of_the_mean_in_one_feature_by_d_gives_d_squared() -> None:
    features, d = normal(500, 16), 1.7
    shifted = features.clone()
    shifted[:, 4] += d
    assert frechet_distance(statistics(features), statistics(shifted)) == pytest.approx(d**2, abs=1e-9)


def test_gaussians_that_commute_have_the_closed_form() -> None:
    mu1, mu2, s1, s2 = np.array([0.0, 1.0]), np.array([0.5, -1.0]), np.array([4.0, 0.25]), np.array([1.0, 9.0])
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum()
    assert frechet_distance((mu1, np.diag(s1)), (mu2, np.diag(s2))) == pytest.approx(expected, rel=1e-12)


def test_gaussians_that_do_not_commute_have_the_symmetric_form() -> None:
    (mu1, s1), (mu2, s2) = statistics(normal(40, 5)), statistics(normal(40, 5, seed=1) @ normal(5, 5, seed=2))
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(values) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root)).sum()
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2) - 2 * trace
    assert frechet_distance((mu1, s1), (mu2, s2)) == pytest.approx(expected, rel=1e-10)


def test_up_to_a_chunk_is_what_statistics_gives_bit_for_bit() -> None:
    features = normal(70, 5).float()
    for one, two in zip(gathered(features, 9), statistics(features), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("num", [100, 101, 250, 431])
def test_merged_chunks_have_the_mean_and_covariance_of_all_rows(num: int, chunks: None) -> None:
    features = normal(num, 6) + 50
    mu, sigma = gathered(features, 33)
    np.testing.assert_allclose(mu, features.mean(0).numpy(), rtol=1e-13)
    np.testing.assert_allclose(sigma, features.T.cov().numpy(), rtol=1e-10, atol=1e-13)


def test_the_parts_in_which_rows_come_do_not_change_a_bit(chunks: None) -> None:
    features = normal(431, 6).float()
    first = gathered(features, 431)
    for size in (1, 64, 100, 250):
        assert all(np.array_equal(one, two) for one, two in zip(gathered(features, size), first, strict=True))


def test_the_order_of_the_rows_moves_the_distance_by_rounding_only(chunks: None) -> None:
    features, other = normal(431, 6), statistics(normal(300, 6, seed=1) + 0.5)
    shuffled = features[torch.randperm(431, generator=torch.Generator().manual_seed(2))]
    distances = [frechet_distance(gathered(rows, 64), other) for rows in (features, shuffled)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-11)


def test_fewer_samples_than_features_have_the_closed_form_of_gaussians_that_commute() -> None:
    basis = torch.linalg.qr(normal(64, 64)).Q
    a, b = torch.zeros(2, 64, dtype=torch.float64)
    a[:9], b[4:13] = torch.linspace(1, 3, 9), torch.linspace(0.5, 2, 9)
    one, two = ((np.zeros(64), (basis * s @ basis.T).numpy()) for s in (a, b))
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(one, two) == pytest.approx(expected, abs=1e-5)
    few = [statistics(normal(10, 64, seed=seed)) for seed in (1, 2)]
    assert np.isfinite(frechet_distance(*few)) and frechet_distance(few[0], few[0]) == pytest.approx(0, abs=1e-5)


def test_a_covariance_of_one_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 2 pictures, got 1"):
        gathered(normal(1, 3), 1)
