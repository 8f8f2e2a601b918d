"""Image files of many formats and modes, and folders of them."""

import hashlib
import io
import itertools
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import DEEP, as_json, edited, edits, plain, rewritings, rewritten
from PIL import Image, ImageOps

from facm.data.datasets.folder import Folder
from facm.data.images.decode import Unreadable, levels

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
GREY = RGB[..., 0]


def file(array: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """An image file's bytes."""
    out = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(out, kind, **options)
    return out.getvalue()


def exif() -> Image.Exif:
    """Turned by a quarter."""
    block = Image.Exif()
    block[274] = 6
    return block


ALPHA = np.dstack([RGB, GREY])
WIDE = (GREY.astype(np.uint16) * 257)[:, ::-1].copy()
FILES = {
    "PNG": [
        *(file(RGB, "PNG"), file(GREY, "PNG"), file(ALPHA, "PNG"), file(WIDE, "PNG"), file(RGB, "PNG", "P")),
        *(
            file(GREY, "PNG", "1"),
            file(RGB, "PNG", "P", transparency=3),
            file(RGB, "PNG", "LA"),
            file(RGB, "PNG", exif=exif()),
        ),
    ],
    "JPEG": [
        *(file(RGB, "JPEG"), file(GREY, "JPEG"), file(RGB, "JPEG", "CMYK"), file(RGB, "JPEG", progressive=True)),
        file(RGB, "JPEG", exif=exif()),
    ],
    "TIFF": [
        *(file(RGB, "TIFF"), file(GREY, "TIFF"), file(WIDE, "TIFF"), file(RGB, "TIFF", compression="tiff_lzw")),
        *(
            file(RGB, "TIFF", compression="tiff_deflate"),
            file(GREY, "TIFF", "1", compression="group4"),
            file(RGB, "TIFF", "CMYK"),
        ),
        *(file(GREY.astype(np.float32), "TIFF"), file(RGB, "TIFF", "P"), file(RGB, "TIFF", compression="packbits")),
    ],
    "BMP": [file(RGB, "BMP"), file(GREY, "BMP"), file(RGB, "BMP", "P"), file(GREY, "BMP", "1"), file(ALPHA, "BMP")],
    "GIF": [
        file(RGB, "GIF", "P"),
        file(GREY, "GIF"),
        file(RGB, "GIF", "P", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy()).convert("P")]),
    ],
    "WebP": [file(RGB, "WEBP"), file(RGB, "WEBP", lossless=True), file(ALPHA, "WEBP"), file(RGB, "WEBP", quality=10)],
}


def pillows(content: bytes) -> np.ndarray | None:
    """What Pillow alone makes of plain 8-bit images, (H, W, 3); None where it says nothing of other kinds' levels."""
    image = Image.open(io.BytesIO(content))
    packing = str(
        image.tile[0].args[0]
        if image.tile and isinstance(image.tile[0].args, tuple)
        else image.tile[0].args
        if image.tile
        else ""
    )
    white_is_zero = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262, 2) not in (1, 2)
    if (
        image.mode not in ("RGB", "L")
        or image.has_transparency_data
        or white_is_zero
        or packing not in ("RGB", "L", "BGR", "RGBX")
    ):
        return None
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("kind", FILES)
def test_image_files(kind: str, folder: Path) -> None:
    """What still decodes decodes as Pillow does; sides that are declared are those of the answer."""
    path = folder / f"image.{kind.lower()}"
    files = FILES[kind]
    warnings.simplefilter("ignore")

    def trial(drawn: Any) -> Callable[[], Any]:
        number, changes, size = drawn
        content = edited(files[number], changes)
        path.write_bytes(content)

        def read() -> None:
            try:
                found = levels(path.read_bytes(), size)
            except Unreadable as error:
                # The survey names the file in front of the reason.
                if isinstance(error, Unreadable) and not str(error).strip():
                    raise Wrong("no reason") from error
                raise ValueError(f"{path} cannot be used, it is no image: {error}") from None
            if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
                raise Wrong(f"{found.dtype} {found.shape}")
            if size is not None and found.shape[:2] != (size, size):
                raise Wrong(f"{found.shape} for size {size}")
            expected = pillows(content) if size is None else None
            if expected is not None and not np.array_equal(found, expected):
                raise Wrong("other levels than Pillow's")
            if content == files[number] and size is None and found.size not in (RGB.size,):
                raise Wrong("an intact file is misread")

        return lambda: refused_here(read)

    def refused_here(read: Callable[[], None]) -> None:
        """The reason stands beside the file's name, as in the survey: the error counts as the package's."""
        try:
            read()
        except ValueError as error:
            if not str(error).startswith(f"{path} cannot be used"):
                raise
            levels_refusal(path, error)

    size = st.sampled_from([None, None, None, 8, 5])
    inputs = st.integers(0, len(files) - 1).flatmap(
        lambda number: st.tuples(st.just(number), edits(len(files[number]), 3), size)
    )
    campaign(f"{kind} files", inputs, trial, 270, folder=folder, names=[path.name])


