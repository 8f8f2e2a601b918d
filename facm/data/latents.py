"""data/latents: a dataset's pictures, encoded once, in few large shards, with the statistics that normalise them.

* shard_00000.safetensors ...: latents (n, C, H, W), or of points (n, D), float32, latents_flip (of mirrored pictures),
  labels (n,) int64
* stats.safetensors: mean (C,), std (C,) float32, of the unflipped latents of the whole set
* meta.json: what it is and, per file, bytes and sha256; written last: without it the set is unfinished
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm import dist
from facm.codecs import Codec
from facm.data import Images
from facm.files import load_json, load_tensors, save_json, save_tensors
from facm.log import progress


def write(
    folder: str | Path,
    images: Images,
    codec: Codec,
    *,
    flip: bool,
    shard_size: int,
    dataset_name: str,
    fingerprint: str,
    batch_size: int,
) -> None:
    """Encode a split into a folder of shards, which the ranks share.

    Args:
        folder: where to; an earlier set in it is removed.
        images: the pictures.
        codec: encodes them, `batch_size` at once, which does not change the result.
        flip: also store the latents of the mirrored pictures.
        shard_size: pictures per shard.
        dataset_name, fingerprint: recorded.

    Raises:
        ValueError: a channel that is constant over the set, so that it cannot be normalised.
    """
    folder = Path(folder)
    if dist.is_main():
        _empty(folder)
    dist.barrier()
    parts, moments, shards = dist.batches(len(images), shard_size), Moments.none(), []
    mine = dist.share(len(parts))

    def written(number: int) -> tuple[dict[str, Any], Moments]:
        shard = _encode(images, parts[number], codec, flip=flip, batch_size=batch_size)
        described = save_tensors(folder / f"shard_{number:05d}.safetensors", shard)
        return described | {"num": len(shard["latents"])}, Moments.of(shard["latents"])

    numbers = progress(mine, len(mine), "encoding")
    for described, of_shard in dist.in_order(map(written, numbers), len(parts)):
        shards.append(described)
        moments = moments.merged(of_shard)
    if dist.is_main():
        stats = save_tensors(folder / "stats.safetensors", moments.statistics())
        made_from = {"codec": codec.name, "dataset": dataset_name, "fingerprint": fingerprint, "flips": flip}
        shape = list(codec.latent_shape(images.images.shape[1:]))
        sizes = {"shape": shape, "num": len(images), "num_classes": images.num_classes}
        save_json(folder / "meta.json", {**made_from, **sizes, "stats": stats, "shards": shards})


@dataclass(frozen=True)
class Moments:
    """Mean and variance per channel of some latents, in float64 (Chan et al. 1979: merging two samples).

    A point's coordinates are its channels.

    Attributes:
        num: values per channel.
        mean: (C,), or () of none.
        squares: like mean, sum of squared deviations from it.
    """

    num: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def none(cls) -> "Moments":
        """Of no latents."""
        return cls(0, torch.zeros(()).double(), torch.zeros(()).double())

    @classmethod
    def of(cls, latents: Tensor) -> "Moments":
        """Of latents (N, C, ...)."""
        values = latents.double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        return cls(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def merged(self, other: "Moments") -> "Moments":
        """Of these latents and others; bits depend on the order of merging."""
        total, delta = self.num + other.num, other.mean - self.mean
        squares = self.squares + other.squares + delta.square() * self.num * other.num / total
        return Moments(total, self.mean + delta * other.num / total, squares)

    def statistics(self) -> dict[str, Tensor]:
        """`mean` and unbiased `std`, float32 (C,).

        Raises:
            ValueError: a constant channel.
        """
        std = (self.squares / (self.num - 1)).sqrt().float()
        constant = (std == 0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"channels {constant} of the latents are constant: check the data and latents.codec")
        return {"mean": self.mean.float(), "std": std}


@dataclass(frozen=True)
class LatentSet:
    """A folder that `write` made, opened for training.

    Attributes:
        num: latents in the set.
        shape: of one, (C, H, W) or (D,).
        num_classes: 0: no labels.
        mean: float32 (C,).
        std: float32 (C,).
        codec: name of the codec.
        flips: the mirrored pictures are there, too.
        dataset: its name.
        fingerprint: its fingerprint.
        shards: tensors of each shard, mapped from the files.
    """

    num: int
    shape: tuple[int, ...]
    num_classes: int
    mean: Tensor
    std: Tensor
    codec: str
    flips: bool
    dataset: str
    fingerprint: str
    shards: tuple[dict[str, Tensor], ...]

    @classmethod
    def open(cls, folder: str | Path) -> "LatentSet":
        """Open and check that every shard is there and whole (size, header, number of latents).

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or does not fit meta.json.
        """
        folder = Path(folder)
        cure = f"remove {folder} and run `dvc repro`"
        meta = load_json(folder / "meta.json", cure)
        stats = _load(folder, meta["stats"], cure)
        return cls(
            num=meta["num"],
            shape=tuple(meta["shape"]),
            num_classes=meta["num_classes"],
            mean=stats["mean"],
            std=stats["std"],
            codec=meta["codec"],
            flips=meta["flips"],
            dataset=meta["dataset"],
            fingerprint=meta["fingerprint"],
            shards=tuple(_load_shard(folder, shard, meta, cure) for shard in meta["shards"]),
        )

    def batch(self, indices: Tensor | Iterable[int], flips: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normalised latents x1 float32 (B, C, ...) and labels y int64 (B,), None without classes.

        Args:
            indices: int64 (B,) in 0 .. num - 1, in any order.
            flips: bool (B,), which are to be mirrored; None: none.

        Raises:
            IndexError: an index out of range.
            ValueError: flips from a set without them.
        """
        indices = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.int64)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.num:
            raise IndexError(f"indices must lie in 0..{self.num - 1}, got {int(indices.min())}..{int(indices.max())}")
        if flips is not None and not self.flips:
            raise ValueError("the latents were made without mirrored pictures: set latents.flip: true in params.yaml")
        z = self._rows(indices, torch.zeros(len(indices), dtype=torch.bool) if flips is None else flips)
        mean, std = (values.view(-1, *[1] * (z.dim() - 2)) for values in (self.mean, self.std))
        z.sub_(mean).div_(std)
        return z, self._labels[indices] if self.num_classes else None

    def _rows(self, indices: Tensor, flips: Tensor) -> Tensor:
        """Latents (B, C, H, W), as stored."""
        if len(self.shards) > 1 and len(indices):
            # Row by row: the rows of a batch lie in nearly as many shards, and an indexing per shard costs more.
            return torch.stack([self._latent(*row) for row in zip(indices.tolist(), flips.tolist(), strict=True)])
        shard = self.shards[0]
        z = shard["latents"][indices]
        if self.flips:
            z[flips] = shard["latents_flip"][indices[flips]]
        return z

    def _latent(self, index: int, mirrored: bool) -> Tensor:
        """One latent (C, H, W), as stored."""
        number = bisect_right(self._ends, index)
        latents = self.shards[number]["latents_flip" if mirrored else "latents"]
        return latents[index - self._ends[number]]  # negative: counted from the shard's end

    @cached_property
    def _ends(self) -> list[int]:
        """Per shard, how many latents it and those before it hold."""
        return list(accumulate(len(shard["latents"]) for shard in self.shards))

    @cached_property
    def _labels(self) -> Tensor:
        return torch.cat([shard["labels"] for shard in self.shards])


