"""Sampled images on disk: ADM's npz (arr_0 uint8 NHWC, arr_1 labels), written and read in parts, and a grid.

Of points arr_0 is float32 (N, D), and they are plotted. The archive is byte for byte what `numpy.savez` writes, but
neither writing nor reading it holds all images in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from facm.data.images.images import KINDS
from facm.inference import grid
from facm.runtime import dist
from facm.runtime.files import DAMAGED_NPZ, atomic_write

GRID = 10  # rows and columns of a grid, at most
NOT_FINITE = "not_finite.json"  # beside images of a student that was recorded as diverged: how many, by nfe<N>
PICTURES, LABELS = "arr_0.npy", "arr_1.npy"
LOCAL_HEADER = 30  # bytes of a zip member's header before its name; the last four are two lengths

Take = Callable[[np.ndarray], None]
"""Takes in the next pictures, uint8 (B, H, W, C), or points, float32 (B, D)."""


@contextmanager
def saving_samples(folder: str | Path, name: str, num: int, labels: Tensor | None) -> Iterator[Take]:
    """Write `<name>.npz` and `grid_<name>.png` from the `num` images that rank 0 gives, in order; all ranks wait.

    Labels are (num,) int64 or None. Raises ValueError for fewer or more images than `num`.
    """
    path = Path(folder) / f"{name}.npz"
    if dist.is_main():
        with saving_arrays(path, num, None if labels is None else labels.numpy()) as take:
            yield take
        grid.save(grid.sheet(load_samples(path)[0], GRID, GRID), path.with_name(f"grid_{name}.png"))
    else:
        yield lambda images: None
    dist.barrier()


@contextmanager
def saving_arrays(path: str | Path, num: int, labels: np.ndarray | None) -> Iterator[Take]:
    """Write an npz of `num` images, given part by part, and labels where there are any; whole or not at all."""
    with atomic_write(Path(path)) as file, ZipFile(file, "w", ZIP_STORED) as archive:
        with archive.open(PICTURES, "w", force_zip64=True) as member:
            writer = _Writer(member, num)
            yield writer.take
            writer.finish()
        if labels is not None:
            with archive.open(LABELS, "w", force_zip64=True) as member:
                npy.write_array(member, labels, allow_pickle=False)


@dataclass(frozen=True)
class Stored:
    """Images or points of an archive, read when they are asked for: a slice is a tensor (B, ...)."""

    path: Path
    shape: tuple[int, ...]  # (N, H, W, C) or (N, D)
    offset: int  # bytes before the first value
    values: np.dtype  # type of a value

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.values)).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        first, end, _ = rows.indices(len(self))
        size, num = int(np.prod(self.shape[1:])), max(0, end - first)
        before = self.offset + first * size * self.values.itemsize
        read = np.fromfile(self.path, self.values, num * size, offset=before)
        return torch.from_numpy(read).view(num, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        return np.asarray(self[:].numpy(), dtype)


def load_samples(path: str | Path) -> tuple[Stored, np.ndarray | None]:
    """Images uint8 (N, H, W, C) or points, left on the disk, and labels (N,) int64, None without classes.

    Raises ValueError: missing or damaged file, or one of another kind.
    """
    try:
        with np.load(path) as arrays:
            return _stored(Path(path), arrays.zip), arrays.get("arr_1")
    except DAMAGED_NPZ as error:
        raise ValueError(f"{path} is missing or damaged ({error}): remove its folder and run `dvc repro`") from None


class _Writer:
    """Member arr_0 of an archive: numpy's header, which is known when the first images come, then the images."""

    def __init__(self, member: IO[bytes], num: int):
        self.member, self.num, self.taken = member, num, 0

    def take(self, images: np.ndarray) -> None:
        if not self.taken:
            shape = (self.num, *images.shape[1:])
            described = {"descr": npy.dtype_to_descr(images.dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(self.member, described)
        self.taken += len(images)
        self.member.write(np.ascontiguousarray(images).data)

    def finish(self) -> None:
        """Raise ValueError unless all images have come."""
        if self.taken != self.num:
            raise ValueError(f"{self.taken} pictures were drawn, {self.num} were to be: run `dvc repro`")


def _stored(path: Path, archive: ZipFile) -> Stored:
    """Find the images in an open archive; raises ValueError, KeyError or BadZipFile where they are not as written."""
    found = archive.getinfo(PICTURES)
    with archive.open(found) as member:
        version = npy.read_magic(member)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(member)
        header = member.tell()
    if found.compress_type != ZIP_STORED or fortran or (str(dtype), len(shape)) not in KINDS:
        needed = "plain uint8 (N, H, W, C), or float32 (N, D)"
        raise ValueError(f"{PICTURES} is {dtype} {shape}, compressed or transposed; needed is {needed}")
    if found.file_size != header + int(np.prod(shape)) * dtype.itemsize:
        raise ValueError(f"{PICTURES} has {found.file_size} bytes, its header says {shape}")
    with path.open("rb") as file:
        file.seek(found.header_offset + LOCAL_HEADER - 4)
        name, extra = np.frombuffer(file.read(4), "<u2").tolist()
    return Stored(path, shape, found.header_offset + LOCAL_HEADER + name + extra + header, dtype)
