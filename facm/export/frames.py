"""What a sampler goes through on its way from noise to data, decoded: frames of a refinement.

The samplers are not touched: they call the network through a `Recorder`, which keeps the states. A frame is the state
x_t at an evaluation (of several at one time, as Heun's rule has them, the last); where an evaluation is a jump to the
data (Eq. 19, the anchored sampler), the end of the jump is one more. The last frame is the result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facm import samplers
from facm.flow.path import endpoint
from facm.inference import grid
from facm.inference.generator import Generator
from facm.networks.precision import full
from facm.runtime.files import atomic_write
from facm.samplers.anchored import Anchored
from facm.samplers.consistency import Consistency

FRAME_MS, LAST_MS = 150, 1500
FEW_MS = 700  # per frame where there are few
FEW = 10


@dataclass
class Recorder:
    """A network F(x, t, y, r) that keeps where it was evaluated.

    Attributes:
        states: (t, x_t) in the order of the calls, t in [0, 1]; jumps' ends at t = 1.
    """

    network: Callable[..., Tensor]
    rows: int  # images; a guided call has as many again, of the same points, behind them
    jumps: bool  # whether a call at c_CM is a jump to the data
    states: list[tuple[float, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, r: Tensor | None = None) -> Tensor:
        answer = self.network(x, t, y, r)
        told, x_t = float(t[0]), x[: self.rows].clone()
        physical = min(told, 2 - told)
        if self.states and self.states[-1][0] == physical:
            self.states.pop()
        self.states.append((physical, x_t))
        if self.jumps and told <= 1 and (r is None or float(r[0]) == 1):
            times = torch.full(x_t.shape[:1], physical, dtype=x_t.dtype, device=x_t.device)
            self.states.append((1.0, endpoint(x_t, times, answer[: self.rows])))
        return answer


@torch.no_grad()
def frames(generator: Generator, sampler: Any, y: Tensor | None, num: int, seed: int) -> tuple[list[np.ndarray], int]:
    """Decoded states, the last of them the images that `Generator.draw` gives; all `num` at once.

    Returns:
        uint8 (num, H, W, C) each, or points float32 (num, D); and the NFE.
    """
    noise = samplers.noise(seed, range(num), sampler.draws, generator.config.shape)
    recorder = Recorder(generator.network, num, isinstance(sampler, Consistency | Anchored))
    labels = None if y is None else y.to(generator.device)
    with full():
        x1, nfe = sampler(recorder, noise.to(generator.device), labels, generator.config.num_classes)
        states = recorder.states[:-1] if recorder.states[-1][0] == 1 else recorder.states
        return [generator.decode(x.float()) for x in (*(x_t for _, x_t in states), x1)], nfe


def save_gif(path: str | Path, shown: list[np.ndarray], columns: int) -> None:
    """Write the images of `frames` as an animation that repeats; the last frame stays longer."""
    sheets = [grid.sheet(images, columns) for images in shown]
    every = FEW_MS if len(sheets) <= FEW else FRAME_MS
    times = [every] * (len(sheets) - 1) + [LAST_MS]
    with atomic_write(Path(path)) as file:
        sheets[0].save(file, format="GIF", save_all=True, append_images=sheets[1:], duration=times, loop=0)
