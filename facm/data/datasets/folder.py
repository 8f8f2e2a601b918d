"""Any folder of images, or a zip of one: a subfolder per class, labels in dataset.json, or images without classes.

* `train/` with the images to train on, and `heldout/`, `val/` or `test/` (the first that is there) with those held out.
  Where none of the three is there, an image is held out if the hash of its name says so, one in HELDOUT_ONE_IN; where
  there is no `train/`, the folder itself has the images. Nothing is left out in silence: beside `train/` and what is
  held out no other folder of images may lie, nor images, but for a `test/` that is kept for later; without `train/` no
  class may be called like a split.
* Classes are the sorted names of the subfolders, as torchvision's ImageFolder counts them, compared as Unicode NFC. Two
  that differ by no more than Unicode form, letter case or spaces at their ends are refused.
* Where a split has EDM's dataset.json, `{"labels": [["00000/img00000000.png", 6], ...]}`, classes are its numbers, and
  folders are none; `{"labels": null}`: no classes.
* Names that are known to be no data (facm/data/images/files.py) are passed over and counted; every other file is meant
  to be an image.
* A file that is no usable image is named, with the reason, and refused beyond the fraction `data.max_bad`.

Images stay in their files. All of them are read, hashed and decoded once before the work, so that a damaged one is
found in time and the number of images is known.
"""

import hashlib
import json
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from facm.data.images.decode import Unreadable, highest, levels
from facm.data.images.files import Disk, Files, Place, Zip, in_threads
from facm.data.images.images import Images
from facm.data.images.survey import SPLITS, Survey, tell
from facm.runtime import dist
from facm.runtime.log import progress

