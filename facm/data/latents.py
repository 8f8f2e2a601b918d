"""data/latents: a dataset's pictures, encoded once, in few large shards, with the statistics that normalise them.

* shard_00000.safetensors ...: latents (n, C, H, W) float32, latents_flip (of mirrored pictures), labels (n,) int64
* stats.safetensors: mean (C,), std (C,) float32, of the unflipped latents of the whole set
* meta.json: what it is and, per file, bytes and sha256; written last: without it the set is unfinished
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
) -> dict[str, Any]:
    """Encode a split into a folder of shards; returns its meta.json.

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
    folder = _empty(folder)
    moments, shards = Moments(), []
    starts = range(0, len(images), shard_size)
    for number, start in enumerate(progress(starts, len(starts), "encoding")):
        shard = _encode(images, slice(start, start + shard_size), codec, flip=flip, batch_size=batch_size)
        moments.update(shard["latents"])
        described = save_tensors(folder / f"shard_{number:05d}.safetensors", shard)
        shards.append({**described, "num": len(shard["latents"])})
    stats = save_tensors(folder / "stats.safetensors", moments.statistics())
    made_from = {"codec": codec.name, "dataset": dataset_name, "fingerprint": fingerprint, "flips": flip}
    sizes = {"shape": list(shard["latents"].shape[1:]), "num": len(images), "num_classes": images.num_classes}
    meta = {**made_from, **sizes, "stats": stats, "shards": shards}
    save_json(folder / "meta.json", meta)
    return meta


class Moments:
    """Mean and variance per channel of a stream of latents, in float64 (Chan et al. 1979: merging two samples)."""

    def __init__(self) -> None:
        self.num, self.mean, self.squares = 0, torch.zeros(()).double(), torch.zeros(()).double()

    def update(self, latents: Tensor) -> None:
        """Take in latents (N, C, H, W)."""
        values = latents.double().transpose(0, 1).flatten(1)
        num, mean = values.shape[1], values.mean(1)
        total, delta = self.num + num, mean - self.mean
        self.squares = self.squares + (values - mean[:, None]).square().sum(1) + delta.square() * self.num * num / total
        self.mean = self.mean + delta * num / total
        self.num = total

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
        shape: of one, (C, H, W).
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
    shape: tuple[int, int, int]
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
        """Normalised latents x1 float32 (B, C, H, W) and labels y int64 (B,), None without classes.

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
        z = torch.empty(len(indices), *self.shape)
        y = torch.empty_like(indices) if self.num_classes else None
        ends = torch.tensor([len(shard["latents"]) for shard in self.shards]).cumsum(0)
        owner = torch.bucketize(indices, ends, right=True)
        for number in owner.unique().tolist():
            shard, rows = self.shards[number], (owner == number).nonzero().flatten()
            local = indices[rows] - (ends[number] - len(shard["latents"]))
            z[rows] = shard["latents"][local]
            if flips is not None:
                mirrored = flips[rows]
                z[rows[mirrored]] = shard["latents_flip"][local[mirrored]]
            if y is not None:
                y[rows] = shard["labels"][local]
        return (z - self.mean[:, None, None]) / self.std[:, None, None], y


def _empty(folder: str | Path) -> Path:
    """The folder, made where it is missing, without an earlier set."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / "meta.json", *folder.glob("shard_*")):
        stale.unlink(missing_ok=True)
    return folder


def _encode(images: Images, rows: slice, codec: Codec, *, flip: bool, batch_size: int) -> dict[str, Tensor]:
    """The tensors of one shard."""
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
