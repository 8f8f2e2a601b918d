"""Patch tokens of a frozen encoder beside the latents, in shards: what REPA's pretraining is aligned with.

* tokens_00000.safetensors ...: tokens (n, N, features) float16, tokens_flip (of the mirrored images)
* tokens.json: encoder, fingerprint, flips, shape, num and, per file, bytes and sha256; written last

Like the latents' shards (facm/data/latents/store.py), those that a killed run has finished are kept.

ImageNet's 1,281,167 images with 256 tokens of 768 numbers take 504 GB, twice that with mirrored ones.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from facm.data.latents.store import Described, load_file, mark, marked, place, refuse_rows
from facm.runtime import dist
from facm.runtime.files import load_record, save_json, save_tensors
from facm.runtime.log import progress, say

INDEX = "tokens.json"


class Shard(Described):
    """What tokens.json says of a shard, and the mark beside one of a run that was killed."""

    shape: list[int]


class Marked(TypedDict):
    """Such a mark."""

    described: Shard


class Index(TypedDict):
    """What tokens.json holds."""

    encoder: str
    fingerprint: str
    flips: bool
    num: int
    shape: list[int]
    shards: list[Shard]


class Encoder(Protocol):
    """A frozen network of pictures."""

    name: str

    def tokens(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, H, W, C) -> tokens (B, N, features)."""


def write(
    folder: str | Path,
    pictures: Callable[[range], Tensor],  # numbers -> uint8 (n, H, W, C), `num` in all
    num: int,
    encoder: Encoder,
    *,
    flip: bool,
    shard_size: int,
    batch_size: int,
    fingerprint: str,
    unfinished: Path | None = None,
) -> None:
    """Encode a split into shards, which the ranks share; the latents of the same images lie beside them.

    Earlier tokens in `folder` are removed. Flip, shard_size, batch_size, fingerprint and unfinished: see `store.write`.
    """
    folder = Path(folder)
    if dist.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (folder / INDEX, *folder.glob("tokens_*")):
            stale.unlink(missing_ok=True)
    dist.barrier()
    parts, shards = dist.batches(num, shard_size), []
    mine, where = dist.share(len(parts)), unfinished or folder
    kept = {} if unfinished is None else {n: found for n in mine if (found := marked(where / shard_name(n), Marked))}
    if kept and dist.is_main():
        say(f"tokens: {len(kept)} of {len(mine)} shards were finished before and are kept")

    def written(number: int) -> dict[str, Any]:
        if number in kept:
            return dict(kept[number]["described"])
        shard = _encode(pictures, parts[number], encoder, flip=flip, batch_size=batch_size)
        path = where / shard_name(number)
        described = save_tensors(path, shard)
        described |= {"num": len(parts[number]), "shape": list(shard["tokens"].shape[1:])}
        if unfinished is not None:
            mark(path, {"described": described})
        return described

    for described in dist.in_order(map(written, progress(mine, len(mine), "encoding tokens")), len(parts)):
        shards.append(described)
    if unfinished is not None and dist.is_main():
        for described in shards:
            place(unfinished / described["file"], folder)
    if dist.is_main():
        made_from = {"encoder": encoder.name, "fingerprint": fingerprint, "flips": flip}
        save_json(folder / INDEX, {**made_from, "num": num, "shape": shards[0]["shape"], "shards": shards})


def shard_name(number: int) -> str:
    return f"tokens_{number:05d}.safetensors"


@dataclass(frozen=True)
class TokenSet:
    """Tokens that `write` made, opened for training."""

    num: int  # images
    shape: tuple[int, int]  # (N, features) of one
    encoder: str
    flips: bool  # those of the mirrored images are there, too
    fingerprint: str  # of the dataset
    shards: tuple[dict[str, Tensor], ...]  # tensors of each shard, mapped from the files

    @classmethod
    def find(cls, folder: str | Path, *, num: int, flips: bool, fingerprint: str) -> "TokenSet | None":
        """Open the tokens beside some latents, whose num, flips and fingerprint they must match; None where there are
        none.

        Raises:
            FileNotFoundError: a shard is missing.
            ValueError: a shard is damaged, or the tokens are of other images.
        """
        folder = Path(folder)
        if not (folder / INDEX).exists():
            return None
        cure = f"remove {folder} and run `dvc repro`"
        index: Index = load_record(folder / INDEX, Index, cure)
        found = (index["num"], index["flips"], index["fingerprint"])
        if found != (num, flips, fingerprint):
            raise ValueError(
                f"{folder / INDEX} is of (number, flips, fingerprint) {found}, the latents are of "
                f"{(num, flips, fingerprint)}: {cure}"
            )
        if len(index["shape"]) != 2 or sum(shard["num"] for shard in index["shards"]) != num:
            raise ValueError(f"{folder / INDEX}: shape {index['shape']}, or another number in its shards: {cure}")
        shape = (index["shape"][0], index["shape"][1])
        names = ["tokens", *(["tokens_flip"] if flips else [])]
        shards = tuple(
            load_file(folder, one, cure, dict.fromkeys(names, (str(torch.float16), one["num"], *shape)), INDEX)
            for one in index["shards"]
        )
        return cls(num, shape, index["encoder"], flips, fingerprint, shards)

    def batch(self, indices: Tensor, flips: Tensor | None = None) -> Tensor:
        """Tokens float32 (B, N, features).

        Args:
            indices: int64 (B,) in 0 .. num - 1, in any order; else IndexError.
            flips: bool (B,), which images are mirrored, ValueError where the set has none of these; None: none.
        """
        refuse_rows(indices, self.num, "tokens", flips=flips is not None and not self.flips)
        mirrored = [False] * len(indices) if flips is None else flips.tolist()
        rows = [self._row(*row) for row in zip(indices.tolist(), mirrored, strict=True)]
        return torch.stack(rows).float() if rows else torch.empty(0, *self.shape)

    def _row(self, index: int, mirrored: bool) -> Tensor:
        number = bisect_right(self._ends, index)
        tokens = self.shards[number]["tokens_flip" if mirrored else "tokens"]
        return tokens[index - self._ends[number]]  # negative: counted from the shard's end

    @cached_property
    def _ends(self) -> list[int]:
        """Per shard, how many images it and those before it hold."""
        return list(accumulate(len(shard["tokens"]) for shard in self.shards))


def _encode(
    pictures: Callable[[range], Tensor], part: range, encoder: Encoder, *, flip: bool, batch_size: int
) -> dict[str, Tensor]:
    shard: dict[str, list[Tensor]] = {"tokens": [], **({"tokens_flip": []} if flip else {})}
    for start in range(part.start, part.stop, batch_size):
        images = pictures(range(start, min(start + batch_size, part.stop)))
        for name, seen in (("tokens", images), ("tokens_flip", images.flip(2))):
            if name in shard:
                shard[name].append(encoder.tokens(seen).half().cpu())
    return {name: torch.cat(batches) for name, batches in shard.items()}
