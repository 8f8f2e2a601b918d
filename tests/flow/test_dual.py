"""Every dual-number rule against torch.func.jvp in float64, then a network, the refusals, dropout and compile."""

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from facm.flow import dual
from facm.flow.dual import Dual
from facm.networks.backbones import build


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, BIAS, KERNEL = normal(5, 6, seed=1), normal(5, seed=2), normal(3, 4, 3, 3, seed=3)
ROW, CHANNEL, SAME, OTHER = normal(6, seed=4), normal(4, seed=5), normal(2, 4, 6, 6, seed=6), normal(1, 1, 6, seed=7)

FIR = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8])[None, None]

# x, z (2, 4, 6, 6) are Duals, the names in capitals are constants.
CASES: dict[str, Callable[[Any, Any], Any]] = {
    "x + z": lambda x, z: x + z,
    "x + tensor": lambda x, z: x + SAME,
    "tensor + x": lambda x, z: SAME + x,
    "number + x": lambda x, z: 2 + x,
    "x + wider tensor": lambda x, z: x[0, 0] + SAME,
    "x + wider z": lambda x, z: x[:, :1] + z,
    "x - z": lambda x, z: x - z,
    "x - number": lambda x, z: x - 3.5,
    "tensor - x": lambda x, z: SAME - x,
    "number - x": lambda x, z: 1 - x,
    "wider tensor - x": lambda x, z: SAME - x[0, 0],
    "x * z": lambda x, z: x * z,
    "x * x": lambda x, z: x * x,
    "x * wider tensor": lambda x, z: x[0, 0] * SAME,
    "tensor * x": lambda x, z: torch.mul(ROW, x),
    "numpy number * x": lambda x, z: np.float64(1.5) * x,
    "x / z": lambda x, z: x / z,
    "x / tensor": lambda x, z: x / SAME,
    "x / number": lambda x, z: x / 7,
    "tensor / x": lambda x, z: SAME / x,
    "number / wider x": lambda x, z: 1 / x[:1] + SAME,
    "torch.div": lambda x, z: torch.div(x, z) + torch.true_divide(z, x),
    "x ** 2": lambda x, z: x**2,
    "x ** 0": lambda x, z: x**0,
    "x ** 1": lambda x, z: x**1,
    "x ** -1.5": lambda x, z: (x * x + 1).pow(-1.5),
    "x + alpha z": lambda x, z: torch.add(x, z, alpha=0.3) - x.sub(SAME, alpha=2) + torch.add(SAME, z, alpha=3),
    "outer": lambda x, z: torch.outer(x[0, 0, 0], z[0, 0, 1]) + torch.ger(x[0, 0, 0], ROW) + ROW.outer(z[0, 0, 0]),
    "mm": lambda x, z: torch.mm(x[0, 0], z[0, 1]) + x[0, 0].mm(SAME[0, 0]),
    "addcmul": lambda x, z: torch.addcmul(x, z, x, value=0.5) + torch.addcmul(SAME, z, ROW) + x.addcmul(SAME, SAME),
    "addcmul of a narrower x": lambda x, z: torch.addcmul(x[:1, :1], z, x) + torch.addcmul(x[:, :1], ROW, SAME),
    "einsum": lambda x, z: torch.einsum("bchw,bcvw,bchw->bhv", x, z, x) + torch.einsum("bchw,bcvw->bhv", SAME, z),
    "where": lambda x, z: torch.where(SAME > 0, x, z) + torch.where(ROW > 0, 1.0, z) + torch.where(SAME < 1, x, SAME),
    "where of a narrower x": lambda x, z: torch.where(SAME > 0, x[:, :1], 0.0),
    "clamp": lambda x, z: torch.clamp(x, -0.5, 0.5) + z.clamp(min=0.1) + x.clip(max=0.3),
    "maximum": lambda x, z: torch.maximum(x, z) * torch.minimum(SAME, z[:, :1]) + x.maximum(SAME),
    "-x": lambda x, z: -x + torch.neg(x),
    "x @ tensor": lambda x, z: x @ W.T,
    "tensor @ x": lambda x, z: W @ x,
    "x @ z": lambda x, z: x @ z,
    "bmm": lambda x, z: torch.bmm(x.flatten(0, 1), z.flatten(0, 1)),
    **{
        name: (lambda x, z, name=name: getattr(torch, name)(x))
        for name in ["abs", "cos", "exp", "reciprocal", "relu", "sigmoid", "sin", "square", "tanh"]
    },
    **{name: (lambda x, z, name=name: getattr(torch, name)(x * x + 0.5)) for name in ["log", "rsqrt", "sqrt"]},
    "F.silu": lambda x, z: F.silu(x),
    "F.gelu": lambda x, z: F.gelu(x),
    "F.gelu tanh": lambda x, z: F.gelu(x, approximate="tanh"),
    "nn.GELU": lambda x, z: nn.Sequential(nn.GELU("tanh"), nn.SiLU(), nn.ReLU(), nn.Sigmoid(), nn.Tanh())(x),
    "softmax": lambda x, z: torch.softmax(x, 1) + F.softmax(z, dim=-1) + x.softmax(dim=2),
    "softmax dtype": lambda x, z: x.float().softmax(-1, dtype=torch.float64),
    "F.linear": lambda x, z: F.linear(x, W, BIAS),
    "F.linear without bias": lambda x, z: F.linear(x, W),
    "F.conv1d": lambda x, z: F.conv1d(x[0], W[:, :, None].expand(5, 6, 2), BIAS),
    "F.conv2d": lambda x, z: F.conv2d(x, KERNEL, CHANNEL[:3], stride=2, padding=1),
    "F.conv3d": lambda x, z: F.conv3d(x[None], KERNEL[None, :2]),
    "F.conv_transpose2d": lambda x, z: F.conv_transpose2d(x, KERNEL.transpose(0, 1), None, 2, 1),
    "FIR down": lambda x, z: F.conv2d(x, FIR.tile(4, 1, 1, 1), groups=4, stride=2, padding=1),
    "FIR up": lambda x, z: F.conv_transpose2d(x, (4 * FIR).tile(4, 1, 1, 1), groups=4, stride=2, padding=1),
    "F.rms_norm": lambda x, z: F.rms_norm(x, (6,), ROW, 1e-3),
    "torch.rms_norm": lambda x, z: torch.rms_norm(x, (6, 6), SAME[0, 0], 1e-2),
    "F.rms_norm bare": lambda x, z: F.rms_norm(x * 1e-7, (6,)),
    "F.layer_norm": lambda x, z: F.layer_norm(x, (6,), ROW, ROW, 1e-3),
    "F.layer_norm bare": lambda x, z: F.layer_norm(x, (6, 6)),
    "F.group_norm": lambda x, z: F.group_norm(x, 2, CHANNEL, CHANNEL, 1e-3),
    "F.group_norm bare": lambda x, z: F.group_norm(x[:, :, 0], 4),
    "norms by keyword": lambda x, z: (
        F.group_norm(x, num_groups=2, eps=1e-3)
        + F.layer_norm(x, normalized_shape=(6,), weight=ROW)
        + F.rms_norm(x, normalized_shape=(6,), weight=ROW)
    ),
    "nn norms": lambda x, z: nn.Sequential(nn.GroupNorm(2, 4, dtype=x.dtype), nn.LayerNorm(6, dtype=x.dtype))(x),
    "attention": lambda x, z: F.scaled_dot_product_attention(x, z, x * z),
    "attention scaled": lambda x, z: F.scaled_dot_product_attention(x, z, z + 1, scale=0.3),
    "attention to a constant": lambda x, z: F.scaled_dot_product_attention(x, SAME[:, :, :5], SAME[:, :, :5]),
    "attention by keyword": lambda x, z: F.scaled_dot_product_attention(query=x, key=z, value=x),
    "attention of 3 dimensions": lambda x, z: F.scaled_dot_product_attention(x[0], z[0, :, :5], x[0, :, :5, :3]),
    "F.dropout in eval": lambda x, z: F.dropout(x, 0.5, training=False) * nn.Dropout(0.0)(z),
    "cat": lambda x, z: torch.cat([x, SAME, z], dim=1) + torch.concat((z, x, z), 1),
    "stack": lambda x, z: torch.stack([-x, z, SAME], dim=-1),
    "reshape": lambda x, z: x.reshape(2, -1) + torch.reshape(z, (2, -1)) + (x * SAME).view(2, 144),
    "view of a broadcast sum": lambda x, z: (x[:1, :, :, :1] + SAME).view(2, 144),
    "view_as": lambda x, z: x.view_as(z.flatten(1)) + SAME.reshape_as(x.flatten(1)) + z.reshape_as(x.flatten(1)),
    "flatten": lambda x, z: x.flatten(2).unflatten(-1, (4, 9)) + torch.flatten(z, 2).unflatten(2, (4, 9)),
    "permute": lambda x, z: x.permute(0, 2, 3, 1) + torch.permute(z, (0, 2, 3, 1)) + z.movedim(1, -1),
    "transpose": lambda x, z: x.transpose(1, 2) + torch.swapaxes(z, 1, 2),
    "squeeze": lambda x, z: x.unsqueeze(1) * z[:, None] + x.unsqueeze(0).squeeze(0).unsqueeze(1),
    "expand": lambda x, z: x[:1].expand(2, -1, -1, -1) + z[:, :1].expand_as(SAME) + SAME[:1].expand_as(x),
    "repeat": lambda x, z: x.repeat(1, 2, 1, 1) + z.repeat_interleave(2, dim=1),
    "getitem": lambda x, z: x[..., 1:, None] * z[:, 2:3, :, 1:, None] + x[:, [0, 0], :, 1:, None][:, :1],
    "select": lambda x, z: x.select(1, 2) + z.narrow(1, 0, 2)[:, 0] + x.index_select(1, torch.tensor([3]))[:, 0],
    "roll and flip": lambda x, z: torch.roll(x, 1, 2) + z.flip(-1),
    "chunk": lambda x, z: x.chunk(2, dim=1)[0] * torch.chunk(z, 2, dim=1)[1],
    "split": lambda x, z: x.split(2, dim=1)[0] * torch.split(z, [1, 2, 1], 1)[1] + z.tensor_split(2, 1)[0],
    "unbind": lambda x, z: x.unbind(1)[0] * z.unbind(1)[3],
    "iteration": lambda x, z: next(iter(x)) + list(z)[1],
    "sum and mean": lambda x, z: x.sum() * z.mean(dim=(1, 2), keepdim=True) + torch.mean(x, -1, keepdim=True),
    "cumsum": lambda x, z: torch.cumsum(x, 1),
    "pooling": lambda x, z: F.avg_pool2d(x, 2) + F.interpolate(z, scale_factor=0.5, mode="bilinear"),
    "interpolate": lambda x, z: F.interpolate(x, scale_factor=2, mode="nearest"),
    "pad": lambda x, z: F.pad(x, (1, 0, 2, 1), value=3.0) + F.pad(z, (0, 1, 1, 2), mode="reflect"),
    "tile": lambda x, z: torch.tile(x, (1, 2, 1, 1)) + z.tile(2, 1, 1) + F.adaptive_avg_pool2d(x, 1).tile(1, 2, 6, 6),
    "pixel_shuffle": lambda x, z: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2) + z,
    "dtypes": lambda x, z: x.half().double() + x.bfloat16().double() + z.to(torch.float32).type_as(x) + z.float(),
    "dtype of another": lambda x, z: x.to(z.float()).to(torch.float64) + SAME.type_as(x),
    "copies": lambda x, z: x.clone() + x.transpose(1, 2).contiguous().transpose(1, 2),
    "sizes": lambda x, z: x * x.size(1) * x.dim() * x.numel() * x.ndim * x.shape[2] * len(z.stride()),
    "questions": lambda x, z: x if x.is_contiguous() and x.is_floating_point() and x.dtype == z.dtype else -x,
    "constants like": lambda x, z: x * torch.ones_like(x) + torch.zeros_like(z) + x * torch.full_like(x, 2.0),
    "noise like": lambda x, z: (
        x + sum(torch.zeros_like(f(x)) for f in [torch.empty_like, torch.rand_like, torch.randn_like])
    ),
    "place in a table": lambda x, z: x * torch.tensor([1.0, 2.0, 3.0])[torch.bucketize(z, ROW[:2].sort().values)],
    "new constants": lambda x, z: x + x.new_ones(6) * x.new_full((6,), 2.0) + x.new_zeros(6),
}


