"""The 2-D mixture as a data set: its law, its points, its exact map, and the scores that are taken against it."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from miniature import ROOT, truncate
from oracle import runge_kutta
from torch import Tensor

from facm.data import datasets
from facm.data.datasets.mixture import BITS, LAW, Mixture, MixturePoints, hammersley
from facm.data.images.images import Images
from facm.data.latents import store
from facm.flow.noise import noise
from facm.metrics.frechet import statistics
from facm.metrics.reference import Reference, build
from facm.metrics.scores import ReferenceStatistics, map_error, score
from facm.networks.features.exact_map import ExactMap

IDENTITY = 1.065  # map_rmse of x = mean + std x0 over 4096 points of seed 0: what a student that learns nothing has


@pytest.fixture(scope="module")
def train() -> Images:
    return datasets.load("mixture", None, "train")


@pytest.fixture(scope="module")
def network(train: Images) -> ExactMap:
    return ExactMap.create(train, 0)


def x0(seed: int, num: int) -> Tensor:
    """The noise that samplers start from, (num, 2) float64."""
    return noise(seed, range(num), 1, (2,))[0]


# The law


def test_quantiles_undo_the_distribution_function_at_any_time() -> None:
    level = torch.linspace(0.001, 0.999, 301, dtype=torch.float64)[:, None].expand(-1, 2)
    for t in (0.0, 0.4, 1.0):
        time = torch.full((301,), t, dtype=torch.float64)
        torch.testing.assert_close(LAW.cdf(LAW.quantile(level, time), time), level, atol=1e-12, rtol=0)


def test_noise_has_the_quantiles_of_the_normal_distribution() -> None:
    level = torch.tensor([[0.1, 0.5], [0.9, 0.975]], dtype=torch.float64)
    found = LAW.quantile(level, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found, math.sqrt(2) * torch.erfinv(2 * level - 1), atol=1e-10, rtol=0)


def test_the_normalised_law_is_the_law_in_other_units() -> None:
    law, time = LAW.normalised(0.3, 1.7), torch.ones(50, dtype=torch.float64)
    level = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(0.3 + 1.7 * law.quantile(level, time), LAW.quantile(level, time), atol=1e-12, rtol=0)


# The points


def test_points_are_float32_in_the_plane_without_classes_and_have_the_laws_moments(train: Images) -> None:
    heldout = datasets.load("mixture", None, "heldout")
    assert train.kind == heldout.kind == "points" and train.num_classes == 0 and train.labels is None
    assert train.images.shape == (2**BITS, 2) and heldout.images.shape == (2048, 2)
    w, m, s = (torch.tensor(values, dtype=torch.float64) for values in (LAW.weights, LAW.means, LAW.stds))
    mean = (w * m).sum()
    std = ((w * (s**2 + m**2)).sum() - mean**2).sqrt()
    for points, error in ((train.images.double(), 1e-3), (heldout.images.double(), 0.08)):
        torch.testing.assert_close(points.mean(0), mean.expand(2), atol=error, rtol=0)
        torch.testing.assert_close(points.std(0), std.expand(2), atol=error, rtol=0)
        assert abs(float(torch.corrcoef(points.T)[0, 1])) < error


@pytest.mark.parametrize("split", datasets.SPLITS)
def test_points_are_distributed_as_the_law_says(split: str) -> None:
    """Kolmogorov-Smirnov: N random levels deviate from uniform ones by 1.95 / sqrt(N) once in a thousand draws."""
    points = datasets.load("mixture", None, split).images.double()
    levels = LAW.cdf(points, torch.ones(1, dtype=torch.float64)).sort(0).values
    uniform = (torch.arange(len(points), dtype=torch.float64) + 0.5) / len(points)
    largest = float((levels - uniform[:, None]).abs().max())
    assert largest < (1e-4 if split == "train" else 1.95 / math.sqrt(len(points)))


def test_the_points_to_train_on_weigh_the_modes_as_the_law_does(train: Images) -> None:
    """To four digits, in each of the four; random points do so to .002."""
    left = (train.images < -0.4).double()
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = float(((left[:, 0] == i) & (left[:, 1] == j)).double().mean())
        assert share == pytest.approx((0.6, 0.4)[i] * (0.6, 0.4)[j], abs=6e-4)


def test_a_hammersley_set_has_one_level_in_each_box_of_its_size() -> None:
    """Every division of the unit square into 2^a x 2^(bits - a) boxes: a (0, bits, 2)-net."""
    levels = hammersley(6)
    for a in range(7):
        boxes = (levels[:, 0] * 2**a).long() * 2 ** (6 - a) + (levels[:, 1] * 2 ** (6 - a)).long()
        assert boxes.sort().values.tolist() == list(range(64))


def test_the_splits_have_no_point_in_common_and_no_last_bits_of_a_machine(train: Images) -> None:
    heldout = datasets.load("mixture", None, "heldout")
    assert not {tuple(point) for point in train.images.tolist()} & {tuple(point) for point in heldout.images.tolist()}
    grid = train.images.double() * 2**16
    assert torch.equal(grid, grid.round())


def test_the_preset_pins_the_points() -> None:
    preset = yaml.safe_load((ROOT / "presets/mixture.yaml").read_text())
    assert datasets.fingerprint("mixture", None) == preset["data"]["fingerprint"]


def test_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="params.yaml, data.root: 'mixture' is drawn from its law, got pictures; set"):
        MixturePoints(Path("pictures"))


# The exact map


def test_the_exact_map_follows_the_normalised_velocity_into_the_datas_units(network: ExactMap) -> None:
    noise_points = x0(3, 40)
    columns = []
    for x, mean, std in zip(noise_points.unbind(1), network.mean.tolist(), network.std.tolist(), strict=True):
        law = LAW.normalised(mean, std)
        columns.append(mean + std * runge_kutta(law.velocity, x, 0.0, 1.0, 2000))
    torch.testing.assert_close(network.exact(noise_points), torch.stack(columns, 1), atol=1e-7, rtol=0)


def test_the_exact_map_makes_the_law_of_noise(network: ExactMap) -> None:
    """F_1(exact(x0)) = F_0(x0), by the distribution function in the data's units."""
    noise_points = x0(4, 500)
    one = torch.ones(500, dtype=torch.float64)
    levels = LAW.cdf(network.exact(noise_points), one)
    torch.testing.assert_close(levels, torch.special.ndtr(noise_points), atol=1e-9, rtol=0)


