"""A stale import of a module that has moved names the new place, and that place exists."""

import importlib
import re

import pytest

from facm.runtime.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_a_stale_import_names_a_module_that_exists(old: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"{old} has moved, change the import: it is now ")):
        importlib.import_module(old)
    for new in re.findall(r"facm(?:\.\w+)+", MOVED[old]):
        importlib.import_module(new)


def test_what_an_objective_imported_is_pointed_to_the_one_place() -> None:
    with pytest.raises(ModuleNotFoundError, match="now facm.flow.losses .what an objective needs: `from facm.flow"):
        importlib.import_module("facm.losses")
    facm_flow = importlib.import_module("facm.flow")
    assert all(hasattr(facm_flow, name) for name in facm_flow.__all__)


def test_a_module_that_never_was_is_an_ordinary_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'facm.nothing'"):
        importlib.import_module("facm.nothing")
