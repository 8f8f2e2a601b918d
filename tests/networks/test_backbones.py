"""The networks: the authors' outputs from the authors' weights, every switch, every refusal."""

import pytest
import torch
from miniature import UNET
from oracle import golden
from torch import nn

from facm.flow.derivative import total_derivative
from facm.networks import backbones

GOLDEN = {"patch_size": 1, "hidden": 32, "depth": 2, "heads": 2}
SMALL = {"patch_size": 2, "hidden": 16, "depth": 2, "heads": 2}
XL = {"patch_size": 1, "hidden": 1152, "depth": 28, "heads": 16}
BASE = {"patch_size": 1, "hidden": 768, "depth": 12, "heads": 12}
POINTS = {"hidden": 16, "depth": 2}
SWITCHES = ["qk_norm", "rms_norm", "swiglu", "rope", "shift", "pos_embed"]


def lightningdit(num_classes=3, shape=(2, 4, 6), auxiliary=False, dropout=0.0, **constants) -> nn.Module:
    """A small network whose weights are all random: freshly made ones answer zero."""
    return rerandomised(
        backbones.build(
            "lightningdit",
            {**SMALL, **constants},
            shape=shape,
            num_classes=num_classes,
            auxiliary=auxiliary,
            dropout=dropout,
        )
    )


def mlp(num_classes=3, auxiliary=False, dropout=0.0) -> nn.Module:
    return rerandomised(
        backbones.build("mlp", POINTS, shape=(3,), num_classes=num_classes, auxiliary=auxiliary, dropout=dropout)
    )


def rerandomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs(*shape, batch=5, num_classes=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=dtype)
    t = torch.rand(batch, generator=generator, dtype=dtype)
    return x, t, torch.randint(0, num_classes + 1, (batch,), generator=generator)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", ["expanded", "aux"])
def test_the_authors_weights_give_the_authors_outputs(kind):
    g = golden()
    network = backbones.build("lightningdit", GOLDEN, shape=(4, 4, 4), num_classes=1000, auxiliary=kind == "aux")
    network.load_state_dict(golden(f"{kind}/student/"), strict=True)
    x, t, y = g["x1"], g["t"], g["y"]
    conditions = ((t, torch.ones_like(t)), (t, t)) if kind == "aux" else ((t, None), (2 - t, None))
    for (t_condition, r), name in zip(conditions, ["out_cm", "out_fm"], strict=True):
        assert relative(network(x, t_condition, y, r), g[f"{kind}/{name}"]) < 1e-6
        assert relative(network.double()(x.double(), t_condition.double(), y, r), g[f"{kind}/{name}"]) < 1e-6
        network.float()


@pytest.mark.parametrize("kind", ["expanded", "aux"])
def test_the_buffers_are_the_authors(kind):
    network = backbones.build("lightningdit", GOLDEN, shape=(4, 4, 4), num_classes=1000, auxiliary=kind == "aux")
    theirs = golden(f"{kind}/teacher/")
    assert network.state_dict().keys() == theirs.keys()
    for name in theirs.keys() & dict(network.named_buffers()).keys():
        buffer = network.get_buffer(name)
        torch.testing.assert_close(buffer, theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("constants", "auxiliary", "total"), [(XL, False, 675_260_768), (XL, True, 676_885_088), (BASE, False, 130_557_728)]
)
def test_the_numbers_of_parameters_are_the_published_ones(constants, auxiliary, total):
    with torch.device("meta"):
        network = backbones.build("lightningdit", constants, shape=(32, 16, 16), num_classes=1000, auxiliary=auxiliary)
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert trained + network.pos_embed.numel() == total
    assert total - trained == 256 * constants["hidden"]


@pytest.mark.parametrize("switch", [None, *SWITCHES, "pos_learned"])
def test_every_switch_builds_and_gives_every_weight_a_gradient(switch):
    network = lightningdit(**({} if switch is None else {switch: switch == "pos_learned"}))
    x, t, y = inputs(2, 4, 6)
    out = network(x, t, y)
    assert out.shape == x.shape
    out.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert switch is None or not torch.equal(out, lightningdit()(x, t, y))


def test_all_switches_off_bear_the_names_of_dit():
    network = lightningdit(**dict.fromkeys(["qk_norm", "rms_norm", "swiglu", "rope"], False))
    names = {name.removeprefix("blocks.1.") for name in network.state_dict() if name.startswith("blocks.1.")}
    layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]
    assert names == {f"{layer}.{part}" for layer in layers for part in ["weight", "bias"]}


def test_tokens_are_patches_row_by_row():
    network = lightningdit(shape=(2, 4, 6))
    x, _, _ = inputs(2, 4, 6)
    conv = network.x_embedder.proj(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.x_embedder(x), conv)


def test_the_last_layer_puts_a_patch_back_where_it_was():
    layer = lightningdit(shape=(2, 4, 6), hidden=8).final_layer
    layer.norm_final, layer.linear = nn.Identity(), nn.Identity()
    for parameter in layer.adaLN_modulation.parameters():
        nn.init.zeros_(parameter)
    x, _, _ = inputs(2, 4, 6)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(5, 6, 8)  # (B, N, p p C)
    assert torch.equal(layer(patches, torch.zeros(5, 8)), x)


