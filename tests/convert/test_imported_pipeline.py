"""A checkpoint in the authors' format takes the teacher's place in the real pipeline."""

from pathlib import Path

import pytest
import torch
from clone import PYTHON, make, ran
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def test_a_teacher_that_went_out_in_the_authors_format_comes_back_and_is_distilled(tmp_path: Path) -> None:
    clone = make(tmp_path / "clone")
    clone.dvc("repro", "teacher")
    weights = load_file(clone.root / "data/teacher/model.safetensors")
    command = (PYTHON, "-m", "facm.convert", "data/teacher", "--to", "facm", "--out", "published.pt")
    told = clone.run(*command, "--stats", "latents_stats.pt")
    clone.overlay("imported")
    clone.set("teacher.conditioning", "expanded")
    chosen = {"source": "published.pt", "format": "facm", "sha256": "0" * 64, "stats": "latents_stats.pt"}
    for name, value in chosen.items():
        clone.set(f"imported.{name}", f"'{value}'")
    refused = clone.dvc("repro", fails=True)
    assert "imported.sha256" in refused or "pinned is 0000" in refused
    clone.set("imported.sha256", f"'{told.split('sha256 ')[1].split()[0]}'")
    told = clone.dvc("repro")
    assert ran(told)[-6:] == ["teacher", "baseline", "distill", "sample", "evaluate", "report"]
    again = load_file(clone.root / "data/teacher/model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items()) and again.keys() == weights.keys()
    assert "student" in clone.read("metrics/evaluate.json").decode()
    clone.append("facm/convert/edm.py", "\n# edited\n")
    assert "teacher" in ran(clone.dvc("repro", "--dry")), "the converters are this teacher's code"
