"""All passes of a training step through one network, as one module: tensors in, tensors out, dual numbers inside.

It is what torch.compile, activation checkpointing, DDP and FSDP2 are applied to. `Plan` says how a step is computed;
apart from `precision` nothing in it changes a result beyond rounding.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facm.flow.derivative import total_derivative
from facm.runtime import dist

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """How a step is computed; the fields are keys of `train` in params.yaml.

    Attributes:
        precision: float32 | bfloat16 (autocast; weights, times, norms' statistics, softmax and targets stay float32).
        compile: torch.compile, block by block where the network has `blocks`, whole where it has none.
        checkpoint: keep block inputs only and recompute the rest in the backward pass.
        accumulate: micro-batches per step and process.
        lean: a backward pass per part of the objective, which halves the memory of activations.
        parallel: ddp | fsdp, how several processes share one network.
    """

    precision: str = "float32"
    compile: bool = False
    checkpoint: bool = False
    accumulate: int = 1
    lean: bool = False
    parallel: str = "ddp"

    @property
    def sharded(self) -> bool:
        """Whether weights are spread over processes."""
        return self.parallel == "fsdp" and dist.world_size() > 1


EAGER = Plan()


class Question(NamedTuple):
    """What a network is asked once; see `facm.flow.interface.Query`."""

    x: Tensor  # (B, ...)
    t: Tensor  # (B,)
    y: Tensor | None  # (B,)
    r: Tensor | None  # (B,)
    key: Tensor | None = None  # (B,) of the dropout masks
    dx: Tensor | None = None  # like x; None: no derivative
    dt: Tensor | None = None  # (B,)
    dr: Tensor | None = None  # (B,)
    tokens: bool = False


class Passes(nn.Module):
    """Answers questions with one network, each by F or (F, dF_dt) or (F, tokens), in float32 at least.

    Args:
        network: F(x, t, y, r, key), a module or a function.
        derivative: dual | func, see `facm.flow.derivative.total_derivative`.
        precision: see `Plan`.
    """

    def __init__(self, network: Any, derivative: str = "dual", precision: str = "float32") -> None:
        super().__init__()
        self.network, self.derivative, self.dtype = network, derivative, DTYPES[precision]

    def forward(self, questions: Sequence[Question]) -> list[tuple[Tensor, ...]]:
        """Answer in order; gradients flow to the weights where grad is enabled, never through a dF_dt."""
        device = questions[0].x.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype is not None):
            return [self._answer(*question) for question in questions]

    def _answer(
        self, x: Tensor, t: Tensor, y: Any, r: Any, key: Any, dx: Any, dt: Any, dr: Any, tokens: bool
    ) -> tuple[Tensor, ...]:
        if tokens:
            if dx is not None or not hasattr(self.network, "with_tokens"):
                name = type(self.network).__name__
                raise ValueError(f"tokens go without a derivative and with a network that has a projector, got {name}")
            F, projected = _keyed(self.network.with_tokens, key, x, t, y, r)
            return _precise(F), _precise(projected)
        if dx is None:
            return (_precise(_keyed(self.network, key, x, t, y, r)),)
        network = functools.partial(_keyed, self.network, key)
        F, dF_dt = total_derivative(network, x, t, y, r, dx=dx, dt=dt, dr=dr, method=self.derivative)
        return _precise(F), dF_dt


def _keyed(network: Any, key: Tensor | None, x: Any, t: Any, y: Any, r: Any) -> Any:
    """A network without dropout need not know of keys."""
    return network(x, t, y, r) if key is None else network(x, t, y, r, key)


def _precise(F: Tensor) -> Tensor:
    return F.to(torch.promote_types(F.dtype, torch.float32))


def prepare(network: nn.Module, plan: Plan, derivative: str = "dual", *, trained: bool = True) -> Passes:
    """Return the passes through a network, on this process's device, checkpointed, compiled and sharded as planned.

    Parameters keep their names and, but for sharding, their identity. DDP is left to `facm.training.step.Step`.

    Args:
        network: a backbone; its weights are in use from now on.
        plan: see `Plan`.
        derivative: see `Passes`.
        trained: whether gradients will be asked; a frozen network is not checkpointed.

    Raises:
        ValueError: a plan that does not fit the network; it names the place.
    """
    blocks = list(getattr(network, "blocks", []))
    if plan.checkpoint and not blocks:
        name = type(network).__name__
        raise ValueError(f"params.yaml, train.checkpoint: {name} has no blocks that could be recomputed: set it false")
    passes = Passes(network, derivative, plan.precision)
    if plan.compile:
        compile_(blocks or [passes])
    if plan.checkpoint and trained:
        for block in blocks:
            recomputed = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            block.forward = recomputed
    if plan.sharded:
        dist.shard(passes, blocks)
    return passes.to(dist.device())


def compile_(modules: Sequence[nn.Module]) -> None:
    """Compile the forward of each module as one graph; a graph break is an error.

    The forward alone, so that the hooks of FSDP2 stay outside and weights keep their names.
    """
    # Teacher and student, plain and dual, each batch size, and for a U-Net 14 kinds of blocks.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 512
    for module in modules:
        module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False)


def refuse_backward_hooks(network: nn.Module) -> None:
    """Raise RuntimeError where a module has a full backward hook, which would never fire on dual numbers."""
    for name, module in network.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise RuntimeError(
                f"module '{name}' has a full backward hook, which never fires when a network runs on dual numbers: "
                "hook the parameters instead (Tensor.register_hook), or set distill.derivative: func in params.yaml"
            )
