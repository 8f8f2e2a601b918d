"""What trainings would refuse of latents is told before anything is encoded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dvc.utils.serialize import dumps_yaml
from foreign import network, release_file, stats_file, transformer_file
from miniature import SCRATCH, parsed, write_checkpoint, write_latents, write_params

from facm.check import inputs
from facm.check.__main__ import main as check_main
from facm.data.latents import store
from facm.data.latents.store import LatentSet
from facm.networks import checkpoint
from facm.runtime import params
from stages import latents as stage
from stages import reference

SIT = {"backbone__name": "sit", "backbones__sit__variant": None, "backbones__sit__depth": 2}
SIT |= {f"backbones__sit__{name}": value for name, value in {"patch_size": 2, "hidden": 32, "heads": 2}.items()}
IMPORTED = {"teacher__stage": "import_teacher", "imported__code": "facm/convert", "imported__source": "x.pt"}
FACM = {"imported__format": "facm", "imported__stats": "stats.pt"}
FROM_SIT = {"imported__format": "sit", "teacher__conditioning": "plain"}
REPA = {f"backbones__repa__{name}": value for name, value in {"variant": None, "patch_size": 4, "hidden": 32}.items()}
REPA |= {"backbone__name": "repa", "backbones__repa__depth": 1, "backbones__repa__heads": 2}
REPA |= {"backbones__repa__encoder_depth": 1, "backbones__repa__features": 6, "backbones__repa__projector_width": 8}


def refuse(
    changes: dict[str, Any],
    shape: tuple[int, ...] = (4, 8, 8),
    classes: int = 5,
    tokens: tuple[int, int] | None = None,
    given: dict[str, torch.Tensor] | None = None,
) -> None:
    """Look ahead with latents of a shape."""
    p = parsed(**changes)
    inputs.refuse_unfit(p, inputs.expected(p, shape, classes, codec_options={}, given=given), tokens)


NETWORKS: list[tuple[dict[str, Any], tuple[int, ...], str]] = [
    ({"backbones__lightningdit__patch_size": 3}, (4, 8, 8), "8x8 latents cannot be cut into patches of 3"),
    (
        {"backbone__name": "ddpmpp", "backbones__ddpmpp__attn_resolutions": [13]},
        (3, 32, 32),
        "must be a list of some of",
    ),
    (
        {"backbone__name": "ddpmpp", "backbone__precond": "edm"},
        (3, 4, 4),
        "'edm' needs one std for all channels: set one",
    ),
    (REPA, (4, 8, 8), "above 0 it needs an encoder's tokens beside the latents"),
    ({"teacher__cosine": "channel"}, (1, 8, 8), "teacher.cosine: 'channel' with latents of one channel"),
]


@pytest.mark.parametrize(("changes", "shape", "message"), NETWORKS, ids=[row[2][:30] for row in NETWORKS])
def test_a_network_that_cannot_have_such_latents_is_refused(
    changes: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refuse(changes, shape)


def test_what_fits_is_taken() -> None:
    refuse({})
    refuse(REPA, tokens=(4, 6))
    refuse(REPA | SCRATCH)
    refuse({"backbone__name": "ddpmpp", "backbone__precond": "edm"}, (1, 4, 4))
    refuse({"backbone__name": "ddpmpp", "backbone__precond": "edm", "latents__normalise": "one"}, (3, 4, 4))


def test_tokens_that_do_not_fit_the_projector_are_refused() -> None:
    for tokens in ((16, 6), (4, 7)):
        with pytest.raises(ValueError, match=r"set latents.tokens.side .* or backbones.repa.features"):
            refuse(REPA, tokens=tokens)


@pytest.mark.parametrize("which", ["teacher", "distill"])
def test_a_checkpoint_to_start_from_must_fit(which: str, here: Path) -> None:
    data = write_latents(Path("data"), channels=4, side=8, classes=5)
    pinned = write_checkpoint(Path("older"), data) and checkpoint.read_config("older").sha256
    started = {f"{which}__init": "older", f"{which}__init_sha256": pinned}
    refuse(started)
    for changes, shape, classes, message in (
        ({}, (4, 8, 8), 3, "older knows 5 classes, data/latents has 3"),
        ({}, (4, 16, 16), 5, "older was made with shape"),
        ({f"{which}__init_sha256": "0" * 64}, (4, 8, 8), 5, f"expected is {'0' * 64}: it is not the checkpoint"),
        ({"backbones__lightningdit__hidden": 64}, (4, 8, 8), 5, "does not fit the network of params.yaml, backbones"),
        ({"latents__normalise": "none"}, (4, 8, 8), 5, "older was made on latents of mean"),
    ):
        with pytest.raises(ValueError, match=message):
            refuse(started | changes, shape, classes)
    with pytest.raises((ValueError, FileNotFoundError), match="gone"):
        refuse(started | {f"{which}__init": "gone"})


def test_a_teacher_of_another_place_must_fit(here: Path) -> None:
    write_checkpoint(Path("theirs"), write_latents(Path("data"), channels=4, side=8, classes=5))
    refuse({"distill__teacher": "theirs"})
    with pytest.raises(ValueError, match="theirs knows 5 classes, data/latents has 3"):
        refuse({"distill__teacher": "theirs"}, classes=3)


def test_a_checkpoint_to_import_must_fit(here: Path) -> None:
    release_file(Path("x.pt"), dict(network("lightningdit", depth=1).state_dict()))
    stats_file(Path("stats.pt"))
    facm = IMPORTED | FACM | {"imported__sha256": checkpoint.sha256("x.pt"), "teacher__conditioning": "expanded"}
    refuse(facm)
    with pytest.raises(ValueError, match="knows 5 classes, data/latents has 0"):
        refuse(facm, classes=0)
    with pytest.raises(ValueError, match="was made with shape"):
        refuse(facm, shape=(4, 12, 12))
    other = {"mean": torch.zeros(4), "std": torch.ones(4)}
    with pytest.raises(ValueError, match="was made on latents of mean"):
        refuse(facm | {"latents__normalise": "given"}, given=other)


def test_latents_of_a_network_of_the_codecs_own_output_must_not_be_normalised(here: Path) -> None:
    transformer_file(Path("x.pt"))
    sit = IMPORTED | FROM_SIT | SIT | {"imported__sha256": checkpoint.sha256("x.pt"), "imported__stats": None}
    refuse(sit | {"latents__normalise": "none"})
    with pytest.raises(ValueError, match="x.pt was trained on the codec's own output: set none, not 'channel'"):
        refuse(sit)


def test_the_stage_encodes_nothing_for_a_network_that_cannot_be(here: Path) -> None:
    write_params(here, backbones__lightningdit__patch_size=3)
    with pytest.raises(ValueError, match="8x8 latents cannot be cut into patches of 3"):
        stage.main()
    assert list(Path().rglob("shard_*")) == []


def test_statistics_of_other_channels_are_told_before_and_others_keep_the_shards(here: Path, monkeypatch) -> None:
    stats_file(Path("three.pt"), channels=3)
    stats_file(Path("one.pt"), channels=1)
    given = {"latents__normalise": "given", "latents__shard_size": 500}
    three = given | {"latents__stats": "three.pt", "latents__stats_sha256": checkpoint.sha256("three.pt")}
    write_params(here, **three)
    with pytest.raises(ValueError, match="params.yaml, latents.stats: 3 channels, the latents have 1"):
        stage.main()
    assert list(Path().rglob("shard_*")) == []
    write_params(here, latents__shard_size=500)
    finish = store.finish
    monkeypatch.setattr(store, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stage.main()
    monkeypatch.setattr(store, "finish", finish)
    monkeypatch.setattr(store._Encoding, "_written", None)
    one = given | {"latents__stats": "one.pt", "latents__stats_sha256": checkpoint.sha256("one.pt")}
    write_params(here, **one)
    stage.main()
    assert LatentSet.open("data/latents").mean.tolist() == pytest.approx([-0.3]), "by the shards that were there"


GIVEN = {"latents__normalise": "given", "latents__stats_sha256": "0" * 64}
MISSING: list[tuple[dict[str, Any], str]] = [
    ({"teacher__init": "gone", "teacher__init_sha256": "0" * 64}, "teacher.init: .*gone/model.safetensors is missing"),
    ({"distill__init": "older", "distill__init_sha256": "0" * 64}, f"distill.init_sha256: pinned is {'0' * 64}, but"),
    (
        {"latents__codec": "sd_vae", "latents__vae": "../weights/gone"},
        "latents.vae: there is neither a folder nor a file",
    ),
    (GIVEN | {"latents__stats": "gone.pt"}, "params.yaml, latents.stats: gone.pt is missing: check the path"),
    (GIVEN | {"latents__stats": "older"}, "params.yaml, latents.stats: older is a folder: name a file"),
    (
        {f"latents__tokens__{name}": value for name, value in {"encoder": "e", "weights": "w", "sha256": "0"}.items()},
        "latents.tokens.weights: .*w is missing",
    ),
    ({"reference__source": "r.npz", "reference__sha256": "0" * 64}, "reference.source: .*r.npz is missing: fetch it"),
    ({"reference__source": "older", "reference__sha256": "0" * 64}, "reference.source: older is a folder: name a file"),
    (IMPORTED | FACM | {"imported__source": "gone.pt"}, "imported.source: .*gone.pt is missing"),
    (IMPORTED | FACM | {"imported__source": "older"}, "params.yaml, imported.source: older is a folder: name a file"),
    ({"distill__teacher": "older"}, "params.yaml, distill.teacher: older is no checkpoint folder"),
]


@pytest.mark.parametrize(("changes", "message"), MISSING, ids=[row[1][:20] for row in MISSING])
def test_what_is_missing_or_another_is_told(changes: dict[str, Any], message: str, here: Path) -> None:
    (here / "older").mkdir()
    (here / "older/model.safetensors").write_bytes(b"?")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        inputs.refuse_missing(parsed(**changes))


def test_the_first_stages_and_the_check_ask(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("sys.argv", ["facm.check"])
    monkeypatch.setattr(inputs, "refuse_missing", lambda _, done=(): called.append(list(done)))
    write_params(here)
    reference.main()
    stage.main()
    check_main()
    assert called == [[], [], []]
    write_lock("latents")
    reference.main()
    assert called[3:] == [["latents"]], "a pulled result needs no sources"


def write_lock(*stages: str) -> None:
    """A dvc.lock with these stages' params as they are."""
    raw = params.raw()
    keys = {"latents": ["data", "latents"], "teacher": ["backbone", "teacher"], "distill": ["distill"]}
    recorded = {name: {"params": {params.PATH: {key: raw[key] for key in keys[name]}}} for name in stages}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": recorded}))