def pair(seed: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, z, dx, dz = (normal(2, 4, 6, 6, seed=seed + i) for i in range(4))
    return x, z, dx, dz


def relative_error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm()) if b.norm() else float(a.norm())


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", CASES)
def test_rule_equals_func_jvp(name: str, grad: bool) -> None:
    x, z, dx, dz = pair()
    with sdpa_kernel(SDPBackend.MATH):
        value, tangent = torch.func.jvp(CASES[name], (x, z), (dx, dz))
    with torch.set_grad_enabled(grad):
        answer = CASES[name](Dual(x.clone().requires_grad_(), dx), Dual(z.clone().requires_grad_(), dz))
    assert answer.shape == value.shape and answer.dtype == value.dtype == answer.tangent.dtype
    assert relative_error(answer.primal, value) <= 1e-12
    assert relative_error(answer.tangent, tangent) <= 1e-12
    assert answer.primal.requires_grad == grad and not answer.tangent.requires_grad


def test_every_rule_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[str]()

    class Recorder(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            seen.add(name)
            return super().__getitem__(name)

    monkeypatch.setattr(dual, "RULES", Recorder(dual.RULES))
    x, z, dx, dz = pair()
    for case in CASES.values():
        case(Dual(x, dx), Dual(z, dz))
    assert sorted(set(dual.RULES) - seen) == []


class Toy(nn.Module):
    """RMSNorm, modulation by t, attention with a rotation, SwiGLU, LayerNorm: (B, N, 8), (B,) -> (B, N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 24), nn.Linear(8, 8)
        self.w12, self.w3 = nn.Linear(8, 24), nn.Linear(12, 8)
        self.gain, self.scale, self.bias = (nn.Parameter(torch.empty(8)) for _ in range(3))
        for i, weight in enumerate(self.double().parameters()):
            weight.data = normal(*weight.shape, seed=100 + i) / weight.shape[-1] ** 0.5

    def attention(self, x: Any) -> Any:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        a, b = q.unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack([-b, a], dim=-1).flatten(-2)
        return self.out(F.scaled_dot_product_attention(rotated, k, v).transpose(1, 2).reshape(x.shape))

    def forward(self, x: Any, t: Any) -> Any:
        angles = t[:, None] * torch.arange(1, 4, dtype=t.dtype)
        embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        shift, scale, gate = self.time(embedding).unsqueeze(1).chunk(3, dim=-1)
        x = x + gate * self.attention(torch.rms_norm(x, (8,), self.gain, 1e-6) * (1 + scale) + shift)
        a, b = self.w12(torch.layer_norm(x, (8,), self.scale, self.bias)).chunk(2, dim=-1)
        return x + self.w3(F.silu(a) * b)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return normal(3, 5, 8, seed=20), normal(3, seed=21).sigmoid(), normal(3, 5, 8, seed=22), normal(3, seed=23)


def gradients(network: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value.square().sum(), list(network.parameters())))


def test_network_has_equal_value_tangent_and_gradients_with_and_without_duals() -> None:
    network, (x, t, dx, dt) = Toy(), inputs()
    with sdpa_kernel(SDPBackend.MATH):
        value, tangent = torch.func.jvp(network, (x, t), (dx, dt))
    answer = network(Dual(x, dx), Dual(t, dt))
    assert relative_error(answer.primal, network(x, t)) == 0
    assert relative_error(answer.primal, value) <= 1e-12
    assert relative_error(answer.tangent, tangent) <= 1e-12
    assert answer.primal.requires_grad and not answer.tangent.requires_grad
    for with_dual, without in zip(gradients(network, answer.primal), gradients(network, network(x, t)), strict=True):
        assert with_dual.norm() > 0 and relative_error(with_dual, without) <= 1e-12


def test_network_runs_on_duals_under_no_grad() -> None:
    network, (x, t, dx, dt) = Toy(), inputs()
    with_grad = network(Dual(x, dx), Dual(t, dt))
    with torch.no_grad():
        answer = network(Dual(x.clone().requires_grad_(), dx), Dual(t, dt))
    assert answer.primal.grad_fn is None and not answer.primal.requires_grad
    assert relative_error(answer.primal, with_grad.primal) <= 1e-12
    assert relative_error(answer.tangent, with_grad.tangent) <= 1e-12


def test_tangent_is_the_limit_of_central_differences() -> None:
    network, (x, t, dx, dt), h = Toy(), inputs(), 1e-5
    difference = (network(x + h * dx, t + h * dt) - network(x - h * dx, t - h * dt)) / (2 * h)
    assert relative_error(network(Dual(x, dx), Dual(t, dt)).tangent, difference.detach()) <= 1e-8


class Doubled(torch.autograd.Function):
    """A custom Function, which runs its forward in no_grad and does not dispatch."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


def under_no_grad(x: Any) -> Any:
    with torch.no_grad():
        return x * 2


LOSSES: dict[str, Callable[[Any], Any]] = {
    "Function": Doubled.apply,
    "reentrant": lambda x: checkpoint(torch.sin, x, use_reentrant=True),
    "reentrant layer": lambda x: checkpoint(nn.Linear(6, 2).double(), x, use_reentrant=True),
    "reentrant list": lambda x: checkpoint(lambda z: torch.cat([SAME, z]), x, use_reentrant=True),
    "no_grad": under_no_grad,
    "no_grad after a pytree": lambda x: under_no_grad(tree_map(lambda leaf: leaf, x)),
    "no_grad after replace": lambda x: under_no_grad(replace(x, tangent=SAME)),
}


@pytest.mark.filterwarnings("ignore:.*requires_grad=True")
@pytest.mark.parametrize("graph", [False, True], ids=["first layer", "later layer"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_would_lose_gradients_silently_is_refused(name: str, graph: bool) -> None:
    x = Dual(SAME, SAME)
    x = x * torch.ones((), dtype=torch.float64, requires_grad=True) if graph else x
    with pytest.raises(RuntimeError, match="grad mode was switched off before"):
        LOSSES[name](x)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"reentrant layer"}))
