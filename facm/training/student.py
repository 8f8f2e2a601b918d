"""The student as an objective sees it: queries in, values and total derivatives out (arXiv 2507.03738, Algorithm 1)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from facm.flow.interface import Answers, Network, Query
from facm.training.passes import Passes, Question, refuse_backward_hooks

NONE: Mapping[str, Callable[[], Passes]] = MappingProxyType({})


class Student:
    """`F_theta(*queries)` -> one answer per query, in order: F, or (F, dF_dt) with dx, or (F, tokens) with tokens.

    F has a graph where `query.grad`; dF_dt never has one. All queries share the dropout masks of their samples.
    Paper: not said. Published code: saves and restores the state of the CUDA generator.

    Args:
        passes: through the network that is trained.
        wrapped: the same behind DDP, asked where gradients are wanted; None: `passes` itself.
        others: by name ("ema", "phase", "target"), what makes the passes through other weights; called where a query
            asks.

    Attributes:
        keys: (B,) int64 of the dropout masks, set per batch; None: no dropout.
    """

    def __init__(
        self, passes: Passes, *, wrapped: nn.Module | None = None, others: Mapping[str, Callable[[], Passes]] = NONE
    ) -> None:
        self.passes, self.wrapped, self.others = passes, wrapped or passes, others
        self.keys: Tensor | None = None
        self.asked = False

    def begin(self, keys: Tensor | None) -> None:
        """A new backward pass, over a batch with these keys."""
        self.keys, self.asked = keys, False

    def __call__(self, *queries: Query) -> Answers:
        """Answer the queries of one backward pass.

        Raises:
            RuntimeError: gradients are asked in two calls; where processes share the work, they would get out of step.
            ValueError: a query of unknown weights.
        """
        with_graph = [torch.is_grad_enabled() and query.grad and query.of == "student" for query in queries]
        if any(with_graph) and self.asked:
            raise RuntimeError("an objective asked for gradients twice: put all queries with grad in one F_theta call")
        self.asked = self.asked or any(with_graph)
        graphs = iter(self._ask(self.wrapped, [q for q, graph in zip(queries, with_graph, strict=True) if graph]))
        return tuple(
            next(graphs) if graph else self._without_graph(q) for q, graph in zip(queries, with_graph, strict=True)
        )

    def frozen(self, of: str = "student") -> Network:
        """F(x, t, y, r) without a graph, with the masks of the batch."""
        return lambda x, t, y, r=None: self(Query(x, t, y, r, grad=False, of=of))[0]

    @torch.no_grad()
    def _without_graph(self, query: Query) -> Any:
        if query.of in self.others:
            return self._ask(self.others[query.of](), [query])[0]
        if query.of != "student":
            raise ValueError(f"a query of '{query.of}': only {', '.join(['student', *self.others])} can answer here")
        return self._ask(self.passes, [query])[0]

    def _ask(self, passes: nn.Module, queries: list[Query]) -> list[Any]:
        if not queries:
            return []
        if self.passes.derivative == "dual" and any(query.dx is not None for query in queries):
            refuse_backward_hooks(self.passes)
        answers = passes([self._question(query) for query in queries])
        return [answer[0] if len(answer) == 1 else answer for answer in answers]

    def _question(self, query: Query) -> Question:
        keys = self.keys
        if keys is not None and query.rows is not None:
            keys = keys[query.rows]
        if keys is not None and len(query.x) != len(keys):  # [conditional; unconditional] in one call
            keys = keys.repeat(len(query.x) // len(keys))
        if query.dx is None:
            return Question(query.x, query.t, query.y, query.r, keys, tokens=query.tokens)
        dt, dr = _rows(0.0 if query.dt is None else query.dt, query.t), query.dr
        return Question(
            query.x, query.t, query.y, query.r, keys, query.dx, dt, None if dr is None else _rows(dr, query.t)
        )


def _rows(rate: Tensor | float, t: Tensor) -> Tensor:
    """A rate for each sample (B,); a number stands for all."""
    return rate if isinstance(rate, Tensor) else torch.full_like(t, rate)
