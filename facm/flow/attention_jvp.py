"""The tangent of attention, by the definition, in pieces, or by a fused kernel.

S = scale q k^T, P = softmax(S), O = P v; dS = scale (dq k^T + q dk^T), W = P dS - P rowsum(P dS), dO = W v + P dv.
dS is one product [dq q] [k dk]^T of twice the depth. All in all, three times the products of attention itself where O
is wanted, 2.5 times where it is not. Products run in the inputs' dtype (autocast's where it is on), the softmax and
what follows it up to W in float32 at least.
"""

import importlib
import math

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]

PIECE_BYTES = {"cpu": 2**21, "cuda": 2**28}
"""Device -> largest (..., rows, M) matrix, as softmax holds it, that is made at once; three such are alive at most.
That of CPUs is chosen by their caches: with 4 MiB attention took 1.2x, with 32 MiB 1.7x as long. Others: as cuda."""

FLASH_HEADS = (32, 64, 128, 256)
FLASH_ROWS = 32
FLASH_TOKENS = 1024
"""Head dimensions of jvp_flash_attention 0.14; the block whose multiple N must be, because the kernel reads whole
blocks without looking where a head ends; tokens below which the explicit matrices are small enough."""

try:
    importlib.import_module("jvp_flash_attention.jvp_attention")  # enters its kernel into torch.ops
    FLASH_INSTALLED = True
except ImportError:
    FLASH_INSTALLED = False


@torch.no_grad()
def tangent(
    q: Pair, k: Pair, v: Pair, *, scale: float | None = None, primal: bool = True, backend: str | None = None
) -> tuple[Tensor | None, Tensor]:
    """Return O, which is None unless `primal`, and dO, both without a graph.

    Args:
        q: q and dq, (..., N, d).
        k: k and dk, (..., M, d).
        v: v and dv, (..., M, e).
        scale: of S; None: d^(-1/2).
        primal: whether O is wanted.
        backend: "explicit" makes S whole; "chunked" makes pieces of at most PIECE_BYTES, whole heads or rows of one;
            "flash" is the kernel of jvp_flash_attention (MIT); None: `choose`.

    Returns:
        O, dO: (..., N, e), dtype of q, under autocast that of autocast.

    Raises:
        ValueError: unknown backend, or "flash" where it cannot be had.
    """
    pairs = [_cast(q), _cast(k), _cast(v)]
    factor = q[0].shape[-1] ** -0.5 if scale is None else scale
    name = choose(*(x for x, _ in pairs)) if backend is None else backend
    if name == "flash":
        o, d_o = flash(*pairs, scale=factor)
        return (o if primal else None), d_o
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend '{name}': known are {', '.join(BACKENDS)}, flash")
    query, key, value = (_join(a, b) for a, b in [pairs[0][::-1], pairs[1], pairs[2]])
    answer = [x.view(*q[0].shape[:-1], -1) for x in BACKENDS[name](query.mul_(factor), key, value, primal)]
    return (answer[1] if primal else None), answer[0]


def choose(q: Tensor, k: Tensor, v: Tensor) -> str:
    """Name the backend for these shapes, dtypes and device: flash, else explicit if it is one piece, else chunked."""
    if q.shape[-2] >= FLASH_TOKENS and flash_misfit(q, k, v) is None:
        return "flash"
    groups, rows = piece(q, k)
    return "explicit" if groups * rows >= q.shape[:-1].numel() else "chunked"


def explicit(query: Tensor, key: Tensor, value: Tensor, primal: bool) -> tuple[Tensor, ...]:
    """Return dO, and O if `primal`: (G, N, e).

    Args:
        query: scale [dq, q], (G, N, 2 d).
        key: [k, dk], (G, M, 2 d).
        value: [v, dv], (G, M, 2 e).
        primal: whether O is wanted.
    """
    d, e, dtype = query.shape[-1] // 2, value.shape[-1] // 2, _softmax_dtype(query)
    v, dv = value[..., :e], value[..., e:]
    P = torch.softmax(torch.bmm(query[..., d:], key[..., :d].mT), dim=-1, dtype=dtype)
    W = torch.bmm(query, key.mT).to(dtype).mul_(P)
    W = W.addcmul_(P, W.sum(-1, keepdim=True), value=-1).to(v.dtype)
    P = P.to(v.dtype)
    d_o = torch.bmm(P, dv).baddbmm_(W, v)
    return (d_o, torch.bmm(P, v)) if primal else (d_o,)


