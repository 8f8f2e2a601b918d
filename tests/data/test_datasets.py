"""Datasets, their fingerprints, and data/latents: what is written is what comes back, and damage is told."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from facm.data import __main__, codecs, datasets
from facm.data.datasets import digits
from facm.data.images.images import Images
from facm.data.latents import store as latents
from facm.data.latents.store import LatentSet, write
from facm.runtime import files, params

H, W = 3, 2


def pictures(num: int = 11, channels: int = 2, classes: int = 4) -> Images:
    """Random pictures with labels, or without classes where `classes` is 0."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, H, W, channels), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (num,), generator=generator) if classes else None
    return Images(images, labels, classes)


def made(folder: Path, images: Images, *, flip: bool = False, shard_size: int = 4, batch_size: int = 3) -> LatentSet:
    """Written by `write` and opened again."""
    write(
        folder,
        images,
        codecs.build("identity"),
        flip=flip,
        shard_size=shard_size,
        dataset_name="random",
        fingerprint="f" * 64,
        batch_size=batch_size,
    )
    return LatentSet.open(folder)


def test_digits_are_split_75_to_25_in_every_class() -> None:
    train, heldout = (datasets.load("digits", None, split) for split in datasets.SPLITS)
    assert train.images.shape == (1347, 8, 8, 1) and heldout.images.shape == (450, 8, 8, 1)
    assert train.labels is not None and heldout.labels is not None
    of_class, kept = (train.labels.bincount() + heldout.labels.bincount()), heldout.labels.bincount()
    assert of_class.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert ((kept - of_class / 4).abs() < 1).all()


def test_the_splits_are_all_of_load_digits_with_levels_rounded() -> None:
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    splits = [datasets.load("digits", None, split) for split in datasets.SPLITS]
    images = torch.cat([split.images for split in splits]).flatten(1)
    classes = torch.cat([split.labels for split in splits if split.labels is not None])
    table = {level: int(level * 255 / 16 + 0.5) for level in range(17)}
    expected = sorted(([table[int(v)] for v in row], int(c)) for row, c in zip(levels, labels, strict=True))
    assert sorted(zip(images.tolist(), classes.tolist(), strict=True)) == expected


def test_an_unknown_dataset_is_named_with_the_nearest_one_and_the_place() -> None:
    with pytest.raises(ValueError, match=r"params.yaml, data.name: unknown 'digit' \(did you mean 'digits'\?\)"):
        datasets.load("digit", None, "train")


