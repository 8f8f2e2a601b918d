"""The pipeline under real DVC, in a temporary clone with tiny params: what runs, what is restored, what is told."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from clone import PYTHON, Clone, SecondSave, copy, make, ran, restored

ALL = ["reference", "latents", "teacher", "baseline", "distill", "sample", "evaluate", "report"]
STUDENT = ["distill", "sample", "evaluate", "report"]
TEACHER_WEIGHTS, STUDENT_WEIGHTS = (f"data/{name}/model.safetensors" for name in ("teacher", "student"))


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone after its first `dvc repro`, committed, and what that printed. Not to be changed."""
    clone = make(tmp_path_factory.mktemp("built"))
    output = clone.dvc("repro")
    clone.commit()
    return clone, output


@pytest.fixture
def built(first_run: tuple[Clone, str], tmp_path: Path) -> Clone:
    """A copy of it for one test."""
    return copy(first_run[0], tmp_path / "clone")


class Done(NamedTuple):
    """A long run: where, what its commands printed, and what was there between them."""

    clone: Clone
    outputs: list[str]
    seen: dict[str, Any]


def run_alpha(clone: Clone) -> Done:
    """An experiment with another alpha."""
    return Done(clone, [clone.dvc("exp", "run", "-S", "distill.alpha=cos")], {})


def run_nfe(clone: Clone) -> Done:
    """An experiment with one more number of function evaluations."""
    return Done(clone, [clone.dvc("exp", "run", "-S", "sample.nfe=[1,2,4]")], {})


def run_killed_teacher(clone: Clone) -> Done:
    """A teacher trained by DVC, killed after its second save, and the same command again."""
    clone.set("runtime.save_every", "3")
    command = (PYTHON.with_name("dvc"), "repro", "--force", "--single-item", "teacher")
    clone.killed(*command, when=SecondSave(clone, "teacher"))
    seen = {"unfinished": len(clone.unfinished()), "weights": (clone.root / TEACHER_WEIGHTS).exists()}
    return Done(clone, [clone.run(*command)], seen)


def run_killed_student(clone: Clone) -> Done:
    """A student killed after its second save, one with another seed, and the first one again."""
    clone.set("runtime.save_every", "3")
    clone.killed(PYTHON, "-m", "facm.launch", "stages.distill", when=SecondSave(clone, "distill"))
    clone.set("distill.seed", "1")
    other = clone.stage("distill")
    seen = {"unfinished": len(clone.unfinished()), "weights": clone.read(STUDENT_WEIGHTS)}
    clone.set("distill.seed", "0")
    return Done(clone, [other, clone.stage("distill")], seen)


