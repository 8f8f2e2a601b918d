"""What a stage refuses before any work starts: the message names value, rule and place, and nothing is written."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import truncate, write_checkpoint, write_latents, write_params

from facm import check, launch
from facm.data.datasets import fingerprint
from facm.data.latents.store import LatentSet
from facm.runtime.params import ParamsError
from facm.runtime.resume import Busy, Work
from stages import baseline, distill, evaluate, latents, reference, report, sample, teacher

STAGES = {
    "reference": reference,
    "latents": latents,
    "teacher": teacher,
    "baseline": baseline,
    "distill": distill,
    "sample": sample,
    "evaluate": evaluate,
    "report": report,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A repository with latents of 3 classes, a teacher and a student."""
    monkeypatch.chdir(tmp_path)
    made = write_latents(Path("data/latents"))
    write_checkpoint(Path("data/teacher"), made)
    write_checkpoint(Path("data/student"), made, kind="student")
    write_params(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(stage, kind: type[Exception] = ValueError) -> str:
    """The message with which a stage ends; it must have written nothing."""
    before = files(Path())
    with pytest.raises(kind) as caught:
        stage.main()
    assert files(Path()) == before
    return str(caught.value)


# params.yaml: every stage checks the whole file first

WRONG = {
    "misspelt key": (
        {"distill__alpah": "cos"},
        "params.yaml, distill: unknown 'alpah' (did you mean 'alpha'?); known: ",
    ),
    "wrong type": ({"teacher__steps": "many"}, "params.yaml, teacher.steps: must be a whole number, got 'many'"),
    "out of range": ({"sample__num": 0}, "params.yaml, sample.num: 0 is outside [1, inf)"),
    "unknown objective": ({"distill__objective": "facn"}, "unknown 'facn' (did you mean 'facm'?); known: cd, ect, "),
    "unknown backbone": ({"backbone__name": "unet"}, "params.yaml, backbone.name: unknown 'unet'"),
    "unknown weighting": ({"distill__beta": "sin"}, "params.yaml, distill.beta: 'sin' is not one of one, power, cos"),
    "unfit sampler": (
        {"distill__objective": "fm"},
        "sample.sampler: 'consistency' does not fit objective 'fm', which has",
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_mistake_anywhere_in_params_is_told_by_every_stage(name: str, here: Path) -> None:
    changes, message = WRONG["misspelt key"]
    write_params(here, **changes)
    assert message in refused(STAGES[name], ParamsError)


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_under_distill_is_told_before_the_teacher_is_trained(mistake: str, here: Path) -> None:
    changes, message = WRONG[mistake]
    write_params(here, **changes)
    assert message in refused(teacher, ParamsError)


def test_no_params_at_all_are_told_with_the_command_that_writes_them(here: Path) -> None:
    Path("params.yaml").unlink()
    assert refused(teacher) == "params.yaml is missing: write it with `python -m facm.preset digits`"


def test_the_command_tells_a_mistake_in_one_line(here: Path, monkeypatch) -> None:
    write_params(here, **WRONG["misspelt key"][0])
    monkeypatch.setattr("sys.argv", ["launch"])
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "stages.teacher")
    with pytest.raises(SystemExit) as ended:
        launch.main(["stages.teacher"])
    told = str(ended.value).splitlines()
    assert told[1].startswith("error in stages.teacher: params.yaml, distill: unknown 'alpah' (did you mean 'alpha'?)")
    assert len(told) == 3 and told[2] == "(FACM_TRACEBACK=1 shows where)"


# The data set


@pytest.mark.parametrize("stage", [latents, reference], ids=["latents", "reference"])
def test_a_data_set_that_has_changed_is_refused(stage, here: Path) -> None:
    write_params(here, data__fingerprint="0" * 64)
    told = refused(stage)
    assert f"params.yaml, data.fingerprint: pinned is {'0' * 64}, but the pictures and labels of 'digits'" in told
    assert f"have {fingerprint('digits', None)}" in told and "`python -m facm.data` prints" in told


def test_a_published_reference_is_checked_before_any_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facm.data.datasets.admit", lambda *_: pytest.fail("the data set was read first"))
    pinned = {"reference__features": "inception", "reference__source": "r.npz", "reference__sha256": "0" * 64}
    write_params(here, **pinned)
    assert refused(reference, FileNotFoundError).endswith("r.npz is missing: fetch it, or set source: dataset")
    np.savez("r.npz", mu=np.zeros(8), sigma=np.eye(8))
    assert f"params.yaml, reference.sha256: pinned is {'0' * 64}, but " in refused(reference)


# data/latents


@pytest.mark.parametrize("stage", [teacher, distill], ids=["teacher", "distill"])
def test_missing_or_damaged_latents_are_told_with_file_and_cure(stage, here: Path) -> None:
    shard, cure = Path("data/latents/shard_00001.safetensors"), "remove data/latents and run `dvc repro`"
    truncate(shard)
    told = refused(stage)
    assert told.startswith(f"{shard} is damaged (") and told.endswith(cure)
    shard.unlink()
    assert refused(stage, FileNotFoundError) == f"{shard} is missing: {cure}"
    truncate(Path("data/latents/meta.json"))
    assert refused(stage).startswith("data/latents/meta.json is damaged (")
    Path("data/latents/meta.json").unlink()
    assert refused(stage, FileNotFoundError) == f"data/latents/meta.json is missing: {cure}"


def test_a_shard_of_another_set_is_refused(here: Path) -> None:
    first, last = sorted(Path("data/latents").glob("shard_*"))[::2]
    last.write_bytes(first.read_bytes())
    told = refused(teacher)
    assert told.startswith(f"{last} has ") and "meta.json says" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones__lightningdit__patch_size": 3}, "params.yaml, backbones.lightningdit"),
        ({"backbones__lightningdit__heads": 5}, "params.yaml, backbones.lightningdit"),
        ({"backbones__lightningdit__hiden": 5}, "backbones.lightningdit: unknown 'hiden' (did you mean 'hidden'?)"),
        ({"backbones__lightningdit__depth": 0.5}, "backbones.lightningdit.depth: must be a whole number, got 0.5"),
        (
            {"backbone__name": "mlp"},
            "backbone.name: 'mlp' is for points, and data.name 'digits' has pictures: set it to",
        ),
    ],
    ids=str,
)
def test_a_backbone_that_does_not_fit_the_latents_is_refused(changes: dict, message: str, here: Path) -> None:
    write_params(here, **changes)
    assert message in refused(teacher)


