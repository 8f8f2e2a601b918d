"""Checkpoint folders: what is written is what comes back, they describe themselves, and damage or misfit is told."""

import dataclasses
import json
import re
import stat
from pathlib import Path

import pytest
import torch
from miniature import NETWORK, truncate, write_checkpoint, write_latents
from safetensors.torch import load_file, save_file

from facm.data.latents.store import LatentSet
from facm.networks import checkpoint
from facm.networks.checkpoint import CheckpointError
from facm.objectives.facm import FACM


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> LatentSet:
    return write_latents(tmp_path_factory.mktemp("latents"))


def refused(call, *arguments) -> str:
    """The message that a call gets."""
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    return str(caught.value)


def edit(folder: Path, **changes) -> None:
    """Change entries of a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_checkpoint_comes_back_without_params_yaml(latents, tmp_path, monkeypatch) -> None:
    config = write_checkpoint(tmp_path / "data" / "student", latents, kind="student")
    monkeypatch.chdir(tmp_path)
    network, loaded = checkpoint.load("data/student")
    assert loaded == config and loaded.shape == (1, 4, 4) and loaded.num_classes == 3 and loaded.codec == "identity"
    assert loaded.kind == "student" and loaded.samplers == list(FACM().samplers) and loaded.step == 4
    assert loaded.objective == "facm" and loaded.mean == latents.mean.tolist() and loaded.params["distill"]["w"] == 1.75
    stored = load_file("data/student/model.safetensors")
    assert stored.keys() == network.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in network.state_dict().items())
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert loaded.sha256 == checkpoint.sha256("data/student/model.safetensors")


def test_a_checkpoint_is_readable_by_others_as_the_umask_says(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    files = [path for path in (tmp_path / "teacher").rglob("*") if path.is_file()]
    assert len(files) == 2 + 4
    assert {stat.S_IMODE(path.stat().st_mode) & 0o444 for path in files} == {0o444}


def test_a_new_checkpoint_replaces_the_one_before(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents, seed=0)
    (tmp_path / "teacher" / "ema" / "stale.safetensors").write_text("")
    second = write_checkpoint(tmp_path / "teacher", latents, seed=1)
    assert checkpoint.read_config(tmp_path / "teacher") == second
    assert not (tmp_path / "teacher" / "ema" / "stale.safetensors").exists()
    assert not (tmp_path / "teacher.tmp").exists()


def test_a_write_that_is_interrupted_leaves_nothing_under_the_final_name(latents, tmp_path, monkeypatch) -> None:
    config = write_checkpoint(tmp_path / "teacher", latents)
    network, _ = checkpoint.load(tmp_path / "teacher")

    def full(source, target) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.shutil, "copyfileobj", full)
    paths = [path for _, _, path in checkpoint.snapshots(tmp_path / "teacher")]
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path / "student", network.state_dict(), config, paths)
    assert not (tmp_path / "student").exists()
    monkeypatch.undo()
    checkpoint.save(tmp_path / "student", network.state_dict(), config, paths)
    assert len(checkpoint.snapshots(tmp_path / "student")) == 4


def test_a_missing_or_damaged_checkpoint_is_told_with_file_and_cure(latents, tmp_path) -> None:
    folder = tmp_path / "teacher"
    assert "teacher is no checkpoint: " in refused(checkpoint.load, folder)
    assert refused(checkpoint.load, folder).endswith("config.json is missing; `dvc pull` or `dvc repro` brings it")
    write_checkpoint(folder, latents)
    truncate(folder / "model.safetensors")
    told = refused(checkpoint.load, folder)
    assert "model.safetensors is damaged (" in told and told.endswith("remove " + str(folder) + " and run `dvc repro`")
    (folder / "model.safetensors").unlink()
    assert refused(checkpoint.load, folder).endswith(
        "model.safetensors is missing: `dvc pull` or `dvc repro` brings it"
    )
    truncate(folder / "config.json")
    assert "config.json is damaged (" in refused(checkpoint.load, folder)
    (folder / "config.json").write_text("[1, 2]")
    assert "config.json is of another format" in refused(checkpoint.load, folder)
    (folder / "config.json").write_text('{"kind": "teacher"}')
    assert "config.json is of another format: differing keys ['backbone', " in refused(checkpoint.load, folder)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"std": [0.0]}, "must be 1 finite numbers each, one per channel, std above 0"),
        ({"std": [-0.5]}, "must be 1 finite numbers each, one per channel, std above 0"),
        ({"mean": []}, "must be 1 finite numbers each"),
        ({"mean": [0.0, 0.0], "std": [1.0, 1.0]}, "must be 1 finite numbers each"),
        ({"std": [float("inf")]}, "config.json, std, 0: must be a finite number, it is inf"),
        ({"mean": [float("nan")]}, "config.json, mean, 0: must be a finite number, it is nan"),
        ({"mean": ["0"]}, "config.json, mean, 0: must be a finite number, it is '0'"),
        ({"std": None}, "config.json, std: must be a list, it is None"),
    ],
    ids=str,
)
def test_mean_and_std_that_are_no_statistics_of_the_channels_are_refused(wrong, message, latents, tmp_path) -> None:
    folder = tmp_path / "teacher"
    write_checkpoint(folder, latents)
    edit(folder, **wrong)
    assert message in refused(checkpoint.load, folder)


def test_weights_that_do_not_fit_their_own_description_are_told(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    edit(tmp_path / "teacher", constants=NETWORK | {"hidden": 48})
    assert "teacher: model.safetensors does not fit config.json: " in refused(checkpoint.load, tmp_path / "teacher")


def test_snapshots_tell_their_step_and_length(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    found = checkpoint.snapshots(tmp_path / "teacher")
    assert [(step, sigma) for step, sigma, _ in found] == [(2, 0.05), (2, 0.2), (4, 0.05), (4, 0.2)]
    assert checkpoint.snapshot_name(125000, 0.05) == "step00125000_sigma0.05.safetensors"


def test_weights_of_another_length_are_synthesised_and_stored_ones_come_back(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    for step, sigma, path in checkpoint.snapshots(tmp_path / "teacher"):
        if step == 4:
            network, _ = checkpoint.load(tmp_path / "teacher", sigma)
            for name, value in load_file(path).items():
                torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_synthesis_needs_two_snapshots_that_are_whole(latents, tmp_path) -> None:
    folder = tmp_path / "teacher"
    write_checkpoint(folder, latents)
    first, *others = (folder / "ema").iterdir()
    truncate(first)
    assert "is damaged (" in refused(checkpoint.load, folder, 0.1)
    for path in others:
        path.unlink()
    assert refused(checkpoint.load, folder, 0.1).endswith(
        "ema holds 1 snapshots, post-hoc EMA needs two: set ema.snapshots"
    )


# Teacher and student


def config_of(folder: Path, latents: LatentSet, **changes) -> checkpoint.Config:
    """The description of a student that is about to be trained."""
    return dataclasses.replace(write_checkpoint(folder, latents, kind="student"), **changes)


@pytest.fixture
def pair(latents, tmp_path) -> tuple[checkpoint.Config, Path]:
    """A student's description, and a teacher that fits it."""
    write_checkpoint(tmp_path / "teacher", latents)
    return config_of(tmp_path / "student", latents), tmp_path / "teacher"


