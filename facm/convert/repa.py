"""REPA (Yu et al. 2025, arXiv 2410.06940; sihyun-yu/REPA): a bare average, or {model, ema, opt, args, steps}.

Raw t in [0, 1] with t = 1 for noise, answers noise - data. Both go into the weights (`transformer.reverse_time`).
`projectors.*` serve pretraining alone and are dropped. Files from before a renaming call the blocks behind the aligned
one `decoder_blocks.<j>`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.convert.settings import PLAIN
from facm.convert.transformer import describe, number_of_blocks, reverse_time, without
from facm.convert.weights import Format, Found, Weights


class REPA(Format):
    """Codec: SD-VAE f8d4, latents times 0.18215 and not normalised further."""

    settings = PLAIN | {
        "path": ("linear",),
        "prediction": ("v",),
        "families": ("SiT",),
    }

    def read(self, weights: Weights, given: Mapping[str, Any], path: Path) -> Found:
        tensors = renamed(without(weights.tensors, ("projectors.",)))
        found = describe("repa", tensors, weights.settings, given, path)
        depth = min(8, found.constants["depth"])
        constants = {"encoder_depth": depth} | found.constants | {"projector": False}
        return replace(found, constants=constants, weights=reverse_time(found.weights))


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`decoder_blocks.<j>` -> `blocks.<j + number of blocks>`."""
    depth, found = number_of_blocks(tensors), {}
    for name, tensor in tensors.items():
        match = re.match(r"decoder_blocks\.([0-9]+)\.", name)
        found[f"blocks.{int(match[1]) + depth}.{name[match.end() :]}" if match else name] = tensor
    return found