@pytest.mark.parametrize("stage", [teacher, distill], ids=["teacher", "distill"])
@pytest.mark.parametrize("place", ["teacher.cosine", "objectives.facm.cosine"])
def test_the_cosine_per_channel_is_refused_where_there_is_one_channel(place: str, stage, here: Path) -> None:
    write_params(here, **{place.replace(".", "__"): "channel"})
    told = refused(stage)
    assert told.startswith(f"params.yaml, {place}: 'channel' with latents of one channel: the cosine of one number is")
    write_latents(Path("data/latents"), channels=2)
    assert "data/teacher was made with shape (1, 4, 4)" in refused(distill), "with two channels it is in order"


# data/teacher


@pytest.mark.parametrize(
    ("stage", "folder"), [(distill, "teacher"), (baseline, "teacher"), (sample, "student")], ids=str
)
def test_a_missing_or_truncated_checkpoint_is_told_with_file_and_cure(stage, folder: str, here: Path) -> None:
    path = Path("data", folder, "model.safetensors")
    truncate(path)
    told = refused(stage)
    assert told.startswith(f"{path} is damaged (") and told.endswith(f"remove {path.parent} and run `dvc repro`")
    path.unlink()
    assert refused(stage) == f"{path} is missing: `dvc pull` or `dvc repro` brings it"
    Path("data", folder, "config.json").unlink()
    assert refused(stage).startswith(f"data/{folder} is no checkpoint: data/{folder}/config.json is missing;")


def test_weights_that_were_exchanged_are_refused(here: Path) -> None:
    write_checkpoint(Path("data/other"), LatentSet.open("data/latents"), seed=1)
    Path("data/teacher/model.safetensors").write_bytes(Path("data/other/model.safetensors").read_bytes())
    assert "data/teacher/model.safetensors has sha256 " in refused(distill)


