"""data/reference: the data set as samples are measured against it, and the ends of the scale.

* network.safetensors, network_second.safetensors: feature networks (of Inception only which weights)
* statistics.safetensors, statistics_second.safetensors: mu, sigma float64 of the train split; features float32
* pictures.safetensors: the train pictures, for copies; left out above 1 GiB, and of points
* meta.json: threshold of copies and, per file, bytes and sha256; written last: without it the folder is unfinished
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm import dist
from facm.copies import Copies
from facm.data import Images
from facm.evaluate import Pictures, Yardstick, score
from facm.features import network_class
from facm.files import load_json, load_tensors, save_json, save_tensors
from facm.samplers.noise import noise

SUFFIXES = ("", "_second")
PICTURES_GIB = 1.0
KID_SUBSETS = 20
PART = 500  # pictures in files that are decoded at once


@dataclass(frozen=True)
class Reference:
    """A train split, measured; see facm.evaluate.Measured.

    Attributes:
        yardsticks: per feature network; the second one, seeded otherwise, only where networks are trained here.
        copies: the train pictures; None above 1 GiB of them, and of points.
    """

    yardsticks: tuple[Yardstick, ...]
    copies: Copies | None

    @classmethod
    def of(cls, train: Images, *, features: str, seed: int) -> "Reference":
        """Make the feature networks, on rank 0, and measure a train split, on all ranks.

        Args:
            train: the split.
            features: a key of facm.features.FEATURES.
            seed: of the first network's training; the second has the next one.
        """
        network = network_class(features)
        seeds = (seed, seed + 1) if network.seeded else (seed,)
        networks = dist.from_main(lambda: [network.create(train, s) for s in seeds])
        yardsticks = tuple(Yardstick.of(made.to(dist.device()), train.images) for made in networks)
        keep = train.kind == "pictures" and math.prod(train.images.shape) <= PICTURES_GIB * 2**30
        return cls(yardsticks, Copies.of(train.images[:]) if keep else None)

    @classmethod
    def open(cls, folder: str | Path) -> "Reference":
        """Read what `save` wrote; features are computed where this rank computes.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged.
        """
        folder = Path(folder)
        cure = f"remove {folder} and run `dvc repro`"
        meta = load_json(folder / "meta.json", cure)
        yardsticks = []
        for suffix in SUFFIXES[: meta["networks"]]:
            network = network_class(meta["features"]).load(folder / f"network{suffix}.safetensors").to(dist.device())
            stored = load_tensors(folder / f"statistics{suffix}.safetensors", cure)
            yardsticks.append(Yardstick(network, stored["mu"].numpy(), stored["sigma"].numpy(), stored["features"]))
        copies = None
        if meta["copies_threshold"] is not None:
            pictures = load_tensors(folder / "pictures.safetensors", cure)["pictures"]
            copies = Copies(pictures, meta["copies_threshold"])
        return cls(tuple(yardsticks), copies)

    def save(self, folder: str | Path) -> None:
        """Write to a folder, each file whole, meta.json last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        files = []
        for suffix, yardstick in zip(SUFFIXES, self.yardsticks, strict=False):
            files.append(yardstick.network.save(folder / f"network{suffix}.safetensors"))
            stored = {"mu": torch.from_numpy(yardstick.mu), "sigma": torch.from_numpy(yardstick.sigma)}
            stored["features"] = yardstick.features
            files.append(save_tensors(folder / f"statistics{suffix}.safetensors", stored))
        if self.copies is not None:
            files.append(save_tensors(folder / "pictures.safetensors", {"pictures": self.copies.pictures}))
        meta = {
            "features": self.yardsticks[0].network.name,
            "networks": len(self.yardsticks),
            "copies_threshold": None if self.copies is None else self.copies.threshold,
            "files": files,
        }
        save_json(folder / "meta.json", meta)


