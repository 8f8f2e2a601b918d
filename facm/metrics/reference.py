"""data/reference: the dataset as samples are measured against it, and the ends of the scale.

* network.safetensors, network_second.safetensors: feature networks (of published ones only which weights)
* statistics.safetensors, statistics_second.safetensors: mu, sigma float64 of the train split; features float32; mu_s,
  sigma_s of Inception's spatial features
* network_<name>.safetensors, statistics_<name>.safetensors: the same, without features, of each further network
* pictures.safetensors: the train images, for copies; left out above 1 GiB, and of points
* meta.json: threshold of copies, further networks, the published reference where one stands in for the train split,
  and, per file, bytes and sha256; written last: without it the folder is unfinished
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from facm.data.images.images import Images
from facm.metrics.copies import Copies
from facm.metrics.extract import look
from facm.metrics.published import Archive
from facm.metrics.scores import NEIGHBOURS, ReferenceStatistics, chosen, score
from facm.metrics.trivial_baselines import Ends
from facm.networks.features import FEATURES, FeatureNetwork, network_class
from facm.runtime import dist
from facm.runtime.files import load_record, load_tensors, save_json, save_tensors
from facm.runtime.log import say
from facm.runtime.names import refuse_unknown

SUFFIXES = ("", "_second")
PICTURES_GIB = 1.0
KID_SUBSETS = 20


class Meta(TypedDict):
    """What meta.json says that is read again."""

    features: str
    networks: int
    copies_threshold: float | None
    also: NotRequired[list[str]]


@dataclass(frozen=True)
class Reference:
    """A train split, measured; see facm.metrics.scores.Measured.

    Attributes:
        statistics: the first network's, its second's, seeded otherwise, where it is trained here, and further ones.
        copies: the train images; None above 1 GiB of them, and of points.
        archive: the published reference that the first network's statistics are from; None: the train split.
    """

    statistics: tuple[ReferenceStatistics, ...]
    copies: Copies | None
    archive: Archive | None = None

    @classmethod
    def of(
        cls, train: Images | None, *, features: str, seed: int, also: Sequence[str] = (), archive: Archive | None = None
    ) -> "Reference":
        """Make the feature networks, on rank 0, and measure a train split, on all ranks.

        Args:
            train: the split; None where the dataset has no images, only latents: then all must be in `archive`.
            features: a key of facm.networks.features.FEATURES; `also`: further ones.
            seed: of the first network's training; the second has the next one.
            archive: a published reference, which takes the split's place for the first network, and for further ones of
                which it has statistics.

        Raises:
            ValueError: statistics of another width than the network's features, or neither they nor images.
        """
        _check_source(train, archive, features, also)
        made = dist.from_main(functools.partial(_networks, train, features, seed, also))
        networks = [(key, network.to(dist.device())) for key, network in made]
        published = {} if archive is None else archive.statistics
        measured = [(key, network) for key, network in networks if key not in published]
        keep = [not key for key, _ in measured]
        found = iter(_measured([network for _, network in measured], train, keep))
        statistics = [
            next(found) if archive is None or key not in published else _published(archive, network, key)
            for key, network in networks
        ]
        return cls(tuple(statistics), _copies(train), archive)

    @classmethod
    def open(cls, folder: str | Path) -> "Reference":
        """Read what `save` wrote, on this rank's device; FileNotFoundError, or ValueError for a damaged file."""
        folder = Path(folder)
        cure = f"remove {folder} and run `dvc repro`"
        meta: Meta = load_record(folder / "meta.json", Meta, cure)
        if not 1 <= meta["networks"] <= len(SUFFIXES):
            raise ValueError(f"{folder / 'meta.json'}, networks: must be 1 or 2, it is {meta['networks']}: {cure}")
        refuse_unknown([meta["features"], *meta.get("also", ())], FEATURES, str(folder / "meta.json"))
        statistics = []
        named = [(suffix, meta["features"]) for suffix in SUFFIXES[: meta["networks"]]]
        for suffix, name in [*named, *((f"_{name}", name) for name in meta.get("also", ()))]:
            network = network_class(name).load(folder / f"network{suffix}.safetensors").to(dist.device())
            stored = _statistics(folder / f"statistics{suffix}.safetensors", cure)
            spatial = (stored["mu_s"].numpy(), stored["sigma_s"].numpy()) if "mu_s" in stored else None
            mu, sigma = stored["mu"].numpy(), stored["sigma"].numpy()
            statistics.append(ReferenceStatistics(network, mu, sigma, stored.get("features"), spatial))
        copies = None
        if meta["copies_threshold"] is not None:
            pictures = load_tensors(folder / "pictures.safetensors", cure)
            if "pictures" not in pictures:
                raise ValueError(f"{folder / 'pictures.safetensors'} lacks 'pictures': {cure}")
            copies = Copies(pictures["pictures"], meta["copies_threshold"])
        return cls(tuple(statistics), copies)

    def save(self, folder: str | Path) -> None:
        """Write to a folder, each file whole, meta.json last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        files = []
        first, also = self.statistics[0].network.name, []
        for number, one in enumerate(self.statistics):
            name = one.network.name
            suffix = SUFFIXES[number] if name == first else f"_{name}"
            also += [] if name == first else [name]
            files.append(one.network.save(folder / f"network{suffix}.safetensors"))
            stored = {"mu": torch.from_numpy(one.mu), "sigma": torch.from_numpy(one.sigma)}
            if one.features is not None:
                stored["features"] = one.features
            if one.spatial is not None:
                stored |= dict(zip(("mu_s", "sigma_s"), map(torch.from_numpy, one.spatial), strict=True))
            files.append(save_tensors(folder / f"statistics{suffix}.safetensors", stored))
        if self.copies is not None:
            files.append(save_tensors(folder / "pictures.safetensors", {"pictures": self.copies.pictures}))
        meta: dict[str, Any] = {
            "features": first,
            "networks": len(self.statistics) - len(also),
            "copies_threshold": None if self.copies is None else self.copies.threshold,
            "files": files,
        }
        meta |= {"also": also} if also else {}
        if self.archive is not None:
            meta["source"] = {"file": self.archive.path.name, "sha256": self.archive.sha256}
        save_json(folder / "meta.json", meta)


def build(
    folder: str | Path,
    train: Images | None,  # the split that samples are measured against; without one there are no ends
    heldout: Images | None,  # the split that sets `floor`, what a perfect generator may reach
    *,
    features: str,
    seed: int,
    num: int,  # images in the scores `class_mean` (without classes `pixel_mean`, of points the mean point) and `noise`
    also: Sequence[str] = (),
    archive: Archive | None = None,
    kid_subsets: int = KID_SUBSETS,  # subsets of KID
    copies: bool = False,  # whether samples will be searched for copies
) -> dict[str, Any]:
    """Write data/reference and return its metrics: what held-out images score, and the ends of the scale.

    All ranks must call it; rank 0 writes and has the scores. Other arguments: see `Reference.of`.

    Raises:
        ValueError: the feature network does not fit the data, or the published reference the network; copies of images
            that are too many to be kept, or not there; a split of too few images.
    """
    _refuse_few(train, heldout)
    if copies and not _keeps(train):
        raise ValueError(
            f"params.yaml, evaluate.copies: there are no train pictures here, or more than {PICTURES_GIB:g} GiB of "
            "them, too many to look through: set it false"
        )
    reference = Reference.of(train, features=features, seed=seed, also=also, archive=archive)
    if dist.is_main():
        reference.save(folder)
    if train is None or heldout is None:
        return {"reference": {"features": features, "num": num}}
    labels = torch.arange(num) % train.num_classes if train.num_classes else None
    ends = functools.partial(score, reference=reference, kid_subsets=kid_subsets, copies=False)
    floor = ends(heldout.images, heldout.labels, copies=reference.copies is not None)
    metrics: dict[str, Any] = {"features": features, "num": num}
    for name in ("accuracy", "accuracy_second", "copies"):
        if name in floor:
            metrics[f"heldout_{name}"] = floor.pop(name)
    metrics["floor"] = floor
    of_train = Ends.of(train)
    metrics["class_mean" if train.num_classes else "pixel_mean"] = ends(of_train.mean_pictures(num), labels)
    metrics["noise"] = ends(of_train.noise_pictures(num, seed), labels, seed=seed)
    return {"reference": metrics}


def _statistics(path: Path, cure: str) -> dict[str, torch.Tensor]:
    """What a statistics file holds; raises as `load_tensors`, and ValueError for other names, types or shapes."""
    found = load_tensors(path, cure)
    for mu, sigma in (("mu", "sigma"), *((("mu_s", "sigma_s"),) if "mu_s" in found else ())):
        missing = [name for name in (mu, sigma) if name not in found]
        if missing:
            raise ValueError(f"{path} lacks '{missing[0]}': {cure}")
        width = found[mu].shape[0] if found[mu].ndim == 1 else -1
        if found[sigma].shape != (width, width) or {found[mu].dtype, found[sigma].dtype} != {torch.float64}:
            told = ", ".join(f"{name} {found[name].dtype} {tuple(found[name].shape)}" for name in (mu, sigma))
            raise ValueError(f"{path} has {told}, needed are float64 (D,) and (D, D): {cure}")
    return found


def _refuse_few(train: Images | None, heldout: Images | None) -> None:
    """Raise ValueError where a split is too small for precision and recall, before networks are trained."""
    for name, split in (("train", train), ("held-out", heldout)):
        if split is not None and len(split) <= NEIGHBOURS:
            raise ValueError(
                f"params.yaml, data.root: the {name} split has {len(split)} {split.kind}, precision and recall need at "
                f"least {NEIGHBOURS + 1}: add some (docs/dataset.md says how a folder is split)"
            )


def _check_source(train: Images | None, archive: Archive | None, features: str, also: Sequence[str]) -> None:
    """Raise ValueError where a network has nothing to be measured on; say what a published reference lacks."""
    if archive is not None:
        _check_widths(archive, features, also)
        if archive.pictures is not None and len(archive.pictures) <= NEIGHBOURS:
            raise ValueError(
                f"params.yaml, reference.source: {archive.path} has {len(archive.pictures)} pictures (arr_0), "
                f"precision and recall need at least {NEIGHBOURS + 1}: leave arr_0 out, or take another file"
            )
        if archive.pictures is None and dist.is_main():
            say(f"{archive.path} has no pictures (arr_0): KID, precision and recall are left out")
    lacking = [name for name in also if archive is None or name not in archive.statistics]
    if train is None and (archive is None or lacking):
        raise ValueError(
            "params.yaml, reference.source: the data set has no pictures, so an npz must have the statistics of "
            f"{', '.join([features, *also])}; this is "
            + (f"{archive.path}, without mu_{lacking[0]}" if archive else "the data set")
        )


def _check_widths(archive: Archive, features: str, also: Sequence[str]) -> None:
    """Raise ValueError unless the archive's statistics are as wide as what the networks see."""
    network = network_class(features)
    wanted = {"": network.widths["features"]}
    wanted |= {"s": network.widths["spatial"]} if "spatial" in network.widths else {}
    wanted |= {name: network_class(name).widths["features"] for name in also}
    for name, width in wanted.items():
        if name in archive.statistics and len(archive.statistics[name][0]) != width:
            key = f"mu_{name}" if name else "mu"
            raise ValueError(
                f"params.yaml, reference.source: {archive.path} has {key} of {len(archive.statistics[name][0])} "
                f"features, but '{name if name in also else features}' has {width}: set reference.features to the "
                "network that the file was made with"
            )


