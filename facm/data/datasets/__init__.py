"""Datasets of labelled pictures, one file each; a new one is a file, a line in DATASETS and its fingerprint in params.

A dataset is a class made from its folder (`data.root`, or None) whose `load(split)` returns `Images`; it has the
splits "train" and "heldout". What lies in `data.root` DVC does not see, so its content is pinned by a fingerprint.
Points take the place of pictures where `kind` says so: the toy problems whose answer is known.

A dataset too large for the memory has two more: `fingerprint()`, computed file by file, and `survey()`, which looks at
every file, so that what cannot be used is told before the work. One of ready-made latents is read by
facm.data.latents.store.adopt.
"""

import hashlib
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from facm.data.images.images import Images
from facm.runtime import dist
from facm.runtime.log import say
from facm.runtime.names import refuse_unknown
from facm.runtime.params import PATH, Data
from facm.runtime.paths import repository_root

DATASETS = {
    "cifar10": "Cifar10",
    "digits": "Digits",
    "folder": "Folder",
    "mixture": "MixturePoints",
    "precomputed": "Precomputed",
}
POINTS = ("mixture",)  # which of them have points
LATENTS = ("precomputed",)  # which of them are encoded already
SIZED = ("folder",)  # which of them are brought to data.side, and may have unusable files (data.max_bad)
SPLITS = ("train", "heldout")
TOLD = 10  # unusable files that a message names


@dataclass(frozen=True)
class Survey:
    """What looking at every file of a dataset showed.

    Attributes:
        fingerprint: sha256 over names and bytes.
        names: per split, the usable files, relative to the dataset's folder.
        classes: their names, in order; none: no classes.
        sides: (H, W) of the pictures.
        skipped: reason by name, of the files that cannot be used.
        labels: per split, class numbers of `names`; empty without classes.
        warnings: what is usable and yet may not be meant, a sentence each.
    """

    fingerprint: str
    names: dict[str, tuple[str, ...]]
    classes: tuple[str, ...]
    sides: tuple[int, int]
    skipped: dict[str, str]
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Admitted:
    """A dataset whose fingerprint is the pinned one.

    Attributes:
        dataset: of the class in DATASETS.
        fingerprint: of its content.
        skipped: reason by name, of files that were left out.
    """

    dataset: Any
    fingerprint: str
    skipped: dict[str, str] = field(default_factory=dict)

    def load(self, split: str) -> Images:
        """One split."""
        images: Images = self.dataset.load(split)
        return images


def admit(block: Data) -> Admitted:
    """The dataset of params.yaml, looked through and verified; all ranks must call it.

    Raises:
        ValueError: as `load` and `verify`; more unusable files than `data.max_bad` allows.
        FileNotFoundError: its files are missing.
    """
    dataset = dataset_of(block.name, block.root, size=block.side, max_bad=block.max_bad)
    if not hasattr(dataset, "survey"):
        return Admitted(dataset, dist.from_main(lambda: verify(block.name, block.root, block.fingerprint)))
    survey: Survey = dataset.survey()
    dataset.surveyed = survey
    _check_pinned(block.name, block.root, block.fingerprint, survey.fingerprint)
    if dist.is_main():
        for warning in survey.warnings:
            say(f"warning: data.root: {warning}")
    if survey.skipped and dist.is_main():
        say(f"{len(survey.skipped)} files of data.root are left out (data.max_bad): {tell(survey.skipped)}")
    return Admitted(dataset, survey.fingerprint, survey.skipped)


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
    refuse_unknown([name], DATASETS, f"{PATH}, data.name")
    check_size(name, size)
    dataset: Any = getattr(import_module(f"{__name__}.{name}"), DATASETS[name])
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


def tell(skipped: dict[str, str]) -> str:
    """Names of unusable files with reasons, the first ones, in characters that any terminal can show."""
    some = [f"{name} ({reason})" for name, reason in islice(skipped.items(), TOLD)]
    more = f" and {len(skipped) - TOLD} more" if len(skipped) > TOLD else ""
    return ", ".join(some).encode(errors="backslashreplace").decode() + more


def fingerprint(name: str, root: str | Path | None) -> str:
    """Sha256 of the pictures and labels of both splits, in their order, or of all files; 64 hex digits."""
    dataset = dataset_of(name, root)
    if hasattr(dataset, "fingerprint"):
        own: str = dataset.fingerprint()
        return own
    digest = hashlib.sha256()
    for split in SPLITS:
        pictures = dataset.load(split)
        digest.update(f"{split} {tuple(pictures.images.shape)} {pictures.num_classes}".encode())
        digest.update(pictures.images.contiguous().numpy().data)
        if pictures.labels is not None:
            digest.update(pictures.labels.contiguous().numpy().data)
    return digest.hexdigest()


def verify(name: str, root: str | Path | None, pinned: str | None) -> str:
    """The dataset's fingerprint, refused where it is not the pinned one.

    Args:
        name: a key of DATASETS.
        root: its folder or None.
        pinned: `data.fingerprint` of params.yaml; None: not pinned, whatever lies there is accepted.

    Raises:
        ValueError: the fingerprints differ.
    """
    actual = fingerprint(name, root)
    _check_pinned(name, root, pinned, actual)
    return actual


def _check_pinned(name: str, root: str | Path | None, pinned: str | None, actual: str) -> None:
    if pinned not in (None, actual):
        raise ValueError(
            f"{PATH}, data.fingerprint: pinned is {pinned}, but the pictures and labels of '{name}' "
            f"(data.root: {root}) have {actual}; results must be traceable to one data set: restore the data, or, "
            "if another data set is meant, put the line that `python -m facm.data` prints in its place"
        )
