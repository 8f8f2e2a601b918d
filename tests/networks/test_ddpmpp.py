"""DDPM++: EDM's names, counts, initial weights and answers; its blocks, its precision, what is refused."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from miniature import BASE, UNET, randomised
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from facm.flow.derivative import METHODS, total_derivative
from facm.flow.interface import Query
from facm.networks import backbones
from facm.networks.backbones.ddpmpp import Block, Convolution, Precise
from facm.training.passes import Plan, prepare

CIFAR = {"shape": (3, 32, 32), "num_classes": 0}
VARIANTS: dict[str, dict[str, Any]] = {
    "EDM": {"augment_dim": 9},
    "py-meanflow": {"channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "augment_dim": 6},
    "sCM": {"adaptive_scale": True, "pixel_norm": True},
    "deep": {"channel_mult": [1, 2, 3], "num_blocks": 2, "attn_resolutions": [4, 2], "time_scale": 3.0},
}
# methods.md, 6.1: name, channels in and out, whether it attends
BLOCKS = [
    *[(f"enc.32x32_block{i}", 128 if i == 0 else 256, 256, False) for i in range(4)],
    ("enc.16x16_down", 256, 256, False),
    *[(f"enc.16x16_block{i}", 256, 256, True) for i in range(4)],
    ("enc.8x8_down", 256, 256, False),
    *[(f"enc.8x8_block{i}", 256, 256, False) for i in range(4)],
    ("dec.8x8_in0", 256, 256, True),
    ("dec.8x8_in1", 256, 256, False),
    *[(f"dec.8x8_block{i}", 512, 256, False) for i in range(5)],
    ("dec.16x16_up", 256, 256, False),
    *[(f"dec.16x16_block{i}", 512, 256, i == 4) for i in range(5)],
    ("dec.32x32_up", 256, 256, False),
    *[(f"dec.32x32_block{i}", 512 if i < 4 else 384, 256, False) for i in range(5)],
]


def unet(num_classes: int = 3, auxiliary: bool = False, dropout: float = 0.0, side: int = 4, **constants: Any) -> Any:
    """A small network with random weights."""
    sizes = {"shape": (2, side, side), "num_classes": num_classes, "auxiliary": auxiliary, "dropout": dropout}
    network = randomised(backbones.build("ddpmpp", UNET | constants, **sizes))
    for name, weight in network.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.data += 1
    return network


def inputs(dtype: torch.dtype = torch.float32, batch: int = 4, side: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, t in both formats, y with a null label, v."""
    x, v = torch.randn(2, batch, 2, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.tensor([0.1, 0.7, 1.2, 1.9], dtype=dtype)[:batch], torch.arange(batch), v


# EDM's layout


def expected(blocks: list[tuple[str, int, int, bool]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights and buffers of the CIFAR-10 network."""
    shapes: dict[str, tuple[int, ...]] = {"map_layer0": (512, 128), "map_layer1": (512, 512)}
    shapes |= {"enc.32x32_conv": (128, 3, 3, 3), "dec.32x32_aux_norm": (256,), "dec.32x32_aux_conv": (3, 256, 3, 3)}
    buffers = {}
    for name, c_in, c_out, attends in blocks:
        shapes |= {f"{name}.norm0": (c_in,), f"{name}.conv0": (c_out, c_in, 3, 3), f"{name}.affine": (c_out, 512)}
        shapes |= {f"{name}.norm1": (c_out,), f"{name}.conv1": (c_out, c_out, 3, 3)}
        resampled = name.endswith(("down", "up"))
        if c_in != c_out or resampled:
            shapes[f"{name}.skip"] = (c_out, c_in, 1, 1)
        if resampled:
            buffers |= {f"{name}.{layer}.resample_filter": (1, 1, 2, 2) for layer in ("conv0", "skip")}
        if attends:
            shapes |= {f"{name}.norm2": (c_out,), f"{name}.qkv": (3 * c_out, c_out, 1, 1)}
            shapes[f"{name}.proj"] = (c_out, c_out, 1, 1)
    weights = {f"{name}.weight": shape for name, shape in shapes.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in shapes.items()} | buffers


@pytest.fixture(scope="module")
def cifar() -> nn.Module:
    with torch.device("meta"):
        return backbones.build("ddpmpp", BASE["backbones"]["ddpmpp"], **CIFAR)


def test_the_defaults_are_edms_network_for_cifar_weight_by_weight(cifar: Any) -> None:
    assert sum(parameter.numel() for parameter in cifar.parameters()) == 55_732_739
    assert {name: tuple(tensor.shape) for name, tensor in cifar.state_dict().items()} == expected(BLOCKS)
    assert [block.in_channels for block in cifar.blocks] == [c_in for _, c_in, _, _ in BLOCKS]


def test_labels_and_augmentations_have_edms_layers() -> None:
    with torch.device("meta"):
        constants = BASE["backbones"]["ddpmpp"] | {"augment_dim": 9}
        network = backbones.build("ddpmpp", constants, shape=(3, 32, 32), num_classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 55_732_739 + 9 * 128 + 10 * 128 + 128
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if "map_" in name}
    assert shapes.items() >= {"map_label.weight": (128, 10), "map_label.bias": (128,)}.items()
    assert shapes["map_augment.weight"] == (128, 9) and "map_augment.bias" not in shapes


# EDM's function


def direct(state: dict[str, Tensor], order: list[str], x: Tensor, t: Tensor, y: Any, **options: Any) -> Tensor:
    """SongUNet evaluated from its state dict, attention written out, filters as averages."""
    half = state["map_layer0.weight"].shape[1] // 2
    angles = options.get("time_scale", 1.0) * t[:, None] * (1 / 10000) ** (torch.arange(half).to(t) / (half - 1))
    e = torch.cat([angles.sin(), angles.cos()], 1)

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def normed(name: str, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (min(32, x.shape[1] // 4), -1)).flatten(2)
        centred = groups - groups.mean(2, keepdim=True)
        unit = centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()
        scale, shift = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return unit.reshape(x.shape) * scale + shift

    def resampled(name: str, x: Tensor) -> Tensor:
        if name.endswith("down"):
            return stretched(x, down=True)
        return stretched(x, down=False) if name.endswith("up") else x

    def stretched(x: Tensor, *, down: bool) -> Tensor:
        if options["taps"] == [1, 1]:
            return F.avg_pool2d(x, 2) if down else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        line = torch.tensor(options["taps"]).to(x) / sum(options["taps"])
        kernel = torch.outer(line, line)[None, None].expand(x.shape[1], 1, 4, 4)
        resample = F.conv2d if down else F.conv_transpose2d
        return resample(x, kernel * (1 if down else 4), stride=2, padding=1, groups=x.shape[1])

    if y is not None:
        classes = state["map_label.weight"].shape[1]
        e = e + affine("map_label", math.sqrt(classes) * torch.eye(classes + 1).to(x)[y, :classes])
    e = F.silu(affine("map_layer1", F.silu(affine("map_layer0", e))))
    skips: list[Tensor] = []
    for name in order:
        if name.endswith("_conv") and "aux" not in name:
            x = conv(name, x)
        elif name.endswith("aux_norm"):
            x = normed(name, x)
        elif name.endswith("aux_conv"):
            return conv(name, F.silu(x))
        else:
            c_in = len(state[f"{name}.norm0.weight"])
            x = torch.cat([x, skips.pop()], 1) if x.shape[1] != c_in else x
            h = conv(f"{name}.conv0", resampled(name, F.silu(normed(f"{name}.norm0", x))))
            told = affine(f"{name}.affine", e)[..., None, None]
            if options.get("adaptive_scale"):
                told = told.unflatten(1, (2, -1))
                scale, shift = (told / (told.square().mean(2, keepdim=True) + 1e-8).sqrt()).unbind(1)  # pixel norm
                h = normed(f"{name}.norm1", h) * (1 + scale) + shift
            else:
                h = normed(f"{name}.norm1", h + told)
            h = conv(f"{name}.conv1", F.silu(h))
            straight = conv(f"{name}.skip", resampled(name, x)) if f"{name}.skip.weight" in state else x
            x = (h + straight) / math.sqrt(2)
            if f"{name}.qkv.weight" in state:
                q, k, v = conv(f"{name}.qkv", normed(f"{name}.norm2", x)).flatten(2).unflatten(1, (-1, 3)).unbind(2)
                weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(x.shape[1]), 2)
                answer = torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)
                x = (x + conv(f"{name}.proj", answer)) / math.sqrt(2)
        if name.startswith("enc"):
            skips.append(x)
    raise AssertionError("no last layer")


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_answers_as_edms_formulas_do_with_its_weights(variant: str, classes: int) -> None:
    constants = VARIANTS[variant]
    side = 8 if variant == "deep" else 4
    network = unet(num_classes=classes, side=side, **constants).double()
    x, t, y, _ = inputs(torch.float64, side=side)
    labels = y if classes else None
    order = [f"{part}.{name}" for part in ("enc", "dec") for name in getattr(network, part)]
    options = {"taps": constants.get("resample_filter", [1, 1])} | constants
    torch.testing.assert_close(
        network(x, t, labels), direct(network.state_dict(), order, x, t, labels, **options), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_its_tangent_is_that_of_torch_func_and_the_limit_of_differences(variant: str, auxiliary: bool) -> None:
    side, h = (8 if variant == "deep" else 4), 1e-5
    network = unet(auxiliary=auxiliary, side=side, **VARIANTS[variant]).double()
    x, t, y, v = inputs(torch.float64, side=side)
    r, dr = (t / 2, 0.5) if auxiliary else (None, None)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        ends = [network(x + s * v, t + s, y, None if r is None else r + s / 2) for s in (h, -h)]
        dual, func = (total_derivative(network, x, t, y, r, dx=v, dt=1.0, dr=dr, method=m) for m in METHODS)
    torch.testing.assert_close(dual[1], func[1], rtol=1e-9, atol=1e-9)
    difference = (ends[0] - ends[1]) / (2 * h)
    assert ((dual[1] - difference).norm() / difference.norm()).item() < 1e-7


def test_a_fresh_network_has_edms_initial_scales_and_answers_nearly_zero() -> None:
    torch.manual_seed(0)
    wide = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    network = backbones.build("ddpmpp", wide, shape=(3, 4, 4), num_classes=3)
    for name, layer in network.named_modules():
        if not isinstance(layer, Convolution | Precise):
            continue
        fan_out, fan_in = layer.weight.shape[0], layer.weight[0].numel()
        fan_out *= layer.weight[0, 0].numel()
        gain = 1e-5 if name.endswith(("conv1", "proj", "aux_conv")) else 0.2**0.5 if name.endswith("qkv") else 1
        bound = gain * math.sqrt(6 / (fan_in + fan_out))
        assert 0.9 * bound < layer.weight.abs().max() <= bound, name
        assert layer.bias is None or layer.bias.abs().sum() == 0
    x = torch.randn(5, 3, 4, 4)
    assert network(x, torch.rand(5), torch.arange(5) % 4).abs().max() < 1e-3


def test_the_null_label_is_the_absence_of_a_label() -> None:
    network, (x, t, y, _) = unet(), inputs()
    plain = unet(num_classes=0)
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("map_label")}
    plain.load_state_dict(weights)
    network.map_label.bias.data.zero_()
    torch.testing.assert_close(network(x, t, torch.full_like(y, 3)), plain(x, t))
    assert not torch.allclose(network(x, t, torch.zeros_like(y)), plain(x, t), atol=1e-3)


def test_time_scale_multiplies_both_times() -> None:
    network, scaled, (x, t, y, _) = unet(auxiliary=True), unet(auxiliary=True, time_scale=3.0), inputs()
    torch.testing.assert_close(scaled(x, t, y, t / 2), network(x, 3 * t, y, 1.5 * t))


@pytest.mark.parametrize("adaptive_scale", [False, True])
def test_pixel_norm_makes_the_length_of_the_modulations_irrelevant(adaptive_scale: bool) -> None:
    x, t, y, _ = inputs()
    for pixel_norm in (True, False):
        network = unet(adaptive_scale=adaptive_scale, pixel_norm=pixel_norm)
        before = network(x, t, y)
        for block in network.blocks:
            for parameter in block.affine.parameters():
                parameter.data *= 3
        change = ((network(x, t, y) - before).norm() / before.norm()).item()
        assert change < 1e-4 if pixel_norm else change > 0.05


# How it is computed


def gradient(plan: Plan, **options: Any) -> list[Tensor]:
    """A value and a derivative from one network, and the gradient of their values."""
    x, t, y, v = inputs()
    keys = torch.arange(4) if options.get("dropout") else None
    passes = prepare(unet(**options), plan)
    first, (second, slope) = passes([Query(x, t, y, key=keys), Query(x, t, y, key=keys, dx=v, dt=t * 0 + 1)])
    (first.square().sum() + second.square().sum()).backward()
    return [first, second, slope, *[parameter.grad for parameter in passes.parameters()]]


def test_recomputed_blocks_give_the_same_values_and_gradients() -> None:
    for one, other in zip(gradient(Plan(), dropout=0.3), gradient(Plan(checkpoint=True), dropout=0.3), strict=True):
        torch.testing.assert_close(one, other)


def test_it_is_compiled_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(function) or function)
    network = prepare(unet(), Plan(compile=True)).network
    assert len(asked) == len(network.blocks) == 10 and all(isinstance(f.__self__, Block) for f in asked)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to AOTAutograd: with Inductor, which agreed once too, this takes minutes."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend="aot_eager", **options))
    torch._dynamo.reset()
    options: dict[str, Any] = {"dropout": 0.3, "adaptive_scale": True, "pixel_norm": True}
    for one, other in zip(gradient(Plan(), **options), gradient(Plan(compile=True), **options), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_under_bfloat16_embeddings_norms_and_the_residual_stream_stay_float32() -> None:
    network, (x, t, y, v) = unet(auxiliary=True), inputs()
    exact, seen = network(x, t, y, t / 2), dict[str, set[torch.dtype]]()
    for name, module in network.named_modules():
        kind = "qkv" if name.endswith("qkv") else type(module).__name__
        module.register_forward_hook(lambda m, args, out, kind=kind: seen.setdefault(kind, set()).add(out.dtype))
    answer, (_, slope) = prepare(network, Plan(precision="bfloat16"))(
        [Query(x, t, y, t / 2), Query(x, t, y, t / 2, v, torch.ones_like(t))]
    )
    assert all(seen[kind] == {torch.float32} for kind in ("Precise", "GroupNorm", "Block"))
    assert seen["qkv"] == {torch.bfloat16} and answer.dtype == slope.dtype == torch.float32
    assert 1e-5 < ((answer - exact).norm() / exact.norm()).item() < 5e-2


# Refusals


@pytest.mark.parametrize(
    ("constants", "shape", "message"),
    [
        ({}, (3,), r"needs pictures \(C, S, S\), got shape \(3,\): set backbone.name to mlp"),
        ({}, (1, 4, 6), "channel_mult: 2 levels need square pictures whose side is a multiple of 2, got 4x6"),
        ({"channel_mult": [1, 1, 1, 1]}, (1, 4, 4), "4 levels need square pictures whose side is a multiple of 8"),
        ({"channel_mult": []}, (1, 4, 4), r"channel_mult: must be a list of whole numbers of at least 1.*got \[\]"),
        ({"channel_mult": [1, 1.5]}, (1, 4, 4), r"channel_mult\[1\]: must be a whole number, got 1.5"),
        ({"channel_mult": 2}, (1, 4, 4), "channel_mult: must be a list"),
        ({"attn_resolutions": [16]}, (1, 4, 4), r"attn_resolutions: must be .* sides \[4, 2\], got \[16\]"),
        ({"attn_resolutions": 4}, (1, 4, 4), "attn_resolutions: must be a list"),
        ({"resample_filter": [1, 2, 1]}, (1, 4, 4), "resample_filter: must be a list of an even number of taps"),
        ({"resample_filter": "box"}, (1, 4, 4), "resample_filter: must be a list"),
        ({"augment_dim": 0}, (1, 4, 4), r"augment_dim: 0 is outside \[1, inf\) or null"),
        ({"model_channels": 6}, (1, 4, 4), "model_channels: must be a multiple of 4, got 6"),
        ({"model_channels": 132}, (1, 4, 4), "model_channels: a layer of 132 channels cannot be normalised in 32 gro"),
        ({"model_channels": 8.0}, (1, 4, 4), "model_channels: must be a whole number, got 8.0"),
        ({"time_scale": "1e3"}, (1, 4, 4), "time_scale: must be a number, got '1e3'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_value_rule_and_place(constants, shape, message) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        backbones.build("ddpmpp", UNET | constants, shape=shape, num_classes=0)
    assert "params.yaml, backbones.ddpmpp" in str(refusal.value) or shape == (3,)


def test_a_missing_or_surplus_condition_is_refused() -> None:
    plain, auxiliary, (x, t, y, _) = unet(), unet(auxiliary=True), inputs()
    for network, label, r in [(plain, None, None), (plain, y, t), (auxiliary, y, None)]:
        with pytest.raises(ValueError, match="only with it"):
            network(x, t, label, r)
