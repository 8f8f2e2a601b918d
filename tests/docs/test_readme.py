"""README is true: its commands parse and run, its paths and params exist, its tables name what the registries have.

A block under `<!-- test: ... -->` is run here: `tiny` and `quick` on a tiny student, `clone` (docs/tour.md's too) by
real DVC in a temporary clone (slow). docs/objective.md has `file PATH` and `after LINE`: its example trains. The two
commands are run by .ci/run. That the tables of results are those of the committed files: tests/docs/test_docs.py.
"""

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from clone import make, ran
from documents import Block, among, fenced, run
from miniature import ROOT, write_checkpoint, write_latents

from facm import check, objectives, preset, samplers
from facm.convert import FORMATS
from facm.data import codecs, datasets
from facm.networks import backbones, features, preconds
from facm.runtime import params

README, OBJECTIVE, TOUR = ((ROOT / name).read_text() for name in ("README.md", "docs/objective.md", "docs/tour.md"))
LINES = 170  # of README at most
BASE = yaml.safe_load((ROOT / "presets/base.yaml").read_text())
COMMANDS = ("pip install uv && uv run dvc repro", "uv run pytest")
EXAMPLE = """\
backbones:
  lightningdit:
    hidden: 16
    depth: 1
    heads: 2
distill:
  w: 1.0
  objective: euler_cd
  steps: 2
  batch_size: 4
  optimizer:
    warmup: 0
  ema:
    snapshots: 1
runtime:
  log_every: 1
"""
TRAIN = """\
import os, facm
from facm.launch import main
assert facm.__file__.startswith(os.getcwd()), facm.__file__
main(["stages.latents"])
main(["stages.distill"])
"""


def blocks() -> list[Block]:
    """The fenced blocks of README, in order."""
    return fenced(README)


def marked(marker: str) -> list[Block]:
    """The blocks whose marker begins so."""
    return among(blocks(), marker)


def dvc_commands() -> list[list[str]]:
    """Arguments of every `dvc` in a bash block and in running text."""
    inline = (shlex.split(code) for code in re.findall(r"`(dvc [a-z][^`]*)`", README))
    fenced = (words for block in blocks() if block.language == "bash" for words in block.commands)
    parts = [words[: words.index("&&")] if "&&" in words else words for words in (*fenced, *inline)]
    return [words[1:] for words in parts if words[0] == "dvc"]


def named_params() -> set[str]:
    """Every key of params.yaml that README names, in code or in a command."""
    text = "\n".join([*re.findall(r"`([^`\n]+)`", README), *(b.text for b in blocks() if b.language == "bash")])
    return set(re.findall(rf"(?<![\w/.])(?:{'|'.join(BASE)})(?:\.[a-z_]\w*)+", text))


