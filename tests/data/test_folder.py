"""Folders of pictures: splits, classes, fingerprints, and that no file vanishes unmentioned; CIFAR-10's own files."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import write_params
from picture_files import encoded, fill, jpeg
from PIL import Image

from facm.data import __main__, datasets
from facm.data.images import decode
from facm.data.images.files import Files
from facm.data.images.images import Images
from facm.metrics.trivial_baselines import Ends
from facm.runtime import params
from stages import latents


def admitted(root: Path, **changes) -> datasets.Admitted:
    """The folder as the stages take it."""
    block = {"name": "folder", "root": str(root), "fingerprint": None, "side": None, "max_bad": 0.0}
    return datasets.admit(params.Data(**(block | changes)))


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """train/ and val/ with classes a and b, 24 x 24 pixels."""
    for split, num in (("train", 4), ("val", 2)):
        fill(tmp_path / split / "b", num)
        fill(tmp_path / split / "a", num + 1, first=50)
    (tmp_path / "train" / ".DS_Store").write_bytes(b"not meant")
    return tmp_path


def test_class_folders_are_labels_and_val_is_held_out(classes: Path) -> None:
    found = admitted(classes)
    train, heldout = found.load("train"), found.load("heldout")
    assert train.images.shape == (9, 24, 24, 3) and train.num_classes == 2 and train.kind == "pictures"
    assert train.labels is not None and train.labels.tolist() == [0] * 5 + [1] * 4
    assert heldout.labels is not None and heldout.labels.tolist() == [0] * 3 + [1] * 2
    expected = [decode.levels(path.read_bytes(), None) for path in sorted(classes.glob("train/*/*.jpg"))]
    assert np.array_equal(train.images[:].numpy(), np.stack(expected))


def test_pictures_in_files_are_indexed_as_a_tensor(classes: Path) -> None:
    images = admitted(classes, side=16).load("train").images
    assert isinstance(images, Files) and images.dtype == torch.uint8 and len(images) == 9
    whole = images[:]
    for rows in (slice(2, 5), slice(7, 99), slice(4, 4), torch.tensor([8, 0, 3]), torch.arange(9) % 2 == 1):
        assert torch.equal(images[rows], whole[rows])


def test_flat_pictures_have_no_classes_and_one_in_twenty_is_held_out_by_its_name(tmp_path: Path) -> None:
    fill(tmp_path, 100, side=4)
    found = admitted(tmp_path)
    train, heldout = found.load("train"), found.load("heldout")
    assert train.num_classes == 0 and train.labels is None
    names = {split: set(found.dataset.surveyed.names[split]) for split in datasets.SPLITS}
    assert names["train"] | names["heldout"] == {f"{i:03d}.jpg" for i in range(100)}
    assert not names["train"] & names["heldout"] and 1 <= len(heldout) <= 12
    by_hash = {
        n for n in names["train"] | names["heldout"] if int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) % 20 == 0
    }
    assert names["heldout"] == by_hash
    fill(tmp_path, 1, side=4, first=200)
    assert set(admitted(tmp_path).dataset.surveyed.names["heldout"]) - {"200.jpg"} == by_hash, (
        "others stay where they are"
    )


def test_the_fingerprint_is_over_names_and_bytes_and_the_same_without_decoding(classes: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(classes.glob("*/*/*.jpg"), key=lambda path: str(path.relative_to(classes))):
        digest.update(str(path.relative_to(classes)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    before = datasets.fingerprint("folder", classes)
    assert before == digest.hexdigest() == admitted(classes, side=8).fingerprint
    (classes / "train/a/050.jpg").rename(classes / "train/a/049.jpg")
    renamed = datasets.fingerprint("folder", classes)
    (classes / "train/a/049.jpg").write_bytes(jpeg(7))
    assert len({before, renamed, datasets.fingerprint("folder", classes)}) == 3
    with pytest.raises(ValueError, match="params.yaml, data.fingerprint: pinned is"):
        admitted(classes, fingerprint=before)


def test_damaged_and_odd_files_are_refused_by_name_with_reasons(classes: Path) -> None:
    (classes / "train/a/zero.jpg").touch()
    (classes / "train/b/half.jpg").write_bytes(jpeg(side=24)[:400])
    (classes / "train/b/dot.png").write_bytes(encoded(Image.new("RGB", (1, 1))))
    (classes / "val/b/large.jpg").write_bytes(jpeg(side=30))
    (classes / "train/notes.txt").write_text("beside")
    with pytest.raises(ValueError, match=r"data.max_bad: 5 of 19 files in .* are no usable pictures") as refused:
        admitted(classes)
    for told in (
        "train/a/zero.jpg (zero bytes)",
        "train/b/half.jpg (",
        "train/b/dot.png (1x1 pixels)",
        "val/b/large.jpg (30x30 pixels, most have 24x24: set data.side)",
        "train/notes.txt (lies beside the class folders)",
        "Mend or remove them, or raise data.max_bad",
    ):
        assert told in str(refused.value)
    with pytest.raises(ValueError, match="4 of 19"):
        admitted(classes, side=16)
    found = admitted(classes, max_bad=0.3)
    assert len(found.skipped) == 5 and len(found.load("train")) == 9 and len(found.load("heldout")) == 5
    assert len(admitted(classes, max_bad=4 / 19, side=16).load("heldout")) == 6


def test_the_share_of_bad_files_is_a_limit_and_not_a_hint(classes: Path) -> None:
    (classes / "train/a/zero.jpg").touch()
    assert len(admitted(classes, max_bad=1 / 15).load("train")) == 9
    with pytest.raises(ValueError, match="1 of 15 files"):
        admitted(classes, max_bad=0.99 / 15)


def test_skipped_files_stand_in_meta_json_and_latents_are_those_of_the_others(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    here = tmp_path / "repository"
    here.mkdir()
    monkeypatch.chdir(here)
    (classes / "train/a/055.jpg").write_bytes(b"?")
    write_params(here, data__name="folder", data__root=str(classes), data__max_bad=0.1, data__side=8)
    latents.main()
    meta = json.loads(Path("data/latents/meta.json").read_text())
    assert meta["skipped"] == {"train/a/055.jpg": "not a picture that Pillow can read"}
    assert (meta["num"], meta["shape"], meta["num_classes"]) == (9, [3, 8, 8], 2)
    assert "1 files of data.root are left out" in capsys.readouterr().out
    assert list(Path(".work").iterdir()) == [] and "codec_options" not in meta


def test_a_file_that_changes_while_a_stage_runs_is_told(classes: Path) -> None:
    images = admitted(classes).load("train").images
    (classes / "train/a/051.jpg").write_bytes(jpeg(3, side=20))
    (classes / "train/a/052.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"051.jpg was changed while the stage ran"):
        images[1:2]
    with pytest.raises(ValueError, match=r"052.jpg was damaged while the stage ran \(zero bytes\): run it again"):
        images[2:3]


LAYOUTS = [
    ({"train/a": 2, "val/a": 1, "val/c": 1}, r"val has class folders that train/ lacks: c"),
    (
        {"train/a": 2, "validation/a": 1},
        r"has pictures in validation beside train/, which would not be used: move them",
    ),
    ({"train/a": 2, "val/a": 1, "extra/deep/er": 1}, r"has pictures in extra beside train/"),
    ({"train/a": 2, "val/a": 1, "": 1}, r"has pictures in 000.jpg beside train/"),
    ({"train/a": 2, "val/a": 1, "heldout/a": 1}, r"has pictures in val beside train/"),
    ({"train/a": 2, "val/a": 1, "Val/a": 1}, r"has pictures in Val beside train/.*rename their folder to val/"),
    ({"a": 2, "b": 2, "held-out": 1}, r"has \['held-out'\] and no train/.*rename the folders to train/ and val/"),
    ({"training/a": 2, "validation/a": 1}, r"has \['training', 'validation'\] and no train/: there must be train/"),
    ({"Train/a": 2, "Val/a": 1}, r"has \['Train', 'Val'\] and no train/"),
    ({"train/a": 2, "train/c": 0, "val/a": 1}, r"class folders without a file: c"),
    ({"val/a": 2}, r"has \['val'\] and no train/: there must be train/ and heldout/, val/ or test/"),
    ({"train": 3, "val": 0}, r"has no pictures for heldout: there must be"),
    ({"train/a": 3, "val": 2}, r"2 of 5 files in .*val/000.jpg \(lies beside the class folders\)"),
    ({"a": 1}, r"has no pictures for heldout"),
]


@pytest.mark.parametrize(("folders", "message"), LAYOUTS, ids=[str(folders) for folders, _ in LAYOUTS])
def test_another_layout_is_refused(folders: dict[str, int], message: str, tmp_path: Path) -> None:
    for name, num in folders.items():
        fill(tmp_path / name, num, side=4)
    with pytest.raises(ValueError, match=message):
        admitted(tmp_path)


def test_what_is_no_picture_may_lie_beside_the_splits(classes: Path) -> None:
    (classes / "README.txt").write_text("of whom, where from")
    (classes / "devkit").mkdir()
    (classes / "devkit/meta.mat").write_bytes(b"?")
    fill(classes / "test/a", 1, side=24)
    (classes / "lost+found").mkdir()
    (classes / "lost+found/7.jpg").write_bytes(jpeg(7))
    assert len(admitted(classes).load("heldout")) == 5, "val/, the first of both"
    (classes / "validation").mkdir()
    (classes / "validation/of_no_suffix").write_bytes(jpeg(7))
    with pytest.raises(ValueError, match="has pictures in validation beside train/"):
        admitted(classes)


def test_a_folder_that_links_to_itself_is_refused_and_a_link_to_nowhere_hashed(classes: Path) -> None:
    (classes / "train/a/gone.jpg").symlink_to(classes / "nowhere")
    assert datasets.fingerprint("folder", classes) == admitted(classes, max_bad=1 / 15).fingerprint
    (classes / "train/a/again").symlink_to(classes / "train")
    with pytest.raises(ValueError, match="train/a/again leads back to a folder that it lies in: remove the link"):
        admitted(classes, max_bad=0.5)


def test_links_that_lead_back_by_way_of_each_other_are_refused_and_a_folder_twice_is_not(classes: Path) -> None:
    elsewhere = classes / ".elsewhere/deep"
    fill(elsewhere, 2)
    for name in ("a", "b"):
        (classes / "train" / name / "more").symlink_to(elsewhere)
    assert len(admitted(classes).load("train")) == 13
    (elsewhere / "up").symlink_to("..")
    with pytest.raises(ValueError, match="train/a/more/up/deep leads back to a folder that it lies in"):
        admitted(classes)
    (elsewhere / "up").unlink()
    (elsewhere / "across").symlink_to(classes / "train/a")
    with pytest.raises(ValueError, match="train/a/more/across leads back to a folder that it lies in"):
        admitted(classes)


def test_no_folder_and_needless_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="data.root: 'folder' needs a folder of images, or a zip of one, there is none at .*gone"
    ):
        admitted(tmp_path / "gone")
    with pytest.raises(ValueError, match="data.side: 'digits' comes in its own size, got 8; set it to null"):
        datasets.load("digits", None, "train", size=8)


@pytest.mark.skipif(sys.platform == "darwin", reason="names are text there")
def test_names_that_are_no_text_and_nested_folders_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fill(tmp_path / "train/a/deep/er", 2)
    fill(tmp_path / "val/a", 1)
    odd = os.fsencode(tmp_path / "train/a") + b"/\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes(jpeg(5))
    assert len(admitted(tmp_path).load("train")) == 3
    Path(os.fsdecode(odd)).write_bytes(b"")
    assert len(admitted(tmp_path, max_bad=0.5).load("train")) == 2
    assert r"train/a/\udcff.jpg (zero bytes)" in capsys.readouterr().out


def test_the_command_names_what_cannot_be_used(
    classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (classes / "train/a/zero.jpg").touch()
    monkeypatch.setattr(
        "sys.argv", ["facm.data.datasets", "--name", "folder", "--root", str(classes), "--look", "--side", "8"]
    )
    __main__.main()
    line, *told = capsys.readouterr().out.splitlines()[-5:]
    assert line == f"data.fingerprint: {datasets.fingerprint('folder', classes)}"
    assert told[0] == "14 usable pictures of 8x8 pixels, 2 classes: 0 a, 1 b"
    assert told[-1] == "train/a/zero.jpg (zero bytes)"


def test_classes_are_told_with_their_numbers() -> None:
    assert __main__.classes(["cat", "dog"]) == "2 classes: 0 cat, 1 dog"
    assert __main__.classes([f"n{i}" for i in range(1000)]).endswith("17 n17, 18 n18, ..., 999 n999")
    assert __main__.classes(["0", "1", "2"]) == "3 classes: 0..2"
    assert (
        __main__.classes([])
        == "no classes: reference.features must be inception, the small feature networks learn classes"
    )


def test_the_ends_of_the_scale_are_the_same_from_files_and_from_memory(classes: Path) -> None:
    files = admitted(classes).load("train")
    memory = Images(files.images[:], files.labels, files.num_classes)
    ends, expected = Ends.of(files), Ends.of(memory)
    assert torch.equal(ends.mean_pictures(5)[:], expected.mean_pictures(5)[:])
    assert torch.equal(ends.noise_pictures(5, 0)[:], expected.noise_pictures(5, 0)[:])
    assert torch.equal(Ends.of(files.unlabelled()).means, Ends.of(memory.unlabelled()).means)


# EDM's layout: dataset.json, folder and zip


def edm(folder: Path, labels: list[int] | None, first: int = 0) -> None:
    """What EDM's dataset_tool.py writes: numbered PNGs in numbered folders, and dataset.json with the labels."""
    names = []
    for i in range(first, first + (60 if labels is None else len(labels))):
        names.append(f"{i // 32:05d}/img{i:08d}.png")
        (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        (folder / names[-1]).write_bytes(encoded(Image.fromarray(decode.levels(jpeg(i, 4), None))))
    pairs = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))


