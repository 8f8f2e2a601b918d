"""Any folder of pictures: a subfolder per class, or pictures side by side without classes.

* `train/` with the pictures to train on, and `heldout/`, `val/` or `test/` (the first that is there) with those held
  out. Where none of the three is there, a picture is held out if the hash of its name says so, one in HELDOUT_ONE_IN;
  where there is no `train/`, the folder itself has the pictures.
  Nothing is passed over in silence: beside `train/` and what is held out no other folder of pictures may lie, nor
  pictures, but for a `test/` that is kept for later; without `train/` no class may be called like a split.
* Classes are the sorted names of the subfolders, as torchvision's ImageFolder counts them. Names that begin with a dot
  are passed over, and a file system's lost+found; every other file is meant to be a picture.
* A file that is no usable picture is told by name, with the reason, and refused beyond the fraction `data.max_bad`.

Pictures stay in their files. All of them are read, hashed and decoded once before the work, so that a damaged one is
told in time and the number of pictures is known.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from facm.data.datasets import SPLITS, Survey, tell
from facm.data.images.decode import Unreadable, levels
from facm.data.images.files import Files, in_threads
from facm.data.images.images import Images
from facm.runtime import dist
from facm.runtime.log import progress

TRAIN, HELDOUT, FOR_LATER = "train", ("heldout", "val", "test"), "test"
LIKE_A_SPLIT = {"train", "training", "val", "valid", "validation", "test", "testing", "heldout", "held_out"}
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
HELDOUT_ONE_IN = 20
PART = 512  # files that a rank looks at before it hands over what it saw
LAYOUT = (
    f"there must be {TRAIN}/ and heldout/, val/ or test/, or pictures of which one in {HELDOUT_ONE_IN} is held out by "
    "the hash of its name; in class folders, or side by side without classes"
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a file showed.

    Attributes:
        digest: sha256 of its bytes.
        sides: (H, W) of the picture as it is used.
        reason: why it cannot be used; empty where it can.
    """

    digest: bytes
    sides: tuple[int, int]
    reason: str = ""


