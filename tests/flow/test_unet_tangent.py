"""A small U-Net in the manner of DDPM++ (Song et al. 2021; Karras et al. 2022) on dual numbers, in its variants."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from facm.flow.dual import Dual

WIDTH, EMBEDDING = 8, 16
FIR = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8])[None, None]

VARIANTS: dict[str, dict[str, str]] = {
    "ddpm++": {"resample": "nearest", "attention": "einsum", "time": "positional", "modulation": "scale"},
    "ncsn++": {"resample": "fir", "attention": "sdpa", "time": "fourier", "modulation": "shift"},
    "strided": {"resample": "stride", "attention": "sdpa", "time": "positional", "modulation": "scale"},
}


class Resample(nn.Module):
    """(B, C, H, W) -> half or twice the sides: a constant FIR kernel, pooling and repetition, or a strided layer."""

    def __init__(self, kind: str, up: bool) -> None:
        super().__init__()
        self.kind, self.up = kind, up
        layer = nn.ConvTranspose2d if up else nn.Conv2d
        self.layer = layer(WIDTH, WIDTH, 2, stride=2) if kind == "stride" else None

    def forward(self, x: Any) -> Any:
        if self.layer is not None:
            return self.layer(x)
        if self.kind == "fir":
            kernel, resample = (4 * FIR, F.conv_transpose2d) if self.up else (FIR, F.conv2d)
            return resample(x, kernel.tile(x.shape[1], 1, 1, 1), groups=x.shape[1], stride=2, padding=1)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)


class Block(nn.Module):
    """Two convolutions modulated by the time, then attention; both residual, divided by sqrt 2."""

    def __init__(self, width_in: int, *, attention: str, modulation: str) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(4, width, eps=1e-6) for width in [width_in, WIDTH, WIDTH])
        self.conv0, self.conv1 = nn.Conv2d(width_in, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.skip = nn.Conv2d(width_in, WIDTH, 1)
        self.modulation, self.attention = modulation, attention
        self.affine = nn.Linear(EMBEDDING, WIDTH * (2 if modulation == "scale" else 1))
        self.qkv, self.proj = nn.Conv2d(WIDTH, 3 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Any, embedding: Any) -> Any:
        h = self.conv0(F.silu(self.norms[0](x)))
        parameters = self.affine(embedding).unsqueeze(2).unsqueeze(3)
        if self.modulation == "scale":
            scale, shift = parameters.chunk(chunks=2, dim=1)
            h = torch.addcmul(shift, self.norms[1](h), scale + 1)
        else:
            h = self.norms[1](h + parameters)
        h = self.conv1(F.dropout(F.silu(h), p=0.1, training=False))
        h = (h + self.skip(x)) * math.sqrt(0.5)
        return (h + self.attend(self.norms[2](h))) / math.sqrt(2)

    def attend(self, x: Any, heads: int = 2) -> Any:
        q, k, v = self.qkv(x).reshape(x.shape[0] * heads, WIDTH // heads, 3, -1).unbind(2)  # (B heads, c, N)
        if self.attention == "einsum":
            weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1])).softmax(dim=2)
            answer = torch.einsum("nqk,nck->ncq", weights, v)
        else:
            answer = F.scaled_dot_product_attention(*(a.swapaxes(1, 2) for a in [q, k, v])).swapaxes(1, 2)
        return self.proj(answer.reshape(x.shape))


class UNet(nn.Module):
    """(B, 3, 8, 8), (B,) -> (B, 3, 8, 8); two resolutions, float64, of which no weight is zero."""

    frequencies: Tensor

    def __init__(self, *, resample: str, attention: str, time: str, modulation: str) -> None:
        super().__init__()
        self.time = time
        i = torch.arange(EMBEDDING // 2, dtype=torch.float64)
        self.register_buffer(
            "frequencies", 100 ** (-i / len(i)) if time == "positional" else 2 * math.pi * normal(len(i))
        )
        self.layer0, self.layer1 = nn.Linear(EMBEDDING, EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)
        self.first, self.last = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 3, padding=1)
        widths = {"encoder": WIDTH, "middle": WIDTH, "decoder0": 2 * WIDTH, "decoder1": 2 * WIDTH}
        self.blocks = nn.ModuleDict(
            {name: Block(width, attention=attention, modulation=modulation) for name, width in widths.items()}
        )
        self.down, self.up, self.norm = (
            Resample(resample, up=False),
            Resample(resample, up=True),
            nn.GroupNorm(4, WIDTH),
        )
        for seed, weight in enumerate(self.double().parameters()):
            weight.data = normal(*weight.shape, seed=100 + seed) / weight[0].numel() ** 0.5

    def embed(self, t: Any) -> Any:
        angles = t.ger(self.frequencies)
        embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
        if self.time == "positional":
            embedding = embedding.reshape(embedding.shape[0], 2, -1).flip(1).reshape(*embedding.shape)
        return F.silu(self.layer1(F.silu(self.layer0(embedding))))

    def forward(self, x: Any, t: Any) -> Any:
        embedding = self.embed(t)
        skips = [self.first(x)]
        skips.append(self.down(self.blocks["encoder"](skips[0], embedding)))
        h = self.blocks["middle"](skips[1], embedding)
        h = self.up(self.blocks["decoder0"](torch.cat([h, skips.pop()], dim=1), embedding))
        h = self.blocks["decoder1"](torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(F.silu(self.norm(h)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x, t) and (dx, dt)."""
    return (normal(2, 3, 8, 8, seed=1), normal(2, seed=2).sigmoid()), (normal(2, 3, 8, 8, seed=3), normal(2, seed=4))


