"""DiT, SiT, REPA and LightningDiT: published sizes, names, starting weights, and the published formulas written out."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facm.flow.derivative import total_derivative
from facm.flow.dual import Dual
from facm.flow.interface import Query
from facm.networks import backbones
from facm.networks.backbones import dit, lightningdit, repa, sit
from facm.training.passes import Passes

SMALL = {"patch_size": 2, "hidden": 16, "depth": 2, "heads": 2}
FAMILY = {
    "dit": {},
    "sit": {},
    "repa": {"encoder_depth": 1, "projector_width": 12, "features": 6},
}
SHAPE = (2, 4, 6)


def build(name: str, shape=SHAPE, num_classes=3, auxiliary=False, **constants: Any) -> Any:
    constants = {**SMALL, **FAMILY[name], **constants}
    return backbones.build(name, constants, shape=shape, num_classes=num_classes, auxiliary=auxiliary)


def randomised(network: nn.Module, std: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return network.double()


def inputs(shape=SHAPE, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(batch, *shape, generator=generator).double(), torch.rand(batch, generator=generator).double()
    return x, t, torch.arange(batch) % 4


# Sizes


def numbers(name: str, size: str, shape=(4, 32, 32), auxiliary: bool = False, **constants: Any) -> tuple[int, int]:
    """Trained weights, and all that a state dict's `pos_embed` adds."""
    with torch.device("meta"):
        network: Any = backbones.build(
            name, {"variant": size, **constants}, shape=shape, num_classes=1000, auxiliary=auxiliary
        )
    trained = sum(parameter.numel() for parameter in network.parameters())
    return trained, trained + network.pos_embed.numel()


def of_dit(size: str, channels: int, answered: int) -> int:
    """Trained weights of a DiT, of which a block has 18 D^2 + 15 D."""
    width, patch = dit.DiT.SIZES[size]["hidden"], dit.DiT.SIZES[size]["patch_size"]
    blocks = dit.DiT.SIZES[size]["depth"] * (18 * width**2 + 15 * width)
    embeddings = channels * patch**2 * width + width + 256 * width + width + width**2 + width + 1001 * width
    return blocks + embeddings + 2 * width**2 + 2 * width + patch**2 * answered * (width + 1)


DIT = {  # what a state dict holds, positions included; the paper has them in millions (Table 4)
    "S/2": 32_963_360, "S/4": 32_945_024, "S/8": 33_148_160,
    "B/2": 130_512_416, "B/4": 130_475_648, "B/8": 130_881_536,
    "L/2": 458_102_816, "L/4": 458_053_760, "L/8": 458_594_816,
    "XL/2": 675_129_632, "XL/4": 675_074_432, "XL/8": 675_683_072,
}  # fmt: skip
LIGHTNING = {  # 32 x 16 x 16 latents, with QK-norm
    "B/1": 130_557_728, "B/2": 130_557_824, "L/2": 458_156_128, "XL/1": 675_260_768, "XL/2": 675_260_864,
    "1p0B/1": 1_029_404_192, "1p0B/2": 1_029_404_288, "1p6B/1": 1_631_770_704, "1p6B/2": 1_631_770_800,
}  # fmt: skip


