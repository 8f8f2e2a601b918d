"""Trajectories of the 2-D mixture under exact flow, teacher and students, and what the anchor keeps.

`measure` looks at two finished runs of the preset `mixture`, one as shipped and one with `objectives.facm.anchor: 0`,
and writes mixture.json; the pictures are drawn from that file.
"""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from docs.figures.canvas import Canvas, Frame
from facm import samplers
from facm.data.datasets.mixture import LAW
from facm.flow import path as flow
from facm.inference.sampler import for_network
from facm.networks import checkpoint

FILE = Path(__file__).with_name("mixture.json")
NUM, STEPS, SEED = 24, 16, 7
PANELS = {
    "exact": "exact flow",
    "teacher": "teacher, its velocity",
    "student_flow": "student at c_FM: the flow",
    "student_jump": "student at c_CM: NFE 1",
    "alone_flow": "without anchor, at c_FM",
    "alone_jump": "without anchor, at c_CM: NFE 1",
}


def measure(anchored: str, alone: str) -> None:
    """Write mixture.json from the folders of two runs, each with data/ and metrics/."""
    teacher, config = checkpoint.load(Path(anchored) / "data/teacher")
    noise = samplers.noise(SEED, range(NUM), 1, config.shape)[0]
    paths = {"exact": _exact(noise, config), "teacher": _along(teacher, noise, config, "t")}
    curves, scores = {}, {}
    for name, folder in (("student", anchored), ("alone", alone)):
        network, own = checkpoint.load(Path(folder) / "data/student")
        paths[f"{name}_flow"] = _along(network, noise, own, "fm")
        paths[f"{name}_jump"] = _jump(network, noise, own)
        curves[name] = {
            m: _curve(Path(folder) / f"metrics/distill/plots/metrics/{m}.tsv") for m in ("velocity_error", "g")
        }
        result = json.loads((Path(folder) / "metrics/evaluate.json").read_text())
        scores[name] = {"student": _short(result["student"]["nfe1"]), "teacher": _short(result["teacher"])}
    modes = [
        [[(m - mean) / std for m in LAW.means], [s / std for s in LAW.stds]]
        for mean, std in zip(config.mean, config.std, strict=True)
    ]
    written = {"modes": modes, "paths": paths, "curves": curves, "scores": scores}
    FILE.write_text(json.dumps(_rounded(written)) + "\n")


def draw_trajectories() -> str:
    """Six panels, the same noise in each."""
    read = json.loads(FILE.read_text())
    canvas = Canvas(780, 590, "Trajectories from the same noise to data, in six panels: exact flow, teacher, students.")
    for number, (name, label) in enumerate(PANELS.items()):
        frame = Frame(14 + 256 * (number % 3), 30 + 266 * (number // 3), 240, 240, (-2.5, 2.0), (-2.25, 2.25))
        _modes(canvas, frame, read["modes"])
        canvas.text(frame.left, frame.top - 8, label)
        for path, exact in zip(read["paths"][name], read["paths"]["exact"], strict=True):
            canvas.line(frame.all([(a, b) for a, b in path]), 0, 1.2)
            canvas.mark(*frame.at(*path[0]), 0, 2)
            canvas.mark(*frame.at(*exact[-1]), 3, 4)
            canvas.mark(*frame.at(*path[-1]), 4, 2.6)
    y = 570
    for series, x, words in ((0, 20, "noise"), (4, 110, "where it ends"), (3, 250, "where the exact flow ends")):
        canvas.mark(x, y, series, {0: 2, 4: 2.6, 3: 4}[series])
        canvas.text(x + 12, y + 5, words)
    canvas.ellipse(470, y, 12, 8)
    canvas.text(488, y + 5, "two standard deviations of a mode")
    return canvas.svg()


def draw_anchor() -> str:
    """The error of the velocity, and g, over the distillation with and without the anchor."""
    read = json.loads(FILE.read_text())
    canvas = Canvas(760, 320, "Over the steps of the distillation: velocity error and g, with the anchor and without.")
    places = {"velocity_error": (50, "error of the velocity at c_FM"), "g": (430, "g, how far from consistent")}
    for metric, (left, label) in places.items():
        top = max(v for curves in read["curves"].values() for _, v in curves[metric])
        frame = Frame(left, 40, 300, 200, (0, 3000), (0, _ceiling(top)))
        frame.draw(canvas, (0, 1000, 2000, 3000), [frame.y[1] * i / 4 for i in range(5)], "step", label)
        for series, name in enumerate(("student", "alone")):
            canvas.line(frame.all([(a, b) for a, b in read["curves"][name][metric]]), series)
    for series, (x, words) in enumerate(((60, "with the anchor (FM loss)"), (320, "without it"))):
        canvas.line([(x, 305), (x + 34, 305)], series)
        canvas.text(x + 42, 310, words, series=series)
    return canvas.svg()


def _ceiling(value: float) -> float:
    return next(c for c in (0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0) if c >= value)


def _modes(canvas: Canvas, frame: Frame, modes: Any) -> None:
    (means_x, stds_x), (means_y, stds_y) = modes
    scale = frame.width / (frame.x[1] - frame.x[0])
    for mx, sx in zip(means_x, stds_x, strict=True):
        for my, sy in zip(means_y, stds_y, strict=True):
            canvas.ellipse(*frame.at(mx, my), 2 * sx * scale, 2 * sy * scale)
    right, bottom = frame.left + frame.width, frame.top + frame.height
    canvas.axis(
        [(frame.left, frame.top), (right, frame.top), (right, bottom), (frame.left, bottom), (frame.left, frame.top)]
    )


def _exact(noise: Tensor, config: checkpoint.Config) -> list[Any]:
    laws = [LAW.normalised(mean, std) for mean, std in zip(config.mean, config.std, strict=True)]
    start, states = torch.zeros(len(noise), dtype=noise.dtype), []
    for i in range(STEPS + 1):
        r = torch.full_like(start, i / STEPS)
        states.append(torch.stack([law.flow_map(noise[:, d], start, r) for d, law in enumerate(laws)], dim=1))
    return _by_point(states)


def _along(network: Any, noise: Tensor, config: checkpoint.Config, condition: str) -> list[Any]:
    """States of Heun's rule, 16 steps, NFE 31, as the stage baseline draws with."""
    asked: list[Tensor] = []

    def recorded(x: Tensor, *rest: Any) -> Tensor:
        asked.append(x)
        return network(x, *rest)

    sampler = for_network("heun", config.conditioning, condition, steps=STEPS)
    x1, nfe = sampler(recorded, noise[None], None)
    if nfe != 2 * STEPS - 1 or len(asked) != nfe:
        raise ValueError(f"Heun took {nfe} evaluations, {2 * STEPS - 1} were expected: the states cannot be told")
    return _by_point([*asked[::2], x1])


@torch.no_grad()
def _jump(network: Any, noise: Tensor, config: checkpoint.Config) -> list[Any]:
    t = torch.zeros(len(noise))
    c = flow.c_cm(t, config.conditioning)
    return _by_point([noise, flow.endpoint(noise.float(), t, network(noise.float(), c.t, None, c.r))])


def _by_point(states: list[Tensor]) -> list[Any]:
    return torch.stack([state.double() for state in states], dim=1).tolist()


def _curve(path: Path) -> list[Any]:
    rows = list(csv.DictReader(path.open(), delimiter="\t"))
    return [[float(row["step"]), float(row[path.stem])] for row in rows]


def _short(scores: dict[str, float]) -> dict[str, float]:
    return {name: scores[name] for name in ("fd", "map_rmse", "map_median")}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 4)
