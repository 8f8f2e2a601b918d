"""Converted SiT, DiT, REPA and EDM checkpoints give the velocity of the original formulas, written out here."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign import edm_pickle, inputs, theirs, transformer_file
from miniature import ROOT, randomised
from safetensors.torch import save_file
from torch import Tensor, nn

from facm import convert
from facm.convert import edm, repa, transformer
from facm.convert.weights import Weights
from facm.networks import backbones, checkpoint
from facm.networks.checkpoint import Config
from facm.networks.layers.blocks import sincos_positions
from facm.runtime.foreign import ForeignError


def converted(path: Path, format: str, *, trust: bool = False, **given: Any) -> tuple[nn.Module, Config]:
    """The checkpoint folder that a file becomes, loaded; of transformers' five classes, unless `given` says others."""
    source = convert.Source(path, format, trust=trust)
    given = given if format == "edm" else {"classes": 5} | given
    weights, config = convert.convert(source, convert.space(format, codec="identity"), given)
    checkpoint.save(path.parent / "out", weights, config)
    return checkpoint.load(path.parent / "out")


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to float32's rounding."""
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().mean() > 0.1, "an answer of nearly zero tests nothing"


# SiT


@pytest.mark.parametrize(("answered", "prefix"), [(8, ""), (4, ""), (8, "module.")])
def test_sit_gives_its_velocity_without_the_variance(answered: int, prefix: str, tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt", answered=answered)
    x, t, y = inputs()
    expected = theirs(path, x, t, y)[:, :4]
    transformer_file(path, answered=answered, prefix=prefix)
    network, config = converted(path, "sit", heads=2)
    close(network(x, t, y), expected)
    assert (config.backbone, config.conditioning, config.kind) == ("sit", "plain", "teacher")
    assert config.constants["learn_sigma"] == (answered == 8)
    assert (config.mean, config.std) == ([0.0] * 4, [1.0] * 4), "latents are multiplied by 0.18215 and no more"


def test_of_a_training_file_the_average_is_taken(tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt")
    x, t, y = inputs()
    expected = theirs(path, x, t, y)[:, :4]
    weights = torch.load(path, weights_only=True)
    raw = {f"module.{name}": tensor + 1 for name, tensor in weights.items()}
    torch.save({"model": raw, "ema": weights, "opt": {}, "args": None}, path)
    close(converted(path, "sit", heads=2)[0](x, t, y), expected)


def test_published_widths_tell_their_heads() -> None:
    sizes = convert.transformer.HEADS
    assert sizes == {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}
    assert transformer._heads({}, 1152, Path("x")) == 16


# REPA


def test_repas_reversed_time_and_sign_go_into_the_weights(tmp_path: Path) -> None:
    """v(x, t) = -theirs(x, 1 - t), also at the times 1 < t <= 2 of the FM format."""
    path = transformer_file(tmp_path / "x.pt", answered=4)
    network, config = converted(path, "repa", heads=2)
    x, t, y = inputs()
    for time in (t, 2 - t):
        close(network(x, time, y), -theirs(path, x, 1 - time, y))
    assert (config.backbone, config.constants["projector"]) == ("repa", False)


def test_the_fold_is_exact_in_float64_and_its_own_inverse(tmp_path: Path) -> None:
    weights = {n: w.double() for n, w in torch.load(transformer_file(tmp_path / "x.pt"), weights_only=True).items()}
    back = transformer.reverse_time(transformer.reverse_time(weights))
    for name, tensor in weights.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-13, atol=1e-13)


def test_repas_projectors_are_dropped_and_old_names_of_blocks_known(tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt", answered=4)
    x, t, y = inputs()
    expected = -theirs(path, x, 1 - t, y)
    weights = torch.load(path, weights_only=True)
    weights |= {f"projectors.0.{i}.{kind}": torch.ones(2) for i in (0, 2, 4) for kind in ("weight", "bias")}
    old = {name.replace("blocks.1.", "decoder_blocks.0."): tensor for name, tensor in weights.items()}
    torch.save({"ema": old, "model": old, "opt": {}, "args": None, "steps": 400000}, path)
    network, config = converted(path, "repa", heads=2)
    close(network(x, t, y), expected)
    assert config.step == 400000 and not any(name.startswith("projectors") for name in network.state_dict())


# DiT


def test_dits_noise_prediction_becomes_the_velocity(tmp_path: Path) -> None:
    """At the times of its own steps k: v = x1_hat - eps, eps = theirs(x_k, k), first C channels."""
    path = transformer_file(tmp_path / "x.pt")
    network, config = converted(path, "dit", heads=2)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)
    k = torch.tensor([0, 1, 250, 500, 801, 999])
    a, s = abar[k].sqrt(), (1 - abar[k]).sqrt()
    x, _, y = inputs()
    x_t, t = x.double(), a / (a + s)
    x_k = (a + s)[:, None, None, None] * x_t
    eps = theirs(path, x_k, k, y)[:, :4]
    x1 = (x_k - s[:, None, None, None] * eps) / a[:, None, None, None]
    found = network.double()(x_t, t, y)
    torch.testing.assert_close(found, x1 - eps, rtol=1e-7, atol=1e-7)
    assert (config.backbone, config.precond, config.conditioning) == ("dit", "ddpm", "plain")
    assert all(name.startswith("model.") for name in network.state_dict())


# EDM

UNET = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"augment_dim": 9},
    "with classes": {"num_classes": 5, "augment_dim": None},
    "py-meanflow's": {"channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "augment_dim": 6},
    "adaptive": {"adaptive_scale": True, "attn_resolutions": [8, 4]},
}


