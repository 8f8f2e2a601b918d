"""Averages of weights: power functions, those of any length made afterwards (Karras et al. 2024, EDM2), and targets.

An average has a length sigma_rel, the standard deviation of its weights in time as a share of the training so far; the
weights grow as step^gamma. Formulas and solver: NVlabs/edm2, training/phema.py.

Published code (FACM's) uses ema_pytorch, whose decay counts one step more ((1 - 1/(k+1))^(gamma+1)) and whose synthesis
does not let the weights sum to 1, stores snapshots in float16 and mixes in whatever lies in the folder. Here: EDM2's
decay (`offset=1` gives the other), weights that sum to 1 (`normalize=False`), snapshots as they are, and only those
that are not later than the wanted step.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

Array = NDArray[np.floating[Any]]

Snapshot = tuple[int, float, "Path | Mapping[str, Tensor]"]
"""(step, sigma_rel, state or its safetensors file) of one average at one step."""


@cache
def gamma(sigma_rel: float) -> float:
    """The exponent of an average of length sigma_rel, the largest root of

        (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2,

    sigma_rel in (0, 12^-1/2), about (0, 0.2887), else ValueError; at the upper end gamma is 0.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"params.yaml, ema.sigma_rel: {sigma_rel!r} must lie between 0 and {12**-0.5:.4f}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def beta(step: int, sigma_rel: float, offset: int = 0) -> float:
    """The decay (1 - 1 / (k + offset))^(gamma + 1) of the update after step k = 1, 2, ...

    With offset 0 the first update copies. offset 1 is ema_pytorch's KarrasEMA, which FACM used.
    """
    if step < 1:
        raise ValueError(f"step {step}: the first update comes after step 1")
    return (1 - 1 / (step + offset)) ** (gamma(sigma_rel) + 1)


class PowerEMA:
    """Power-function averages of one network's state, one for each length in `sigma_rels` (`gamma`); `offset`: see
    `beta`.

    They start at `state`, on its devices. Floating-point tensors are averaged, in at least float32; others are copied.
    Constant buffers stay bit for bit what they are.
    """

    def __init__(self, state: Mapping[str, Tensor], sigma_rels: Sequence[float], *, offset: int = 0) -> None:
        for sigma_rel in sigma_rels:
            gamma(sigma_rel)  # raises outside the range
        self.offset = offset
        self.averages = {sigma_rel: _copied(state) for sigma_rel in sigma_rels}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor], step: int) -> None:
        """Add the state after optimizer step `step` (from 1): average <- beta average + (1 - beta) state.

        Raises KeyError where the state lacks a tensor of the averages.
        """
        state = _plain(state)
        for sigma_rel, average in self.averages.items():
            _lerp(average, state, 1 - beta(step, sigma_rel, self.offset))

    def weights(self, sigma_rel: float) -> dict[str, Tensor]:
        """The average of length sigma_rel as it is now: the live tensors; ValueError where none is kept."""
        if sigma_rel not in self.averages:
            kept = ", ".join(map(str, self.averages))
            raise ValueError(f"params.yaml, ema.sigma_rel: {sigma_rel!r} is not among ema.sigma_rels ({kept})")
        return dict(self.averages[sigma_rel])

    def state_dict(self) -> dict[float, dict[str, Tensor]]:
        """What a resumed run needs: the averages by sigma_rel."""
        return {sigma_rel: dict(average) for sigma_rel, average in self.averages.items()}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[float, Mapping[str, Tensor]]) -> None:
        """Go on from a saved state_dict; ValueError for other lengths or other tensors than this one's."""
        if list(saved) != list(self.averages):
            raise ValueError(f"saved averages have sigma_rels {list(saved)}, params.yaml has {list(self.averages)}")
        for sigma_rel, average in self.averages.items():
            if saved[sigma_rel].keys() != average.keys():
                raise ValueError(f"saved average {sigma_rel}: other tensors than the network's")
            for name, tensor in average.items():
                tensor.copy_(saved[sigma_rel][name])


class TargetEMA:
    """The weights of a target network, which follow the trained ones with a constant decay m, 0 to below 1.

        avg <- m avg + (1 - m) theta    after every optimizer step, from the first weights on

    Consistency distillation has m = mu (arXiv 2303.01469, Algorithm 2), TRACT's self-teacher m = 0.5 (arXiv 2303.04248,
    apple/ml-tract, tc_distill.py: `sema`). It is a part of the loss and no result: nothing is sampled from it, and no
    snapshots of it are kept.

    It starts at `state`, on its devices, whose tensors are whole: not for fsdp. Floating-point tensors follow, in at
    least float32; others are copied. Constant buffers stay bit for bit what they are; with decay 0 the weights are
    those of the network. `weights` are the live tensors by name.
    """

    def __init__(self, state: Mapping[str, Any], decay: float) -> None:
        self.decay = decay
        self.weights = _copied(state)

    @torch.no_grad()
    def update(self, state: Mapping[str, Any]) -> None:
        """Add the state after an optimizer step; KeyError where it lacks a tensor of the target."""
        _lerp(self.weights, _plain(state), 1 - self.decay)

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from saved weights; ValueError for other tensors than this one's."""
        if saved.keys() != self.weights.keys():
            raise ValueError("saved target network: other tensors than the network's")
        for name, tensor in self.weights.items():
            tensor.copy_(saved[name])


