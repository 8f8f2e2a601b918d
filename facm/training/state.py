"""What a training step changes: what a save of an unfinished run holds and a resumed run goes on from."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.runtime import dist
from facm.runtime.params import Optimizer
from facm.training.averages import Averages


class State:
    """Weights, the optimizer's moments, averages, and counters.

    Args:
        network: that is trained.
        module: the objective's own weights, or None.
        parameters: all that are trained, those of the network first; their order is that of the saved moments.
        averages: of the network's weights.
        optimizer: AdamW's constants.

    Attributes:
        step: optimizer steps so far, skipped ones among them.
        skipped: of these, how many were not finite.
        in_a_row: how many of the last ones.
        interval: values of the steps that are in no row of the log yet.
    """

    def __init__(
        self,
        network: nn.Module,
        module: nn.Module | None,
        parameters: Sequence[Tensor],
        averages: Averages,
        optimizer: Optimizer,
    ) -> None:
        self.network, self.module, self.parameters, self.averages = network, module, parameters, averages
        self.optimizer = torch.optim.AdamW(
            parameters, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
        )
        self.step = self.skipped = self.in_a_row = 0
        self.interval: list[dict[str, float]] = []

    def update(self, lr: float) -> None:
        """Let the gradients move the weights, and the averages follow."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.averages.update(self.step)
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything, in the layout of a save; sharded tensors are not whole yet."""
        return {
            "network": dict(self.network.state_dict()),
            "module": self.module.state_dict() if self.module is not None else {},
            "optimizer": self.optimizer.state_dict(),
            **self.averages.state_dict(),
            "step": self.step,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "interval": self.interval,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a save, whose tensors are whole."""
        own = self.network.state_dict()
        self.network.load_state_dict({n: dist.sharded_like(tensor, own[n]) for n, tensor in saved["network"].items()})
        if self.module is not None:
            self.module.load_state_dict(saved["module"])
        for i, moments in saved["optimizer"]["state"].items():
            moments.update({n: dist.sharded_like(tensor, self.parameters[i]) for n, tensor in moments.items()})
        self.optimizer.load_state_dict(saved["optimizer"])
        self.averages.load_state_dict(saved)
        self.step, self.skipped, self.in_a_row = saved["step"], saved["skipped"], saved["in_a_row"]
        self.interval = saved["interval"]