def lookup(key: str) -> Any:
    value: Any = BASE
    for part in key.split("."):
        value = value[part]
    return value


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package as the current folder, with params.yaml and a student that has random weights."""
    for name in ("facm", "stages", "presets"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    preset.write(["digits"], tmp_path / "params.yaml", folder=tmp_path / "presets", force=True)
    data = write_latents(tmp_path / "data/latents", num=20, classes=10, side=8)
    write_checkpoint(tmp_path / "data/student", data, kind="student")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_stand_there_as_ci_runs_them() -> None:
    lines = [line for block in blocks() for line in block.text.splitlines()]
    assert COMMANDS[0] in lines and f"`{COMMANDS[1]}`" in README
    assert len(README.splitlines()) <= LINES


def test_the_quick_start_says_what_is_downloaded_trained_and_made() -> None:
    start = README.split("## Quick start")[1].split("\n## ")[0]
    for word in ("5 GB", "--torch-backend cpu", "UV_NO_SYNC", "minutes", "No DVC remote is shipped", "`dvc pull`"):
        assert word in start, f"README does not say at its start: {word}"


def test_python_and_licence_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.fullmatch(r">=([\d.]+),<3\.(\d+)", project["requires-python"]).groups()  # type: ignore[union-attr]
    assert f"Python {low} to 3.{int(high) - 1}" in README and project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_what_is_supported_is_what_the_registries_have() -> None:
    registries = {
        "distill.objective": objectives.OBJECTIVES,
        "backbone.name": backbones.BACKBONES,
        "backbone.precond": preconds.PRECONDS,
        "data.name": datasets.DATASETS,
        "latents.codec": codecs.CODECS,
        "sample.sampler": samplers.SAMPLERS,
        "reference.features": features.FEATURES,
        "imported.format": FORMATS,
    }
    rows = {row[0]: row[1] for row in re.findall(r"^\| [^|]+ \| `([\w.]+)` \| (.*) \|$", README, re.MULTILINE)}
    assert rows.keys() == registries.keys()
    for key, registry in registries.items():
        assert set(re.findall(r"`(\w+)`", rows[key])) == set(registry), key


def test_every_path_of_the_tree_exists() -> None:
    tree = next(block.text for block in blocks() if block.text.startswith("dvc.yaml"))
    paths = [name for line in tree.splitlines() for name in re.split(r"\s{2,}", line)[0].split(" ")]
    assert len(paths) > 12
    for path in paths:
        assert (ROOT / path).exists(), f"there is no {path}"
    folders = {f"facm/{path.parent.name}/" for path in (ROOT / "facm").glob("*/__init__.py")}
    commands = {"facm/check/", "facm/report/", "facm/export/"}
    assert folders - commands == {path for path in paths if path.startswith("facm/")}


def test_every_file_of_a_link_or_a_picture_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith(("https://", "#")) or (ROOT / target).is_file(), f"there is no {target}"


def test_every_path_in_running_text_exists() -> None:
    for path in re.findall(r"`((?:facm|stages|presets|studies|tests|docs|\.ci)/[\w./]*)`", README):
        assert (ROOT / path).exists(), f"there is no {path}"


def test_every_key_of_params_exists() -> None:
    keys = named_params()
    assert len(keys) > 8
    for key in keys:
        lookup(key)


def test_every_dvc_command_is_understood_by_dvc() -> None:
    from dvc.cli import parse_args

    commands = dvc_commands()
    assert len(commands) > 4
    for words in commands:
        parse_args(words)


def test_every_value_that_a_command_sets_is_accepted() -> None:
    digits = yaml.safe_load(preset.render(["digits"], ROOT / "presets"))
    settings = [words[i + 1] for words in dvc_commands() for i, word in enumerate(words) if word == "-S"]
    assert len(settings) >= 3
    for key, _, text in (setting.partition("=") for setting in settings):
        for value in [text] if text.startswith("[") else text.split(","):
            mapping = copy.deepcopy(digits)
            *places, name = key.split(".")
            block = mapping
            for place in places:
                block = block[place]
            assert name in block
            block[name] = yaml.safe_load(value)
            check.check(params.parse(mapping))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_marked_commands_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (tiny / "params.yaml").read_bytes()
    made = []
    quick = [words[2:] for block in marked("quick") for words in block.commands if words[2:3] == ["python"]]
    commands = [words for block in marked("tiny") if block.language == "bash" for words in block.commands]
    for words in [*quick, *commands]:
        if words[2] == "facm.table":  # of a run's scores
            continue
        run(words, monkeypatch)
        made += [tiny / out for flag, out in pairwise(words) if flag == "--out"]
    assert len(made) >= 3 and all(path.exists() for path in made)
    assert (tiny / "params.yaml").read_bytes() == before


def test_marked_python_runs(tiny: Path) -> None:
    (block,) = (block for block in marked("tiny") if block.language == "python")
    names: dict[str, Any] = {}
    exec(compile(block.text, "README.md", "exec"), names)
    assert names["images"].shape == (3, 8, 8, 1) and names["images"].dtype == "uint8"


def test_the_example_of_an_objective_trains_two_steps_as_it_stands_on_its_page(tiny: Path) -> None:
    page = fenced(OBJECTIVE)
    (file,) = among(page, "file ")
    (tiny / file.marker.removeprefix("file ")).write_text(file.text)
    for block, path in zip(among(page, "after "), ("facm/objectives/__init__.py", "presets/base.yaml"), strict=True):
        line, text = block.marker.removeprefix("after "), (tiny / path).read_text()
        assert f"`{path}`" in OBJECTIVE and text.count(line) == 1, f"{path} has no single {line!r}"
        (tiny / path).write_text(text.replace(line, f"{line}\n{block.text}"))
    (tiny / "presets/example.yaml").write_text(EXAMPLE)
    preset.write(["digits", "scratch", "example"], force=True)
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    config = json.loads((tiny / "data/student/config.json").read_text())
    assert (config["objective"], config["step"], config["samplers"]) == ("euler_cd", 2, ["consistency"])
    assert "alpha, beta, p" in done.stdout  # which it has no use for
    assert json.loads((tiny / "metrics/distill.json").read_text())["distill_training"]["loss_cm"] > 0


@pytest.mark.slow
def test_the_commands_that_change_something_run_and_rerun_the_stages_that_they_say(tmp_path: Path) -> None:
    clone = make(tmp_path)
    stages = ran(clone.dvc("repro"))
    clone.commit()
    block, more = (among(fenced(text), "clone")[0] for text in (README, TOUR))
    for line in (block.text + more.text).splitlines():
        words = shlex.split(line, comments=True)
        output = clone.dvc(*words[1:]) if words[0] == "dvc" else clone.run(*words)
        comment = line.partition("# reruns ")[2]
        if comment:
            assert ran(output) == [stage for stage in stages if stage in re.findall(r"\w+", comment)], (
                f"{line}\n{output}"
            )
    status, end = "Queued", time.monotonic() + 300
    while re.search("Queued|Running", status) and time.monotonic() < end:
        time.sleep(1)
        status = clone.dvc("queue", "status")
    assert status.count("Success") == 3, status
