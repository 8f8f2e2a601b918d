"""Latents that the published code has made (LightningDiT and FACM, extract_features.py), taken as they are.

    latents_rank<RR>_shard<NNN>.safetensors    latents, latents_flip (mirrored) (n, C, H, W) float32, labels (n,) int64
    latents_stats.pt                           mean and std, (1, C, 1, 1), of 10,000 of them

The statistics are the given ones: a network lives in the space that they normalise. `data.root` is the folder; files
are taken in the order of their names; a lost one is noticed by the numbers in them, and by ranks of unlike length. The
published extraction fills up the last round of its processes with images that it has had already (fewer than it has
processes); which ones, the files do not tell, so they are kept, as the published training keeps them. Latents are what
`latents.codec` decodes: as sampled for va_vae, times 0.18215 for sd_vae.
"""

import hashlib
import re
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from facm.data.images.images import Images
from facm.data.images.survey import TOLD
from facm.runtime.files import read_tensors, refuse_no_file, sha256
from facm.runtime.log import progress

SHARDS, STATS = "latents_rank*_shard*.safetensors", "latents_stats.pt"
NAME = re.compile(r"latents_rank([0-9]+)_shard([0-9]+)\.safetensors")


class Precomputed:
    """A folder of latents; it has no images."""

    def __init__(self, root: Path | None = None):
        """Find the shards; ValueError where there is no folder, or one without such files."""
        if root is None or not root.is_dir():
            raise ValueError(
                f"params.yaml, data.root: 'precomputed' needs a folder of latents, there is none at {root}"
            )
        self.root, self.paths = root, sorted(root.glob(SHARDS))
        if not self.paths:
            raise ValueError(f"params.yaml, data.root: {root} has no file {SHARDS}")
        for path in self.paths:
            refuse_no_file(path, "params.yaml, data.root: ", "fetch it again, or move it away")
        gaps = _gaps(self.paths)
        if gaps:
            raise ValueError(f"params.yaml, data.root: {root} lacks shards of {', '.join(gaps)}: fetch them again")
        if not (root / STATS).is_file():
            raise ValueError(
                f"params.yaml, data.root: {root} has no {STATS}: put that of the latents' teacher there (the published "
                "code has it in the folder it was started in, or in cache/); it cannot be computed anew"
            )

    def load(self, split: str) -> Images:
        """Raise ValueError: there are no images."""
        raise ValueError(
            "params.yaml, data.name: 'precomputed' has latents and no pictures, so samples cannot be compared with it: "
            "give the reference its statistics from elsewhere, or set data.name: folder and encode the pictures"
        )

    def fingerprint(self) -> str:
        """Sha256 over the names and contents of the shards and the statistics."""
        digest = hashlib.sha256()
        paths = [*self.paths, self.root / STATS]
        for path in progress(paths, len(paths), "reading latents"):
            digest.update(f"{path.name} {sha256(path)}\n".encode())
        return digest.hexdigest()

    def read(self, number: int, *, flip: bool, labels: bool) -> dict[str, Tensor]:
        """The tensors of a shard, mapped from its file: latents, and latents_flip and labels where they are wanted.

        Raises ValueError where it is damaged, or not of the form above.
        """
        path = self.paths[number]
        try:
            found, _ = read_tensors(path)
        except SafetensorError as error:
            raise _damaged(path, error) from None
        wanted = ["latents", *(["latents_flip"] if flip else []), *(["labels"] if labels else [])]
        missing = [name for name in wanted if name not in found]
        if missing:
            cure = "; set latents.flip: false" if "latents_flip" in missing else ""
            raise ValueError(f"{path} lacks {', '.join(missing)}, it has {', '.join(sorted(found))}{cure}")
        z, y = found["latents"], found.get("labels")
        for name in ("latents", *(["latents_flip"] if flip else [])):
            if found[name].dim() != 4 or found[name].dtype != torch.float32 or found[name].shape != z.shape:
                raise ValueError(
                    f"{path}: {name} must be float32 (n, C, H, W), the same for all, it is {found[name].dtype} "
                    f"{tuple(found[name].shape)}, latents {tuple(z.shape)}"
                )
            if not bool(torch.isfinite(found[name]).all()):
                raise ValueError(f"{path}: {name} are not all finite: extract them again")
        if not len(z):
            raise ValueError(f"{path} holds no latents: fetch it again")
        if labels and y is not None and (y.dtype != torch.int64 or y.shape != z.shape[:1] or int(y.min()) < 0):
            raise ValueError(f"{path}: labels must be int64 ({len(z)},) from 0 on, they are {y.dtype} {tuple(y.shape)}")
        return {name: found[name] for name in wanted}

    def refuse_uneven(self) -> None:
        """Raise ValueError for ranks of unlike numbers of latents: all wrote as many (DistributedSampler pads).

        Only heads are read; a shard that is damaged or empty is a ValueError, too.
        """
        totals: dict[int, int] = {}
        for path in self.paths:
            rank, _ = _numbers(path)
            totals[rank] = totals.get(rank, 0) + _num(path)
        if len(set(totals.values())) > 1:
            told = ", ".join(f"rank{rank:02d} {num}" for rank, num in sorted(totals.items()))
            raise ValueError(
                f"params.yaml, data.root: the ranks' shards hold unlike numbers of latents, {told}: the last ones of "
                f"some are missing; fetch {self.root} again"
            )

    @property
    def statistics_path(self) -> Path:
        return self.root / STATS


def _gaps(paths: list[Path]) -> list[str]:
    """The first ranks whose shards are not numbered 0, 1, 2, ... without a gap, or that are missing altogether."""
    numbers: dict[int, list[int]] = {}
    for path in paths:
        rank, number = _numbers(path)
        numbers.setdefault(rank, []).append(number)
    whole = {rank for rank, found in numbers.items() if sorted(found) == list(range(len(found)))}
    return [f"rank{rank:02d}" for rank in islice((rank for rank in range(max(numbers) + 1) if rank not in whole), TOLD)]


def _num(path: Path) -> int:
    """Latents of a shard, by its head; ValueError where it is damaged, or without latents."""
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            shape = file.get_slice("latents").get_shape() if "latents" in names else None
    except SafetensorError as error:
        raise _damaged(path, error) from None
    if shape is None:
        raise ValueError(f"{path} lacks latents, it has {', '.join(names)}")
    if shape[:1] in ([], [0]):
        raise ValueError(f"{path} holds no latents: fetch it again")
    return int(shape[0])


def _damaged(path: Path, error: SafetensorError) -> ValueError:
    return ValueError(f"{path} is damaged ({error}): fetch it again")


def _numbers(path: Path) -> tuple[int, int]:
    """Rank and number of a shard; ValueError for a name that has none."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(
            f"params.yaml, data.root: {path} is not called latents_rank<n>_shard<n>.safetensors: move it away"
        )
    return int(match[1]), int(match[2])
