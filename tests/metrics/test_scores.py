"""Distances against closed forms, copies, the names of scores, and the real reference of digits."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from facm.data import datasets
from facm.data.images.images import Images
from facm.metrics import scores as evaluate
from facm.metrics.copies import Copies, nearest
from facm.metrics.reference import Reference, build
from facm.metrics.scores import ReferenceStatistics, distance_key, kernel_distance, precision_recall, score
from facm.metrics.trivial_baselines import Ends


def normal(num: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Pixels:
    """A feature network for tests: features are pixels, the class is the brightest one."""

    seeded, batch, exact = False, 500, None
    widths: ClassVar[dict[str, int]] = {"features": 4}

    def __init__(self, name: str = "pixels"):
        self.name = name

    def extract(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255

    def look(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.extract(images)}

    def classify(self, features: Tensor) -> Tensor:
        return features


@dataclass
class Fake:
    """What `score` needs of a reference."""

    statistics: Sequence[ReferenceStatistics]
    copies: Copies | None = None


def fake(images: Tensor, *names: str) -> Fake:
    networks: list[Any] = [Pixels(name) for name in names]
    return Fake([ReferenceStatistics.of(network, images) for network in networks], Copies.of(images))


def random_pictures(num: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (num, 2, 2, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_kernel_distance_of_whole_sets_is_the_unbiased_mmd() -> None:
    a, b = normal(40, 4), normal(40, 4, seed=1) + 0.3

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 4 + 1) ** 3

    within = [(k.sum() - k.diagonal().sum()) / (40 * 39) for k in (kernel(a, a), kernel(b, b))]
    expected = within[0] + within[1] - 2 * kernel(a, b).mean()
    assert kernel_distance(a, b, subsets=2) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_is_of_the_features_in_float64() -> None:
    a, b = (100 * normal(40, 4, seed).float() for seed in (0, 1))  # kernels of 1e11, of which float32 has 7 digits
    assert kernel_distance(a, b, subsets=2) == kernel_distance(a.double(), b.double(), subsets=2)


class Broken(Pixels):
    """Whose features of a picture with a white first pixel are not finite."""

    def extract(self, images: Tensor) -> Tensor:
        features = super().extract(images)
        return features.masked_fill(features[:, :1] == 1, torch.inf)


def test_features_that_are_not_finite_are_told_by_network_and_picture() -> None:
    images = random_pictures(600).clamp(max=254)
    reference = fake(images, "pixels")
    broken: Any = Broken("broken")
    reference = Fake([dataclasses.replace(reference.statistics[0], network=broken)], reference.copies)
    samples = images.clone()
    samples[[517, 599], 0, 0] = 255
    with pytest.raises(ValueError, match="'broken' are not finite for . pictures, the first of them number 517"):
        score(samples, None, reference, kid_subsets=1)


def test_kernel_distance_is_the_same_every_time_and_about_0_for_one_distribution() -> None:
    a, b = normal(1500, 4).float(), normal(1200, 4, seed=1).float()
    first = kernel_distance(a, b, subsets=3)
    assert first == kernel_distance(a, b, subsets=3) and abs(first) < 0.02


def test_kernel_distance_takes_subsets_of_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(1100, 3), normal(1200, 3, seed=1) + 0.3
    asked: list[int] = []
    monkeypatch.setattr(
        "torch_fidelity.metric_kid.kid_features_to_metric",
        lambda *_, kid_subset_size, **__: asked.append(kid_subset_size) or {"kernel_inception_distance_mean": 0.0},
    )
    kernel_distance(a, b)
    kernel_distance(a[:1000], b)
    kernel_distance(a, b[:999])
    assert asked == [1000, 1000, 999], "Binkowski et al."


def test_precision_and_recall_are_fractions_to_the_last_bit_and_far_from_the_origin_too() -> None:
    real, samples = normal(90, 2), normal(70, 2, seed=1)
    distances = torch.cdist(real, real, compute_mode="donot_use_mm_for_euclid_dist")
    reach = distances.kthvalue(4, dim=1).values
    hits = (torch.cdist(samples, real, compute_mode="donot_use_mm_for_euclid_dist") <= reach).any(1).sum()
    for far in (0.0, 2.0**20):  # where float32 has steps of an eighth
        assert precision_recall(samples + far, real + far)[0] == int(hits) / 70


def test_precision_sees_quality_and_recall_diversity() -> None:
    real = normal(300, 2)
    assert precision_recall(real, real) == (1, 1)
    one_mode, wide = 0.05 * normal(300, 2, seed=1), 10 * normal(300, 2, seed=2)
    assert precision_recall(one_mode, real)[0] == 1 and precision_recall(one_mode, real)[1] < 0.2
    assert precision_recall(wide, real)[0] < 0.3


@pytest.mark.parametrize(
    ("features", "num", "key"),
    [
        ("inception", 50_000, "fid"),
        ("inception", 49_999, "fid_49.999k"),
        ("inception", 10_000, "fid_10k"),
        ("inception", 2000, "fid_2k"),
        ("digits_cnn", 50_000, "fd"),
        ("digits_cnn", 2000, "fd"),
    ],
)
def test_fid_is_the_name_for_inception_and_50000_samples_only(features: str, num: int, key: str) -> None:
    assert distance_key(features, num) == key


def test_only_50000_samples_through_inception_are_scored_as_fid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "precision_recall", lambda *_: (0.0, 0.0))
    few, many = random_pictures(60), random_pictures(50_000)
    for name in ("inception", "digits_cnn"):
        reference = fake(few, name)
        assert ("fid" in score(many, None, reference, kid_subsets=1, copies=False)) == (name == "inception")
        assert "fid" not in score(many[:-1], None, reference, kid_subsets=1, copies=False)


def test_scores_have_the_keys_that_labels_and_networks_allow() -> None:
    images = random_pictures(60)
    labels = images.flatten(1).argmax(1)
    plain = {"fd", "kid", "precision", "recall"}
    full = score(images, labels, fake(images, "pixels", "pixels"), kid_subsets=1)
    assert set(full) == plain | {"accuracy", "fd_second", "accuracy_second", "copies"}
    assert full["accuracy"] == full["accuracy_second"] == full["copies"] == 1
    assert set(score(images, labels, fake(images, "pixels"), kid_subsets=1)) == plain | {"accuracy", "copies"}
    assert set(score(images, None, fake(images, "pixels"), kid_subsets=1, copies=False)) == plain
    assert all(type(value) is float for value in full.values())


def test_scores_take_the_arrays_of_an_npz_file() -> None:
    images = random_pictures(60)
    labels = images.flatten(1).argmax(1)
    reference = fake(images, "pixels")
    arrays = score(images.numpy(), labels.numpy(), reference, kid_subsets=1)
    assert arrays == score(images, labels, reference, kid_subsets=1)


def test_what_cannot_be_scored_is_refused() -> None:
    images = random_pictures(60)
    reference = fake(images, "pixels")
    with pytest.raises(ValueError, match="sample.num"):
        score(images[:3], None, reference)
    with pytest.raises(ValueError, match="must be uint8"):
        score(images.float(), None, reference)
    with pytest.raises(ValueError, match=r"labels must be \(60,\)"):
        score(images, torch.zeros(59, dtype=torch.int64), reference)
    with pytest.raises(ValueError, match="set evaluate.copies: false"):
        score(images, None, Fake(reference.statistics))


def test_nearest_neighbours_are_those_of_brute_force() -> None:
    a, b = random_pictures(1203), random_pictures(70, seed=1)
    distances = torch.cdist(a.flatten(1).double() / 127.5, b.flatten(1).double() / 127.5)
    torch.testing.assert_close(nearest(a, b), distances.amin(1))
    own = torch.cdist(a.flatten(1).double() / 127.5, a.flatten(1).double() / 127.5).fill_diagonal_(torch.inf)
    torch.testing.assert_close(nearest(a), own.amin(1))


def test_two_equal_train_pictures_are_0_apart() -> None:
    images = random_pictures(40)
    images[7] = images[31]
    assert nearest(images)[7] == nearest(images)[31] == 0


def test_mean_pictures_are_balanced_means_of_their_class() -> None:
    images = random_pictures(30)
    train = Images(images, torch.arange(30) % 3, 3)
    means = Ends.of(train).mean_pictures(7)[:]
    assert torch.equal(means[:3], means[3:6]) and torch.equal(means[0], means[6])
    expected = (images[1::3].double().mean(0) + 0.5).floor().to(torch.uint8)
    assert torch.equal(means[1], expected)


def test_noise_has_the_mean_and_std_of_the_data_and_the_seed_decides_it() -> None:
    narrow = random_pictures(300) // 4 + 96
    noise = Ends.of(Images(narrow, None, 0)).noise_pictures(3000, 0)[:]
    assert float(noise.double().mean()) == pytest.approx(float(narrow.double().mean()), abs=1)
    assert float(noise.double().std()) == pytest.approx(float(narrow.double().std()), rel=0.03)
    assert torch.equal(noise, Ends.of(Images(narrow, None, 0)).noise_pictures(3000, 0)[:])
    assert not torch.equal(noise, Ends.of(Images(narrow, None, 0)).noise_pictures(3000, 1)[:])


@dataclass
class Built:
    """The reference of digits, as its stage makes it."""

    folder: Path
    metrics: dict[str, Any]
    train: Images
    heldout: Images


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("reference")
    train, heldout = (datasets.load("digits", None, split) for split in datasets.SPLITS)
    metrics = build(folder, train, heldout, features="digits_cnn", seed=0, num=2000, kid_subsets=2)
    return Built(folder, metrics["reference"], train, heldout)


def test_both_networks_of_digits_recognise_the_heldout_pictures(digits: Built) -> None:
    assert digits.metrics["features"] == "digits_cnn"
    assert digits.metrics["heldout_accuracy"] >= 0.98 and digits.metrics["heldout_accuracy_second"] >= 0.98


@pytest.mark.parametrize("key", ["fd", "fd_second"])
def test_the_scale_of_digits_is_wide(digits: Built, key: str) -> None:
    floor, class_mean, noise = (digits.metrics[name][key] for name in ("floor", "class_mean", "noise"))
    assert 0 < floor <= 0.06 * class_mean and class_mean < noise


def test_accuracy_alone_does_not_tell_class_means_from_good_samples(digits: Built) -> None:
    assert digits.metrics["class_mean"]["accuracy"] == 1 and digits.metrics["class_mean"]["recall"] < 0.05
    assert digits.metrics["noise"]["accuracy"] < 0.25


def test_train_pictures_score_as_perfect_copies(digits: Built) -> None:
    reference = Reference.open(digits.folder)
    scores = score(digits.train.images, digits.train.labels, reference, kid_subsets=2)
    assert scores["copies"] == 1 and scores["precision"] == scores["recall"] == 1
    assert scores["fd"] == pytest.approx(0, abs=1e-6) and scores["fd_second"] == pytest.approx(0, abs=1e-6)
    assert scores["accuracy"] > 0.99


def test_heldout_pictures_and_noise_are_hardly_ever_copies(digits: Built) -> None:
    assert digits.metrics["heldout_copies"] == pytest.approx(3 / 450)
    copies = Reference.open(digits.folder).copies
    assert copies is not None and copies.rate(copies.nearest(Ends.of(digits.train).noise_pictures(100, 0)[:])) == 0
    barely = (digits.train.images.int() + 1).clamp(max=255).to(torch.uint8)
    assert copies.rate(copies.nearest(barely)) == 1


def test_an_opened_reference_scores_bit_for_bit_as_the_built_one(digits: Built) -> None:
    scores = score(digits.heldout.images, digits.heldout.labels, Reference.open(digits.folder), kid_subsets=2)
    assert {name: scores[name] for name in digits.metrics["floor"]} == digits.metrics["floor"]


def test_a_reference_tells_what_is_missing_or_damaged(digits: Built, tmp_path: Path) -> None:
    for path in digits.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    statistics_path = tmp_path / "statistics_second.safetensors"
    statistics_path.write_bytes(statistics_path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"statistics_second.safetensors is damaged .* run `dvc repro`"):
        Reference.open(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta.json is missing: .* run `dvc repro`"):
        Reference.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"features": None}, "meta.json, features: must be text, it is None"),
        ({"networks": 0}, "meta.json, networks: must be 1 or 2, it is 0"),
        ({"copies_threshold": "1"}, "meta.json, copies_threshold: must be a finite number, it is '1'"),
        ({"also": "inception"}, "meta.json, also: must be a list"),
        ({"features": "digits"}, "meta.json: unknown 'digits'"),
        ("networks", "meta.json lacks 'networks'"),
        ([], r"meta.json: must be an object of names and values, it is \[\]"),
    ],
)
def test_a_reference_of_another_form_is_refused_by_name(change, told: str, digits: Built, tmp_path: Path) -> None:
    shutil.copytree(digits.folder, tmp_path / "reference")
    path = tmp_path / "reference/meta.json"
    meta = json.loads(path.read_text())
    changed = meta | change if isinstance(change, dict) else change
    path.write_text(json.dumps({k: v for k, v in meta.items() if k != change} if isinstance(change, str) else changed))
    with pytest.raises(ValueError, match=told):
        Reference.open(tmp_path / "reference")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mu": None}, "lacks 'mu'"),
        ({"sigma": torch.eye(3).double()}, r"needed are float64 \(D,\) and \(D, D\)"),
        ({"mu": torch.zeros(()).double()}, r"mu torch.float64 \(\), sigma"),
        ({"mu_s": torch.zeros(3).double()}, "lacks 'sigma_s'"),
    ],
)
def test_statistics_of_another_form_are_refused_by_name(change, told: str, digits: Built, tmp_path: Path) -> None:
    shutil.copytree(digits.folder, tmp_path / "reference")
    path = tmp_path / "reference/statistics.safetensors"
    found = {name: tensor.clone() for name, tensor in load_file(path).items()} | change
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=f"statistics.safetensors.*{told}.*: remove .* and run `dvc repro`"):
        Reference.open(tmp_path / "reference")


def test_without_classes_the_pixel_mean_takes_the_place_of_the_class_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unlabelled(Pixels):
        name = "pixels"

        def __init__(self) -> None:
            super().__init__()

        @classmethod
        def create(cls, train: Images, seed: int) -> "Unlabelled":
            return cls()

        def to(self, device: Any) -> "Unlabelled":
            return self

        def save(self, path: Path) -> dict[str, Any]:
            return {}

    monkeypatch.setattr("facm.metrics.reference.network_class", lambda name: Unlabelled)
    train, heldout = Images(random_pictures(80), None, 0), Images(random_pictures(40, seed=1), None, 0)
    metrics = build(tmp_path, train, heldout, features="pixels", seed=0, num=20, kid_subsets=1)["reference"]
    assert set(metrics) == {"features", "num", "heldout_copies", "floor", "pixel_mean", "noise"}
    assert set(metrics["pixel_mean"]) == {"fd", "kid", "precision", "recall"}
