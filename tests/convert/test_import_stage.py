"""A published checkpoint in the teacher's place: by the stage, pinned, checked, and fine-tuned afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign import inputs, network, release_file, stats_file, theirs, transformer_file
from miniature import parsed, write_latents, write_params

from facm import check, convert
from facm.check import inputs as foresight
from facm.data.latents import statistics
from facm.data.latents.store import LatentSet
from facm.networks import checkpoint
from facm.runtime.foreign import ForeignError
from facm.runtime.params import ParamsError
from stages import distill, import_teacher, teacher
from stages import latents as latents_stage

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
    assert config.params["teacher"]["stage"] == "import_teacher" and config.params["imported"]["which"] == "ema"
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
    weights, config = convert.convert(source, space, {"classes": 5})
    assert config.conditioning == "plain"
    checkpoint.save("plain", weights, config)
    pinned = checkpoint.read_config("plain").sha256
    write_params(here, teacher__init="plain", teacher__init_sha256=pinned, teacher__optimizer__lr=1e-30)
    teacher.main()
    tuned, mixed = checkpoint.load("data/teacher")
    assert mixed.knows_fm_format and all(torch.equal(w, weights[name]) for name, w in tuned.state_dict().items())


REFUSED = [
    ({"imported__sha256": "0" * 64}, ForeignError, f"pinned is {'0' * 64}: it is another file"),
    ({"imported__source": "y.pt"}, FileNotFoundError, "params.yaml, imported.source: y.pt is missing"),
    ({"imported__stats": "y.pt"}, FileNotFoundError, "params.yaml, imported.stats: y.pt is missing"),
    ({"imported__stats": None}, ParamsError, "imported.stats: format 'facm' normalises its latents"),
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


UNFIT = [
    ({"imported__sha256": "0" * 64}, f"pinned is {'0' * 64}: it is another file"),
    ({"imported__source": "y.pt"}, "imported.source: .*y.pt is missing"),
    ({"imported__source": "."}, "params.yaml, imported.source: .* is a folder: name a file"),
    ({"imported__stats": "none.pt"}, "params.yaml, imported.stats: none.pt is missing: check the path"),
    ({"imported__stats": "."}, "params.yaml, imported.stats: . is a folder: name a file"),
    ({"imported__stats": "three.pt"}, "x.pt has latents of 4 channels, the statistics are of 3"),
    ({"teacher__conditioning": "plain"}, "x.pt knows conditioning 'expanded', params.yaml, teacher.conditioning"),
    ({"imported__format": "sit", "imported__stats": None}, "x.pt is a sit with precond none, params.yaml, backbone"),
    ({"backbone__precond": "edm"}, r"params.yaml, backbone has name and precond \('lightningdit', 'edm'\)"),
    ({"backbones__lightningdit__depth": 2}, "\n  missing: blocks.1.attn.qkv.weight"),
]


@pytest.mark.parametrize(("changes", "message"), UNFIT, ids=[str(r[0]) for r in UNFIT])
def test_what_does_not_fit_is_refused_before_anything_is_encoded(changes: dict, message: str, here: Path) -> None:
    stats_file(Path("three.pt"), channels=3)
    shutil.rmtree("data")
    fitting = IMPORTED | {"imported__sha256": checkpoint.sha256("x.pt")}
    foresight.refuse_missing(parsed(**fitting))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        foresight.refuse_missing(parsed(**(fitting | changes)))


def test_of_several_processes_one_looks_at_a_checkpoint(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = parsed(**IMPORTED, imported__sha256="0" * 64)
    monkeypatch.setenv("RANK", "1")
    foresight.refuse_missing(p)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ForeignError):
        foresight.refuse_missing(p)


def test_latents_of_other_classes_are_refused(here: Path) -> None:
    latents = write_latents(Path("data/latents"), channels=4, side=8, classes=3, num=20)
    torch.save({"mean": latents.mean, "std": latents.std}, "stats.pt")
    with pytest.raises(
        ForeignError, match=r"x\.pt knows 5 classes and the null label, or 6 classes: .* 3 classes \(of"
    ):
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


# The space of a published teacher


def test_a_teacher_of_the_codecs_own_output_needs_latents_that_are_not_normalised(here: Path, capsys) -> None:
    transformer_file(Path("x.pt"))
    sizes = {f"backbones__sit__{name}": size for name, size in {**SIZES, "depth": 2, "variant": None}.items()}
    sit = {"backbone__name": "sit", "imported__format": "sit", "imported__stats": None}
    sit |= {"teacher__conditioning": "plain", **sizes}
    with pytest.raises(checkpoint.CheckpointError, match="both must be normalised alike"):
        imported(here, **sit)
    write_latents(Path("data/latents"), channels=4, side=8, classes=5, num=20, normalise="none")
    config = imported(here, **sit)
    assert (config.mean, config.std) == ([0.0] * 4, [1.0] * 4) and not config.knows_fm_format
    assert "data/teacher: codec identity: sit was published with sd_vae; no file tells" in capsys.readouterr().out
    x, t, y = inputs()
    network, _ = checkpoint.load("data/teacher")
    torch.testing.assert_close(network(x, t, y).double(), theirs(Path("x.pt"), x, t, y)[:, :4], rtol=1e-4, atol=1e-4)


def test_behind_a_precond_the_space_is_free_but_for_one_std(here: Path) -> None:
    transformer_file(Path("x.pt"))
    sizes = {f"backbones__dit__{name}": size for name, size in {**SIZES, "depth": 2, "variant": None}.items()}
    dit = {"backbone__name": "dit", "backbone__precond": "ddpm", "imported__format": "dit", "imported__stats": None}
    dit |= {"teacher__conditioning": "plain", **sizes}
    with pytest.raises(ValueError, match="set latents.normalise to one or none"):
        imported(here, **dit)
    write_latents(Path("data/latents"), channels=4, side=8, classes=5, num=20, normalise="one")
    config = imported(here, **dit)
    assert len(set(config.std)) == 1 and config.std[0] != 1
    with pytest.raises(ForeignError, match="has name and precond \\('dit', 'none'\\)"):
        imported(here, **{**dit, "backbone__precond": "none"})


MEASURED = {"mean": torch.tensor([1.0, 3.0]), "std": torch.tensor([3.0, 4.0])}
GIVEN = {"mean": torch.tensor([5.0, 6.0]), "std": torch.tensor([7.0, 8.0])}
SPACES = {
    "channel": MEASURED,
    "one": {"mean": MEASURED["mean"], "std": torch.full((2,), 12.5**0.5)},
    "none": {"mean": torch.zeros(2), "std": torch.ones(2)},
    "given": GIVEN,
}


@pytest.mark.parametrize("how", SPACES)
def test_latents_are_normalised_as_asked(how: str) -> None:
    found = statistics.statistics(MEASURED, how, GIVEN)
    assert all(torch.allclose(found[name], values) for name, values in SPACES[how].items())


def test_given_statistics_are_pinned_and_of_the_latents_channels(tmp_path: Path) -> None:
    path = stats_file(tmp_path / "stats.pt", channels=3)
    given = statistics.pinned(path, checkpoint.sha256(path))
    assert given["mean"].shape == (3,)
    with pytest.raises(ValueError, match=f"latents.stats_sha256: pinned is {'0' * 64}, but .* has "):
        statistics.pinned(path, "0" * 64)
    with pytest.raises(ValueError, match="latents.stats: 3 channels, the latents have 2"):
        statistics.statistics(MEASURED, "given", given)
    with pytest.raises(FileNotFoundError, match="params.yaml, latents.stats: .*none.pt is missing"):
        statistics.pinned(tmp_path / "none.pt", None)


def test_the_latents_stage_records_what_was_given(here: Path) -> None:
    stats_file(Path("one.pt"), channels=1)
    asked = {"latents__normalise": "given", "latents__stats": "one.pt"}
    write_params(here, **asked, latents__stats_sha256=checkpoint.sha256("one.pt"))
    latents_stage.main()
    opened = LatentSet.open("data/latents")
    assert opened.mean.tolist() == pytest.approx([-0.3]) and opened.std.tolist() == pytest.approx([0.5])
    for changes in ({"latents__normalise": "given"}, {"latents__stats": "one.pt"}):
        with pytest.raises(ParamsError, match="normalise 'given', stats and stats_sha256 go together"):
            check.check(parsed(**changes))
