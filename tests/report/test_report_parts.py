"""What the report is made of: elements, spreads, charts, images, neighbours, failures, presets."""

import base64
import io
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from miniature import ROOT, SCRATCH
from PIL import Image
from runs import write_run

from facm import preset
from facm.metrics import copies
from facm.report import images as report_images
from facm.report import page, revision
from facm.report.html import ENVIRONMENT, paragraph
from facm.report.images import least_confident, nearest
from facm.report.provenance import nearest_preset, overlaid
from facm.report.revision import Revision
from facm.report.run import (
    Group,
    Run,
    Spread,
    Workspace,
    as_yaml,
    differing,
    flat,
    grouped,
    number,
    seedless,
    used,
)
from facm.report.svg import EDGE, SIDE, Axis, Line, chart, nice, places, reach, scatter
from facm.report.view import BUDGET, side_of, strip
from facm.runtime.params import mapping_of

# Elements


def test_text_and_attributes_are_escaped_and_markup_is_not_escaped_twice() -> None:
    inner = paragraph("<i>&")
    assert inner == "<p>&lt;i&gt;&amp;</p>" and paragraph(inner) == f"<p>{inner}</p>"
    template = ENVIRONMENT.from_string('<p class="{{ a }}">{{ b }}</p>')
    assert template.render(a='"><script>', b=inner) == f'<p class="&#34;&gt;&lt;script&gt;">{inner}</p>'
    assert ENVIRONMENT.autoescape is True


def test_a_table_names_rows_and_columns_and_scrolls_in_itself() -> None:
    table = ENVIRONMENT.get_template("macros.html").module.table  # type: ignore[attr-defined]
    text = table(["", "a", "b"], [["r<", "1", "2"]], "what")
    assert '<th scope="row">r&lt;</th><td>1</td><td>2</td>' in text
    assert '<th scope="col">a</th><th scope="col">b</th>' in text
    words = table(["", "a"], [["r", "one"]], "what", words=True)
    assert '<td class="words">one</td>' in words and '<th scope="col"></th><th scope="col" class="words">a' in words
    assert text.startswith('<div class="scroll" tabindex="0" role="region" aria-label="what"><table><caption>')


# Spread


def test_a_spread_is_mean_and_sample_standard_deviation_of_what_is_finite() -> None:
    spread = Spread.of([1.0, None, 3.0, math.nan, 5.0])
    assert spread == Spread(3.0, 2.0, 3) and str(spread) == "3.000 ± 2.000"
    assert Spread.of([0.5]) == Spread(0.5, None, 1) and str(Spread.of([0.5])) == "0.5000"
    assert Spread.of([None, math.inf]) is None


