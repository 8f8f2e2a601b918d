"""Studies: every cell can be run, names are their own, means, spreads and ties."""

import copy
import math
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from facm import check, preset
from facm.runtime import params
from studies import charts, cost, known, page, plan, pool, record, tuning, worker
from studies.__main__ import chosen, collected, main, write
from studies.results import Entry, as_text, entry, lower, of_teacher, tie

FILES = sorted(plan.FOLDER.glob("*.yaml"))
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_cell_is_accepted_by_the_check(path: Path) -> None:
    study = plan.read(path)
    raw = raw_of(study)
    for run in plan.runs(study):
        check.check(params.parse(plan.override(copy.deepcopy(raw), plan.complete(run.set))))


def test_a_run_from_scratch_needs_no_word_of_the_report(tmp_path: Path) -> None:
    clone = object.__new__(worker.Worker)
    clone.path = tmp_path
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    sets = {"distill.mode": "scratch", "distill.teacher": "data/latents", "distill.label_dropout": 0.1}
    clone._set(run_of(**sets))
    check.read(tmp_path / "params.yaml")
    assert plan.complete({"distill.seed": 1}) == {"distill.seed": 1}


def raw_of(study: plan.Study) -> dict[str, Any]:
    if study.preset is None:
        return params.raw(ROOT / "params.yaml")
    return yaml.safe_load(preset.render(study.preset.split(), ROOT / "presets"))


def test_every_table_has_three_seeds_and_all_runs_have_their_own_names() -> None:
    studies = [plan.read(path) for path in FILES]
    assert all(len(set(study.seeds)) >= 3 for study in studies if not study.grid)
    names = [run.name for study in studies for run in plan.runs(study)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("tuning")], ids=lambda p: p.stem)
def test_tuning_gives_every_method_the_same_trials_on_a_seed_that_no_table_uses(path: Path) -> None:
    study = plan.read(path)
    methods = [cell.set["distill.objective"] for cell in study.cells]
    counts = {methods.count(method) for method in methods}
    assert study.grid and len(counts) == 1 and counts.pop() >= 6
    used = {seed for p in FILES if (s := plan.read(p)).tuned == study.name for seed in s.seeds}
    assert used and not used & set(study.seeds)


VALUES = [
    1e-05,
    0.002,
    3,
    True,
    None,
    "facm",
    "data/latents",
    "off",
    "12:30",
    "1e-05",
    "017",
    "0o17",
    "",
    "null",
    "a,b",
]
VALUES += ["metrics/x.json", "a b", "NaN", "\u00e9t\u00e9", "it's", [1, 2], [[0.0, 1e-05]], ["1e-05", "off", "\u00e9"]]


