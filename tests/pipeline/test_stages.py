"""Stages on tiny latents, in this process: every way to a teacher and to a student, and several processes."""

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import ROOT, SCRATCH, plain, write_checkpoint, write_latents, write_params
from safetensors.torch import load_file, save_file

import facm
from facm.data.latents.store import LatentSet
from facm.inference.samples import load_samples
from facm.networks import checkpoint
from facm.runtime import params
from facm.runtime.files import sha256
from facm.training import loop as train
from stages import baseline, distill, evaluate, sample, teacher


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty repository with latents; what stages set in this process is set back."""
    monkeypatch.chdir(tmp_path)
    write_latents(Path("data/latents"))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def trained(stage, here: Path, **changes) -> tuple[checkpoint.Config, dict[str, torch.Tensor]]:
    """Run a training stage with these params; returns what it wrote."""
    write_params(here, **changes)
    stage.main()
    folder = here / ("data/teacher" if stage is teacher else "data/student")
    assert list((here / ".work").iterdir()) == [], "unfinished work is pruned on success"
    network, config = checkpoint.load(folder)
    return config, dict(network.state_dict())


def test_the_stages_make_a_teacher_a_student_and_samples(here: Path) -> None:
    config, weights = trained(teacher, here, distill__conditioning="auxiliary")
    assert (config.kind, config.objective, config.step) == ("teacher", "fm", 4)
    assert config.samplers == ["euler", "heun", "dpmpp", "edm"]
    assert config.params == params.tracked(plain(distill__conditioning="auxiliary"), "teacher")
    assert config.threads == 1 and config.knows_fm_format
    student, _ = trained(distill, here, distill__conditioning="auxiliary")
    assert (student.kind, student.objective, student.conditioning) == ("student", "facm", "auxiliary")
    assert load_file("data/student/model.safetensors").keys() > weights.keys(), "the student has an embedder of r, too"
    assert len(checkpoint.snapshots("data/teacher")) == len(checkpoint.snapshots("data/student")) == 2 * 2
    sample.main()
    images, labels = load_samples("data/samples/nfe2.npz")
    assert images.shape == (6, 4, 4, 1) and labels is not None and labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(images, facm.load("data/student").generate(labels.tolist(), nfe=2, seed=1))
    figures = {
        **json.loads(Path("metrics/teacher.json").read_text()),
        **json.loads(Path("metrics/distill.json").read_text()),
    }
    assert figures["teacher_training"].keys() == {"loss_fm", "steps", "skipped", "stable"}
    assert figures["distill_training"].keys() == {"loss_fm", "loss_cm", "steps", "skipped", "stable"}
    header, first, *_, last = Path("metrics/weighting.csv").read_text().splitlines()
    assert (header, first) == ("t,alpha,beta", "0.0,1.0,1.0") and last.startswith("1.0,0.0,")
    assert not list(here.rglob("*.tmp"))


def test_the_stages_decode_with_the_rounding_of_params(here: Path) -> None:
    write_checkpoint(Path("data/student"), LatentSet.open("data/latents"), kind="student")
    made = []
    for rounding in ("round", "floor"):
        write_params(here, sample__rounding=rounding)
        sample.main()
        made.append(load_samples("data/samples/nfe1.npz")[0][:].int())
    assert sorted(set((made[0] - made[1]).flatten().tolist())) == [0, 1]


def test_a_stage_that_runs_again_writes_the_same_bytes(here: Path) -> None:
    trained(teacher, here)
    before = {path: path.read_bytes() for path in Path("data/teacher").rglob("*.safetensors")}
    torch.manual_seed(99)
    trained(teacher, here)
    assert {path: path.read_bytes() for path in Path("data/teacher").rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    "changes",
    [{"teacher__fraction": 0.0}, {"teacher__conditioning": "plain"}, {"teacher__conditioning": "auxiliary"}],
    ids=["fraction 0", "plain", "auxiliary"],
)
def test_a_student_learns_from_every_kind_of_teacher(changes: dict, here: Path) -> None:
    if changes == {"teacher__conditioning": "auxiliary"}:
        changes = changes | {"distill__conditioning": "auxiliary", "distill__teacher_condition": "fm"}
    taught, _ = trained(teacher, here, **changes)
    assert taught.knows_fm_format == ("distill__teacher_condition" in changes)
    student, weights = trained(distill, here, **changes)
    assert student.knows_fm_format and all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("which", ["online", "ema"])
def test_a_student_from_scratch_needs_no_teacher(which: str, here: Path) -> None:
    changes = SCRATCH | {"distill__dropout": 0.1}
    config, _ = trained(distill, here, **changes, distill__scratch_source=which)
    assert config.kind == "student" and not Path("data/teacher").exists()


def test_a_student_by_continued_flow_matching_says_what_it_ignores(here: Path, capsys) -> None:
    changes = {"distill__objective": "fm", "sample__sampler": "euler"}
    trained(teacher, here)
    config, _ = trained(distill, here, **changes)
    assert config.samplers == ["euler", "heun", "dpmpp", "edm"] and config.objective == "fm"
    told = "distill: objective 'fm' has no use for alpha, beta, p; recorded as null"
    assert told in capsys.readouterr().out.splitlines()
    assert {name: config.params["distill"][name] for name in ("alpha", "beta", "p", "w")} == {
        "alpha": None,
        "beta": None,
        "p": None,
        "w": 1.75,
    }
    sample.main()
    assert load_samples("data/samples/nfe1.npz")[0].shape == (6, 4, 4, 1)


def test_a_model_without_classes_goes_all_the_way(here: Path) -> None:
    write_latents(Path("data/latents"), classes=0)
    trained(teacher, here)
    config, weights = trained(distill, here)
    assert config.num_classes == 0 and not any(name.startswith("y_embedder") for name in weights)
    sample.main()
    images, labels = load_samples("data/samples/nfe1.npz")
    assert images.shape == (6, 4, 4, 1) and labels is None


def test_a_teacher_is_fine_tuned_from_the_pinned_checkpoint(here: Path) -> None:
    """With a learning rate that moves nothing, the result is what it started from."""
    older = write_checkpoint(here / "data/older", train.LatentSet.open("data/latents"), teacher__conditioning="plain")
    still = {"teacher__init": "data/older", "teacher__optimizer__lr": 1e-30}
    config, weights = trained(teacher, here, **still, teacher__init_sha256=older.sha256)
    assert config.knows_fm_format
    assert all(torch.equal(value, weights[name]) for name, value in load_file("data/older/model.safetensors").items())
    write_params(here, **still, teacher__init_sha256="0" * 64)
    with pytest.raises(checkpoint.CheckpointError, match=f"sha256 {older.sha256}, expected is {'0' * 64}"):
        teacher.main()


def test_a_student_starts_from_another_checkpoint_than_its_teachers(here: Path) -> None:
    latents = train.LatentSet.open("data/latents")
    write_checkpoint(here / "data/teacher", latents)
    older = write_checkpoint(here / "data/older", latents, seed=5)
    still = {"distill__init": "data/older", "distill__init_sha256": older.sha256, "distill__optimizer__lr": 1e-30}
    _, weights = trained(distill, here, **still)
    assert all(torch.equal(value, weights[name]) for name, value in load_file("data/older/model.safetensors").items())


def test_a_stopped_stage_goes_on_where_it_was_and_other_params_start_afresh(here: Path, monkeypatch, capsys) -> None:
    whole = {path.name: path.read_bytes() for path in written(here)}
    advance = train.Loop.advance

    def killed(loop: train.Loop, stopped: list[int]) -> bool:
        if loop.state.step == 3:
            raise KeyboardInterrupt
        return advance(loop, stopped)

    monkeypatch.setattr(train.Loop, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(teacher, here, runtime__save_every=2)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    gc.collect()  # the lock goes with the killed loop, as it does with a killed process
    capsys.readouterr()
    (unfinished,) = (here / ".work").iterdir()
    write_params(here, runtime__save_every=2, teacher__seed=1)
    teacher.main()
    assert "resumed" not in capsys.readouterr().out and unfinished.exists()
    write_params(here, runtime__save_every=3, distill__alpha="cos", sample__num=5)
    teacher.main()
    assert f"teacher: resumed at step 2 from .work/{unfinished.name}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in Path("data/teacher").rglob("*.safetensors")} == whole
    assert not unfinished.exists()


def test_unfinished_work_is_taken_up_only_where_all_that_matters_is_the_same(here: Path, monkeypatch) -> None:
    def key(stage, **changes) -> str:
        """The key of a stage's unfinished work with these params."""
        seen: list[str] = []
        monkeypatch.setattr(stage, "Work", lambda name, key: seen.append(key) or sys.exit())
        write_params(here, **changes)
        with pytest.raises(SystemExit):
            stage.main()
        return seen[0]

    latents = train.LatentSet.open("data/latents")
    write_checkpoint(here / "data/teacher", latents)
    other_stages = {"sample__num": 5, "baseline__w": 2.0, "objectives__fm__fraction": 0.1, "backbones__mlp__hidden": 8}
    indifferent = other_stages | {"runtime__log_every": 7, "runtime__save_every": 9}
    matters = {"runtime__threads": 2, "backbones__lightningdit__gate_bias": 0.1}
    of_stage = {
        teacher: (
            matters | {"teacher__steps": 5},
            indifferent | {"distill__alpha": "cos", "objectives__facm__clamp": 2.0},
        ),
        distill: (
            matters | {"distill__alpha": "cos", "objectives__facm__clamp": 2.0},
            indifferent | {"teacher__steps": 5},
        ),
    }
    keys = {stage: key(stage) for stage in of_stage}
    for stage, (stale, fresh) in of_stage.items():
        assert len({key(stage, **{name: value}) for name, value in stale.items()} | {keys[stage]}) == 1 + len(stale)
        assert {key(stage, **{name: value}) for name, value in fresh.items()} == {keys[stage]}
    write_checkpoint(here / "data/teacher", latents, seed=1)
    assert key(distill) != keys[distill] and key(teacher) == keys[teacher]
    write_latents(Path("data/latents"), num=12)
    assert key(teacher) != keys[teacher]


