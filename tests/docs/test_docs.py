"""The site: links and anchors lead somewhere, every key is explained, figures are what their scripts make.

That it builds is .ci/run's step `site`; what it is made of (docs/hooks, docs/figures) is tested here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from docs.figures import mixture
from docs.figures.__main__ import FIGURES
from docs.hooks import links, parameters, tables

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
KEYS = parameters.read()
LEAVES = [key for key in KEYS if not key.block]


def test_every_internal_link_and_anchor_of_the_repository_leads_somewhere() -> None:
    files = links.tracked()
    assert {"README.md", "LOG.md", "CHANGELOG.md", "docs/design.md", "studies/results/table1.md"} <= set(files)
    assert sum(not link.external for file in files for link in links.links(file, (ROOT / file).read_text())) > 40
    assert links.broken() == []


def test_a_broken_link_is_reported_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text(
        "# A page, `of` 2\n\n[ok](b.md#second-heading) [gone](c.md) [no anchor](b.md#third) [own](#a-page-of-2)\n"
        "[out](../../x.md) [other own](#none) [far](https://example.org/x) `[code](nowhere.md)`\n\n"
        "```\n[code](nowhere.md)\n# No heading\n```\n"
    )
    (tmp_path / "docs/b.md").write_text("# B\n\n## Second heading\n")
    assert links.broken(tmp_path, ["docs/a.md"]) == [
        "docs/a.md: there is no c.md",
        "docs/a.md: b.md has no heading #third",
        "docs/a.md: there is no ../../x.md",
        "docs/a.md: the file itself has no heading #none",
    ]


def test_anchors_are_githubs() -> None:
    told = "# Where is equation N?\n## On the 2-D mixture\n## `code` & more\n## [A link](x.md)\n## Twice\n## Twice\n"
    expected = {"where-is-equation-n", "on-the-2-d-mixture", "code--more", "a-link", "twice", "twice-1"}
    assert links.anchors(told) == expected


def test_a_section_ends_at_the_next_heading_that_is_not_below_it() -> None:
    text = "# A\n\n## B\nb\n\n```\n## no heading\n```\n### C\nc\n\n## D\nd\n"
    assert links.section(text, "B") == "b\n\n```\n## no heading\n```\n### C\nc"
    assert links.section(text, "D") == "d"
    with pytest.raises(ValueError, match="no heading 'E'"):
        links.section(text, "E")


def test_code_is_not_rewritten() -> None:
    text = "[a](b.md#c) `[a](b.md)` [x](https://e.org)\n```\n[a](b.md)\n```\n"
    told = links.rewrite("docs/p.md", text, lambda link: f"{link.path}!{link.anchor}")
    assert told == text.replace("](b.md#c)", "](docs/b.md!c)", 1)


def test_every_key_of_params_has_a_comment_and_a_rule_and_stands_on_the_page() -> None:
    of_file = [name for name, _ in parameters.leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))]
    assert sorted(key.name for key in LEAVES) == sorted(of_file) and len(of_file) > 200
    page = parameters.page()
    for key in LEAVES:
        if key.value == {}:  # a block without constants
            continue
        assert key.comment, f"presets/base.yaml: {key.name} has no comment"
        assert parameters.rule(key.name), f"{key.name}: no type is known"
        assert f'<tr id="{key.name}">' in page
    assert {key.name: key.comment for key in parameters.read(ROOT / "params.yaml")} == {k.name: k.comment for k in KEYS}


def test_rules_and_choices_come_from_types_and_registries() -> None:
    assert parameters.rule("distill.w") == "number in [1, inf)"
    assert parameters.rule("teacher.optimizer.betas") == "list of 2: number in [0, 1)"
    assert parameters.rule("sample.sigma_rel") == "number in (0, 0.28], or null"
    assert "meanflow" in parameters.rule("distill.objective").split(" | ")
    assert "XL/2" in parameters.rule("backbones.sit.variant")
    assert parameters.rule("backbones.mlp.hidden") == "whole number in [1, inf)"


def test_the_stages_that_a_change_reruns_are_dvcs() -> None:
    by = parameters.stages()
    assert parameters.tracked("distill.alpha", by) == ["distill"]
    assert parameters.tracked("objectives.facm.anchor", by) == ["distill"]
    assert parameters.tracked("backbones.lightningdit.depth", by) == ["teacher", "distill"]
    assert parameters.tracked("evaluate.copies", by) == ["baseline", "evaluate"]
    assert parameters.tracked("train.compile", by) == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_its_script_makes(name: str) -> None:
    made, kept = FIGURES[name](), (ROOT / f"docs/figures/{name}.svg").read_text()
    assert made == kept, f"docs/figures/{name}.svg is another one: run `python -m docs.figures`"
    assert "<title>" in kept and "prefers-color-scheme: dark" in kept
    assert not re.search(r'(href|src)="[^#]|url\([^#]', kept), "it loads nothing"


def test_the_table_of_the_concepts_is_of_the_runs_in_the_figures() -> None:
    scores, text = json.loads(mixture.FILE.read_text())["scores"], (ROOT / "docs/concepts.md").read_text()
    rows = {"teacher, NFE 31": scores["student"]["teacher"], "student": scores["student"]["student"]}
    for label, of in (rows | {"without anchor": scores["alone"]["student"]}).items():
        assert f"| {label} | {of['fd']:.4f} | {of['map_rmse']:.4f} | {of['map_median']:.4f} |" in text


def test_every_table_of_results_is_what_the_committed_files_give() -> None:
    assert tables.stale() == [], "run `python docs/hooks/tables.py`"
    made = [name for file in links.tracked() for name, _ in tables.PART.findall((ROOT / file).read_text())]
    assert set(made) == set(tables.MAKERS)


def test_a_table_that_is_behind_is_seen() -> None:
    text = "<!-- made: scale -->\nOn this scale noise has 3.\n<!-- end -->\n"
    assert "held-out images have 0.46" in tables.renewed("README.md", text)


class Loaded(HTMLParser):
    """What a page loads by itself, its ids, and where it leads within the page."""

    def __init__(self, page: Path):
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.jumps: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a" and given.get("href", "").startswith("#"):
            self.jumps.add(given["href"][1:])
        elif tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere_and_all_that_it_loads_is_there(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        seen = Loaded(page)
        for target in seen.loads:
            assert links.EXTERNAL.match(target) is None, f"{page.name} loads {target}"
            if page.name != "404.html" and not target.startswith("data:"):
                assert (page.parent / target.partition("?")[0]).exists(), f"{page.name}: there is no {target}"
        assert seen.jumps - {""} <= seen.ids, f"{page.name}: no {sorted(seen.jumps - seen.ids)}"
        assert 'class="mermaid"' not in page.read_text(), "the theme would fetch a script for it"
    ids = Loaded(site / "reference/parameters.html").ids
    assert {key.name for key in LEAVES if key.value != {}} <= ids
    assert {"facm.objectives.facm.FACM.__call__", "facm.flow.path.endpoint"} <= {
        name for page in (site / "reference/api").glob("*.html") for name in Loaded(page).ids
    }


@pytest.mark.slow
def test_a_browser_asks_for_nothing_from_elsewhere_and_shows_every_picture(site: Path) -> None:
    if shutil.which(CHROMIUM) is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "tour", "concepts", "results", "reference/parameters", "reference/api/objectives"):
            page.goto((site / f"{name}.html").as_uri())
            page.wait_for_load_state("load")
            broken = "[...document.images].filter(i => !i.complete || i.naturalWidth == 0).map(i => i.src)"
            assert page.evaluate(broken) == [], name
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than a phone"
        browser.close()
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
