"""A study of two cells on a temporary clone: killed, gone on with, complete; then nothing is left to run."""

import json
from pathlib import Path

import pytest
from clone import PYTHON, Clone, make, ran

pytestmark = pytest.mark.slow
LOG = ".work/studies/worker-0.log"
STUDY = """\
title: Two weightings
claim: none
seeds: [0]
reference: one
metrics: [student.nfe1.fd]
cells:
  - {name: one, label: alpha one, set: {distill.alpha: one}}
  - {name: cos, label: alpha cos, set: {distill.alpha: cos, sample.nfe: [1]}}
"""


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    made = make(tmp_path / "clone")
    (made.root / "studies/tiny.yaml").write_text(STUDY)
    made.set("distill.steps", "300")
    made.set("runtime.save_every", "10")
    made.commit()
    return made


def test_a_study_is_killed_gone_on_with_and_then_complete(clone: Clone) -> None:
    study = (PYTHON, "-m", "studies", "tiny")
    assert "2 runs, 2 missing, about" in clone.run(*study, "--plan")
    clone.killed(*study, when=lambda: len(clone.saves("distill")) >= 2, timeout_s=180)
    assert "2 runs, 2 missing" in clone.run(*study, "--plan")
    before = (clone.root / LOG).stat().st_size
    told = clone.run(*study, "--jobs", "2", timeout_s=400)
    assert "[2 of 2] tiny-" in told and " s of CPU" in told
    other = clone.root / LOG.replace("0", "1")
    log = (clone.root / LOG).read_text()[before:] + (other.read_text() if other.exists() else "")
    assert "distill: resumed at step" in log
    assert ran(log).count("distill") == 2 and "teacher" not in ran(log), "trained once, for both"
    first, second = json.loads(clone.read("studies/results/tiny.json"))
    assert [first["cell"], second["cell"]] == ["cos", "one"] and first["result"]["stable"] is True
    assert first["code"] == clone.git("rev-parse", "HEAD").strip() and "torch" in first["machine"]
    assert {"tiny-cos-s0", "tiny-one-s0"} <= set(clone.dvc("exp", "list", "--name-only").split()), "brought home"
    page = clone.read("studies/results/tiny.md").decode()
    assert "| alpha one | " in page and "not run" not in page
    assert "2 runs, 0 missing" in clone.run(*study)
    clone.append("facm/runtime/log.py", "\n# edited\n")
    clone.run("git", "rm", "-q", "--cached", "studies/tiny.yaml")
    (clone.root / "studies/tiny.yaml").write_text(STUDY.replace("seeds: [0]", "seeds: [0, 1]"))
    assert "uncommitted changes: " in clone.run(*study, fails=True)
