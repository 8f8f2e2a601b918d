"""The model card: figures only where dvc.lock proves that they are this checkpoint's, and what is not known said so."""

import copy
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from miniature import ROOT, write_checkpoint, write_latents

from facm.export import __main__, card, provenance
from facm.networks import checkpoint
from facm.runtime import params

END = {"fd": 0.5, "kid": 0.1, "precision": 0.9, "recall": 0.8}
REFERENCE = {"reference": {"features": "digits_cnn", "num": 30, "floor": END, "noise": END | {"fd": 62.0}}}
TEACHER = {"nfe": 29, "w": 1.25, "num": 10, **END, "fd": 0.567, "copies": 0.0005}
EVALUATE = {
    "features": "digits_cnn",
    "num": 20,
    "floor": END,
    "noise": END | {"fd": 62.0},
    "teacher": TEACHER,
    "student": {"nfe1": END | {"fd": 1.0051, "copies": 0.001}, "nfe2": END | {"fd": 0.7623, "copies": 0.002}},
    "heldout_copies": 0.0067,
    "stable": True,
}
DATA = {"name": "digits", "fingerprint": "6aef"}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose dvc.lock tells of a student, a teacher and their figures, in git."""
    root = tmp_path_factory.mktemp("finished")
    latents = write_latents(root / "data/latents")
    write_checkpoint(root / "data/student", latents, kind="student")
    write_checkpoint(root / "data/teacher", latents)
    shutil.rmtree(root / "data/student-snapshots")
    shutil.rmtree(root / "data/teacher-snapshots")
    (root / "metrics").mkdir()
    for name, content in (("evaluate", EVALUATE), ("baseline", {"baseline": TEACHER}), ("reference", REFERENCE)):
        (root / f"metrics/{name}.json").write_text(json.dumps(content))
    write_lock(root, lock_of(root))
    for words in (("init", "-q"), ("add", "dvc.lock"), ("commit", "-q", "-m", "run")):
        name = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(("git", *name, *words), cwd=root, check=True)
    return root


def lock_of(root: Path) -> dict[str, Any]:
    """Stages as dvc.lock has them: hashes of what they took and gave, and their params."""
    names = ("latents", "teacher", "student")
    hashes = {name: f"{provenance.directory_md5(root / 'data' / name)}.dir" for name in names}
    latents, teacher, student = ({f"data/{name}": hashes[name]} for name in names)
    files = {name: md5(root / f"metrics/{name}.json") for name in ("evaluate", "baseline", "reference")}

    def listed(hashes: dict[str, str]) -> list[dict[str, str]]:
        return [{"path": path, "hash": "md5", "md5": value} for path, value in hashes.items()]

    def stage(deps: dict[str, str], outs: dict[str, str], **blocks: Any) -> dict[str, Any]:
        return {"deps": listed(deps), "outs": listed(outs), "params": {params.PATH: blocks}}

    scored = {f"metrics/{name}.json": files[name] for name in ("baseline", "reference")}
    drawn, seen = {"data/samples": "a.dir"}, {"data/reference": "b.dir"}
    guided = {"sampler": "heun", "steps": 3, "w": 1.25, "t_low": 0.125, "t_high": 1.0, "shift": 0.0, "seed": 1}
    sample = {"sampler": "consistency", "t_grid": [[0.0, 0.7]], "seed": 1, "sigma_rel": None, "rounding": "floor"}
    return {
        "reference": stage({}, seen | {"metrics/reference.json": files["reference"]}, reference={"num": 30}),
        "latents": stage({}, latents, data=DATA),
        "teacher": stage(latents, teacher),
        "baseline": stage(
            teacher | seen,
            {"metrics/baseline.json": files["baseline"]},
            **{"baseline": guided, "sample.rounding": "floor"},
        ),
        "distill": stage(latents | teacher, student),
        "sample": stage(student, drawn, sample=sample),
        "evaluate": stage(drawn | seen | scored, {"metrics/evaluate.json": files["evaluate"]}),
    }


def write_lock(root: Path, stages: dict[str, Any]) -> None:
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def known(root: Path, kind: str = "student", sigma_rel: float | None = None) -> provenance.Provenance:
    folder = root / "data" / kind
    return provenance.of(folder, checkpoint.read_config(folder), sigma_rel)


def test_the_figures_of_a_whole_chain_are_taken(root: Path) -> None:
    student = known(root)
    assert student.figures == EVALUATE and student.data == DATA and student.drawn["t_grid"] == [[0.0, 0.7]]
    teacher = known(root, "teacher")
    assert teacher.figures == REFERENCE["reference"] | {"teacher": TEACHER} and teacher.drawn["w"] == 1.25
    head = subprocess.run(("git", "rev-parse", "HEAD"), cwd=root, capture_output=True, text=True).stdout.strip()
    assert student.commit == head and not student.dirty and student.why == ""


def change(stage: str, kind: str, path: str) -> Any:
    def do(root: Path) -> None:
        lock = copy.deepcopy(lock_of(root))
        next(entry for entry in lock[stage][kind] if entry["path"] == path)["md5"] = "0" * 32
        write_lock(root, lock)

    return do


def sampled_another_length(root: Path) -> None:
    lock = lock_of(root)
    lock["sample"]["params"][params.PATH]["sample"]["sigma_rel"] = 0.1
    write_lock(root, lock)


BROKEN = [
    ("student", lambda root: (root / "dvc.lock").unlink(), "there is no dvc.lock above the checkpoint folder"),
    ("student", lambda root: (root / "data/student/more").touch(), "dvc.lock knows the checkpoint as no output of its"),
    ("student", change("sample", "deps", "data/student"), "stage `sample` did not run on this checkpoint"),
    ("student", change("evaluate", "deps", "data/samples"), "stage `evaluate` did not run on what `sample` drew"),
    (
        "student",
        change("evaluate", "outs", "metrics/evaluate.json"),
        "metrics/evaluate.json is not what stage `evaluate`",
    ),
    ("student", lambda root: (root / "metrics/evaluate.json").unlink(), "metrics/evaluate.json is missing"),
    ("student", sampled_another_length, "the run's figures are of sample.sigma_rel 0.1, not of the stored weights"),
    ("teacher", change("baseline", "deps", "data/teacher"), "stage `baseline` did not run on this checkpoint"),
    ("teacher", change("baseline", "deps", "data/reference"), "did not run on this data/reference"),
    ("teacher", change("baseline", "outs", "metrics/baseline.json"), "metrics/baseline.json is not what stage"),
]


@pytest.mark.parametrize(("kind", "do", "why"), BROKEN, ids=[why for *_, why in BROKEN])
def test_a_chain_that_is_broken_anywhere_gives_the_reason_and_no_figure(kind: str, do, why: str, root: Path) -> None:
    do(root)
    found = known(root, kind)
    assert why in found.why and found.figures == {}
    text = card.render(checkpoint.read_config(root / "data" / kind), found, EXPORTED)
    assert f"There are none with this export: {found.why}." in text and "measure before use" in text
    assert "0.7623" not in text and "0.567" not in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stages: 1\n", "dvc.lock, stages: must be an object of names and values"),
        ("stages:\n  teacher:\n    outs:\n    - md5: a\n", "dvc.lock, stages, teacher, outs, 0 lacks 'path'"),
        ("- 1\n", "dvc.lock must hold a mapping"),
    ],
)
def test_a_dvc_lock_of_another_form_is_refused_by_name(text: str, told: str, root: Path) -> None:
    (root / "dvc.lock").write_text(text)
    with pytest.raises(ValueError, match=told):
        known(root)


def test_another_ema_length_has_no_figures(root: Path) -> None:
    found = known(root, sigma_rel=0.1)
    assert found.why == "the figures of the run are of the stored weights, not of sigma_rel 0.1" and found.data == DATA


def test_the_dataset_is_told_only_where_the_latents_were_its(root: Path) -> None:
    change("distill", "deps", "data/latents")(root)
    found = known(root)
    assert found.figures == EVALUATE and found.data == {}
    assert "| dataset | not known |" in card.render(checkpoint.read_config(root / "data/student"), found, EXPORTED)


def test_a_change_after_the_commit_is_told(root: Path) -> None:
    with (root / "dvc.lock").open("a") as file:
        file.write("# later\n")
    assert known(root).dirty


EXPORTED = card.Exported("Digits", "apache-2.0", weights=254688, sigma_rel=None, samples="Samples at NFE 1.")


def front(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_student_s_card_has_its_figures_and_how_to_use_it(root: Path) -> None:
    text = card.render(checkpoint.read_config(root / "data/student"), known(root), EXPORTED)
    head = front(text)
    assert head["license"] == "apache-2.0" and head["library_name"] == "facm"
    assert {"student", "facm", "lightningdit", "consistency-model", "class-conditional"} <= set(head["tags"])
    assert "| | fd | kid | precision | recall | copies |" in text
    assert "| this student, NFE 2 | 0.7623 | 0.1000 | 0.9000 | 0.8000 | 0.0020 | 20 |" in text
    assert "| held-out | 0.5000 | 0.1000 | 0.9000 | 0.8000 | 0.0067 | - |" in text
    assert "| its teacher | 0.5670 |" in text
    assert "nfe=2, t_grid=(0.0, 0.7), seed=0)" in text and "like those of the dataset `digits`" in text
    assert "254,688 weights" in text and "onnx" not in text
    assert "dataset | `digits`, fingerprint `6aef`" in text and "memorised" in text


def test_the_teacher_s_card_is_a_teacher_s(root: Path) -> None:
    text = card.render(checkpoint.read_config(root / "data/teacher"), known(root, "teacher"), EXPORTED)
    assert "| this teacher | 0.5670 |" in text and "NFE 29." in text and "this student" not in text
    assert "steps=3, w=1.25, t_low=0.125, t_high=1.0, sampler='heun', seed=0)" in text
    assert "num_inference_steps=3, guidance_scale=1.25, t_low=0.125, t_high=1.0, sampler='heun', seed=0)" in text
    assert "consistency-model" not in front(text)["tags"]


def test_how_the_run_drew_is_what_the_card_says_to_do(root: Path) -> None:
    config = checkpoint.read_config(root / "data/student")
    for drawn, ours, theirs in (
        ({}, "nfe=2, seed", "steps=2, seed"),
        ({"sampler": "consistency", "nfe": [1, 4]}, "nfe=1, seed", "steps=1, seed"),
        ({"sampler": "anchored", "nfe": [2], "t_grid": [[0.0, 0.7]]}, "nfe=2, sampler='anchored'", "steps=2, sampler="),
        ({"sampler": "heun", "nfe": [3], "shift": 0.3}, "steps=2, shift=0.3, sampler='heun'", "steps=2, shift=0.3, "),
        ({"sampler": "edm", "nfe": [3], "shift": 0.0}, "steps=2, sampler='edm'", "steps=2, sampler="),
    ):
        text = card.render(config, provenance.Provenance(drawn=drawn, why="-"), EXPORTED)
        assert f"generate([0, 1, 2], {ours}" in text, drawn
        assert f"pipeline([0, 1, 2], num_inference_{theirs}" in text, drawn


@pytest.mark.parametrize("stage", ["distill", "baseline"])
def test_the_baseline_of_another_teacher_is_not_told_as_the_student_s(stage: str, root: Path) -> None:
    """distill.teacher may be data/other, while stage baseline always draws from data/teacher."""
    change(stage, "deps", "data/teacher")(root)
    found = known(root)
    assert found.figures == {name: value for name, value in EVALUATE.items() if name != "teacher"}
    text = card.render(checkpoint.read_config(root / "data/student"), found, EXPORTED)
    assert "its teacher" not in text and "| this student, NFE 2 | 0.7623 |" in text


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_each_row_tells_its_own_number_of_samples(kind: str, root: Path) -> None:
    text = card.render(checkpoint.read_config(root / "data" / kind), known(root, kind), EXPORTED)
    numbers = {}
    for line in text.split("## Figures")[1].split("## Training")[0].splitlines():
        if line.startswith("| ") and not line.startswith("| |"):
            cells = line.strip("| ").split(" | ")
            numbers[cells[0]] = cells[-1]
    own = {"this student, NFE 1": "20", "this student, NFE 2": "20", "its teacher": "10"}
    assert numbers == {"held-out": "-", "noise": "30"} | (own if kind == "student" else {"this teacher": "10"})


def test_a_teacher_without_classes_was_not_guided(root: Path) -> None:
    """stages/baseline.py draws it with w 1, whatever the block says."""
    measured = {"baseline": TEACHER | {"w": 1.0}}
    (root / "metrics/baseline.json").write_text(json.dumps(measured))
    write_lock(root, lock_of(root))
    folder = root / "data/teacher"
    config = replace(checkpoint.read_config(folder), num_classes=0)
    found = provenance.of(folder, config)
    assert found.figures["teacher"]["w"] == 1 and card.guided(found) == {"steps": 3}
    text = card.render(config, found, EXPORTED)
    assert "num=3, steps=3, sampler='heun', seed=0)" in text
    assert 'Drawn with sampler "heun", steps 3, shift 0.0, seed 1, rounding "floor".' in text


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_the_rounding_of_the_run_is_told_and_drawn_with(kind: str, root: Path, tmp_path: Path, monkeypatch) -> None:
    rounded = []
    real = __main__.samples
    monkeypatch.setattr(__main__, "samples", lambda g, k: (rounded.append(g.codec.rounding), real(g, k))[1])
    __main__.export(root / "data" / kind, tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert ', seed 1, rounding "floor".' in text and "The code above rounds levels to the nearest one instead." in text
    assert rounded == ["floor"]


@pytest.mark.slow
def test_the_exported_card_s_code_runs_as_it_stands(root: Path, tmp_path: Path) -> None:
    for kind in ("student", "teacher"):
        out = tmp_path / f"{kind}-out"
        __main__.export(root / "data" / kind, out)
        card_text = (out / "README.md").read_text()
        drawn = []
        for block in re.findall(r"```python\n(.*?)```", card_text, re.DOTALL):
            names: dict[str, Any] = {}
            exec(compile(block.replace("FOLDER", str(out)), "README.md", "exec"), names)
            drawn.append(names["images"])
        assert len(drawn) == 2 and len(drawn[0]) == len(drawn[1]) == 3
        assert "0.5670" in card_text, "the figures came along"
        assert all((drawn[0][i, ..., 0] == drawn[1][i]).all() for i in range(3)), "and both draw the same"
        told = "NFE 1, 2, 4" if kind == "student" else "`heun`, steps 3, w 1.25"
        assert told in card_text


@pytest.mark.parametrize(("text", "written"), [("cc-by-4.0", "cc-by-4.0"), ("a: b", "'a: b'"), ("1.0", "'1.0'")])
def test_the_front_matter_is_yaml(text: str, written: str, root: Path) -> None:
    whole = card.render(checkpoint.read_config(root / "data/student"), known(root), replace(EXPORTED, license=text))
    assert f"license: {written}\n" in whole and front(whole)["license"] == text


def test_the_repository_s_own_lock_is_read_as_it_is_written() -> None:
    """The chain that the card needs, in the dvc.lock that real runs wrote."""
    lock = provenance.Lock(params.raw(ROOT / "dvc.lock")["stages"])
    for first, then in (
        ("latents", "distill"),
        ("teacher", "baseline"),
        ("reference", "baseline"),
        ("distill", "sample"),
    ):
        assert lock.leads(first, then), (first, then)
    assert lock.leads("sample", "evaluate") and lock.leads("baseline", "evaluate") and lock.leads("teacher", "distill")
    assert lock.params("latents")["data"]["name"] == "digits"
    assert lock.params("sample")["sample"]["sampler"] and lock.params("baseline")["baseline"]["sampler"]
    assert lock.metrics("evaluate", provenance.EVALUATE, ROOT)["student"]


IMPORTED = {"source": "/some/where/SiT-XL-2.pt", "format": "sit", "sha256": "ab12", "averaged": True, "step": None}
FROM = 'SiT-XL-2.pt, format "sit", sha256 "ab12"'


def test_an_imported_checkpoint_claims_no_training_that_was_not(root: Path) -> None:
    """stages/import_teacher.py records the block teacher too, which trained nothing."""
    config = checkpoint.read_config(root / "data/teacher")
    assert config.params["teacher"]["batch_size"], "the block that must not be told"
    config = replace(config, params=config.params | {"imported": IMPORTED}, sigma_rel=None, step=0)
    text = card.render(config, known(root, "teacher"), EXPORTED)
    assert f"| imported from | {FROM} |" in text and "/some" not in text
    for name in ("batch", "seed", "steps", "dataset", "EMA length sigma_rel"):
        assert f"| {name} | not known |" in text, name
    assert f"a teacher, imported from {FROM}: it draws" in text and "trained with" not in text
    assert "`digits`" not in text and "All params of the import stand in" in text
    assert "| steps | 7 |" in card.render(replace(config, step=7), known(root, "teacher"), EXPORTED)


def test_a_student_of_an_imported_teacher_says_so(root: Path) -> None:
    assert "imported" not in card.render(checkpoint.read_config(root / "data/student"), known(root), EXPORTED)
    lock = lock_of(root)
    lock["teacher"]["params"][params.PATH]["imported"] = IMPORTED
    write_lock(root, lock)
    text = card.render(checkpoint.read_config(root / "data/student"), known(root), EXPORTED)
    assert f"| teacher imported from | {FROM} |" in text and "/some" not in text
    assert f"Its teacher was imported from {FROM}; its licence may bind this network too." in text
    assert "`digits`" in text and "trained with the method `facm`" in text
    lock["distill"]["deps"] = [entry for entry in lock["distill"]["deps"] if entry["path"] != "data/teacher"]
    write_lock(root, lock)
    assert known(root).imported == {}, "of another teacher"