@pytest.mark.parametrize(("classes", "known"), [(5, 3), (2, 3), (0, 3)])
def test_a_student_cannot_have_other_classes_than_its_teacher(classes: int, known: int, here: Path) -> None:
    write_latents(Path("data/latents"), classes=classes)
    told = refused(distill)
    assert told.startswith(
        f"data/teacher knows {known} classes, data/latents has {classes}: a student cannot have other"
    )
    assert told.endswith("rerun the teacher, or choose another data.name")


def test_a_teacher_of_other_latents_is_refused(here: Path) -> None:
    config = Path("data/teacher/config.json")
    described = json.loads(config.read_text())
    for changes, message in (
        ({"mean": [0.5]}, "data/teacher was made on latents of mean [0.5], data/latents has [-0.0"),
        ({"std": [2.0]}, "data/teacher was made on latents of std [2.0], data/latents has [0.5"),
        (
            {"codec": "vae"},
            "data/teacher was made with codec 'vae', data/latents with 'identity': set latents.codec in",
        ),
    ):
        config.write_text(json.dumps(described | changes))
        assert message in refused(distill)
    config.write_text(json.dumps(described))
    write_latents(Path("data/latents"), side=6)
    assert "data/teacher was made with shape (1, 4, 4), data/latents with (1, 6, 6): set latents.codec" in refused(
        distill
    )


def test_a_student_of_another_width_is_refused(here: Path) -> None:
    write_params(here, backbones__lightningdit__hidden=48)
    told = refused(distill)
    assert told.startswith("data/teacher/model.safetensors does not fit the network of params.yaml, backbones: ")
    assert "other shape ['blocks.0." in told


def test_an_expanded_student_of_an_auxiliary_teacher_is_refused(here: Path) -> None:
    write_checkpoint(Path("data/teacher"), LatentSet.open("data/latents"), teacher__conditioning="auxiliary")
    assert "data/teacher was trained with conditioning 'auxiliary', a second time r" in refused(distill)


def test_a_plain_teacher_cannot_be_asked_in_the_fm_format(here: Path) -> None:
    write_checkpoint(Path("data/teacher"), LatentSet.open("data/latents"), teacher__fraction=0.0)
    write_params(here, distill__teacher_condition="fm")
    assert "data/teacher is a plain teacher, which knows t only: set distill.teacher_condition: t" in refused(distill)


@pytest.mark.parametrize("stage", [teacher, distill], ids=["teacher", "distill"])
def test_the_pin_of_a_first_checkpoint_is_checked(stage, here: Path) -> None:
    name = "teacher" if stage is teacher else "distill"
    write_params(here, **{f"{name}__init": "data/nothing", f"{name}__init_sha256": "0" * 64})
    assert refused(stage).startswith("data/nothing is no checkpoint: ")
    write_params(here, **{f"{name}__init": "data/teacher", f"{name}__init_sha256": "0" * 64})
    assert f"expected is {'0' * 64}: it is not the checkpoint that init_sha256 in params.yaml pins" in refused(stage)


# data/student, data/samples


def test_a_sampler_that_the_student_on_disk_cannot_use_is_refused(here: Path) -> None:
    made = LatentSet.open("data/latents")
    write_checkpoint(Path("data/student"), made, kind="student", distill__objective="fm", sample__sampler="euler")
    told = refused(sample)
    assert told.startswith("sampler 'consistency' does not fit a student trained by 'fm': it has euler, heun, dpmpp,")


def test_an_ema_length_without_snapshots_is_refused(here: Path) -> None:
    for path in Path("data/student/ema").iterdir():
        path.unlink()
    write_params(here, sample__sigma_rel=0.1)
    assert refused(sample) == "data/student/ema holds 0 snapshots, post-hoc EMA needs two: set ema.snapshots"