@pytest.mark.parametrize("value", VALUES, ids=map(repr, VALUES))
def test_an_override_is_the_same_value_by_s_and_in_params_yaml(value, tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    path.write_text("a:\n  b:\n")
    apply_overrides(str(path), [f"a.b={worker.text(value)}"])
    assert repr(params.raw(path)) == repr({"a": {"b": value}})
    path.write_text(params.written(plan.override({"a": {"b": 0}}, {"a.b": value})))
    assert repr(params.raw(path)) == repr({"a": {"b": value}})


def test_runs_are_ordered_by_seed() -> None:
    seeds = [run.seed for run in plan.runs(plan.read(FILES[0]))]
    assert seeds == sorted(seeds)


def test_an_override_of_a_key_that_is_not_there_is_refused() -> None:
    with pytest.raises(KeyError, match="distill.alhpa"):
        plan.override({"distill": {"alpha": "one"}}, {"distill.alhpa": "cos"})


def test_unstable_runs_are_counted_and_not_averaged() -> None:
    scores = [{"student": {"nfe1": {"fd": v}}, "stable": v < 9} for v in (1.0, 3.0, 9.0)]
    assert entry(scores, "student.nfe1.fd") == Entry(2.0, 2**0.5, 2, 1)
    assert as_text(entry(scores, "student.nfe1.fd")) == "2.000 +- 1.414 (2; 1 unstable)"
    assert as_text(entry([], "student.nfe1.fd")) == "not run"
    assert as_text(replace(entry([], "student.nfe1.fd"), complete=True)) == "–", "all is there, this was not measured"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_unstable_and_one_that_is_absent_was_not_measured(bad: float) -> None:
    def scores(*values: float) -> list[dict[str, Any]]:
        return [{"student": {"nfe1": {"fd": v}}, "stable": True, "seed": seed} for seed, v in enumerate(values)]

    fd, other = "student.nfe1.fd", "student.nfe2.fd"
    assert entry(scores(1.0, bad, 3.0), fd) == Entry(2.0, 2**0.5, 2, 1)
    assert as_text(replace(entry(scores(bad, bad), fd), complete=True)) == "no score; 2 unstable"
    assert entry([*scores(1.0, bad), {"stable": False, "seed": 2}], fd) == Entry(1.0, None, 1, 2)
    assert as_text(replace(entry(scores(bad), other), complete=True)) == "–"
    assert lower(scores(1, bad, 1, bad), scores(2, 2, bad, bad), fd) == (1, 1), "for neither side"


def test_seeds_are_compared_one_by_one_with_the_reference() -> None:
    def scores(*values: float) -> list[dict[str, Any]]:
        return [{"student": {"nfe1": {"fd": v}}, "seed": seed} for seed, v in enumerate(values)]

    assert lower(scores(1, 2, 3), scores(2, 2, 4), "student.nfe1.fd") == (2, 3)
    unstable = [*scores(1, 2), {"student": {"nfe1": {"fd": 0}}, "seed": 2, "stable": False}]
    assert lower(unstable, scores(2, 1, 9), "student.nfe1.fd") == (1, 2)
    variants = [*scores(1), {"student": {"nfe2": {"fd": 9}}, "seed": 0}]
    assert lower(variants, scores(2), "student.nfe1.fd") == (1, 1), "each variant has the metrics that it has"
    assert as_text(Entry(1.0, 0.1, 3, 0, (2, 3)), tied=True) == "1.000 +- 0.100 (3; tie; lower in 2 of 3)"


def test_a_difference_within_the_pooled_spread_is_a_tie() -> None:
    assert tie(Entry(1.0, 0.5, 3, 0), Entry(1.5, 0.5, 3, 0))
    assert not tie(Entry(1.0, 0.5, 3, 0), Entry(1.51, 0.5, 3, 0))
    assert not tie(Entry(1.0, None, 1, 0), Entry(1.0, None, 1, 0))


def test_table_and_chart_hold_every_cell_also_those_not_run() -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    entries = {cell.name: {m: Entry(None, None, 0, 0) for m in study.metrics} for cell in study.cells}
    entries["one_one"]["student.nfe2.fd"] = Entry(1.0, 0.1, 3, 0)
    assert "| alpha 1, beta 1 | not run | **1.000 +- 0.100** (3) |" in page.table(study, entries)
    assert all(cell.label in charts.svg(study, entries) for cell in study.cells)


def test_values_far_apart_are_on_a_logarithmic_axis() -> None:
    def limits(*means: float) -> tuple[float, float, bool]:
        return charts.limits({str(i): {"fd": Entry(mean, 0.5, 3, 0)} for i, mean in enumerate(means)})

    assert limits(1.0, 4.5) == (0.0, 5.0 * 1.05, False) and limits() == (0.0, 1.05, False)
    assert limits(1.0, 60.0, 6.0) == (1 / 1.5, 60.5 * 1.05, True)
    assert not limits(-1.0, 60.0)[2]


# What was measured


def run_of(name: str = "a-s0", **sets: object) -> plan.Run:
    return plan.Run(name, name.split("-")[0], 0, {"distill.seed": 0, "sample.nfe": [1, 2], **sets})


def done_with(**result: object) -> dict[str, Any]:
    return {"result": result, "code": "c0ffee", "machine": "one", "cpu_s": 1.0}


def test_a_committed_result_serves_runs_with_the_same_overrides_only(tmp_path: Path) -> None:
    done = done_with(stable=True, student={"nfe1": {"fd": 1.0}}, heldout_accuracy=1.0)
    record.write("s", {"a-s0": record.of(run_of(), done)}, tmp_path)
    (kept,) = record.read("s", tmp_path).values()
    assert kept["code"] == "c0ffee" and kept["result"] == {"stable": True, "student": {"nfe1": {"fd": 1.0}}}
    assert record.serves(kept, run_of()) and not record.serves(None, run_of())
    assert not record.serves(kept, run_of(**{"distill.w": 2.0}))
    assert record.read("other", tmp_path) == {}


def test_results_that_are_committed_are_not_run_again(tmp_path: Path, monkeypatch) -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    first = plan.runs(study)[0]
    record.write(study.name, {first.name: record.of(first, done_with(student={"nfe1": {"fd": 1.0}}))}, tmp_path)
    monkeypatch.setattr(record.read, "__defaults__", (tmp_path,))
    assert list(collected(study)) == [first.name]


def test_what_another_study_has_measured_is_not_run_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(record.read, "__defaults__", (tmp_path,))
    table1 = plan.read(plan.FOLDER / "table1.yaml")
    record.write("table1", {"a-s0": record.of(run_of(), done_with(student={"nfe1": {"fd": 1.0}}))}, tmp_path)
    now = {"distill": {"seed": 0, "w": 1.25, "steps": 800, "new": 1}, "sample": {"nfe": [1]}, "runtime": {"threads": 1}}
    then = {"distill": {"seed": 0, "w": 1.25, "steps": 800}, "sample": {"nfe": [1]}, "runtime": {"threads": 2}}

    def found(**sets: object) -> dict[str, Any]:
        return known.known([table1], [run_of("b-s0", **sets)], now, {"c0ffee": then}.__getitem__)

    record_ = found()["b-s0"]
    assert (record_["of"], record_["cell"], record_["code"]) == ("a-s0", "b", "c0ffee")
    assert record.serves(record_, run_of("b-s0")) and record_["result"] == {"student": {"nfe1": {"fd": 1.0}}}
    assert found(**{"distill.w": 1.25}), "what was the default then"
    assert not found(**{"distill.w": 1.5})
    then["distill"]["steps"] = 400
    assert not found(), "what no override names was another"
    then["distill"]["steps"] = 800
    assert not found(**{"distill.new": 1}), "what was not there then"
    assert not known.known([table1], [replace(run_of("b-s1"), seed=1)], now, lambda commit: then)
    record.write("table1", {"b-s0": record_}, tmp_path)
    assert not found(), "a run that is taken from elsewhere itself"


def test_an_override_may_say_the_default_of_today() -> None:
    assert known.same({"distill.w": 1.5}, {}, {}, {"distill": {"w": 1.5}})
    assert not known.same({"distill.w": 1.25}, {}, {"distill": {"w": 1.25}}, {"distill": {"w": 1.5}})


@pytest.mark.parametrize("key", ["scratch_form", "scratch_condition", "scratch_source", "scratch_kappa"])
def test_what_only_training_from_scratch_reads_counts_from_scratch_only(key: str) -> None:
    then, now = ({"distill": {"mode": "distill", key: value}} for value in ("one", "other"))
    scratch = {"distill.mode": "scratch"}
    assert known.same({}, {}, then, now) and known.same(scratch, scratch, now, now)
    assert not known.same(scratch, scratch, then, now)
    assert known.same(scratch, scratch | {f"distill.{key}": "one"}, then, now), "an override of what was the default"
    preset = [{"distill": at["distill"] | {"mode": "scratch"}} for at in (then, now)]
    distilled = {"distill.mode": "distill"}
    assert not known.same({}, {}, *preset) and known.same(distilled, distilled, *preset)


def test_the_page_counts_what_was_not_repeated() -> None:
    records = {"a": done_with(), "b": done_with() | {"of": "c", "cpu_s": 7200.0}}
    beside = "0.0 CPU-hours beside what runs share (features, teachers, students)"
    assert page.provenance(records).endswith(f"{beside}; 1 of the runs were taken from other studies")


def test_a_teachers_scores_are_under_the_evaluations_that_it_took() -> None:
    assert of_teacher({"teacher": {"nfe": 8, "fd": 1.0}, "student": {"nfe8": {"fd": 2.0}}}) == {
        "student": {"nfe8": {"nfe": 8, "fd": 1.0}}
    }


GRID = replace(
    plan.read(plan.FOLDER / "tuning.yaml"),
    cells=tuple(
        plan.Cell(f"{m}_{i}", "", {"distill.objective": m, "distill.p": float(i)}) for m in ("a", "b") for i in range(3)
    ),
    metrics=("student.nfe1.fd", "student.nfe2.fd"),
)


def trial(one: float, two: float, stable: bool = True) -> list[dict[str, Any]]:
    return [{"student": {"nfe1": {"fd": one}, "nfe2": {"fd": two}}, "stable": stable}]


def test_tuning_takes_the_least_geometric_mean_of_stable_trials_once_all_have_run(tmp_path: Path, monkeypatch) -> None:
    found = {"a_0": trial(2, 2), "a_1": trial(1, 3), "a_2": trial(0.1, 0.1, stable=False)}
    found |= {"b_0": trial(1, 1), "b_1": trial(1, 1), "b_2": []}
    chosen = tuning.choose(GRID, found)
    assert chosen == {"a": {"set": {"distill.p": 1.0}, "score": 1.732, "first": 2.0, "trials": 3}}
    assert tuning.score(trial(1, 1, stable=False)[0], GRID.metrics) == math.inf
    monkeypatch.setattr(plan, "TUNED", tmp_path)
    tuning.write(GRID, found)
    assert plan.tuned(GRID.name) == {"a": {"distill.p": 1.0}}


def test_a_study_starts_from_what_tuning_chose_and_its_own_overrides_come_last(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "TUNED", tmp_path / "tuned")
    text = "title: x\ntuned: t\nseeds: [0]\nmetrics: [m]\ncells:\n- {name: a, label: a, set: "
    (tmp_path / "s.yaml").write_text(text + "{distill.objective: facm, distill.p: 2.0}}\n")
    monkeypatch.setattr(plan, "FOLDER", tmp_path / "studies")
    unready = plan.read(tmp_path / "s.yaml")
    assert not unready.ready and unready.cells[0].set == {"distill.objective": "facm", "distill.p": 2.0}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/t.yaml").write_text("facm: {set: {distill.p: 1.0, distill.beta: one}}\n")
    assert plan.read(tmp_path / "s.yaml").cells[0].set == {
        "distill.objective": "facm",
        "distill.p": 2.0,
        "distill.beta": "one",
    }


def test_trials_are_all_combinations_the_shipped_values_first() -> None:
    cells = plan.trials({"facm": {"distill.optimizer.lr": [1, 2], "distill.beta": ["cos", "one"]}})
    assert [cell["name"] for cell in cells] == ["facm_0", "facm_1", "facm_2", "facm_3"]
    assert cells[0]["set"] == {"distill.objective": "facm", "distill.optimizer.lr": 1, "distill.beta": "cos"}
    assert cells[3]["label"] == "facm, lr 2, beta one"


# Several at a time


def test_what_runs_share_is_made_once_before_them() -> None:
    raw = params.raw(ROOT / "params.yaml")
    sets = [
        {"teacher.seed": 0, "sample.nfe": [1]},
        {"teacher.seed": 0, "sample.nfe": [2]},
        {"teacher.seed": 0, "distill.alpha": "one"},
        {"teacher.seed": 1},
        {"teacher.seed": 1, "distill.mode": "scratch", "distill.teacher": "data/latents"},
    ]
    work = pool.tasks([(plan.Run(f"r{i}", "", 0, s), "c" * 40, copy.deepcopy(raw)) for i, s in enumerate(sets)])
    assert [task.target for task in work] == [pool.SHARED, "baseline", "baseline", "distill", *["evaluate"] * 5]
    names = {task.run.name: [need.target for need in task.needs] for task in work if task.target == "evaluate"}
    assert names == {"r0": ["distill"], "r1": ["distill"], "r2": ["baseline"], "r3": ["baseline"], "r4": [pool.SHARED]}
    student = next(task for task in work if task.target == "distill")
    assert student.run.set == student.needs[0].run.set == {"teacher.seed": 0}


class FakeWorker:
    """Notes what runs; a run whose name starts with `bad` fails."""

    def __init__(self, number: int):
        self.number = number

    def run(self, run: plan.Run, baseline: str, target: str) -> dict[str, Any]:
        with LOCK:
            RAN.append(run.name)
        if run.name.startswith("bad"):
            raise worker.StudyError("no")
        return {}


LOCK, RAN = threading.Lock(), list[str]()


def test_a_run_waits_for_its_needs_and_falls_with_them(monkeypatch) -> None:
    monkeypatch.setattr(pool, "Worker", FakeWorker)
    RAN.clear()
    good, bad = (pool.Task(plan.Run(name, "", 0, {}), "c", "baseline") for name in ("good", "bad"))
    after = [pool.Task(plan.Run(f"after-{n.run.name}", "", 0, {}), "c", needs=[n]) for n in (good, bad)]
    ended = {}
    failed = pool.run_all([*after, good, bad], 3, lambda task, done: ended.update({task.run.name: done}))
    assert {task.run.name for task in failed} == {"bad", "after-bad"} and "after-bad" not in RAN
    assert RAN.index("good") < RAN.index("after-good")
    assert ended["bad"] == "no" and ended["after-bad"] == "not started: bad failed" and ended["after-good"] == {}


def test_after_the_minutes_no_run_is_started(monkeypatch) -> None:
    monkeypatch.setattr(pool, "Worker", FakeWorker)
    RAN.clear()
    task = pool.Task(plan.Run("late", "", 0, {}), "c")
    assert pool.run_all([task], 1, lambda task, done: None, minutes=-1) == [] and not RAN and task.state == "waiting"


# Charts


def test_cells_along_an_axis_are_shown_as_curves() -> None:
    study = plan.read(plan.FOLDER / "figure3b.yaml")
    entries = {cell.name: {m: Entry(1.0, 0.1, 3, 0) for m in study.metrics} for cell in study.cells}
    found = charts.lines(study, entries)
    assert list(found) == ["facm, nfe1.fd", "facm, nfe2.fd", "scm, nfe1.fd", "scm, nfe2.fd"]
    assert [x for x, _, _ in found["scm, nfe2.fd"]] == [500, 1000, 2000, 4000]
    assert "scm, nfe2.fd" in charts.svg(study, entries)


def test_a_cell_that_a_study_has_not_is_refused() -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    assert len(chosen(study, "one_one", "0")) == 1 and len(chosen(study, None, None)) == 18
    with pytest.raises(ValueError, match="table4 has no cell 'one_on'; cells: one_one"):
        chosen(study, "one_on", None)


@pytest.mark.parametrize(("seeds", "wrong"), [("9", "9"), ("0,9", "9"), ("one", "one"), ("1.0", "1.0"), ("0,", "")])
def test_a_seed_that_a_study_has_not_is_refused(seeds: str, wrong: str) -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    message = f"^table4 has no seed '{wrong}'; seeds: 0, 1, 2; `seeds` in studies/table4.yaml sets them$"
    with pytest.raises(ValueError, match=message):
        chosen(study, None, seeds)


def test_a_seed_that_is_named_twice_is_run_once() -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    assert [run.seed for run in chosen(study, "one_one", "2, 0,0")] == [0, 2]


def test_cpu_hours_count_a_shared_teacher_once(monkeypatch) -> None:
    raw = params.raw(ROOT / "params.yaml")
    facm, scm, other = (
        run_of(f"{name}-s0", **{"distill.objective": name, "teacher.seed": seed})
        for name, seed in (("facm", 0), ("scm", 0), ("facm", 1))
    )
    teacher, distill = raw["teacher"], raw["distill"]
    teaching = 3 * teacher["steps"] * teacher["batch_size"]
    steps = distill["steps"] * distill["batch_size"]
    monkeypatch.setattr(cost, "seconds_per_sample", lambda raw: 1.0)
    assert cost.hours([(facm, raw), (scm, raw)]) * 3600 == pytest.approx(
        cost.BASELINE_S + teaching + (9 + 6) * steps + 2 * cost.OVERHEAD_S
    )
    assert cost.hours([(facm, raw), (other, raw)]) * 3600 == pytest.approx(
        2 * (cost.BASELINE_S + teaching + 9 * steps + cost.OVERHEAD_S)
    )


def test_a_forward_pass_is_timed_on_images_and_on_points() -> None:
    mixture = yaml.safe_load(preset.render(["mixture"], ROOT / "presets"))
    assert all(0 < cost.seconds_per_sample(raw) < 1 for raw in (params.raw(ROOT / "params.yaml"), mixture))


# Clones


def test_a_clone_that_another_run_has_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(worker, "ROOT", tmp_path)
    monkeypatch.setattr(worker, "FOLDER", tmp_path / "studies")
    first = worker.Worker(0)
    with pytest.raises(worker.StudyError, match="studies/worker-0 is in use, by another `python -m studies`"):
        worker.Worker(0)
    assert worker.Worker(1).path != first.path


def test_a_broken_clone_is_not_taken_for_the_repository_around_it(tmp_path: Path) -> None:
    inner = tmp_path / "clone"
    (inner / ".git").mkdir(parents=True)
    worker.git("init", "-q", cwd=tmp_path)
    assert worker.is_repository(tmp_path) and not worker.is_repository(inner)
    assert not worker.is_repository(tmp_path / "missing")
    worker.git("init", "-q", cwd=inner)
    assert worker.is_repository(inner)


def test_a_study_runs_in_a_project_that_is_a_folder_of_its_repository(tmp_path: Path, monkeypatch) -> None:
    project = tmp_path / "papers/facm"
    monkeypatch.setattr(worker, "ROOT", project)
    monkeypatch.setattr(worker, "FOLDER", project / ".work/studies")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "someone@example.org")
    shutil.copytree(ROOT / "presets", project / "presets")
    worker.git("init", "-q", cwd=tmp_path)
    subprocess.run([*worker.DVC, "init", "-q", "--subdir"], cwd=project, check=True)
    (tmp_path / "params.yaml").write_text("another: project\n")
    (tmp_path / "notes").write_text("first\n")
    for name, text in (("params.yaml", "distill: {seed: 0}\n"), ("dvc.lock", "stages: {}\n")):
        (project / name).write_text(text)
    (project / "studies/results").mkdir(parents=True)
    (project / "studies/results/one.md").touch()
    worker.git("add", "-A", cwd=tmp_path)
    worker.git("commit", "-q", "-m", "start")

    study = next(study for study in map(plan.read, FILES) if study.preset is None)
    assert known.params_at(study)(worker.baseline(None)) == {"distill": {"seed": 0}}
    of_preset = worker.baseline("digits")
    assert yaml.safe_load(worker.git("show", f"{of_preset}:./params.yaml"))["data"]["name"] == "digits"
    assert worker.git("show", f"{of_preset}:params.yaml") == "another: project"

    (tmp_path / "notes").write_text("second\n")
    (project / "studies/results/one.md").write_text("| |\n")
    worker.require_clean()
    (project / "params.yaml").write_text("distill: {seed: 1}\n")
    with pytest.raises(worker.StudyError, match="uncommitted changes: params.yaml; commit them"):
        worker.require_clean()

    clone = worker.Worker(0)
    clone._prepare(of_preset)
    assert clone.project == clone.path / "papers/facm" and not (clone.project / "dvc.lock").exists()
    assert yaml.safe_load((clone.project / "params.yaml").read_text())["data"]["name"] == "digits"
    assert (clone.project / ".work").resolve() == (project / ".work").resolve()
    assert worker.git("status", "--porcelain", cwd=clone.path) == "D papers/facm/dvc.lock"
    cache = subprocess.run([*worker.DVC, "cache", "dir"], cwd=clone.project, capture_output=True, text=True).stdout
    assert cache.strip() == str(project / ".dvc/cache")


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--minutes", "nan"], ["--minutes=-1"]], ids=str)
def test_numbers_of_the_command_are_looked_at(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["studies", "table4", *words])
    with pytest.raises(ValueError, match="--jobs .* must be at least 1, --minutes .* at least 0"):
        main()


