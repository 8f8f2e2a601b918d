"""A network's evaluations in a training step: `Passes` at queries, `Student` as an objective sees it.

Passes through one network are one module, dual numbers inside, because torch.compile, activation checkpointing, DDP and
FSDP2 are applied to modules. `Plan` says how a step is computed; apart from `precision` nothing in it changes a result
beyond rounding.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facm.flow.derivative import at_least_float32, total_derivative
from facm.flow.interface import Answers, Network, Query
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


class Passes(nn.Module):
    """Evaluates one network at queries: F, or (F, dF_dt), or (F, tokens) each, in float32 at least.

    Args:
        network: F(x, t, y, r, key), a module or a function.
        derivative: dual | func, see `facm.flow.derivative.total_derivative`.
        precision: see `Plan`.
    """

    def __init__(self, network: Any, derivative: str = "dual", precision: str = "float32") -> None:
        super().__init__()
        self.network, self.derivative, self.dtype = network, derivative, DTYPES[precision]

    def forward(self, queries: Sequence[Query]) -> list[Any]:
        """One answer per query, in order; gradients flow to the weights where grad is enabled, never through dF_dt."""
        with torch.autocast(queries[0].x.device.type, self.dtype, enabled=self.dtype is not None):
            return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Any:
        x, t, y, r, key = query.x, query.t, query.y, query.r, query.key
        if query.tokens:
            if query.dx is not None or not hasattr(self.network, "with_tokens"):
                name = type(self.network).__name__
                raise ValueError(f"tokens go without a derivative and with a network that has a projector, got {name}")
            F, projected = _keyed(self.network.with_tokens, key, x, t, y, r)
            return at_least_float32(F), at_least_float32(projected)
        if query.dx is None:
            return at_least_float32(_keyed(self.network, key, x, t, y, r))
        network, dt = functools.partial(_keyed, self.network, key), 0.0 if query.dt is None else query.dt
        F, dF_dt = total_derivative(network, x, t, y, r, dx=query.dx, dt=dt, dr=query.dr, method=self.derivative)
        return at_least_float32(F), dF_dt


def _keyed(network: Any, key: Tensor | None, x: Any, t: Any, y: Any, r: Any) -> Any:
    """A network without dropout need not know of keys."""
    return network(x, t, y, r) if key is None else network(x, t, y, r, key)


Others = Mapping[str, Callable[[], Passes]]
NO_OTHERS: Others = MappingProxyType({})


class Student:
    """F_theta as an objective sees it: queries in, as many answers out, in order (arXiv 2507.03738, Algorithm 1).

    F has a graph where `query.grad`; dF_dt never has one. All queries share the dropout masks of their samples.
    Paper: not said. Published code: saves and restores the state of the CUDA generator.

    Args:
        passes: through the network that is trained.
        wrapped: the same behind DDP, for answers with a graph; None: `passes` itself.
        others: by name ("ema", "phase", "target"), what makes the passes through other weights; called where a query
            names them.

    Attributes:
        keys: (B,) int64 of the dropout masks, set per batch; None: no dropout.
    """

    def __init__(self, passes: Passes, *, wrapped: nn.Module | None = None, others: Others = NO_OTHERS) -> None:
        self.passes, self.wrapped, self.others = passes, wrapped or passes, others
        self.keys: Tensor | None = None
        self.has_graph = False

    def begin(self, keys: Tensor | None) -> None:
        """Begin another backward pass, over a batch with these keys."""
        self.keys, self.has_graph = keys, False

    def __call__(self, *queries: Query) -> Answers:
        """Answer the queries of one backward pass.

        Raises:
            RuntimeError: a second call with gradients; where processes share the work, they would get out of step.
            ValueError: a query of unknown weights.
        """
        queries = tuple(query._replace(key=self._key(query)) for query in queries)
        graph = [torch.is_grad_enabled() and query.grad and query.of == "student" for query in queries]
        if any(graph) and self.has_graph:
            raise RuntimeError("an objective asked for gradients twice: put all queries with grad in one F_theta call")
        self.has_graph = self.has_graph or any(graph)
        with_graph = iter(self._evaluate(self.wrapped, [q for q, wanted in zip(queries, graph, strict=True) if wanted]))
        return tuple(
            next(with_graph) if wanted else self._without_graph(query)
            for query, wanted in zip(queries, graph, strict=True)
        )

    def frozen(self, of: str = "student") -> Network:
        """F(x, t, y, r) without a graph, with the masks of the batch."""
        return lambda x, t, y, r=None: self(Query(x, t, y, r, grad=False, of=of))[0]

    @torch.no_grad()
    def _without_graph(self, query: Query) -> Any:
        if query.of in self.others:
            return self._evaluate(self.others[query.of](), [query])[0]
        if query.of != "student":
            raise ValueError(f"a query of '{query.of}': only {', '.join(['student', *self.others])} can answer here")
        return self._evaluate(self.passes, [query])[0]

    def _evaluate(self, passes: nn.Module, queries: list[Query]) -> list[Any]:
        if not queries:
            return []
        if self.passes.derivative == "dual" and any(query.dx is not None for query in queries):
            refuse_backward_hooks(self.passes)
        answers: list[Any] = passes(queries)
        return answers

    def _key(self, query: Query) -> Tensor | None:
        """The dropout keys of a query's rows."""
        keys = self.keys
        if keys is not None and query.rows is not None:
            keys = keys[query.rows]
        if keys is not None and len(query.x) != len(keys):  # [conditional; unconditional] in one call
            keys = keys.repeat(len(query.x) // len(keys))
        return keys


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