def test_attention_scores_depend_on_the_distance_between_tokens_only():
    rope = lightningdit(shape=(2, 8, 8), patch_size=1).feat_rope.double()
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 64, 1, 8)
    scores = (rope(q)[0, :, 0] @ rope(k)[0, :, 0].T).reshape(8, 8, 8, 8)
    torch.testing.assert_close(scores[1, 2, 3, 5], scores[4, 3, 6, 6], rtol=1e-6, atol=1e-6)
    assert abs(scores[1, 2, 3, 5] - scores[1, 2, 5, 3]) > 1e-3


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_the_auxiliary_embedding_changes_nothing_at_first_and_learns(name):
    build = (SMALL | ({"encoder_depth": 1} if name == "repa" else {}), (2, 4, 6))
    build = {"mlp": (POINTS, (3,)), "ddpmpp": (UNET, (2, 4, 4))}.get(name, build)
    networks = []
    for auxiliary in [False, True]:
        torch.manual_seed(0)
        networks.append(backbones.build(name, build[0], shape=build[1], num_classes=3, auxiliary=auxiliary))
    plain, auxiliary = networks
    weights = dict(auxiliary.named_parameters())
    assert all(torch.equal(parameter, weights[key]) for key, parameter in plain.named_parameters())
    for key, parameter in plain.named_parameters():  # a fresh network answers zero, whatever r
        nn.init.normal_(parameter, std=0.3)
        weights[key].data.copy_(parameter.data)
    x, t, y = inputs(*build[1])
    assert torch.equal(auxiliary(x, t, y, torch.rand(5)), plain(x, t, y))
    auxiliary(x, t, y, torch.rand(5)).square().mean().backward()
    assert sum(parameter.grad.abs().sum() for parameter in auxiliary.r_embedder.parameters()) > 0


def test_a_fresh_network_answers_zero():
    torch.manual_seed(0)
    network = backbones.build("lightningdit", SMALL, shape=(2, 4, 6), num_classes=3)
    assert torch.equal(network(*inputs(2, 4, 6)), torch.zeros(5, 2, 4, 6))


def test_initial_scales_are_the_constants():
    torch.manual_seed(0)
    constants = {"label_std": 1.0, "t_std": [0.5, 0.15], "gate_bias": 0.25, "pos_learned": True, "pos_std": 0.7}
    large = {"hidden": 256, "heads": 4, "depth": 1, "patch_size": 1}
    network = backbones.build("lightningdit", {**large, **constants}, shape=(1, 8, 8), num_classes=20)
    close = {"rel": 0.05}
    assert network.y_embedder.embedding_table.weight.std().item() == pytest.approx(1.0, **close)
    assert network.t_embedder.mlp[0].weight.std().item() == pytest.approx(0.5, **close)
    assert network.t_embedder.mlp[2].weight.std().item() == pytest.approx(0.15, **close)
    assert network.pos_embed.std().item() == pytest.approx(0.7, **close)
    parts = network.blocks[0].adaLN_modulation[1].bias.reshape(6, 256)
    assert parts.mean(1).tolist() == [0, 0, 0.25, 0, 0, 0.25]
    assert network.blocks[0].adaLN_modulation[1].weight.abs().sum() == 0


@pytest.mark.parametrize("network", [lightningdit, mlp])
def test_without_classes_there_is_no_label_embedding(network):
    network = network(num_classes=0)
    assert not any("y_embedder" in name for name in network.state_dict())
    shape = (2, 4, 6) if hasattr(network, "blocks") else (3,)
    x, t, y = inputs(*shape)
    assert network(x, t, None).shape == x.shape
    with pytest.raises(ValueError, match="y"):
        network(x, t, y)


@pytest.mark.parametrize("network", [lightningdit, mlp])
def test_a_missing_or_surplus_condition_is_refused(network):
    plain, auxiliary = network(), network(auxiliary=True)
    x, t, y = inputs(*((2, 4, 6) if hasattr(plain, "blocks") else (3,)))
    for call in [(plain, None, None), (plain, y, t), (auxiliary, y, None)]:
        with pytest.raises(ValueError, match="only with it"):
            call[0](x, t, call[1], call[2])


@pytest.mark.parametrize("network", [lightningdit, mlp])
def test_dropout_depends_on_the_samples_keys_alone(network):
    network = network(dropout=0.5)
    x, t, y = inputs(*((2, 4, 6) if hasattr(network, "blocks") else (3,)))
    keys = torch.arange(len(x)) + 5
    answer = network(x, t, y, key=keys)
    assert torch.equal(network.eval()(x, t, y, key=keys), answer) and torch.equal(network(x, t, y), network(x, t, y))
    assert not torch.allclose(network(x, t, y), answer) and not torch.allclose(network(x, t, y, key=keys + 1), answer)
    torch.testing.assert_close(network(x[1:], t[1:], y[1:], key=keys[1:]), answer[1:])


