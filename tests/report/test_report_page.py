"""The page as a whole: what is in it, what is said where something is not, and that nothing in it can do harm."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from miniature import ROOT, SCRATCH, save_arrays, truncate
from runs import Page, result, write_run

from facm import check
from facm.report import images, page
from facm.report.page import SECTIONS
from facm.report.run import Group, Run, Workspace, grouped
from facm.report.view import View
from facm.runtime import dist
from facm.runtime.files import save_tensors
from stages import report

EVIL = "\"><img src=x onerror=alert(1)><script>alert(2)</script>'&<!--"

ELEMENTS = {"html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section"}
ELEMENTS |= {"h1", "h2", "h3", "h4", "p", "ul", "li", "a", "b", "span", "strong", "code", "br", "dl", "dt", "dd", "div"}
ELEMENTS |= {"table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption"}
ELEMENTS |= {"img", "svg", "path", "rect", "text"}


def shown(*runs: Run) -> tuple[str, Page]:
    """The page of runs, and the same taken apart."""
    text = page.page(grouped(runs))
    return text, Page(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ten classes of digits, with a teacher. Not to be changed."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def made(run: Run) -> tuple[str, Page]:
    """Its page."""
    return shown(run)


# What is in it


def test_a_page_has_every_section_and_nothing_failed(made: tuple[str, Page]) -> None:
    text, parsed = made
    assert "could not be shown" not in text
    assert [a["id"] for a in parsed.all("section")] == [name for name, *_ in SECTIONS]
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {a["href"] for a in parsed.all("a")} == {f"#{name}" for name, *_ in SECTIONS}
    assert all(a["aria-labelledby"] in ids for a in parsed.all("section"))


def test_headings_leave_out_no_level_and_the_language_is_named(made: tuple[str, Page]) -> None:
    levels = [int(tag[1]) for tag, _ in made[1].tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert made[1].all("html") == [{"lang": "en"}] and len(made[1].all("main")) == 1


def test_nothing_is_loaded_from_elsewhere_and_there_is_no_script(made: tuple[str, Page]) -> None:
    text, parsed = made
    assert not re.search(r"https?://|url\(|@import|<script|<link|<iframe|\son\w+=", text)
    assert all(a["src"].startswith("data:image/png;base64,") and a["alt"] for a in parsed.all("img"))
    assert all(a.get("aria-hidden") == "true" or a.get("aria-label") for a in parsed.all("svg"))


def test_scores_are_in_the_table_with_the_ends_of_the_scale(made: tuple[str, Page]) -> None:
    text = made[0]
    for name, value in (("held-out data", "0.5000"), ("noise", "62.00"), ("teacher, NFE 29", "1.000")):
        assert re.search(rf'<th scope="row">{name}</th><td>{value}</td>', text)
    assert "fd compares runs with the same data/reference" in text and "± is the standard" not in text


def test_the_page_names_each_rows_own_number_of_samples(tmp_path: Path, made: tuple[str, Page]) -> None:
    scores = {"teacher": {"nfe": 29, "w": 1.25, "num": 31, "fd": 1.0}}
    text, _ = shown(write_run(tmp_path, reference__num=32, result=scores))
    assert "Samples: student 30, teacher 31, class means and noise 32, held-out data all that there is;" in text
    assert "30 samples" not in text[: text.index('id="distance"')]


def test_one_noise_goes_through_teacher_and_student_in_rows_of_one_strip(made: tuple[str, Page]) -> None:
    alts = [a["alt"] for a in made[1].all("img")]
    for whose in ("teacher, NFE 29", *(f"student, NFE {nfe}" for nfe in (1, 2, 4))):
        assert f"{whose}: samples 0 to 9, classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in alts
        assert any(alt.startswith(f"{whose}: samples 10 to 19") for alt in alts)
    assert sum(alt.startswith("Sample ") and "training image" in alt for alt in alts) == 20
    assert sum("requested class" in alt for alt in alts) == 30


def test_curves_of_both_trainings_are_there_and_no_step_was_skipped(made: tuple[str, Page]) -> None:
    titles = {a.get("aria-label") for a in made[1].all("svg")}
    for who, names in (("teacher", ("loss_fm", "grad_norm")), ("student", ("loss_cm", "g", "velocity_error"))):
        assert {f"{name} of the {who}'s training over its steps" for name in names} <= titles
    assert not any("skipped" in (title or "") for title in titles) and "fd over NFE" in titles


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(made: tuple[str, Page], tmp_path: Path) -> None:
    assert shown(write_run(tmp_path))[0] == made[0]
    assert str(tmp_path) not in made[0]


# Several runs


def test_seeds_have_a_spread_and_groups_have_letters(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(i), factor=1.0 + i, distill__seed=i) for i in range(3)]
    runs.append(write_run(tmp_path / "other", factor=1.5, distill__alpha="cos"))
    named = [Run(name, run.origin, run.params, run.result) for name, run in zip("pqrs", runs, strict=True)]
    text, parsed = shown(*named)
    assert "A: p, q, r (n = 3) B: s" in parsed.text and "B: s (n = 1): distill.alpha cos" in parsed.text
    assert '<th scope="row">A: student, NFE 1</th><td>2.000 ± 1.000</td>' in text
    assert '<th scope="row">B: student, NFE 1</th><td><strong>1.500</strong></td>' in text
    assert '<th scope="row">distill.alpha</th><td class="words">power</td><td class="words">cos</td>' in text
    assert '<th scope="row">distill.seed</th><td class="words">0, 1, 2</td><td class="words">0</td>' in text
    assert text.count("<h3>A: p</h3>") == 3, "images are the first run's"
    assert '<th scope="row">A, B: teacher, NFE 29</th><td>1.000</td>' in text, "one teacher is no sample of four"
    assert "A: teacher" not in text and "A, B: teacher, NFE 29</li>" in text


def test_other_reference_statistics_are_reported(tmp_path: Path, run: Run) -> None:
    other = write_run(tmp_path, reference__seed=5, factor=3.0, result={"floor": {"fd": 0.7}})
    text, parsed = shown(run, other)
    assert "their distances do not compare" in text and "reference.seed 5" in parsed.text
    assert "±" not in text, "distances under two networks are no sample of two"
    assert "their distances do not compare" not in shown(run)[0]


def test_reference_statistics_of_only_the_second_run_of_a_group_are_reported(tmp_path: Path, run: Run) -> None:
    other = write_run(tmp_path, distill__seed=1, result={"floor": {"fd": 0.7}})
    assert len(grouped([run, other])) == 1 and "their distances do not compare" in shown(run, other)[0]


def test_many_groups_stay_within_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, sample__nfe=[1])
    code = [Workspace(tmp_path, code={"a.py": str(i)}) for i in range(8)]
    text, parsed = shown(*(Run(f"r{i}", origin, run.params, run.result) for i, origin in enumerate(code)))
    assert "Images of the first 6 groups only" in text and "G: r6 (n = 1)" in parsed.text
    assert "but other code" in parsed.text and "Code that differs: 1 files" in parsed.text


# What is not there


def test_from_scratch_there_is_no_teacher(tmp_path: Path) -> None:
    text, parsed = shown(write_run(tmp_path, **SCRATCH))
    assert "could not be shown" not in text
    assert "there is no teacher to compare with" in text and "hence no curves of one" in text
    assert not any("teacher" in a["alt"] for a in parsed.all("img"))
    assert "The nearest preset is" in text and "digits" in parsed.text


def test_points_are_plotted_and_have_neither_classes_nor_neighbours(tmp_path: Path) -> None:
    text, parsed = shown(write_run(tmp_path, points=True))
    assert "could not be shown" not in text and not parsed.all("img")
    plots = [a for a in parsed.all("svg") if "square" in a.get("class", "")]
    assert [a["aria-label"].split(":")[0] for a in plots] == [
        "teacher, NFE 29",
        *(f"student, NFE {n}" for n in (1, 2, 4)),
    ]
    assert text.count('class="ways"') == 3 and "Lines lead from where the teacher" in text
    assert "There are no classes" in text and "Points are not compared" in text


def test_without_classes_there_are_no_failures(tmp_path: Path) -> None:
    text, _ = shown(write_run(tmp_path, classes=0, latents__labels=False))
    assert "could not be shown" not in text
    assert "no sample can be of a wrong one" in text and "one noise; there are no classes" in text


def test_other_noise_of_the_teacher_is_left_out_with_the_seeds(tmp_path: Path) -> None:
    text, parsed = shown(write_run(tmp_path, baseline__seed=3))
    assert "(baseline.seed 3, sample.seed 1): its samples are left out" in text
    assert not any(a["alt"].startswith("teacher") for a in parsed.all("img"))


def test_another_network_than_the_students_teacher_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, distill__teacher="data/other")
    (tmp_path / "data/other").mkdir()
    (tmp_path / "data/other/config.json").write_text('{"sha256": "0123456789abcdef"}')
    text, parsed = shown(Run.of("this run", Workspace(tmp_path)))
    assert "could not be shown" not in text and "teacher, NFE" not in text
    assert not any(a["alt"].startswith("teacher") for a in parsed.all("img"))
    assert not any("the teacher's training" in a.get("aria-label", "") for a in parsed.all("svg"))
    assert text.count("Distilled from data/other: data/teacher, another network, is left out.") == 3
    assert "sha256 0123456789ab" in text, "of the network that it was distilled from"


def test_a_training_that_was_stopped_is_reported(tmp_path: Path) -> None:
    text, _ = shown(write_run(tmp_path, result={"stable": False, "diverged_at": 123}))
    assert "the student's training was stopped at step 123" in text


def test_a_teacher_without_curves_was_imported(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    shutil.rmtree(tmp_path / "metrics/teacher")
    assert "There are no curves of the teacher: it was imported" in shown(run)[0]


def test_a_network_that_does_not_classify_shows_no_failures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(run.network), "classify", lambda self, features: None)
    text = images.failures([Group("a", (run,))], View.of([Group("a", (run,))]))
    assert "digits_cnn does not classify this data set" in text and "<img" not in text


def test_what_is_damaged_is_reported_in_its_place_and_the_scores_are_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    truncate(tmp_path / "data/reference/network.safetensors")
    (tmp_path / "metrics/distill/plots/metrics/g.tsv").write_text("step\tg\n1\t2\t3\n")
    text, parsed = shown(run)
    notes = [words for words in parsed.words if words.startswith("This could not be shown")]
    assert len(notes) == 2 and "g.tsv has not two columns" in parsed.text and "student, NFE 4" in parsed.text
    assert capsys.readouterr().out.count("could not be shown") == 2
    assert "Nearest training images" in text


def test_descriptions_of_another_form_are_reported_by_name_and_the_scores_are_not_lost(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (tmp_path / "data/reference/meta.json").write_text('{"features": 1}')
    (tmp_path / "metrics/distill/plots/metrics/g.tsv").write_text("step\tg\n1\tx\n")
    _, parsed = shown(run)
    assert "data/reference/meta.json lacks 'copies_threshold': run `dvc repro`" in parsed.text
    (tmp_path / "data/student/config.json").write_text('{"versions": 3}')
    assert "data/student/config.json, versions: must be an object of names and values, it is 3" in shown(run)[1].text
    assert "g.tsv is damaged (could not convert" in parsed.text and "student, NFE 4" in parsed.text


def test_damaged_samples_do_not_lose_the_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for path in (tmp_path / "data/samples").glob("*.npz"):
        truncate(path)
    text, _ = shown(run)
    assert "could not be shown" in text and '<th scope="row">student, NFE 4</th>' in text


# Harm


def test_no_param_name_or_score_can_become_markup(tmp_path: Path, run: Run) -> None:
    scores = result(run) | {"features": EVIL, "diverged_at": EVIL, "stable": False}
    scores["student"]["nfe1"][EVIL] = 1.0
    scores["teacher"]["nfe"] = EVIL
    evil = write_run(tmp_path, result=scores, data__name=EVIL, distill__alpha=EVIL, sample__sampler=EVIL)
    folder = tmp_path / "metrics/distill/plots/metrics"
    (folder / f"{EVIL.replace('/', '')}.tsv").write_text("step\tx\n1\t2\n3\t4\n")
    (tmp_path / "data/student/config.json").write_text(json.dumps({"versions": {EVIL: EVIL}, "sha256": EVIL}))
    (tmp_path / "data/latents/meta.json").write_text(json.dumps({"dataset": EVIL, "num": EVIL}))
    named = Run(EVIL, Workspace(tmp_path, {"subject": EVIL, EVIL: EVIL}, {EVIL: "1"}), evil.params, evil.result)
    other = Run("b", Workspace(tmp_path, code={EVIL: "2"}), run.params, run.result)
    for runs in ((named,), (named, other)):
        text, parsed = shown(*runs)
        assert "could not be shown" not in text
        assert {tag for tag, _ in parsed.tags} <= ELEMENTS
        assert all(a["src"].startswith("data:") for a in parsed.all("img"))
        assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
        assert EVIL in "".join(parsed.words)


def test_the_largest_page_stays_within_five_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, sample__nfe=list(range(1, 9)))
    noise = np.random.default_rng(0).integers(0, 256, (30, 160, 160, 3), dtype=np.uint8)
    for path in (*(tmp_path / "data/samples").glob("*.npz"), tmp_path / "data/baseline/teacher.npz"):
        save_arrays(path, noise, np.arange(30) % 10)
    save_tensors(tmp_path / "data/reference/pictures.safetensors", {"pictures": torch.from_numpy(noise)})
    monkeypatch.setattr(type(run.network), "extract", lambda self, images: torch.zeros(len(images), 32))
    text, parsed = shown(run)
    assert "could not be shown" not in text and len(parsed.all("img")) == 6 + 20 + 5 * 10
    assert 3e6 < len(text) < 5e6, "noise is what PNG cannot make smaller"


# The stage


def test_the_stage_writes_the_page_whole_on_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    paths = {dep for dep in stage["deps"] if dep.startswith(("data/", "metrics/"))}
    assert {*report.SEEN} - {"params.yaml"} == paths, "it sees no more than dvc.yaml lists"
    listed = [dep for dep in stage["deps"] if dep.startswith("${")]
    assert listed == ["${distill.teacher}", "${report.curves}", "${report.pictures}"]
    monkeypatch.setattr(dist, "setup", lambda threads: None)
    monkeypatch.setattr(check, "writable", lambda *folders: None)
    report.main()
    text = Path("data/report.html").read_text()
    assert "could not be shown" not in text and "shows what differs from the nearest preset" in text
    shown_all = shown(run)[0]
    assert text[: text.index('<section id="params"')] == shown_all[: shown_all.index('<section id="params"')]
    assert text[text.index('<section id="provenance"') :] == shown_all[shown_all.index('<section id="provenance"') :]
    assert re.search(r"report: data/report.html, 0\.\d MB", capsys.readouterr().out)
    Path("data/report.html").unlink()
    monkeypatch.setattr(dist, "is_main", lambda: False)
    report.main()
    assert not Path("data/report.html").exists()
