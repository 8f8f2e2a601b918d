"""References of several networks, and published ones in the train split's place: what is scored, kept, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import NETWORKS
from latent_files import shard
from miniature import SCRATCH, save_arrays, write_params
from torch import Tensor

import stages.evaluate
import stages.reference
from facm.data import datasets
from facm.data.images.images import Images
from facm.inference.generator import balanced_labels
from facm.metrics import extract, frechet
from facm.metrics import scores as evaluate
from facm.metrics.frechet import frechet_distance, statistics
from facm.metrics.published import Archive
from facm.metrics.reference import Reference, build
from facm.metrics.scores import score
from facm.runtime.files import sha256

PLAIN = {"kid", "precision", "recall"}


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks without weights in place of the published ones."""
    monkeypatch.setattr("facm.metrics.reference.network_class", NETWORKS.__getitem__)
    monkeypatch.setattr("facm.networks.features.find_weights", list)


def pictures(num: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (num, 2, 2, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def split(num: int, seed: int = 0) -> Images:
    return Images(pictures(num, seed), torch.arange(num) % 3, 3)


def archive(path: Path, images: Tensor | None, statistics_of: Tensor, *names: str) -> Archive:
    """A published reference: statistics of some pictures under the networks, and other pictures."""
    views = NETWORKS["inception"]().look(statistics_of)
    members: dict[str, Any] = dict(zip(("mu", "sigma"), statistics(views["features"]), strict=True))
    members |= dict(zip(("mu_s", "sigma_s"), statistics(views["spatial"]), strict=True))
    for name in names:
        found = statistics(NETWORKS[name]().extract(statistics_of))
        members |= dict(zip((f"mu_{name}", f"sigma_{name}"), found, strict=True))
    np.savez(path, **members, **({} if images is None else {"arr_0": images.numpy()}))
    return Archive.open(path, sha256(path))


def test_every_network_gives_its_distance_and_inception_its_score_and_spatial_distance(tmp_path: Path) -> None:
    train, heldout, samples = split(90), split(40, 1), pictures(60, 2)
    options: dict[str, Any] = {"features": "inception", "also": ["dinov2"], "seed": 0}
    metrics = build(tmp_path, train, heldout, num=30, kid_subsets=1, **options)["reference"]
    own = {"fid_{}k", "is_{}k", "sfid_{}k"}
    for name, num in (("floor", 40), ("class_mean", 30), ("noise", 30)):
        assert set(metrics[name]) == PLAIN | {key.format(num / 1000) for key in own} | {"fd_dinov2"}
    opened = Reference.open(tmp_path)
    scores = score(samples, None, opened, kid_subsets=1)
    assert scores == score(samples, None, Reference.of(train, **options), kid_subsets=1)
    for key, name, view in (
        ("fid_0.06k", "inception", "features"),
        ("sfid_0.06k", "inception", "spatial"),
        ("fd_dinov2", "dinov2", "features"),
    ):
        one, two = (statistics(NETWORKS[name]().look(images)[view]) for images in (samples, train.images))
        assert scores[key] == pytest.approx(frechet_distance(one, two), rel=1e-9)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["features"], meta["networks"], meta["also"]) == ("inception", 1, ["dinov2"])
    files = {described["file"]: described["sha256"] for described in meta["files"]}
    assert {"network_dinov2.safetensors", "statistics_dinov2.safetensors"} <= files.keys()
    assert all(sha256(tmp_path / file) == digest for file, digest in files.items())


def test_only_50000_pictures_have_names_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "FID_NUM", 60)
    reference = Reference.of(split(90), features="inception", seed=0)
    assert {"fid", "is", "sfid"} < set(score(pictures(60), None, reference, kid_subsets=1))
    assert {"fid_0.059k", "is_0.059k", "sfid_0.059k"} < set(score(pictures(59), None, reference, kid_subsets=1))
    assert "is_0.009k" not in score(pictures(9), None, reference, kid_subsets=1), "ten parts need ten pictures"


