"""Where is equation N? docs/equations.md is complete and true: each home has its equation's number in a docstring."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/equations.md").read_text()
EQUATIONS = range(1, 21)
MENTION = re.compile(r"\b[Ee]qs?\. (\d+(?:(?:, and |, | and |-)\d+)*)")


def mentioned(text: str) -> set[int]:
    """Numbers that a text names as `Eq. N`, `Eq. N, M`, `Eq. N and M` or `Eq. N-M`."""
    found: set[int] = set()
    for match in MENTION.finditer(text):
        for part in re.split(r", and |, | and ", match[1]):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def docstrings(path: Path) -> dict[str, str]:
    """Docstrings of a module's classes, functions and methods by qualified name; its own is called ""."""
    tree = ast.parse(path.read_text())
    found = {"": ast.get_docstring(tree) or ""}

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                name = f"{where}.{child.name}" if where else child.name
                found[name] = ast.get_docstring(child) or ""
                visit(child, name)

    visit(tree, "")
    return found


def table() -> list[tuple[set[int], list[Path], list[str]]]:
    """Rows of the page's table: equations, files, names of functions."""
    rows = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0][:1].isdigit():
            files, names = ([code for code in re.findall(r"`([^`]+)`", cell)] for cell in cells[2:])
            rows.append((mentioned(f"Eq. {cells[0].partition(', Alg')[0]}"), [ROOT / file for file in files], names))
    return rows


CODE = {path: docstrings(path) for path in sorted((ROOT / "facm").rglob("*.py"))}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(Eq. 7)", {7}),
        ("(Eq. 2, 6)", {2, 6}),
        ("Eq. 7, 16 and 17).", {7, 16, 17}),
        ("Eq. 4-6", {4, 5, 6}),
        ("eq. 10; none leaves eq. 1", {1, 10}),
        ("(Eq. 10, App. A.3a)", {10}),
        ("(Eq. 11, line 7)", {11}),
        ("equation 3", set()),
    ],
)
def test_forms_in_which_an_equation_is_named(text: str, numbers: set[int]) -> None:
    assert mentioned(text) == numbers


@pytest.mark.parametrize("number", EQUATIONS)
def test_equation_has_a_home_among_the_docstrings(number: int) -> None:
    homes = [path for path, found in CODE.items() if any(number in mentioned(text) for text in found.values())]
    assert homes, f"no docstring in facm/ carries (Eq. {number})"


@pytest.mark.parametrize("number", EQUATIONS)
def test_equation_has_a_row_on_the_page_whose_files_and_functions_carry_it(number: int) -> None:
    rows = [(files, names) for numbers, files, names in table() if number in numbers]
    assert len(rows) == 1, f"the page has {len(rows)} rows for Eq. {number}"
    files, names = rows[0]
    assert files and names
    for file in files:
        found = CODE[file]
        mine = [name for name in names if name in found]
        assert mine, f"{file.relative_to(ROOT)} has none of {names}"
        for name in mine:
            assert number in mentioned(found[name]), f"the docstring of {name} in {file.name} lacks (Eq. {number})"
    for name in names:
        assert any(name in CODE[file] for file in files), f"{name} is in none of the page's files for Eq. {number}"


def test_algorithm_1_has_a_row_on_the_page_and_names_its_lines() -> None:
    assert re.search(r"^\| 8, Alg\. 1 \|.*`FACM\.__call__`", PAGE, re.MULTILINE)
    assert "Algorithm 1" in CODE[ROOT / "facm/objectives/facm.py"]["FACM.__call__"]