def test_an_unknown_split_and_a_needless_root_are_refused() -> None:
    with pytest.raises(ValueError, match="train and heldout, got 'test'"):
        datasets.load("digits", None, "test")
    with pytest.raises(ValueError, match="params.yaml, data.root: 'digits' comes with scikit-learn"):
        datasets.load("digits", "pictures", "train")


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (torch.zeros(2, 3, 3, 1), None, 0, "must be uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), None, 0, "must be uint8"),
        (torch.zeros(2, 3, 3, 1, dtype=torch.uint8), None, 4, "labels go with classes"),
        (torch.zeros(2, 3, 3, 1, dtype=torch.uint8), torch.tensor([0, 4]), 4, r"0\.\.3, got 0\.\.4"),
        (torch.zeros(2, 3, 3, 1, dtype=torch.uint8), torch.tensor([0]), 4, "must be int64"),
    ],
)
def test_pictures_and_labels_of_a_wrong_kind_are_refused(
    images: torch.Tensor, labels: torch.Tensor | None, classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Images(images, labels, classes)


def test_a_fingerprint_moves_with_one_pixel_and_with_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    load, before = digits.Digits.load, datasets.fingerprint("digits", None)
    assert before == datasets.fingerprint("digits", None) and len(before) == 64

    def touched(what: str) -> str:
        def altered(self: digits.Digits, split: str) -> Images:
            images = load(self, split)
            assert images.labels is not None
            if split == "heldout":
                (images.images if what == "pixel" else images.labels).view(-1)[7] ^= 1
            return images

        monkeypatch.setattr(digits.Digits, "load", altered)
        return datasets.fingerprint("digits", None)

    assert len({before, touched("pixel"), touched("label")}) == 3


def test_a_wrong_fingerprint_is_refused_with_both_values_and_the_command() -> None:
    block = params.Data(name="digits", root=None, fingerprint=None, side=None, max_bad=0.0)
    actual = datasets.admit(block).fingerprint
    assert datasets.admit(replace(block, fingerprint=actual)).fingerprint == actual
    with pytest.raises(ValueError, match="params.yaml, data.fingerprint") as refused:
        datasets.admit(replace(block, fingerprint="0" * 64))
    for part in ("0" * 64, actual, "python -m facm.data", "restore the data"):
        assert part in str(refused.value)


def test_the_command_prints_the_line_for_params(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["facm.data.datasets", "--name", "digits"])
    __main__.main()
    assert capsys.readouterr().out == f"data.fingerprint: {datasets.fingerprint('digits', None)}\n"
    monkeypatch.setattr("sys.argv", ["facm.data.datasets", "--name", "figits"])
    with pytest.raises(SystemExit, match="did you mean 'digits'"):
        __main__.main()


def test_latents_come_back_normalised_in_any_order_over_shards(tmp_path: Path) -> None:
    images = pictures()
    latents = made(tmp_path, images)
    assert (latents.num, latents.shape, latents.num_classes, latents.flips) == (11, (2, H, W), 4, False)
    assert [len(shard["latents"]) for shard in latents.shards] == [4, 4, 3]
    z = (images.images.double() / 127.5 - 1).permute(0, 3, 1, 2)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    torch.testing.assert_close(latents.mean, mean.float())
    torch.testing.assert_close(latents.std, std.float())
    indices = torch.tensor([10, 0, 4, 3, 3, 8, 7])
    x1, y = latents.batch(indices)
    torch.testing.assert_close(x1, ((z - mean[:, None, None]) / std[:, None, None]).float()[indices])
    assert images.labels is not None and y is not None and torch.equal(y, images.labels[indices])


def test_all_latents_together_have_mean_0_and_std_1(tmp_path: Path) -> None:
    x1, _ = made(tmp_path, pictures()).batch(range(11))
    torch.testing.assert_close(x1.double().mean((0, 2, 3)), torch.zeros(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(x1.double().std((0, 2, 3)), torch.ones(2).double(), atol=1e-6, rtol=0)


def test_shard_and_batch_size_do_not_change_the_latents(tmp_path: Path) -> None:
    one = made(tmp_path / "one", pictures(), shard_size=4, batch_size=3)
    two = made(tmp_path / "two", pictures(), shard_size=100, batch_size=100)
    assert torch.equal(one.batch(range(11))[0], two.batch(range(11))[0])


def test_flips_mirror_exactly_the_pictures_asked_for(tmp_path: Path) -> None:
    latents = made(tmp_path, pictures(), flip=True)
    flips = torch.tensor([True, False, True, True, False, False, True, False, True, True, False])
    plain, mirrored = latents.batch(range(11))[0], latents.batch(range(11), flips)[0]
    assert torch.equal(mirrored, torch.where(flips[:, None, None, None], plain.flip(3), plain))


def test_flips_of_a_set_without_them_and_indices_out_of_range_are_refused(tmp_path: Path) -> None:
    latents = made(tmp_path, pictures())
    with pytest.raises(ValueError, match="set latents.flip: true in params.yaml"):
        latents.batch([0], torch.tensor([False]))
    for index in (-1, 11):
        with pytest.raises(IndexError, match=r"0\.\.10"):
            latents.batch([index])


def test_without_classes_there_are_no_labels(tmp_path: Path) -> None:
    latents = made(tmp_path, pictures(classes=0))
    assert latents.num_classes == 0 and latents.batch([1, 2])[1] is None
    assert all("labels" not in shard for shard in latents.shards)


def test_digits_become_latents_of_unit_scale(tmp_path: Path) -> None:
    train = datasets.load("digits", None, "train")
    latents = made(tmp_path, train, shard_size=1000, batch_size=256)
    x1, y = latents.batch(range(latents.num))
    assert latents.shape == (1, 8, 8) and train.labels is not None and y is not None and torch.equal(y, train.labels)
    assert float(x1.mean()) == pytest.approx(0, abs=1e-5) and float(x1.std()) == pytest.approx(1, abs=1e-5)


def test_meta_json_describes_every_file(tmp_path: Path) -> None:
    made(tmp_path, pictures())
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["codec"], meta["dataset"], meta["fingerprint"]) == ("identity", "random", "f" * 64)
    assert [shard["num"] for shard in meta["shards"]] == [4, 4, 3]
    files = {d["file"]: d for d in [*meta["shards"], meta["stats"]]}
    assert {p.name for p in tmp_path.iterdir()} == {*files, "meta.json"}
    assert all(len(d["sha256"]) == 64 and (tmp_path / d["file"]).stat().st_size == d["bytes"] for d in files.values())


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        made(tmp_path / name, pictures())
    assert (tmp_path / "one" / "meta.json").read_bytes() == (tmp_path / "two" / "meta.json").read_bytes()


def test_a_second_writing_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    made(tmp_path, pictures(), shard_size=2)
    assert len(made(tmp_path, pictures(), shard_size=8).shards) == 2
    assert len(list(tmp_path.glob("shard_*"))) == 2


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        made(tmp_path, pictures())
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())


def test_an_interrupted_writing_leaves_no_meta_json(tmp_path: Path) -> None:
    made(tmp_path, pictures())
    constant = Images(torch.zeros(5, H, W, 1, dtype=torch.uint8), None, 0)
    with pytest.raises(ValueError, match=r"channels \[0\] of the latents are constant"):
        made(tmp_path, constant)
    with pytest.raises(FileNotFoundError, match="meta.json is missing: remove .* and run `dvc repro`"):
        LatentSet.open(tmp_path)


def test_a_missing_shard_is_named_with_the_cure(tmp_path: Path) -> None:
    made(tmp_path, pictures())
    (tmp_path / "shard_00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard_00001.safetensors is missing: remove .* and run `dvc repro`"):
        LatentSet.open(tmp_path)


@pytest.mark.parametrize("file", ["shard_00001.safetensors", "stats.safetensors"])
@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_file_is_named_with_the_cure(tmp_path: Path, file: str, length: int) -> None:
    made(tmp_path, pictures())
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{file} is damaged .* remove .* and run `dvc repro`"):
        LatentSet.open(tmp_path)


def test_a_shard_of_another_set_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "other", pictures(12))
    made(tmp_path / "set", pictures(11))
    os.replace(tmp_path / "other" / "shard_00002.safetensors", tmp_path / "set" / "shard_00002.safetensors")
    with pytest.raises(ValueError, match="shard_00002.safetensors has .* bytes, meta.json says"):
        LatentSet.open(tmp_path / "set")