def _keeps(train: Images | None) -> bool:
    """Whether there are train images, and not too many to search."""
    return train is not None and train.kind == "pictures" and math.prod(train.images.shape) <= PICTURES_GIB * 2**30


def _copies(train: Images | None) -> Copies | None:
    """The train images, unless there are none, or too many."""
    return Copies.of(train.images[:]) if train is not None and _keeps(train) else None


def _networks(train: Images | None, features: str, seed: int, also: Sequence[str]) -> list[tuple[str, FeatureNetwork]]:
    """All feature networks: under "" the first and its second, the further ones under their names."""
    first = network_class(features)
    seeds = (seed, seed + 1) if first.seeded else (seed,)
    further = [(name, network_class(name).create(train, seed)) for name in also]
    return [("", first.create(train, s)) for s in seeds] + further


def _measured(
    networks: Sequence[FeatureNetwork], train: Images | None, keep: Sequence[bool]
) -> list[ReferenceStatistics]:
    """The train split as these networks see it, in one pass; none where there are none."""
    return ReferenceStatistics.all_of(networks, train.images, keep) if networks and train is not None else []


def _published(archive: Archive, network: FeatureNetwork, key: str) -> ReferenceStatistics:
    """A network's statistics from a published reference; the first one's with features of its images, if any."""
    features = None
    if archive.pictures is not None and not key:
        ((seen,), _) = look(archive.pictures, [network], [chosen(len(archive.pictures))])
        features = dist.from_main(seen.features)
    spatial = archive.statistics.get("s") if "spatial" in network.widths and not key else None
    return ReferenceStatistics(network, *archive.statistics[key], features, spatial)