def written(here: Path) -> list[Path]:
    """The weights of an uninterrupted run of the teacher."""
    trained(teacher, here)
    return list(Path("data/teacher").rglob("*.safetensors"))


def break_student(value: float) -> None:
    """Give the student weights that answer with no number."""
    path = Path("data/student/model.safetensors")
    save_file({name: torch.full_like(tensor, value) for name, tensor in load_file(path).items()}, path)
    described = path.with_name("config.json")
    described.write_text(json.dumps(json.loads(described.read_text()) | {"sha256": sha256(path)}))


def test_pictures_that_are_not_finite_end_the_stage_or_are_recorded(here: Path, capsys) -> None:
    trained(teacher, here)
    trained(distill, here)
    break_student(torch.nan)
    with pytest.raises(ValueError, match="NFE 1: 6 of 6 pictures are not finite: the network has diverged"):
        sample.main()
    trained(distill, here, distill__if_diverged="record")
    sample.main()
    assert not Path("data/samples/not_finite.json").exists()
    break_student(torch.nan)
    sample.main()
    assert "not finite and recorded, as distill.if_diverged says: {'nfe1': 6, 'nfe2': 6}" in capsys.readouterr().out
    assert evaluate.ending({"stable": True, "steps": 4}, Path("data/samples/not_finite.json")) == {
        "stable": False,
        "not_finite": {"nfe1": 6, "nfe2": 6},
    }
    assert evaluate.ending({"stable": True, "steps": 4}, Path("none.json")) == {"stable": True}