def denoised(network: nn.Module, x: Tensor, sigma: Tensor, y: Tensor | None, sd: float) -> Tensor:
    """EDM's D(x; sigma), x (B, C, H, W), sigma (B,) (Karras et al. 2022, Table 1)."""
    s = sigma[:, None, None, None]
    c_skip, c_out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()
    return c_skip * x + c_out * network(x / (s**2 + sd**2).sqrt(), sigma.log() / 4, y)


def unet(num_classes: int = 0, **constants: Any) -> nn.Module:
    made = backbones.build("ddpmpp", UNET | constants, shape=(3, 8, 8), num_classes=num_classes)
    return randomised(made).eval().requires_grad_(False)


@pytest.mark.parametrize("name", VARIANTS)
def test_edms_denoiser_becomes_the_velocity_and_none_of_its_code_is_run(name: str, tmp_path: Path) -> None:
    variant, ran = VARIANTS[name], tmp_path / "ran"
    theirs_ = unet(**variant)
    path = edm_pickle(tmp_path / "x.pkl", theirs_, ran, sigma_data=0.4)
    with pytest.raises(ForeignError, match="add --trust-pickle"):
        converted(path, "edm")
    network, config = converted(path, "edm", trust=True)
    expected = {k: v for k, v in (UNET | variant).items() if k != "num_classes"}
    assert config.constants.items() >= expected.items() and config.num_classes == variant.get("num_classes", 0)
    assert (config.backbone, config.precond, config.shape) == ("ddpmpp", "edm", (3, 8, 8))
    x, t, y = inputs(size=(3, 8, 8))
    labels, time = (y if config.num_classes else None), t[:, None, None, None]
    v = (denoised(theirs_, x / time, (1 - t) / t, labels, 0.4) - x) / (1 - time)
    torch.testing.assert_close(network(x, t, labels), v, rtol=1e-3, atol=1e-3)
    assert config.precond_constants == {"sigma_data": 0.4} and not ran.exists()


def test_of_edms_files_only_its_own_preconditioning_and_network_are_known(tmp_path: Path) -> None:
    path = edm_pickle(tmp_path / "x.pkl", unet(), tmp_path / "ran", kind="VPPrecond")
    with pytest.raises(ForeignError, match="x.pkl holds a VPPrecond: only EDMPrecond is known"):
        converted(path, "edm", trust=True)
    edm_pickle(path, nn.Linear(2, 2), tmp_path / "ran")
    with pytest.raises(ForeignError, match=r"is not what --from says: it has \['weight', 'bias'\]"):
        converted(path, "edm", trust=True)


