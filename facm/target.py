"""A target network: weights that follow the trained ones with a constant decay, for objectives that ask it.

    avg <- m avg + (1 - m) theta    after every optimizer step, from the first weights on

Consistency distillation has m = mu (arXiv 2303.01469, Algorithm 2), TRACT's self-teacher m = 0.5 (arXiv 2303.04248,
apple/ml-tract, tc_distill.py: `sema`). It is a part of the loss and no result: it is not what is sampled from, and no
snapshots of it are kept. The averages that are results are `facm.ema.PowerEMA`'s, whose length grows with the training.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Target:
    """The weights of one target network.

    Floating-point tensors follow, in at least float32; others are copied. Constant buffers stay bit for bit what they
    are; with decay 0 the weights are those of the network.

    Args:
        state: the network's state dict; the target starts there, on its devices. Its tensors are whole: not for fsdp.
        decay: m, 0 to below 1.

    Attributes:
        weights: the live tensors by name.
    """

    def __init__(self, state: Mapping[str, Any], decay: float) -> None:
        self.decay = decay
        self.weights = {name: _wide(tensor).clone() for name, tensor in _plain(state).items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Any]) -> None:
        """Take in the state after an optimizer step.

        Raises:
            KeyError: the state lacks a tensor of the target.
        """
        state = _plain(state)
        floating = [name for name, tensor in self.weights.items() if tensor.is_floating_point()]
        mine = [self.weights[name] for name in floating]
        torch._foreach_lerp_(mine, [state[name].to(self.weights[name].dtype) for name in floating], 1 - self.decay)
        for name in self.weights.keys() - set(floating):
            self.weights[name].copy_(state[name])

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from saved weights.

        Raises:
            ValueError: other tensors than this one's.
        """
        if saved.keys() != self.weights.keys():
            raise ValueError("saved target network: other tensors than the network's")
        for name, tensor in self.weights.items():
            tensor.copy_(saved[name])


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, without graphs and without a module's extra state."""
    return {name: tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