def synthesize(
    snapshots: Sequence[Snapshot], step: int, sigma_rel: float, *, normalize: bool = True
) -> dict[str, Tensor]:
    """The weights that an average of length sigma_rel would have had at `step`, from stored averages.

    One snapshot is in memory at a time; sums run in float64.

    Args:
        snapshots: stored averages, best of two lengths and of many steps; those after `step` are left out.
        normalize: coefficients sum to 1 (EDM2); False: as the least squares gives them (ema_pytorch).

    Returns:
        State dict with the snapshots' dtypes; tensors that are not floating-point come from the latest snapshot.

    Raises:
        ValueError: no snapshot up to `step`, two of the same step and length, or different tensors in two of them.
    """
    used = sorted((s for s in snapshots if s[0] <= step), key=lambda s: s[:2])
    if not used:
        raise ValueError(f"no EMA snapshot up to step {step}, there are steps {sorted({s[0] for s in snapshots})}")
    w = coefficients([s[:2] for s in used], step, sigma_rel, normalize=normalize)
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    first: set[str] = set()
    for (at, length, source), w_i in zip(used, w.tolist(), strict=True):
        names = set()
        for name, tensor in _tensors(source):
            names.add(name)
            dtypes[name] = tensor.dtype
            sums[name] = sums.get(name, 0.0) + w_i * tensor.double() if tensor.is_floating_point() else tensor
        first = first or names
        if names != first:
            raise ValueError(f"EMA snapshot of step {at}, sigma_rel {length}: other tensors than in the first one")
    return {name: tensor.to(dtypes[name]) for name, tensor in sums.items()}


def coefficients(
    profiles: Sequence[tuple[int, float]], step: int, sigma_rel: float, *, normalize: bool = True
) -> Array:
    """w, (N,) float64, that minimises the L2 distance of sum_i w_i p_i to the wanted profile p.

    Solves A w = b, A_ij = <p_i, p_j>, b_i = <p_i, p>, as phema.py does.

    Args:
        profiles: (step, sigma_rel) of each stored average, none later than `step`; ValueError where two are equal.
        normalize: divide w by its sum.
    """
    if len(set(profiles)) < len(profiles):
        raise ValueError("two EMA snapshots have the same step and sigma_rel: the folder mixes two runs")
    t = np.array([at for at, _ in profiles], dtype=np.float64)
    g = np.array([gamma(length) for _, length in profiles])
    A = inner(t[:, None], g[:, None], t[None, :], g[None, :])
    b = inner(t, g, np.array(float(step)), np.array(gamma(sigma_rel)))
    w: Array = np.linalg.solve(A, b)
    return w / w.sum() if normalize else w


def inner(t_a: Array, g_a: Array, t_b: Array, g_b: Array) -> Array:
    """<p_a, p_b>, the integral of two profiles p(t') = (g + 1) t'^g / t^(g + 1) on [0, t], broadcast (EDM2).

    <p_a, p_b> = (g_a + 1) (g_b + 1) / (g_a + g_b + 1) * (t_a / t_b)^e / max(t_a, t_b), e = g_b if t_a < t_b else -g_a.
    """
    e = np.where(t_a < t_b, g_b, -g_a)
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * (t_a / t_b) ** e / np.maximum(t_a, t_b)


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, without graphs and without a module's extra state."""
    return {name: tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _local(tensor: Any) -> Tensor:
    """The part of a sharded tensor that this process holds, which shares its memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _copied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Where an average starts: copies, floating-point ones of at least float32."""
    return {name: _at_least_float32(tensor).clone() for name, tensor in _plain(state).items()}


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _lerp(average: Mapping[str, Tensor], state: Mapping[str, Tensor], share: float) -> None:
    """average <- average + share (state - average), in place; what is not floating-point is copied."""
    floating = [name for name, tensor in average.items() if tensor.is_floating_point()]
    new = [_local(state[name]).to(average[name].dtype) for name in floating]
    torch._foreach_lerp_([_local(average[name]) for name in floating], new, share)
    for name in average.keys() - set(floating):
        average[name].copy_(state[name])


def _tensors(source: "Path | Mapping[str, Tensor]") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a snapshot, read one by one."""
    if isinstance(source, Mapping):
        yield from source.items()
        return
    with safe_open(source, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)