def test_edms_names_in_a_safetensors_file_do_as_well(tmp_path: Path) -> None:
    theirs_ = unet()
    save_file({f"model.{name}": tensor for name, tensor in theirs_.state_dict().items()}, tmp_path / "x.safetensors")
    network, config = converted(tmp_path / "x.safetensors", "edm")
    assert all(torch.equal(network.state_dict()[f"model.{n}"], tensor) for n, tensor in theirs_.state_dict().items())
    assert config.precond_constants == {"sigma_data": 0.5}


# All


@pytest.mark.parametrize("format", ["sit", "dit", "repa"])
def test_a_position_embedding_that_is_missing_is_made_anew(format: str, tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt")
    weights = torch.load(path, weights_only=True)
    del weights["pos_embed"]
    torch.save(weights, path)
    with pytest.raises(ForeignError, match=r"has no position embedding .* --set side=N \(its pixels\)"):
        converted(path, format, heads=2)
    network, _ = converted(path, format, heads=2, side=8)
    prefix = "model." if format == "dit" else ""
    assert torch.equal(network.state_dict()[f"{prefix}pos_embed"], sincos_positions((4, 4), 32))


@pytest.mark.parametrize("format", ["sit", "dit", "repa"])
def test_a_name_that_is_missing_is_told_by_every_format(format: str, tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt")
    weights = torch.load(path, weights_only=True)
    for name in ("t_embedder.mlp.0.weight", "final_layer.linear.bias", "blocks.1.mlp.fc1.weight"):
        del weights[name]
    torch.save(weights, path)
    with pytest.raises(ForeignError) as caught:
        converted(path, format, heads=2)
    told = str(caught.value).splitlines()
    missing = {"t_embedder.mlp.0.weight", "final_layer.linear.bias", "blocks.1.mlp.fc1.weight"}
    prefix = "model." if format == "dit" else ""
    assert set(told[1:]) == {f"  missing: {prefix}{name}" for name in missing}


def misshapen(path: Path, **changed: Any) -> None:
    """Replace weights of a file, by names with '__' for '.'."""
    weights = torch.load(path, weights_only=True)
    torch.save(weights | {name.replace("__", "."): tensor for name, tensor in changed.items()}, path)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(32), "of another shape: t_embedder.mlp.0.weight: (32,), needed (32, 256)"),
        (torch.ones(32, 255), "of another shape: t_embedder.mlp.0.weight: (32, 255), needed (32, 256)"),
        (torch.ones(32, 0), "of another shape: t_embedder.mlp.0.weight: (32, 0), needed (32, 256)"),
        (torch.ones(32, 256).to_sparse(), "of another kind: t_embedder.mlp.0.weight: float32, sparse_coo; needed one"),
        (torch.ones(32, 256).to(torch.int8), "of another kind: t_embedder.mlp.0.weight: int8, strided; needed one of"),
    ],
)
def test_repa_tells_a_time_embedding_that_cannot_be_reversed(tensor: Tensor, told: str, tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt", answered=4)
    misshapen(path, t_embedder__mlp__0__weight=tensor)
    with pytest.raises(ForeignError) as caught:
        converted(path, "repa", heads=2)
    assert [line.startswith(f"  {told}") for line in str(caught.value).splitlines()[1:]] == [True]


@pytest.mark.parametrize("format", ["sit", "dit", "repa"])
def test_what_is_misshapen_is_told_by_every_format(format: str, tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt")
    misshapen(path, x_embedder__proj__weight=torch.ones(32, 16), decoder_blocks__x=torch.ones(1))
    with pytest.raises(ForeignError, match=r"proj\.weight: \(32, 16\), needed \(hidden, channels, patch, patch\)"):
        converted(path, format, heads=2)


def test_blocks_that_a_gap_would_have_two_of_are_told(tmp_path: Path) -> None:
    """REPA's old names count on from the last of `blocks`, so that none takes the place of another."""
    names = ["blocks.0.a", "blocks.2.a", "decoder_blocks.0.a", "decoder_blocks.x.a"]
    found = repa.renamed({name: torch.ones(1) for name in names})
    assert list(found) == ["blocks.0.a", "blocks.2.a", "blocks.3.a", "decoder_blocks.x.a"]


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("enc.8x8_conv.weight", torch.ones(8), r"enc\.8x8_conv\.weight: \(8,\), needed \(width, channels, 3, 3\)"),
        ("map_layer0.weight", torch.tensor(1.0), r"map_layer0\.weight: \(\), needed \(out, in\)"),
        ("enc.8x8_block0.affine.weight", torch.ones(8), r"affine\.weight: \(8,\), needed \(out, in\)"),
        ("map_label.weight", torch.ones(8), r"map_label\.weight: \(8,\), needed \(out, in\)"),
        ("enc.4x4_down.conv0.resample_filter", torch.ones(2, 2), r"\(2, 2\), needed \(1, 1, taps, taps\)"),
        ("enc.4x4_down.conv0.resample_filter", torch.zeros(1, 1, 2, 2), r"resample_filter, which is no filter"),
        ("enc.4x4_down.conv0.resample_filter", torch.ones(1, 1, 2, 2).to_sparse(), "resample_filter: float32, sparse"),
    ],
)
def test_what_is_misshapen_in_edms_network_is_told(name: str, tensor: Tensor, told: str, tmp_path: Path) -> None:
    torch.save(
        {f"model.{k}": w for k, w in (unet(num_classes=5).state_dict() | {name: tensor}).items()}, tmp_path / "x"
    )
    with pytest.raises(ForeignError, match=told):
        converted(tmp_path / "x", "edm")