def test_a_student_starts_with_its_teachers_weights(pair) -> None:
    config, folder = pair
    network = config.build()
    checkpoint.start_from(network, config, folder, checkpoint.read_config(folder).sha256)
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


def test_an_auxiliary_student_answers_as_its_expanded_teacher_at_first(pair, latents) -> None:
    config, folder = pair
    config = dataclasses.replace(config, conditioning="auxiliary")
    network = config.build().eval()
    checkpoint.start_from(network, config, folder, None)
    teacher, _ = checkpoint.load(folder)
    x1, y = latents.batch(range(5))
    t = torch.linspace(0, 1, 5)
    with torch.no_grad():
        torch.testing.assert_close(network(x1, t, y, torch.ones(5)), teacher(x1, t, y))


def test_another_checkpoint_than_the_pinned_one_is_refused(pair) -> None:
    config, folder = pair
    told = refused(checkpoint.start_from, config.build(), config, folder, "0" * 64)
    assert f"has sha256 {checkpoint.read_config(folder).sha256}, expected is {'0' * 64}: " in told
    assert "it is not the checkpoint that init_sha256 in params.yaml pins, or it is damaged" in told
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refused(checkpoint.start_from, config.build(), config, folder, None)


def test_what_no_weight_tells_must_agree_too(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents, backbones__lightningdit__pixel_norm=True)
    config = config_of(tmp_path / "student", latents)
    told = refused(checkpoint.start_from, config.build(), config, tmp_path / "teacher", None)
    assert "was trained with pixel_norm True, params.yaml, backbones.lightningdit.pixel_norm is False" in told
    checkpoint.check_teacher(config, checkpoint.read_config(tmp_path / "teacher"), tmp_path / "teacher", "t")


def test_another_width_is_refused_with_the_weights_that_differ(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents, backbones__lightningdit__hidden=48)
    config = config_of(tmp_path / "student", latents)
    told = refused(checkpoint.start_from, config.build(), config, tmp_path / "teacher", None)
    assert (
        "teacher/model.safetensors does not fit the network of params.yaml, backbones: missing [], unexpected []"
        in told
    )
    assert "other shape ['blocks.0." in told


def test_another_depth_is_refused_with_the_weights_that_are_missing(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents, backbones__lightningdit__depth=2)
    config = config_of(tmp_path / "student", latents)
    told = refused(checkpoint.start_from, config.build(), config, tmp_path / "teacher", None)
    assert "missing [], unexpected ['blocks.1." in told


