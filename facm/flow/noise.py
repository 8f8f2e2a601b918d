"""The noise of picture i: a function of seed and i, whatever the batch, the process or the sampler."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

SEED = 2**63 - 1  # the largest, as in params.yaml


def noise(seed: int, indices: Iterable[int], draws: int, shape: Sequence[int]) -> Tensor:
    """Standard normals for some pictures; draw 0 is x0, the others are re-noised with (Eq. 19).

    Each picture has its own stream of the counter-based generator Philox (Salmon et al. 2011), keyed by (seed, index),
    and takes its draws from it in order: fewer draws are the first of more.

    Args:
        seed: 0 .. SEED.
        indices: numbers of the B pictures, 0 .. 2^64 - 1.
        draws: noises per picture.
        shape: of one picture's latent, such as (C, H, W).

    Returns:
        (draws, B, *shape) float64 on the CPU.

    Raises:
        ValueError: another seed, of which Philox would take the noise of some other one.
    """
    if not 0 <= seed <= SEED:
        raise ValueError(f"seed {seed}: it must lie between 0 and {SEED}")
    streams = [np.random.Generator(np.random.Philox(key=[int(seed), int(index)])) for index in indices]
    samples = [stream.standard_normal((draws, *shape)) for stream in streams]
    return torch.from_numpy(np.stack(samples, axis=1))
