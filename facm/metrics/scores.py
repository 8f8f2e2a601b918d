"""Scores of samples against a dataset's train split, by torch-fidelity's functions.

Fréchet distance (facm/metrics/frechet.py), KID (Binkowski et al. 2018), precision and recall with k = 3 (Kynkäänniemi
et al. 2019; at most 10,000 reference features, as in ADM's evaluator), Inception Score
(facm/metrics/inception_score.py), and sFID, the Fréchet distance of Inception's spatial features (Nash et al. 2021, as
in ADM's evaluator). Where the exact map of noise to data is known (facm/networks/features/exact_map.py), samples are
also measured against it.

Images are looked at part by part (facm/metrics/extract.py); features are kept, for KID, precision, recall and accuracy,
of the first 50,000 samples. All of it is float64, from the features on, and every random number is seeded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from facm.data.images.images import kind
from facm.flow.noise import noise
from facm.metrics.copies import Copies
from facm.metrics.extract import FeatureStatistics, Pictures, look
from facm.metrics.frechet import RunningMoments, Statistics, frechet_distance
from facm.networks.features import FeatureNetwork
from facm.runtime import dist

FID_NUM = 50_000
KEPT = 10_000  # reference features at most, for KID, precision and recall
SAMPLES_KEPT = 50_000  # features of samples at most, for the same and for accuracy
KID_SUBSET = 1000
KID_SEED = 2020
NEIGHBOURS = 3
PRC_ROWS = 2000  # features whose distances to all others are held at once


@dataclass(frozen=True)
class ReferenceStatistics:
    """The train split under one feature network."""

    network: FeatureNetwork
    mu: np.ndarray  # float64 (D,), mean of all its features
    sigma: np.ndarray  # float64 (D, D), their covariance
    features: Tensor | None  # float32 (M, D), at most KEPT of them; None: no KID, precision, recall and accuracy
    spatial: Statistics | None = None  # mean and covariance, float64, of its spatial features; None: no sFID

    @classmethod
    def of(cls, network: FeatureNetwork, images: Pictures) -> "ReferenceStatistics":
        return cls.all_of([network], images, [True])[0]

    @classmethod
    def all_of(
        cls, networks: Sequence[FeatureNetwork], images: Pictures, keep: Sequence[bool]
    ) -> list["ReferenceStatistics"]:
        """Measure a train split, uint8 (N, H, W, C), in one pass, its images shared among the ranks.

        `keep` says for each network whether features are kept too.
        """
        kept = chosen(len(images))
        seen, _ = look(images, networks, [kept if wanted else None for wanted in keep])

        def measured(one: FeatureStatistics) -> tuple[np.ndarray, np.ndarray, Tensor | None, Statistics | None]:
            return *one.moments["features"].statistics(), one.features(), one.spatial()

        parts = dist.from_main(lambda: [measured(one) for one in seen])
        return [cls(network, *part) for network, part in zip(networks, parts, strict=True)]

    def distance(self, features: Tensor) -> float:
        """Fréchet distance of features (N, D) from the train split's."""
        moments = RunningMoments()
        moments.add(features)
        return self.distance_of(moments)

    def distance_of(self, moments: RunningMoments) -> float:
        """Fréchet distance of features by their mean and covariance."""
        return frechet_distance(moments.statistics(), (self.mu, self.sigma))


class Measured(Protocol):
    """What `score` measures against (facm.metrics.reference.Reference): networks that agree on nothing but the data."""

    @property
    def statistics(self) -> Sequence[ReferenceStatistics]:
        """The first gives all scores, its second, if any, repeats distance and accuracy, others add a distance."""

    @property
    def copies(self) -> Copies | None:
        """The train images; None where they are too many to keep."""


