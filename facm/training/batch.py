"""What a training step draws, all of it from a generator seeded by (seed, step), for the global batch.

Each rank takes its rows: neither a kill nor the number of processes changes what a step sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from facm.data.latents.store import LatentSet
from facm.data.latents.tokens import TokenSet
from facm.runtime import dist
from facm.runtime.params import Training


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one step's draws.

    Attributes:
        x0: noise (B, ...).
        x1: normalised latents (B, ...).
        y: labels (B,), dropped ones replaced by the null label, or None.
        n: standard normals for the times (B, normals).
        keys: of the dropout masks, (B,) int64; None: no dropout.
        size: rows of the global batch, over which losses are averaged.
        tokens: of an encoder (B, N, features) float32, or None.
    """

    x0: Tensor
    x1: Tensor
    y: Tensor | None
    n: Tensor
    keys: Tensor | None
    size: int
    tokens: Tensor | None = None

    def split(self, parts: int, group: int = 1) -> Iterator["Batch"]:
        """Micro-batches of whole groups of rows, whose numbers of groups differ by one at most."""
        return (self.rows(share(len(self.x0), i, parts, group)) for i in range(parts))

    def rows(self, rows: slice) -> "Batch":
        """Some of the rows."""
        y, keys, tokens = (None if some is None else some[rows] for some in (self.y, self.keys, self.tokens))
        return Batch(self.x0[rows], self.x1[rows], y, self.n[rows], keys, self.size, tokens)

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        y, keys, tokens = (None if some is None else some.to(device) for some in (self.y, self.keys, self.tokens))
        return Batch(self.x0.to(device), self.x1.to(device), y, self.n.to(device), keys, self.size, tokens)


def share(size: int, number: int, parts: int, group: int = 1) -> slice:
    """Rows of part `number` of `parts`, in whole groups of `group` consecutive rows."""
    groups = size // group
    return slice(group * (number * groups // parts), group * ((number + 1) * groups // parts))


def draw(
    latents: LatentSet,
    settings: Training,
    normals: int,
    step: int,
    group: int = 1,
    tokens: TokenSet | None = None,
) -> Batch:
    """Return this rank's rows of step `step` (from 1).

    Args:
        latents: the data.
        settings: params.teacher or params.distill.
        normals: standard normals per sample that the objective asks for.
        step: of the training.
        group: consecutive rows that no rank may be given a part of.
        tokens: of an encoder, where the objective needs them; those of a sample are of the picture as it was flipped.
    """
    generator = seeded(settings.seed, step)
    indices = batch_indices(step, settings.batch_size, latents.num, settings.seed)
    size = len(indices)
    x0 = torch.randn((size, *latents.shape), generator=generator)
    n = torch.randn((size, normals), generator=generator)
    flips = torch.rand(size, generator=generator) < 0.5 if latents.flips else None
    dropped = torch.rand(size, generator=generator) < settings.label_dropout
    keys = torch.randint(2**63 - 1, (size,), generator=generator) if settings.dropout else None
    rows = share(size, dist.rank(), dist.world_size(), group)
    mirrored = None if flips is None else flips[rows]
    x1, y = latents.batch(indices[rows], mirrored)
    of_encoder = None if tokens is None else tokens.batch(indices[rows], mirrored)
    if y is not None:
        y = torch.where(dropped[rows], latents.num_classes, y)
    keys = None if keys is None else keys[rows]
    return Batch(x0[rows], x1, y, n[rows], keys, size, of_encoder).to(dist.device())


def batch_indices(step: int, batch_size: int, num: int, seed: int) -> Tensor:
    """Indices of step `step` (from 1): epochs are seeded permutations, joined end to end."""
    first = (step - 1) * batch_size
    epochs = range(first // num, (first + batch_size - 1) // num + 1)
    order = torch.cat([_permutation(num, seed, epoch) for epoch in epochs])
    offset = first - epochs[0] * num
    return order[offset : offset + batch_size]


@lru_cache(maxsize=2)
def _permutation(num: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num, generator=seeded(seed, epoch, 1))


def seeded(*words: int) -> torch.Generator:
    """A generator whose state depends on all the numbers."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
