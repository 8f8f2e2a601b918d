"""Each stage's deps in dvc.yaml are its import closure: no code that may change its result is missing, none is idle.

The closure is read from the sources, imports inside functions included. A registry (a package that makes a `Registry`)
stands for the one file that params.yaml names, as in dvc.yaml, wherever one of its files is loaded by name.
"""

import ast
import copy
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from facm import objectives, preset, samplers
from facm.networks import backbones, preconds

ROOT = Path(__file__).parents[2]
# May not change a number, and nothing that they import is handed on. `files` only reads and writes what it is given.
NEUTRAL = ("facm.runtime", "facm.check", "facm.launch", "facm.table")
PASSING = {"facm.networks.checkpoint"}  # neutral too, but what it imports (networks, averages) acts through it
SPARED = (  # files of folders that no stage there imports
    "facm/convert/",  # one file a format: an imported teacher takes a minute
    "facm/report/",  # the command's part: a page takes seconds
    "facm/flow/noise.py",  # of samples; its values are pinned by a test, so that it never changes
)
OPENERS = ("load", "module")  # methods of a Registry that import a file
STAGES = ("reference", "latents", "teacher", "baseline", "distill", "sample", "evaluate", "report")
CHOICES = {  # registry -> the param that names its file; samplers: of the stage that draws
    "facm.networks.backbones": "backbone.name",
    "facm.data.codecs": "latents.codec",
    "facm.convert": "imported.format",
    "facm.data.datasets": "data.name",
    "facm.networks.features": "reference.features",
    "facm.objectives": "distill.objective",
    "facm.networks.preconds": "backbone.precond",
    "facm.samplers": "{stage}.sampler",
}
LISTS = {"facm.networks.features": "reference.also"}  # registry -> the param that names more of its files, or null
VARIANTS: dict[str, dict[str, Any]] = {
    "params.yaml": {},
    **{name: {"backbone.name": name} for name in backbones.BACKBONES},
    **{f"precond {name}": {"backbone.precond": name} for name in preconds.PRECONDS},
    **{name: {"distill.objective": name} for name in objectives.OBJECTIVES},
    "inception": {"reference.features": "inception", "reference.also": ["dinov2"]},
    "pictures_cnn": {"reference.features": "pictures_cnn"},
    "mixture": {
        "data.name": "mixture",
        "reference.features": "exact_map",
        "latents.codec": "points",
        "backbone.name": "mlp",
    },
    **{name: {"data.name": name} for name in ("cifar10", "folder", "precomputed")},
    **{name: {"latents.codec": name} for name in ("sd_vae", "va_vae")},
    **{name: {"sample.sampler": name} for name in samplers.SAMPLERS},
    **{f"teacher's {name}": {"baseline.sampler": name} for name in ("euler", "heun", "dpmpp", "edm")},
    "scratch": {"distill.mode": "scratch", "distill.teacher": "data/latents"},
    "imported": {"teacher.stage": "import_teacher", "imported.code": "facm/convert", "imported.format": "facm"},
}


class Import(NamedTuple):
    """`from module import name`, or `import module` with name None."""

    module: str
    name: str | None


@cache
def source_file(module: str) -> Path | None:
    """File of a module of ours, relative to the root; None where there is no such module."""
    stem = Path(*module.split("."))
    found = [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if (ROOT / path).is_file()]
    return found[0] if found else None


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def is_package(module: str) -> bool:
    path = source_file(module)
    return path is not None and path.name == "__init__.py"


def statements(node: ast.AST, *, functions: bool) -> Iterator[ast.AST]:
    """All nodes below, less those under `if TYPE_CHECKING` and, unless asked for, those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.FunctionDef) and not functions:
            continue
        yield child
        yield from statements(child, functions=functions)


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a module imports of ours; of a package's `__init__` at import time only."""
    path, found = source_file(module), list[Import]()
    assert path is not None, f"there is no module {module}"
    for node in statements(tree(path), functions=not is_package(module)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}:{node.lineno}: relative import"
            found += [Import(node.module, alias.name) for alias in node.names]
            renamed = [a.name for a in node.names if a.asname and f"{node.module}.{a.name}" in CHOICES]
            assert not renamed, f"{path}:{node.lineno}: a registry under another name hides what is loaded: {renamed}"
    return tuple(i for i in found if i.module.split(".")[0] in ("facm", "stages"))


