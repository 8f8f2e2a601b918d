"""Latents in the published form, written as extract_features.py does: taken over as they are, statistics included."""

from pathlib import Path

import numpy as np
import pytest
import torch
from latent_files import shard
from miniature import write_params
from safetensors.torch import load_file

from facm.data import datasets
from facm.data.datasets.precomputed import Precomputed
from facm.data.latents.store import LatentSet
from facm.runtime.files import sha256
from stages import latents


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four shards of two ranks, and statistics that are none of theirs; the working folder is a repository."""
    folder, here = tmp_path / "extracted", tmp_path / "repository"
    folder.mkdir(), here.mkdir()
    for rank in range(2):
        for number in range(2):
            shard(folder / f"latents_rank{rank:02d}_shard{number:03d}.safetensors", 5 - number, 10 * rank + number)
    stats = {
        "mean": torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1),
        "std": torch.tensor([4.0, 5.0, 6.0]).view(1, 3, 1, 1),
    }
    torch.save(stats, folder / "latents_stats.pt")
    monkeypatch.chdir(here)
    return folder


def taken_over(root: Path, **changes) -> LatentSet:
    """The set as the stage makes it."""
    np.savez("published.npz", mu=np.zeros(2), sigma=np.eye(2))
    published = {"reference__source": "published.npz", "reference__sha256": sha256(Path("published.npz"))}
    published |= {"reference__features": "inception", "evaluate__copies": False}
    asked = {"data__name": "precomputed", "data__root": str(root), "latents__flip": True}
    write_params(Path(), **published | asked | changes)
    latents.main()
    return LatentSet.open("data/latents")


def test_shards_and_statistics_are_taken_over_as_they_are(root: Path) -> None:
    found, paths = taken_over(root), sorted(root.glob("*.safetensors"))
    assert (found.num, found.shape, found.num_classes, found.flips) == (18, (3, 2, 2), 7, True)
    assert found.mean.tolist() == [1, 2, 3] and found.std.tolist() == [4, 5, 6]
    for given, taken in zip(map(load_file, paths), found.shards, strict=True):
        assert all(torch.equal(given[name], taken[name]) for name in ("latents", "latents_flip", "labels"))
    assert found.fingerprint == datasets.fingerprint("precomputed", root) and found.dataset == "precomputed"
    flips = torch.tensor([False, True])
    x1, y = found.batch(torch.tensor([6, 6]), flips)
    given = load_file(paths[1])
    mean, std = torch.tensor([1.0, 2, 3]).view(3, 1, 1), torch.tensor([4.0, 5, 6]).view(3, 1, 1)
    torch.testing.assert_close(x1[0], (given["latents"][1] - mean) / std)
    torch.testing.assert_close(x1[1], (given["latents_flip"][1] - mean) / std)
    assert y is not None and y.tolist() == [given["labels"][1]] * 2


def test_flips_and_labels_are_left_behind_where_they_are_not_wanted(root: Path) -> None:
    found = taken_over(root, latents__flip=False, latents__labels=False)
    assert found.num_classes == 0 and not found.flips and set(found.shards[0]) == {"latents"}


def test_the_fingerprint_moves_with_a_shard_and_with_the_statistics(root: Path) -> None:
    before = datasets.fingerprint("precomputed", root)
    torch.save({"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, root / "latents_stats.pt")
    other = datasets.fingerprint("precomputed", root)
    shard(root / "latents_rank00_shard001.safetensors", 4, first=99)
    assert len({before, other, datasets.fingerprint("precomputed", root)}) == 3
    with pytest.raises(ValueError, match="data.fingerprint: pinned is"):
        taken_over(root, data__fingerprint=before)


SHARD = "latents_rank01_shard000.safetensors"
REFUSED = [
    ({"labels": torch.zeros(5)}, {}, f"{SHARD}: labels must be int64 \\(5,\\) from 0 on"),
    ({"latents_flip": None}, {}, f"{SHARD} lacks latents_flip, it has labels, latents; set latents.flip: false"),
    ({"latents": None}, {}, f"{SHARD} lacks latents, it has labels, latents_flip"),
    ({"latents": torch.tensor(1.0)}, {}, f"{SHARD} holds no latents"),
    ({"latents": torch.zeros(5)}, {}, f"{SHARD}: latents must be float32"),
    ({"latents": torch.zeros(5, 3, 2, 2).half()}, {}, f"{SHARD}: latents must be float32"),
    ({"latents_flip": torch.zeros(4, 3, 2, 2)}, {}, f"{SHARD}: latents_flip must be float32 .* the same for all"),
    (
        {"latents": torch.zeros(5, 3, 4, 4), "latents_flip": torch.zeros(5, 3, 4, 4)},
        {},
        "rank01.* has latents .3, 4, 4",
    ),
    ({}, {"mean": torch.zeros(3), "std": torch.ones(3)}, "latents_stats.pt must hold mean and std of one shape"),
    ({}, {"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, "latents_stats.pt has 4 channels, the .* 3"),
    ({}, {"mean": torch.zeros(1, 3, 1, 1), "std": torch.zeros(1, 3, 1, 1)}, "a std of 0.0, it must be above 0"),
    ({}, {"mean": torch.zeros(1, 3, 1, 1), "std": torch.full((1, 3, 1, 1), -1.0)}, "a std of -1.0, it must be above 0"),
    ({}, {"mean": torch.zeros(1, 3, 1, 1), "std": torch.full((1, 3, 1, 1), torch.nan)}, "statistics that are not fini"),
    (
        {},
        {"mean": torch.zeros(1, 0, 1, 1), "std": torch.zeros(1, 0, 1, 1)},
        "latents_stats.pt must hold mean and std of",
    ),
    ({}, {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1) * 1j}, "must hold real numbers, it has .*com"),
    ({}, {"mean": torch.zeros(1, 3, 1, 1)}, "must hold tensors 'mean' and 'std'"),
]


@pytest.mark.parametrize(("tensors", "stats", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_files_of_another_form_are_refused_and_nothing_is_finished(tensors, stats, message: str, root: Path) -> None:
    if tensors:
        shard(root / SHARD, 5, **tensors)
    if stats:
        torch.save(stats, root / "latents_stats.pt")
    with pytest.raises(ValueError, match=message):
        taken_over(root)
    assert not Path("data/latents/meta.json").exists()


def test_a_folder_without_shards_or_statistics_and_a_wrong_codec_are_refused(root: Path, tmp_path: Path) -> None:
    (root / SHARD).write_bytes((root / SHARD).read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{SHARD} is damaged .* fetch it again"):
        taken_over(root)
    for path in root.glob("latents_rank*"):
        shard(path, 5, channels=4)
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, root / "latents_stats.pt")
    with pytest.raises(ValueError, match=r"latents.codec: 'identity' has latents \(3, 2, 2\), those of data.root are"):
        taken_over(root)
    (root / "latents_stats.pt").unlink()
    with pytest.raises(ValueError, match=r"has no latents_stats.pt: put that of the latents' teacher there"):
        taken_over(root)
    with pytest.raises(ValueError, match="has no file latents_rank"):
        datasets.load("precomputed", tmp_path, "train")


def test_lost_ranks_and_lost_ends_of_ranks_are_refused(root: Path) -> None:
    (root / "latents_rank01_shard001.safetensors").unlink()
    with pytest.raises(ValueError, match="unlike numbers of latents, rank00 9, rank01 5: the last ones of some are"):
        taken_over(root)
    for number in range(2):
        shard(root / f"latents_rank03_shard{number:03d}.safetensors", 5 - number, 30 + number)
    with pytest.raises(ValueError, match="lacks shards of rank02: fetch them again"):
        taken_over(root)


def test_lost_shards_are_refused_before_an_earlier_set_is_touched(root: Path) -> None:
    taken_over(root)
    before = {path.name: path.read_bytes() for path in Path("data/latents").iterdir()}
    (root / "latents_rank01_shard001.safetensors").unlink()
    with pytest.raises(ValueError, match="rank00 9, rank01 5"):
        taken_over(root)
    assert {path.name: path.read_bytes() for path in Path("data/latents").iterdir()} == before


def test_an_empty_shard_and_a_copy_of_one_are_told_by_name(root: Path) -> None:
    shard(root / "latents_rank01_shard001.safetensors", 0)
    with pytest.raises(ValueError, match="latents_rank01_shard001.safetensors holds no latents"):
        taken_over(root)
    with pytest.raises(ValueError, match="latents_rank01_shard001.safetensors holds no latents"):
        Precomputed(root).read(3, flip=True, labels=True)
    shard(root / "latents_rank01_shard001 (1).safetensors", 4, 11)
    with pytest.raises(ValueError, match=r"shard001 \(1\).safetensors is not called latents_rank<n>_shard<n>"):
        taken_over(root)


def test_a_shard_that_is_missing_and_values_that_are_not_finite_are_refused(root: Path) -> None:
    shard(root / SHARD, 5, latents=torch.full((5, 3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=f"{SHARD}: latents are not all finite"):
        taken_over(root)
    (root / "latents_rank00_shard000.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks shards of rank00: fetch them again"):
        taken_over(root)


def test_it_has_no_pictures(root: Path) -> None:
    with pytest.raises(ValueError, match="'precomputed' has latents and no pictures"):
        datasets.load("precomputed", root, "train")


def test_a_rank_far_off_is_told_soon_and_what_is_no_file_by_name(root: Path) -> None:
    shard(root / "latents_rank99999999999_shard000.safetensors", 5)
    with pytest.raises(ValueError, match="lacks shards of rank02, rank03"):
        Precomputed(root)
    (root / "latents_rank99999999999_shard000.safetensors").unlink()
    (root / "latents_rank02_shard000.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match="latents_rank02_shard000.safetensors is a folder"):
        Precomputed(root)
