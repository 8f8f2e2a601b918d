"""The student as an objective sees it: queries in, values and total derivatives out (arXiv 2507.03738, Algorithm 1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from facm.derivative import total_derivative
from facm.point import Answers, Network, Query


class Student:
    """`F_theta(*queries)` -> one answer per query, in order: F, or (F, dF_dt) where the query has dx.

    F has a graph where `query.grad`; dF_dt never has one. While the network is in train mode, every query is answered
    from random numbers seeded by `seed`, so that all passes of a step share their dropout masks; the global generators
    are left as they were. Paper: not said. Published code: saves and restores the state of the CUDA generator.

    Args:
        network: F(x, t, y, r).
        method: dual | func, see `facm.derivative.total_derivative`.
        seed: of the dropout masks; the training loop sets one per step.
        averaged: the same network with averaged weights, for queries of "ema".
    """

    def __init__(
        self, network: Network, method: str = "dual", seed: int = 0, *, averaged: Network | None = None
    ) -> None:
        self.network, self.method, self.seed, self.averaged = network, method, seed, averaged

    def __call__(self, *queries: Query) -> Answers:
        """Answer several queries of one step."""
        return tuple(self._answer(query) for query in queries)

    def frozen(self, of: str = "student") -> Network:
        """F(x, t, y, r) without a graph, with the masks of this step."""
        return lambda x, t, y, r=None: self(Query(x, t, y, r, grad=False, of=of))[0]

    def _network(self, of: str) -> Network:
        if of == "ema" and self.averaged is not None:
            return self.averaged
        if of != "student":
            raise ValueError(f"a query of '{of}': only student and, where there is an average, ema can answer")
        return self.network

    def _answer(self, query: Query) -> Any:
        graph = torch.is_grad_enabled() and query.grad and query.of == "student"
        network = self._network(query.of)
        with torch.set_grad_enabled(graph), self._same_masks(query.x.device):
            if query.dx is None:
                return network(query.x, query.t, query.y, query.r)
            return total_derivative(
                network,
                query.x,
                query.t,
                query.y,
                query.r,
                dx=query.dx,
                dt=0.0 if query.dt is None else query.dt,
                dr=query.dr,
                method=self.method,
            )

    @contextmanager
    def _same_masks(self, device: torch.device) -> Iterator[None]:
        """Seed the generators of the CPU and of `device` for one pass, and put them back afterwards."""
        if not getattr(self.network, "training", False):
            yield
            return
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            torch.manual_seed(self.seed)
            yield
