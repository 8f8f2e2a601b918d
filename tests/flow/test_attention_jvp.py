"""Attention's tangent: its backends against torch.func.jvp and each other, the choice, memory, FLOPs, precision."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from facm.flow import attention_jvp
from facm.flow.attention_jvp import BACKENDS, PIECE_BYTES, Pair, choose, piece, tangent
from facm.flow.dual import Dual
from facm.networks.backbones import build

B, HEADS, N, M, D, E = 2, 3, 10, 7, 8, 4


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(n: int = N, m: int = M, d: int = D, e: int = E) -> tuple[Pair, Pair, Pair]:
    """q, k, v with their tangents, as a network has them: heads behind tokens in memory."""
    shapes = [(B, n, HEADS, d), (B, m, HEADS, d), (B, m, HEADS, e)]
    tensors = [normal(*shape, seed=i).transpose(1, 2) for i, shape in enumerate(2 * shapes)]
    return (tensors[0], tensors[3]), (tensors[1], tensors[4]), (tensors[2], tensors[5])


def primals(*of: Pair) -> list[Tensor]:
    return [x for x, _ in of]


def relative_error(a: Tensor | None, b: Tensor) -> float:
    assert a is not None
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_equals_func_jvp(backend: str, scale: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIECE_BYTES, "cpu", 3 * M * 8)
    q, k, v = pairs()
    with sdpa_kernel(SDPBackend.MATH):
        exact = torch.func.jvp(
            lambda *x: F.scaled_dot_product_attention(*x, scale=scale), tuple(primals(q, k, v)), (q[1], k[1], v[1])
        )
    for o, expected in zip(tangent(q, k, v, scale=scale, backend=backend), exact, strict=True):
        assert o is not None and o.shape == expected.shape and relative_error(o, expected) <= 1e-14
    o, d_o = tangent(q, k, v, scale=scale, backend=backend, primal=False)
    assert o is None and relative_error(d_o, exact[1]) <= 1e-14


@pytest.mark.parametrize("rows", [1, 3, N, 2 * N, 5 * N, 100 * N], ids=lambda rows: f"{rows} rows")
def test_chunks_of_rows_and_of_heads_equal_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIECE_BYTES, "cpu", rows * M * 8)
    q, k, v = pairs()
    assert piece(q[0], k[0]) == (max(1, rows // N), min(rows, N))
    assert choose(*primals(q, k, v)) == ("explicit" if rows >= B * HEADS * N else "chunked")
    whole = tangent(q, k, v, backend="explicit")
    for backend in ["chunked", None]:
        for one, other in zip(tangent(q, k, v, backend=backend), whole, strict=True):
            assert other is not None and relative_error(one, other) <= 1e-15


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that an operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if isinstance(answer, Tensor):
            self.nbytes = max(self.nbytes, answer.numel() * answer.element_size())
        return answer


def test_no_chunk_is_larger_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = pairs(n=64, m=64, d=4, e=4)
    packed, matrix = 2 * q[0].numel() * 8, B * HEADS * 64 * 64 * 8
    for limit in [matrix // 6, matrix // 12]:  # a head, half a head
        monkeypatch.setitem(PIECE_BYTES, "cpu", limit)
        with Largest() as whole:
            tangent(q, k, v, backend="explicit")
        with Largest() as pieces:
            tangent(q, k, v)
        assert whole.nbytes == matrix and pieces.nbytes == max(limit, packed) < matrix


def test_nothing_has_a_graph() -> None:
    q, k, v = pairs()
    answers = tangent((q[0].clone().requires_grad_(), q[1]), k, (v[0].clone().requires_grad_(), v[1]))
    assert not any(x is None or x.requires_grad for x in answers)


def test_softmax_and_row_sums_are_float32_where_products_are_bfloat16() -> None:
    """500 keys of almost equal weight: sums in bfloat16 would be off by percents."""
    q, k, v = ((x.bfloat16(), dx.bfloat16()) for x, dx in pairs(m=500, d=16))
    exact = tangent(*((x.double(), dx.double()) for x, dx in [q, k, v]), scale=0.01)
    for o, expected in zip(tangent(q, k, v, scale=0.01), exact, strict=True):
        assert o is not None and expected is not None
        assert o.dtype == torch.bfloat16 and relative_error(o, expected) <= 8e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_float32_and_mixtures_but_not_float64(backend: str) -> None:
    q, k, v = pairs()
    exact = tangent(q, k, v)
    single = [(x.float(), dx.float()) for x, dx in [q, k]] + [(v[0].bfloat16(), v[1].bfloat16())]
    with torch.autocast("cpu", torch.bfloat16):
        for answer, dtype, error in [
            (tangent(*single, backend=backend), torch.bfloat16, 2e-2),
            (tangent(q, k, v, backend=backend), torch.float64, 1e-15),
        ]:
            for o, expected in zip(answer, exact, strict=True):
                assert o is not None and expected is not None
                assert o.dtype == dtype and relative_error(o, expected) <= error


def test_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown attention backend 'triton': known are explicit, chunked, flash"):
        tangent(*pairs(), backend="triton")


def fake(*shape: int, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> Tensor:
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    "q, backend",
    [
        (fake(2, 4, 1024, 64), "flash"),
        (fake(2, 4, 1024, 64, dtype=torch.float16), "flash"),
        (fake(2, 4, 992, 64), "explicit"),
        (fake(2, 4, 1040, 64), "explicit"),
        (fake(2, 4, 1024, 72), "explicit"),
        (fake(2, 4, 1024, 64, dtype=torch.float32), "explicit"),
        (fake(64, 16, 1024, 72), "chunked"),
        (fake(64, 16, 256, 64), "explicit"),
        (fake(2, 4, 1024, 64, device="cpu"), "chunked"),
        (fake(4, 4, 64, 64, device="cpu"), "explicit"),
    ],
    ids=str,
)
def test_choice_follows_device_dtype_and_shape(q: Tensor, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_jvp, "FLASH_INSTALLED", True)
    assert choose(q, q, q) == backend
    monkeypatch.setattr(attention_jvp, "FLASH_INSTALLED", False)
    assert choose(q, q, q) == ("explicit" if backend == "flash" else backend)


@pytest.mark.parametrize(
    "q, k, why",
    [
        (fake(2, 4, 64, 64, dtype=torch.float32), None, "bfloat16 or float16 on cuda"),
        (fake(2, 4, 64, 64, device="cpu"), None, "on cpu, it needs .* on cuda"),
        (fake(2, 4, 64, 64), fake(2, 4, 32, 64), r"needs one shape \(B, heads, N, d\)"),
        (fake(2, 4, 64, 72), None, r"needs d in \(32, 64, 128, 256\) and N a multiple of 32"),
        (fake(2, 4, 66, 64), None, "needs d in .* and N a multiple of 32"),
    ],
    ids=["dtype", "device", "cross", "head", "tokens"],
)
def test_flash_says_why_it_cannot_be_used(q: Tensor, k: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    k = q if k is None else k
    monkeypatch.setattr(attention_jvp, "FLASH_INSTALLED", True)
    with pytest.raises(ValueError, match=f"attention backend 'flash': got .*{why}.*use explicit, chunked"):
        tangent((q, q), (k, k), (k, k), backend="flash")
    monkeypatch.setattr(attention_jvp, "FLASH_INSTALLED", False)
    with pytest.raises(ValueError, match=r"package jvp_flash_attention is not installed \(extra flash-jvp\)"):
        tangent((q, q), (k, k), (k, k), backend="flash")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.skipif(not attention_jvp.FLASH_INSTALLED, reason="needs the package jvp_flash_attention")
@pytest.mark.parametrize("head", attention_jvp.FLASH_HEADS)
@pytest.mark.parametrize("num", [64, 1024])
def test_flash_equals_explicit_on_a_gpu(num: int, head: int) -> None:
    exact = tangent(*((x.cuda(), dx.cuda()) for x, dx in pairs(num, num, head, head)))
    half = [(x.cuda().bfloat16(), dx.cuda().bfloat16()) for x, dx in pairs(num, num, head, head)]
    for backend in ["explicit", "chunked", "flash"]:
        for o, expected in zip(tangent(*half, backend=backend), exact, strict=True):
            assert expected is not None and relative_error(o, expected) <= 2e-2, backend


def lightningdit() -> tuple[nn.Module, tuple[Dual, Dual, Tensor], float]:
    """LightningDiT of hidden 256 and depth 2 on 256 tokens, its arguments, and a = N/(6 D + N)."""
    constants = {"patch_size": 1, "hidden": 256, "depth": 2, "heads": 4}
    network = build("lightningdit", constants, shape=(4, 16, 16), num_classes=4, auxiliary=False, dropout=0.0)
    for i, weight in enumerate(network.parameters()):
        weight.data = normal(*weight.shape, seed=100 + i).float() / max(weight.shape[-1], 4) ** 0.5
    x, dx = normal(2, 4, 16, 16, seed=1).float(), normal(2, 4, 16, 16, seed=2).float()
    t = normal(2, seed=3).sigmoid().float()
    return network, (Dual(x, dx), Dual(t, torch.ones(2)), torch.tensor([0, 4])), 256 / (6 * 256 + 256)


def flops(network: nn.Module, *args: Any, grad: bool) -> int:
    with torch.set_grad_enabled(grad), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*args)
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [2**30, 2**20], ids=["explicit", "chunked"])
def test_flops_are_two_forwards_and_the_second_term_of_attention(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIECE_BYTES, "cpu", size)
    network, (x, t, y), a = lightningdit()
    forward = flops(network, x.primal, t.primal, y, grad=False)
    with torch.no_grad():
        outside = Dual(x.primal, x.tangent), Dual(t.primal, t.tangent), y
    assert 2 * forward < flops(network, *outside, grad=False) <= (2 + a) * forward * 1.01
    assert 2 * forward < flops(network, x, t, y, grad=True) <= (2 + 1.5 * a) * forward * 1.01


def test_network_in_chunks_compiles_whole_and_equals_the_explicit_one(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = pairs()

    def attend(q: Tensor, dq: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        answer = F.scaled_dot_product_attention(Dual(q, dq) * scale, Dual(*k), Dual(*v))
        return answer.primal, answer.tangent

    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    expected = attend(*q, scale)
    monkeypatch.setitem(PIECE_BYTES, "cpu", 4 * N * M * 8)
    assert choose(*primals(q, k, v)) == "chunked"
    value, derivative = torch.compile(attend, fullgraph=True, backend="aot_eager")(*q, scale)
    assert relative_error(value, expected[0]) <= 1e-15 and relative_error(derivative, expected[1]) <= 1e-15
    gradients = [torch.autograd.grad(o.square().sum(), scale)[0] for o in [value, expected[0]]]
    assert relative_error(*gradients) <= 1e-14
