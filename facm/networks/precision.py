"""Full float32 on accelerators: TF32 convolutions, which torch allows there by default, move a FID by about .01."""

from contextlib import AbstractContextManager

import torch


def full() -> AbstractContextManager[None]:
    """Within it convolutions are float32 without TF32, by algorithms that give the same bits again."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
