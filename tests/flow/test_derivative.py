"""facm/flow/derivative.py: closed forms, finite differences, both methods, and every backbone of the registry."""

from typing import Any

import pytest
import torch
from miniature import UNET
from torch import Tensor, nn

from facm.flow.derivative import METHODS, total_derivative
from facm.networks.backbones import BACKBONES, build

B = 3
NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "lightningdit": ("lightningdit", (3, 4, 4), {"patch_size": 2, "hidden": 16, "depth": 1, "heads": 2}),
    "lightningdit as DiT": (
        "lightningdit",
        (3, 4, 4),
        {"patch_size": 1, "hidden": 16, "depth": 2, "heads": 2, "pos_learned": True, "shift": False}
        | dict.fromkeys(["qk_norm", "rms_norm", "swiglu", "rope"], False),
    ),
    **{
        name: (name, (2, 4, 4), {"patch_size": 2, "hidden": 16, "depth": 1, "heads": 2} | more)
        for name, more in {
            "dit": {},
            "sit": {"qk_norm": True},
            "repa": {"encoder_depth": 1, "projector": False, "pixel_norm": True},
        }.items()
    },
    "mlp": ("mlp", (2,), {"hidden": 16, "depth": 2}),
    "ddpmpp": ("ddpmpp", (3, 4, 4), UNET),
}
"""Case -> backbone, shape, constants."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def network(case: str, *, auxiliary: bool = False, dropout: float = 0.0) -> nn.Module:
    """A float64 backbone of which no weight is zero."""
    name, shape, constants = NETWORKS[case]
    model = build(name, constants, shape=shape, num_classes=4, auxiliary=auxiliary, dropout=dropout).double()
    for i, weight in enumerate(model.parameters()):
        weight.data = normal(*weight.shape, seed=100 + i) / max(weight.shape[-1], 4) ** 0.5
    return model


def point(case: str, *, auxiliary: bool = False) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """(x, t, y, r) and the tangents (dx, dt)."""
    shape = NETWORKS[case][1]
    x, dx = normal(B, *shape, seed=1), normal(B, *shape, seed=2)
    t, dt = normal(B, seed=3).sigmoid(), normal(B, seed=4)
    r = normal(B, seed=5).sigmoid() if auxiliary else None
    return (x, t, torch.tensor([0, 3, 4]), r), {"dx": dx, "dt": dt}


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value.square().sum(), list(model.parameters())))


def field(x: Any, t: Any, y: Any, r: Any = None) -> Any:
    """F = t^2 sin(x) + r x, r 0 if None."""
    return t[:, None] ** 2 * torch.sin(x) + (0 if r is None else r[:, None] * x)


@pytest.mark.parametrize("method", METHODS)
def test_derivative_of_a_closed_form(method: str) -> None:
    x, t, r, v, dt, dr = (normal(*s, seed=i) for i, s in enumerate([(B, 2), (B,), (B,), (B, 2), (B,), (B,)]))
    (value, derivative), s = total_derivative(field, x, t, None, r, dx=v, dt=dt, dr=dr, method=method), t[:, None]
    expected = s**2 * x.cos() * v + 2 * s * x.sin() * dt[:, None] + r[:, None] * v + dr[:, None] * x
    torch.testing.assert_close(value, field(x, t, None, r))
    torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize("method", METHODS)
def test_r_is_held_constant_and_numbers_stand_for_all_samples(method: str) -> None:
    x, t, r, v = (normal(*s, seed=i) for i, s in enumerate([(B, 2), (B,), (B,), (B, 2)]))

    def derivative(**tangents: Any) -> Tensor:
        return total_derivative(field, x, t, None, r, dx=v, method=method, **tangents)[1]

    expected = t[:, None] ** 2 * x.cos() * v + 2 * t[:, None] * x.sin() + r[:, None] * v
    for given in [{"dt": 1}, {"dt": 1.0, "dr": 0}, {"dt": torch.ones(B), "dr": torch.zeros(B)}]:
        torch.testing.assert_close(derivative(**given), expected)
    torch.testing.assert_close(derivative(dt=1, dr=0.5), expected + 0.5 * x)


def test_both_methods_are_the_limit_of_central_differences() -> None:
    model, ((x, t, y, _), d), h = network("lightningdit"), point("lightningdit"), 1e-5
    difference = (model(x + h * d["dx"], t + h * d["dt"], y) - model(x - h * d["dx"], t - h * d["dt"], y)) / (2 * h)
    for method in METHODS:
        assert relative_error(total_derivative(model, x, t, y, **d, method=method)[1], difference) <= 1e-7


@pytest.mark.parametrize("auxiliary", [False, True], ids=["t", "t and r"])
@pytest.mark.parametrize("case", NETWORKS)
def test_backbone_has_equal_value_tangent_and_gradients_with_and_without_duals(case: str, auxiliary: bool) -> None:
    model, (at, d) = network(case, auxiliary=auxiliary), point(case, auxiliary=auxiliary)
    d |= {"dr": normal(B, seed=6)} if auxiliary else {}
    value, derivative = total_derivative(model, *at, **d, method="dual")
    by_func = total_derivative(model, *at, **d, method="func")
    assert derivative.norm() > 0 and relative_error(derivative, by_func[1]) <= 1e-12
    assert relative_error(value, model(*at)) <= 1e-12
    assert value.requires_grad and by_func[0].requires_grad
    assert not derivative.requires_grad and not by_func[1].requires_grad
    plain, names = gradients(model, model(*at)), [name for name, _ in model.named_parameters()]
    for with_dual, with_func, without, name in zip(
        gradients(model, value), gradients(model, by_func[0]), plain, names, strict=True
    ):
        assert without.norm() > 0, name
        assert relative_error(with_dual, without) <= 1e-10, name
        assert relative_error(with_func, without) <= 1e-10, name


def test_every_backbone_is_tested() -> None:
    assert {name for name, _, _ in NETWORKS.values()} == set(BACKBONES)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_has_a_graph_under_no_grad(method: str) -> None:
    model, ((x, t, y, r), d) = network("lightningdit"), point("lightningdit")
    with_grad = total_derivative(model, x, t, y, r, **d, method=method)
    with torch.no_grad():
        without = total_derivative(model, x.clone().requires_grad_(), t, y, r, **d, method=method)
    for one, other in zip(with_grad, without, strict=True):
        assert not other.requires_grad and relative_error(other, one) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_graph_of_a_tangent_is_ignored(method: str) -> None:
    model, (at, d) = network("mlp"), point("mlp")
    d["dx"] = d["dx"].clone().requires_grad_() * 2
    assert not total_derivative(model, *at, **d, method=method)[1].requires_grad


@pytest.mark.parametrize("case", ["lightningdit", "mlp"])
def test_both_methods_have_the_dropout_masks_of_one_ordinary_pass(case: str) -> None:
    model, (at, d) = network(case, dropout=0.3), point(case)
    keys = torch.arange(len(at[0]))

    def keyed(x: Any, t: Any, y: Any, r: Any) -> Any:
        return model(x, t, y, r, keys)

    plain, dual = keyed(*at), total_derivative(keyed, *at, **d)
    func = total_derivative(keyed, *at, **d, method="func")
    assert relative_error(plain, network(case)(*at)) > 1e-3  # dropout did something
    assert relative_error(dual[0], plain) <= 1e-12 and relative_error(func[0], plain) <= 1e-12
    assert relative_error(dual[1], func[1]) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_derivative_is_float32_under_bfloat16_autocast(method: str) -> None:
    model, (at, d) = network("lightningdit"), point("lightningdit")
    exact, model = total_derivative(model, *at, **d)[1], model.float()
    x, t, y, r = (a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in at)
    with torch.autocast("cpu", torch.bfloat16):
        value, derivative = total_derivative(model, x, t, y, r, **d, method=method)
    assert derivative.dtype == torch.float32
    assert torch.cosine_similarity(derivative.double().flatten(), exact.flatten(), dim=0) > 0.999
    assert all(g.norm() > 0 for g in gradients(model, value.float()))


def test_traces_as_one_graph_under_compile() -> None:
    """Dynamo only; tests/flow/test_dual.py goes on to AOTAutograd and compares gradients."""
    model, (at, d) = network("lightningdit"), point("lightningdit")
    compiled = torch.compile(total_derivative, fullgraph=True, backend="eager")
    value, derivative = compiled(model, *at, dx=d["dx"], dt=1.0)
    expected = total_derivative(model, *at, dx=d["dx"], dt=1.0)
    assert relative_error(value, expected[0]) <= 1e-12 and relative_error(derivative, expected[1]) <= 1e-12
    assert value.requires_grad and not derivative.requires_grad


def test_unknown_method_is_refused_with_the_known_ones() -> None:
    at, d = point("mlp")
    with pytest.raises(ValueError, match="unknown derivative method 'jvp': known are dual, func"):
        total_derivative(network("mlp"), *at, **d, method="jvp")


@pytest.mark.parametrize(
    "wrong", [{"dr": 1.0}, {"dt": torch.ones(())}, {"dx": torch.ones(B, 1)}], ids=["dr without r", "dt", "dx"]
)
def test_tangent_that_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    at, d = point("mlp")
    with pytest.raises(ValueError, match=r"dr without r|shapes must be equal"):
        total_derivative(network("mlp"), *at, **(d | wrong))


def test_network_that_loses_the_dual_is_refused() -> None:
    (x, t, y, _), d = point("mlp")
    with pytest.raises(TypeError, match='no tangent: use method="func"'):
        total_derivative(lambda x, t, y, r: x.new_zeros(B, 2), x, t, y, **d)