def relative_error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm())


def gradients(network: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value.square().sum(), list(network.parameters())))


def step(network: nn.Module, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    answer = network(Dual(x, dx), Dual(t, dt))
    return answer.primal, answer.tangent


@pytest.mark.parametrize("variant", VARIANTS)
def test_value_tangent_and_gradients_are_those_of_func_jvp_and_of_the_plain_network(variant: str) -> None:
    network, (at, along) = UNet(**VARIANTS[variant]), inputs()
    with sdpa_kernel(SDPBackend.MATH):
        value, tangent = torch.func.jvp(network, at, along)
    answer = step(network, *at, *along)
    assert tangent.norm() > 0 and answer[0].requires_grad and not answer[1].requires_grad
    assert relative_error(answer[0], value) <= 1e-12 and relative_error(answer[1], tangent) <= 1e-10
    with torch.no_grad():
        for without, with_grad in zip(step(network, *at, *along), answer, strict=True):
            assert not without.requires_grad and relative_error(without, with_grad) <= 1e-12
    names = [name for name, _ in network.named_parameters()]
    with_dual, plain = gradients(network, answer[0]), gradients(network, network(*at))
    for name, one, other in zip(names, with_dual, plain, strict=True):
        assert relative_error(one, other) <= 1e-10, name
        assert other.norm() > 1e-12, name


def check_compiled(network: nn.Module, at: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor]) -> None:
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(network, *at, *along)
    eager = step(network, *at, *along)
    for one, other in zip(compiled, eager, strict=True):
        assert relative_error(one, other) <= 1e-12
    for one, other in zip(gradients(network, compiled[0]), gradients(network, eager[0]), strict=True):
        assert relative_error(one, other) <= 1e-10


@pytest.mark.parametrize("variant", ["ddpm++", "ncsn++"])
def test_block_traces_as_one_graph_under_compile(variant: str) -> None:
    options = VARIANTS[variant]
    block = Block(WIDTH, attention=options["attention"], modulation=options["modulation"]).double()
    at, along = ((normal(2, WIDTH, 4, 4, seed=i), normal(2, EMBEDDING, seed=i + 1)) for i in [1, 3])
    check_compiled(block, at, along)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_network_traces_as_one_graph_under_compile(variant: str) -> None:
    check_compiled(UNet(**VARIANTS[variant]), *inputs())