def _empty(folder: Path) -> None:
    """Make the folder where it is missing, and remove an earlier set."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / "meta.json", *folder.glob("shard_*")):
        stale.unlink(missing_ok=True)


def _encode(images: Images, part: range, codec: Codec, *, flip: bool, batch_size: int) -> dict[str, Tensor]:
    """The tensors of one shard."""
    rows = slice(part.start, part.stop)
    batches = images.images[rows].split(batch_size)
    shard = {"latents": torch.cat([codec.encode(batch).float().cpu() for batch in batches])}
    if flip:
        shard["latents_flip"] = torch.cat([codec.encode(batch.flip(2)).float().cpu() for batch in batches])
    if images.labels is not None:
        shard["labels"] = images.labels[rows]
    return shard


def _load(folder: Path, described: dict[str, Any], cure: str) -> dict[str, Tensor]:
    """The tensors of a file of which meta.json knows the size."""
    path = folder / described["file"]
    tensors = load_tensors(path, cure)
    if path.stat().st_size != described["bytes"]:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, meta.json says {described['bytes']}: {cure}")
    return tensors


def _load_shard(folder: Path, described: dict[str, Any], meta: dict[str, Any], cure: str) -> dict[str, Tensor]:
    """The tensors of a shard, checked against meta.json."""
    shard = _load(folder, described, cure)
    shape = (described["num"], *meta["shape"])
    needed = {"latents": shape}
    if meta["flips"]:
        needed["latents_flip"] = shape
    if meta["num_classes"]:
        needed["labels"] = shape[:1]
    found = {name: tuple(tensor.shape) for name, tensor in shard.items()}
    if found != needed:
        raise ValueError(f"{folder / described['file']} holds {found}, meta.json says {needed}: {cure}")
    return shard