def test_where_the_whole_call_runs_under_no_grad_nothing_can_be_lost(name: str) -> None:
    with torch.no_grad():
        answer = LOSSES[name](Dual(SAME, OTHER + 0 * SAME))
        assert not answer.primal.requires_grad and answer.tangent.norm() > 0
        with torch.enable_grad():
            assert (answer * torch.ones((), dtype=torch.float64, requires_grad=True)).primal.requires_grad


def lightningdit() -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A float64 network of which no weight is zero, (x, t, y) and (dx, dt)."""
    constants = {"patch_size": 2, "hidden": 16, "depth": 2, "heads": 2}
    network = build("lightningdit", constants, shape=(3, 4, 4), num_classes=4, auxiliary=False, dropout=0.0).double()
    for i, weight in enumerate(network.parameters()):
        weight.data = normal(*weight.shape, seed=100 + i) / max(weight.shape[-1], 4) ** 0.5
    x, dx = normal(3, 3, 4, 4, seed=1), normal(3, 3, 4, 4, seed=2)
    return network, (x, normal(3, seed=3).sigmoid(), torch.tensor([0, 3, 4])), (dx, normal(3, seed=4))


def checkpointed(layer: nn.Module, use_reentrant: bool) -> None:
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=use_reentrant)  # type: ignore[method-assign]


def test_non_reentrant_checkpointing_of_every_block_keeps_the_gradients() -> None:
    network, (x, t, y), (dx, dt) = lightningdit()
    expected = network(Dual(x, dx), Dual(t, dt), y)
    plain = gradients(network, network(x, t, y))
    for block in network.blocks:
        checkpointed(block, use_reentrant=False)
    answer = network(Dual(x, dx), Dual(t, dt), y)
    assert relative_error(answer.tangent, expected.tangent) <= 1e-12
    for one, other in zip(gradients(network, answer.primal), plain, strict=True):
        assert other.norm() > 0 and relative_error(one, other) <= 1e-12


@pytest.mark.filterwarnings("ignore:.*requires_grad=True")
@pytest.mark.parametrize("layers", ["blocks", "x_embedder"])
def test_reentrant_checkpointing_of_blocks_or_of_the_first_layer_is_refused(layers: str) -> None:
    network, (x, t, y), (dx, dt) = lightningdit()
    layer = getattr(network, layers)
    for module in layer if layers == "blocks" else [layer]:
        checkpointed(module, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"grad mode was switched off.*use_reentrant=False"):
        network(Dual(x, dx), Dual(t, dt), y)


REFUSED: dict[str, tuple[str, Callable[[Dual], Any]]] = {
    "unknown function": ("logsumexp", lambda x: torch.logsumexp(x, 1)),
    "unknown method": ("Tensor.erf", lambda x: x.erf()),
    "unknown attribute": ("Tensor.grad", lambda x: x.grad),
    "method in place": ("Tensor.mul_", lambda x: x.mul_(2)),
    "tensor in place": ("add_", lambda x: SAME.clone().add_(x)),
    "operator in place": ("iadd", lambda x: operator.iadd(x, 1)),
    "item assignment": ("setitem", lambda x: x.__setitem__(0, 1.0)),
    "item of a tensor": ("setitem", lambda x: SAME.clone().__setitem__(0, x)),
    "SiLU in place": ("silu", lambda x: F.silu(x, inplace=True)),
    "condition": ("where", lambda x: torch.where(x, 1.0, 0.0)),
    "method where": ("where", lambda x: x.where(SAME > 0, 0.0)),
    "exponent": ("pow", lambda x: SAME**x),
    "exponent of a number": ("pow", lambda x: 2**x),
    "tensor exponent": ("pow", lambda x: x**SAME),
    "weight": ("linear", lambda x: F.linear(SAME, x[0, 0])),
    "weight of a Dual": ("linear", lambda x: F.linear(x, x[0, 0])),
    "kernel": ("conv2d", lambda x: F.conv2d(SAME, x)),
    "norm weight": ("layer_norm", lambda x: F.layer_norm(x, (6,), x[0, 0, 0])),
    "BatchNorm": ("batch_norm", lambda x: nn.BatchNorm2d(4).double()(x)),
    "masked": ("attn_mask", lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(6, 6).bool())),
    "causal": ("is_causal", lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "attention dropout": ("dropout_p", lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)),
    "softmax without dim": ("softmax", lambda x: F.softmax(x, None)),
    "numpy": ("numpy.asarray", lambda x: np.asarray(x)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operation_without_a_rule_is_refused_by_name(name: str) -> None:
    operation, call = REFUSED[name]
    with pytest.raises(TypeError, match=rf"no rule for .*{operation}.*facm/flow/dual.py.*method=\"func\""):
        call(Dual(SAME, SAME))


@pytest.mark.parametrize("tangent", [ROW, SAME.float(), SAME[:1]], ids=["shape", "dtype", "batch"])
def test_tangent_must_have_shape_and_dtype_of_the_primal(tangent: Tensor) -> None:
    with pytest.raises(ValueError, match="one shape and one floating dtype"):
        Dual(SAME, tangent)
    with pytest.raises(ValueError, match="floating"):
        Dual(SAME.long(), SAME.long())


def test_graph_of_a_given_tangent_is_dropped() -> None:
    answer = Dual(SAME, SAME.clone().requires_grad_() * 2) * torch.ones((), dtype=torch.float64, requires_grad=True)
    assert answer.primal.requires_grad and not answer.tangent.requires_grad


def test_is_a_pytree_of_any_leaves() -> None:
    shapes = tree_map(lambda leaf: tuple(leaf.shape), Dual(ROW, ROW))
    assert isinstance(shapes, Dual) and shapes.primal == shapes.tangent == (6,)


def test_unknown_attribute_is_an_attribute_error() -> None:
    assert not hasattr(Dual(ROW, ROW), "no_such_thing")


@pytest.mark.parametrize("drop", [nn.Dropout(0.3), lambda x: F.dropout(x, inplace=True)], ids=["module", "function"])
def test_random_dropout_is_refused_with_the_keyed_one(drop: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"got dropout with p = 0\.[35] in training.*facm/networks/layers/dropout\.py"):
        drop(Dual(SAME, SAME))


def test_bfloat16_autocast_gives_tangents_of_the_primals_dtype() -> None:
    network, (x, t, dx, dt) = Toy(), inputs()
    exact = network(Dual(x, dx), Dual(t, dt)).tangent
    network.float()
    with torch.autocast("cpu", torch.bfloat16):
        answer = network(Dual(x, dx).float(), Dual(t, dt).float())
    assert answer.primal.dtype == answer.tangent.dtype
    assert relative_error(answer.tangent, exact) <= 3e-2
    assert F.cosine_similarity(answer.tangent.double().flatten(), exact.flatten(), dim=0) > 0.999
    assert all(g.norm() > 0 for g in gradients(network, answer.primal))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_default_eps_of_rms_norm_is_that_of_torch(dtype: torch.dtype) -> None:
    x = torch.tensor([[1e-4, 2e-4]], dtype=dtype)
    scale = F.rms_norm(Dual(x, x), (2,)).tangent.double() / x
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    mean = x.double().square().mean()
    expected = eps * (mean + eps) ** -1.5  # d of a (a^2 mean + eps)^(-1/2) at a = 1
    assert torch.allclose(scale, expected.expand(1, 2), rtol=3 * torch.finfo(dtype).eps + 1e-12)


def step(network: nn.Module, x: Tensor, dx: Tensor, t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    answer = network(Dual(x, dx), Dual(t, dt))
    return answer.primal, answer.tangent


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_traces_as_one_graph_under_compile(grad: bool) -> None:
    network, (x, t, dx, dt) = Toy(), inputs()
    with torch.set_grad_enabled(grad):
        value, tangent = torch.compile(step, fullgraph=True, backend="aot_eager")(network, x, dx, t, dt)
        eager_value, eager_tangent = step(network, x, dx, t, dt)
    assert not tangent.requires_grad and value.requires_grad == grad
    assert relative_error(value, eager_value) <= 1e-12
    assert relative_error(tangent, eager_tangent) <= 1e-12
    if grad:
        for compiled, eager in zip(gradients(network, value), gradients(network, eager_value), strict=True):
            assert relative_error(compiled, eager) <= 1e-12


def test_methods_trace_too() -> None:
    """Dynamo does not see the names that facm/flow/dual.py gives them."""

    def methods(x: Any) -> Any:
        return x.sin().tanh().view(2, -1).square().clamp(max=2.0).view_as(SAME)

    x = Dual(SAME, SAME.transpose(0, 2).contiguous().transpose(0, 2))
    answer = torch.compile(methods, fullgraph=True, backend="aot_eager")(x)
    assert relative_error(answer.tangent, methods(x).tangent) <= 1e-12


def test_duals_go_in_and_out_of_a_compiled_network_and_no_grad_inside_is_refused() -> None:
    (x, t, dx, dt), network = inputs(), Toy()
    answer = torch.compile(network, fullgraph=True, backend="aot_eager")(Dual(x, dx), Dual(t, dt))
    assert relative_error(answer.tangent, network(Dual(x, dx), Dual(t, dt)).tangent) <= 1e-12
    assert answer.grad_mode and all(g.norm() > 0 for g in gradients(network, answer.primal))
    with pytest.raises(Exception, match=r"(?s)grad mode was switched off|Observed exception"):
        torch.compile(under_no_grad, fullgraph=True, backend="aot_eager")(Dual(x, dx))