LONG = {
    "alpha": run_alpha,
    "killed_teacher": run_killed_teacher,
    "killed_student": run_killed_student,
    "nfe": run_nfe,
}


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, first_run: tuple[Clone, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Done]]]:
    """The long runs that the selected tests ask for, each in its own copy, two at a time, behind the other tests."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(run, copy(first_run[0], tmp_path_factory.mktemp(name)))
            for name, run in LONG.items()
            if name in wanted
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def alpha(running: dict[str, Future[Done]]) -> Done:
    return running["alpha"].result()


@pytest.fixture(scope="module")
def nfe(running: dict[str, Future[Done]]) -> Done:
    return running["nfe"].result()


@pytest.fixture(scope="module")
def killed_teacher(running: dict[str, Future[Done]]) -> Done:
    return running["killed_teacher"].result()


@pytest.fixture(scope="module")
def killed_student(running: dict[str, Future[Done]]) -> Done:
    return running["killed_student"].result()


@pytest.fixture
def experimented(alpha: Done, tmp_path: Path) -> Clone:
    """A copy, for one test, of the clone with the experiment."""
    return copy(alpha.clone, tmp_path / "clone")


def titles(clone: Clone, *command: str) -> set[str]:
    """Names of the plots that `dvc plots ...` draws."""
    output = clone.dvc("plots", *command, "--json")
    return {name for name, drawn in json.loads(output[output.index("{") :])["data"].items() if drawn}


# What runs


def test_one_command_runs_the_eight_stages_and_ends_with_the_table_and_the_grids(first_run: tuple[Clone, str]) -> None:
    clone, output = first_run
    assert sorted(ran(output)) == sorted(ALL)
    end = output[output.index("Running stage 'evaluate'") :]
    assert re.search(r"^ +nfe +fd +kid", end, re.MULTILINE)
    assert all(re.search(rf"^ *{row} ", end, re.MULTILINE) for row in ("held-out", "teacher +5", "student +1"))
    grids = re.search(r"^grids: (.*)$", end, re.MULTILINE)
    assert grids
    assert grids[1].split() == [f"data/samples/grid_nfe{nfe}.png" for nfe in (1, 2)]
    assert all((clone.root / path).is_file() for path in grids[1].split())
    assert b"could not be shown" not in clone.read("data/report.html")
    assert clone.unfinished() == []


@pytest.mark.usefixtures("running")  # the long runs start here
def test_a_second_run_runs_no_stage(built: Clone) -> None:
    start = time.monotonic()
    output = built.dvc("repro")
    assert time.monotonic() - start < 30
    assert ran(output) == restored(output) == []
    assert "up to date" in output
    assert built.git("status", "--short") == ""


# What is stale


PLUG_INS = (
    ("objectives", 'fm="FM"'),
    ("networks/backbones", 'sit="SiT"'),
    ("networks/features", 'digits_cnn="DigitsCNN"'),
    ("networks/preconds", 'none="plain"'),
    ("samplers", 'heun="Heun"'),
    ("data/codecs", 'identity="Identity"'),
    ("data/datasets", 'digits="Digits"'),
)


@pytest.mark.parametrize(("folder", "line"), PLUG_INS, ids=[folder for folder, _ in PLUG_INS])
def test_a_new_plug_in_makes_nothing_stale(built: Clone, folder: str, line: str) -> None:
    name, kind = line.replace('"', "").split("=")
    shutil.copy(built.root / f"facm/{folder}/{name}.py", built.root / f"facm/{folder}/mine.py")
    built.edit(f"facm/{folder}/__init__.py", line, f'{line}, mine="{kind}"')
    if folder == "objectives":
        for path in ("params.yaml", "presets/base.yaml"):
            built.edit(path, "\nobjectives:", "\nobjectives:\n  mine:\n    fraction: 0.5\n#")
    assert json.loads(built.dvc("status", "--json")) == {}


def test_what_changes_no_number_and_files_of_editors_make_nothing_stale(built: Clone) -> None:
    for path in ("runtime/log", "runtime/resume/locks", "check/rules", "launch", "table", "generate", "export/card"):
        built.append(f"facm/{path}.py", "\n# edited\n")
    for name in (".losses.py.swp", "losses.py~", ".#losses.py", "losses.py.orig", ".DS_Store"):
        (built.root / "facm/flow" / name).write_text("x")
    (built.root / "facm/training/.ipynb_checkpoints").mkdir()
    (built.root / "facm/training/.ipynb_checkpoints/loop-checkpoint.py").write_text("x")
    built.set("runtime.save_every", "7")
    built.set("runtime.log_every", "7")
    assert ran(built.dvc("repro", "--dry")) == []


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("flow/losses", ["teacher", "baseline", "distill", "sample"]),  # the last two would run again anyway
        ("training/loop", ["teacher", "distill"]),
    ],
)
def test_an_edit_of_mathematics_or_loop_makes_both_trainings_stale(built: Clone, path: str, stages: list[str]) -> None:
    built.append(f"facm/{path}.py", "\n# edited\n")
    assert ran(built.dvc("repro", "--allow-missing", "--dry")) == stages


def test_in_scratch_mode_a_stale_teacher_stays_untrained(built: Clone) -> None:
    built.overlay("scratch")
    built.set("teacher.seed", "1")
    assert set(ran(built.dvc("repro", "--dry", "evaluate"))) == {"distill", "evaluate"}  # sample's input is yet unknown
    assert "teacher" in ran(built.dvc("repro", "--dry"))


def test_an_unpulled_clone_tells_whether_the_lock_matches(built: Clone, tmp_path: Path) -> None:
    built.git("clone", "--quiet", ".", str(tmp_path / "unpulled"))
    unpulled = Clone(tmp_path / "unpulled")
    assert ran(unpulled.dvc("repro", "--allow-missing", "--dry")) == []
    unpulled.append("facm/flow/losses.py", "\n# edited\n")
    output = unpulled.dvc("repro", "--allow-missing", "--dry", fails=True)
    assert "failed to reproduce 'teacher'" in output  # DVC would run it, but has no data/latents


# What is told


def test_a_folder_that_is_no_git_checkout_is_named(built: Clone) -> None:
    (built.root / ".git").rename(built.root / ".nogit")
    assert f"{built.root} is not a git repository" in built.dvc("repro", fails=True)


def test_a_misspelt_key_on_the_command_line_is_named(built: Clone) -> None:
    output = built.dvc("exp", "run", "-S", "distill.alhpa=cos", fails=True)
    assert "Could not override 'distill.alhpa'" in output
    assert ran(output) == []


def test_a_misspelt_key_in_params_is_told_with_the_right_one_and_loses_nothing(built: Clone) -> None:
    built.edit("params.yaml", "  alpha:", "  alhpa:")
    output = built.dvc("repro", fails=True)
    assert "params.yaml, distill: unknown 'alhpa' (did you mean 'alpha'?)" in output
    assert ran(output) == ["distill"]
    built.edit("params.yaml", "  alhpa:", "  alpha:")
    output = built.dvc("repro")
    assert (ran(output), restored(output)) == ([], ["distill"])


def test_a_mistake_further_down_is_told_by_the_first_stage(built: Clone) -> None:
    built.set("distill.objective", "fcam")
    output = built.stage("reference", fails=True)
    assert "params.yaml, distill.objective: unknown 'fcam' (did you mean 'facm'?); known: cd, ect, " in output
    assert "Traceback" not in output


def test_an_unknown_objective_of_a_built_pipeline_is_told_by_its_missing_file(built: Clone) -> None:
    output = built.dvc("exp", "run", "-S", "distill.objective=foo", fails=True)  # DVC's own message comes first
    assert re.search(r"failed to reproduce 'distill': .*facm/objectives/foo\.py", output)
    assert ran(output) == []


# Experiments


def test_another_alpha_reruns_distill_sample_evaluate_and_report_only(alpha: Done) -> None:
    assert (ran(alpha.outputs[0]), restored(alpha.outputs[0])) == (STUDENT, [])


def test_going_back_to_earlier_values_trains_nothing(first_run: tuple[Clone, str], experimented: Clone) -> None:
    assert experimented.read(STUDENT_WEIGHTS) != first_run[0].read(STUDENT_WEIGHTS)
    output = experimented.dvc("exp", "run", "-S", "distill.alpha=power")
    assert (ran(output), restored(output)) == ([], STUDENT)
    for path in (STUDENT_WEIGHTS, "data/samples/nfe2.npz", "metrics/evaluate.json"):
        assert experimented.read(path) == first_run[0].read(path)


def test_lost_outputs_and_a_lost_lock_are_restored_without_training(
    first_run: tuple[Clone, str], experimented: Clone
) -> None:
    experimented.git("checkout", "--quiet", "params.yaml")
    for folder in ("data", "metrics"):
        shutil.rmtree(experimented.root / folder)
    (experimented.root / "dvc.lock").unlink()
    output = experimented.dvc("repro")
    assert (ran(output), sorted(restored(output))) == ([], sorted(ALL))
    assert experimented.read("metrics/evaluate.json") == first_run[0].read("metrics/evaluate.json")
    assert experimented.git("status", "--short") == ""


def test_metrics_are_compared_by_short_names(experimented: Clone) -> None:
    output = experimented.dvc("metrics", "diff", "--md")
    assert re.search(r"metrics/evaluate\.json *\| student\.nfe1\.fd ", output)
    assert re.search(r"metrics/distill\.json *\| distill_training\.loss_cm ", output)


def test_experiments_are_shown_by_names_without_paths(experimented: Clone) -> None:
    columns = experimented.dvc("exp", "show", "--csv").splitlines()[0].split(",")
    assert {"student.nfe1.fd", "student.nfe2.fd", "teacher.fd", "floor.fd", "distill.alpha"} <= set(columns)
    assert [column for column in columns if ":" in column] == []


def test_plots_show_losses_weightings_distances_and_grids(experimented: Clone) -> None:
    expected = {"Distance over NFE", "Weighting functions"}
    expected |= {f"data/samples/grid_nfe{nfe}.png" for nfe in (1, 2)}
    losses = {"teacher": ["loss_fm"], "distill": ["loss_fm", "loss_cm"]}
    expected |= {f"metrics/{stage}/plots/metrics/{name}.tsv" for stage, names in losses.items() for name in names}
    assert expected <= titles(experimented, "show")
    assert expected <= titles(experimented, "diff")


@pytest.mark.slow
def test_a_student_from_scratch_is_scored_without_a_teacher(built: Clone) -> None:
    built.overlay("scratch")
    built.set("teacher.seed", "1")
    output = built.dvc("repro", "report")
    assert ran(output) == STUDENT
    assert "there is no teacher to compare with" in built.read("data/report.html").decode()
    assert not re.search("^ *teacher ", output, re.MULTILINE)
    assert "teacher" not in json.loads(built.read("metrics/evaluate.json"))


@pytest.mark.slow
def test_a_sweep_is_queued_and_run(built: Clone) -> None:
    built.dvc("exp", "run", "--queue", "-S", "distill.alpha=one,cos")
    try:
        built.dvc("queue", "start")
        end = time.monotonic() + 240
        while re.search("Queued|Running", status := built.dvc("queue", "status")):
            assert time.monotonic() < end, status
            time.sleep(1)
    finally:
        built.dvc("queue", "stop", "--kill")
    assert len(re.findall("Success", status)) == 2, status
    shown = built.dvc("exp", "show", "--csv")
    assert {"one", "cos"} <= set(re.split("[,\n]", shown))
    assert built.unfinished() == []


# Long runs


def test_a_killed_teacher_goes_on_where_it_was_and_ends_bit_identical(
    first_run: tuple[Clone, str], killed_teacher: Done
) -> None:
    assert killed_teacher.seen == {"unfinished": 1, "weights": False}
    resumed = re.search(r"teacher: resumed at step (\d+)", killed_teacher.outputs[0])
    assert resumed
    assert 6 <= int(resumed[1]) < 30
    assert killed_teacher.clone.read(TEACHER_WEIGHTS) == first_run[0].read(TEACHER_WEIGHTS)
    assert killed_teacher.clone.unfinished() == []


def test_a_killed_student_starts_afresh_with_other_params_and_goes_on_with_its_own(
    first_run: tuple[Clone, str], killed_student: Done
) -> None:
    afresh, again = killed_student.outputs
    weights = first_run[0].read(STUDENT_WEIGHTS)
    assert "resumed" not in afresh
    assert killed_student.seen["weights"] != weights
    assert killed_student.seen["unfinished"] == 1
    assert "distill: resumed at step" in again
    assert killed_student.clone.read(STUDENT_WEIGHTS) == weights
    assert killed_student.clone.unfinished() == []


def test_more_evaluations_rerun_sample_evaluate_and_report_only(nfe: Done) -> None:
    assert (ran(nfe.outputs[0]), restored(nfe.outputs[0])) == (["sample", "evaluate", "report"], [])
    assert (nfe.clone.root / "data/samples/grid_nfe4.png").is_file()
    assert set(json.loads(nfe.clone.read("metrics/evaluate.json"))["student"]) == {"nfe1", "nfe2", "nfe4"}