def test_an_expanded_student_of_an_auxiliary_teacher_is_refused(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents, teacher__conditioning="auxiliary")
    config = config_of(tmp_path / "student", latents)
    told = refused(checkpoint.start_from, config.build(), config, tmp_path / "teacher", None)
    assert told.endswith(
        "teacher was trained with conditioning 'auxiliary', a second time r, and this training has 'expanded': "
        "set distill.conditioning: auxiliary in params.yaml, or choose another checkpoint"
    )


MISFITS = [
    ({"num_classes": 5}, "teacher knows 3 classes, data/latents has 5: a student cannot have other classes than its"),
    ({"num_classes": 0}, "teacher knows 3 classes, data/latents has 0: "),
    ({"shape": (3, 4, 4)}, "teacher was made with shape (1, 4, 4), data/latents with (3, 4, 4): set latents.codec in"),
    ({"codec": "vae"}, "teacher was made with codec 'identity', data/latents with 'vae': set latents.codec in params"),
    ({"mean": [0.5]}, "data/latents has [0.5]: both must be normalised alike; use the teacher's data/latents"),
    ({"std": [2.0]}, "teacher was made on latents of std ["),
]


@pytest.mark.parametrize(("changes", "message"), MISFITS, ids=[str(changes) for changes, _ in MISFITS])
def test_a_teacher_of_another_space_or_of_other_classes_is_refused(changes: dict, message: str, pair) -> None:
    config, folder = pair
    other = dataclasses.replace(config, **changes)
    assert message in refused(checkpoint.check_teacher, other, checkpoint.read_config(folder), folder, "t")
    assert message in refused(checkpoint.start_from, other.build(), other, folder, None)


@pytest.mark.parametrize("changes", [{"teacher__conditioning": "plain"}, {"teacher__fraction": 0.0}], ids=str)
def test_a_plain_teacher_can_be_asked_at_t_only(changes: dict, latents, tmp_path) -> None:
    teacher = write_checkpoint(tmp_path / "teacher", latents, **changes)
    config = config_of(tmp_path / "student", latents)
    checkpoint.check_teacher(config, teacher, tmp_path / "teacher", "t")
    told = refused(checkpoint.check_teacher, config, teacher, tmp_path / "teacher", "fm")
    assert "teacher is a plain teacher, which knows t only: set distill.teacher_condition: t in params.yaml" in told


def test_a_mixed_teacher_and_any_student_know_the_fm_format(pair) -> None:
    config, folder = pair
    checkpoint.check_teacher(config, checkpoint.read_config(folder), folder, "fm")
    assert config.knows_fm_format


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"constants": [1]}, "constants: must be an object of names and values, it is \\[1\\]"),
        ({"num_classes": -1}, "num_classes: must be a whole number from 0 on, it is -1"),
        ({"num_classes": True}, "num_classes: must be a whole number from 0 on, it is True"),
        ({"shape": None}, "shape: must be a list, it is None"),
        ({"shape": []}, "must be 0 finite numbers each, one per channel"),
        ({"mean": [0.0, 0.0]}, "must be 1 finite numbers each"),
        ({"std": [-1.0]}, "std above 0"),
        ({"std": [float("nan")]}, "std, 0: must be a finite number, it is nan"),
        ({"backbone": "lightning"}, "config.json describes no network \\(backbone.name: unknown 'lightning'"),
        ({"constants": NETWORK | {"hidden": 2**62}}, "config.json describes no network"),
        ({"constants": NETWORK | {"width": 3}}, "config.json describes no network .*unknown 'width'"),
    ],
)
def test_a_description_of_other_values_is_refused_by_name(changes, told: str, latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    edit(tmp_path / "teacher", **changes)
    message = refused(checkpoint.load, tmp_path / "teacher")
    assert re.search(told, message) and "teacher/config.json" in message


@pytest.mark.parametrize("text", [b"\xff{}", b"[" * 100_000, b"9" * 5000, b"null"])
def test_a_description_that_is_no_json_object_is_refused(text: bytes, latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    (tmp_path / "teacher" / "config.json").write_bytes(text)
    assert "teacher/config.json is " in refused(checkpoint.load, tmp_path / "teacher")


def test_one_flipped_bit_of_the_weights_is_refused(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    path = tmp_path / "teacher" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = refused(checkpoint.load, tmp_path / "teacher")
    assert "model.safetensors has sha256 " in message and "config.json says " in message


def test_snapshots_of_other_names_or_shapes_are_refused(latents, tmp_path) -> None:
    write_checkpoint(tmp_path / "teacher", latents)
    first, second = sorted((tmp_path / "teacher" / "ema").iterdir())[:2]
    weights = load_file(first)
    save_file(weights | {"pos_embed": torch.zeros(1, 3, 3)}, second)
    assert "has other tensors than" in refused(checkpoint.load, tmp_path / "teacher", 0.1)
    first.rename(first.with_name("stepx_sigmay.safetensors"))
    assert "stepx_sigmay.safetensors is not called" in refused(checkpoint.load, tmp_path / "teacher", 0.1)
