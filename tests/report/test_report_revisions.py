"""`python -m facm.report REV...`: revisions and experiments out of git and DVC's cache, and the page in a real browser.

The runs are made up (runs.py) and committed to DVC as they are, so that nothing is trained.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clone import PYTHON, Clone, make, ran
from miniature import ROOT, SCRATCH
from runs import write_run

from facm.report import revision
from facm.report.run import Workspace

pytestmark = pytest.mark.slow

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync", "--no-first-run"]
CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number)
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor)
    if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] }
  const found = []
  for (const e of document.querySelectorAll('body *:not(title)')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg')
    const a = light(rgb(svg ? style.fill : style.color)), b = light(ground(e))
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + ' ' + e.textContent.slice(0, 40)])
  }
  return found.sort((x, y) => x[0] - y[0])
}"""


def committed(clone: Clone, name: str, **changes: Any) -> None:
    """A made-up run in the clone, as if the pipeline had made it, committed to DVC and git under a tag."""
    for folder in ("data", "metrics"):
        for path in (clone.root / folder).glob("*"):
            if path.name != ".gitignore":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_run(clone.root, **changes)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        for out in (*stage["outs"], *stage.get("metrics", ()), *stage.get("plots", ())):
            path = clone.root / (out if isinstance(out, str) else next(iter(out)))
            if not path.exists() and path.suffix:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
            elif not path.exists():
                path.mkdir(parents=True)
                (path / "empty").touch()
    clone.dvc("commit", "--force", "--quiet")
    clone.commit()
    clone.git("tag", name)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Four revisions: two seeds, another alpha, the last one from scratch."""
    made = make(tmp_path_factory.mktemp("runs"))
    committed(made, "first")
    committed(made, "second", distill__seed=1, factor=2.0)
    committed(made, "cos", distill__alpha="cos", factor=3.0)
    committed(made, "scratch", **SCRATCH)
    made.dvc("repro", "--force", "--single-item", "report")
    made.commit()
    made.git("tag", "--force", "scratch")
    return made


def compared(clone: Clone, *names: str, fails: bool = False) -> tuple[str, str]:
    """What the command says, and the page."""
    out = clone.root.parent / "page.html"
    told = clone.run(PYTHON, "-m", "facm.report", *names, "--out", str(out), fails=fails)
    return told, "" if fails else out.read_text()


# Revisions


def test_revisions_are_compared_without_touching_the_workspace(clone: Clone) -> None:
    before = clone.made()
    told, text = compared(clone, "first", "second", "cos", "scratch")
    assert "could not be shown" not in text and "not in the cache" not in told
    assert "A: first, second (n = 2)" in text and "B: cos (n = 1): distill.alpha cos" in text
    assert '<th scope="row">A: student, NFE 1</th><td>1.500 ± 0.7071' in text
    assert clone.made() == before and clone.git("status", "--short") == ""
    commits = [clone.git("rev-parse", name).strip()[:12] for name in ("first", "second", "cos", "scratch")]
    assert all(commit in text for commit in commits)
    assert compared(clone, "first", "second", "cos", "scratch")[1] == text, "the same bytes"


def test_the_workspace_is_compared_with_a_revision(clone: Clone) -> None:
    _, text = compared(clone, ".", "scratch")
    assert "2 runs that differ by their seeds only: workspace, scratch" in text, "the workspace is that of the tag"
    assert "workspace, not committed" in text


def test_an_experiment_is_found_by_its_name(clone: Clone) -> None:
    clone.git("checkout", "--quiet", "first")
    try:
        clone.dvc("checkout")
        clone.append("presets/digits.yaml", "# edited\n")
        clone.dvc("exp", "save", "--name", "mine", "--force")
        told, text = compared(clone, "first", "mine")
    finally:
        clone.git("checkout", "--quiet", "--force", "scratch")
        clone.dvc("checkout", "--force")
    assert "first, mine" in text and "could not be shown" not in text, told


def test_what_the_cache_lacks_is_told_and_left_out(clone: Clone) -> None:
    cache = clone.root / ".git/dvc-cache/files/md5"
    lock = yaml.safe_load(clone.git("show", "cos:dvc.lock"))["stages"]
    outs = [out for stage in ("sample", "distill") for out in lock[stage]["outs"]]
    lost = [out["md5"] for out in outs if out["path"] in ("data/samples", "metrics/distill")]
    paths = [cache / md5[:2] / md5[2:] for md5 in lost]
    for path in paths:
        path.rename(path.with_suffix(".lost"))
    try:
        told, text = compared(clone, "cos")
    finally:
        for path in paths:
            path.with_suffix(".lost").rename(path)
    assert "cos: not in the cache, left out: data/samples, metrics/distill" in told
    assert "could not be shown" not in text and "not in this cache" in text
    assert "The samples are not available" in text and '<th scope="row">student, NFE 1</th><td>3.000</td>' in text


@pytest.mark.parametrize(
    ("name", "message"), [("nope", "there is no revision or experiment 'nope'"), ("bare", "bare has no dvc.lock")]
)
def test_what_there_is_not_is_named(clone: Clone, name: str, message: str) -> None:
    if name == "bare":
        clone.git("tag", "--force", "bare", clone.git("rev-list", "--max-parents=0", "HEAD").strip())
    told, _ = compared(clone, name, fails=True)
    assert message in told and "Traceback" not in told


# The stage under DVC


def test_the_report_is_cached_and_its_failure_leaves_the_scores(clone: Clone) -> None:
    assert ran(clone.dvc("repro", "--dry")) == []
    assert clone.git("check-ignore", "data/report.html").strip() == "data/report.html"
    clone.append("facm/report/templates/style.css", "\n/* edited */\n")
    try:
        assert ran(clone.dvc("repro", "--dry")) == ["report"], "an edit of the report reruns nothing else"
        clone.append("stages/report.py", "\nraise RuntimeError('no')\n")
        clone.dvc("repro", fails=True)
        assert json.loads(clone.read("metrics/evaluate.json"))["student"]
        assert clone.git("diff", "--stat", "metrics").strip() == ""
    finally:
        clone.git("checkout", "--quiet", "--force", ".")
        clone.dvc("checkout", "--force")


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; where there is none, CI fails and others skip."""
    if not Path(CHROMIUM).exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{CHROMIUM} is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stage's own page, a comparison, and one about points."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(clone.root / "data/report.html", folder / "scratch.html")
    (folder / "several.html").write_text(compared(clone, "first", "second", "cos")[1])
    write_run(folder / "points", points=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder / "points")
        from facm.report.page import page
        from facm.report.run import Run, grouped

        (folder / "points.html").write_text(page(grouped([Run.of("points", Workspace())])))
    return {name: folder / f"{name}.html" for name in ("scratch", "several", "points")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["scratch", "several", "points"])
