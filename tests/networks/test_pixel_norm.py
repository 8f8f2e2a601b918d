"""Pixel norm in the backbones (sCM): the formula, its derivative, the names of the weights, how training starts."""

import pytest
import torch
from torch import Tensor, nn

from facm.flow.derivative import total_derivative
from facm.flow.dual import Dual
from facm.flow.interface import Query
from facm.networks import backbones
from facm.networks.layers.blocks import FinalLayer, Modulation, pixel_norm
from facm.training.passes import Plan, prepare

SIZES = {
    "lightningdit": ({"patch_size": 2, "hidden": 16, "depth": 2, "heads": 2}, (2, 4, 4)),
    "mlp": ({"hidden": 16, "depth": 2}, (3,)),
}
NAMES = sorted(SIZES)


def build(name: str, pixel_norm: bool = True, seed: int = 0, **constants) -> nn.Module:
    torch.manual_seed(seed)
    sizes, shape = SIZES[name]
    return backbones.build(name, {**sizes, "pixel_norm": pixel_norm, **constants}, shape=shape, num_classes=3)


def rerandomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(name: str, dtype: torch.dtype = torch.float32, batch: int = 5):
    generator = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, batch, *SIZES[name][1], generator=generator, dtype=dtype)
    return x, torch.linspace(0.05, 0.95, batch, dtype=dtype), torch.arange(batch) % 4, v


