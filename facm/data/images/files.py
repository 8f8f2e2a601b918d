"""Pictures that stay in their files and are decoded when they are asked for, by several threads."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from facm.data.images.decode import CHANNELS, Unreadable, levels

BLOCK = 512  # files that the threads are given at once

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Files:
    """Pictures of one size in files; a slice, or a tensor of indices or of bools, is a tensor (B, H, W, 3).

    Attributes:
        root: the folder of all.
        names: of the files in it.
        shape: (N, H, W, 3).
        size: side of ADM's crop; None: the files have H x W pixels.
    """

    root: Path
    names: tuple[str, ...]
    shape: tuple[int, ...]
    size: int | None

    @classmethod
    def of(cls, root: Path, names: Iterable[str], sides: tuple[int, int], size: int | None) -> "Files":
        """Files of which `sides`, (H, W), are known."""
        names = tuple(names)
        return cls(root, names, (len(names), *sides, CHANNELS), size)

    @property
    def dtype(self) -> torch.dtype:
        """Type of levels."""
        return torch.uint8

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Decode some.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not the picture that it was when the data set was looked through.
        """
        numbers = range(len(self))
        indices = numbers[rows] if isinstance(rows, slice) else torch.tensor(numbers)[rows].tolist()
        pictures = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        for place, decoded in enumerate(in_threads(self._decoded, indices)):
            pictures[place] = decoded
        return pictures

    def _decoded(self, index: int) -> Tensor:
        path = self.root / self.names[index]
        try:
            decoded = levels(path.read_bytes(), self.size)
        except Unreadable as error:
            raise ValueError(f"{path} was damaged while the stage ran ({error}): run it again") from None
        if decoded.shape != self.shape[1:]:
            raise ValueError(f"{path} was changed while the stage ran, it is {decoded.shape} now: run it again")
        return torch.tensor(decoded)


def in_threads(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `work` returns for each item, in order, from the threads that this process has for files."""
    rest = iter(items)
    while block := list(islice(rest, BLOCK)):
        yield from _pool().map(work, block)


@cache
def _pool() -> ThreadPoolExecutor:
    """As many threads as this process has cores; Pillow decodes and resizes without Python's lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), "pictures")