class Folder:
    """The pictures under a folder, RGB, of one size."""

    def __init__(self, root: Path | None = None, *, size: int | None = None, max_bad: float = 0.0):
        """
        Args:
            root: the folder.
            size: pixels per side after ADM's centre crop; None: pictures as they are, all of one size.
            max_bad: fraction of the files that may be unusable.

        Raises:
            ValueError: there is no such folder.
        """
        if root is None or not root.is_dir():
            raise ValueError(f"params.yaml, data.root: 'folder' needs a folder of pictures, there is none at {root}")
        self.root, self.size, self.max_bad = root, size, max_bad
        self.surveyed: Survey | None = None

    def load(self, split: str) -> Images:
        """One split: images uint8 (N, H, W, 3), decoded when they are asked for; labels by class folder.

        Raises:
            ValueError: as `survey`.
        """
        survey = self.surveyed = self.surveyed or self.survey()
        names, number = survey.names[split], {name: i for i, name in enumerate(survey.classes)}
        images = Files.of(self.root, names, survey.sides, self.size)
        if not number:
            return Images(images, None, 0)
        folder = self._folders()[split]
        return Images(images, torch.tensor([number[_class(name, folder)] for name in names]), len(number))

    def fingerprint(self) -> str:
        """Sha256 over the sorted names and the files' bytes; no file is decoded."""
        names = _together(self._listed())
        digests = in_threads(lambda name: _digest(self.root / name), names)
        return _fingerprint(zip(names, progress(digests, len(names), "reading pictures"), strict=True))

    def survey(self, *, strict: bool = True) -> Survey:
        """Read, hash and decode every file; the ranks share them, and all must call it.

        Args:
            strict: refuse more unusable files than `max_bad` allows.

        Raises:
            ValueError: more unusable files than allowed, a split without pictures, or another layout.
        """
        listed: dict[str, list[str]] = dist.from_main(self._listed)
        names = _together(listed)
        parts = dist.batches(len(names), PART)

        def seen(number: int) -> list[Look]:
            return list(in_threads(self._look, names[parts[number].start : parts[number].stop]))

        mine = dist.share(len(parts))
        blocks = dist.in_order(map(seen, progress(mine, len(mine), "looking at pictures")), len(parts))
        looks = [look for block in blocks for look in block]
        return dist.from_main(lambda: self._judged(listed, dict(zip(names, looks, strict=True)), strict))

    def _judged(self, listed: dict[str, list[str]], looks: dict[str, Look], strict: bool) -> Survey:
        folders, classes, sides = self._folders(), self._classes(), self._sides(looks.values())
        bad = {}
        for split, some in listed.items():
            for name in some:
                beside = bool(classes) and not _class(name, folders[split])
                reason = "lies beside the class folders" if beside else _unfit(looks[name], sides)
                if reason:
                    bad[name] = reason
        if strict and len(bad) > self.max_bad * len(looks):
            raise ValueError(
                f"params.yaml, data.max_bad: {len(bad)} of {len(looks)} files in {self.root} are no usable pictures, "
                f"allowed is a share of {self.max_bad:g}: {tell(bad)}. Mend or remove them, or raise data.max_bad: "
                "they are then left out, and listed in data/latents/meta.json"
            )
        kept = {split: tuple(name for name in listed[split] if name not in bad) for split in SPLITS}
        empty = [split for split, some in kept.items() if strict and not some]
        if empty:
            raise ValueError(f"params.yaml, data.root: {self.root} has no pictures for {', '.join(empty)}: {LAYOUT}")
        bare = sorted(set(classes) - {_class(name, folders["train"]) for name in kept["train"]})
        if strict and bare:
            raise ValueError(
                f"params.yaml, data.root: no picture of class {', '.join(bare[:5])} is left to train on in "
                f"{self.root}: mend its files, or remove its folder"
            )
        return Survey(_fingerprint((name, look.digest) for name, look in looks.items()), kept, classes, sides, bad)

    def _look(self, name: str) -> Look:
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:  # a link to nowhere, a file without rights
            return Look(b"", (0, 0), f"cannot be read ({error.strerror})")
        digest = hashlib.sha256(content).digest()
        try:
            height, width, _ = levels(content, self.size).shape
        except Unreadable as error:
            return Look(digest, (0, 0), str(error))
        return Look(digest, (height, width))

    def _sides(self, looks: Iterable[Look]) -> tuple[int, int]:
        """(H, W) of all pictures; of most of them, where they are taken as they are."""
        if self.size is not None:
            return self.size, self.size
        counts = Counter(look.sides for look in looks if not look.reason)
        return counts.most_common(1)[0][0] if counts else (0, 0)

    def _folders(self) -> dict[str, str]:
        """Per split, its folder relative to the root, with a slash at its end; empty: the root."""
        train = f"{TRAIN}/" if (self.root / TRAIN).is_dir() else ""
        others = [f"{name}/" for name in HELDOUT if train and (self.root / name).is_dir()]
        return {"train": train, "heldout": others[0] if others else train}

    def _classes(self) -> tuple[str, ...]:
        """Sorted names of the class folders to train on."""
        folder = self.root / self._folders()["train"]
        return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and _shown(entry.name)))

    def _listed(self) -> dict[str, list[str]]:
        """Per split, the names of its files relative to the root, sorted.

        Raises:
            ValueError: class folders without files, or that only held-out pictures have; held-out ones alone.
        """
        folders, classes = self._folders(), set(self._classes())
        train, heldout = folders["train"], folders["heldout"]
        splits = sorted(filter(_like_a_split, classes))
        if not train and splits:
            raise ValueError(
                f"params.yaml, data.root: {self.root} has {splits} and no {TRAIN}/: {LAYOUT}. What is called like a "
                f"split is no class: rename the folders to {TRAIN}/ and val/, or, if they are classes, differently"
            )
        if train and (beside := self._beside()):
            raise ValueError(
                f"params.yaml, data.root: {self.root} has pictures in {', '.join(beside[:5])} beside {TRAIN}/, which "
                f"would not be used: move them, or, if they are to be held out, rename their folder to val/ (of "
                f"{', '.join(HELDOUT)} the first that is there is used); {LAYOUT}"
            )
        names = self._files(train)
        empty = sorted(classes - {_class(name, train) for name in names})
        if empty:
            raise ValueError(f"{self.root / train} has class folders without a file: {', '.join(empty[:5])}")
        if train == heldout:
            held = [name for name in names if _held_out(name, train)]
            return {"train": sorted(set(names) - set(held)), "heldout": held}
        others = self._files(heldout)
        foreign = sorted({_class(name, heldout) for name in others} - classes - {""})
        if foreign:
            raise ValueError(f"{self.root / heldout} has class folders that {train} lacks: {', '.join(foreign[:5])}")
        return {"train": names, "heldout": others}

    def _beside(self) -> list[str]:
        """Entries of the root, sorted, that are pictures or hold some and are not used; test/ may lie there.

        In a folder that is called like a split every file is meant to be a picture.
        """
        found, used = [], {TRAIN, self._folders()["heldout"].rstrip("/"), FOR_LATER}
        for entry in sorted(self.root.iterdir()):
            if not _shown(entry.name) or entry.name in used:
                continue
            files = self._files(f"{entry.name}/") if entry.is_dir() else [entry.name]
            meant = entry.is_dir() and _like_a_split(entry.name)
            if any(meant or Path(name).suffix.lower() in SUFFIXES for name in files):
                found.append(entry.name)
        return found

    def _files(self, folder: str) -> list[str]:
        """Names of the files under a folder, relative to the root, sorted.

        Raises:
            ValueError: a link that leads back to a folder on the way to it.
        """
        names, top = [], self.root / folder
        ways = {str(top): frozenset(map(_identity, (top, *top.resolve().parents)))}  # folders on the way to a place
        for place, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
            folders[:] = sorted(filter(_shown, folders))
            way = ways.pop(place)
            for path in (os.path.join(place, name) for name in folders):
                if _identity(path) in way:
                    raise ValueError(
                        f"params.yaml, data.root: {path} leads back to a folder that it lies in: remove the link"
                    )
                ways[path] = way | {_identity(path)}
            inside = Path(place).relative_to(self.root).as_posix()
            names += [name if inside == "." else f"{inside}/{name}" for name in files if _shown(name)]
        return sorted(names)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed is no empty folder."""
    raise error


def _identity(folder: str | Path) -> tuple[int, int]:
    """Device and number of a folder, the same by whatever links it is reached."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _digest(path: Path) -> bytes:
    """Sha256 of a file's bytes; of one that cannot be read nothing, as `Folder.survey` has it."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _unfit(look: Look, sides: tuple[int, int]) -> str:
    """Why a file cannot be used among pictures of some size; empty where it can."""
    if not look.reason and look.sides != sides:
        (height, width), (tall, wide) = look.sides, sides
        return f"{width}x{height} pixels, most have {wide}x{tall}: set data.side"
    return look.reason


def _class(name: str, folder: str) -> str:
    """Class folder of a name in a split's folder; empty where it lies in none."""
    head, slash, _ = name.removeprefix(folder).partition("/")
    return head if slash else ""


def _held_out(name: str, folder: str) -> bool:
    """Whether a name's hash holds a picture out; the name is taken relative to its split's folder."""
    digest = hashlib.sha256(os.fsencode(name.removeprefix(folder))).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0


def _together(listed: dict[str, list[str]]) -> list[str]:
    """Names of all splits, sorted."""
    return sorted(name for some in listed.values() for name in some)


def _shown(name: str) -> bool:
    return not name.startswith(".") and name != "lost+found"


def _like_a_split(name: str) -> bool:
    return name.lower().replace("-", "_") in LIKE_A_SPLIT


def _fingerprint(files: Iterable[tuple[str, bytes]]) -> str:
    """Sha256 over names and digests of files."""
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()