def zipped(folder: Path) -> Path:
    """The folder as EDM's dataset_tool.py zips it: stored, without entries for folders."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_STORED) as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.write(path, path.relative_to(folder).as_posix())
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("pack", [Path, zipped])
def test_dataset_json_has_the_labels_and_its_folders_are_no_classes(tmp_path: Path, pack) -> None:
    labels = [i * 7 % 3 for i in range(60)]
    edm(tmp_path / "edm", labels)
    found = admitted(pack(tmp_path / "edm"))
    survey, seen = found.dataset.surveyed, 0
    assert survey.classes == ("0", "1", "2") and survey.skipped == {}
    for split in datasets.SPLITS:
        images = found.load(split)
        numbers = [int(Path(name).stem.removeprefix("img")) for name in survey.names[split]]
        assert images.labels is not None and images.labels.tolist() == [labels[i] for i in numbers]
        expected = [decode.levels(jpeg(i, 4), None) for i in numbers]
        assert np.array_equal(images.images[:].numpy(), np.stack(expected))
        seen += len(images)
    assert seen == 60


def test_a_zip_has_the_fingerprint_of_its_folder_in_which_labels_count(tmp_path: Path) -> None:
    labels = [i % 2 for i in range(60)]
    edm(tmp_path / "edm", labels)
    first = datasets.fingerprint("folder", tmp_path / "edm")
    packed = zipped(tmp_path / "edm")
    assert (
        first
        == datasets.fingerprint("folder", packed)
        == admitted(packed).fingerprint
        == admitted(packed, side=8).fingerprint
    )
    edm(tmp_path / "edm", [1 - label for label in labels])
    assert (
        len(
            {
                first,
                datasets.fingerprint("folder", tmp_path / "edm"),
                datasets.fingerprint("folder", zipped(tmp_path / "edm")),
            }
        )
        == 2
    )


@pytest.mark.parametrize("pack", [Path, zipped])
def test_labels_null_means_no_classes(tmp_path: Path, pack) -> None:
    edm(tmp_path / "edm", None)
    found = admitted(pack(tmp_path / "edm"))
    train = found.load("train")
    assert (train.num_classes, train.labels) == (0, None) and len(train) + len(found.load("heldout")) == 60


@pytest.mark.parametrize("pack", [Path, zipped])
def test_each_split_may_have_its_dataset_json(tmp_path: Path, pack) -> None:
    edm(tmp_path / "edm/train", [0, 1, 1])
    edm(tmp_path / "edm/val", [1, 0], first=50)
    found = admitted(pack(tmp_path / "edm"))
    labels = [found.load(split).labels for split in datasets.SPLITS]
    assert [some.tolist() for some in labels if some is not None] == [[0, 1, 1], [1, 0]]
    edm(tmp_path / "edm/val", [1, 2], first=50)
    with pytest.raises(ValueError, match="gives no image the label 2"):
        admitted(pack(tmp_path / "edm"))
    (tmp_path / "edm/val/dataset.json").unlink()
    with pytest.raises(ValueError, match="has train/dataset.json for one split only"):
        admitted(pack(tmp_path / "edm"))
    (tmp_path / "edm/dataset.json").write_text('{"labels": null}')
    with pytest.raises(ValueError, match="has pictures in dataset.json beside train/"):
        admitted(pack(tmp_path / "edm"))


TABLES = {
    "no JSON": ("{", "is no table of EDM's form"),
    "no labels": ('{"classes": 3}', "is no table of EDM's form"),
    "vectors": ('{"labels": [["00000/img00000000.png", [0.0, 1.0]]]}', "is no table of EDM's form"),
    "text": ('{"labels": [["00000/img00000000.png", "cat"]]}', "is no table of EDM's form"),
    "yes or no": ('{"labels": [["00000/img00000000.png", true]]}', "is no table of EDM's form"),
    "negative": ('{"labels": [["00000/img00000000.png", -1]]}', "is no table of EDM's form"),
    "none": ('{"labels": []}', "is no table of EDM's form"),
    "a mapping": ('{"labels": {"00000/img00000000.png": 1}}', "is no table of EDM's form"),
    "twice": ('{"labels": [["a.png", 0], ["a.png", 1]]}', "with each name once"),
    "too few": ('{"labels": [["00000/img00000000.png", 0]]}', r"has no label of 00000/img00000001.png \(of 2 files\)"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_labels_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    edm(tmp_path, [0, 1, 0])
    text, message = TABLES[name]
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        admitted(tmp_path)


def test_labels_of_lost_images_and_numbers_with_a_gap_are_refused(tmp_path: Path) -> None:
    edm(tmp_path, [0, 1, 3])
    with pytest.raises(ValueError, match="dataset.json gives no image the label 2"):
        admitted(tmp_path)
    edm(tmp_path, [0, 1, 0])
    (tmp_path / "00000/img00000001.png").unlink()
    with pytest.raises(ValueError, match=r"has a label of, which is not there, 00000/img00000001.png \(of 1 files\)"):
        admitted(tmp_path)


def test_zips_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_text("no zip")
    with pytest.raises(ValueError, match="needs a folder of images, or a zip of one, there is none at .*no.zip"):
        admitted(tmp_path / "no.zip")
    edm(tmp_path / "edm", [0, 1, 0])
    content = zipped(tmp_path / "edm").read_bytes()
    place = content.index(b"IDAT") + 6
    (tmp_path / "bad.zip").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match=r"img00000000.png \(cannot be read \(Bad CRC-32 for file"):
        admitted(tmp_path / "bad.zip")
    place = content.index(b'{"labels"')
    (tmp_path / "table.zip").write_bytes(content[:place] + b"[" + content[place + 1 :])
    with pytest.raises(ValueError, match=r"table.zip/dataset.json cannot be read \(Bad CRC-32 .*: fetch it again"):
        admitted(tmp_path / "table.zip")
    (tmp_path / "half.zip").write_bytes(content[len(content) // 2 :])
    with pytest.raises(ValueError, match="half.zip"):
        admitted(tmp_path / "half.zip")
    for name in ("../a.png", "/a.png", "a//b.png"):
        with zipfile.ZipFile(tmp_path / "out.zip", "w") as file:
            file.writestr(name, jpeg())
        with pytest.raises(ValueError, match="out.zip has .* twice, or outside itself"):
            admitted(tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a.png", jpeg())
        file.writestr("a.png", jpeg(1))
    with pytest.raises(ValueError, match="twice.zip has 'a.png' twice"):
        admitted(tmp_path / "twice.zip")


# Folders that are no classes


NO_DATA = (
    "@eaDir",
    ".ipynb_checkpoints",
    "__MACOSX",
    "#recycle",
    ".thumbnails",
    "$RECYCLE.BIN",
    "lost+found",
    "@Recycle",
)
FILES = ("Thumbs.db", "desktop.ini", ".DS_Store", "._000.jpg", "._001.jpg")


@pytest.mark.parametrize("pack", [Path, zipped])
def test_what_services_leave_behind_is_no_class_no_image_and_is_counted(tmp_path: Path, pack) -> None:
    root = tmp_path / "mine"
    for split in ("train", "val"):
        fill(root / split / "a", 3, first=9 * (split == "val"))
    before = admitted(pack(root)).fingerprint
    for folder in NO_DATA:
        fill(root / "train" / folder / "deep", 2, side=8)
    fill(root / "val/a/@eaDir/000.jpg", 1)
    fill(root / "System Volume Information", 1)
    for name in FILES:
        (root / "train/a" / name).write_bytes(b"?")
    found = admitted(pack(root))
    survey = found.dataset.surveyed
    assert survey.classes == ("a",) and (len(found.load("train")), len(found.load("heldout"))) == (3, 3)
    assert found.fingerprint == before, "they are no part of the data"
    (told,) = survey.warnings
    assert told.startswith("15 files or folders that are no data are passed over: ")
    assert "@eaDir (2)" in told and "._* (2)" in told and "System Volume Information (1)" in told


@pytest.mark.parametrize("pack", [Path, zipped])
def test_a_folder_a_level_too_high_is_no_class(tmp_path: Path, pack) -> None:
    for split in ("train", "val"):
        fill(tmp_path / "root/mine" / split / "a", 2)
    with pytest.raises(ValueError, match=r"has \['mine/train'\] and no train/"):
        admitted(pack(tmp_path / "root"))


COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"


@pytest.mark.skipif(sys.platform == "darwin", reason="both forms are one name there")
def test_class_names_are_compared_as_nfc(tmp_path: Path) -> None:
    for split, form, other in (("train", COMPOSED, "Zoo"), ("val", DECOMPOSED, "Zoo")):
        fill(tmp_path / split / form, 2, first=9 * (split == "val"))
        fill(tmp_path / split / other, 1, first=20 + 9 * (split == "val"))
    found = admitted(tmp_path)
    assert found.dataset.surveyed.classes == (COMPOSED, "Zoo") and found.dataset.surveyed.warnings == ()
    heldout = found.load("heldout").labels
    assert heldout is not None and heldout.tolist() == [0, 0, 1]


@pytest.mark.skipif(sys.platform == "darwin", reason="such names are one there")
@pytest.mark.parametrize(
    "pair",
    [(COMPOSED, DECOMPOSED), ("cat", "Cat"), ("cat", "cat "), (" cat", "CAT"), ("stra\u00dfe", "STRASSE")],
    ids=ascii,
)
@pytest.mark.parametrize("pack", [Path, zipped])
def test_class_names_that_differ_by_form_space_or_case_only_are_refused(tmp_path: Path, pack, pair) -> None:
    root = tmp_path / "root"
    for number, name in enumerate(pair):
        fill(root / "train" / name, 2, first=10 * number)
    fill(root / "val" / pair[0], 1, first=50)
    with pytest.raises(
        ValueError, match="whose names differ by no more than Unicode form, letter case or spaces"
    ) as told:
        admitted(pack(root))
    assert all(ascii(name) in str(told.value) for name in pair)


def test_a_held_out_class_that_differs_by_case_is_refused_with_both_names(tmp_path: Path) -> None:
    fill(tmp_path / "train/cat", 2)
    fill(tmp_path / "val/Cat", 1)
    with pytest.raises(ValueError, match=r"lacks: Cat; these differ by letter case or spaces only: 'Cat', 'cat'"):
        admitted(tmp_path)


# What is usable and yet may not be meant


@pytest.fixture
def doubtful(tmp_path: Path) -> Path:
    """Two of three held-out images are copies; of four 16-bit images two are 12-bit data."""
    for split, tops in (("train", (4095, 4000, 65535, 30000)), ("val", (4095, 65535, 60000))):
        (tmp_path / split / "a").mkdir(parents=True)
        for number, top in enumerate(tops):
            pixels = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
            (tmp_path / split / "a" / f"{split}{number}.png").write_bytes(encoded(Image.fromarray(pixels)))
    fill(tmp_path / "train/a", 1, side=8)
    return tmp_path


DOUBTS = (
    "warning: data.root: 3 of 7 images of 16 bits have no level above 16 of 255: where they hold data of 12 bits",
    "warning: data.root: 2 of 3 held-out images are in the training split, too (the same sha256)",
)


def test_copies_and_12_bit_data_are_reported_by_look(doubtful: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["facm.data.datasets", "--name", "folder", "--root", str(doubtful), "--look"])
    __main__.main()
    told = capsys.readouterr().out
    assert all(doubt.replace("data.root: ", "") in told for doubt in DOUBTS)


def test_copies_and_12_bit_data_are_reported_by_the_stage_latents(
    doubtful: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    here = tmp_path / ".repository"
    here.mkdir()
    monkeypatch.chdir(here)
    write_params(here, data__name="folder", data__root=str(doubtful))
    latents.main()
    told = capsys.readouterr().out
    assert all(doubt in told for doubt in DOUBTS)


def test_sound_data_give_no_warning(tmp_path: Path) -> None:
    fill(tmp_path / "train/a", 3)
    fill(tmp_path / "val/a", 2, first=10)
    assert admitted(tmp_path).dataset.surveyed.warnings == ()


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, r"Caf\xe9"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"Caf\udcc3\udca9"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="names have another form there")
def test_no_locale_is_too_small_for_names_of_classes_and_files(tmp_path: Path, environment, shown: str) -> None:
    fill(tmp_path / "train" / COMPOSED, 3)
    fill(tmp_path / "val" / COMPOSED, 1, first=10)
    (tmp_path / "train" / COMPOSED / "\u00fc.jpg").touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    command = [sys.executable, "-m", "facm.data", "--name", "folder", "--root", str(tmp_path), "--look"]
    done = subprocess.run(command, env=kept | environment, capture_output=True, check=False)
    told = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    assert f"1 classes: 0 {shown}" in told and f"train/{shown}/" in told
    assert f"data.fingerprint: {datasets.fingerprint('folder', tmp_path)}" in told


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of CIFAR-10's form, three pictures each, with torchvision's sums changed to theirs."""
    from torchvision.datasets import CIFAR10

    folder, generator = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        pixels = generator.integers(0, 256, (3, 3072), dtype=np.uint8)
        return [name, write(name, {"data": pixels, "labels": generator.integers(0, 10, 3).tolist()})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    monkeypatch.setattr(CIFAR10, "url", "file:///nowhere/cifar-10-python.tar.gz")
    return tmp_path


def test_cifar10_is_what_torchvisions_files_hold(cifar: Path) -> None:
    train, heldout = (datasets.load("cifar10", cifar, split) for split in datasets.SPLITS)
    assert train.images.shape == (15, 32, 32, 3) and heldout.images.shape == (3, 32, 32, 3) and train.num_classes == 10
    second = pickle.loads((cifar / "cifar-10-batches-py/data_batch_2").read_bytes())
    pixels = second["data"][1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(train.images[4].numpy(), pixels)
    assert train.labels is not None and train.labels[3:6].tolist() == second["labels"]
    assert len(datasets.fingerprint("cifar10", cifar)) == 64


def test_cifar10_that_is_not_whole_and_not_to_be_had_is_told(cifar: Path) -> None:
    (cifar / "cifar-10-batches-py/data_batch_3").write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 is not whole in .*could not be downloaded.*unpack it there"):
        datasets.load("cifar10", cifar, "train")
    with pytest.raises(ValueError, match="data.root: 'cifar10' needs a folder"):
        datasets.load("cifar10", None, "train")
    for root in (cifar / "cifar-10-batches-py/batches.meta", cifar / "cifar-10-batches-py/batches.meta/new"):
        with pytest.raises(ValueError, match=r"data.root: 'cifar10' needs a folder .*batches.meta is a file"):
            datasets.load("cifar10", root, "train")


def test_a_folder_that_cannot_be_listed_and_a_link_to_nowhere_are_not_passed_over(classes: Path, monkeypatch) -> None:
    (classes / "train/a/nowhere.jpg").symlink_to("missing.jpg")
    with pytest.raises(ValueError, match=r"train/a/nowhere.jpg.*cannot be read \(No such file or directory\)"):
        admitted(classes)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="train/b"):
        admitted(classes, max_bad=0.5)


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe", "link to itself"])
def test_what_is_no_regular_file_is_refused_by_name_and_not_read(kind: str, classes: Path, tmp_path: Path) -> None:
    odd = classes / "train/a/odd.jpg"
    if kind == "device":
        odd.symlink_to("/dev/zero")
    elif kind == "link to itself":
        odd.symlink_to(odd.name)
    else:
        os.mkfifo(odd if kind == "pipe" else classes / "pipe")
        if kind != "pipe":
            odd.symlink_to("../../pipe")
    why = "Too many levels of symbolic links" if kind == "link to itself" else "no regular file"
    with pytest.raises(ValueError, match=rf"1 of 15 files in .*train/a/odd.jpg \(cannot be read \({why}\)\)"):
        admitted(classes)
    assert datasets.fingerprint("folder", classes) == admitted(classes, max_bad=0.1).fingerprint


def test_a_table_of_labels_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(ValueError, match=r"dataset.json cannot be read \(no regular file\): fetch it again"):
        admitted(tmp_path)


def test_a_class_of_which_no_picture_is_usable_is_refused(classes: Path) -> None:
    for path in (classes / "train/a").glob("*.jpg"):
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no picture of class a is left to train on"):
        admitted(classes, max_bad=0.9)