def test_a_diverged_student_tells_the_step_that_it_has_come_to(here: Path, monkeypatch) -> None:
    trained(teacher, here)
    monkeypatch.setattr(train, "PATIENCE", 2)
    monkeypatch.setattr(train.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.nan))
    config, _ = trained(distill, here, distill__if_diverged="record")
    assert config.step == 2 and json.loads(Path("metrics/distill.json").read_text())["distill_training"]["steps"] == 2


def test_the_guided_teacher_is_drawn_with_the_nfe_it_counts(here: Path, monkeypatch) -> None:
    write_params(here)
    write_checkpoint(here / "data/teacher", train.LatentSet.open("data/latents"))
    monkeypatch.setattr(baseline.Reference, "open", lambda folder: None)
    monkeypatch.setattr(baseline.evaluate, "score", lambda images, labels, reference, **options: {"fd": 1.0})
    baseline.main()
    scores = json.loads(Path("metrics/baseline.json").read_text())["baseline"]
    assert scores == {"nfe": 5, "w": 1.75, "num": 6, "fd": 1.0}  # Heun: v(0) unguided, v(1/2) twice, guided
    assert load_samples("data/baseline/teacher.npz")[0].shape == (6, 4, 4, 1)


def test_two_processes_train_the_student_of_one_up_to_rounding(here: Path) -> None:
    """`FACM_NPROC=2 python -m facm.launch stages.distill`: gloo, global batch, rank 0 writes."""
    changes = SCRATCH | {"distill__label_dropout": 0.3}
    _, weights = trained(distill, here, **changes)
    rows = {path.name: np.loadtxt(path, skiprows=1) for path in Path("metrics/distill").rglob("*.tsv")}
    one = {path.name: load_file(path) for path in Path("data/student/ema").iterdir()}
    ran = subprocess.run(
        [sys.executable, "-m", "facm.launch", "stages.distill"],
        env=os.environ | {"FACM_NPROC": "2", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(re.findall(r"^distill 4/4 ", ran.stdout, re.MULTILINE)) == 1, "rank 0 alone tells"
    both, _ = checkpoint.load("data/student")
    assert list((here / ".work").iterdir()) == []
    for name, value in both.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-4)
    for path in Path("data/student/ema").iterdir():
        for name, value in load_file(path).items():
            torch.testing.assert_close(value, one[path.name][name], rtol=1e-4, atol=1e-4)
    for path in Path("metrics/distill").rglob("*.tsv"):
        np.testing.assert_allclose(np.loadtxt(path, skiprows=1), rows[path.name], rtol=1e-4, atol=1e-4)
