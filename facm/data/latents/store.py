"""data/latents: a dataset's images, encoded once, in few large shards, with the statistics that normalise them.

* shard_00000.safetensors ...: latents (n, C, H, W), or of points (n, D), float32, latents_flip (of mirrored images),
  labels (n,) int64
* stats.safetensors: mean (C,), std (C,) float32, of the unflipped latents of the whole set
* meta.json: what it is and, per file, bytes and sha256; `codec_options` of a codec that has any, and the files that
  were left out, if any (`skipped`: reason by name); written last: without it the set is unfinished

Images are decoded while those before them are encoded (facm/runtime/prefetch.py). Shards that a killed run has finished
lie in its folder of unfinished work, each with a `.json` beside it, written after it; one whose sha256 is the written
one is kept.
"""

import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from facm.data.images.images import Images
from facm.data.latents.codec import Codec
from facm.data.latents.statistics import read as read_statistics
from facm.runtime import dist
from facm.runtime.files import atomic_write, load_record, load_tensors, save_json, save_tensors, sha256
from facm.runtime.log import progress, say
from facm.runtime.prefetch import ahead


class File(TypedDict):
    """What meta.json says of a file."""

    file: str
    bytes: int
    sha256: str


class Described(File):
    """What it says of a shard."""

    num: int


class Meta(TypedDict):
    """What meta.json holds."""

    codec: str
    dataset: str
    fingerprint: str
    flips: bool
    shape: list[int]
    num: int
    num_classes: int
    stats: File
    shards: list[Described]
    codec_options: NotRequired[dict[str, Any]]


class Plain(TypedDict):
    """Moments as plain values."""

    num: int
    mean: list[float]
    squares: list[float]


class Marked(TypedDict):
    """What is written beside a shard of a run that may be killed."""

    described: Described
    moments: Plain