def test_a_tie_is_within_the_pooled_standard_deviation() -> None:
    best = Spread(1.0, 0.3, 3)
    pooled = math.sqrt((2 * 0.3**2 + 1 * 0.6**2) / 3)
    assert Spread(1.0 + 0.99 * pooled, 0.6, 2).ties(best) and not Spread(1.0 + 1.01 * pooled, 0.6, 2).ties(best)
    assert not Spread(1.0, None, 1).ties(best)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.00518, "1.005"),
        (0.46363, "0.4636"),
        (0.0005, "0.0005"),
        (62.0395, "62.04"),
        (0, "0"),
        (-0.0758, "-0.0758"),
        (1e-7, "1e-07"),
        (12345.6, "12346"),
        (0.9999999, "1.000"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_params_are_shown_as_yaml_has_them() -> None:
    mapping = {"a": {"b": [1, [0.5, None]], "c": True}, "d": 1e-3, "e": 0.1 + 0.2}
    assert flat(mapping) == {"a.b": "[1, [0.5, null]]", "a.c": "true", "d": "0.001", "e": str(0.1 + 0.2)}
    assert as_yaml("x") == "x" and seedless({"a.seed": "1", "seeds": "2"}) == {"seeds": "2"}
    assert seedless({"reference.seed": "1"}) == {"reference.seed": "1"}, "of the feature network, not of the run"
    assert differing([{"a": "1", "b": "2"}, {"a": "1"}]) == ["b"]


# Runs


def test_runs_that_differ_by_seeds_are_one_group_and_others_are_not(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    seed = write_run(tmp_path / "b", distill__seed=1, sample__seed=7, factor=3.0)
    alpha = write_run(tmp_path / "c", distill__alpha="cos")
    unused = write_run(tmp_path / "d", objectives__scm__warmup=0.5, runtime__log_every=7, report__curves="metrics/x")
    groups = grouped([first, alpha, seed, unused])
    assert [group.runs for group in groups] == [(first, seed, unused), (alpha,)]
    assert Spread.of(groups[0].values("student", "nfe1", "fd")[:2]) == Spread(2.0, math.sqrt(2), 2)


def test_other_code_is_another_group(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    other = Run("other", Workspace(tmp_path, code={"facm/training/loop.py": "0"}), run.params, run.result)
    assert len(grouped([run, other])) == 2


def test_one_teacher_of_two_students_counts_once(tmp_path: Path) -> None:
    group = Group("both", (write_run(tmp_path / "a"), write_run(tmp_path / "b", distill__seed=1, factor=2.0)))
    assert group.values("teacher", "fd") == [1.0] and group.values("student", "nfe1", "fd") == [1.0, 2.0]


def test_the_params_of_a_report_are_those_that_dvc_tracks_for_it(tmp_path: Path) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    listed = stages["report"]["params"]
    params = write_run(tmp_path, teacher__stage="import_teacher").params
    names = {re.sub(r"\.\$.*|\.threads|\.precision", "", name) for name in listed}
    assert set(used(params)) == names
    assert set(used(params)["runtime"]) == {"threads"} and set(used(params)["objectives"]) == {"facm"}
    tracked = {
        name for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values() for name in stage["params"]
    }
    assert tracked - set(listed) <= {
        "evaluate.copies",
        "evaluate.kid_subsets",
        "sample.rounding",
        "sample.sampler",
        "sample.seed",
    }


def test_from_scratch_the_teachers_params_do_not_count(tmp_path: Path) -> None:
    names = set(used(write_run(tmp_path, **SCRATCH).params))
    assert not names & {"teacher", "baseline", "imported"} and {"distill", "sample", "objectives"} <= names


@pytest.mark.parametrize(
    "later", [("train",), ("preconds", "backbone.precond"), ("imported", "teacher.stage", "report")]
)
def test_a_run_from_before_some_params_is_compared_with_one_of_today(tmp_path: Path, later: tuple[str, ...]) -> None:
    old, new = write_run(tmp_path / "old", factor=2.0), write_run(tmp_path / "new")
    for name in later:
        block, _, key = name.partition(".")
        del (old.params[block] if key else old.params)[key or block]
    text = page.page(grouped([old, new]))
    assert "could not be shown" not in text and "B: student, NFE 1" in text
    assert '<td class="words">–</td>' in text, "what it lacks is shown as absent"


def test_a_run_without_scores_is_refused_with_its_name(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "metrics/evaluate.json").write_text('{"teacher": {}}')
    with pytest.raises(ValueError, match=r"mine: metrics/evaluate.json is damaged .*: run `dvc repro`"):
        Run.of("mine", Workspace(tmp_path))
    (tmp_path / "metrics/evaluate.json").unlink()
    with pytest.raises(ValueError, match=r"mine has no metrics/evaluate.json"):
        Run.of("mine", Workspace(tmp_path))


def test_a_project_in_a_folder_of_its_repository_is_read_at_a_revision(tmp_path: Path, monkeypatch) -> None:
    """As the same files are read in the workspace, though the repository has files of these names above it."""
    from dvc.repo import Repo

    project = tmp_path / "papers/facm"
    write_run(project)
    (project / "dvc.lock").write_text("stages: {}\n")
    (tmp_path / "dvc.lock").write_text("stages: {other: {outs: [{path: metrics, md5: 0.dir}]}}\n")
    (tmp_path / "params.yaml").write_text("another: project\n")
    name = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "run")):
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True)
    Repo.init(str(project), subdir=True).close()
    monkeypatch.chdir(project)
    at_head = Revision.open("HEAD", tmp_path / "blobs")
    assert at_head.root == project and at_head.facts["subject"] == "run"
    here, there = Run.of("", Workspace(project)), Run.of("", at_head)
    assert there.params == here.params and there.result == here.result
    assert at_head.names("data/samples") == here.origin.names("data/samples") != []
    at_head.root = tmp_path
    assert at_head.names("data/samples") == [] and at_head.path("metrics/evaluate.json") is None