TRAIN, HELDOUT, FOR_LATER = "train", ("heldout", "val", "test"), "test"
LIKE_A_SPLIT = {"train", "training", "val", "valid", "validation", "test", "testing", "heldout", "held_out"}
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
HELDOUT_ONE_IN = 20
TABLE = "dataset.json"  # EDM's labels
DIM = 64  # of 255: 16-bit images that stay below hold 14 bits or fewer
PART = 512  # files that a rank looks at before it hands over what it saw
LAYOUT = (
    f"there must be {TRAIN}/ and heldout/, val/ or test/, or pictures of which one in {HELDOUT_ONE_IN} is held out by "
    "the hash of its name; in class folders, or side by side without classes"
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a file showed."""

    digest: bytes  # sha256 of its bytes
    sides: tuple[int, int]  # (H, W) of the image as it is used
    reason: str = ""  # why it cannot be used; empty where it can
    highest: int | None = None  # level of 255, of images with 16 bits; None: others


@dataclass(frozen=True)
class Listed:
    """The files that are there, none of them read but for the tables of labels."""

    names: dict[str, list[str]]  # per split, sorted
    classes: tuple[str, ...]  # their names, in order; none: no classes
    of: dict[str, str]  # class by name, without those that lie beside the class folders
    tables: tuple[str, ...]  # names of the dataset.json that have the labels
    passed_over: dict[str, int]  # entries that are no data, by kind of name

    @property
    def all(self) -> list[str]:
        return sorted(name for some in self.names.values() for name in some)


class Folder:
    """The images under a folder, RGB, of one size."""

    def __init__(self, root: Path | None = None, *, size: int | None = None, max_bad: float = 0.0):
        """Open a folder or zip; ValueError where there is none, or a zip that cannot be read.

        Args:
            size: pixels per side after ADM's centre crop; None: images as they are, all of one size.
            max_bad: fraction of the files that may be unusable.
        """
        if root is None or not (root.is_dir() or (root.is_file() and zipfile.is_zipfile(root))):
            raise ValueError(
                f"params.yaml, data.root: 'folder' needs a folder of images, or a zip of one, there is none at {root}"
            )
        self.root, self.size, self.max_bad = root, size, max_bad
        self.place: Place = Disk(root) if root.is_dir() else Zip(root)
        self.surveyed: Survey | None = None

    def load(self, split: str) -> Images:
        """One split: images uint8 (N, H, W, 3), decoded when they are indexed; labels by class. Raises as `survey`."""
        survey = self.surveyed = self.surveyed or self.survey()
        images = Files.of(self.place, survey.names[split], survey.sides, self.size)
        labels = torch.tensor(survey.labels[split]) if survey.classes else None
        return Images(images, labels, len(survey.classes))

    def fingerprint(self) -> str:
        """Sha256 over the sorted names and the files' bytes; no file is decoded."""
        listed = self._listed()
        names = sorted([*listed.all, *listed.tables])
        digests = in_threads(self._digest, names)
        return _fingerprint(zip(names, progress(digests, len(names), "reading pictures"), strict=True))

    def survey(self, *, strict: bool = True) -> Survey:
        """Read, hash and decode every file; the ranks share them, and all must call it.

        Raises ValueError: (if `strict`) more unusable files than `max_bad` allows, a split without images, or another
        layout.
        """
        listed: Listed = dist.from_main(self._listed)
        names = listed.all
        parts = dist.batches(len(names), PART)

        def seen(number: int) -> list[Look]:
            return list(in_threads(self._look, names[parts[number].start : parts[number].stop]))

        mine = dist.share(len(parts))
        blocks = dist.in_order(map(seen, progress(mine, len(mine), "looking at pictures")), len(parts))
        looks = [look for block in blocks for look in block]
        return dist.from_main(lambda: self._judged(listed, dict(zip(names, looks, strict=True)), strict))

    def _judged(self, listed: Listed, looks: dict[str, Look], strict: bool) -> Survey:
        sides = self._sides(looks.values())
        bad = {}
        for some in listed.names.values():
            for name in some:
                beside = bool(listed.classes) and name not in listed.of
                reason = "lies beside the class folders" if beside else _unfit(looks[name], sides)
                if reason:
                    bad[name] = reason
        if strict and len(bad) > self.max_bad * len(looks):
            raise ValueError(
                f"params.yaml, data.max_bad: {len(bad)} of {len(looks)} files in {self.root} are no usable pictures, "
                f"allowed is a share of {self.max_bad:g}: {tell(bad)}. Mend or remove them, or raise data.max_bad: "
                "they are then left out, and listed in data/latents/meta.json"
            )
        kept = {split: tuple(name for name in listed.names[split] if name not in bad) for split in SPLITS}
        empty = [split for split, some in kept.items() if strict and not some]
        if empty:
            raise ValueError(f"params.yaml, data.root: {self.root} has no pictures for {', '.join(empty)}: {LAYOUT}")
        number = {name: i for i, name in enumerate(listed.classes)}
        labels = {split: tuple(number[listed.of[name]] for name in some) for split, some in kept.items() if number}
        bare = sorted(set(listed.classes) - {listed.of[name] for name in kept["train"] if number})
        if strict and bare:
            raise ValueError(
                f"params.yaml, data.root: no picture of class {', '.join(bare[:5])} is left to train on in "
                f"{self.root}: mend its files, or remove its folder"
            )
        digests = {name: look.digest for name, look in looks.items()}
        digests |= {name: self._digest(name) for name in listed.tables}
        warnings = _warnings(listed.passed_over, kept, looks)
        return Survey(_fingerprint(sorted(digests.items())), kept, listed.classes, sides, bad, labels, warnings)

    def _look(self, name: str) -> Look:
        try:
            content = self.place.read(name)
        except OSError as error:  # a link to nowhere, a file without rights
            return Look(b"", (0, 0), f"cannot be read ({error.strerror})")
        digest = hashlib.sha256(content).digest()
        try:
            height, width, _ = levels(content, self.size).shape
        except Unreadable as error:
            return Look(digest, (0, 0), str(error))
        return Look(digest, (height, width), "", highest(content))

    def _digest(self, name: str) -> bytes:
        """Sha256 of a file's bytes; of one that cannot be read nothing, as `survey` has it."""
        try:
            return hashlib.sha256(self.place.read(name)).digest()
        except OSError:
            return b""

    def _sides(self, looks: Iterable[Look]) -> tuple[int, int]:
        """(H, W) of all images; of most of them, where they are taken as they are."""
        if self.size is not None:
            return self.size, self.size
        counts = Counter(look.sides for look in looks if not look.reason)
        return counts.most_common(1)[0][0] if counts else (0, 0)

    def _listed(self) -> Listed:
        """The files of each split and their classes; ValueError for files left out, or that contradict the labels."""
        there, _ = self.place.entries()
        train = f"{TRAIN}/" if TRAIN in there else ""
        heldout = next((f"{name}/" for name in HELDOUT if train and name in there), train)
        if train and (beside := self._beside({train, heldout})):
            raise ValueError(
                f"params.yaml, data.root: {self.root} has pictures in {', '.join(beside[:5])} beside {TRAIN}/, which "
                f"would not be used: move them, or, if they are to be held out, rename their folder to val/ (of "
                f"{', '.join(HELDOUT)} the first that is there is used); {LAYOUT}"
            )
        files = {folder: self.place.files(folder) for folder in sorted({train, heldout})}
        tables = tuple(f"{folder}{TABLE}" for folder in files if f"{folder}{TABLE}" in files[folder])
        if tables:
            files = {folder: [name for name in some if name not in tables] for folder, some in files.items()}
            classes, of = self._labelled(files, tables, train)
        else:
            classes, of = self._class_folders(files, train)
        names = {"train": files[train], "heldout": files[heldout]}
        if train == heldout:
            held = {name for name in files[train] if _held_out(name, train)}
            names = {"train": [n for n in files[train] if n not in held], "heldout": sorted(held)}
        passed = Counter(map(_kind, self.place.passed_over))
        return Listed(names, classes, of, tables, dict(sorted(passed.items())))

    def _class_folders(self, files: dict[str, list[str]], train: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """Classes by the subfolders of each split, and the class of each file in one."""
        found = {folder: self.place.entries(folder)[0] for folder in files}
        splits = sorted(filter(_like_a_split, found[train]))
        for name in found[train]:
            inside = self.place.entries(f"{train}{name}/")[0]
            splits += [f"{name}/{TRAIN}"] if TRAIN in inside and set(HELDOUT) & set(inside) else []
        if not train and splits:
            raise ValueError(
                f"params.yaml, data.root: {self.root} has {splits} and no {TRAIN}/: {LAYOUT}. What is called like a "
                f"split is no class: rename the folders to {TRAIN}/ and val/, or, if they are classes, differently"
            )
        classes = {unicodedata.normalize("NFC", name) for name in found[train]}
        for folder, names in found.items():
            alike = _alike(names)
            if alike:
                raise ValueError(
                    f"params.yaml, data.root: {self.root / folder} has class folders whose names differ by no more "
                    f"than Unicode form, letter case or spaces at their ends: {alike}; merge them, or rename one"
                )
            foreign = sorted(name for name in names if unicodedata.normalize("NFC", name) not in classes)
            if foreign:
                near = _alike([*classes, *foreign])
                raise ValueError(
                    f"{self.root / folder} has class folders that {train} lacks: {', '.join(foreign[:5])}"
                    + (f"; these differ by letter case or spaces only: {near}" if near else "")
                )
        of = {
            name: unicodedata.normalize("NFC", parts[0])
            for folder, some in files.items()
            for name in some
            if (parts := name.removeprefix(folder).split("/"))[1:]
        }
        empty = sorted(classes - {of[name] for name in files[train] if name in of})
        if empty:
            raise ValueError(f"{self.root / train} has class folders without a file: {', '.join(empty[:5])}")
        return tuple(sorted(classes)), of

    def _labelled(
        self, files: dict[str, list[str]], tables: tuple[str, ...], train: str
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Classes by EDM's dataset.json, and the class of each file."""
        if len(tables) < len(files):
            raise ValueError(
                f"params.yaml, data.root: {self.root} has {tables[0]} for one split only: add that of the other, or "
                "remove it, and have class folders in both"
            )
        labels: dict[str, int] = {}
        without = []
        for folder in files:
            path = self.root / folder / TABLE
            try:
                found = _labels(path, self.place.read(f"{folder}{TABLE}"))
            except OSError as error:
                raise ValueError(f"{path} cannot be read ({error.strerror}): fetch it again") from None
            if found is None:
                without.append(folder)
                continue
            lost = [name for name in files[folder] if name.removeprefix(folder) not in found]
            gone = sorted(found.keys() - {name.removeprefix(folder) for name in files[folder]})
            for some, what in ((lost, "has no label of"), (gone, "has a label of, which is not there,")):
                if some:
                    raise ValueError(
                        f"{path} {what} {some[0]} (of {len(some)} files): restore the files that it was written with"
                    )
            labels |= {f"{folder}{name}": label for name, label in found.items()}
        if without and labels:
            raise ValueError(f"{self.root}: {TABLE} has labels for one split only: both must have them, or none")
        used = {labels[name] for name in files[train] if labels}
        unused = next((number for number in range(len(used)) if number not in used), None)
        foreign = sorted(set(labels.values()) - used)
        if unused is not None or foreign:
            missing = foreign[0] if unused is None else unused
            raise ValueError(
                f"{self.root / train / TABLE} gives no image the label {missing}, and others are greater, or held out: "
                "labels must be 0, 1, 2, ... without a gap"
            )
        return tuple(map(str, sorted(used))), {name: str(label) for name, label in labels.items()}

    def _beside(self, used: set[str]) -> list[str]:
        """Entries of the root, sorted, that are images or hold some and are not used; test/ may lie there.

        In a folder that is called like a split every file is meant to be an image.
        """
        folders, found = self.place.entries()
        found = [name for name in found if Path(name).suffix.lower() in SUFFIXES or name == TABLE]
        for name in folders:
            if f"{name}/" in used or name == FOR_LATER:
                continue
            files, meant = self.place.files(f"{name}/"), _like_a_split(name)
            if any(meant or Path(file).suffix.lower() in SUFFIXES for file in files):
                found.append(name)
        return sorted(found)


def _warnings(passed_over: dict[str, int], kept: dict[str, tuple[str, ...]], looks: dict[str, Look]) -> tuple[str, ...]:
    """What is usable and yet may not be meant, a sentence each."""
    found = []
    if passed_over:
        kinds = ", ".join(f"{kind} ({num})" for kind, num in passed_over.items())
        found.append(f"{sum(passed_over.values())} files or folders that are no data are passed over: {kinds}")
    deep = [look.highest for some in kept.values() for name in some if (look := looks[name]).highest is not None]
    dim = [level for level in deep if level is not None and level <= DIM]
    if dim:
        found.append(
            f"{len(dim)} of {len(deep)} images of 16 bits have no level above {max(dim)} of 255: where they hold data "
            "of 12 bits, or the like, scale it to the whole range"
        )
    trained = {looks[name].digest for name in kept["train"]}
    copied = sum(looks[name].digest in trained for name in kept["heldout"])
    if copied:
        found.append(
            f"{copied} of {len(kept['heldout'])} held-out images are in the training split, too (the same sha256): "
            "what is measured on them says nothing about new images"
        )
    return tuple(found)


def _labels(path: Path, content: bytes) -> dict[str, int] | None:
    """Labels by name, of EDM's dataset.json; None: it says that there are none; ValueError for something else."""
    try:
        pairs = json.loads(content)["labels"]
        if pairs is None:
            return None
        labels = {name.replace("\\", "/"): label for name, label in pairs}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        labels = {}
    if (
        not labels
        or len(labels) != len(pairs)
        or not all(type(label) is int and label >= 0 for label in labels.values())
    ):
        raise ValueError(
            f'{path} is no table of EDM\'s form, {{"labels": [["00000/img00000000.png", 6], ...]}} with each name once '
            "and class numbers from 0 on, or null: mend it, or, if it is something else, move it away"
        )
    return labels


def _alike(names: Iterable[str]) -> str:
    """Names of which one could be taken for another, in ASCII; empty where there are none."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().casefold())
        groups.setdefault(key, []).append(name)
    return ", ".join(ascii(name) for group in groups.values() if len(group) > 1 for name in group)


def _kind(name: str) -> str:
    """Of an entry that is no data, its name; of macOS's doubles what they have in common."""
    last = name.rpartition("/")[2]
    return "._*" if last.startswith("._") else last


def _unfit(look: Look, sides: tuple[int, int]) -> str:
    """Why a file cannot be used among images of some size; empty where it can."""
    if not look.reason and look.sides != sides:
        (height, width), (tall, wide) = look.sides, sides
        return f"{width}x{height} pixels, most have {wide}x{tall}: set data.side"
    return look.reason


def _held_out(name: str, folder: str) -> bool:
    """Whether a name's hash holds an image out; the name is taken relative to its split's folder."""
    digest = hashlib.sha256(_encoded(name.removeprefix(folder))).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _like_a_split(name: str) -> bool:
    return name.strip().lower().replace("-", "_") in LIKE_A_SPLIT


def _fingerprint(files: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(_encoded(name) + b"\0" + content)
    return digest.hexdigest()
