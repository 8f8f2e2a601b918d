"""Encoding: pictures are decoded ahead, finished shards survive a kill, several processes write the bytes of one."""

import json
import threading
from pathlib import Path

import pytest
import ranks
import torch
from miniature import write_params
from picture_files import fill
from torch import Tensor

from facm.data import datasets
from facm.data.codecs.identity import Identity
from facm.data.images.images import Images
from facm.data.latents import store
from facm.runtime import dist, log
from facm.runtime.files import sha256
from facm.runtime.prefetch import ahead
from facm.runtime.resume import Work
from stages import latents as stage


class Counting(Identity):
    """The identity, which counts pictures, and is killed at one of them."""

    def __init__(self, killed_at: int | None = None):
        super().__init__()
        object.__setattr__(self, "seen", [])
        object.__setattr__(self, "killed_at", killed_at)

    def encode(self, images: Tensor, streams=None) -> Tensor:
        if self.killed_at is not None and len(self.seen) >= self.killed_at:
            raise KeyboardInterrupt
        self.seen.extend(streams)
        return super().encode(images, streams)


def pictures(num: int = 11) -> Images:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return Images(images, torch.arange(num) % 3, 3)


def write(folder: Path, codec: Identity, unfinished: Path | None, flip: bool = False) -> None:
    options = {"dataset_name": "random", "fingerprint": "f" * 64, "batch_size": 2}
    store.write(folder, pictures(), codec, flip=flip, shard_size=4, unfinished=unfinished, **options)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


def test_results_come_in_order_and_no_more_than_asked_for_are_made_ahead() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item * item

    squares = ahead(make, range(20), depth=2)
    assert next(squares) == 0
    while len(made) < 3:
        pass
    assert made == [0, 1, 2] and list(squares) == [i * i for i in range(1, 20)] and list(ahead(make, [])) == []