def build(
    folder: str | Path,
    train: Images,
    heldout: Images,
    *,
    features: str,
    seed: int,
    num: int,
    kid_subsets: int = KID_SUBSETS,
) -> dict[str, Any]:
    """Write data/reference and return its metrics: what held-out pictures score, and the ends of the scale.

    All ranks must call it; rank 0 writes and has the scores.

    Args:
        folder: where to.
        train: the split that samples are measured against.
        heldout: the split that sets `floor`, what a perfect generator may reach.
        features: a key of facm.features.FEATURES.
        seed: of the first network and of the noise.
        num: pictures in the scores `class_mean` (without classes `pixel_mean`, of points the mean point) and `noise`.
        kid_subsets: subsets of KID.

    Raises:
        ValueError: the feature network does not fit the data.
    """
    reference = Reference.of(train, features=features, seed=seed)
    if dist.is_main():
        reference.save(folder)
    labels = torch.arange(num) % train.num_classes if train.num_classes else None
    ends = functools.partial(score, reference=reference, kid_subsets=kid_subsets, copies=False)
    floor = ends(heldout.images, heldout.labels, copies=reference.copies is not None)
    metrics: dict[str, Any] = {"features": features, "num": num}
    for name in ("accuracy", "accuracy_second", "copies"):
        if name in floor:
            metrics[f"heldout_{name}"] = floor.pop(name)
    metrics["floor"] = floor
    metrics["class_mean" if train.num_classes else "pixel_mean"] = ends(mean_pictures(train, num), labels)
    metrics["noise"] = ends(noise_pictures(train, num, seed), labels, seed=seed)
    return {"reference": metrics}


def mean_pictures(train: Images, num: int) -> Tensor:
    """The mean picture of class i mod classes (of all, without classes), `num` times: like the train split's.

    Recognised perfectly and without any diversity: what accuracy alone would call the best of generators.
    """
    groups = torch.zeros(len(train), dtype=torch.int64) if train.labels is None else train.labels
    means = torch.stack([_mean(train.images, groups == c) for c in range(max(train.num_classes, 1))])
    return _as_data(means, train)[torch.arange(num) % len(means)]


def noise_pictures(train: Images, num: int, seed: int) -> Tensor:
    """Normal noise with the train split's mean and std per channel, like its pictures: an untrained generator.

    Of points it is the identity map, of the noise that samplers start from.
    """
    shape = train.images.shape[1:]
    mean, std = _mean_and_std(train.images)
    if train.kind == "points":
        (normals,) = noise(seed, range(num), 1, shape)
    else:
        generator = torch.Generator().manual_seed(seed)
        normals = torch.randn((num, *shape), generator=generator, dtype=torch.float64)
    return _as_data(mean + std * normals, train)


def _mean(images: Pictures, rows: Tensor) -> Tensor:
    """Mean float64 of some samples; of pictures in files part by part, with the same bits: sums of levels are exact."""
    if isinstance(images, Tensor):
        return images[rows].double().mean(0)
    total, chosen = torch.zeros(tuple(images.shape[1:]), dtype=torch.int64), rows.nonzero().flatten()
    for part in chosen.split(PART):
        total += images[part].sum(0, dtype=torch.int64)
    return total.double() / len(chosen)


def _mean_and_std(images: Pictures) -> tuple[Tensor, Tensor]:
    """Mean and std per channel, float64 (C,), or per coordinate (D,)."""
    if isinstance(images, Tensor):
        values = images.flatten(0, -2).double()
        return values.mean(0), values.std(0)
    sums = torch.zeros(2, images.shape[-1], dtype=torch.int64)
    for part in dist.batches(len(images), PART):
        levels = images[part.start : part.stop].flatten(0, -2).long()
        sums += torch.stack([levels.sum(0), levels.square().sum(0)])
    num = math.prod(images.shape[:-1])
    first, second = sums.double()
    return first / num, ((second - first.square() / num) / (num - 1)).sqrt()


def _as_data(values: Tensor, train: Images) -> Tensor:
    """Values as the train split has them: uint8 levels, rounded half up and clamped, or float32."""
    return values.float() if train.kind == "points" else values.add(0.5).floor().clamp(0, 255).to(torch.uint8)
