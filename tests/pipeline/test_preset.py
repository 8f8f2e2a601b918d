"""`python -m facm.preset`: base + overlay, comments kept, hand edits named and not overwritten."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from miniature import ROOT
from ruamel.yaml import YAML

from facm import preset
from facm.preset import PresetError
from facm.runtime import params

BASE = """\
# The base.

data:                         # block comment
  name: digits                # the name
  root: null                  # nothing

# Before a block.
distill:
  alpha: power                # relaxation
  betas:                      # two of them
    - 0.9
    - 0.95
  deep:
    flag: true                # a flag
"""
OVERLAYS = {
    "one": "# One.\n\ndistill:\n  alpha: cos                  # why\n  betas:\n    - 0.5\n    - 0.999\n",
    "two": "# Two.\n\ndata:\n  root: pictures\ndistill:\n  deep:\n    flag: false\n",
}


def keys(value: Any) -> set[Any]:
    """Names at any depth."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    return set(value).union(*map(keys, value.values())) if isinstance(value, dict) else set()


@pytest.mark.parametrize("name", [*preset.available(ROOT / "presets"), "base"])
def test_no_param_has_a_name_that_dvcs_run_cache_does_not_see(name: str) -> None:
    from dvc.utils import dict_sha256
    from dvc_data.hashfile.meta import Meta

    assert (Meta.PARAM_SIZE, Meta.PARAM_NFILES) == params.UNSEEN
    assert dict_sha256({"a": [{"size": 1}]}, exclude=params.UNSEEN) == dict_sha256({"a": [{}]}, exclude=params.UNSEEN)
    found = keys(yaml.safe_load((ROOT / f"presets/{name}.yaml").read_text()))
    assert found and not found & set(params.UNSEEN)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with presets base, one and two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").mkdir()
    for name, text in {"base": BASE, **OVERLAYS}.items():
        (tmp_path / "presets" / f"{name}.yaml").write_text(text)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["preset", *arguments])
    preset.main()


def rewritten(path: Path, edit) -> None:
    """Edit a file and keep its comments."""
    document = YAML().load(path.read_text())
    edit(document)
    path.write_text(params.written(document))


def test_to_another_preset_and_back_gives_the_same_bytes(here: Path) -> None:
    path = here / "params.yaml"
    preset.write(["one"])
    first = path.read_bytes()
    for names in (["two"], ["one", "two"], ["two", "one"]):
        preset.write(names)
        assert path.read_bytes() != first
        preset.write(["one"])
        assert path.read_bytes() == first


def test_the_same_holds_for_the_shipped_presets(tmp_path: Path) -> None:
    path, folder = tmp_path / "params.yaml", ROOT / "presets"
    preset.write(["digits"], path, folder=folder)
    first = path.read_bytes()
    for names in ("imagenet256 sd_vae repa scratch", "cifar10 cifar10_conditional imported", "mixture"):
        preset.write(names.split(), path, folder=folder)
        assert path.read_bytes() != first
        preset.write(["digits"], path, folder=folder)
        assert path.read_bytes() == first


def test_the_tracked_params_yaml_is_the_default_preset_to_the_byte() -> None:
    assert (ROOT / "params.yaml").read_text() == preset.render(["digits"], ROOT / "presets")


def test_comments_and_order_of_the_base_are_kept(here: Path) -> None:
    preset.write(["one", "two"])
    text = (here / "params.yaml").read_text()
    for comment in re.findall(r"#.*", BASE):
        assert comment in text
    assert re.findall(r"^ *(\w+):", text, re.MULTILINE) == re.findall(r"^ *(\w+):", BASE, re.MULTILINE)
    assert yaml.safe_load(text) == {
        "data": {"name": "digits", "root": "pictures"},
        "distill": {"alpha": "cos", "betas": [0.5, 0.999], "deep": {"flag": False}},
    }


def test_every_comment_of_the_shipped_base_is_kept() -> None:
    comments = [re.sub(r" +", " ", c) for c in re.findall(r"# .*", (ROOT / "presets/base.yaml").read_text())]
    text = re.sub(r" +", " ", preset.render(["digits", "scratch"], ROOT / "presets"))
    assert [comment for comment in comments if comment not in text] == []


def test_the_command_shows_what_it_changes(here, monkeypatch, capsys) -> None:
    run(monkeypatch, "one")
    assert capsys.readouterr().out.splitlines() == [
        "params.yaml: one, 2 values changed",
        "  distill.alpha: power -> cos",
        "  distill.betas: [0.9, 0.95] -> [0.5, 0.999]",
    ]
    run(monkeypatch, "one")
    assert capsys.readouterr().out == "params.yaml: one, 0 values changed\n"
    run(monkeypatch, "two")
    assert "  data.root: None -> pictures\n  distill.alpha: cos -> power\n" in capsys.readouterr().out


def test_hand_edits_are_named_and_not_overwritten_without_force(here, monkeypatch) -> None:
    path = here / "params.yaml"
    preset.write(["one"])
    edited = path.read_text().replace("alpha: cos", "alpha: one") + "extra:\n  key: 1\n"
    path.write_text(edited)
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, "two")
    assert str(refused.value) == (
        "error: params.yaml has hand edits that would be lost (--force overwrites them):\n"
        "  distill.alpha: one -> cos\n"
        "  extra.key: 1 -> (none)"
    )
    assert path.read_text() == edited
    run(monkeypatch, "two", "--force")
    assert path.read_text() == preset.render(["two"])