def test_a_shard_with_another_number_of_latents_is_refused(tmp_path: Path) -> None:
    made(tmp_path, pictures())
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["shards"][0]["num"] = 5
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(
        ValueError, match=r"shard_00000.safetensors holds .*'torch.float32', 4, 2, 3, 2\).* meta.json says"
    ):
        LatentSet.open(tmp_path)


def test_a_damaged_meta_json_is_named(tmp_path: Path) -> None:
    made(tmp_path, pictures())
    (tmp_path / "meta.json").write_text('{"codec": "ident')
    with pytest.raises(ValueError, match="meta.json is damaged"):
        LatentSet.open(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("num", "11", "num: must be a whole number from 0 on"),
        ("shape", [2, 0, 2], "must be \\(C, H, W\\) or \\(D,\\)"),
        ("stats", None, "stats: must be an object"),
        ("shards", [], "num is 11, its shards hold 0"),
        ("shards", [{"file": "shard_00000.safetensors"}], "shards, 0 lacks 'bytes'"),
        ("codec", 3, "codec: must be text"),
        ("num_classes", 2, "has labels outside 0..1"),
    ],
)
def test_a_meta_json_of_other_values_is_refused_by_name(tmp_path: Path, key: str, value: object, told: str) -> None:
    made(tmp_path, pictures())
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}.*{told}.*dvc repro"):
        LatentSet.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"std": torch.tensor([1.0, -1.0])}, "std must be finite|std above 0"),
        ({"mean": torch.tensor([float("nan"), 0.0])}, "mean must be finite"),
        ({"mean": torch.zeros(2, 1)}, "meta.json says"),
        ({"std": torch.ones(2).double()}, "meta.json says"),
    ],
)
def test_statistics_that_cannot_normalise_are_refused(tmp_path: Path, change: dict[str, Tensor], told: str) -> None:
    made(tmp_path, pictures())
    meta, path = json.loads((tmp_path / "meta.json").read_text()), tmp_path / "stats.safetensors"
    written = files.save_tensors(path, load_file(path) | change)
    with pytest.raises(ValueError, match=r"stats.safetensors (has|holds|is not)"):
        LatentSet.open(tmp_path)  # the sha256 in meta.json is of the ones before
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"stats": written}))
    with pytest.raises(ValueError, match=told):
        LatentSet.open(tmp_path)


@pytest.mark.parametrize("mark", ["[]", "{", '{"described": {}}', '{"described": null}', "\ud800"])
def test_a_mark_that_cannot_be_read_is_none(tmp_path: Path, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shard_00000.safetensors"
    files.save_tensors(path, {"latents": torch.zeros(1, 2, 3, 2)})
    path.with_suffix(".json").write_bytes(mark.encode(errors="surrogatepass"))
    assert latents.marked(path, latents.Marked) is None
    assert "shard_00000.json" in capsys.readouterr().out