def test_an_error_is_raised_when_its_turn_comes() -> None:
    def make(item: int) -> float:
        return 1 / item

    shares = ahead(make, [1, 2, 0, 4])
    assert [next(shares), next(shares)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(shares)


def test_the_next_pictures_are_decoded_while_the_encoder_works(tmp_path: Path) -> None:
    """Each call of the encoder waits until the pictures after its own are there, also over the end of a shard."""
    asked, told = [threading.Event() for _ in range(6)], []

    class Asked:
        images, dtype, shape = pictures().images, torch.uint8, pictures().images.shape

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, rows: slice) -> Tensor:
            asked[rows.start // 2].set()
            return self.images[rows]

    class Waiting(Identity):
        def encode(self, images: Tensor, streams=None) -> Tensor:
            told.append(asked[min(5, len(told) + 1)].wait(timeout=10))
            return super().encode(images, streams)

    options = {"dataset_name": "random", "fingerprint": "f" * 64, "batch_size": 2, "flip": False, "shard_size": 4}
    store.write(tmp_path / "set", Images(Asked(), None, 0), Waiting(), **options)
    assert told == [True] * 6


def test_each_picture_is_encoded_once_with_a_stream_for_it_and_one_for_its_mirror(tmp_path: Path) -> None:
    codec = Counting()
    write(tmp_path / "set", codec, None, flip=True)
    assert sorted(codec.seen) == list(range(22))
    assert codec.seen[:8] == [0, 2, 1, 3, 4, 6, 5, 7], "even: as it is; odd: mirrored"


def test_finished_shards_survive_a_kill_and_the_set_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    write(tmp_path / "undisturbed", Counting(), None)
    unfinished = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", Counting(killed_at=6), unfinished)
    assert sorted(path.name for path in unfinished.iterdir()) == ["shard_00000.json", "shard_00000.safetensors"]
    assert list((tmp_path / "set").iterdir()) == []
    second = Counting(killed_at=4)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", second, unfinished)
    assert second.seen == [8, 10, 12, 14], "the first shard's pictures are not encoded again"
    third = Counting()
    write(tmp_path / "set", third, unfinished)
    assert third.seen == [16, 18, 20] and digests(tmp_path / "set") == digests(tmp_path / "undisturbed")


def test_unfinished_work_may_lie_on_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one", Counting(), tmp_path / "unfinished1")

    def refused(*paths: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(store.os, "link", refused)
    write(tmp_path / "two", Counting(), tmp_path / "unfinished2")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not list((tmp_path / "two").glob("*.json.tmp")) and len(digests(tmp_path / "two")) == 5


@pytest.mark.parametrize("damage", ["shard", "description missing", "shard missing"])
def test_a_shard_that_is_not_what_was_written_is_encoded_again(damage: str, tmp_path: Path, capsys) -> None:
    unfinished = tmp_path / "unfinished"
    write(tmp_path / "one", Counting(), unfinished)
    path = unfinished / "shard_00001.safetensors"
    if damage == "shard":
        path.unlink(), path.write_bytes(bytes(path.with_name("shard_00000.safetensors").stat().st_size))
    else:
        (path if damage == "shard missing" else path.with_suffix(".json")).unlink()
    codec = Counting()
    write(tmp_path / "two", codec, unfinished)
    assert codec.seen == [8, 10, 12, 14] and digests(tmp_path / "one") == digests(tmp_path / "two")
    told = capsys.readouterr().out
    assert "2 of 3 shards were finished before" in told and ("is damaged and is encoded again" in told) == (
        damage == "shard"
    )


def test_moments_come_back_from_json_bit_by_bit() -> None:
    moments = store.Moments.of(torch.randn(50, 3, 5, 5))
    again = store.Moments.of_plain(json.loads(json.dumps(moments.plain())))
    assert (
        again.num == moments.num
        and torch.equal(again.mean, moments.mean)
        and torch.equal(again.squares, moments.squares)
    )


def test_the_stage_resumes_under_the_same_params_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, latents__shard_size=300, latents__batch_size=100)
    whole = store.save_tensors

    def killed(path: Path, tensors, metadata=None):
        if path.name == "shard_00003.safetensors":
            raise KeyboardInterrupt
        return whole(path, tensors, metadata)

    monkeypatch.setattr(store, "save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.main()
    (work,) = Path(".work").iterdir()
    before = digests(work)
    assert len(before) == 7 and list(Path("data/latents").iterdir()) == []
    write_params(tmp_path, latents__shard_size=300, latents__batch_size=100, latents__flip=True)
    monkeypatch.setattr(store, "save_tensors", whole)
    kept, finish = [], Work.finish
    monkeypatch.setattr(Work, "finish", lambda self: (kept.append(digests(self.folder)), finish(self)))
    stage.main()
    assert digests(work) == before, "of other params: neither used nor removed"
    write_params(tmp_path, latents__shard_size=300, latents__batch_size=100)
    written: list[str] = []
    monkeypatch.setattr(store, "save_tensors", lambda path, *rest: written.append(path.name) or whole(path, *rest))
    stage.main()
    assert written == ["shard_00003.safetensors", "shard_00004.safetensors", "stats.safetensors"]
    assert list(Path(".work").iterdir()) == []
    found = store.LatentSet.open("data/latents")
    assert (found.num, len(found.shards)) == (1347, 5) and len(kept[-1]) == 11


def encode_folder(here: Path) -> None:
    """The stage on this rank, with pictures in files and a VAE at small width."""
    import os

    os.chdir(here)
    dist.teardown, log.say = (lambda: None), lambda message: None
    stage.main()


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one_with_a_vae_and_pictures_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm_reference import random_weights

    from facm.data.codecs.va_vae import VaVae

    a = VaVae.architecture
    torch.save({"state_dict": random_weights(32, a.multipliers, a.channels, a.attention)}, tmp_path / "va.pt")
    for split, num in (("train", 9), ("val", 2)):
        fill(tmp_path / f"pictures/{split}/a", num, side=40)
        fill(tmp_path / f"pictures/{split}/b", num - 1, side=48)
    (tmp_path / "pictures/train/a/broken.jpg").write_bytes(b"")
    changes = {"data__root": str(tmp_path / "pictures"), "data__side": 32, "data__max_bad": 0.1, "data__name": "folder"}
    changes |= {
        "latents__codec": "va_vae",
        "latents__vae": str(tmp_path / "va.pt"),
        "latents__vae_sha256": sha256(tmp_path / "va.pt"),
    }
    changes |= {"latents__flip": True, "latents__shard_size": 4, "latents__batch_size": 3}
    one, two = (tmp_path / f"processes{num}" / "data/latents" for num in (1, 2))
    for made in (one, two):
        made.parents[1].mkdir()
        write_params(made.parents[1], **changes)
    ranks.run(2, encode_folder, two.parents[1])
    monkeypatch.chdir(one.parents[1])
    stage.main()
    torch.set_flush_denormal(False)
    assert digests(one) == digests(two) and len(digests(one)) == 5 + 2
    meta = json.loads((one / "meta.json").read_text())
    assert meta["skipped"] == {"train/a/broken.jpg": "zero bytes"} and meta["codec_options"]["posterior"] == "sample"
    found = store.LatentSet.open(one)
    assert (found.num, found.shape, found.num_classes, found.flips) == (17, (32, 2, 2), 2, True)
    again, x = (
        VaVae(str(tmp_path / "va.pt")),
        datasets.load("folder", tmp_path / "pictures", "train", size=32, max_bad=0.1),
    )
    torch.testing.assert_close(
        again.encode(x.images[6:7], [12])[0], found.shards[1]["latents"][2], rtol=1e-4, atol=1e-4
    )
    mirrored = again.encode(x.images[6:7].flip(2), [13])[0]
    torch.testing.assert_close(mirrored, found.shards[1]["latents_flip"][2], rtol=1e-4, atol=1e-4)
