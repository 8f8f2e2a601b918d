"""The one-step generator as an ONNX graph: every backbone and preconditioning, by onnxruntime, for any batch."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from exporting import write_variant
from miniature import CONSTANTS, write_checkpoint, write_latents

import facm
from facm import samplers
from facm.export import __main__, onnx
from facm.inference.generator import Generator
from facm.networks import backbones, checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("onnxruntime") is None and not os.environ.get("CI"), reason="the extra onnx is not installed"
    ),
]
CASES = [(name, "none", False) for name in backbones.BACKBONES]
CASES += [("mlp", "simple_edm", False), ("ddpmpp", "edm", False), ("ddpmpp", "ddpm", False)]
CASES += [("lightningdit", "none", True), ("mlp", "none", True)]  # auxiliary, with a second time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onestep")
    config = write_checkpoint(folder / "student", write_latents(folder / "latents", channels=3), kind="student")
    write_checkpoint(folder / "teacher", write_latents(folder / "latents", channels=3))
    for name, precond, auxiliary in CASES:
        points = name in backbones.POINTS
        write_variant(
            folder / f"{name}-{precond}-{auxiliary}",
            config,
            backbone=name,
            constants=CONSTANTS[name],
            precond=precond,
            precond_constants={},
            conditioning="auxiliary" if auxiliary else "expanded",
            samplers=["jumps"] if auxiliary else ["consistency"],
            shape=(2,) if points else (3, 4, 4),
            num_classes=0 if points else 3,
            codec="points" if points else "identity",
            mean=[0.2] * (2 if points else 3),
            std=[0.6] * (2 if points else 3),
        )
    return folder


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_graph_draws_what_the_student_draws(case: tuple[str, str, bool], folder: Path, tmp_path: Path) -> None:
    import onnxruntime

    student = facm.load(folder / "-".join(map(str, case)))
    assert onnx.write(tmp_path, student) <= onnx.TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == [onnx.FILE]
    session = onnxruntime.InferenceSession(tmp_path / onnx.FILE)
    labels = [0, 2, 1, 0, 2] if student.config.num_classes else None
    given = {"noise": samplers.noise(0, range(5), 1, student.config.shape)[0].float().numpy()}
    given |= {} if labels is None else {"labels": np.array(labels)}
    (x1,) = session.run(["x1"], given)
    images = student.generate(labels, num=5)
    if labels is None:
        np.testing.assert_allclose(x1, images, rtol=1e-4, atol=1e-4)
    else:
        levels = np.asarray(student.codec.decode(torch.from_numpy(x1)))
        assert np.abs(levels.astype(int) - images).max() <= 1 and x1.std() > 0.1


@pytest.mark.parametrize("name", ["lightningdit-none-False", "lightningdit-none-True", "ddpmpp-edm-False"])
def test_labels_that_the_student_does_not_have_give_no_picture(name: str, folder: Path, tmp_path: Path) -> None:
    import onnxruntime

    onnx.write(tmp_path, facm.load(folder / name))
    session = onnxruntime.InferenceSession(tmp_path / onnx.FILE)
    assert session.get_modelmeta().custom_metadata_map["facm.labels"] == "0..2"
    noise = np.zeros((4, 3, 4, 4), np.float32)
    x1 = session.run(["x1"], {"noise": noise, "labels": np.array([-1, 0, 3, 2])})[0]
    assert np.isnan(x1[[0, 2]]).all() and np.isfinite(x1[[1, 3]]).all(), "neither the null class nor the last one"
    for labels in ([-1, 0], [0, 3]):
        with pytest.raises(ValueError, match=r"labels must lie in 0..2, got "):
            onnx.run(session, noise[:2], np.array(labels))
    with pytest.raises(ValueError, match="this graph has 3 classes: it needs labels"):
        onnx.run(session, noise)
    np.testing.assert_allclose(onnx.run(session, noise[:2], np.array([0, 2])), x1[[1, 3]], atol=1e-5)


def test_a_graph_that_answers_otherwise_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch) -> None:
    right = onnx.c_cm
    monkeypatch.setattr(onnx, "c_cm", lambda t, conditioning: right(t + 0.5, conditioning))
    with pytest.raises(onnx.OnnxError, match=r"the graph of mlp differs from torch by .*, not 0.0001"):
        onnx.write(tmp_path, Generator.load(folder / "mlp-none-False"))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_named(folder: Path, tmp_path: Path, monkeypatch) -> None:
    right = onnx.c_cm
    monkeypatch.setattr(onnx, "c_cm", lambda t, name: right(t if bool(t.sum() > -1) else t + 1, name))
    with pytest.raises(onnx.OnnxError, match="mlp cannot be exported to ONNX: "):
        onnx.write(tmp_path, Generator.load(folder / "mlp-none-False"))
    assert list(tmp_path.iterdir()) == []


def test_an_export_has_its_graph_in_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    __main__.export(folder / "student", out, onnx=True)
    assert [path.name for path in (out / "onnx").iterdir()] == [onnx.FILE]
    written = (out / "onnx" / onnx.FILE).read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in written, "no path of the machine that exported"
    assert checkpoint.read_config(folder / "student").sha256.encode() in written
    card = (out / "README.md").read_text()
    assert "`onnx/onestep.onnx` is the one-step generator without torch: `noise`" in card and "`labels`, int64" in card
    code = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
print(session.run(None, {"noise": numpy.zeros((2, 3, 4, 4), "float32"), "labels": numpy.array([0, 1])})[0].shape)
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(out / "onnx" / onnx.FILE)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "(2, 3, 4, 4)\nFalse\n"


def test_a_teacher_has_none(folder: Path) -> None:
    with pytest.raises(onnx.OnnxError, match="its samplers are euler, heun, dpmpp, edm"):
        onnx.write(folder, facm.load(folder / "teacher"))
