"""Images that stay in their files, in a folder or a zip, and are decoded when they are asked for, by several threads.

Names that services leave behind, and names that begin with a dot, are no data: no `Place` lists them.
"""

import errno
import lzma
import os
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
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
NO_DATA = {  # in lower case: of file systems and of macOS, Windows, Synology, QNAP, Python and Jupyter
    *("lost+found", "__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler"),
    *("system volume information", "#recycle", "#snapshot", "@eadir", "@tmp", "@recycle", "@recently-snapshot"),
    *("@__thumb", "__pycache__"),
}
# What zipfile raises on damaged bytes, by trial.
UNREADABLE = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, LookupError, OverflowError),
    *(struct.error, zlib.error, lzma.LZMAError),
)

Item = TypeVar("Item")
Made = TypeVar("Made")


class Place(ABC):
    """Where image files lie; names are relative to it, with slashes, and folders end in one ("" is the place itself).

    Attributes:
        passed_over: the entries that were met and are no data.
    """

    def __init__(self, root: Path):
        self.root, self.passed_over = root, set[str]()

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes; OSError where it cannot be read."""

    @abstractmethod
    def _entries(self, folder: str) -> Iterable[tuple[str, bool]]:
        """Names in a folder, and whether each is a folder."""

    def _identity(self, folder: str) -> object:
        """The same for a folder by whatever links it is reached."""
        return folder

    def _above(self) -> frozenset[object]:
        """Identities of the folders that the place lies in."""
        return frozenset()

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in a folder, sorted; they do not carry the folder's name."""
        folders: list[str] = []
        files: list[str] = []
        for name, is_folder in self._entries(folder):
            if name.startswith(".") or name.lower() in NO_DATA:
                self.passed_over.add(f"{folder}{name}")
            else:
                (folders if is_folder else files).append(name)
        return sorted(folders), sorted(files)

    def files(self, folder: str = "") -> list[str]:
        """Names of all files under a folder, sorted; ValueError for a link that leads back to a folder above it."""
        return sorted(self._files(folder, self._above() | {self._identity("")}))

    def _files(self, folder: str, way: frozenset[object]) -> Iterator[str]:
        way = way | {self._identity(folder)}
        folders, files = self.entries(folder)
        yield from (f"{folder}{name}" for name in files)
        for name in folders:
            if self._identity(f"{folder}{name}/") in way:
                raise ValueError(
                    f"params.yaml, data.root: {self.root / folder / name} leads back to a folder that it lies in: "
                    "remove the link"
                )
            yield from self._files(f"{folder}{name}/", way)


class Disk(Place):
    """A folder; links are followed."""

    def read(self, name: str) -> bytes:
        """See `Place`; a named pipe or a device is no file, and may never end."""
        path = self.root / name
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "no regular file", name)
        return path.read_bytes()

    def _entries(self, folder: str) -> Iterable[tuple[str, bool]]:
        with os.scandir(self.root / folder) as found:
            return [(entry.name, _is_folder(entry)) for entry in found]

    def _identity(self, folder: str) -> object:
        found = os.stat(self.root / folder)
        return found.st_dev, found.st_ino

    def _above(self) -> frozenset[object]:
        return frozenset((found.st_dev, found.st_ino) for found in map(os.stat, self.root.resolve().parents))


class Zip(Place):
    """A zip, as EDM's dataset_tool.py writes one; it reads as the folder that it unpacks to."""

    def __init__(self, root: Path):
        """Open it; ValueError where it is damaged, or has names that are no UTF-8 or that two files have."""
        super().__init__(root)
        try:
            self._file = zipfile.ZipFile(root, metadata_encoding="utf-8")
        except UNREADABLE as error:
            raise ValueError(f"params.yaml, data.root: {root} is no zip that can be read ({error})") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._inside: dict[str, dict[str, bool]] = defaultdict(dict)
        for member in self._file.infolist():
            name = member.filename.replace("\\", "/")
            if name in self._members or name.startswith("/") or {"", ".", ".."} & set(name.rstrip("/").split("/")):
                raise ValueError(f"params.yaml, data.root: {root} has {name!r} twice, or outside itself: zip it again")
            self._members[name] = member
            folder, is_folder = name.rstrip("/"), member.is_dir()
            while folder:
                above, _, last = folder.rpartition("/")
                self._inside[f"{above}/" if above else ""][last] = is_folder
                folder, is_folder = above, True

    def read(self, name: str) -> bytes:
        try:
            return self._file.read(self._members[name])
        except UNREADABLE as error:
            raise OSError(0, str(error), name) from None

    def _entries(self, folder: str) -> Iterable[tuple[str, bool]]:
        return self._inside.get(folder, {}).items()


@dataclass(frozen=True)
class Files:
    """Images of one size in files; a slice, or a tensor of indices or of bools, is a tensor (B, H, W, 3)."""

    place: Place  # where all lie
    names: tuple[str, ...]  # of the files in it
    shape: tuple[int, ...]  # (N, H, W, 3)
    size: int | None  # side of ADM's crop; None: the files have H x W pixels

    @classmethod
    def of(cls, place: Place, names: Iterable[str], sides: tuple[int, int], size: int | None) -> "Files":
        """Files of which `sides`, (H, W), are known."""
        names = tuple(names)
        return cls(place, names, (len(names), *sides, CHANNELS), size)

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Decode some; OSError, or ValueError for a file that has changed since the dataset was looked through."""
        numbers = range(len(self))
        indices = numbers[rows] if isinstance(rows, slice) else torch.tensor(numbers)[rows].tolist()
        pictures = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        for place, decoded in enumerate(in_threads(self._decoded, indices)):
            pictures[place] = decoded
        return pictures

    def _decoded(self, index: int) -> Tensor:
        path = self.place.root / self.names[index]
        try:
            decoded = levels(self.place.read(self.names[index]), self.size)
        except Unreadable as error:
            raise ValueError(f"{path} was damaged while the stage ran ({error}): run it again") from None
        if decoded.shape != self.shape[1:]:
            raise ValueError(f"{path} was changed while the stage ran, it is {decoded.shape} now: run it again")
        return torch.tensor(decoded)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry, or what it links to, is a folder; a link that leads nowhere, or to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


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
