"""What lies in a dataset's folder: looked through, fingerprinted, and admitted if it is what params.yaml pins."""

import hashlib
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from facm.data.images.images import Images
from facm.runtime import dist
from facm.runtime.log import say
from facm.runtime.params import PATH, Data

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


def admit(dataset: Any, block: Data) -> Admitted:
    """A dataset, looked through where it has a `survey`, and verified; all ranks must call it.

    Args:
        dataset: of the class in DATASETS.
        block: of params.yaml; `fingerprint` None: not pinned, whatever lies there is accepted.

    Raises:
        ValueError: another fingerprint than the pinned one; more unusable files than `data.max_bad` allows.
        FileNotFoundError: its files are missing.
    """
    if not hasattr(dataset, "survey"):
        return Admitted(dataset, dist.from_main(lambda: _pinned(block, fingerprint(dataset))))
    survey: Survey = dataset.survey()
    dataset.surveyed = survey
    _pinned(block, survey.fingerprint)
    if dist.is_main():
        for warning in survey.warnings:
            say(f"warning: data.root: {warning}")
    if survey.skipped and dist.is_main():
        say(f"{len(survey.skipped)} files of data.root are left out (data.max_bad): {tell(survey.skipped)}")
    return Admitted(dataset, survey.fingerprint, survey.skipped)


def fingerprint(dataset: Any) -> str:
    """Sha256 of the pictures and labels of both splits, in their order, or of all files; 64 hex digits."""
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


def tell(skipped: dict[str, str]) -> str:
    """Names of unusable files with reasons, the first ones, in characters that any terminal can show."""
    some = [f"{name} ({reason})" for name, reason in islice(skipped.items(), TOLD)]
    more = f" and {len(skipped) - TOLD} more" if len(skipped) > TOLD else ""
    return ", ".join(some).encode(errors="backslashreplace").decode() + more


def _pinned(block: Data, actual: str) -> str:
    """The fingerprint; raises ValueError where another one is pinned."""
    if block.fingerprint not in (None, actual):
        raise ValueError(
            f"{PATH}, data.fingerprint: pinned is {block.fingerprint}, but the pictures and labels of '{block.name}' "
            f"(data.root: {block.root}) have {actual}; results must be traceable to one data set: restore the data, "
            "or, if another data set is meant, put the line that `python -m facm.data` prints in its place"
        )
    return actual
