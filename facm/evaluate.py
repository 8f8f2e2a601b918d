"""Scores of samples against a data set's train split, by torch-fidelity's functions.

Fréchet distance |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Heusel et al. 2017), KID (Binkowski et al. 2018),
precision and recall with k = 3 (Kynkäänniemi et al. 2019; the published 10k reference features, as in ADM's evaluator).
Where the exact map of noise to data is known (facm/features/exact_map.py), samples are also measured against it.
Statistics and distances are float64, KID's kernels float32 (as torch-fidelity has them: half the time, equal to 1e-6).
Nothing here draws a random number that is not seeded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from facm import dist
from facm.copies import Copies
from facm.data import kind
from facm.features import FeatureNetwork
from facm.samplers.noise import noise

FID_NUM = 50_000
KEPT = 10_000  # reference features at most, for KID, precision and recall
KID_SUBSET = 1000
KID_SEED = 2020
NEIGHBOURS = 3
PRC_ROWS = 2000  # features whose distances to all others are held at once
PICTURES = 1000  # looked at in one go, about


class Pictures(Protocol):
    """Pictures to look at: a uint8 tensor (N, H, W, C), or an archive's, which are read part by part; or points."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


@dataclass(frozen=True)
class Yardstick:
    """The train split as one feature network sees it.

    Attributes:
        network: the feature network.
        mu: float64 (D,), mean of all its features.
        sigma: float64 (D, D), their covariance.
        features: float32 (M, D), at most KEPT of them.
    """

    network: FeatureNetwork
    mu: np.ndarray
    sigma: np.ndarray
    features: Tensor

    @classmethod
    def of(cls, network: FeatureNetwork, images: Pictures) -> "Yardstick":
        """Measure a train split, uint8 (N, H, W, C), its pictures shared among the ranks."""
        seen = look(images, [network])

        def measured() -> tuple[np.ndarray, np.ndarray, Tensor]:
            (features,) = seen
            kept = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:KEPT].sort().values
            return *statistics(features), features[kept]

        return cls(network, *dist.from_main(measured))

    def distance(self, features: Tensor) -> float:
        """Fréchet distance of features (N, D) from the train split's."""
        return frechet_distance(statistics(features), (self.mu, self.sigma))


class Measured(Protocol):
    """What `score` measures against (facm.reference.Reference): networks that agree on nothing but the data."""

    @property
    def yardsticks(self) -> Sequence[Yardstick]:
        """The first gives all scores, the second, where there is one, repeats distance and accuracy."""

    @property
    def copies(self) -> Copies | None:
        """The train pictures; None where they are too many to keep."""


