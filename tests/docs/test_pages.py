"""The how-tos are true: what docs/dataset.md and docs/backbone.md say is done here, word for word.

A fenced block under `<!-- test: file PATH -->` becomes that file, one under `<!-- test: after LINE -->` is put behind
that line of the file that the text names, and those under `<!-- test: commands -->` are run.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from miniature import BASE, ROOT
from picture_files import fill

from facm import check, preset

FENCE = re.compile(r"^<!-- test: ([^\n]*) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OVERLAY = """\
backbone:
  name: convnet
backbones:
  convnet:
    hidden: 8
    depth: 1
teacher:
  steps: 2
  batch_size: 4
  dropout: 0.1
  optimizer:
    warmup: 0
  ema:
    snapshots: 1
distill:
  steps: 2
  batch_size: 4
  dropout: 0.1
  optimizer:
    warmup: 0
  ema:
    snapshots: 1
runtime:
  log_every: 1
"""
TRAIN = """\
import os, torch, facm
from facm.networks import backbones
from facm.flow.derivative import total_derivative
from facm.launch import main

assert facm.__file__.startswith(os.getcwd()), facm.__file__
torch.manual_seed(0)
network = backbones.build("convnet", {"hidden": 8, "depth": 2}, shape=(1, 8, 8), num_classes=3, auxiliary=True)
x, v, t, y = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.rand(3), torch.arange(3)
assert torch.equal(network(x, t, y, t), network(x, t, y, torch.ones(3))), "r changes nothing at the start"
answers = [total_derivative(network, x, t, y, t, dx=v, dt=1.0, method=m)[1] for m in ("dual", "func")]
torch.testing.assert_close(*answers)
for stage in ("latents", "teacher", "distill"):
    main([f"stages.{stage}"])
"""


pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, one folder down, as the current folder."""
    root = tmp_path / "clone"
    for name in ("facm", "stages", "presets"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(root)
    return root


def follow(page: str, root: Path) -> None:
    """Write the files and additions that a page has."""
    text, before = (ROOT / page).read_text(), 0
    for match in FENCE.finditer(text):
        kind, _, what = match[1].partition(" ")
        if kind == "file":
            (root / what).write_text(match[2])
        elif kind == "after":
            named = re.findall(r"`((?:facm|presets)/[\w./]+)`", text[before : match.start()])[-1]
            assert (root / named).read_text().count(what) == 1, f"{named} has no single {what!r}"
            (root / named).write_text((root / named).read_text().replace(what, f"{what}\n{match[2]}"))
        before = match.start()


def test_the_folder_of_pictures_is_taken_as_the_page_says(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        fill(here.parent / "datasets/mine/train" / name, 3, side=32)
        fill(here.parent / "datasets/mine/val" / name, 1, side=32)
    preset.write(["digits"], "params.yaml", force=True)
    follow("docs/dataset.md", here)
    (block,) = (m[2] for m in FENCE.finditer((ROOT / "docs/dataset.md").read_text()) if m[1] == "commands")
    for words in map(shlex.split, block.splitlines()):
        assert words[:2] == ["python", "-m"]
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__")
    told = capsys.readouterr().out
    fingerprint = re.search(r"^data.fingerprint: (\w{64})$", told, re.MULTILINE)
    assert fingerprint and "8 usable pictures of 32x32 pixels, 2 classes" in told
    overlay = here / "presets/mine.yaml"
    overlay.write_text(overlay.read_text().replace("fingerprint: null", f"fingerprint: {fingerprint[1]}"))
    preset.write(["digits", "mine"], force=True)
    assert check.read().data.fingerprint == fingerprint[1]


@pytest.mark.slow
def test_the_backbone_of_the_page_trains_a_teacher_and_a_student(here: Path) -> None:
    follow("docs/backbone.md", here)
    (here / "presets/example.yaml").write_text(OVERLAY)
    preset.write(["digits", "example"], force=True)
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"backbone": "convnet"' in (here / "data/student/config.json").read_text()


def test_the_tour_tells_the_stages_that_run() -> None:
    text, stages = (ROOT / "docs/tour.md").read_text(), yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    assert f"{words[len(stages)]} stages run, each once" in text
    ran, skipped = re.findall(r"Running stage '(\w+)'", text), re.findall(r"Stage '(\w+)' didn't change", text)
    assert f"only {words[len(ran)].lower()} stages run" in text and [*skipped, *ran] == list(stages)


PAGES = (
    "tour",
    "concepts",
    "dataset",
    "objective",
    "backbone",
    "weights",
    "traps",
    "results",
    "methods",
    "performance",
    "faults",
    "using",
)


@pytest.mark.parametrize("page", PAGES)
def test_every_key_and_every_dvc_command_of_a_page_is_known(page: str) -> None:
    from dvc.cli import parse_args

    text = (ROOT / f"docs/{page}.md").read_text()
    code = [
        *re.findall(r"`([^`\n]+)`", text),
        *"\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines(),
    ]
    keys, own = "|".join(BASE), set(re.findall(r"^<!-- test: file \S+/(\w+)\.py -->$", text, re.MULTILINE))
    for name in re.findall(rf"(?<![\w/.])(?:{keys})(?:\.[a-z_]\w*)+", "\n".join(code)):
        place = BASE
        if own & set(name.split(".")):  # of the plug-in that the page adds
            continue
        for part in name.split("."):
            assert part in place, f"docs/{page}.md: there is no {name}"
            place = place.get(part, {}) if isinstance(place, dict) else {}
    for line in code:
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words[:1] == ["dvc"] and len(words) > 1 and words != ["dvc", "queue"]:
                parse_args(words[1:])
