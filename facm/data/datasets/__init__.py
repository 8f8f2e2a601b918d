"""Datasets of labelled pictures, one file each; a new one is a file, a line in DATASETS and its fingerprint in params.

A dataset is a class made from its folder (`data.root`, or None) whose `load(split)` returns `Images`; it has the
splits "train" and "heldout". What lies in `data.root` DVC does not see, so its content is pinned by a fingerprint.
Points take the place of pictures where `kind` says so: the toy problems whose answer is known.

A dataset too large for the memory has two more: `fingerprint()`, computed file by file, and `survey()`, which looks at
every file, so that what cannot be used is told before the work. One of ready-made latents is read by
facm.data.latents.store.adopt.
"""

from pathlib import Path
from typing import Any

from facm.data.images import survey
from facm.data.images.images import Images
from facm.data.images.survey import SPLITS, Admitted
from facm.runtime.params import PATH, Data
from facm.runtime.paths import repository_root
from facm.runtime.registry import Registry

DATASETS = Registry(
    __name__,
    f"{PATH}, data.name",
    cifar10="Cifar10",
    digits="Digits",
    folder="Folder",
    mixture="MixturePoints",
    precomputed="Precomputed",
)
POINTS = ("mixture",)  # which of them have points
LATENTS = ("precomputed",)  # which of them are encoded already
SIZED = ("folder",)  # which of them are brought to data.side, and may have unusable files (data.max_bad)


def admit(block: Data) -> Admitted:
    """The dataset of params.yaml, looked through and verified; all ranks must call it.

    Raises:
        ValueError: as `dataset_of`; another fingerprint than the pinned one; more unusable files than `data.max_bad`.
        FileNotFoundError: its files are missing.
    """
    return survey.admit(dataset_of(block.name, block.root, size=block.side, max_bad=block.max_bad), block)


def dataset_of(name: str, root: str | Path | None, *, size: int | None = None, max_bad: float = 0.0) -> Any:
    """A dataset, unread.

    Args:
        name: a key of DATASETS.
        root: its folder, relative to the repository's root; None where it needs none.
        size: pixels per side; None: as they are.
        max_bad: fraction of files that may be unusable; of no consequence where none can be.

    Raises:
        ValueError: unknown dataset, or a root or size that does not fit.
    """
    dataset: Any = DATASETS.load(name)
    check_size(name, size)
    options = {"size": size, "max_bad": max_bad} if name in SIZED else {}
    return dataset(None if root is None else repository_root() / root, **options)


def check_size(name: str, size: int | None) -> None:
    """Raise ValueError for a size asked of a dataset that has its own."""
    if size is not None and name not in SIZED:
        raise ValueError(f"{PATH}, data.side: '{name}' comes in its own size, got {size}; set it to null")


def load(name: str, root: str | Path | None, split: str, *, size: int | None = None, max_bad: float = 0.0) -> Images:
    """One split of a dataset.

    Args:
        name, root, size, max_bad: see `dataset_of`.
        split: "train" or "heldout".

    Raises:
        ValueError: unknown dataset or split, a root or size that does not fit, unusable files.
    """
    dataset = dataset_of(name, root, size=size, max_bad=max_bad)
    if split not in SPLITS:
        raise ValueError(f"a dataset has the splits {' and '.join(SPLITS)}, got '{split}'")
    images: Images = dataset.load(split)
    return images


def fingerprint(name: str, root: str | Path | None) -> str:
    """Sha256 of the pictures and labels of both splits, in their order, or of all files; 64 hex digits."""
    return survey.fingerprint(dataset_of(name, root))
