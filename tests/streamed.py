"""Draw many pictures of 256x256 into an archive and gather their features; prints seconds and MiB beyond the start.

python tests/streamed.py FOLDER NUM
"""

import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from facm.inference.generator import Generator
from facm.inference.samples import load_samples, saving_samples
from facm.metrics import scores
from facm.samplers.consistency import Consistency

SIDE, BATCH = 256, 100


class Enlarge:
    """A codec in whose latents a pixel stands for 8x8."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, 32, 32) -> uint8 (B, 256, 256, 3)."""
        pixels = ((latents[:, :3].clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)
        return pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)


class Still(nn.Module):
    """A network that moves nothing."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """A velocity of zero."""
        return torch.zeros_like(x)


class Averages:
    """A feature network: mean levels of the 16 quarters of quarters per channel."""

    name, seeded, batch, exact = "averages", False, 50, None
    widths: ClassVar[dict[str, int]] = {"features": 48}

    def extract(self, images: Tensor) -> Tensor:
        """Pictures uint8 (N, 256, 256, 3) -> (N, 48)."""
        return torch.cat([part.float().view(-1, 4, 64, 4, 64, 3).mean((2, 4)).flatten(1) for part in images.split(50)])

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """All that it sees."""
        return {"features": self.extract(images)}

    def classify(self, features: Tensor) -> None:
        """Nothing."""


def memory_mib(name: str) -> float:
    """VmRSS, resident now, or VmHWM, resident at most so far."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def main(folder: Path, num: int) -> None:
    """Draw, read back, tell."""
    torch.set_num_threads(1)
    config: Any = SimpleNamespace(shape=(4, 32, 32), mean=[0.0] * 4, std=[1.0] * 4, num_classes=1000)
    generator = Generator(Still(), config, codec=Enlarge())
    labels, before, start = torch.arange(num) % 1000, memory_mib("VmRSS"), time.perf_counter()
    with saving_samples(folder, "nfe1", num, labels) as take:
        generator.draw_into(take, Consistency(), labels, num, seed=0, batch_size=BATCH, what="NFE 1")
    drawn_s, drawn_mib = time.perf_counter() - start, memory_mib("VmHWM") - before
    images, _ = load_samples(folder / "nfe1.npz")
    statistics = scores.ReferenceStatistics.of(Averages(), images)
    assert statistics.features is not None and len(statistics.features) == num
    assert statistics.mu.shape == (48,) and tuple(images.shape) == (num, SIDE, SIDE, 3)
    read_s, mib = time.perf_counter() - start - drawn_s, memory_mib("VmHWM") - before
    print(f"drawn {drawn_s:.1f} s {drawn_mib:.0f} MiB read {read_s:.1f} s {mib:.0f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