def test_mean_and_std_are_those_that_latents_are_normalised_with(network: ExactMap, train: Images) -> None:
    stored = store.Moments.of(train.images).statistics()
    torch.testing.assert_close(network.mean.float(), stored["mean"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(network.std.float(), stored["std"], rtol=1e-6, atol=0)


def test_the_map_survives_saving_and_damage_is_named(network: ExactMap, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    network.save(path)
    assert torch.equal(ExactMap.load(path).exact(x0(0, 5)), network.exact(x0(0, 5)))
    truncate(path)
    with pytest.raises(ValueError, match="network.safetensors is damaged .* run `dvc repro`"):
        ExactMap.load(path)


# Scores


def test_the_exact_map_has_no_error_and_the_identity_the_stated_one(network: ExactMap) -> None:
    noise_points = x0(0, 4096)
    exact = map_error(network.exact(noise_points).float(), network, 0)
    assert 0 < exact["map_rmse"] < 1e-6 and exact["map_median"] < 1e-6  # float32
    identity = map_error((network.mean + network.std * noise_points).float(), network, 0)
    assert identity["map_rmse"] == pytest.approx(IDENTITY, abs=1e-3)
    assert map_error(network.exact(noise_points).float(), network, 1)["map_rmse"] > 1, "of other noise"


def test_map_errors_are_root_mean_square_and_median_of_distances(network: ExactMap) -> None:
    moved = network.exact(x0(0, 4))
    moved[0] += torch.tensor([3.0, 4.0])
    moved[1:3] += torch.tensor([0.0, 1.0])
    found = map_error(moved.float(), network, 0)
    assert found["map_rmse"] == pytest.approx(math.sqrt(27 / 4), rel=1e-6)
    assert found["map_median"] == pytest.approx(1, rel=1e-6)


def test_only_samples_that_are_a_map_of_their_noise_have_a_map_error(network: ExactMap, train: Images) -> None:
    points = train.images[::163]
    reference = Reference((ReferenceStatistics.of(network, points),), None)
    plain = score(points, None, reference, kid_subsets=1, copies=False)
    mapped = score(points, None, reference, kid_subsets=1, copies=False, seed=0)
    assert set(plain) == {"fd", "kid", "precision", "recall"}
    assert set(mapped) == set(plain) | {"map_rmse", "map_median"}
    assert {name: mapped[name] for name in plain} == plain


def test_features_tell_apart_what_mean_and_covariance_do_not(network: ExactMap, train: Images) -> None:
    """Noise with the data's moments, and data whose coordinates have changed partners in half of the plane."""
    points = train.images[::7]
    gaussian = (network.mean + network.std * x0(0, 4096)).float()
    paired = points.sort(0).values
    measured = ReferenceStatistics.of(network, train.images)
    assert network.extract(points).shape == (len(points), 14) and network.extract(points).dtype == torch.float32
    floor = measured.distance(network.extract(points))
    assert measured.distance(network.extract(gaussian)) > 100 * floor
    assert measured.distance(network.extract(paired)) > 100 * floor
    (mean, covariance), (mean_of_noise, covariance_of_noise) = statistics(points), statistics(gaussian)
    assert abs(mean - mean_of_noise).max() < 0.1 and abs(covariance - covariance_of_noise).max() < 0.15


def test_the_ends_of_the_scale_are_the_heldout_points_the_mean_point_and_the_identity(
    train: Images, tmp_path: Path
) -> None:
    few = Images(train.images[::33], None, 0)  # not of a power of two, or the second coordinate is not sampled
    metrics = build(tmp_path, few, few, features="exact_map", seed=0, num=300, kid_subsets=1)["reference"]
    assert set(metrics) == {"features", "num", "floor", "pixel_mean", "noise"}
    assert set(metrics["floor"]) == set(metrics["pixel_mean"]) == {"fd", "kid", "precision", "recall"}
    assert set(metrics["noise"]) == {"fd", "kid", "precision", "recall", "map_rmse", "map_median"}
    assert metrics["noise"]["map_rmse"] == pytest.approx(IDENTITY, abs=0.1)
    assert metrics["floor"]["fd"] < 1e-6 < metrics["noise"]["fd"] < metrics["pixel_mean"]["fd"]
    opened = Reference.open(tmp_path)
    assert opened.copies is None and opened.statistics[0].network.exact is not None
    assert score(few.images, None, opened, kid_subsets=1, copies=False) == metrics["floor"]


def test_a_law_of_one_gaussian_has_a_linear_map() -> None:
    law, time = Mixture((1.0,), (2.0,), (0.5,)), torch.zeros(20, dtype=torch.float64)
    points = x0(0, 20)
    torch.testing.assert_close(law.flow_map(points, time, time + 1), 2 + 0.5 * points, atol=1e-10, rtol=0)