def test_evaluation_without_its_inputs_is_refused(here: Path, monkeypatch) -> None:
    assert refused(evaluate, FileNotFoundError) == "metrics/reference.json is missing: run `dvc repro`"
    Path("metrics").mkdir()
    Path("metrics/reference.json").write_text('{"reference": {"features": "digits_cnn"}}')
    assert refused(evaluate, FileNotFoundError) == "metrics/baseline.json is missing: run `dvc repro`"
    Path("metrics/baseline.json").write_text("{}")
    assert refused(evaluate, FileNotFoundError) == "metrics/distill.json is missing: run `dvc repro`"
    Path("metrics/distill.json").write_text('{"distill_training": {"stable": true, "steps": 2}}')
    assert "data/reference/meta.json is missing: " in refused(evaluate, FileNotFoundError)
    monkeypatch.setattr(evaluate.Reference, "open", lambda folder: None)
    assert refused(evaluate, FileNotFoundError) == "data/samples holds no nfe<N>.npz: run `dvc repro`"
    Path("data/samples").mkdir()
    Path("data/samples/nfe1.npz").write_bytes(b"PK")
    assert "data/samples/nfe1.npz is missing or damaged (" in refused(evaluate)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("reference", "{}", "metrics/reference.json lacks 'reference': run `dvc repro`"),
        ("reference", '{"reference": {}}', "metrics/reference.json, reference lacks 'features': run `dvc repro`"),
        ("baseline", "[1]", "metrics/baseline.json: must be an object of names and values, it is [1]: run `dvc repro`"),
        ("distill", '{"distill_training": 3}', "metrics/distill.json, distill_training: must be an object of"),
        ("distill", '{"distill_training": {"stable": 1, "steps": 2}}', "distill_training, stable: must be true or fal"),
    ],
)
def test_metrics_of_another_form_are_refused_by_name(name: str, text: str, told: str, here: Path) -> None:
    Path("metrics").mkdir()
    Path("metrics/reference.json").write_text('{"reference": {"features": "digits_cnn"}}')
    Path("metrics/baseline.json").write_text("{}")
    Path(f"metrics/{name}.json").write_text(text)
    assert told in refused(evaluate)


# The place


@pytest.mark.parametrize("name", STAGES)
def test_a_place_without_write_permission_is_told_by_every_stage(name: str, here: Path, monkeypatch) -> None:
    monkeypatch.setattr(check.os, "access", lambda path, mode: False)
    told = refused(STAGES[name], PermissionError)
    assert "cannot be written, but " in told and told.endswith("must be made there: change its owner or mode")


def test_the_permissions_of_the_file_system_decide(here: Path) -> None:
    """For real: as root, for whom nothing is forbidden, under another real user, which is the one `access` asks for."""
    here.chmod(0o755)
    Path("data").chmod(0o555)
    root = os.getuid() == 0
    if root:
        os.setresuid(65534, 0, 0)
    try:
        told = refused(teacher, PermissionError)
    finally:
        if root:
            os.setresuid(0, 0, 0)
        Path("data").chmod(0o755)
    assert told == "data cannot be written, but data must be made there: change its owner or mode"


def test_a_stage_that_would_wait_for_its_own_process_is_refused(here: Path, monkeypatch) -> None:
    monkeypatch.setattr(teacher, "key", lambda *arguments: "k")
    running = Work("teacher", "k")
    with pytest.raises(Busy, match=r"this process is at work on this very run already \(\.work/teacher-k\)"):
        teacher.main()
    running.close()


@pytest.mark.parametrize("stage", [latents, teacher, distill], ids=["latents", "teacher", "distill"])
def test_another_teacher_that_is_not_there_is_told_before_any_training(stage, here: Path) -> None:
    write_params(here, distill__teacher="data/other")
    told = refused(stage, FileNotFoundError)
    assert told.startswith("params.yaml, distill.teacher: data/other is no checkpoint folder (no config.json in it): ")


@pytest.mark.parametrize("stage", [teacher, distill], ids=["teacher", "distill"])
def test_weights_of_a_distance_that_are_not_there_are_told_before_any_training(stage, here: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here / "cache"))
    write_params(here, distill__objective="cd", objectives__cd__distance="lpips")
    told = refused(stage, FileNotFoundError)
    assert told.startswith("params.yaml, objectives.cd.distance: 'lpips' needs ")
    assert "vgg16-397923af.pth: run `python -m facm.networks.lpips`" in told
