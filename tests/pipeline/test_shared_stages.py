"""Stages on two and three processes: the files of one process, byte for byte, with unequal shares and idle ranks."""

import os
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from fakes import NETWORKS
from miniature import write_checkpoint, write_params

from facm.data import datasets
from facm.data.images.images import Images
from facm.data.latents.store import LatentSet
from facm.metrics import extract, frechet, trivial_baselines
from facm.metrics import reference as reference_module
from facm.metrics.scores import score
from facm.networks.features import digits_cnn
from facm.runtime import dist, log
from facm.runtime.files import sha256
from stages import baseline, latents, reference, sample
from stages import evaluate as evaluation

SIZES = {
    "latents__shard_size": 500,  # three shards, the last one smaller
    "reference__num": 60,
    "sample__num": 11,
    "sample__batch_size": 4,  # three batches
    "baseline__num": 7,
    "baseline__batch_size": 3,
    "evaluate__kid_subsets": 1,
}
STAGES = (latents, reference, baseline, sample, evaluation)


def run_stages(folder: Path) -> None:
    """Run the five stages in a folder that has params and checkpoints, with quick feature networks."""
    os.chdir(folder)
    digits_cnn.EPOCHS, digits_cnn.DigitsCNN.batch, extract.PICTURES = 1, 100, 300
    dist.teardown = lambda: None  # the stages follow one another in one group
    log.say = lambda message: None
    for stage in STAGES:
        stage.main()
        dist.barrier()  # a pipeline's next stage starts when all ranks have ended


def made(folder: Path) -> dict[Path, str]:
    """Digests of what the stages wrote."""
    folders = ("data/latents", "data/reference", "data/baseline", "data/samples", "metrics")
    paths = [path for name in folders for path in (folder / name).iterdir()]
    return {path.relative_to(folder): sha256(path) for path in paths}


def fake_scores() -> tuple[dict[str, float], list[float]]:
    """Scores of 100 pictures under networks with all views, in chunks of 32, and levels of the ends of the scale."""
    frechet.CHUNK, extract.PICTURES, reference_module.network_class = 32, 14, NETWORKS.__getitem__
    trivial_baselines.VALUES = 12 * 20
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (190, 2, 2, 3), generator=generator, dtype=torch.uint8)
    train = Images(images[:90], None, 0)
    made = reference_module.Reference.of(train, features="inception", seed=0, also=["dinov2"])
    of_train = trivial_baselines.Ends.of(train)
    levels = [*of_train.means.flatten().tolist(), *of_train.mean.tolist(), *of_train.std.tolist()]
    return score(images[90:], None, made, kid_subsets=1, copies=False), levels


def shares(folder: Path) -> None:
    """Write down what this rank does of seven pieces, what rank 0 and all get, and scores."""
    mine = dist.share(7)
    got = list(dist.in_order(({"number": number, "rank": dist.rank()} for number in mine), 7))
    told = dist.from_main(lambda: f"rank {dist.rank()}")
    numbers = [(i["number"], i["rank"]) for i in got]
    (folder / f"rank{dist.rank()}").write_text(repr((list(mine), numbers, told, fake_scores())))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes, teacher and student with random weights."""
    folder, before = tmp_path_factory.mktemp("one"), Path.cwd()
    write_params(folder, **SIZES, data__fingerprint=datasets.fingerprint("digits", None))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for module, name in ((digits_cnn, "EPOCHS"), (extract, "PICTURES"), (dist, "teardown"), (log, "say")):
            patched.setattr(module, name, getattr(module, name))  # put back afterwards
        patched.setattr(digits_cnn.DigitsCNN, "batch", 100)
        latents.main()
        for kind in ("teacher", "student"):
            write_checkpoint(folder / "data" / kind, LatentSet.open("data/latents"), kind=kind)
        (folder / "metrics").mkdir(exist_ok=True)
        (folder / "metrics/distill.json").write_text('{"distill_training": {"stable": true, "steps": 2}}')
        run_stages(folder)
    os.chdir(before)
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    return folder


@pytest.mark.parametrize("num", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_every_stage_writes_the_bytes_of_one_process(num: int, one: Path, tmp_path: Path) -> None:
    shutil.copy(one / "params.yaml", tmp_path)
    for kind in ("teacher", "student"):
        shutil.copytree(one / "data" / kind, tmp_path / "data" / kind)
    (tmp_path / "metrics").mkdir()
    shutil.copy(one / "metrics/distill.json", tmp_path / "metrics")
    ranks.run(num, run_stages, tmp_path)
    expected = made(one)
    assert len([path for path in expected if path.name.startswith("shard_")]) == 3
    assert {Path("metrics/evaluate.json"), Path("data/samples/nfe2.npz")} <= expected.keys()
    assert made(tmp_path) == expected


def test_each_piece_is_done_once_and_arrives_in_order_on_rank_0(tmp_path: Path) -> None:
    ranks.run(3, shares, tmp_path)
    told = [eval((tmp_path / f"rank{rank}").read_text()) for rank in range(3)]
    assert [mine for mine, *_ in told] == [[0, 3, 6], [1, 4], [2, 5]]
    assert told[0][1] == [(number, number % 3) for number in range(7)] and told[1][1] == told[2][1] == []
    assert {from_main for _, _, from_main, _ in told} == {"rank 0"}
    with pytest.MonkeyPatch.context() as patched:
        changed = (
            (frechet, "CHUNK"),
            (extract, "PICTURES"),
            (reference_module, "network_class"),
            (trivial_baselines, "VALUES"),
        )
        for module, name in changed:
            patched.setattr(module, name, getattr(module, name))  # put back afterwards
        expected, levels = fake_scores()
    assert told[0][3] == (expected, levels) and {"fid_0.1k", "is_0.1k", "sfid_0.1k", "fd_dinov2"} < expected.keys()
    assert told[1][3] == told[2][3] == ({}, levels)


def test_batches_cover_everything_once() -> None:
    assert dist.batches(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert dist.batches(6, 3) == [range(0, 3), range(3, 6)] and dist.batches(2, 5) == [range(0, 2)]
    assert list(dist.share(3)) == [0, 1, 2] and list(dist.in_order(iter("abc"), 3)) == ["a", "b", "c"]
