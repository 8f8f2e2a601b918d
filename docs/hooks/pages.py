"""MkDocs: the pages that are made at build time, and the repository's own files that the site shows beside docs/.

Links in docs/ are written for the repository (`../README.md`, `../presets`). The site has these files under other
names, see BROUGHT, or as text under source/; a link is rewritten to where its target stands. Every page is complete in
the repository: what is made from results is in the committed file, and docs/hooks/tables.py keeps it true.
"""

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
sys.path.insert(0, str(ROOT))  # for `parameters` and `tables`, which read the package

import parameters  # noqa: E402
import tables  # noqa: E402

BROUGHT = {  # files of the repository that are pages of the site
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "LOG.md": "project/log.md",
    "CHANGELOG.md": "project/changelog.md",
    "presets": "reference/presets.md",
    "presets/base.yaml": "reference/parameters.md",
}
EQUATIONS = "equations.md"  # its functions lead to their descriptions
RESULTS = "studies/results/"  # brought as they are
API: dict[str, tuple[str, tuple[str, ...]]] = {  # page: title, modules and packages of facm; the rest goes to `other`
    "use": ("Use a model", ("facm", "inference", "generate", "posthoc", "pipeline", "networks.checkpoint")),
    "mathematics": ("Flow, losses, derivatives", ("flow", "networks.ema")),
    "objectives": ("Objectives", ("objectives",)),
    "backbones": (
        "Backbones, preconditionings",
        ("networks.backbones", "networks.preconds", "networks.layers"),
    ),
    "samplers": ("Samplers", ("samplers",)),
    "data": ("Data, codecs", ("data",)),
    "scores": ("Scores", ("metrics", "networks.features", "networks.lpips")),
    "training": ("Training", ("training",)),
    "convert": ("Published checkpoints", ("convert",)),
    "params": ("Parameters, files, commands", ("runtime", "check", "preset", "table", "launch", "work")),
}
OTHER = ("other", "Others")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is generated and what is brought.

    Raises:
        PluginError: a page is not what the committed results give.
    """
    if stale := tables.stale():
        raise PluginError(f"{', '.join(stale)}: behind the committed results: run `python docs/hooks/tables.py`")
    made = {
        "reference/parameters.md": parameters.page(),
        "reference/presets.md": presets_page(),
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
    return equations(markdown) if here == EQUATIONS else markdown


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


def equations(text: str) -> str:
    """The table of equations, each function with a link to its description."""
    lines = []
    for line in text.splitlines():
        modules = [name.replace("/", ".") for name in re.findall(r"`(facm/[\w/]+)\.py`", line)]
        lines.append(re.sub(r"(?<=[|,] )`([\w.]+)`", lambda match, m=modules: _linked(match[1], m), line))
    return "\n".join(lines) + "\n"


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


def _led(origin: str, here: str, text: str) -> str:
    """The text of a repository's file with its links as the page `here` needs them."""

    def to(link: links.Link) -> str:
        if not link.target and origin == _repository_path(here):
            return f"#{link.anchor}"
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

`python -m facm.preset NAME [OVERLAY ...]` writes params.yaml: `base`, with the overlays on it, in order.
[Parameters](parameters.md) says what each key means. The comments of a preset say what its rows of the
paper are expected to cost.
"""