# Charts


def test_an_axis_maps_its_ends_and_the_middle() -> None:
    linear, log = Axis(0.0, 10.0, False, 100.0, 0.0), Axis(1.0, 100.0, True, 0.0, 50.0)
    assert (linear(0.0), linear(5.0), linear(10.0)) == (100.0, 50.0, 0.0)
    assert (log(1.0), log(10.0), log(100.0)) == (0.0, 25.0, 50.0)
    assert linear.ticks() == [0, 2, 4, 6, 8, 10] and log.ticks() == [1, 3, 10, 30, 100]
    assert [nice(v) for v in (0.011, 0.02, 3.0, 7.0)] == [0.02, 0.02, 5.0, 10.0]
    assert all(len(Axis(10.0**-a, 10.0**b, True, 0, 1).ticks()) <= 7 for a in range(6) for b in range(1, 7))


def test_lines_differ_by_dash_and_mark_and_lose_what_is_not_finite() -> None:
    rows = [(0.0, 1.0, 0.0), (1.0, math.nan, 0.0), (2.0, 3.0, 0.0)]
    lines = [Line(str(i), tuple(rows), i) for i in range(6)]
    text = chart("title", lines, x_label="step")
    strokes = re.findall(r'<path class="line\d" d="(M[^"]*L[^"]*)"(?: stroke-dasharray="([^"]*)")?', text)
    assert len(strokes) == 6 and len({dash for _, dash in strokes}) == 6 and all("nan" not in d for d, _ in strokes)
    shapes = {re.sub(r"M[\d. ]+", "M", shape) for shape in re.findall(r'class="mark[^"]*" d="([^"]*)"', text)}
    assert len(shapes) == 5 and text.count("hollow") == 4, "disc and ring share a shape, one is hollow"
    assert "<title>title</title>" in text and 'role="img"' in text
    assert chart("t", [Line("a", ((0.0, math.nan, 0.0),), 0)], x_label="x") == "<p>t: no finite value.</p>"


def test_bars_stay_in_a_logarithmic_plot() -> None:
    text = chart("t", [Line("a", ((1.0, 0.1, 0.2), (2.0, 9.0, 1.0)), 0)], x_label="x", at=[1, 2])
    heights = [float(y) for pair in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)\"", text) for y in pair]
    assert heights and all(0 <= y <= 210 for y in heights)


# Images


def decoded(text: str) -> Image.Image:
    """The image of an element."""
    return Image.open(io.BytesIO(base64.b64decode(text.split("base64,")[1].split('"')[0])))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_keep_their_pixels(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels), dtype=np.uint8)
    text = strip(images, 'an "alt"', 128)
    pixels = np.asarray(decoded(text))
    assert pixels.shape == (8, 26, channels + 1) and 'class="pixels"' in text and 'alt="an &#34;alt&#34;"' in text
    for i in range(3):
        assert np.array_equal(pixels[:, 9 * i : 9 * i + 8, :channels], images[i])
    assert (pixels[:, 8, -1] == 0).all() and (pixels[:, :8, -1] == 255).all()