@pytest.mark.parametrize("network", [lightningdit, mlp])
def test_float64_is_not_degraded(network):
    """Central differences in time agree to 1e-8, which float32 anywhere would not allow."""
    network = network().double()
    x, t, y = inputs(*((2, 4, 6) if hasattr(network, "blocks") else (3,)), dtype=torch.float64)
    (slope,) = torch.autograd.grad(network(x, t.requires_grad_(), y).sum(), t)
    with torch.no_grad():
        difference = (network(x, t + 1e-5, y) - network(x, t - 1e-5, y)).flatten(1).sum(1) / 2e-5
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", [*SWITCHES, "pos_learned", "auxiliary", "mlp"])
def test_dual_numbers_run_through_every_network(kind):
    if kind == "mlp":
        network = mlp(auxiliary=True).double()
    else:
        network = lightningdit(**{kind: kind in ("pos_learned", "auxiliary")}).double()
    x, t, y = inputs(*((2, 4, 6) if kind != "mlp" else (3,)), dtype=torch.float64)
    r = torch.ones_like(t) if kind in ("mlp", "auxiliary") else None
    answers = []
    for method in ["dual", "func"]:
        network.zero_grad()
        value, tangent = total_derivative(network, x, t, y, r, dx=x.sin(), dt=1.0, method=method)
        value.square().sum().backward()
        answers.append([value, tangent, *(p.grad.clone() for p in network.parameters())])
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_under_bf16_autocast_conditions_stay_float32():
    network = lightningdit(auxiliary=True)
    seen = []
    for module in [network.t_embedder, network.r_embedder, network.blocks[0].adaLN_modulation[1]]:
        module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    x, t, y = inputs(2, 4, 6)
    exact = network(x, t, y, t)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, t, y, t)
    assert seen == [torch.float32] * 3
    assert relative(out.float(), exact) < 5e-2


@pytest.mark.parametrize("network", [lightningdit, mlp])
def test_a_few_steps_of_training_lower_the_loss(network):
    network = network()
    x, t, y = inputs(*((2, 4, 6) if hasattr(network, "blocks") else (3,)), batch=16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (network(x, t, y) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("name", "constants", "shape", "message"),
    [
        (
            "lightnigdit",
            SMALL,
            (2, 4, 6),
            r"params.yaml, backbone.name: unknown 'lightnigdit' \(did you mean 'lightningdit'",
        ),
        (
            "lightningdit",
            {**SMALL, "dpeth": 3},
            (2, 4, 6),
            r"backbones.lightningdit: unknown 'dpeth' \(did you mean 'depth'\?\)",
        ),
        ("lightningdit", {**SMALL, "shape": (1,)}, (2, 4, 6), "unknown 'shape'"),
        ("lightningdit", {"patch_size": 1}, (2, 4, 6), "params.yaml, backbones.lightningdit: 'hidden' is missing"),
        (
            "lightningdit",
            {**SMALL, "rope": "off"},
            (2, 4, 6),
            "backbones.lightningdit.rope: must be true or false, got 'off'",
        ),
        ("lightningdit", {**SMALL, "depth": 0}, (2, 4, 6), r"depth: 0 is outside \[1, inf\)"),
        ("lightningdit", {**SMALL, "depth": True}, (2, 4, 6), "depth: must be a whole number"),
        ("lightningdit", {**SMALL, "label_std": "1e-3"}, (2, 4, 6), "label_std: must be a number"),
        ("lightningdit", {**SMALL, "t_std": [1.0]}, (2, 4, 6), "t_std: one number or two"),
        (
            "lightningdit",
            {**SMALL, "t_std": "big"},
            (2, 4, 6),
            "t_std: must be a number or a list, got 'big'",
        ),
        ("lightningdit", {**SMALL, "t_std": [0.1, -0.1]}, (2, 4, 6), r"t_std\[1\]: -0.1 is outside \[0, inf\)"),
        ("lightningdit", {**SMALL, "label_std": -1.0}, (2, 4, 6), r"label_std: -1.0 is outside \[0, inf\)"),
        (
            "lightningdit",
            {**SMALL, "gate_bias": float("inf")},
            (2, 4, 6),
            "gate_bias: must be a finite number, got inf",
        ),
        (
            "lightningdit",
            {**SMALL, "patch_size": 4},
            (2, 4, 6),
            "patch_size: 4x6 latents cannot be cut into patches of 4",
        ),
        ("lightningdit", {**SMALL, "heads": 3}, (2, 4, 6), "multiple of 4 x heads .* got 16 with 3 heads"),
        ("lightningdit", SMALL, (3,), r"needs latents \(C, H, W\), got shape \(3,\): set backbone.name to mlp"),
        ("mlp", POINTS, (2, 4, 6), r"needs points \(D,\), got shape \(2, 4, 6\): set backbone.name to lightningdit"),
    ],
)
def test_what_cannot_be_built_is_refused_with_value_rule_and_place(name, constants, shape, message):
    with pytest.raises(ValueError, match=message):
        backbones.build(name, constants, shape=shape, num_classes=3)
