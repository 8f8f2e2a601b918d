"""Registries: names without an import, files when they are asked for, unknown names with place and nearest one."""

import sys
from pathlib import Path

import pytest

from facm.runtime.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Of a package with two files, one of which cannot be imported."""
    package = tmp_path / "plugins_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "heun.py").write_text("class Heun:\n    steps = 2\n")
    (package / "broken.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return Registry("plugins_of_a_test", "params.yaml, sample.sampler", heun="Heun", broken="Broken")


def test_names_are_known_without_an_import(registry: Registry) -> None:
    assert list(registry) == ["heun", "broken"] and len(registry) == 2
    assert "broken" in registry and "euler" not in registry and registry["heun"] == "Heun"
    assert "plugins_of_a_test.heun" not in sys.modules


def test_a_class_is_loaded_by_its_files_name(registry: Registry) -> None:
    assert registry.load("heun").steps == 2
    assert registry.module("heun").Heun is registry.load("heun")
    with pytest.raises(RuntimeError, match="imported"):
        registry.load("broken")


def test_an_unknown_name_is_refused_with_its_place_and_the_nearest_one(registry: Registry) -> None:
    with pytest.raises(ValueError) as refused:
        registry.load("huen")
    assert str(refused.value) == (
        "params.yaml, sample.sampler: unknown 'huen' (did you mean 'heun'?); known: heun, broken"
    )
