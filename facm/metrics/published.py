"""References that others published as npz: statistics of a dataset under Inception, and images where there are any.

| keys | shape | what |
|---|---|---|
| mu, sigma | (2048,), (2048, 2048) | of pool_3: all that FACM's and EDM's files have |
| mu_s, sigma_s | (2023,), (2023, 2023) | of the spatial features, for sFID (ADM) |
| arr_0 | uint8 (N, H, W, 3) | 10,000 images, for precision, recall and KID only (ADM) |
| mu_NAME, sigma_NAME | (D,), (D, D) | of another feature network of facm/features, such as dinov2 |

ADM: openai/guided-diffusion, evaluations/evaluator.py. EDM2's references are pickles, which may run any code and are
not read here; where they are trusted, an npz is made of one elsewhere:

python -c "import pickle, numpy; s = pickle.load(open('img512.pkl', 'rb')); numpy.savez('img512.npz', **s['fid'],
mu_dinov2=s['fd_dinov2']['mu'], sigma_dinov2=s['fd_dinov2']['sigma'])"
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from facm.data.images.images import kind
from facm.metrics.frechet import Statistics, refuse_no_statistics
from facm.runtime import dist
from facm.runtime.files import DAMAGED_NPZ, refuse_no_file, sha256
from facm.runtime.params import PATH

DATASET = "dataset"  # reference.source where no archive takes the train split's place
PICTURES = "arr_0"


@dataclass(frozen=True)
class Member:
    """Images of an archive, compressed or not, read when they are asked for, from the front to the back."""

    path: Path
    name: str
    shape: tuple[int, ...]  # (N, H, W, C)
    start: int  # bytes of the header

    @classmethod
    def of(cls, path: Path, name: str) -> Self:
        """Find a member; ValueError where it is not images, or has not as many bytes as its shape needs."""
        with ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            version = npy.read_magic(member)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(member)
            if fortran or kind(dtype, shape) != "pictures":
                raise ValueError(f"{name} must be uint8 (N, H, W, C), it is {dtype} {shape}")
            size = archive.getinfo(f"{name}.npy").file_size - member.tell()
            if min(shape) < 1 or math.prod(shape) != size:
                raise ValueError(f"{name} of {shape} must have at least 1 of each axis, and has {size} bytes")
            return cls(path, name, shape, member.tell())

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        first, end, _ = rows.indices(len(self))
        size, num = int(np.prod(self.shape[1:])), max(0, end - first)
        try:
            with ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as member:
                member.seek(self.start + first * size)
                read = np.frombuffer(bytearray(member.read(num * size)), np.uint8)
            return torch.from_numpy(read).view(num, *self.shape[1:])
        except DAMAGED_NPZ as error:
            raise ValueError(_unusable(self.path, error)) from None


@dataclass(frozen=True)
class Archive:
    """A published reference.

    Attributes:
        statistics: mean and covariance, float64, by what follows `mu`: "" (pool features), "s" (spatial ones), or the
            name of a feature network.
    """

    path: Path
    sha256: str
    statistics: dict[str, Statistics]
    pictures: Member | None  # None where there are none

    @classmethod
    def open(cls, path: str | Path, pinned: str) -> "Archive":
        """Read an npz whose sha256 is pinned; all ranks must call it, rank 0 computes the digest.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another sha256, no npz, no mu and sigma, or a sigma that is no covariance.
        """
        path = Path(path)
        refuse_no_file(path, f"{PATH}, reference.source: ", "fetch it, or set source: dataset")
        found = dist.from_main(lambda: sha256(path))
        if found != pinned:
            raise ValueError(
                f"{PATH}, reference.sha256: pinned is {pinned}, but {path} has {found}: fetch the file again, or, if "
                "this one is meant, put its sha256 there"
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                statistics = _statistics(arrays)
                pictures = Member.of(path, PICTURES) if PICTURES in arrays.files else None
        except DAMAGED_NPZ as error:
            raise ValueError(_unusable(path, error)) from None
        return cls(path, found, statistics, pictures)


def _unusable(path: Path, error: BaseException) -> str:
    return f"{PATH}, reference.source: {path} cannot be used ({error})"


def _statistics(arrays: np.lib.npyio.NpzFile) -> dict[str, Statistics]:
    """All pairs mu, sigma of an archive, checked."""
    found = {}
    for name in arrays.files:
        if name != "mu" and not name.startswith("mu_"):
            continue
        tail = name.removeprefix("mu")
        mu, sigma = arrays[name], arrays[f"sigma{tail}"]
        try:
            if not (isinstance(mu, np.ndarray) and isinstance(sigma, np.ndarray)):
                raise ValueError("bytes that are no array of numpy")
            refuse_no_statistics(mu, sigma)
        except ValueError as error:
            raise ValueError(f"{name} and sigma{tail}: {error}") from None
        found[tail.removeprefix("_")] = mu.astype(np.float64), sigma.astype(np.float64)
    if "" not in found:
        raise ValueError(f"needed are mu and sigma, found {', '.join(arrays.files)}")
    return found
