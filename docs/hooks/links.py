"""The links of the repository's Markdown files: which lead nowhere, and which lead out.

python docs/hooks/links.py          list the external links, which are not fetched; fails on a broken internal one
"""

import re
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
CODE = r"^(?P<indent> *)(?P<fence>```+|~~~+).*?^(?P=indent)(?P=fence)[^\n]*$|(?P<ticks>`+)[^\n]*?(?P=ticks)"
LINK = re.compile(rf"{CODE}|\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL)
CODED = re.compile(CODE, re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2[^\n]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")
EXTERNAL = re.compile(r"(?:[a-z]+:)?//|mailto:")


@dataclass(frozen=True)
class Link:
    """A link of a file: `target` as it is written, without its anchor."""

    file: str
    target: str
    anchor: str

    @property
    def external(self) -> bool:
        """Whether it leads out of the repository."""
        return EXTERNAL.match(self.target) is not None

    @property
    def path(self) -> str:
        """What an internal one leads to, from the repository's root; `..` at the front where it leaves it."""
        return resolve(self.file, self.target)


def resolve(file: str, target: str) -> str:
    """The path, from the repository's root, of a link's target in `file`; of no target the file itself."""
    if not target:
        return file
    parts: list[str] = []
    for part in (PurePosixPath(file).parent / target).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts) or "."


def links(file: str, text: str) -> Iterator[Link]:
    """The links outside of code, in order."""
    for match in LINK.finditer(text):
        if match["target"] is not None:
            target, _, anchor = match["target"].partition("#")
            yield Link(file, target, anchor)


def rewrite(file: str, text: str, to: Callable[[Link], str]) -> str:
    """The text with what `to` gives for each internal link in its target's place; code stays."""

    def replace(match: re.Match[str]) -> str:
        if match["target"] is None:
            return match[0]
        target, _, anchor = match["target"].partition("#")
        link = Link(file, target, anchor)
        return match[0] if link.external else f"]({to(link)})"

    return LINK.sub(replace, text)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with a change to all that is no code."""
    parts, end = [], 0
    for match in CODED.finditer(text):
        parts += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(text[end:])])


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = unicodedata.normalize("NFC", text).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """What a Markdown file can be linked at."""
    found: set[str] = set(ANCHOR.findall(text))
    for heading in HEADING.findall(FENCED.sub("", text)):
        name, number = slug(heading), 0
        while (unique := name if number == 0 else f"{name}-{number}") in found:
            number += 1
        found.add(unique)
    return found


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next one that is not below it.

    Raises:
        ValueError: there is no such heading.
    """
    fenced = [match.span() for match in FENCED.finditer(text)]
    found = [
        (match.start(), match.end(), len(match[1]), match[2].strip())
        for match in re.finditer(r"^(#{1,6}) +(.+)$", text, re.MULTILINE)
        if not any(start <= match.start() < end for start, end in fenced)
    ]
    for start, end, level, name in found:
        if name == heading:
            after = (s for s, _, other, _ in found if s > start and other <= level)
            return text[end : next(after, len(text))].strip("\n")
    raise ValueError(f"there is no heading {heading!r}")


def tracked(root: Path = ROOT) -> list[str]:
    """Markdown files of the working tree that git knows or would take."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(name for name in names if name and (root / name).is_file())


def broken(root: Path = ROOT, files: list[str] | None = None) -> list[str]:
    """A line for each internal link that leads nowhere.

    Args:
        root: of the repository.
        files: Markdown files, from there; None: `tracked`.
    """
    found = []
    for file in tracked(root) if files is None else files:
        for link in links(file, (root / file).read_text()):
            if link.external:
                continue
            path = root / link.path
            if link.path.startswith("..") or not path.exists():
                found.append(f"{file}: there is no {link.target}")
            elif link.anchor and (path.suffix != ".md" or link.anchor not in anchors(path.read_text())):
                found.append(f"{file}: {link.target or 'the file itself'} has no heading #{link.anchor}")
    return found


def main() -> None:
    """Print the external links with the files that have them; exit with 1 where an internal one is broken."""
    found: dict[str, list[str]] = {}
    for file in tracked():
        for link in links(file, (ROOT / file).read_text()):
            if link.external and file not in found.setdefault(link.target, []):
                found[link.target].append(file)
    for target, files in sorted(found.items()):
        print(f"{target}  {', '.join(files)}")
    if found := broken():
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