def write(
    folder: str | Path,
    images: Images,
    codec: Codec,  # encodes `batch_size` images at once, which does not change the result
    *,
    flip: bool,  # also store the latents of the mirrored images
    shard_size: int,  # images per shard
    dataset_name: str,  # dataset_name, fingerprint, skipped: recorded
    fingerprint: str,
    batch_size: int,
    skipped: Mapping[str, str] | None = None,
    unfinished: Path | None = None,
    normalise: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Encode a split into a folder of shards, which the ranks share; an earlier set in it is removed.

    Args:
        unfinished: where shards lie until all are done, and are found again after a kill; None: in `folder` at once. It
            must be the same set's: only the bytes of a shard are checked.
        normalise: from the measured mean and std to those that are recorded (facm/data/latents/statistics.py).

    Raises:
        ValueError: a channel that is constant over the set, so that it cannot be normalised.
    """
    folder = Path(folder)
    shape = list(codec.latent_shape(images.images.shape[1:]))
    if dist.is_main():
        empty(folder)
    dist.barrier()
    moments, shards = Moments.none(), []
    work = _Encoding(unfinished or folder, images, codec, flip, shard_size, batch_size, unfinished is not None)
    for described, of_shard in dist.in_order(work.shards(), len(work.parts)):
        shards.append(described)
        moments = moments.merged(of_shard)
    if dist.is_main():
        if unfinished is not None:
            for described in shards:
                place(unfinished / described["file"], folder)
        meta = {"codec": codec.name, "dataset": dataset_name, "fingerprint": fingerprint, "flips": flip}
        sizes = {"shape": shape, "num": len(images), "num_classes": images.num_classes}
        measured = moments.statistics()
        statistics = measured if normalise is None else normalise(measured)
        finish(folder, meta | sizes, statistics, shards, getattr(codec, "options", {}), skipped)


def adopt(
    folder: str | Path, dataset: Any, codec: Codec, *, flip: bool, labels: bool, dataset_name: str, fingerprint: str
) -> None:
    """Copy ready-made latents, shard by shard, with the statistics that came with them; the ranks share the work.

    Args:
        folder: where to; an earlier set in it is removed.
        dataset: a facm.data.datasets.precomputed.Precomputed.
        codec: whose latents they are.
        flip: take over the mirrored ones, which must be there.
        labels: take over the labels; the number of classes is one more than the greatest.

    Raises:
        ValueError: shards or statistics of another form, lost ones, or latents that the codec does not have.
    """
    dist.from_main(dataset.refuse_uneven)
    folder, given = Path(folder), read_statistics(dataset.statistics_path)
    shape = tuple(dataset.read(0, flip=flip, labels=labels)["latents"].shape[1:])
    _refuse_codec(codec, shape, len(given["mean"]))
    if dist.is_main():
        empty(folder)
    dist.barrier()
    mine, num_shards = dist.share(len(dataset.paths)), len(dataset.paths)

    def written(number: int) -> tuple[dict[str, Any], int]:
        shard = dataset.read(number, flip=flip, labels=labels)
        num, *of_one = shard["latents"].shape
        if tuple(of_one) != shape:
            raise ValueError(f"{dataset.paths[number]} has latents {tuple(of_one)}, {dataset.paths[0]} has {shape}")
        described = save_tensors(folder / shard_name(number), shard)
        return described | {"num": num}, 1 + int(shard["labels"].max()) if labels else 0

    made = list(dist.in_order(map(written, progress(mine, len(mine), "taking over")), num_shards))
    if dist.is_main():
        described, classes = [shard for shard, _ in made], max(num_classes for _, num_classes in made)
        meta = {"codec": codec.name, "dataset": dataset_name, "fingerprint": fingerprint, "flips": flip}
        sizes = {"shape": list(shape), "num": sum(shard["num"] for shard in described), "num_classes": classes}
        finish(folder, meta | sizes, given, described, getattr(codec, "options", {}))


def _refuse_codec(codec: Codec, shape: tuple[int, ...], channels: int) -> None:
    """Raise ValueError where a codec, or statistics of so many channels, do not go with latents of a shape."""
    if channels != shape[0]:
        raise ValueError(f"latents_stats.pt has {channels} channels, the latents of data.root have {shape[0]}")
    factor = getattr(getattr(codec, "architecture", None), "factor", 1)
    expected = codec.latent_shape((shape[1] * factor, shape[2] * factor, 3))
    if expected != shape:
        raise ValueError(
            f"params.yaml, latents.codec: '{codec.name}' has latents {expected}, those of data.root are {shape}: name "
            "the codec that they were made with"
        )


def finish(
    folder: Path,
    meta: dict[str, Any],
    statistics: dict[str, Tensor],
    shards: list[dict[str, Any]],
    codec_options: Mapping[str, Any] | None = None,
    skipped: Mapping[str, str] | None = None,
) -> None:
    """Write stats.safetensors and meta.json beside shards that lie there: the set is then finished.

    Args:
        meta: codec, dataset, fingerprint, flips, shape, num, num_classes.
        statistics: mean and std, float32 (C,).
        shards: of each file, what `save_tensors` returns, and `num`.
    """
    stats = save_tensors(folder / "stats.safetensors", statistics)
    more = {"codec_options": dict(codec_options or {}), "skipped": dict(skipped or {})}
    save_json(folder / "meta.json", meta | {"stats": stats, "shards": shards} | {k: v for k, v in more.items() if v})


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.safetensors"


@dataclass
class _Encoding:
    """This rank's share of the shards, encoded one after the other while the next images are decoded."""

    place: Path
    images: Images
    codec: Codec
    flip: bool
    shard_size: int
    batch_size: int
    resumable: bool

    @cached_property
    def parts(self) -> list[range]:
        return dist.batches(len(self.images), self.shard_size)

    def shards(self) -> Iterator[tuple[dict[str, Any], "Moments"]]:
        """What meta.json says about each shard, and its moments; what a killed run has finished is not redone."""
        mine = dist.share(len(self.parts))
        resumed = self.resumable and any(self.place.glob("shard_*.json"))
        looked = progress(mine, len(mine), "finished shards") if resumed else ()
        finished = {number: found for number in looked if (found := self._finished(number)) is not None}
        if finished and dist.is_main():
            say(f"latents: {len(finished)} of {len(mine)} shards were finished before and are kept")
        rows = [some for number in mine if number not in finished for some in self._batches(number)]
        batches = iter(progress(ahead(self._pictures, rows), len(rows), "encoding"))
        for number in mine:
            made = finished[number] if number in finished else self._written(number, batches)
            if number == mine[-1]:
                next(batches, None)  # none is left: the progress ends
            yield made

    def _batches(self, number: int) -> list[range]:
        part = self.parts[number]
        return [part[batch.start : batch.stop] for batch in dist.batches(len(part), self.batch_size)]

    def _pictures(self, rows: range) -> tuple[range, Tensor]:
        return rows, self.images.images[rows.start : rows.stop]

    def _written(self, number: int, batches: Iterator[tuple[range, Tensor]]) -> tuple[dict[str, Any], "Moments"]:
        """Encode and write a shard from the batches that are its own."""
        plain, mirrored = [], []
        for rows, pictures in islice(batches, len(self._batches(number))):
            plain.append(self.codec.encode(pictures, [2 * row for row in rows]).float().cpu())
            if self.flip:
                mirrored.append(self.codec.encode(pictures.flip(2), [2 * row + 1 for row in rows]).float().cpu())
        shard = {"latents": torch.cat(plain)} | ({"latents_flip": torch.cat(mirrored)} if self.flip else {})
        if self.images.labels is not None:
            part = self.parts[number]
            shard["labels"] = self.images.labels[part.start : part.stop]
        path, moments = self.place / shard_name(number), Moments.of(shard["latents"])
        described = save_tensors(path, shard) | {"num": len(shard["latents"])}
        if self.resumable:
            mark(path, {"described": described, "moments": moments.plain()})
        return described, moments

    def _finished(self, number: int) -> tuple[dict[str, Any], "Moments"] | None:
        """A shard that a killed run has written whole."""
        kept = marked(self.place / shard_name(number), Marked)
        channels = self.codec.latent_shape(self.images.images.shape[1:])[0]
        if kept is None or any(len(kept["moments"][name]) != channels for name in ("mean", "squares")):
            return None
        return kept["described"], Moments.of_plain(kept["moments"])


@dataclass(frozen=True)
class Moments:
    """Mean and variance per channel of some latents, in float64 (Chan et al. 1979: merging two samples).

    A point's coordinates are its channels.
    """

    num: int  # values per channel
    mean: Tensor  # (C,), or () of none
    squares: Tensor  # like mean, sum of squared deviations from it

    @classmethod
    def none(cls) -> "Moments":
        return cls(0, torch.zeros(()).double(), torch.zeros(()).double())

    @classmethod
    def of(cls, latents: Tensor) -> "Moments":
        """Of latents (N, C, ...)."""
        values = latents.double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        return cls(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    @classmethod
    def of_plain(cls, values: Plain) -> "Moments":
        return cls(values["num"], *(torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "squares")))

    def plain(self) -> dict[str, Any]:
        """As plain values, which keep every bit."""
        return {"num": self.num, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    def merged(self, other: "Moments") -> "Moments":
        """Of these latents and others; bits depend on the order of merging."""
        total, delta = self.num + other.num, other.mean - self.mean
        squares = self.squares + other.squares + delta.square() * self.num * other.num / total
        return Moments(total, self.mean + delta * other.num / total, squares)

    def statistics(self) -> dict[str, Tensor]:
        """`mean` and unbiased `std`, float32 (C,); ValueError for a channel that is constant or not finite."""
        std = (self.squares / (self.num - 1)).sqrt().float()
        if not bool(std.isfinite().all()):
            raise ValueError("the latents are not all finite: check the data and latents.codec")
        constant = (std == 0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"channels {constant} of the latents are constant: check the data and latents.codec")
        return {"mean": self.mean.float(), "std": std}


@dataclass(frozen=True)
class LatentSet:
    """A folder that `write` made, opened for training.

    Attributes:
        codec_options: what the codec is built with, such as the weights' place and sha256.
    """

    num: int
    shape: tuple[int, ...]  # of one latent, (C, H, W) or (D,)
    num_classes: int  # 0: no labels
    mean: Tensor  # mean, std: float32 (C,)
    std: Tensor
    codec: str
    flips: bool  # the mirrored images are there, too
    dataset: str
    fingerprint: str
    shards: tuple[dict[str, Tensor], ...]  # tensors of each shard, mapped from the files
    codec_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path) -> "LatentSet":
        """Open and check that every shard is there and whole (size, header, number of latents), its labels, and stats.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or does not fit meta.json.
        """
        folder = Path(folder)
        cure = f"remove {folder} and run `dvc repro`"
        meta: Meta = load_record(folder / "meta.json", Meta, cure)
        if len(meta["shape"]) not in (1, 3) or 0 in meta["shape"]:
            raise ValueError(f"{folder / 'meta.json'}: shape {meta['shape']} must be (C, H, W) or (D,): {cure}")
        stats = _load_statistics(folder, meta, cure)
        shards = tuple(_load_shard(folder, shard, meta, cure) for shard in meta["shards"])
        if (total := sum(shard["num"] for shard in meta["shards"])) != meta["num"] or not total:
            raise ValueError(f"{folder / 'meta.json'}: num is {meta['num']}, its shards hold {total}: {cure}")
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
            shards=shards,
            codec_options=meta.get("codec_options", {}),
        )

    def batch(self, indices: Tensor | Iterable[int], flips: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normalised latents x1 float32 (B, C, ...) and labels y int64 (B,), None without classes.

        Args:
            indices: int64 (B,) in 0 .. num - 1, in any order; else IndexError.
            flips: bool (B,), which are to be mirrored, ValueError where the set has none of these; None: none.
        """
        indices = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.int64)
        refuse_rows(indices, self.num, "latents", flips=flips is not None and not self.flips)
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


def empty(folder: Path) -> None:
    """Make the folder where it is missing, and remove an earlier set."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / "meta.json", *folder.glob("shard_*")):
        stale.unlink(missing_ok=True)


def mark(path: Path, told: dict[str, Any]) -> None:
    """Write beside a shard that it is whole; `told["described"]` is what `save_tensors` said."""
    save_json(path.with_suffix(".json"), told)


def marked(path: Path, form: Any) -> dict[str, Any] | None:
    """What `mark` wrote beside a shard; None where it did not, or where one of the two is not what it was.

    Args:
        path: of the shard.
        form: of what was written, see `files.refuse_other_form`.
    """
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        return None
    try:
        told: dict[str, Any] = load_record(path.with_suffix(".json"), form, f"{path.name} is encoded again")
    except ValueError as error:
        say(str(error))
        return None
    if sha256(path) != told["described"]["sha256"]:
        say(f"{path} is damaged and is encoded again")
        return None
    return told


def place(path: Path, folder: Path) -> None:
    """Put a finished file into a folder, by a link, so that a kill leaves it where it was, too; else by a copy."""
    try:
        os.link(path, folder / path.name)
    except OSError:  # another file system, or one without links
        with path.open("rb") as source, atomic_write(folder / path.name) as copy:
            shutil.copyfileobj(source, copy)


def load_file(
    folder: Path, described: File, cure: str, needed: Mapping[str, tuple[str | int, ...]], index: str = "meta.json"
) -> dict[str, Tensor]:
    """The tensors of a file of a set.

    Args:
        described: what the set's index says of it.
        needed: type and shape by name, such as ("torch.float32", 5, 4, 32, 32).
        index: the file that says it.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, or of other size, names, types or shapes.
    """
    path = folder / described["file"]
    tensors = load_tensors(path, cure)
    if path.stat().st_size != described["bytes"]:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, {index} says {described['bytes']}: {cure}")
    found = {name: (str(tensor.dtype), *tensor.shape) for name, tensor in tensors.items()}
    if found != needed:
        raise ValueError(f"{path} holds {found}, {index} says {needed}: {cure}")
    return tensors


def refuse_rows(indices: Tensor, num: int, what: str, *, flips: bool) -> None:
    """Raise IndexError for an index outside 0 .. num - 1, ValueError for `flips` that a set does not have."""
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num:
        raise IndexError(f"indices must lie in 0..{num - 1}, got {int(indices.min())}..{int(indices.max())}")
    if flips:
        raise ValueError(f"the {what} were made without mirrored pictures: set latents.flip: true in params.yaml")


def _load_statistics(folder: Path, meta: Meta, cure: str) -> dict[str, Tensor]:
    """mean and std float32 (C,), checked: all latents are normalised by them."""
    path, needed = (
        folder / meta["stats"]["file"],
        dict.fromkeys(("mean", "std"), (str(torch.float32), meta["shape"][0])),
    )
    stats = load_file(folder, meta["stats"], cure, needed)
    if sha256(path) != meta["stats"]["sha256"]:
        raise ValueError(f"{path} is not the file whose sha256 meta.json has: {cure}")
    for name, tensor in stats.items():
        if not bool(tensor.isfinite().all()) or (name == "std" and not bool((tensor > 0).all())):
            raise ValueError(f"{path}: {name} must be finite, std above 0, it is {tensor.tolist()[:4]}: {cure}")
    return stats


def _load_shard(folder: Path, described: Described, meta: Meta, cure: str) -> dict[str, Tensor]:
    """The tensors of a shard, checked against meta.json."""
    num, classes = described["num"], meta["num_classes"]
    of_one: tuple[str | int, ...] = (str(torch.float32), num, *meta["shape"])
    needed = dict.fromkeys(["latents", *(["latents_flip"] if meta["flips"] else [])], of_one)
    if classes:
        needed["labels"] = (str(torch.int64), num)
    shard = load_file(folder, described, cure, needed)
    if classes and num and not 0 <= int(shard["labels"].min()) <= int(shard["labels"].max()) < classes:
        raise ValueError(
            f"{folder / described['file']} has labels outside 0..{classes - 1}, the classes of meta.json: {cure}"
        )
    return shard
