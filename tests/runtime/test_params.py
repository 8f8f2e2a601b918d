"""params.yaml: every key is known, typed and commented; what breaks a rule is told with value, rule and place."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest
import torch
import yaml
from miniature import ROOT, plain

from facm.flow.noise import noise
from facm.runtime import params
from facm.runtime.params import ParamsError, Range
from facm.training.batch import seeded

LISTED = ("backbones", "objectives", "preconds")  # blocks that the class which they are for checks


def refused(**changes) -> str:
    """The message that params with these changes get."""
    with pytest.raises(ParamsError) as caught:
        params.parse(plain(**changes))
    return str(caught.value)


def leaves(kind: type, where: str = "") -> typing.Iterator[str]:
    """Every key that the dataclasses declare."""
    for name, hint in typing.get_type_hints(kind).items():
        place = f"{where}.{name}" if where else name
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, place)
        else:
            yield place


def flat(mapping: dict, where: str = "") -> typing.Iterator[str]:
    for name, value in mapping.items():
        place = f"{where}.{name}" if where else name
        if isinstance(value, dict) and place not in LISTED:
            yield from flat(value, place)
        else:
            yield place


def test_base_yaml_has_every_key_that_is_declared_and_no_other() -> None:
    declared = sorted(leaves(params.Params))
    assert sorted(flat(yaml.safe_load((ROOT / "presets/base.yaml").read_text()))) == declared


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_says_what_it_is_for_in_its_first_line(path: Path) -> None:
    assert re.match(r"# \w.{20,}", path.read_text())


def test_every_key_of_base_yaml_has_a_comment() -> None:
    lines = (ROOT / "presets/base.yaml").read_text().splitlines()
    values = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if is_value(line, after)]
    assert len(values) == count(yaml.safe_load("\n".join(lines))), "the pattern misses keys"
    assert not [line for line in values if not re.search(r"# \S", line)]


def count(mapping: dict) -> int:
    """Keys with a value."""
    return sum(count(value) if isinstance(value, dict) else 1 for value in mapping.values())


def is_value(line: str, after: str) -> bool:
    """Whether a line of base.yaml gives a key its value, or the first line of a list of them."""
    return bool(re.match(r"\s*\w+: *[^\s#{]", line) or (re.match(r"\s*\w+:", line) and re.match(r"\s*- ", after)))


def test_params_yaml_of_the_repository_is_in_order() -> None:
    assert params.read(ROOT / "params.yaml").runtime.threads >= 1


def test_the_largest_seed_is_what_every_generator_takes() -> None:
    largest = params.parse(plain(sample__seed=2**63 - 1)).sample.seed
    assert not torch.equal(noise(largest, [0], 1, (4,)), noise(largest - 1, [0], 1, (4,)))
    torch.Generator().manual_seed(largest + 1)  # that of the second feature network
    assert seeded(largest, 1).initial_seed() != seeded(largest - 1, 1).initial_seed()


def test_whole_numbers_stand_for_numbers_and_null_for_what_may_be_left_out() -> None:
    p = params.parse(plain(teacher__time__mean=1, distill__w=2, sample__t_grid=[[0, 0.5]], sample__sigma_rel=None))
    assert p.teacher.time.mean == 1.0 and isinstance(p.distill.w, float)
    assert p.sample.t_grid == ((0.0, 0.5),) and p.sample.sigma_rel is None
    assert p.distill.ema.sigma_rels == (0.05, 0.2) and p.objectives["facm"]["clamp"] == 1.0


MISSPELT = [
    ({"distill__alpah": "cos"}, "params.yaml, distill: unknown 'alpah' (did you mean 'alpha'?); known: init, "),
    ({"teacher__optimizer__warm_up": 1}, "params.yaml, teacher.optimizer: unknown 'warm_up' (did you mean 'warmup'?)"),
    ({"distil": {}}, "params.yaml, top level: unknown 'distil' (did you mean 'distill'?); known: data, reference, "),
    ({"zzz": 1}, "params.yaml, top level: unknown 'zzz'; known: data, "),
    ({"objectives__ect__size": 1}, "params.yaml, objectives.ect.size: no key may be called size. DVC leaves such keys"),
    ({"backbones__mlp__levels": [{"nfiles": 2}]}, "backbones.mlp.levels.0.nfiles: no key may be called nfiles"),
    ({"distill__conditioning": "expandet"}, "distill.conditioning: 'expandet' is not one of expanded, auxiliary (did"),
    ({"teacher__optimizer__schedule": "linear"}, "optimizer.schedule: 'linear' is not one of constant, cosine"),
    (
        {"evaluate__baseline": "metrics/teacher.json"},
        "params.yaml, evaluate.baseline: 'metrics/teacher.json' is not one of metrics/baseline.json, metrics/reference",
    ),
    ({"distill__mode": False}, "params.yaml, distill.mode: False is not one of distill, scratch"),
]


@pytest.mark.parametrize(("changes", "message"), MISSPELT, ids=[next(iter(changes)) for changes, _ in MISSPELT])
def test_a_misspelt_name_is_told_with_its_place_the_nearest_name_and_the_list(changes: dict, message: str) -> None:
    assert message in refused(**changes)


TYPES = [
    ({"teacher__steps": 10.5}, "params.yaml, teacher.steps: must be a whole number, got 10.5"),
    ({"teacher__steps": True}, "params.yaml, teacher.steps: must be a whole number, got True"),
    ({"teacher__steps": "1e3"}, "params.yaml, teacher.steps: must be a whole number, got '1e3'"),
    ({"distill__w": "1e-3"}, "distill.w: must be a number, got '1e-3' (in quotes it is text: leave them out)"),
    ({"teacher__steps": "10"}, "params.yaml, teacher.steps: must be a whole number, got '10' (in quotes it is text"),
    ({"teacher__steps": 1e3}, "params.yaml, teacher.steps: must be a whole number, got 1000.0 (write 1000)"),
    ({"latents__flip": "off"}, "params.yaml, latents.flip: must be true or false, got 'off'"),
    ({"data__root": True}, "params.yaml, data.root: must be text or null, got True (write it in quotes)"),
    ({"distill__w": True}, "params.yaml, distill.w: must be a number, got True"),
    ({"distill__w": None}, "params.yaml, distill.w: must be a number, got None"),
    ({"latents__flip": "yes please"}, "params.yaml, latents.flip: must be true or false, got 'yes please'"),
    ({"data__name": 3}, "params.yaml, data.name: must be text, got 3 (write it in quotes)"),
    ({"sample__nfe": 2}, "params.yaml, sample.nfe: must be a list with at least one entry, got 2"),
    ({"sample__nfe": []}, "params.yaml, sample.nfe: must be a list with at least one entry, got []"),
    ({"sample__nfe": [1, "two"]}, "params.yaml, sample.nfe[1]: must be a whole number, got 'two'"),
    ({"distill__optimizer__betas": [0.9]}, "distill.optimizer.betas: must have 2 entries, got [0.9]"),
    ({"distill__optimizer": 1e-3}, "params.yaml, distill.optimizer: must be a block of keys, got 0.001"),
    ({"objectives": {"facm": 1}}, "params.yaml, objectives: must hold one block of constants per name, got"),
]


@pytest.mark.parametrize(("changes", "message"), TYPES, ids=[f"{next(iter(c.items()))}" for c, _ in TYPES])
def test_a_wrong_type_is_told_with_value_rule_and_place(changes: dict, message: str) -> None:
    assert message in refused(**changes)


RANGES = [
    ({"teacher__steps": 0}, "params.yaml, teacher.steps: 0 is outside [1, inf)"),
    ({"sample__nfe": [1, 2**63]}, "params.yaml, sample.nfe[1]: 9223372036854775808 is outside [1, 10000]"),
    ({"baseline__steps": 10_001}, "params.yaml, baseline.steps: 10001 is outside [1, 10000]"),
    ({"teacher__seed": -1}, "params.yaml, teacher.seed: -1 is outside [0, 9223372036854775807]"),
    ({"latents__seed": 2**63}, "latents.seed: 9223372036854775808 is outside [0, 9223372036854775807]"),
    *(
        ({f"{stage}__seed": 10**23 - 1}, f"params.yaml, {stage}.seed: {10**23 - 1} is outside [0, 9223372036854775807]")
        for stage in ("baseline", "sample")
    ),
    ({"distill__optimizer__betas": [0.9, 1.0]}, "params.yaml, distill.optimizer.betas[1]: 1.0 is outside [0, 1)"),
    ({"teacher__optimizer__betas": [1, 0.9]}, "params.yaml, teacher.optimizer.betas[0]: 1 is outside [0, 1)"),
    ({"teacher__fraction": 1.5}, "params.yaml, teacher.fraction: 1.5 is outside [0, 1]"),
    ({"distill__w": 0.5}, "params.yaml, distill.w: 0.5 is outside [1, inf)"),
    ({"distill__optimizer__lr": 0.0}, "params.yaml, distill.optimizer.lr: 0.0 is outside (0, inf)"),
    ({"distill__optimizer__lr": float("nan")}, "params.yaml, distill.optimizer.lr: must be a finite number, got nan"),
    ({"distill__optimizer__lr": float("inf")}, "params.yaml, distill.optimizer.lr: must be a finite number, got inf"),
    ({"distill__dropout": 1.0}, "params.yaml, distill.dropout: 1.0 is outside [0, 0.99]"),
    ({"distill__ema__sigma_rel": 0.3}, "params.yaml, distill.ema.sigma_rel: 0.3 is outside (0, 0.28]"),
    ({"sample__t_grid": [[0.0, 1.5]]}, "params.yaml, sample.t_grid[0][1]: 1.5 is outside [0, 1]"),
    ({"runtime__threads": 0}, "params.yaml, runtime.threads: 0 is outside [1, inf)"),
]


@pytest.mark.parametrize(("changes", "message"), RANGES, ids=[f"{next(iter(c.items()))}" for c, _ in RANGES])
def test_a_value_out_of_range_is_told_with_value_rule_and_place(changes: dict, message: str) -> None:
    assert message in refused(**changes)


def test_a_missing_key_is_told_with_where_its_default_stands() -> None:
    mapping = plain()
    del mapping["distill"]["ema"]["snapshots"]
    with pytest.raises(ParamsError, match=r"distill\.ema: 'snapshots' is missing; presets/base\.yaml has its default"):
        params.parse(mapping)


def test_a_file_that_is_missing_damaged_or_no_mapping_is_told(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ParamsError, match=r"params.yaml is missing: write it with `python -m facm.preset digits`"):
        params.read(path)
    path.write_text("distill: [1, 2")
    with pytest.raises(ParamsError, match=r"params.yaml is no valid YAML: while parsing a flow sequence"):
        params.read(path)
    path.write_text("- 1\n")
    with pytest.raises(ParamsError, match=r"params.yaml must hold a mapping, it holds list"):
        params.read(path)


BROKEN = [
    ("a: {b: 1, b: 2}", r"params.yaml, line 1: key 'b' is repeated in its block: remove one"),
    ("a:\n  lr: 1\n  x: 2\n  lr: 3\n", r"params.yaml, line 4: key 'lr' is repeated in its block: remove one"),
    ("a: 1\nb: 2\na: 1\n", r"params.yaml, line 3: key 'a' is repeated in its block: remove one"),
    ("b:\n- {c: 1, c: 1}\n", r"params.yaml, line 2: key 'c' is repeated in its block: remove one"),
    ("a: &x [*x]", r"params.yaml, a.0: is an alias of another block, and -S would set both: write it out"),
    ("a: &x {c: 1}\nb: *x", r"params.yaml, b: is an alias of another block"),
    ("a: 2024-01-01", r"params.yaml, a: 2024-01-01 is read as a date: write it in quotes"),
    ("a: 2024-13-45", r"params.yaml is no valid YAML: a value that is not what its form or tag says \(month must"),
    ("a: !!int x", r"params.yaml is no valid YAML: a value that is not what its form or tag says"),
    ("a: !!set {b}", r"params.yaml, a: must be a number, text, true, false, null, a list or a block, got \{'b'\}"),
    ("a: !!python/object:os.system x", r"params.yaml is no valid YAML: could not determine a constructor"),
    ("a: " + "[" * 5000, r"params.yaml is no valid YAML: "),
    ("1: 2", r"params.yaml, top level: key 1 must be text: write it in quotes"),
    ("a: *b", r"params.yaml is no valid YAML: found undefined alias"),
    ("a: 1\n---\nb: 1", r"params.yaml is no valid YAML: expected a single document"),
    ("a: \0", r"params.yaml is not UTF-8 \(it has zero bytes, as UTF-16 has\): save it as UTF-8"),
    ("", r"params.yaml must hold a mapping, it holds NoneType"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=[text[:20] for text, _ in BROKEN])
def test_a_text_that_does_not_mean_one_thing_is_refused_with_its_place(text: str, message: str, tmp_path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        params.read(tmp_path / "params.yaml")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_file_that_is_no_utf_8_is_refused_by_name(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("# \xe9t\xe9\n" + (ROOT / "params.yaml").read_text(), encoding=encoding)
    with pytest.raises(ParamsError, match=r"params.yaml is not UTF-8 \(.*\): save it as UTF-8 \(`iconv -f"):
        params.read(path)


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    path, text = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text()
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert params.raw(path) == params.raw(ROOT / "params.yaml")


def test_ranges_print_as_intervals() -> None:
    ranges = (Range(0, 1), Range(0.0, 1.0, exclusive_high=True), Range(low=1), Range(0.0, exclusive_low=True), Range())
    assert [str(r) for r in ranges] == [
        "[0, 1]",
        "[0, 1)",
        "[1, inf)",
        "(0, inf)",
        "(-inf, inf)",
    ]
    assert 1 not in Range(0, 1, exclusive_high=True) and 0 in Range(0, 1, exclusive_high=True)
    assert 0 not in Range(0, 1, exclusive_low=True) and 0 in Range(0, 1) and 2 not in Range(0, 1) and -9 in Range()


@pytest.mark.parametrize("value", ["\x85", "a\x85b", {"\x85": 1}, ["\x85"]])
def test_the_character_that_yaml_does_not_keep_is_refused_written_and_read(value: object) -> None:
    with pytest.raises(params.ParamsError, match=r"params.yaml holds the character U\+0085 \(next line\)"):
        params.written({"data": {"root": value}})
    with pytest.raises(params.ParamsError, match=r"own.yaml holds the character U\+0085"):
        params.mapping_of("data:\n  root: a\x85b\n", "own.yaml")


@pytest.mark.parametrize(
    "text", ["\r", "a\n\n b ", "\t", "\0", "\u2028", "é", "1e-05", "off", "~", "=", "<<", "a #b", "017"]
)
def test_other_text_comes_back_as_it_was(text: str) -> None:
    meant = {"a": text, "b": [text], text: {"c": None}}
    assert params.mapping_of(params.written(meant), "params.yaml") == meant