def levels_refusal(path: Path, error: ValueError) -> None:
    """Let the survey of a folder with that file alone say it."""
    Folder(path.parent, size=8).survey()


def entry() -> st.SearchStrategy[tuple[str, str]]:
    """Name and kind of something that lies in a folder."""
    part = st.sampled_from(
        [
            "train",
            "val",
            "test",
            "heldout",
            "a",
            "b",
            "A",
            "ä",
            "a\u0308",
            "a ",
            "@eaDir",
            "__MACOSX",
            "#recycle",
            ".thumbnails",
            ".ipynb_checkpoints",
            "lost+found",
            "1",
            "00000",
            "x" * 200,
            "new\nline",
            "\udce4",
            "Thumbs.db",
            "dataset.json",
            ".hidden",
        ]
    )
    name = st.one_of(
        part, st.sampled_from(["1.png", "2.png", "3.PNG", "4.jpg", "5", "é.png", "\udcff.png", "a\tb.png"])
    )
    kind = st.sampled_from(
        [
            "image",
            "image",
            "image",
            "image",
            "other size",
            "damaged",
            "empty",
            "text",
            "folder",
            "link to nowhere",
            "link up",
            "link to itself",
            "link to image",
            "fifo",
            "no rights",
            "endless",
        ]
    )
    return st.tuples(st.builds("/".join, st.lists(part, max_size=2)), name, kind).map(
        lambda e: (f"{e[0]}/{e[1]}", e[2])
    )


def lay(root: Path, tree: list[tuple[str, str]], good: bytes, other: bytes) -> list[Path]:
    """Make a tree; returns named pipes, which must be opened so that no reader waits for ever."""
    pipes = []
    for name, kind in tree:
        path = root / name.lstrip("/")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):
                continue
            if kind == "folder":
                path.mkdir()
            elif kind.startswith("link"):
                aims = {
                    "link to nowhere": "nowhere",
                    "link up": "..",
                    "link to itself": path.name,
                    "link to image": "/dev/null",
                }
                path.symlink_to(aims[kind])
            elif kind == "endless":
                path.symlink_to("/dev/zero")
            elif kind == "fifo":
                os.mkfifo(path)
                pipes.append(path)
            else:
                contents = {"image": good, "other size": other, "damaged": good[:40], "empty": b"", "text": b"hello"}
                path.write_bytes(contents.get(kind, good))
        except OSError:  # a file where a folder is meant, a link that leads nowhere
            continue
    return pipes


WHOLE = {
    "nothing": [],
    "classes": [f"train/{name}/{i}.png" for name in ("a", "b") for i in range(3)] + ["val/a/1.png", "val/b/2.png"],
    "no classes": [*(f"train/{i}.png" for i in range(3)), "heldout/1.png"],
    "one folder": [f"{i}.png" for i in range(40)],
    "class folders alone": [f"{name}/{i}.png" for name in ("a", "b") for i in range(25)],
}
"""Layouts without a fault, in which odd entries lie."""


def surveyed(root: Path, size: int | None, max_bad: float) -> int:
    """Look through a folder as the stage does, every name that it gives decodes; returns how many it gives."""
    dataset = Folder(root, size=size, max_bad=max_bad)
    dataset.fingerprint()
    survey = dataset.survey()
    named = [name for names in survey.names.values() for name in names]
    if len(set(named)) != len(named) or set(named) & set(survey.skipped):
        raise Wrong("an image twice")
    for split in survey.names:
        images = dataset.load(split)
        if not len(images) or (
            images.labels is not None
            and not 0 <= int(images.labels.min()) <= int(images.labels.max()) < images.num_classes
        ):
            raise Wrong(f"labels of {split}")
        images.images[:]
    return len(named)


@pytest.mark.parametrize("special", [False, True])
def test_image_folders(special: bool, folder: Path) -> None:
    """`special`: with named pipes and devices, which never end."""
    good, other, root = file(RGB, "PNG"), file(RGB[:8, :8].copy(), "PNG"), folder / "images"

    def trial(drawn: Any) -> Callable[[], Any]:
        whole, tree, size, max_bad, labels = drawn
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        tree = [(name, "image") for name in WHOLE[whole]] + tree
        pipes = lay(
            root, [(name, kind) for name, kind in tree if special or kind not in ("fifo", "endless")], good, other
        )
        if labels is not None and isinstance(labels, bytes):
            place = root / "dataset.json"
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
            place.write_bytes(labels)

        def read() -> None:
            try:
                num = surveyed(root, size, max_bad)
                if len(tree) == len(WHOLE[whole]) and num != len(tree) and labels is None:
                    raise Wrong(f"{num} images of {len(tree)} in a folder without a fault")
            finally:
                for pipe in pipes:
                    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

        return read

    named = st.lists(st.tuples(st.sampled_from(["1.png", "00000/img.png", "x"]), plain()), max_size=3)
    labels = st.one_of(
        st.none(),
        st.none(),
        st.none(),
        st.sampled_from(DEEP),
        st.builds(lambda v: as_json({"labels": v}), named | plain()),
    )
    inputs = st.tuples(
        st.sampled_from(sorted(WHOLE)),
        st.lists(entry(), max_size=4),
        st.sampled_from([None, 8]),
        st.sampled_from([0.0, 0.5, 1.0]),
        labels,
    )
    campaign(
        "special files" if special else "image folders",
        inputs,
        trial,
        120 if special else 550,
        folder=folder,
        names=[str(root)],
    )