def look(images: Pictures, networks: Sequence[FeatureNetwork], copies: Copies | None = None) -> list[Tensor]:
    """Look at pictures once, for all that is wanted of them; the ranks share them, rank 0 has the result.

    Args:
        images: uint8 (N, H, W, C).
        networks: whose features are wanted.
        copies: whose distances are wanted; None: none.

    Returns:
        Per network features (N, D), then, with `copies`, distances (N,); nothing on other ranks.
    """
    batch = networks[0].batch
    parts = dist.batches(len(images), batch * max(1, PICTURES // batch))

    def seen(number: int) -> list[Tensor]:
        some = images[parts[number].start : parts[number].stop]
        features = [network.extract(some) for network in networks]
        return features if copies is None else [*features, copies.nearest(some)]

    rows = dist.in_order(map(seen, dist.share(len(parts))), len(parts))
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def score(
    images: Pictures | np.ndarray,
    labels: Tensor | np.ndarray | None,
    reference: Measured,
    *,
    kid_subsets: int = 100,
    copies: bool = True,
    seed: int | None = None,
) -> dict[str, float]:
    """Score pictures by every measure that reference and labels allow; all ranks must call it.

    Args:
        images: uint8 (N, H, W, C), or points float32 (N, D), N at least 4.
        labels: (N,) the classes that were asked for; None: no accuracy.
        reference: the data set's train split.
        kid_subsets: subsets of KID.
        copies: look for copies of training pictures.
        seed: of the noise of which they are a map; None: of none.

    Returns:
        `fd` (or `fid`, see `distance_key`), `kid`, `precision`, `recall`, `accuracy`, `fd_second`, `accuracy_second`,
        `copies`; `map_rmse` and `map_median` where the exact map is known (`map_error`). Nothing on ranks other than 0.

    Raises:
        ValueError: pictures or labels of a wrong kind, or copies asked of a reference without pictures.
    """
    pictures: Pictures = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    labels = None if labels is None else torch.as_tensor(labels)
    _check(pictures, labels, reference, copies)
    looked_for = reference.copies if copies else None
    seen = look(pictures, [yardstick.network for yardstick in reference.yardsticks], looked_for)
    if not dist.is_main():
        return {}
    first, *others = reference.yardsticks
    features = seen[0]
    scores = {distance_key(first.network.name, len(pictures)): first.distance(features)}
    scores["kid"] = kernel_distance(features, first.features, subsets=kid_subsets)
    scores["precision"], scores["recall"] = precision_recall(features, first.features)
    scores |= _accuracy("accuracy", first.network, features, labels)
    for second, features_second in zip(others, seen[1:], strict=False):
        scores["fd_second"] = second.distance(features_second)
        scores |= _accuracy("accuracy_second", second.network, features_second, labels)
    if looked_for is not None:
        scores["copies"] = looked_for.rate(seen[-1])
    return scores if seed is None else scores | map_error(pictures, first.network, seed)


def distance_key(features: str, num: int) -> str:
    """Name of the Fréchet distance: `fid` for Inception and 50,000 samples only, `fid_10k` for 10,000, or `fd`."""
    if features != "inception":
        return "fd"
    return "fid" if num == FID_NUM else f"fid_{num / 1000:g}k"


def map_error(samples: Pictures, network: FeatureNetwork, seed: int) -> dict[str, float]:
    """Distance of samples from where the exact flow takes their own noise; nothing where that is not known.

    Args:
        samples: points (N, D), in the data's units; point i was drawn from the noise of (seed, i).
        network: tells the exact map.
        seed: of the noise.

    Returns:
        `map_rmse` and `map_median`, root mean square and median of the distances |x - exact(x0)|.
    """
    if network.exact is None:
        return {}
    (x0,) = noise(seed, range(len(samples)), 1, samples.shape[1:])
    distances = torch.linalg.vector_norm(samples[:].double() - network.exact(x0), dim=1)
    return {"map_rmse": float(distances.square().mean().sqrt()), "map_median": float(distances.median())}


def statistics(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) -> mean (D,) and covariance (D, D), float64."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    result = fid_features_to_statistics(features.double())
    return result["mu"], result["sigma"]


def frechet_distance(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two pairs (mu (D,), S (D, D)), float64."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    stats = [{"mu": np.asarray(mu, np.float64), "sigma": np.asarray(sigma, np.float64)} for mu, sigma in (one, two)]
    return float(fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID])


def kernel_distance(features_1: Tensor, features_2: Tensor, *, subsets: int = 100) -> float:
    """KID: unbiased MMD^2 with the kernel (a.b/D + 1)^3, mean over seeded subsets of at most 1000."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    metric = kid_features_to_metric(
        features_1,
        features_2,
        kid_subsets=subsets,
        kid_subset_size=min(KID_SUBSET, len(features_1), len(features_2)),
        rng_seed=KID_SEED,
        verbose=False,
    )
    return float(metric[KEY_METRIC_KID_MEAN])


def precision_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Fraction of samples (N, D) among real features (M, D), and of real ones among samples; k = 3 neighbours."""
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    metric = prc_features_to_metric(
        samples.to(dist.device(), torch.float64),
        real.to(dist.device(), torch.float64),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=PRC_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return metric[KEY_METRIC_PRECISION], metric[KEY_METRIC_RECALL]


def _accuracy(key: str, network: FeatureNetwork, features: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Fraction that the network finds in the class that was asked for; nothing without labels or classifier."""
    logits = None if labels is None else network.classify(features)
    return {} if logits is None or labels is None else {key: float(torch.eq(logits.argmax(1), labels).double().mean())}


def _check(images: Pictures, labels: Tensor | None, reference: Measured, copies: bool) -> None:
    """Raise ValueError for what cannot be scored."""
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
