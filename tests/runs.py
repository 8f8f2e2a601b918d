"""A finished run's files as the pipeline writes them, made up: random pictures and networks, scores by hand."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from miniature import ROOT, plain, save_arrays

from facm.networks.features.digits_cnn import DigitsCNN
from facm.networks.features.exact_map import ExactMap
from facm.report.run import Run, Workspace
from facm.runtime.files import save_json, save_tensors

VOID = {"meta", "img", "br"}
SCORES = {"fd": 1.0, "kid": 0.1, "precision": 0.9, "recall": 0.8, "accuracy": 0.95, "copies": 0.001}
ENDS = {"floor": {"fd": 0.5, "kid": -0.01}, "class_mean": {"fd": 13.0, "accuracy": 1.0}, "noise": {"fd": 62.0}}
DIGITS = {"baseline__num": 30, "sample__num": 30, "sample__nfe": [1, 2, 4]}
POINTS = {
    "data__name": "mixture",
    "reference__features": "exact_map",
    "latents__codec": "points",
    "backbone__name": "mlp",
    "evaluate__copies": False,
}


def write_run(
    folder: Path,
    *,
    points: bool = False,
    classes: int = 10,
    shape: tuple[int, ...] = (8, 8, 1),
    factor: float = 1.0,
    result: dict[str, Any] | None = None,
    **changes: Any,
) -> Run:
    """Write what the stages before the report would, and open it as the workspace.

    Args:
        folder: where to.
        points: points of the plane in place of pictures.
        classes: 0: none.
        shape: of a picture.
        factor: of the student's scores.
        result: further keys of evaluate.json.
        changes: of params.yaml, with `__` for the dot.
    """
    params = plain(**(DIGITS | (POINTS if points else {}) | changes))
    save = folder / "metrics"
    save.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(ROOT / "presets", folder / "presets", dirs_exist_ok=True)
    nfes, scratch = params["sample"]["nfe"], params["distill"]["mode"] == "scratch"
    scored = {f"nfe{nfe}": {name: value * factor for name, value in SCORES.items()} for nfe in nfes}
    known: dict[str, Any] = {"features": params["reference"]["features"], "num": 30, **ENDS}
    known |= {} if scratch else {"teacher": {"nfe": 29, "w": 1.25, "num": 30, **SCORES}}
    known |= {"stable": True, "student": scored, "heldout_accuracy": 0.99, "heldout_copies": 0.005}
    save_json(save / "evaluate.json", known | (result or {}))
    generator = np.random.default_rng(0)
    for name in [] if scratch else ["baseline/teacher"]:
        _samples(folder / f"data/{name}.npz", points, classes, shape, generator)
    for nfe in nfes:
        _samples(folder / f"data/samples/nfe{nfe}.npz", points, classes, shape, generator)
    _curves(save / "distill", ("loss_fm", "loss_cm", "grad_norm", "g", "velocity_error", "lr", "skipped"))
    if not scratch:
        _curves(save / "teacher", ("loss_fm", "grad_norm", "velocity_error", "lr"))
    _reference(folder / "data/reference", points, shape, params["reference"]["features"])
    for who in ("student", *([] if scratch else ["teacher"])):
        config = {"backbone": "lightningdit", "objective": "facm", "step": 30, "sigma_rel": 0.05, "sha256": "5" * 64}
        config |= {"threads": 1, "versions": {"python": "3.11", "torch": "2.11", "machine": "x86_64"}}
        (folder / "data" / who).mkdir(parents=True, exist_ok=True)
        save_json(folder / f"data/{who}/config.json", config)
    meta = {"dataset": params["data"]["name"], "num": 50, "codec": "identity", "fingerprint": "f" * 64}
    (folder / "data/latents").mkdir(parents=True, exist_ok=True)
    save_json(folder / "data/latents/meta.json", meta)
    return Run.of("this run", Workspace(folder))


def _samples(path: Path, points: bool, classes: int, shape: tuple[int, ...], generator: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if points:
        save_arrays(path, generator.normal(size=(30, 2)).astype(np.float32), None)
    else:
        labels = np.arange(30) % classes if classes else None
        save_arrays(path, generator.integers(0, 256, (30, *shape), dtype=np.uint8), labels)


def _curves(folder: Path, names: tuple[str, ...]) -> None:
    below = folder / "plots/metrics"
    below.mkdir(parents=True, exist_ok=True)
    for name in names:
        values = {step: 0 if name == "skipped" else 2.0 / step for step in range(10, 110, 10)}
        rows = "".join(f"{step}\t{value}\n" for step, value in values.items())
        (below / f"{name}.tsv").write_text(f"step\t{name}\n{rows}")


def _reference(folder: Path, points: bool, shape: tuple[int, ...], features: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network: Any = ExactMap(torch.zeros(2), torch.ones(2)) if points else DigitsCNN()
    network.save(folder / "network.safetensors")
    pictures = torch.randint(0, 256, (50, *shape), dtype=torch.uint8)
    if not points:
        save_tensors(folder / "pictures.safetensors", {"pictures": pictures})
    save_json(folder / "meta.json", {"features": features, "copies_threshold": None if points else 1.2})


class Page(HTMLParser):
    """A page taken apart; raises AssertionError where elements are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words = list[str](), list[tuple[str, dict[str, str]]](), list[str]()
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words."""
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str]]:
        """Attributes of all elements of a name."""
        return [attributes for tag, attributes in self.tags if tag == name]


def result(run: Run) -> dict[str, Any]:
    """A copy of a run's scores."""
    copied: dict[str, Any] = json.loads(json.dumps(run.result))
    return copied
