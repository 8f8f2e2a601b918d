"""Trajectories of the 2-D mixture under exact flow, teacher and students, and what the anchor keeps.

`measure` looks at two finished runs of the preset `mixture`, one as shipped and one with `objectives.facm.anchor: 0`,
and writes mixture.json; the figures are made from that file.
"""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from torch import Tensor

from facm import samplers
from facm.data.datasets.mixture import LAW
from facm.flow import path as flow
from facm.inference.sampler import for_network
from facm.networks import checkpoint
from studies import figure

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
MODE = "two standard deviations of a mode"
MARKS: dict[str, dict[str, Any]] = {
    "noise": {"marker": "o", "markersize": 2.5, "color": figure.COLORS[0]},
    "where the exact flow ends": {
        "marker": "o",
        "markersize": 6,
        "markeredgecolor": figure.COLORS[3],
        "markerfacecolor": "none",
    },
    "where it ends": {"marker": "x", "markersize": 4, "markeredgewidth": 1.3, "color": figure.COLORS[4]},
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


def make_trajectories() -> str:
    """Six panels, the same noise in each."""
    read = json.loads(FILE.read_text())
    drawing = figure.new(585, 443)
    for number, (name, label) in enumerate(PANELS.items()):
        axes = figure.frame(drawing, 10 + 192 * (number % 3), 240 - 202 * (number // 3), 181, 181)
        axes.set(title=label, xlim=(-2.5, 2.0), ylim=(-2.25, 2.25), xticks=(), yticks=())
        axes.spines[:].set_visible(True)
        _modes(axes, read["modes"])
        paths = np.array(read["paths"][name])  # (points, states, 2)
        axes.plot(*paths.transpose(2, 1, 0), color=figure.COLORS[0], linewidth=0.9)
        ends = np.array(read["paths"]["exact"])[:, -1]
        for points, (meaning, style) in zip((paths[:, 0], ends, paths[:, -1]), MARKS.items(), strict=True):
            axes.plot(*points.T, linestyle="none", label=meaning, **style)
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    drawing.legend(entries.values(), entries.keys(), loc="lower left", ncols=4, labelcolor=figure.INK, handlelength=1)
    return figure.svg(
        drawing, "Trajectories from the same noise to data, in six panels: exact flow, teacher, students."
    )


def make_anchor() -> str:
    """The error of the velocity, and g, over the distillation with and without the anchor."""
    read = json.loads(FILE.read_text())
    drawing = figure.new(570, 245)
    places = {"velocity_error": (38, "error of the velocity at c_FM"), "g": (322, "g, how far from consistent")}
    for metric, (left, label) in places.items():
        axes = figure.frame(drawing, left, 64, 225, 150)
        axes.set(title=label, xlabel="step", xlim=(0, 3000), xticks=(0, 1000, 2000, 3000))
        for k, (name, words) in enumerate({"student": "with the anchor (FM loss)", "alone": "without it"}.items()):
            axes.plot(*zip(*read["curves"][name][metric], strict=True), label=words, **figure.series(k, mark=False))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:g}")
    drawing.legend(*axes.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.05, 0), ncols=2)
    return figure.svg(drawing, "Over the steps of the distillation: velocity error and g, with the anchor and without.")


def _modes(axes: Axes, modes: Any) -> None:
    """Ellipses of two standard deviations."""
    across, up = (list(zip(*of_axis, strict=True)) for of_axis in modes)
    for (x, width), (y, height) in itertools.product(across, up):
        axes.add_patch(Ellipse((x, y), 4 * width, 4 * height, color=figure.FAINT, label=MODE))


def _exact(noise: Tensor, config: checkpoint.Config) -> list[Any]:
    laws = [LAW.normalised(mean, std) for mean, std in zip(config.mean, config.std, strict=True)]
    start, states = torch.zeros(len(noise), dtype=noise.dtype), []
    for i in range(STEPS + 1):
        r = torch.full_like(start, i / STEPS)
        states.append(torch.stack([law.flow_map(noise[:, d], start, r) for d, law in enumerate(laws)], dim=1))
    return _by_point(states)


def _along(network: Any, noise: Tensor, config: checkpoint.Config, condition: str) -> list[Any]:
    """States of Heun's rule, 16 steps, NFE 31, as in the stage baseline."""
    evaluated: list[Tensor] = []

    def recorded(x: Tensor, *rest: Any) -> Tensor:
        evaluated.append(x)
        return network(x, *rest)

    sampler = for_network("heun", config.conditioning, condition, steps=STEPS)
    x1, nfe = sampler(recorded, noise[None], None)
    if nfe != 2 * STEPS - 1 or len(evaluated) != nfe:
        raise ValueError(f"Heun took {nfe} evaluations, {2 * STEPS - 1} were expected: its states are unknown")
    return _by_point([*evaluated[::2], x1])


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