def chosen(num: int) -> Tensor:
    """Which of `num` reference images have their features kept, in ascending order: KEPT, seeded, or all of them."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(0))[:KEPT].sort().values


def score(
    images: Pictures | np.ndarray,
    labels: Tensor | np.ndarray | None,
    reference: Measured,
    *,
    kid_subsets: int = 100,
    copies: bool = True,
    seed: int | None = None,
) -> dict[str, float]:
    """Score images by every measure that reference and labels allow; all ranks must call it.

    Args:
        images: uint8 (N, H, W, C), or points float32 (N, D), N at least 4.
        labels: (N,) the classes that were asked for; None: no accuracy.
        copies: look for copies of training images.
        seed: of the noise of which they are a map; None: of none.

    Returns:
        `fd` (or `fid`, see `distance_key`), `kid`, `precision`, `recall`, `accuracy`, `fd_second`, `accuracy_second`,
            `copies`; with Inception `is` and, where the reference has it, `sfid` (`is_10k` and so on for fewer images);
            `fd_<network>` for each further one; `map_rmse` and `map_median` where the exact map is known (`map_error`).
            Nothing on ranks other than 0.

    Raises:
        ValueError: images or labels of a wrong kind, or copies asked of a reference without images.
    """
    pictures: Pictures = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    labels = None if labels is None else torch.as_tensor(labels)
    _check(pictures, labels, reference, copies)
    looked_for = reference.copies if copies else None
    first = reference.statistics[0]
    kept = torch.arange(min(len(pictures), SAMPLES_KEPT))
    keep = [None if train.features is None else kept for train in reference.statistics]
    seen, distances = look(pictures, [train.network for train in reference.statistics], keep, looked_for)
    if not dist.is_main():
        return {}
    scores: dict[str, float] = {}
    for number, (train, one) in enumerate(zip(reference.statistics, seen, strict=True)):
        again = "_second" if train.network.name == first.network.name else f"_{train.network.name}"
        scores |= _under(train, one, labels, again if number else "", kid_subsets)
    if looked_for is not None and distances is not None:
        scores["copies"] = looked_for.rate(distances)
    return scores if seed is None else scores | map_error(pictures, first.network, seed)


def distance_key(features: str, num: int) -> str:
    """Name of the Fréchet distance: `fid` for Inception and 50,000 samples only, `fid_10k` for 10,000, or `fd`."""
    return f"fid{_number(num)}" if features == "inception" else "fd"


def map_error(samples: Pictures, network: FeatureNetwork, seed: int) -> dict[str, float]:
    """`map_rmse` and `map_median`: root mean square and median of |x - exact(x0)|; nothing without an exact flow.

    Samples x are points (N, D), in the data's units; point i is from the noise x0 of (seed, i).
    """
    if network.exact is None:
        return {}
    (x0,) = noise(seed, range(len(samples)), 1, samples.shape[1:])
    distances = torch.linalg.vector_norm(samples[:].double() - network.exact(x0), dim=1)
    return {"map_rmse": float(distances.square().mean().sqrt()), "map_median": float(distances.median())}


def kernel_distance(features_1: Tensor, features_2: Tensor, *, subsets: int = 100) -> float:
    """KID: unbiased MMD^2 with the kernel (a.b/D + 1)^3, mean over seeded subsets of at most 1000."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    metric = kid_features_to_metric(
        features_1.double(),
        features_2.double(),
        kid_subsets=subsets,
        kid_subset_size=min(KID_SUBSET, len(features_1), len(features_2)),
        rng_seed=KID_SEED,
        verbose=False,
    )
    return float(metric[KEY_METRIC_KID_MEAN])


def precision_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Fraction of samples (N, D) among real features (M, D), and of real ones among samples; k = 3 neighbours."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    metric = prc_features_to_metric(
        samples.to(dist.device(), torch.float64),
        real.to(dist.device(), torch.float64),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=PRC_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    # Its means are of float32: the nearest number of hits over all is exact.
    precision, recall = metric[KEY_METRIC_PRECISION], metric[KEY_METRIC_RECALL]
    return round(precision * len(samples)) / len(samples), round(recall * len(real)) / len(real)


def _under(
    train: ReferenceStatistics, seen: FeatureStatistics, labels: Tensor | None, suffix: str, kid_subsets: int
) -> dict[str, float]:
    """What images score under one network; `suffix` of names is empty for the first, which alone gives all scores."""
    network, features, num = train.network, seen.features(), seen.taken
    key = distance_key(network.name, num)
    scores = {f"fd{suffix}" if key == "fd" else key: train.distance_of(seen.moments["features"])}
    if seen.score is not None:
        scores[f"is{_number(num)}"] = seen.score.value()
    spatial = seen.spatial()
    if spatial is not None and train.spatial is not None:
        scores[f"sfid{_number(num)}"] = frechet_distance(spatial, train.spatial)
    if features is None or train.features is None:
        return scores
    if not suffix:
        scores["kid"] = kernel_distance(features, train.features, subsets=kid_subsets)
        scores["precision"], scores["recall"] = precision_recall(features, train.features)
    return scores | _accuracy(f"accuracy{suffix}", network, features, None if labels is None else labels[:SAMPLES_KEPT])


def _number(num: int) -> str:
    """Behind the names of scores that are published for 50,000 pictures: nothing for those, `_10k` for 10,000."""
    return "" if num == FID_NUM else f"_{num / 1000:g}k"


def _accuracy(key: str, network: FeatureNetwork, features: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Fraction that the network finds in the class that was asked for; nothing without labels or classifier."""
    logits = None if labels is None else network.classify(features)
    return {} if logits is None or labels is None else {key: float(torch.eq(logits.argmax(1), labels).double().mean())}


def _check(images: Pictures, labels: Tensor | None, reference: Measured, copies: bool) -> None:
    what = kind(images.dtype, images.shape)
    if len(images) <= NEIGHBOURS:
        raise ValueError(
            f"there must be at least {NEIGHBOURS + 1} {what}, got {len(images)}: sample.num, baseline.num and "
            "reference.num in params.yaml set their number"
        )
    if labels is not None and tuple(labels.shape) != tuple(images.shape[:1]):
        raise ValueError(f"labels must be ({len(images)},), one per picture, got {tuple(labels.shape)}")
    if copies and reference.copies is None:
        raise ValueError(
            "data/reference holds no pictures (too many, or points): set evaluate.copies: false in params.yaml"
        )
