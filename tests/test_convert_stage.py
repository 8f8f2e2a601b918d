"""A published checkpoint in the teacher's place: by the stage, pinned, checked, and fine-tuned afterwards."""

import json
from pathlib import Path

import pytest
import torch
from foreign import network, release_file, stats_file
from miniature import parsed, write_latents, write_params

from facm import check, checkpoint, convert
from facm.convert.pickles import ForeignError
from facm.params import ParamsError
from stages import distill, import_teacher, teacher

SIZES = {"patch_size": 2, "hidden": 32, "depth": 1, "heads": 2}
IMPORTED = {
    "teacher__stage": "import_teacher",
    "teacher__conditioning": "expanded",
    "imported__code": "facm/convert",
    "imported__source": "x.pt",
    "imported__format": "facm",
    "imported__stats": "stats.pt",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty repository with latents, their statistics as the authors have them, and a checkpoint of FACM's."""
    monkeypatch.chdir(tmp_path)
    latents = write_latents(Path("data/latents"), channels=4, side=8, classes=5, num=20)
    torch.save({"mean": latents.mean.view(1, -1, 1, 1), "std": latents.std.view(1, -1, 1, 1)}, "stats.pt")
    release_file(Path("x.pt"), dict(network("lightningdit", depth=1).state_dict()))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def imported(here: Path, **changes) -> checkpoint.Config:
    """Run the stage; returns what it wrote."""
    pinned = {"imported__sha256": checkpoint.sha256("x.pt")}
    write_params(here, **{**IMPORTED, **pinned, **changes})
    import_teacher.main()
    return checkpoint.read_config("data/teacher")


def test_the_stage_puts_the_checkpoint_into_the_teachers_place(here: Path) -> None:
    config = imported(here)
    stored = checkpoint.load("data/teacher")[0].state_dict()
    assert all(torch.equal(stored[name], w) for name, w in network("lightningdit", depth=1).state_dict().items())
    assert (config.kind, config.conditioning, config.knows_fm_format) == ("teacher", "expanded", True)
    assert config.constants == check.backbone(parsed())[1], "as params.yaml has them"
    assert config.params["imported"]["sha256"] == checkpoint.sha256("x.pt")
    assert config.params["teacher"]["stage"] == "import_teacher"
    figures = json.loads(Path("metrics/teacher.json").read_text())
    assert figures == {"teacher_training": {"steps": 0, "skipped": 0, "stable": True}}
    assert Path("metrics/teacher/imported.csv").read_text().startswith("step,tensors\n0,")
    write_params(here, **{**IMPORTED, "imported__sha256": "0" * 64})
    distill.main()
    assert checkpoint.read_config("data/student").kind == "student"


def test_a_converted_plain_teacher_is_fine_tuned_with_mixed_conditioning(here: Path) -> None:
    """Paper, A.3a: the folder that the command writes is what teacher.init takes."""
    source = convert.Source(Path("x.pt"), "lightningdit")
    space = convert.space("lightningdit", codec="identity", stats=Path("stats.pt"))
    weights, config = convert.convert(source, space)
    assert config.conditioning == "plain"
    checkpoint.save("plain", weights, config)
    pinned = checkpoint.read_config("plain").sha256
    write_params(here, teacher__init="plain", teacher__init_sha256=pinned, teacher__optimizer__lr=1e-30)
    teacher.main()
    tuned, mixed = checkpoint.load("data/teacher")
    assert mixed.knows_fm_format and all(torch.equal(w, weights[name]) for name, w in tuned.state_dict().items())


REFUSED = [
    ({"imported__sha256": "0" * 64}, ForeignError, f"pinned is {'0' * 64}: it is another file"),
    ({"imported__source": "y.pt"}, FileNotFoundError, "y.pt is missing"),
    ({"imported__stats": None}, ForeignError, "'facm' normalises its latents: give the latents_stats.pt"),
    ({"imported__stats": "others.pt"}, checkpoint.CheckpointError, "x.pt was made on latents of mean [-0.3"),
    ({"teacher__conditioning": "plain"}, ForeignError, "x.pt knows conditioning 'expanded', params.yaml, teacher.cond"),
    ({"imported__format": "lightningdit"}, ForeignError, "fine-tune it for a few epochs with teacher.stage: teacher"),
    ({"backbones__lightningdit__depth": 2}, ForeignError, "\n  missing: blocks.1.attn.qkv.weight"),
    ({"backbone__name": "mlp", "data__name": "mixture"}, ParamsError, "reference.features"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_written(changes: dict, kind: type, message: str, here: Path) -> None:
    stats_file(Path("others.pt"))
    with pytest.raises(kind) as caught:
        imported(here, **changes)
    assert message in str(caught.value) and not Path("data/teacher").exists()


def test_latents_of_other_classes_are_refused(here: Path) -> None:
    latents = write_latents(Path("data/latents"), channels=4, side=8, classes=3, num=20)
    torch.save({"mean": latents.mean, "std": latents.std}, "stats.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"x\.pt knows 5 classes, data/latents has 3"):
        imported(here)


WRONG = [
    ({"imported__code": "facm/convert"}, "imported.code: 'facm/convert' with teacher.stage 'teacher'"),
    ({"teacher__stage": "import_teacher"}, "imported.code: 'data/latents' with teacher.stage 'import_teacher'"),
    (IMPORTED, "imported.sha256: is null: say which checkpoint is to be the teacher"),
    (
        {**IMPORTED, "imported__sha256": "0" * 64, "teacher__init": "older", "teacher__init_sha256": "0" * 64},
        "teacher.init: import_teacher does not train, so that nothing starts from 'older'",
    ),
    ({**IMPORTED, "imported__sha256": "0" * 64, "imported__format": "sitt"}, "unknown 'sitt' (did you mean 'sit'?)"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=range(len(WRONG)))
def test_params_that_cannot_be_run_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check.check(parsed(**changes))
    assert message in str(caught.value)