def test_results_of_other_overrides_are_kept(tmp_path: Path, monkeypatch) -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    first = plan.runs(study)[0]
    done = done_with(student={"nfe1": {"fd": 1.0}})
    other = plan.Run("table4-other-s9", "one_one", 9, {"distill.p": 9.0})
    for function in (record.read, record.write):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    monkeypatch.setattr(record, "OUT", tmp_path)
    record.write(study.name, {other.name: record.of(other, done)})
    write(study, {first.name: record.of(first, done)})
    assert set(record.read(study.name)) == {first.name, other.name} and list(collected(study)) == [first.name]


def test_a_result_that_cannot_be_recorded_stops_the_pool_with_an_error(monkeypatch) -> None:
    monkeypatch.setattr(pool, "Worker", FakeWorker)
    RAN.clear()
    work = [pool.Task(plan.Run(name, "", 0, {}), "c") for name in ("one", "two", "three")]

    def full(task, done):
        raise OSError("disk full")

    with pytest.raises(
        worker.StudyError,
        match=r"one ended, but its result could not be recorded \(disk full\); the same command goes on",
    ):
        pool.run_all(work, 1, full)
    assert RAN == ["one"]


def test_a_tuning_that_is_not_complete_makes_no_study_ready(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "TUNED", tmp_path)
    (tmp_path / "tuning.yaml").write_text("{}\n")
    assert not plan.read(plan.FOLDER / "table1.yaml").ready
