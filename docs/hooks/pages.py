"""MkDocs: the pages that are made at build time, and the repository's own files that the site shows beside docs/.

Links in docs/ are written for the repository (`../README.md`, `../presets`). The site has these files under other
names, see BROUGHT, or as text under source/; a link is rewritten to where its target stands. A comment
`<!-- include: FILE, Heading -->` is replaced by that section, `<!-- studies -->` and `<!-- table -->` by what
studies/results and metrics/evaluate.json hold.
"""

import json
import posixpath
import re
import sys
from pathlib import Path

import links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for `parameters`, which reads the package

import parameters  # noqa: E402

from facm import table  # noqa: E402

BROUGHT = {  # files of the repository that are pages of the site
    "README.md": "project/readme.md",
    "LOG.md": "project/log.md",
    "CHANGELOG.md": "project/changelog.md",
    "presets": "reference/presets.md",
    "presets/base.yaml": "reference/parameters.md",
}
SECTIONS = {  # of README, that have a page
    "where-is-equation-n": "reference/equations.md",
    "add-an-objective": "objective.md",
    "known-traps": "traps.md",
}
RESULTS = "studies/results/"  # brought as they are
INCLUDE = re.compile(r"^<!-- include: (\S+), (.+?) -->$", re.MULTILINE)
STUDIES, TABLE = "<!-- studies -->", "<!-- table -->"
API: dict[str, tuple[str, tuple[str, ...]]] = {  # page: title, modules and packages of facm; the rest goes to `other`
    "use": ("Use a model", ("facm", "generator", "generate", "posthoc", "checkpoint", "samples", "picture")),
    "mathematics": (
        "Flow, losses, derivatives",
        ("flow", "schedules", "losses", "point", "velocity", "derivative", "dual", "attention", "ema", "mixture"),
    ),
    "objectives": ("Objectives", ("objectives",)),
    "backbones": ("Backbones, preconditionings", ("backbones", "preconds")),
    "samplers": ("Samplers", ("samplers",)),
    "data": ("Data, codecs", ("data", "codecs", "encoder")),
    "scores": (
        "Scores",
        (
            "features",
            "evaluate",
            "reference",
            "frechet",
            "inception_score",
            "archive",
            "ends",
            "seen",
            "copies",
            "lpips",
        ),
    ),
    "training": (
        "Training",
        ("train", "step", "passes", "student", "source", "batch", "target", "repa", "stop", "ahead", "dist"),
    ),
    "convert": ("Published checkpoints", ("convert",)),
    "params": (
        "Params, files, command lines",
        ("params", "check", "preset", "table", "launch", "work", "files", "log"),
    ),
}
OTHER = ("other", "Others")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is generated and what is brought."""
    made = {
        "reference/parameters.md": parameters.page(),
        "reference/presets.md": presets_page(),
        "reference/equations.md": equations_page(),
        **api_pages(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    results = [
        f"{RESULTS}{path.name}" for path in sorted((ROOT / RESULTS).glob("*.*")) if path.suffix in (".md", ".svg")
    ]
    pages = {file: to for file, to in BROUGHT.items() if file.endswith(".md")} | {file: file for file in results}
    own = [f"docs/{file.src_uri}" for file in files if file.src_uri not in made and file.is_documentation_page()]
    linked = {link.path for file in (*own, *pages) if file.endswith(".md") for link in links.links(file, _text(file))}
    sources = {path for path in linked if _of_site(path) is None and (ROOT / path).is_file()}
    for path, to in (pages | {path: _source(path) for path in sources}).items():
        files.append(File.generated(config, to, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is included, and lead links to where the site has their targets."""
    here = page.file.src_uri
    origin = _repository_path(here)
    if origin == "README.md":
        markdown = deeper(markdown)
    markdown = _led(origin, here, _plain(markdown) if not here.startswith("reference/") else markdown)
    markdown = INCLUDE.sub(lambda match: _included(match[1], match[2], here), markdown)
    if TABLE in markdown:
        scores = table.render(json.loads(_text("metrics/evaluate.json")))
        markdown = markdown.replace(TABLE, f"```text\n{scores}\n```")
    return markdown.replace(STUDIES, studies_table(here)) if STUDIES in markdown else markdown


def deeper(text: str) -> str:
    """README's lists, whose content is indented by two, with the four that the site needs."""
    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"  {line}" if line.startswith("  ") and not fenced else line)
    return "\n".join(lines) + "\n"


def presets_page() -> str:
    """Every preset as it stands in presets/."""
    parts = [PRESETS]
    for path in sorted((ROOT / "presets").glob("*.yaml"), key=lambda p: (p.stem != "base", p.stem)):
        parts.append(f"## {path.stem}\n\n```yaml\n{path.read_text().rstrip()}\n```\n")
    return "\n".join(parts)


def equations_page() -> str:
    """README's table of equations, each function with a link to its description."""
    table = links.section(_text("README.md"), "Where is equation N?")
    lines = []
    for line in table.splitlines():
        modules = [name.replace("/", ".") for name in re.findall(r"`(facm/[\w/]+)\.py`", line)]
        lines.append(re.sub(r"(?<=[|,] )`([\w.]+)`", lambda match, m=modules: _linked(match[1], m), line))
    return EQUATIONS + "\n".join(lines) + "\n"