def held_out(name: str) -> bool:
    """Whether a folder without splits holds an image out (docs/dataset.md)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 20 == 0


def names_of(folder: str) -> list[str]:
    """Five images as EDM's dataset_tool.py names them; without a split's folder one of them is held out."""
    named = (f"00000/img{number:08d}.png" for number in itertools.count())
    found = list(itertools.islice(named, 4))
    return [*found, next(name for name in named if folder or held_out(name))]


PLACES = {"one folder": [""], "splits": ["train/", "val/"]}
EDM: dict[str, dict[str, list[str]]] = {which: {p: names_of(p) for p in places} for which, places in PLACES.items()}
"""Names by split's folder."""
PNGS = [file(np.roll(RGB, number, 1), "PNG") for number in range(10)]


def labelled(root: Path, expected: dict[str, np.ndarray], tables: dict[str, bytes]) -> None:
    """Look through a data set of EDM's layout as the stage does; what is read must be what dataset.json says."""
    dataset = Folder(root)
    dataset.fingerprint()
    survey = dataset.survey()
    given: dict[str, Any] = {}
    for folder, table in tables.items():
        found = json.loads(table)["labels"]
        given |= {f"{folder}{name.replace(chr(92), '/')}": label for name, label in found} if found else {}
    named = [name for some in survey.names.values() for name in some]
    if sorted(named) != sorted(expected):
        raise Wrong(f"{len(named)} images of {len(expected)}")
    for split, names in survey.names.items():
        images = dataset.load(split)
        if not np.array_equal(images.images[:].numpy(), np.stack([expected[name] for name in names])):
            raise Wrong("other images")
        if given and (images.labels is None or images.labels.tolist() != [given[name] for name in names]):
            raise Wrong(f"other labels of {split} than those of dataset.json")
        if not given and images.num_classes:
            raise Wrong("classes without labels")


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("which", EDM)
def test_edms_folders_and_zips(which: str, kind: str, folder: Path) -> None:
    """dataset.json of other values and of other bytes; a zip's own bytes."""
    root = folder / ("images" if kind == "folder" else "images.zip")
    layout = EDM[which]
    pngs = dict(zip([place + name for place, some in layout.items() for name in some], PNGS, strict=False))
    expected = {name: np.asarray(Image.open(io.BytesIO(content))) for name, content in pngs.items()}
    whole = {place: {"labels": [[name, i % 2] for i, name in enumerate(some)]} for place, some in layout.items()}

    def laid(tables: dict[str, bytes]) -> None:
        contents = pngs | {f"{place}dataset.json": table for place, table in tables.items()}
        if kind == "zip":
            with zipfile.ZipFile(root, "w") as archive:
                for name, content in contents.items():
                    archive.writestr(name, content)
            return
        for name, content in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".json") or not (root / name).exists():
                (root / name).write_bytes(content)

    plain_tables = {place: as_json(table) for place, table in whole.items()}
    laid(plain_tables)
    labelled(root, expected, plain_tables)
    content = root.read_bytes() if kind == "zip" else b""

    def trial(drawn: Any) -> Callable[[], Any]:
        how, number, changes = drawn
        tables = dict(plain_tables)
        place = sorted(tables)[number % len(tables)]
        if how == "zip":
            root.write_bytes(edited(content, changes))
            return lambda: labelled(root, expected, tables)
        for one in tables if how == "both" else [place]:
            if how == "bytes":
                tables[one] = changes if isinstance(changes, bytes) else edited(plain_tables[one], changes)
            else:
                tables[one] = as_json(rewritten(whole[one], changes))
        laid(tables)
        return lambda: labelled(root, expected, tables)

    values = st.tuples(st.sampled_from(["values", "both"]), st.integers(0, 1), st.one_of(rewritings(1), rewritings()))
    size = min(map(len, plain_tables.values()))
    damaged = st.tuples(st.just("bytes"), st.integers(0, 1), st.one_of(edits(size), edits(size), st.sampled_from(DEEP)))
    zipped = st.tuples(st.just("zip"), st.just(0), edits(len(content)))
    inputs = st.one_of(values, damaged, zipped, zipped) if kind == "zip" else st.one_of(values, damaged)
    campaign(f"EDM {kind}", inputs, trial, 300, folder=folder, names=[str(root)])