def test_large_images_are_reduced_to_the_side_that_keeps_the_budget() -> None:
    images = np.zeros((2, 256, 512, 3), np.uint8)
    text = strip(images, "a", 100)
    assert decoded(text).size == (2 * 100 + 3, 50) and "pixels" not in text
    assert side_of((8, 8, 1), 300) == 8 and side_of((256, 256, 3), 10) == 128
    assert side_of((256, 256, 3), 150) ** 2 * 3 * 150 <= BUDGET < (side_of((256, 256, 3), 150) + 1) ** 2 * 3 * 150


def test_points_lie_where_they_are_upwards_and_what_is_outside_is_left_out() -> None:
    points = np.array([[-2.0, -2.0], [2.0, 2.0], [9.0, 0.0], [np.nan, 0.0]], np.float32)
    assert places(points, 2.0)[:2] == [(EDGE, SIDE - EDGE), (SIDE - EDGE, EDGE)]
    text = scatter("p", points, 2.0, start=points[::-1][2:])
    assert text.count("h0") == 2 and re.search(r'class="ways" d="(M[^M"]*){2}"', text)
    assert reach([points]) == 9.0 and reach([np.full((2, 2), np.nan)]) == 1.0


# Neighbours and failures


@pytest.mark.parametrize("values", [report_images.VALUES, 70])
def test_the_nearest_image_is_that_of_all_distances(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_images, "VALUES", values)
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(0, 256, (23, 3, 3, 2), generator=generator, dtype=torch.uint8)
    training[20] = training[4]
    images = torch.cat([torch.randint(0, 256, (9, 3, 3, 2), generator=generator, dtype=torch.uint8), training[4:5]])
    distances, indices = nearest(images, training)
    levels = [x.flatten(1).double() / 127.5 for x in (images, training)]
    every = (levels[0][:, None] - levels[1]).square().sum(2).sqrt()
    torch.testing.assert_close(distances, every.min(1).values)
    assert torch.equal(indices, every.argmin(1)) and indices[-1] == 4 and distances[-1] == 0
    assert torch.equal(distances, copies.nearest(images, training))


def test_failures_are_the_least_confident_in_the_requested_class() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [9.0, 0.0]])
    found = least_confident(logits, torch.tensor([0, 1, 1, 0]), 2)
    assert [one[:3] for one in found] == [(1, 1, 0), (0, 0, 0)]
    assert found[0][3] == pytest.approx(1 / (1 + math.exp(2))) and found[1][3] == 0.5


# Presets


@pytest.mark.parametrize("names", [["digits"], ["mixture"], ["digits", "scratch"], ["cifar10"]], ids=" ".join)
def test_a_preset_is_nearest_to_itself(names: list[str]) -> None:
    known = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "presets").glob("*.yaml")}
    params = mapping_of(preset.render(names, ROOT / "presets"), "params.yaml")
    mine = flat(used(params))
    found, values = nearest_preset(mine, known)
    assert sorted(found) == sorted(names) and all(values[name] == value for name, value in mine.items())
    changed = mine | {"distill.optimizer.lr": "7"}
    assert nearest_preset(changed, known)[0] == found


def test_an_overlay_replaces_values_and_merges_blocks() -> None:
    below = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert overlaid(below, {"a": {"c": [2, 3]}, "e": 4}) == {"a": {"b": 1, "c": [2, 3]}, "d": 2, "e": 4}
    assert below == {"a": {"b": 1, "c": [1]}, "d": 2}


def test_a_folder_of_code_tells_runs_apart() -> None:
    def run(md5: str) -> dict[str, dict[str, Any]]:
        deps = [
            {"path": "facm/flow", "md5": f"{md5}.dir"},
            {"path": "stages/teacher.py", "md5": "f1"},
            {"path": "data/latents", "md5": "d1.dir"},
            {"path": "../teachers/xl", "md5": "d2.dir"},
        ]
        return {"teacher": {"deps": deps}}

    assert revision.code_of(run("a1")) == {"facm/flow": "a1.dir", "stages/teacher.py": "f1"}
    assert revision.code_of(run("a1")) != revision.code_of(run("a2"))
