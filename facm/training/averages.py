"""Weights that follow the network's: the averages, the copy of a phase, the target. Queries name them in `of`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facm.flow.interface import Objective
from facm.networks.ema import PowerEMA, TargetEMA
from facm.runtime import dist
from facm.runtime.params import Ema
from facm.training.passes import Others, Passes, Plan


class Averages:
    """The weights beside the student's, and the passes through them.

    Args:
        network: that is trained; everything starts at its weights.
        objective: says whether there is a target, and when a phase begins.
        settings: lengths of the averages.
        plan: of the passes.
        derivative: of the passes.

    Attributes:
        ema: the averages, of which that of length `settings.sigma_rel` is the result and answers queries of "ema".
        phase: number of the phase, -1 before the first.
        phase_weights: copy of the average when the phase began.
        target: weights that follow with the objective's `target_decay`; None: there are none.

    Raises:
        ValueError: a target under fsdp.
    """

    def __init__(self, network: nn.Module, objective: Objective, settings: Ema, plan: Plan, derivative: str) -> None:
        self.network, self.objective, self.plan, self.derivative = network, objective, plan, derivative
        self.sigma_rel = settings.sigma_rel
        self.ema = PowerEMA(network.state_dict(), settings.sigma_rels)
        self.phase, self.phase_weights = -1, dict[str, Tensor]()
        self.target: TargetEMA | None = None
        if objective.target_decay is not None:
            self._refuse_sharded()
            self.target = TargetEMA(network.state_dict(), objective.target_decay)

    def enter_phase(self, phase: int | None) -> None:
        """Copy the average where the objective begins another phase; None: it has no phases."""
        if phase is not None and phase != self.phase:
            self.phase = phase
            self.phase_weights = {name: tensor.clone() for name, tensor in self.weights().items()}

    def update(self, step: int) -> None:
        """Take in the network's weights after optimizer step `step`, from 1."""
        self.ema.update(self.network.state_dict(), step)
        if self.target is not None:
            self.target.update(self.network.state_dict())

    def weights(self) -> dict[str, Tensor]:
        """The average that is the result: the live tensors."""
        return self.ema.weights(self.sigma_rel)

    @property
    def passes(self) -> Others:
        """What makes the passes through each of them, by the name in `Query.of`."""
        return {
            "ema": lambda: self._through(self.weights()),
            "phase": lambda: self._through(self.phase_weights),
            "target": lambda: self._through(self._target_weights()),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "ema": self.ema.state_dict(),
            "phase_weights": self.phase_weights,
            "target": self.target.weights if self.target is not None else {},
            "phase": self.phase,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, whose tensors are whole."""
        averages = self.ema.state_dict()
        for length, average in saved["ema"].items():
            average.update({n: dist.sharded_like(tensor, averages[length][n]) for n, tensor in average.items()})
        self.ema.load_state_dict(saved["ema"])
        own = self.network.state_dict()
        self.phase_weights = {name: tensor.to(own[name].device) for name, tensor in saved["phase_weights"].items()}
        if self.target is not None:
            self.target.load(saved["target"])
        self.phase = saved["phase"]

    def _target_weights(self) -> dict[str, Tensor]:
        if self.target is None:
            name = type(self.objective).__name__
            raise ValueError(f"{name} asks a target network, but states no `target_decay`: none is kept")
        return self.target.weights

    def _through(self, weights: dict[str, Tensor]) -> Passes:
        self._refuse_sharded()

        def network(*args: Any) -> Tensor:
            return torch.func.functional_call(self.network, weights, args)

        return Passes(network, self.derivative, self.plan.precision)

    def _refuse_sharded(self) -> None:
        if self.plan.sharded:  # fsdp spreads the weights that a copy would be made of
            raise ValueError("params.yaml, train.parallel: fsdp keeps no network of averaged weights: set it to ddp")
