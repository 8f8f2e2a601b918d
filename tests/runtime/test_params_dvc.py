"""params.yaml means the same to DVC and to us: what `-S` sets is what a stage reads, and changes the lines of its keys.

A throwaway repository with our params.yaml, and one stage that writes down what it reads.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from clone import Clone, own_cache
from miniature import ROOT

from facm import preset
from facm.runtime import params

READ = "import json; from facm.runtime import params; params.read(); json.dump(params.raw(), open('read.json', 'w'))"
PIPELINE = f"""\
stages:
  read:
    cmd: PYTHONPATH={ROOT} {sys.executable} read.py
    params:
    - params.yaml:
    metrics:
    - read.json:
        cache: false
"""
SET: list[tuple[str, str, Any]] = [  # key, as -S has it, as a stage reads it
    ("teacher.optimizer.lr", "1.0e-5", 1e-5),
    ("distill.optimizer.lr", "2e-05", 2e-5),
    ("teacher.cosine_eps", "1E-8", 1e-8),
    ("teacher.time.mean", "-1e-05", -1e-5),
    ("distill.steps", "1_000", 1000),
    ("teacher.steps", "100000", 100000),
    ("sample.seed", "17", 17),
    ("data.root", "off", "off"),
    ("latents.vae", "12:30", "12:30"),
    ("latents.stats", "017", "017"),
    ("imported.source", "0o17", "0o17"),
    ("imported.format", "'\"1e-05\"'", '"1e-05"'),
    ("imported.stats", '"1_000"', "1_000"),
    ("imported.sha256", "'0777'", "0777"),
    ("teacher.init", "2024-01-01", "2024-01-01"),
    ("distill.init", "'~'", "~"),
    ("latents.tokens.encoder", "'été'", "été"),
    ("latents.tokens.weights", "'a # b: c, '", "a # b: c, "),
    ("latents.flip", "true", True),
    ("objectives.facm.clamp", "null", None),
    ("sample.sigma_rel", "0.1", 0.1),
    ("distill.optimizer.betas", "[1e-05,0.999]", [1e-5, 0.999]),
    ("sample.t_grid", "[[0.0,2e-05]]", [[0.0, 2e-5]]),
    ("reference.also", "[no,yes]", ["no", "yes"]),
]


def changed(clone: Clone) -> list[str]:
    """Lines of params.yaml that differ from the commit."""
    return [line for line in clone.git("diff", "-U0", "params.yaml").splitlines()[4:] if line[:2] != "@@"]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A repository of git and DVC, committed."""
    preset.write(["digits"], tmp_path / "params.yaml", folder=ROOT / "presets")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "read.py").write_text(READ + "\n")
    made = Clone(tmp_path)
    made.git("init", "-q")
    made.dvc("init", "-q")
    own_cache(made)
    made.commit()
    return made


@pytest.mark.slow
def test_what_s_sets_is_what_a_stage_reads_and_the_preset_leads_back(clone: Clone) -> None:
    path = clone.root / "params.yaml"
    before = path.read_bytes()
    clone.dvc("exp", "run", *(part for key, text, _ in SET for part in ("-S", f"{key}={text}")))
    read = json.loads((clone.root / "read.json").read_text())
    found = {key: params.at(read, key) for key, _, _ in SET}
    assert {key: (type(value), value) for key, value in found.items()} == {k: (type(v), v) for k, _, v in SET}
    recorded = params.raw(clone.root / "dvc.lock")["stages"]["read"]["params"]["params.yaml"]
    assert recorded == read, "dvc.lock holds what DVC has read"
    of_keys = {line.split(":")[0].strip("+- ") for line in changed(clone) if ": " in line}
    assert of_keys <= {key.rpartition(".")[2] for key, _, _ in SET}
    preset.write(["digits"], path, folder=ROOT / "presets", force=True)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_an_experiment_changes_the_line_of_its_key_alone(clone: Clone) -> None:
    clone.dvc("exp", "run", "-S", "teacher.optimizer.lr=1.0e-5")
    assert changed(clone) == [
        "-    lr: 2.0e-3                # peak learning rate",
        "+    lr: 1e-05                 # peak learning rate",
    ]


@pytest.mark.slow
def test_a_queue_of_small_learning_rates_is_read(clone: Clone) -> None:
    clone.dvc("exp", "run", "--queue", "-S", "teacher.optimizer.lr=1e-5,2e-5")
    commits = clone.git("reflog", "show", "--format=%H", "refs/exps/celery/stash").split()
    texts = [clone.git("show", f"{commit}:params.yaml") for commit in commits]
    queued = [params.parse(params.mapping_of(text, "queued")).teacher.optimizer.lr for text in texts]
    assert sorted(queued) == [1e-5, 2e-5]


def applied(path: Path, *overrides: str) -> None:
    """What `dvc exp run -S` does to params.yaml before a stage runs."""
    from dvc.utils.hydra import apply_overrides

    apply_overrides(str(path), list(overrides))


@pytest.mark.parametrize(
    "names", ["digits", "digits scratch", "mixture", "cifar10 cifar10_conditional", "imagenet256 sd_vae repa imported"]
)
def test_dvc_leaves_what_the_preset_writes_as_it_is(names: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    preset.write(names.split(), path, folder=ROOT / "presets")
    before = path.read_bytes()
    applied(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("teacher.optimizer.lr=1e-5", 2),
        ("data.root=/a/b", 2),
        ("latents.flip=true", 2),
        ("sample.sigma_rel=0.1", 2),
        ("sample.t_grid=[[0.0,0.25]]", 2),
        ("distill.optimizer.betas=[0.9,0.95]", 2),
        ("sample.nfe=[1]", 2),
        ("reference.also=[dinov2]", 1),
    ],
)
def test_an_override_changes_its_own_lines_and_null_leads_back(override: str, lines: int, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    before = path.read_text().splitlines()
    applied(path, override)
    after = path.read_text().splitlines()
    assert len(set(before) - set(after)) + len(set(after) - set(before)) <= lines
    if params.at(params.raw(ROOT / "params.yaml"), override.partition("=")[0]) is None:
        applied(path, f"{override.partition('=')[0]}=null")
        assert path.read_text().splitlines() == before


WORDS = """\
1e-05 1e-5 2e-05 off on yes no y 12:30 190:20:30 1_000 0o17 017 08 0x1f 0b11 null ~ .5 5. 1e3 1.0e-3 +1 1E5 '1e-05'
.inf .nan NaN 1e+5 TRUE True [0,[1e-05,off]] {a:,b:} \u00e9t\u00e9
"""


@pytest.mark.parametrize("word", WORDS.split())
def test_every_word_and_number_is_read_as_dvc_reads_it(word: str) -> None:
    from dvc.utils.serialize import parse_yaml

    text = f"a: {word}\nb:\n- {word}\n"
    assert repr(params.mapping_of(text, "x")) == repr(parse_yaml(text, "x"))


def test_small_numbers_words_and_leading_zeros_are_those_of_yaml_1_2() -> None:
    text = "a: [1e-05, off, 12:30, 017, 0o17, 1_000, '1e-05']"
    assert params.mapping_of(text, "x")["a"] == [1e-05, "off", "12:30", 17, 15, 1000, "1e-05"]


@pytest.mark.parametrize(
    "value", [1e-05, 2e-05, "off", "yes", "12:30", "1_000", "0o17", "017", "1e-05", "null", "~", "", " a", "a: b", "#"]
)
def test_what_is_written_is_read_back(value: Any) -> None:
    mapping = {"a": value, "b": [value, [value]], "c": None, "d": True}
    assert params.mapping_of(params.written(mapping), "x") == mapping