def test_a_browser_shows_the_page_whole_on_a_phone_and_on_a_desk(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    for width in (360, 1200):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page, asked, told = context.new_page(), list[str](), list[str]()
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, told=told: told.append(message.text))
        page.on("pageerror", lambda error, told=told: told.append(str(error)))
        page.goto(pages[name].as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
        assert told == []
        images = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.complete, i.alt.length])")
        assert all(wide > 0 and complete and alt for wide, complete, alt in images)
        assert (len(images) == 0) == (name == "points")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "no scrolling to the side"
        lowest, words = page.evaluate(CONTRAST)[0]
        assert lowest >= 4.5, f"{words}: contrast {lowest:.2f}"
        ticks = "[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)"
        smallest = page.evaluate(f"Math.min(...{ticks})")
        assert smallest >= 9, "ticks stay readable"
        context.close()


def test_nothing_is_told_by_colour_alone(browser: Any, pages: dict[str, Path]) -> None:
    text = pages["several"].read_text()
    legend = re.findall(r"<li>(<svg.*?</svg>)([^<]*)</li>", text)
    looks: dict[str, set[str]] = {}
    for drawn, label in legend:
        shape = re.sub(r"line\d|M[\d. ]+", "", drawn)
        looks.setdefault(label, set()).add(shape)
    assert len(legend) >= 4 and all(len(shapes) == 1 for shapes in looks.values())
    assert len({next(iter(shapes)) for shapes in looks.values()}) == len(looks), "each label has its own dash and mark"


# Reading


def test_files_of_a_folder_are_those_that_its_hash_lists(clone: Clone, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(clone.root)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(clone.root / ".git/dvc-site"))
    one = revision.Revision.open("first", tmp_path)
    assert "plots/metrics/g.tsv" in one.names("metrics/distill") and "base.yaml" in one.names("presets")
    assert one.path("data/samples/nfe1.npz") is not None and one.path("data/samples/nfe99.npz") is None
    assert one.missing() == [] and one.path("no/such") is None
    assert "facm/training" in one.code and "stages/report.py" not in one.code
