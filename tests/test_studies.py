"""Studies: every cell can be run, names are their own, means, spreads and ties."""

import copy
from pathlib import Path

import pytest

from facm import check, params
from studies import cost, page, plan, record, runs
from studies.__main__ import chosen, collected
from studies.results import Entry, entry, tie, told

FILES = sorted(plan.FOLDER.glob("*.yaml"))
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_cell_is_accepted_by_the_check(path: Path) -> None:
    raw = params.raw(ROOT / "params.yaml")
    for run in plan.runs(plan.read(path)):
        mapping = copy.deepcopy(raw)
        plan.override(mapping, run.set)
        check.check(params.parse(mapping))


def test_every_study_has_three_seeds_and_all_runs_have_their_own_names() -> None:
    studies = [plan.read(path) for path in FILES]
    assert all(len(set(study.seeds)) >= 3 for study in studies)
    names = [run.name for study in studies for run in plan.runs(study)]
    assert len(set(names)) == len(names)


def test_runs_are_ordered_by_seed() -> None:
    seeds = [run.seed for run in plan.runs(plan.read(FILES[0]))]
    assert seeds == sorted(seeds)


def test_an_override_of_a_key_that_is_not_there_is_refused() -> None:
    with pytest.raises(KeyError, match="distill.alhpa"):
        plan.override({"distill": {"alpha": "one"}}, {"distill.alhpa": "cos"})


def test_unstable_runs_are_counted_and_not_averaged() -> None:
    scores = [{"student": {"nfe1": {"fd": v}}, "stable": v < 9} for v in (1.0, 3.0, 9.0)]
    assert entry(scores, "student.nfe1.fd") == Entry(2.0, 2**0.5, 2, 1)
    assert told(entry(scores, "student.nfe1.fd")) == "2.000 +- 1.414 (2; 1 unstable)"
    assert told(entry([], "student.nfe1.fd")) == "not run"


def test_a_difference_within_the_pooled_spread_is_a_tie() -> None:
    assert tie(Entry(1.0, 0.5, 3, 0), Entry(1.5, 0.5, 3, 0))
    assert not tie(Entry(1.0, 0.5, 3, 0), Entry(1.51, 0.5, 3, 0))
    assert not tie(Entry(1.0, None, 1, 0), Entry(1.0, None, 1, 0))


def test_table_and_plot_hold_every_cell_also_those_not_run() -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    entries = {cell.name: {m: Entry(None, None, 0, 0) for m in study.metrics} for cell in study.cells}
    entries["one_one"]["student.nfe2.fd"] = Entry(1.0, 0.1, 3, 0)
    assert "| alpha 1, beta 1 | not run | **1.000 +- 0.100** (3) |" in page.table(study, entries)
    assert all(cell.label in page.svg(study, entries) for cell in study.cells)


# What was measured


def run_of(name: str = "a-s0", **sets: object) -> plan.Run:
    return plan.Run(name, name.split("-")[0], 0, {"distill.seed": 0, "sample.nfe": [1, 2], **sets})


def test_a_committed_result_serves_runs_with_the_same_overrides_only(tmp_path: Path) -> None:
    result = {"stable": True, "student": {"nfe1": {"fd": 1.0}}, "heldout_accuracy": 1.0}
    record.write("s", {"a-s0": record.of(run_of(), "c0ffee", result)}, tmp_path)
    (kept,) = record.read("s", tmp_path).values()
    assert kept["code"] == "c0ffee" and kept["result"] == {"stable": True, "student": {"nfe1": {"fd": 1.0}}}
    assert record.serves(kept, run_of()) and not record.serves(None, run_of())
    assert not record.serves(kept, run_of(**{"distill.w": 2.0}))
    assert record.read("other", tmp_path) == {}


def test_results_that_are_committed_stay_where_no_experiment_is_at_hand(tmp_path: Path, monkeypatch) -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    first = plan.runs(study)[0]
    record.write(study.name, {first.name: record.of(first, "c0ffee", {"student": {"nfe1": {"fd": 1.0}}})}, tmp_path)
    monkeypatch.setattr(record, "OUT", tmp_path)
    monkeypatch.setattr(record.read, "__defaults__", (tmp_path,))
    monkeypatch.setattr(runs, "experiments", dict)
    assert list(collected(study)) == [first.name]


def test_a_cell_that_a_study_has_not_is_refused() -> None:
    study = plan.read(plan.FOLDER / "table4.yaml")
    assert len(chosen(study, "one_one", "0")) == 1 and len(chosen(study, None, None)) == 18
    with pytest.raises(ValueError, match="table4 has no cell 'one_on'; cells: one_one"):
        chosen(study, "one_on", None)


def test_cpu_hours_count_a_shared_teacher_once() -> None:
    raw = params.raw(ROOT / "params.yaml")
    facm, scm, other = (
        run_of(f"{name}-s0", **{"distill.objective": name, "teacher.seed": seed})
        for name, seed in (("facm", 0), ("scm", 0), ("facm", 1))
    )
    teacher, distill = raw["teacher"], raw["distill"]
    teaching = 3 * teacher["steps"] * teacher["batch_size"]
    steps = distill["steps"] * distill["batch_size"]
    assert cost.hours([facm, scm], raw, 1.0) * 3600 == pytest.approx(
        cost.BASELINE_S + teaching + (9 + 6) * steps + 2 * cost.OVERHEAD_S
    )
    assert cost.hours([facm, other], raw, 1.0) * 3600 == pytest.approx(
        2 * (cost.BASELINE_S + teaching + 9 * steps + cost.OVERHEAD_S)
    )
    assert 0 < cost.seconds_per_picture(raw) < 1