def rms(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt()


# The formula


def test_pixel_norm_divides_by_the_root_mean_square_of_the_last_axis():
    (x,) = torch.randn(1, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixel_norm(x), x / rms(x).unsqueeze(-1), atol=1e-7, rtol=0)
    torch.testing.assert_close(rms(pixel_norm(1e6 * x)), torch.ones(4, dtype=torch.float64))
    assert torch.equal(pixel_norm(torch.zeros(2, 7)), torch.zeros(2, 7))


@pytest.mark.parametrize(("parts", "gates"), [(6, {2, 5}), (4, {1, 3}), (2, set())])
def test_scales_and_shifts_are_normalised_and_gates_are_not(parts, gates):
    modulation = rerandomised(Modulation(16, parts, pixel_norm=True))
    plain = Modulation(16, parts)
    plain.load_state_dict(modulation.state_dict())
    c = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for i, (part, before) in enumerate(zip(modulation(c), plain(c), strict=True)):
        if i in gates:
            assert torch.equal(part, before)
        else:
            torch.testing.assert_close(part, before / rms(before).unsqueeze(-1))
            assert (rms(before) - 1).abs().max() > 0.2


def test_the_last_layer_is_x_times_one_plus_pn_of_scale_plus_pn_of_shift():
    layer = rerandomised(FinalLayer(16, 2, (2, 2), 2, rms_norm=True, pixel_norm=True))
    x, c = torch.randn(5, 4, 16), torch.randn(5, 16)
    shift, scale = layer.adaLN_modulation[1](torch.nn.functional.silu(c)).unsqueeze(1).chunk(2, dim=-1)
    tokens = layer.norm_final(x) * (1 + scale / rms(scale).unsqueeze(-1)) + shift / rms(shift).unsqueeze(-1)
    want = layer.linear(tokens).reshape(5, 2, 2, 2, 2, 2).permute(0, 5, 1, 3, 2, 4).reshape(5, 2, 4, 4)
    torch.testing.assert_close(layer(x, c), want)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_does_not_feel_how_long_its_scales_and_shifts_are(name):
    networks = [rerandomised(build(name, pixel_norm)) for pixel_norm in (True, False)]
    x, t, y, _ = inputs(name)
    before = [network(x, t, y) for network in networks]
    for network in networks:
        for module in network.modules():
            if isinstance(module, Modulation):
                rows = [p.data.unflatten(0, (module.parts, -1)) for p in module.parameters()]
                for part in range(module.parts):
                    if not (module.parts > 2 and part in (module.parts // 2 - 1, module.parts - 1)):
                        for parameter in rows:
                            parameter[part] *= 3
        for modulation in getattr(network, "modulations", []):
            for parameter in modulation.parameters():
                parameter.data *= 3
    after = [network(x, t, y) for network in networks]
    torch.testing.assert_close(after[0], before[0], atol=1e-4, rtol=1e-4)
    assert (after[1] - before[1]).norm() > 0.1 * before[1].norm()


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_called_and_drawn_as_without_it(name):
    with_it, without = build(name).state_dict(), build(name, False).state_dict()
    assert {k: v.shape for k, v in with_it.items()} == {k: v.shape for k, v in without.items()}
    differing = {k for k in with_it if not torch.equal(with_it[k], without[k])}
    assert differing == {k for k in with_it if name == "lightningdit" and k.endswith("adaLN_modulation.1.bias")}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_off_unless_asked_for(name):
    constants, shape = SIZES[name]
    torch.manual_seed(0)
    network = rerandomised(backbones.build(name, constants, shape=shape, num_classes=3))
    x, t, y, _ = inputs(name)
    assert torch.equal(network(x, t, y), rerandomised(build(name, False))(x, t, y))
    assert not torch.allclose(network(x, t, y), rerandomised(build(name, True))(x, t, y), atol=1e-3)


# The derivative


@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
def test_the_tangent_of_pixel_norm_is_that_of_forward_mode_also_at_zero(scale):
    x, dx = torch.randn(2, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want, tangent = torch.func.jvp(pixel_norm, (scale * x,), (dx,))
    got = pixel_norm(Dual(scale * x, dx))
    torch.testing.assert_close(got.primal, want)
    torch.testing.assert_close(got.tangent, tangent)


@pytest.mark.parametrize(("name", "constants"), [("lightningdit", {}), ("lightningdit", {"shift": False}), ("mlp", {})])
def test_value_and_total_derivative_of_a_network_are_those_of_torch_func(name, constants):
    network = rerandomised(build(name, **constants)).double()
    x, t, y, v = inputs(name, torch.float64)
    got = total_derivative(network, x, t, y, dx=v, dt=1.0)
    want = total_derivative(network, x, t, y, dx=v, dt=1.0, method="func")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    h = 1e-5
    central = (network(x + h * v, t + h, y) - network(x - h * v, t - h, y)) / (2 * h)
    torch.testing.assert_close(got[1], central, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_it_gives_the_same_value_tangent_and_gradients(name):
    x, t, y, v = inputs(name)
    results = []
    for plan in (Plan(), Plan(compile=True)):
        network = rerandomised(build(name))
        ((F, dF_dt),) = prepare(network, plan)([Query(x, t, y, None, v, torch.ones_like(t))])
        F.square().sum().backward()
        results.append([F, dF_dt, *[p.grad for p in network.parameters()]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# How training starts


def first_norms(network: nn.Module, name: str, steps: int = 3) -> list[float]:
    """Gradient norms of the first steps of flow matching."""
    x0, t, y, x1 = inputs(name, batch=32)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    at = t.reshape(-1, *[1] * (x0.ndim - 1))
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        (network((1 - at) * x0 + at * x1, t, y) - (x1 - x0)).square().mean().backward()
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), 1.0).item())
        optimizer.step()
    return norms


STRONG = {"label_std": 1.0, "t_std": [0.5, 0.15], "gate_bias": 0.5}  # of the digits


@pytest.mark.parametrize(("name", "constants"), [("lightningdit", {}), ("lightningdit", STRONG), ("mlp", {})])
def test_the_first_steps_have_moderate_gradients(name, constants):
    norms = first_norms(build(name, hidden=64, **constants), name)
    plain = first_norms(build(name, False, hidden=64, **constants), name)
    assert all(0.05 < norm < 10 * max(plain) for norm in norms)


def test_from_scales_and_shifts_of_zero_the_second_gradient_explodes_and_so_they_start_at_one():
    usual, zeroed = (build("lightningdit", hidden=64, **STRONG) for _ in range(2))
    for module in zeroed.modules():
        if isinstance(module, Modulation):
            for part, bias in enumerate(module[1].bias.data.unflatten(0, (module.parts, -1))):
                if part not in module.gates:
                    bias.zero_()
    usual, zeroed = first_norms(usual, "lightningdit"), first_norms(zeroed, "lightningdit")
    assert zeroed[1] > 20 * max(usual)


def test_at_the_start_every_scale_and_shift_is_one_and_every_gate_its_bias():
    network = build("lightningdit", gate_bias=0.25)
    c = torch.randn(5, 16)
    for block in network.blocks:
        for i, part in enumerate(block.adaLN_modulation(c)):
            torch.testing.assert_close(part, torch.full_like(part, 0.25 if i in (2, 5) else 1.0))
    x, t, y, _ = inputs("lightningdit")
    assert torch.equal(network(x, t, y), torch.zeros_like(x))


@pytest.mark.parametrize("name", NAMES)
def test_only_true_or_false_switches_it(name):
    with pytest.raises(ValueError, match=rf"backbones.{name}.pixel_norm: must be true or false, got 'yes'"):
        build(name, "yes")
