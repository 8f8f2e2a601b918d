"""What all faults start from: an undisturbed run of the tiny pipeline, and the same before the teacher was trained."""

from pathlib import Path

import pytest
from clone import Clone, copy, make, untrained

LONG = {"teacher.steps": "120", "distill.steps": "60", "runtime.save_every": "5"}


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which nothing has run. Not to be changed."""
    clone = make(tmp_path_factory.mktemp("fresh"))
    for key, value in LONG.items():
        clone.set(key, value)
    clone.commit()
    return clone


@pytest.fixture(scope="session")
def undisturbed(fresh: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after an undisturbed `dvc repro`. Not to be changed."""
    clone = copy(fresh, tmp_path_factory.mktemp("undisturbed"))
    clone.dvc("repro")
    clone.commit()
    return clone


@pytest.fixture
def clone(undisturbed: Clone, tmp_path: Path) -> Clone:
    """A clone whose teacher is to be trained next; its cache does not know the undisturbed one."""
    return untrained(undisturbed, tmp_path / "clone")


@pytest.fixture
def built(undisturbed: Clone, tmp_path: Path) -> Clone:
    """A copy of the undisturbed clone."""
    return copy(undisturbed, tmp_path / "built")