def api_pages() -> dict[str, str]:
    """A page per group of API, and one of the modules in none."""
    found = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "facm").rglob("*.py"))
    left = {name.removesuffix(".__init__") for name in found if not name.endswith("__main__")}
    pages = {}
    for group, (title, heads) in API.items():
        modules = [name for head in heads for name in sorted(left) if _under(name, head)]
        left -= set(modules)
        pages[f"reference/api/{group}.md"] = _api_page(title, modules)
    pages[f"reference/api/{OTHER[0]}.md"] = _api_page(OTHER[1], sorted(left))
    return pages


def studies_table(here: str) -> str:
    """Claim, reading and gaps of each study that has a page."""
    rows = ["| study | claim of the paper | what was found |", "|---|---|---|"]
    for path in sorted((ROOT / RESULTS).glob("*.md")):
        text = path.read_text()
        title, claim, reading = (
            re.search(p, text, re.MULTILINE) for p in (r"^# (.+)$", r"^Claim of the paper: (.+)$", r"^Reading: (.+)$")
        )
        if title is None or claim is None:
            continue
        target = posixpath.relpath(f"{RESULTS}{path.name}", posixpath.dirname(here) or ".")
        missing = len(re.findall(r"\| not run(?= \|)", text))
        told = (reading[1] if reading else "No reading yet.") + (f" Cells not run: {missing}." if missing else "")
        rows.append(f"| [{title[1]}]({target}) | {claim[1]} | {told} |")
    return "\n".join(rows)


def _api_page(title: str, modules: list[str]) -> str:
    return (
        f"---\nsearch: {{boost: 0.3}}\n---\n# {title}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
    )


def _under(module: str, head: str) -> bool:
    if head == "facm":
        return module == "facm"
    return module == f"facm.{head}" or module.startswith(f"facm.{head}.")


def _linked(name: str, modules: list[str]) -> str:
    for module in modules:
        text, head = (ROOT / f"{module.replace('.', '/')}.py").read_text(), name.split(".")[0]
        if re.search(rf"^(?:def|class) {head}\b", text, re.MULTILINE):
            return f"[`{name}`][{module}.{name}]"
    return f"`{name}`"


def _included(file: str, heading: str, here: str) -> str:
    return _led(file, here, deeper(links.section(_text(file), heading)))


def _led(origin: str, here: str, text: str) -> str:
    """The text of a repository's file with its links as the page `here` needs them."""

    def to(link: links.Link) -> str:
        if not link.target and origin == _repository_path(here):
            return f"#{link.anchor}"
        if link.path == "README.md" != origin and link.anchor in SECTIONS:
            return posixpath.relpath(SECTIONS[link.anchor], posixpath.dirname(here) or ".")
        target = _of_site(link.path) or _source(link.path)
        if target == _source(link.path) and not (ROOT / link.path).is_file():
            raise PluginError(f"{origin}: the site has no page for {link.target}: see BROUGHT in docs/hooks/pages.py")
        anchor = link.anchor or (
            Path(link.path).stem if link.path != "presets" and target == BROUGHT["presets"] else ""
        )
        return posixpath.relpath(target, posixpath.dirname(here) or ".") + (f"#{anchor}" if anchor else "")

    return links.rewrite(origin, text, to)


def _plain(text: str) -> str:
    """The text with `][` escaped, which GitHub shows as it is and the site takes for a reference; code stays."""
    return links.outside_code(text, lambda prose: prose.replace("][", "]\\["))


def _of_site(path: str) -> str | None:
    """Where the site has a file of the repository; None where it has no place of its own."""
    if path in BROUGHT:
        return BROUGHT[path]
    if path.startswith("presets/"):
        return BROUGHT["presets"]
    if path.startswith(RESULTS):
        return path
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return None


def _source(path: str) -> str:
    """Where the site has a file that has no page: under a name that every browser shows, and no part of it hidden."""
    return f"source/{'/'.join(part.lstrip('.') for part in path.split('/'))}.txt"


def _repository_path(page: str) -> str:
    """The file that a page of the site was made of."""
    for file, to in BROUGHT.items():
        if to == page:
            return file if file.endswith(".md") else f"docs/{page}"
    return page if page.startswith(RESULTS) else f"docs/{page}"


def _text(file: str) -> str:
    return (ROOT / file).read_text()


PRESETS = """\
# Presets

`python -m facm.preset NAME [OVERLAY ...]` writes params.yaml: `base`, with the overlays on it, in order. What each key
means stands in [Parameters](parameters.md). The comments of a preset say what its rows of the paper are expected to
cost.
"""
EQUATIONS = """\
# Where is equation N?

Of [arXiv 2507.03738](https://arxiv.org/abs/2507.03738). Each function leads to its description and its code. Parameters
say the place in the paper in their [meaning](parameters.md).

"""