def test_another_form_of_the_same_values_is_no_hand_edit(here: Path) -> None:
    path = here / "params.yaml"
    preset.write(["one"])
    before = path.read_text()
    other = before.replace("root: ", "root: null").replace("  - 0.", "      - 0.")
    assert other.count("null") == 1 and "      - 0.5" in other, "as earlier versions wrote it"
    path.write_text(other)
    assert preset.hand_edits(other) == []
    preset.write(["one"])
    assert path.read_text() == before


def test_a_number_is_written_as_the_overlay_spells_it(here: Path) -> None:
    (here / "presets/two.yaml").write_text("distill:\n  alpha: 2.0e-3\n  betas: [1e-05, 0.9]\n")
    text = preset.render(["two"])
    assert "alpha: 2.0e-3 " in text and "  - 1e-05\n  - 0.9\n" in text


@pytest.mark.parametrize("broken", ["distill:\n  alpha: cos\n  alpha: one\n", "", "- 1\n", "distill: [\n"])
def test_a_damaged_overlay_is_refused_by_name(broken: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "presets/two.yaml").write_text(broken)
    with pytest.raises(SystemExit, match=r"error: presets/two.yaml(, line 3: key 'alpha' is repeated| must| is no)"):
        run(monkeypatch, "two")


def test_a_file_that_is_no_utf_8_is_not_overwritten_without_force(here: Path, monkeypatch) -> None:
    path = here / "params.yaml"
    path.write_text("a: 1\n", encoding="utf-16")
    with pytest.raises(SystemExit, match=r"error: params.yaml is not UTF-8"):
        run(monkeypatch, "one")
    run(monkeypatch, "one", "--force")
    assert path.read_text() == preset.render(["one"])


def test_a_value_that_dvc_has_set_is_a_hand_edit(here: Path) -> None:
    path = here / "params.yaml"
    preset.write(["one"])
    rewritten(path, lambda document: document["distill"].update(betas=[0.1, 0.2]))
    with pytest.raises(PresetError, match=re.escape("distill.betas: [0.1, 0.2] -> [0.5, 0.999]")):
        preset.write(["one"])


def test_a_hand_written_or_damaged_file_counts_as_edited(here: Path) -> None:
    path = here / "params.yaml"
    path.write_text("data: {}\n")
    with pytest.raises(PresetError, match="the first line does not name a preset"):
        preset.write(["one"])
    path.write_text(preset.HEADER.format(names="three") + BASE)
    with pytest.raises(PresetError, match="unknown preset 'three'; presets/ has: one, two"):
        preset.write(["one"])
    path.write_text(preset.HEADER.format(names="one") + "data: [1,\n")
    with pytest.raises(PresetError, match="while parsing a flow"):
        preset.write(["one"])
    preset.write(["one"], force=True)
    assert path.read_text() == preset.render(["one"])


def test_an_unknown_preset_is_told_with_the_nearest_and_the_list(here, monkeypatch) -> None:
    with pytest.raises(
        SystemExit, match=r"error: unknown preset 'on' \(did you mean 'one'\?\); presets/ has: one, two"
    ):
        run(monkeypatch, "on")
    assert not (here / "params.yaml").exists()


def test_an_overlay_with_a_key_that_the_base_lacks_is_refused(here: Path) -> None:
    (here / "presets" / "two.yaml").write_text("distill:\n  alpah: cos\n")
    with pytest.raises(PresetError, match=r"presets/two.yaml: unknown 'distill.alpah' \(did you mean 'alpha'\?\)"):
        preset.write(["two"])


def test_outside_the_repository_the_command_says_where_to_run_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"error: there are no presets in {tmp_path}/presets: run this at the"):
        run(monkeypatch, "digits")


def test_without_a_name_the_command_lists_the_presets(here, monkeypatch, capsys) -> None:
    run(monkeypatch, "--list")
    run(monkeypatch)
    assert capsys.readouterr().out == 2 * "presets: one, two\n"


@pytest.mark.parametrize(
    "names, cure",
    [
        (["digits", "sit"], "imagenet256 sd_vae sit"),
        (["imagenet256", "sit"], "imagenet256 sd_vae sit"),
        (["sit", "imagenet256", "sd_vae"], "imagenet256 sd_vae sit"),
        (["digits", "cifar10_conditional"], "cifar10 cifar10_conditional"),
        (["scratch"], "digits scratch"),
    ],
)
def test_an_overlay_on_another_preset_than_it_is_meant_for_is_refused(names: list[str], cure: str) -> None:
    with pytest.raises(PresetError, match=f"write `python -m facm.preset {cure}`"):
        preset.render(names, ROOT / "presets")


@pytest.mark.parametrize(
    "names, told",
    [
        ("cifar10 imagenet256", "'imagenet256' is a preset of its own, not an overlay on cifar10"),
        ("imagenet256 digits", "'digits' is a preset of its own"),
        ("imagenet256 sd_vae dit sit", "dit and sit are two networks: write one of the two"),
        ("imagenet256 sd_vae repa scratch sit", "repa and sit are two networks"),
    ],
)
def test_what_does_not_go_together_is_refused(names: str, told: str) -> None:
    with pytest.raises(PresetError, match=told):
        preset.render(names.split(), ROOT / "presets")


def test_a_key_that_the_presets_gained_is_no_hand_edit(here: Path) -> None:
    preset.write(["one"])
    base = here / "presets/base.yaml"
    base.write_text(base.read_text() + "\nreport:\n  pictures: data/baseline\n")
    preset.write(["one"])
    assert "pictures: data/baseline" in (here / "params.yaml").read_text()


def test_overlays_that_say_nothing_go_on_every_preset(here: Path) -> None:
    assert "alpha: cos" in preset.render(["two", "one"])
