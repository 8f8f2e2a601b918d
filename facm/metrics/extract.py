"""Statistics of images under feature networks, from one pass, part by part, whatever the number of processes.

Images are read in one fixed partition, and nothing is kept that grows with their pixels: mean, covariance and the sums
of the Inception Score, and features of as many images as the caller names.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from facm.metrics.copies import Copies
from facm.metrics.frechet import RunningMoments, Statistics
from facm.metrics.inception_score import PARTS, InceptionScore
from facm.networks.features import FeatureNetwork
from facm.runtime import dist
from facm.runtime.log import progress
from facm.runtime.prefetch import ahead

PICTURES = 512  # looked at in one go, about, while the next ones are read
FEW = 20  # parts without a progress bar


class Pictures(Protocol):
    """Images to look at: a uint8 tensor (N, H, W, C), or an archive's, which are read part by part; or points."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


class FeatureStatistics:
    """Of `num` images under a network, given part by part; features are kept of those in `keep`, ascending."""

    def __init__(self, network: FeatureNetwork, num: int, keep: Tensor | None):
        self.network = network
        self.moments = {name: RunningMoments() for name in network.widths if name != "logits"}
        self.score = InceptionScore(num) if "logits" in network.widths and num >= PARTS else None
        self.keep, self.taken, self._kept = keep, 0, list[Tensor]()

    def take(self, views: dict[str, Tensor]) -> None:
        """Add what `FeatureNetwork.look` gave of the next images.

        Raises ValueError: features that are not finite, of which no score could be told from a good one.
        """
        for name, moments in self.moments.items():
            self._refuse_not_finite(name, views[name])
            moments.add(views[name])
        if self.score is not None:
            self.score.add(views["logits"])
        num = len(views["features"])
        if self.keep is not None:
            first, end = torch.searchsorted(self.keep, torch.tensor([self.taken, self.taken + num])).tolist()
            self._kept.append(views["features"][self.keep[first:end] - self.taken])
        self.taken += num

    def _refuse_not_finite(self, name: str, rows: Tensor) -> None:
        bad = (~rows.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"{name} of the feature network '{self.network.name}' are not finite for {len(bad)} pictures, the "
                f"first of them number {self.taken + int(bad[0])}: look at that picture, or at the network's weights"
            )

    def features(self) -> Tensor | None:
        """The features that were to be kept, (M, D)."""
        return None if self.keep is None else torch.cat(self._kept)

    def spatial(self) -> Statistics | None:
        """Mean and covariance of the spatial features; None where the network has none."""
        return self.moments["spatial"].statistics() if "spatial" in self.moments else None


def look(
    images: Pictures,
    networks: Sequence[FeatureNetwork],
    keep: Sequence[Tensor | None],
    copies: Copies | None = None,
) -> tuple[list[FeatureStatistics], Tensor | None]:
    """Look at images uint8 (N, H, W, C) once, under all networks; the ranks share them, rank 0 has the result.

    Args:
        keep: whose features are kept, for each network, see `FeatureStatistics`.
        copies: whose distances are wanted; None: none.

    Returns:
        The statistics under each network, and, with `copies`, distances (N,); incomplete on other ranks.
    """
    batch = networks[0].batch
    parts = dist.batches(len(images), batch * max(1, PICTURES // batch))

    def views(some: Tensor) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        return [network.look(some) for network in networks], None if copies is None else copies.nearest(some)

    mine = dist.share(len(parts))
    read = ahead(lambda number: images[parts[number].start : parts[number].stop], mine, depth=1)
    shown = progress(read, len(mine), "looking") if len(parts) > FEW else read
    seen = [FeatureStatistics(network, len(images), kept) for network, kept in zip(networks, keep, strict=True)]
    distances = []
    for found, nearest in dist.in_order(map(views, shown), len(parts)):
        for one, view in zip(seen, found, strict=True):
            one.take(view)
        distances.append(nearest)
    return seen, torch.cat(distances) if copies is not None and distances else None