def test_an_npz_with_the_data_sets_statistics_and_pictures_scores_as_the_data_set(tmp_path: Path) -> None:
    train, samples = split(90), pictures(60, 2)
    published = archive(tmp_path / "r.npz", train.images, train.images, "dinov2")
    options: dict[str, Any] = {"features": "inception", "also": ["dinov2"], "seed": 0}
    scores = score(samples, None, Reference.of(train, **options, archive=published), kid_subsets=1)
    expected = score(samples, None, Reference.of(train, **options), kid_subsets=1)
    assert scores.keys() == expected.keys()
    assert scores == pytest.approx(expected, rel=1e-12)


def test_the_pictures_of_an_npz_serve_precision_and_recall_only(tmp_path: Path) -> None:
    train, samples = split(90), pictures(60, 2)
    other = archive(tmp_path / "other.npz", pictures(30, 5), train.images)
    one, two = (
        score(samples, None, Reference.of(train, features="inception", seed=0, archive=found), kid_subsets=1)
        for found in (None, other)
    )
    assert one["fid_0.06k"] == pytest.approx(two["fid_0.06k"], rel=1e-12)
    assert (one["precision"], one["recall"]) != (two["precision"], two["recall"])


def test_too_few_pictures_for_precision_and_recall_are_refused_before_networks_are_made(tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": "inception", "seed": 0, "num": 30}
    with pytest.raises(ValueError, match=r"data.root: the held-out split has 3 pictures, .* at least 4"):
        build(tmp_path / "made", split(90), split(3, 1), **options)
    with pytest.raises(ValueError, match=r"data.root: the train split has 2 pictures, .* at least 4"):
        build(tmp_path / "made", split(2), split(40, 1), **options)
    few = archive(tmp_path / "few.npz", pictures(3, 5), pictures(90))
    with pytest.raises(ValueError, match=r"few.npz has 3 pictures \(arr_0\), .* at least 4"):
        build(tmp_path / "made", split(90), split(40, 1), archive=few, **options)
    assert not (tmp_path / "made").exists()


def test_too_many_pictures_for_copies_are_refused_before_networks_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facm.metrics.reference.PICTURES_GIB", 1e-8)
    monkeypatch.setattr("facm.metrics.reference.network_class", lambda name: pytest.fail("a network was made first"))
    with pytest.raises(
        ValueError, match=r"params.yaml, evaluate.copies: there are no train pictures here, or more than"
    ):
        build(tmp_path / "made", split(90), split(40, 1), features="inception", seed=0, num=30, copies=True)


def test_an_npz_without_pictures_leaves_out_what_needs_them_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train = split(90)
    published = archive(tmp_path / "r.npz", None, train.images)
    metrics = build(
        tmp_path / "out", train, split(40, 1), features="inception", seed=0, num=30, archive=published, kid_subsets=1
    )
    assert "has no pictures (arr_0): KID, precision and recall are left out" in capsys.readouterr().out
    assert set(metrics["reference"]["floor"]) == {"fid_0.04k", "is_0.04k", "sfid_0.04k"}
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert meta["source"] == {"file": "r.npz", "sha256": published.sha256}
    assert set(score(pictures(60), None, Reference.open(tmp_path / "out"))) >= {"fid_0.06k", "copies"}


def test_a_data_set_without_pictures_needs_an_npz_with_all_statistics(tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": "inception", "seed": 0, "num": 30}
    whole = archive(tmp_path / "whole.npz", pictures(30), pictures(90), "dinov2")
    metrics = build(tmp_path / "out", None, None, also=["dinov2"], archive=whole, **options)
    assert metrics == {"reference": {"features": "inception", "num": 30}}
    scores = score(pictures(60), None, Reference.open(tmp_path / "out"), kid_subsets=1, copies=False)
    assert set(scores) == PLAIN | {"fid_0.06k", "is_0.06k", "sfid_0.06k", "fd_dinov2"}
    with pytest.raises(ValueError, match=r"statistics of inception; this is the data set"):
        build(tmp_path / "no", None, None, **options)
    part = archive(tmp_path / "part.npz", None, pictures(90))
    with pytest.raises(ValueError, match=r"statistics of inception, dinov2; this is .*part.npz, without mu_dinov2"):
        build(tmp_path / "no", None, None, also=["dinov2"], archive=part, **options)
    assert not (tmp_path / "no").exists()


def test_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    published = archive(tmp_path / "r.npz", None, pictures(90))
    with pytest.raises(ValueError, match=r"r.npz has mu of 4 features, but 'dinov2' has 3: set reference.features"):
        Reference.of(split(90), features="dinov2", seed=0, archive=published)


@pytest.mark.parametrize("chunk", [10_000, 16])
def test_scores_do_not_depend_on_how_many_pictures_are_looked_at_in_one_go(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frechet, "CHUNK", chunk)
    reference = Reference.of(split(90), features="inception", also=["dinov2"], seed=0)
    scores = []
    for size in (7, 21, 1000):
        monkeypatch.setattr(extract, "PICTURES", size)
        scores.append(score(pictures(60, 2), None, reference, kid_subsets=1))
    assert scores[0] == scores[1] == scores[2]


def test_features_are_kept_of_the_first_samples_and_of_a_seeded_choice_of_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "KEPT", 20)
    train, samples = split(90), pictures(60, 2)
    reference = Reference.of(train, features="inception", seed=0)
    features = reference.statistics[0].features
    assert features is not None and features.shape == (20, 4)
    chosen = evaluate.chosen(90)
    assert torch.equal(features, NETWORKS["inception"]().extract(train.images)[chosen])
    assert len(set(chosen.tolist())) == 20
    full = score(samples, None, reference, kid_subsets=1)
    monkeypatch.setattr(evaluate, "SAMPLES_KEPT", 25)
    capped, few = (score(some, None, reference, kid_subsets=1) for some in (samples, samples[:25]))
    assert {name: capped[name] for name in PLAIN} == {name: few[name] for name in PLAIN}
    assert capped["fid_0.06k"] == full["fid_0.06k"]


def test_50000_samples_over_1000_classes_are_50_of_each() -> None:
    labels = balanced_labels(50_000, 1000)
    assert labels is not None and labels.bincount().tolist() == [50] * 1000
    assert labels[:10_000].bincount().tolist() == [10] * 1000, "and so is any whole round"


def test_the_stages_score_against_a_published_reference_under_several_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    threads, train = torch.get_num_threads(), datasets.load("digits", None, "train")
    published = archive(tmp_path / "r.npz", train.images[:50], train.images)
    write_params(
        tmp_path,
        reference__features="inception",
        reference__also=["dinov2"],
        reference__source="r.npz",
        reference__sha256=published.sha256,
        reference__num=20,
        **SCRATCH,
    )
    try:
        stages.reference.main()
        Path("metrics/distill.json").write_text('{"distill_training": {"stable": true, "steps": 2}}')
        for nfe in (1, 2):
            save_arrays(f"data/samples/nfe{nfe}.npz", train.images[nfe::3].numpy(), None)
        stages.evaluate.main()
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    result = json.loads(Path("metrics/evaluate.json").read_text())
    assert result["features"] == "inception" and "fd_dinov2" in result["floor"]
    num = result["num"] / 1000
    own = {f"fid_{num:g}k", f"is_{num:g}k", f"sfid_{num:g}k", "fd_dinov2"}
    assert set(result["student"]["nfe1"]) == PLAIN | own | {"copies"}
    header = capsys.readouterr().out.splitlines()[0].split()
    assert own < set(header)
    assert Path("metrics/quality.csv").read_text().startswith("nfe,distance\n1,")


def test_the_stage_takes_ready_made_latents_with_a_published_reference_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("extracted").mkdir()
    shard(Path("extracted/latents_rank00_shard000.safetensors"), 5)
    stats = {name: torch.ones(1, 3, 1, 1) for name in ("mean", "std")}
    torch.save(stats, "extracted/latents_stats.pt")
    published = archive(tmp_path / "r.npz", pictures(30), pictures(90))
    precomputed = {"data__name": "precomputed", "data__root": str(tmp_path / "extracted")}
    precomputed |= {"reference__features": "inception", "evaluate__copies": False}
    threads = torch.get_num_threads()
    try:
        write_params(tmp_path, **precomputed)
        with pytest.raises(ValueError, match="reference.source: data.name 'precomputed' has latents and no pictures"):
            stages.reference.main()
        write_params(tmp_path, **precomputed, reference__source="r.npz", reference__sha256=published.sha256)
        stages.reference.main()
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    found = json.loads(Path("metrics/reference.json").read_text())["reference"]
    assert found == {"features": "inception", "num": 2000} and Reference.open("data/reference").copies is None