def chunked(query: Tensor, key: Tensor, value: Tensor, primal: bool) -> tuple[Tensor, ...]:
    """Return what `explicit` returns, made a piece at a time."""
    (total, num, _), (groups, rows) = query.shape, piece(query, key)
    answer = tuple(value.new_empty(total, num, value.shape[-1] // 2) for _ in range(1 + primal))
    for head in range(0, total, groups):
        heads = slice(head, head + groups)
        for row in range(0, num, rows):
            place = heads, slice(row, row + rows)
            for whole, part in zip(answer, explicit(query[place], key[heads], value[heads], primal), strict=True):
                whole[place] = part
    return answer


BACKENDS = {"explicit": explicit, "chunked": chunked}


def piece(q: Tensor, k: Tensor) -> tuple[int, int]:
    """Return how many heads, and how many of their rows, make a matrix of at most PIECE_BYTES, one row at least."""
    row = k.shape[-2] * _softmax_dtype(q).itemsize
    size = PIECE_BYTES.get(q.device.type, PIECE_BYTES["cuda"])
    rows = min(q.shape[-2], max(1, size // row))
    return max(1, size // (row * rows)), rows


def flash(q: Pair, k: Pair, v: Pair, *, scale: float) -> tuple[Tensor, Tensor]:
    """Return O and dO by the forward kernel of jvp_flash_attention, without a matrix of N x N.

    Raises:
        ValueError: it does not take these tensors, or is not installed.
    """
    misfit = flash_misfit(q[0], k[0], v[0])
    if misfit is not None:
        raise ValueError(f"attention backend 'flash': {misfit}; use explicit, chunked, or None to choose")
    tensors = [x.contiguous() for x in [q[0], k[0], v[0], q[1], k[1], v[1]]]
    no_mask, dropout, seed, causal, warp_specialize, mask_type = q[0].new_empty(0), 0.0, 0, False, False, 0
    o, d_o, _ = torch.ops.jvp_flash_attention.attn_fwd_dual_triton(
        *tensors, no_mask, scale, dropout, seed, causal, warp_specialize, mask_type
    )
    return o, d_o


def flash_misfit(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Say why `flash` cannot be used; None: it can. In float32 its products would be TF32."""
    got = f"got {tuple(q.shape)} {q.dtype} on {q.device.type}"
    if not FLASH_INSTALLED:
        return "the package jvp_flash_attention is not installed (extra flash-jvp)"
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return f"{got}, it needs bfloat16 or float16 on cuda"
    if q.ndim != 4 or not q.shape == k.shape == v.shape:
        return f"{got} with k {tuple(k.shape)} and v {tuple(v.shape)}, it needs one shape (B, heads, N, d)"
    if q.shape[-1] not in FLASH_HEADS or q.shape[-2] % FLASH_ROWS:
        return f"{got}, it needs d in {FLASH_HEADS} and N a multiple of {FLASH_ROWS}"
    return None


def _cast(pair: Pair) -> Pair:
    """Both in the dtype in which autocast runs products, if it is on; float64 stays."""
    device = pair[0].device.type
    if pair[0].dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return pair
    dtype = torch.get_autocast_dtype(device)
    return pair[0].to(dtype), pair[1].to(dtype)


def _softmax_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _join(a: Tensor, b: Tensor) -> Tensor:
    """[a, b], leading dimensions merged: (G, N, 2 d)."""
    return torch.cat([a, b], dim=-1).reshape(math.prod(a.shape[:-2]), a.shape[-2], -1)