# Published sizes, on the meta device: names, shapes and numbers as the publications have them


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def layer(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def xl2(final: int) -> dict[str, tuple[int, ...]]:
    """SiT-XL/2, DiT-XL/2 (32 rows in the last layer) and REPA's (16)."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, 256, 1152), "x_embedder.proj.weight": (1152, 4, 2, 2)}
    shapes |= {"x_embedder.proj.bias": (1152,), "y_embedder.embedding_table.weight": (1001, 1152)}
    shapes |= layer("t_embedder.mlp.0", 1152, 256) | layer("t_embedder.mlp.2", 1152, 1152)
    shapes |= layer("final_layer.linear", final, 1152) | layer("final_layer.adaLN_modulation.1", 2304, 1152)
    for i in range(28):
        block = f"blocks.{i}"
        shapes |= layer(f"{block}.attn.qkv", 3456, 1152) | layer(f"{block}.attn.proj", 1152, 1152)
        shapes |= layer(f"{block}.mlp.fc1", 4608, 1152) | layer(f"{block}.mlp.fc2", 1152, 4608)
        shapes |= layer(f"{block}.adaLN_modulation.1", 6912, 1152)
    return shapes


def projector() -> dict[str, tuple[int, ...]]:
    sizes = {0: (2048, 1152), 2: (2048, 2048), 4: (768, 2048)}
    return {k: v for i, size in sizes.items() for k, v in layer(f"projectors.0.{i}", *size).items()}


def xl1(*, qk_norm: bool, auxiliary: bool) -> dict[str, tuple[int, ...]]:
    """LightningDiT-XL/1 on latents (32, 16, 16), as LightningDiT (without QK-norm) and FACM published it."""
    shapes = {n: s for n, s in xl2(32).items() if ".mlp.fc" not in n and not n.startswith("x_embedder.proj.weight")}
    shapes |= {"x_embedder.proj.weight": (1152, 32, 1, 1), "final_layer.norm_final.weight": (1152,)}
    shapes |= {f"feat_rope.freqs_{part}": (256, 72) for part in ("cos", "sin")}
    for i in range(28):
        shapes |= layer(f"blocks.{i}.mlp.w12", 6144, 1152) | layer(f"blocks.{i}.mlp.w3", 1152, 3072)
        shapes |= {f"blocks.{i}.norm{j}.weight": (1152,) for j in (1, 2)}
        shapes |= {f"blocks.{i}.attn.{part}_norm.weight": (72,) for part in ("q", "k") if qk_norm}
    if auxiliary:
        shapes |= layer("r_embedder.mlp.0", 1152, 256) | layer("r_embedder.mlp.2", 1152, 1152)
    return shapes


PUBLISHED: dict[str, tuple[str, dict[str, tuple[int, ...]], str]] = {
    "SiT-XL-2-256x256.pt": ("sit", xl2(32), "plain"),
    "DiT-XL-2-256x256.pt": ("dit", xl2(32), "plain"),
    "REPA's last.pt": ("repa", xl2(16) | projector(), "plain"),
    "LightningDiT's 800 epochs": ("lightningdit", xl1(qk_norm=False, auxiliary=False), "plain"),
    "FACM's 800ep-stg1.pt": ("facm", xl1(qk_norm=True, auxiliary=False), "expanded"),
    "FACM's auxiliary ones": ("facm", xl1(qk_norm=True, auxiliary=True), "auxiliary"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_read_from_names_and_shapes_and_fit(name: str) -> None:
    format, shapes, conditioning = PUBLISHED[name]
    weights = Weights(meta(shapes), True, None, None, {})
    found = convert.load_format(format).read(weights, {}, Path("x.pt"))
    sizes = {"hidden": 1152, "depth": 28, "heads": 16, "patch_size": 1 if "lightningdit" in found.backbone else 2}
    assert found.constants.items() >= sizes.items() and found.num_classes == 1000
    assert found.conditioning == conditioning
    assert found.shape == ((32, 16, 16) if sizes["patch_size"] == 1 else (4, 32, 32))
    with torch.device("meta"):
        network = backbones.build(
            found.backbone, found.constants, shape=found.shape, num_classes=1000, auxiliary=conditioning == "auxiliary"
        ).state_dict()
    assert {n: w.shape for n, w in network.items()} == {n: w.shape for n, w in found.weights.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_width_that_lost_its_last_blocks_is_refused_unless_it_is_said(name: str) -> None:
    format, shapes, _ = PUBLISHED[name]
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(("blocks.26.", "blocks.27."))}
    weights, read = Weights(meta(shapes), True, None, None, {}), convert.load_format(format).read
    told = "x.pt has 26 blocks, the published networks of width 1152 with 16 heads have 28: .* --set depth=26"
    with pytest.raises(ForeignError, match=told):
        read(weights, {}, Path("x.pt"))
    assert read(weights, {"depth": 26}, Path("x.pt")).constants["depth"] == 26
    assert read(weights, {"heads": 18}, Path("x.pt")).constants["depth"] == 26, "no published network"


def test_edms_cifar10_network_is_known_by_its_names() -> None:
    constants = yaml.safe_load((ROOT / "presets/base.yaml").read_text())["backbones"]["ddpmpp"] | {"augment_dim": 9}
    with torch.device("meta"):
        state = backbones.build("ddpmpp", constants, shape=(3, 32, 32), num_classes=10).state_dict()
    filters = {name: torch.full((1, 1, 2, 2), 0.25) for name in state if name.endswith("resample_filter")}
    found, shape, classes = edm.describe(state | filters, {}, Path("x.pkl"))
    assert found.items() <= constants.items() and (shape, classes) == ((3, 32, 32), 10)


@pytest.mark.parametrize("width", [5, 33])
def test_a_head_that_does_not_divide_the_width_is_refused_with_the_file_s_name(width: int) -> None:
    weights = {"blocks.0.attn.q_norm.weight": torch.ones(width)}
    with pytest.raises(ForeignError, match=rf"^x.pt: blocks.0.attn.q_norm.weight says that a head has {width} channel"):
        transformer._heads(weights, 32, Path("x.pt"))


def test_sizes_of_no_network_are_refused_with_the_file_s_name(tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=r"x.pt is of no network that can be built: .*heads"):
        converted(transformer_file(tmp_path / "x.pt"), "sit", heads=3, classes=5)
