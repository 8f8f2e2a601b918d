"""Datasets of labelled pictures, one file each; a new one is a file, a line in DATASETS and its fingerprint in params.

A dataset is a class made from its folder (`data.root`, or None) whose `load(split)` returns `Images`; it has the
splits "train" and "heldout". What lies in `data.root` DVC does not see, so its content is pinned by a fingerprint.
Points take the place of pictures where `kind` says so: the toy problems whose answer is known.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.names import refuse_unknown
from facm.params import PATH
from facm.work import repository_root

DATASETS = {"digits": "Digits", "mixture": "MixturePoints"}
POINTS = ("mixture",)  # which of them have points
SPLITS = ("train", "heldout")
KINDS = {("uint8", 4): "pictures", ("float32", 2): "points"}  # of samples, by type and number of axes


@dataclass(frozen=True)
class Images:
    """Pictures with labels, or points.

    Attributes:
        images: uint8 (N, H, W, C), or of points float32 (N, D).
        labels: int64 (N,) in 0 .. num_classes - 1; None without classes.
        num_classes: 0 without classes.
    """

    images: Tensor
    labels: Tensor | None
    num_classes: int

    def __post_init__(self) -> None:
        """Raise ValueError where pictures and labels are not what the attributes say."""
        kind(self.images.dtype, self.images.shape)
        if (self.labels is None) != (self.num_classes == 0):
            raise ValueError(f"labels go with classes: {self.num_classes} classes, labels {type(self.labels).__name__}")
        if self.labels is not None:
            _check_labels(self.labels, len(self.images), self.num_classes)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def kind(self) -> str:
        """pictures | points."""
        return kind(self.images.dtype, self.images.shape)

    def unlabelled(self) -> "Images":
        """The same pictures, for models without classes."""
        return Images(self.images, None, 0)


def kind(dtype: object, shape: Sequence[int]) -> str:
    """What samples are: pictures, uint8 (N, H, W, C), or points, float32 (N, D).

    Args:
        dtype: of torch or numpy.
        shape: of all samples.

    Raises:
        ValueError: neither.
    """
    found = KINDS.get((str(dtype).removeprefix("torch."), len(shape)))
    if found is None:
        raise ValueError(f"pictures must be uint8 (N, H, W, C), or points float32 (N, D), got {dtype} {tuple(shape)}")
    return found


def load(name: str, root: str | Path | None, split: str) -> Images:
    """One split of a dataset.

    Args:
        name: a key of DATASETS.
        root: its folder, relative to the repository's root; None where it needs none.
        split: "train" or "heldout".

    Raises:
        ValueError: unknown dataset or split, or a root that does not fit.
    """
    refuse_unknown([name], DATASETS, "params.yaml, data.name")
    if split not in SPLITS:
        raise ValueError(f"a dataset has the splits {' and '.join(SPLITS)}, got '{split}'")
    dataset: Any = getattr(import_module(f"{__name__}.{name}"), DATASETS[name])
    return dataset(None if root is None else repository_root() / root).load(split)


def fingerprint(name: str, root: str | Path | None) -> str:
    """Sha256 of the pictures and labels of both splits, in their order, 64 hex digits."""
    digest = hashlib.sha256()
    for split in SPLITS:
        pictures = load(name, root, split)
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
    if pinned not in (None, actual):
        raise ValueError(
            f"{PATH}, data.fingerprint: pinned is {pinned}, but the pictures and labels of '{name}' "
            f"(data.root: {root}) have {actual}; results must be traceable to one data set: restore the data, or, "
            "if another data set is meant, put the line that `python -m facm.data` prints in its place"
        )
    return actual


def _check_labels(labels: Tensor, num: int, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (num,):
        raise ValueError(f"labels must be int64 ({num},), got {labels.dtype} {tuple(labels.shape)}")
    if num and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