@pytest.mark.parametrize("size", DIT)
def test_every_published_size_of_dit_and_sit_has_its_number_of_weights(size: str) -> None:
    trained, everything = numbers("dit", size)
    assert trained == of_dit(size, 4, 8) and everything == DIT[size]
    assert numbers("sit", size) == (trained, everything)
    patch = dit.DiT.SIZES[size]["patch_size"]
    assert everything - trained == (32 // patch) ** 2 * dit.DiT.SIZES[size]["hidden"]


def test_the_sizes_are_those_of_the_paper_in_millions() -> None:
    assert [int(DIT[f"{width}/2"] / 1e6) for width in ("S", "B", "L", "XL")] == [32, 130, 458, 675]
    assert DIT.keys() == dit.DiT.SIZES.keys() == sit.SiT.SIZES.keys() == repa.REPA.SIZES.keys()
    assert LIGHTNING.keys() == lightningdit.LightningDiT.SIZES.keys()
    assert dit.DiT.SIZES["L/4"] == {"hidden": 1024, "depth": 24, "heads": 16, "patch_size": 4}


def test_the_numbers_of_the_largest_are_exact() -> None:
    assert numbers("dit", "XL/2") == numbers("sit", "XL/2") == (674_834_720, 675_129_632)
    assert numbers("sit", "XL/2", learn_sigma=False) == (674_816_272, 675_111_184)
    assert numbers("repa", "XL/2") == (682_947_600, 683_242_512)  # 683.2 M with projector
    assert numbers("repa", "XL/2", projector=False) == numbers("sit", "XL/2", learn_sigma=False)
    assert numbers("repa", "XL/2", coefficient=0.0) == numbers("sit", "XL/2", learn_sigma=False)
    projector = sum(a * b + b for a, b in [(1152, 2048), (2048, 2048), (2048, 768)])
    assert numbers("repa", "XL/2")[0] - numbers("repa", "XL/2", projector=False)[0] == projector


def of_lightningdit(size: str, channels: int) -> int:
    """Trained weights of a LightningDiT with QK-norm, whose SwiGLU has 3 D W."""
    of = lightningdit.LightningDiT.SIZES[size]
    width, patch, middle = of["hidden"], of["patch_size"], int(2 * 4 * of["hidden"] / 3)
    attention = 4 * width**2 + 4 * width + 2 * width // of["heads"]
    block = attention + 3 * width * middle + 2 * middle + width + 2 * width + 6 * width**2 + 6 * width
    embeddings = channels * patch**2 * width + width + 256 * width + width + width**2 + width + 1001 * width
    last = width + 2 * width**2 + 2 * width + patch**2 * channels * (width + 1)
    return of["depth"] * block + embeddings + last


@pytest.mark.parametrize("size", LIGHTNING)
def test_every_published_size_of_lightningdit_has_its_number_of_weights(size: str) -> None:
    trained, everything = numbers("lightningdit", size, (32, 16, 16))
    assert trained == of_lightningdit(size, 32) and everything == LIGHTNING[size]


def test_lightningdits_published_numbers_are_exact() -> None:
    assert numbers("lightningdit", "XL/1", (32, 16, 16)) == (674_965_856, 675_260_768)
    assert numbers("lightningdit", "XL/1", (32, 16, 16), auxiliary=True)[1] == 676_885_088
    without = numbers("lightningdit", "XL/1", (32, 16, 16), qk_norm=False)[1]
    assert 675_260_768 - without == 28 * 2 * 72, "queries and keys of each block"


# `size` in params.yaml


def test_a_size_stands_for_four_constants_and_leaves_the_others() -> None:
    block = {"variant": "B/4", "patch_size": None, "hidden": None, "depth": None, "heads": None, "qk_norm": True}
    resolved = {"patch_size": 4, "hidden": 768, "depth": 12, "heads": 12, "qk_norm": True}
    assert backbones.resolve("sit", block) == resolved
    assert backbones.resolve("sit", block | {"hidden": 768}) == resolved, "what agrees may stand there"
    assert backbones.resolve("sit", resolved) == resolved
    assert backbones.resolve("mlp", {"hidden": 3}) == {"hidden": 3}


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("sit", {"variant": "XL/2", "hidden": 64}, "variant XL/2 has hidden 1152, but hidden is 64: set"),
        ("dit", {"variant": "XXL/2"}, r"dit.variant: unknown 'XXL/2' \(did you mean 'XL/2'\?\); known: S/2, S/4"),
        ("dit", {"variant": "XL/1"}, "backbones.dit.variant: unknown 'XL/1'"),
        ("lightningdit", {"variant": "S/2"}, "backbones.lightningdit.variant: unknown 'S/2'"),
        ("mlp", {"variant": "S/2", "hidden": 3, "depth": 1}, "backbones.mlp: unknown 'variant'"),
        ("dit", {"variant": None, **SMALL, "hidden": None}, "params.yaml, backbones.dit: 'hidden' is missing"),
        ("dit", {**SMALL, "rope": True}, "backbones.dit: unknown 'rope'"),
        ("sit", {**SMALL, "heads": 3}, "params.yaml, backbones.sit.hidden: must be a multiple of 4 x heads"),
        ("repa", {**SMALL, "encoder_depth": 3}, "repa.encoder_depth: 3 must be one of the blocks 1..2"),
        ("repa", {**SMALL, "encoder_depth": 1, "coefficient": -1.0}, r"repa.coefficient: -1.0 is outside \[0, inf\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(name: str, constants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbones.build(name, constants, shape=(4, 8, 8), num_classes=3)


# Names and shapes


def published(width: int, depth: int, patch: int, answered: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published state dict of DiT or SiT."""
    layers = {
        "x_embedder.proj": (width, 4, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch**2 * answered, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for i in range(depth):
        layers |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (4 * width, width),
            f"blocks.{i}.mlp.fc2": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
    named = {f"{layer}.weight": shape for layer, shape in layers.items()}
    named |= {f"{layer}.bias": shape[:1] for layer, shape in layers.items()}
    return named | {"pos_embed": (1, tokens, width), "y_embedder.embedding_table.weight": (1001, width)}


PROJECTOR = {f"projectors.0.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("name", "answered"), [("dit", 8), ("sit", 8), ("repa", 4)])
def test_state_dicts_have_the_published_names_and_shapes(name: str, answered: int) -> None:
    with torch.device("meta"):
        network = backbones.build(name, {"variant": "XL/2"}, shape=(4, 32, 32), num_classes=1000)
    found = shapes(network)
    projector = {key: found.pop(key) for key in list(found) if key.startswith("projectors.")}
    assert found == published(1152, 28, 2, answered, 256)
    assert set(projector) == (PROJECTOR if name == "repa" else set())
    if name == "repa":
        layers = [projector[f"projectors.0.{i}.weight"] for i in (0, 2, 4)]
        assert layers == [(2048, 1152), (2048, 2048), (768, 2048)]


def test_qk_norm_and_the_second_time_add_their_names_only() -> None:
    plain, more = build("sit"), build("sit", auxiliary=True, qk_norm=True)
    added = {
        name.removeprefix("blocks.0.").removeprefix("blocks.1.") for name in set(shapes(more)) - set(shapes(plain))
    }
    parts = ("weight", "bias")
    assert added == {
        *(f"r_embedder.mlp.{i}.{part}" for i in (0, 2) for part in parts),
        *(f"attn.{of}_norm.{part}" for of in "qk" for part in parts),
    }
    assert more.blocks[0].attn.q_norm.eps == 1e-5 and more.blocks[0].norm1.eps == 1e-6, "as timm and DiT have it"


def test_what_is_saved_but_can_be_made_anew_is_the_positions() -> None:
    assert set(dict(build("dit").named_buffers(remove_duplicate=False))) & set(shapes(build("dit"))) == {"pos_embed"}
    light = backbones.build("lightningdit", SMALL, shape=SHAPE, num_classes=3)
    saved = set(dict(light.named_buffers())) & set(light.state_dict())
    assert saved == {"pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}


def test_a_student_has_no_projector() -> None:
    constants = backbones.of_student("repa", {**SMALL, **FAMILY["repa"]})
    network: Any = backbones.build("repa", constants, shape=SHAPE, num_classes=3)
    assert network.projectors is None and PROJECTOR.isdisjoint(network.state_dict())
    with pytest.raises(ValueError, match=r"this network has no projector: it serves pretraining with backbones.repa"):
        network.with_tokens(*inputs())
    assert backbones.of_student("sit", SMALL) == SMALL


# Starting weights


@pytest.mark.parametrize("name", FAMILY)
def test_a_fresh_network_starts_as_published(name: str) -> None:
    torch.manual_seed(0)
    large = {"hidden": 256, "depth": 1, "heads": 4}
    network = build(name, **large, num_classes=60)
    assert not network(*(part.float() if part.is_floating_point() else part for part in inputs())).any()
    weights = network.state_dict()
    for i in (0, 2):
        assert weights[f"t_embedder.mlp.{i}.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["y_embedder.embedding_table.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for key in ("blocks.0.adaLN_modulation.1", "final_layer.adaLN_modulation.1", "final_layer.linear"):
        assert not weights[f"{key}.weight"].any() and not weights[f"{key}.bias"].any()
    assert all(not tensor.any() for key, tensor in weights.items() if key.endswith("bias"))
    drawn = ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "x_embedder.proj"]
    for key in drawn + (["projectors.0.0", "projectors.0.2", "projectors.0.4"] if name == "repa" else []):
        weight = weights[f"{key}.weight"].flatten(1)
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.9 * bound < weight.abs().max() <= bound and abs(weight.std() / bound - 3**-0.5) < 0.1, key


# The published formulas, written out


def written_out(w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, heads: int, patch: int, watched: int) -> Any:
    """The forward pass of facebookresearch/DiT and willisma/SiT; tokens behind block `watched`; all channels."""

    def linear(name: str, z: Tensor) -> Tensor:
        return z @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def modulated(z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return norm(z) * (1 + scale[:, None]) + shift[:, None]

    def attention(name: str, z: Tensor) -> Tensor:
        q, k, v = linear(f"{name}.qkv", z).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        p = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return linear(f"{name}.proj", (p @ v).permute(0, 2, 1, 3).flatten(2))

    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128).double() / 128)
    c = torch.cat([angles.cos(), angles.sin()], dim=-1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", c))) + w["y_embedder.embedding_table.weight"][y]
    z = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch).flatten(2).mT + w["pos_embed"]
    seen = None
    for i in range(sum(key.endswith("attn.qkv.weight") for key in w)):
        parts = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)
        z = z + parts[2][:, None] * attention(f"blocks.{i}.attn", modulated(z, parts[0], parts[1]))
        inner = F.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(z, parts[3], parts[4])), approximate="tanh")
        z = z + parts[5][:, None] * linear(f"blocks.{i}.mlp.fc2", inner)
        seen = z if i + 1 == watched else seen
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    z = linear("final_layer.linear", modulated(z, shift, scale))
    h, width = x.shape[2] // patch, x.shape[3] // patch
    z = z.reshape(len(x), h, width, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", z).reshape(len(x), -1, *x.shape[2:]), seen


@pytest.mark.parametrize(("name", "scale"), [("dit", 999.0), ("sit", 1.0), ("repa", 1.0)])
def test_the_answer_is_that_of_the_published_formulas(name: str, scale: float) -> None:
    network = randomised(build(name))
    x, t, y = inputs()
    t = (scale * t).round() if name == "dit" else t
    whole, seen = written_out(dict(network.state_dict()), x, t, y, heads=2, patch=2, watched=1)
    assert whole.shape[1] == (2 if name == "repa" else 4)
    torch.testing.assert_close(network(x, t, y), whole[:, :2], rtol=1e-9, atol=1e-9)
    if name == "repa":
        w = network.state_dict()
        for i in (0, 2, 4):
            seen = (F.silu(seen) if i else seen) @ w[f"projectors.0.{i}.weight"].T + w[f"projectors.0.{i}.bias"]
        answer, tokens = network.with_tokens(x, t, y)
        torch.testing.assert_close(tokens, seen, rtol=1e-9, atol=1e-9)
        assert torch.equal(answer, network(x, t, y)) and tokens.shape == (3, 6, 6)


def test_the_variance_of_learn_sigma_is_the_second_half_of_the_channels() -> None:
    with_sigma, without = randomised(build("sit")), build("sit", learn_sigma=False).double()
    weights = dict(with_sigma.state_dict())
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):  # rows: (p p 2C), channels innermost
        weights[key] = weights[key].unflatten(0, (4, 4))[:, :2].flatten(0, 1)
    without.load_state_dict(weights)
    torch.testing.assert_close(with_sigma(*inputs()), without(*inputs()))


# Tangents


@pytest.mark.parametrize("change", [{}, {"pixel_norm": True}, {"qk_norm": True}, {"auxiliary": True}], ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_the_tangent_is_that_of_torch_func_and_of_finite_differences(name: str, change: dict[str, Any]) -> None:
    network, (x, t, y) = randomised(build(name, **change)), inputs()
    t, dt = (1 + 997 * t, -800.0) if name == "dit" else (t, 1.0)
    r, v = (torch.full_like(t, 0.7) if "auxiliary" in change else None), x.sin()
    answers = [total_derivative(network, x, t, y, r, dx=v, dt=dt, method=method) for method in ("dual", "func")]
    for dual, func in zip(*answers, strict=True):
        torch.testing.assert_close(dual, func, rtol=1e-9, atol=1e-9)
    h = 1e-7 if name == "dit" else 1e-5  # k moves 800 times as fast as t
    ends = [network(x + step * v, t + step * dt, y, r) for step in (h, -h)]
    torch.testing.assert_close(answers[0][1], (ends[0] - ends[1]).detach() / (2 * h), rtol=1e-4, atol=1e-4)


# Tokens in the passes of a step


def test_tokens_are_answered_beside_the_velocity_with_one_pass_and_a_gradient() -> None:
    network, (x, t, y) = randomised(build("repa")), inputs()
    calls = []
    network.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    ((answer, tokens),) = Passes(network)([Query(x, t, y, None, tokens=True)])
    assert len(calls) == 1
    torch.testing.assert_close(answer, network(x, t, y))
    tokens.square().sum().backward()
    touched = {key for key, weight in network.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {"blocks.0.attn.qkv.weight", "projectors.0.4.weight"} <= touched
    assert not any(key.startswith(("blocks.1.", "final_layer.")) for key in touched), "only what lies before"


@pytest.mark.parametrize("name", ["sit", "repa"])
def test_tokens_are_refused_with_a_derivative_and_without_a_projector(name: str) -> None:
    x, t, y = inputs()
    dx = x if name == "repa" else None
    with pytest.raises(ValueError, match="tokens go without a derivative and with a network that has a projector, got"):
        Passes(randomised(build(name)))([Query(x, t, y, None, dx=dx, dt=t, tokens=True)])


def test_a_network_with_a_projector_runs_on_dual_numbers() -> None:
    network, (x, t, y) = randomised(build("repa")), inputs()
    answer: Any = network(Dual(x, x), Dual(t, t), y)
    assert isinstance(answer, Dual) and answer.shape == x.shape
