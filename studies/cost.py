"""CPU-hours of runs, stated before they start: passes of the network, counted, times the seconds of one, measured here.

docs/methods.md lists the forward passes of a step by method; a teacher's step costs three. The cost of sampling and
scoring on digits is in LOG.md by stage; DVC's own share is a guess.
"""

import copy
import re
import time
from pathlib import Path
from typing import Any

import torch

from facm.networks import backbones
from facm.runtime import params
from studies.plan import Run, override

OVERHEAD_S = 35.0  # CPU seconds per run: sample 7, evaluate 14, DVC
BASELINE_S = 30.0  # per teacher
TABLE = Path(__file__).parents[1] / "docs/methods.md"


def passes() -> dict[str, float]:
    """Forward passes per step by objective."""
    text = TABLE.read_text().partition("## What a step costs")[2]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    return {name: float(cells.split("|")[4]) for name, cells in rows}


def hours(runs: list[tuple[Run, dict[str, Any]]]) -> float:
    """CPU-hours of runs, each with the params that it starts from; a teacher that several share is counted once."""
    costs, teachers, total, seconds = passes(), set(), 0.0, {}
    for run, raw in runs:
        name = raw["backbone"]["name"]
        if name not in seconds:
            seconds[name] = seconds_per_sample(raw)
        mapping = override(copy.deepcopy(raw), run.set)
        teacher, distill, each = mapping["teacher"], mapping["distill"], seconds[name]
        total += OVERHEAD_S + costs[distill["objective"]] * distill["steps"] * distill["batch_size"] * each
        key = repr((teacher, mapping["backbone"], mapping["backbones"]))
        if distill["mode"] == "distill" and key not in teachers:
            teachers.add(key)
            total += BASELINE_S + 3 * teacher["steps"] * teacher["batch_size"] * each
    return total / 3600


@torch.no_grad()
def seconds_per_sample(raw: dict[str, Any]) -> float:
    """CPU seconds of one forward pass of the configured network, per sample of a distillation batch."""
    p = params.parse(raw)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    name = p.backbone.name
    shape, classes = ((2,), 0) if name in backbones.POINTS else ((1, 8, 8), 10)
    network = backbones.build(name, p.backbones[name], shape=shape, num_classes=classes)
    batch = p.distill.batch_size
    inputs = torch.randn(batch, *shape), torch.rand(batch), torch.zeros(batch, dtype=torch.int64) if classes else None
    taken = []
    for _ in range(20):
        start = time.process_time()
        network(*inputs)
        taken.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return sorted(taken)[10] / batch