def test_a_stage_is_done_that_ran_with_these_params_after_those_that_did(here: Path) -> None:
    write_params(here)
    assert inputs.done_before() == []
    for stages in (["latents"], ["latents", "teacher"], ["latents", "teacher", "distill"]):
        write_lock(*stages)
        assert inputs.done_before() == stages
    write_params(here, teacher__seed=1)
    assert inputs.done_before() == ["latents"]
    write_lock("teacher", "distill")
    assert inputs.done_before() == []


def test_small_numbers_in_the_lock_are_numbers_as_dvc_writes_them(here: Path) -> None:
    write_params(here, teacher__optimizer__lr=1e-5)
    recorded = {"backbone": params.raw()["backbone"], "teacher.optimizer.lr": 1e-5, "latents": params.raw()["latents"]}
    stages = {name: {"params": {params.PATH: recorded}} for name in ("latents", "teacher")}
    Path("dvc.lock").write_text(dumps_yaml({"schema": "2.0", "stages": stages}))
    assert " 1e-05\n" in Path("dvc.lock").read_text()
    assert inputs.done_before() == ["latents", "teacher"]


def test_of_stages_that_are_done_nothing_is_asked(here: Path) -> None:
    nowhere = {"teacher__init": "gone", "teacher__init_sha256": "0" * 64, "latents__normalise": "given"}
    nowhere |= {"latents__stats": "gone.pt", "latents__stats_sha256": "0" * 64}
    for done, message in (((), "latents.stats: .*gone.pt"), (("latents",), "teacher.init: .*gone")):
        with pytest.raises(FileNotFoundError, match=message):
            inputs.refuse_missing(parsed(**nowhere), done)
    inputs.refuse_missing(parsed(**nowhere), ("latents", "teacher"))


def test_a_name_on_the_hub_is_not_looked_for() -> None:
    inputs.refuse_missing(parsed(latents__codec="sd_vae", latents__vae="stabilityai/sd-vae-ft-ema"))