@cache
def table(package: str) -> str | None:
    """Name of a package's `Registry`, such as BACKBONES; None where it has none."""
    path = source_file(package)
    assert path is not None
    made = [
        node.targets[0].id
        for node in tree(path).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and calls(node.value, {"Registry"})
    ]
    assert len(made) < 2, f"{path}: two registries in one package, of which this test would follow one: {made}"
    return made[0] if made else None


def calls(node: ast.AST, functions: Collection[str]) -> bool:
    return any(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in functions for n in ast.walk(node)
    )


def imports_by_name(node: ast.AST) -> bool:
    """Whether a module is imported whose name is computed."""
    return any(
        isinstance(n, ast.Call)
        and getattr(n.func, "id", getattr(n.func, "attr", None)) in ("import_module", "__import__")
        and not isinstance(n.args[0], ast.Constant)
        for n in ast.walk(node)
    )


def opens(node: ast.AST, name: str) -> bool:
    """Whether `name.load` or `name.module` is read anywhere below, or `package.name.load`, called or handed on."""
    return any(
        isinstance(n, ast.Attribute)
        and n.attr in OPENERS
        and (n.value.id if isinstance(n.value, ast.Name) else getattr(n.value, "attr", None)) == name
        for n in ast.walk(node)
    )


@cache
def loaders(package: str) -> frozenset[str]:
    """Functions of a registry that import one of its files by name, themselves or through another one."""
    path, name = source_file(package), table(package)
    assert path is not None
    functions = {node.name: node for node in tree(path).body if isinstance(node, ast.FunctionDef)}
    found = {function for function, node in functions.items() if name is not None and opens(node, name)}
    while grown := {function for function, node in functions.items() if calls(node, found)} - found:
        found |= grown
    return frozenset(found)


@cache
def loads(module: str, package: str) -> bool:
    """Whether a module loads a registry's file: by its table, or a loader, imported by name or of the package."""
    path, functions, name = source_file(module), loaders(package), table(package)
    assert path is not None
    if any(i.module == package and i.name in functions for i in imports(module)):
        return True
    short = package.rsplit(".", 1)[1]
    return (name is not None and opens(tree(path), name)) or any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == short
        and node.attr in functions
        for node in ast.walk(tree(path))
    )


def closure(stage: str, script: str, params: dict[str, Any]) -> set[str]:
    """Files whose code may change a stage's result."""
    waiting, seen = [f"stages.{script}"], set[str]()
    while waiting:
        module = waiting.pop()
        if module in seen or f"{module}.".startswith(tuple(f"{neutral}." for neutral in NEUTRAL)):
            continue
        seen.add(module)
        for i in imports(module):
            inner = f"{i.module}.{i.name}"
            waiting += [i.module, inner] if i.name and source_file(inner) else [i.module]
        for package, place in CHOICES.items() if not is_package(module) else ():
            if loads(module, package):
                waiting.append(f"{package}.{value(params, place.format(stage=stage))}")
                more = value(params, LISTS[package]) if package in LISTS else None
                waiting += [f"{package}.{name}" for name in more or ()]
    files = {m: source_file(m) for m in seen - PASSING if not is_package(m)}
    return {str(path) for path in files.values()}


def value(params: dict[str, Any], place: str) -> Any:
    """A value of nested mappings by its dotted name."""
    for key in place.split("."):
        params = params[key]
    return params


