"""CPU time of one training step of every method, side by side: python -m benchmarks.methods [--preset mixture].

The step is `facm.training.step.Step` on the preset's network and batch, distilling, with random latents and weights;
data, optimizer and averages are left out. Each round runs every method once, starting with another one; the median of a
method's process times over that of `facm` is what the studies of equal CPU time take their steps from.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import meter
from facm import check, objectives, preset
from facm.flow.guidance import Guidance
from facm.flow.interface import Progress
from facm.flow.time import TimeSampler
from facm.networks import backbones
from facm.runtime import dist, params
from facm.training import loop, target_velocity
from facm.training.batch import Batch
from facm.training.passes import Passes, prepare
from facm.training.step import Step

SHAPES = {"digits": ((1, 8, 8), 10), "mixture": ((2,), 0)}
WARM_UP = 5


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=main.__doc__)
    parser.add_argument("--preset", choices=SHAPES, default="digits")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    dist.setup(1)
    steps = {name: Method(name, options.preset) for name in objectives.OBJECTIVES}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + options.rounds):
        names = list(steps)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            steps[name].run(number)
            samples[name].append(time.process_time() - start)
    medians = {name: meter.spread(times[WARM_UP:])["median"] for name, times in samples.items()}
    print("| method | ms per step | / facm | steps for the time of one of facm |\n|---|---|---|---|")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        ratio = median / medians["facm"]
        print(f"| `{name}` | {1e3 * median:.1f} | {ratio:.3f} | {1 / ratio:.3f} |")


class Method:
    """One method's training step on a preset's sizes."""

    def __init__(self, name: str, chosen: str):
        raw = params.mapping_of(preset.render([chosen], Path(__file__).parents[1] / "presets"), chosen)
        raw["distill"]["objective"] = name
        p = params.parse(raw)
        d, (shape, classes) = p.distill, SHAPES[chosen]
        objective = check.build_objective(p)
        network, constants = check.backbone(p)
        torch.manual_seed(0)

        def built(auxiliary: bool) -> Any:
            built = backbones.build(network, constants, shape=shape, num_classes=classes, auxiliary=auxiliary)
            for weight in built.parameters():
                torch.nn.init.normal_(weight, std=0.05)
            return built

        guidance = Guidance(w=d.w, t_low=d.t_low, t_high=d.t_high, null=classes or None)
        plan, student = loop.plan_of(p.train), built(objective.conditioning == "auxiliary")
        frozen = built(objective.conditioning == "auxiliary").requires_grad_(False)
        others = dict.fromkeys(("ema", "phase", "target"), lambda: Passes(frozen, d.derivative))
        self.step = Step(
            prepare(student, plan, d.derivative),
            objective,
            target_velocity.teacher(built(False), guidance, plan),
            TimeSampler(d.time.sampler, d.time.mean, d.time.std),
            plan,
            null=classes or None,
            others=others,
        )
        self.settings, self.shape, self.classes, self.normals = d, shape, classes, objective.normals

    def run(self, number: int) -> None:
        """Gradients of one step in the middle of the training, or thereabouts, so that all phases are seen."""
        size = self.settings.batch_size
        generator = torch.Generator().manual_seed(number)
        x0, x1 = torch.randn(2, size, *self.shape, generator=generator)
        y = torch.randint(self.classes, (size,), generator=generator) if self.classes else None
        n = torch.randn(size, self.normals, generator=generator)
        progress = Progress(1 + 37 * number % self.settings.steps, self.settings.steps)
        self.step.gradients(Batch(x0, x1, y, n, None, size), progress)


if __name__ == "__main__":
    main()
