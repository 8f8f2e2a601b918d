"""Descriptions and scores in JSON that stages, report and export read again: data/reference, metrics/, dvc.lock."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import DEEP, as_json, edited, edits, plain, retensored, retensorings, rewritings, rewritten
from runs import write_run
from safetensors.torch import load_file, save

from facm.export.provenance import LOCK, Lock, Locked
from facm.metrics.reference import Reference
from facm.networks.features.digits_cnn import DigitsCNN
from facm.report.provenance import facts
from facm.report.run import Run, Workspace, curve
from facm.runtime import files, params

pytestmark = pytest.mark.slow


@pytest.fixture
def reference(folder: Path) -> Path:
    """data/reference of one network that is not trained."""
    torch.manual_seed(0)
    described = DigitsCNN().save(folder / "network.safetensors")
    statistics = {"mu": torch.zeros(3).double(), "sigma": torch.eye(3).double(), "features": torch.randn(5, 3)}
    written = files.save_tensors(folder / "statistics.safetensors", statistics)
    meta = {"features": "digits_cnn", "networks": 1, "copies_threshold": None, "files": [described, written]}
    files.save_json(folder / "meta.json", meta)
    return folder


@pytest.mark.parametrize("name", ["meta.json", "statistics.safetensors"])
def test_a_reference(name: str, reference: Path) -> None:
    path = reference / name
    content = path.read_bytes()
    tensors = {} if name.endswith(".json") else {key: t.clone() for key, t in load_file(path).items()}

    def trial(drawn: Any) -> Callable[[], Any]:
        kind, changes = drawn
        if kind == "bytes":
            path.write_bytes(changes if isinstance(changes, bytes) else edited(content, changes))
        elif tensors:
            path.write_bytes(save(retensored(tensors, changes)))
        else:
            path.write_bytes(as_json(rewritten(json.loads(content), changes)))

        def read() -> None:
            found = Reference.open(reference)
            if not found.statistics or found.statistics[0].sigma.shape != (len(found.statistics[0].mu),) * 2:
                raise Wrong("no yardstick")

        return read

    damage = st.tuples(st.just("bytes"), st.one_of(edits(len(content)), st.sampled_from(DEEP)))
    inputs = st.one_of(damage, st.tuples(st.just("values"), retensorings() if tensors else rewritings()))
    campaign("data/reference", inputs, trial, 200, folder=reference, names=[str(reference)])


@pytest.mark.parametrize("name", ["data/reference/meta.json", "data/student/config.json", "metrics/evaluate.json"])
def test_a_run_for_the_report(name: str, folder: Path) -> None:
    whole = write_run(folder)
    path = folder / name
    content = path.read_bytes()

    def trial(drawn: Any) -> Callable[[], Any]:
        path.write_bytes(drawn if isinstance(drawn, bytes) else as_json(rewritten(json.loads(content), drawn)))

        def read() -> None:
            run = Run.of("this run", Workspace(folder)) if name == "metrics/evaluate.json" else whole
            facts(run)
            if run.meta is not None:
                run.train_images()

        return read

    values = st.one_of(rewritings(), rewritings(1), st.sampled_from(DEEP), edits(100).map(lambda e: edited(content, e)))
    num = 30 if name == "metrics/evaluate.json" else 200  # params.yaml, long to parse, is read with it
    campaign("files of a run", values, trial, num, folder=folder, names=[name])


def test_a_curve(folder: Path) -> None:
    path = folder / "loss_fm.tsv"
    content = "step\tloss_fm\n" + "".join(f"{step}\t{1 / step}\n" for step in range(1, 9))

    def trial(changes: Any) -> Callable[[], Any]:
        path.write_bytes(edited(content.encode(), changes))
        return lambda: curve(path)

    campaign("curves", edits(len(content)), trial, 200, folder=folder, names=[path.name])


def test_dvc_lock(folder: Path) -> None:
    path = folder / LOCK
    entry = [{"path": "data/latents", "md5": "a.dir", "size": 3}]
    stage = {"cmd": "x", "deps": entry, "outs": entry, "params": {"params.yaml": {"data": {"name": "digits"}}}}
    whole = {"schema": "2.0", "stages": {"latents": stage, "teacher": stage}}

    def trial(drawn: Any) -> Callable[[], Any]:
        value = drawn if isinstance(drawn, bytes) else yaml.safe_dump(rewritten(whole, drawn)).encode()
        path.write_bytes(value)

        def read() -> None:
            locked = params.raw(path)
            files.refuse_other_form(locked, Locked, str(path), "run `dvc repro`")
            lock = Lock(locked.get("stages", {}))
            lock.leads("latents", "teacher")
            lock.params("latents").get("data", {})

        return read

    inputs = st.one_of(rewritings(), rewritings(1), plain().map(lambda v: yaml.safe_dump(v).encode()))
    campaign("dvc.lock", inputs, trial, 150, folder=folder, names=[LOCK])