def variant(changes: dict[str, Any]) -> dict[str, Any]:
    """params.yaml of the default preset with some values changed; as it stands without changes."""
    if not changes:
        return yaml.safe_load((ROOT / "params.yaml").read_text())
    params = copy.deepcopy(yaml.safe_load(preset.render(["digits"], ROOT / "presets")))
    for place, new in changes.items():
        *blocks, name = place.split(".")
        value(params, ".".join(blocks))[name] = new
    return params


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """Per variant and stage: the code among the deps, as DVC resolves them; a folder stands for its files."""
    found = {}
    for name, changes in VARIANTS.items():
        root = tmp_path_factory.mktemp("dvc")
        (root / ".dvc").mkdir()
        (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        (root / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
        (root / "params.yaml").write_text(yaml.safe_dump(variant(changes)))
        with Repo(str(root)) as repo:
            found[name] = {
                stage.name: {
                    path for dep in stage.deps if not isinstance(dep, ParamsDependency) for path in code(dep.def_path)
                }
                for stage in repo.index.stages
            }
    return found


def code(path: str) -> list[str]:
    """Files of a dependency that are code; those of a folder without its `__init__`, which holds no code of its own."""
    if path.endswith(".py"):
        return [path]
    files = (ROOT / path).rglob("*.py") if path.startswith("facm/") else ()
    return sorted(str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py")


@pytest.fixture(scope="module")
def upstream() -> dict[str, set[str]]:
    """Per stage of params.yaml's variant, the stages that it depends on, directly or not."""
    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
        return {stage.name: {other.name for other in nx.descendants(graph, stage)} for stage in repo.index.stages}


@pytest.fixture(scope="module")
def closures() -> dict[str, dict[str, set[str]]]:
    """Per variant and stage: the import closure."""
    params = {name: variant(changes) for name, changes in VARIANTS.items()}
    return {
        name: {s: closure(s, p["teacher"]["stage"] if s == "teacher" else s, p) for s in STAGES}
        for name, p in params.items()
    }


def test_the_pipeline_has_the_eight_stages(resolved: dict[str, dict[str, set[str]]]) -> None:
    assert all(sorted(stages) == sorted(STAGES) for stages in resolved.values())


@pytest.mark.parametrize("stage", STAGES)
def test_code_that_a_stage_imports_stands_in_its_deps(
    stage: str, resolved: dict[str, dict[str, set[str]]], closures: dict[str, dict[str, set[str]]]
) -> None:
    missing = {name: sorted(closures[name][stage] - resolved[name][stage]) for name in VARIANTS}
    assert not any(missing.values()), f"dvc.yaml, {stage}: deps lack, per variant of params.yaml, {missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_code_in_the_deps_of_a_stage_is_imported_by_it_or_before_it(
    stage: str,
    resolved: dict[str, dict[str, set[str]]],
    closures: dict[str, dict[str, set[str]]],
    upstream: dict[str, set[str]],
) -> None:
    """A folder costs nothing where a stage before this one, which would run again, uses its other files."""
    named = {f for name in VARIANTS for f in resolved[name][stage] if not f.startswith(SPARED)}
    idle = named - {f for c in closures.values() for s in (stage, *upstream[stage]) for f in c[s]}
    assert not idle, f"dvc.yaml, {stage}: neither it nor a stage before it imports, in any variant, {sorted(idle)}"


@pytest.mark.parametrize("variant_name", VARIANTS)
def test_code_in_deps_exists(variant_name: str, resolved: dict[str, dict[str, set[str]]]) -> None:
    absent = {f for files in resolved[variant_name].values() for f in files if not (ROOT / f).is_file()}
    assert not absent


def test_neutral_modules_exist() -> None:
    assert all(source_file(module) for module in {*NEUTRAL, *PASSING})


def test_every_registry_has_a_param_that_names_its_file() -> None:
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "facm").rglob("*/__init__.py")]
    packages = {".".join(folder.parts) for folder in folders}
    assert {package for package in packages if table(package)} == set(CHOICES)
    files = [path.relative_to(ROOT) for folder in ("facm", "stages") for path in (ROOT / folder).rglob("*.py")]
    by_hand = [str(path) for path in files if imports_by_name(tree(path))]
    assert by_hand == ["facm/runtime/registry.py"], "imports by name that this test cannot follow"


def test_every_file_of_a_registry_is_chosen_by_a_variant(closures: dict[str, dict[str, set[str]]]) -> None:
    from facm.data import codecs, datasets
    from facm.networks import features

    names = {
        "data/codecs": codecs.CODECS,
        "data/datasets": datasets.DATASETS,
        "networks/backbones": backbones.BACKBONES,
        "networks/features": features.FEATURES,
        "networks/preconds": preconds.PRECONDS,
        "objectives": objectives.OBJECTIVES,
        "samplers": samplers.SAMPLERS,
    }
    files = {f"facm/{package}/{name}.py" for package, registered in names.items() for name in registered}
    assert files <= {file for stages in closures.values() for c in stages.values() for file in c}


def test_an_import_inside_a_function_belongs_to_the_closure() -> None:
    inside = ast.parse("def f():\n    from facm.networks.ema import PowerEMA\n")
    assert any(isinstance(node, ast.ImportFrom) for node in statements(inside, functions=True))
    assert not any(isinstance(node, ast.ImportFrom) for node in statements(inside, functions=False))


def test_a_name_from_a_registry_is_no_use_of_it() -> None:
    assert not loads("facm.export.provenance", "facm.data.codecs")  # reads POINTS only
    assert loads("facm.inference.generator", "facm.data.codecs")
