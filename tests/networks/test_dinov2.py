"""DINOv2: its published format, its position embedding and preparation, and its features against plain formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from facm.networks.features import dinov2
from facm.networks.features.dinov2 import DINOv2, build, prepare, resized
from facm.runtime import files

WIDTH, DEPTH, HEADS = 16, 2, 2
PUBLISHED_BYTES, PUBLISHED_PARAMETERS = 1_217_586_395, 304_368_640  # the file's; float32, and 112 kB of names


def published_format(width: int, depth: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of the published file."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    weights = {
        "cls_token": drawn(1, 1, width),
        "pos_embed": drawn(1, 1 + 37 * 37, width),
        "mask_token": drawn(1, width),
        "patch_embed.proj.weight": drawn(width, 3, 14, 14),
        "patch_embed.proj.bias": drawn(width),
        "norm.weight": drawn(width),
        "norm.bias": drawn(width),
    }
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(depth):
        for name, shape in linear.items():
            weights[f"blocks.{block}.{name}.weight"] = drawn(*shape)
            weights[f"blocks.{block}.{name}.bias"] = drawn(shape[0])
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            weights[f"blocks.{block}.{name}"] = drawn(width)
    return weights


def directly(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The class token (B, width) for pictures (B, 3, 224, 224), written out: pre-norm blocks with layer scale."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    patches = functional.unfold(x, 14, stride=14).transpose(1, 2)
    tokens = patches @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    z = torch.cat([weights["cls_token"].expand(len(x), -1, -1), tokens], 1) + resized(weights["pos_embed"])
    for block in range(DEPTH):
        at = f"blocks.{block}."
        q, k, v = linear(norm(z, at + "norm1"), at + "attn.qkv").view(len(x), 257, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        z = z + weights[at + "ls1.gamma"] * linear(mixed.transpose(1, 2).flatten(2), at + "attn.proj")
        inner = functional.gelu(linear(norm(z, at + "norm2"), at + "mlp.fc1"))
        z = z + weights[at + "ls2.gamma"] * linear(inner, at + "mlp.fc2")
    return norm(z, "norm")[:, 0]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A narrow network in the published format, in torch's cache and pinned."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(dinov2, "NETWORK", {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS})
    path = tmp_path / "checkpoints" / dinov2.FILE
    path.parent.mkdir()
    made = published_format(WIDTH, DEPTH)
    torch.save(made, path)
    monkeypatch.setattr(dinov2, "SHA256", files.sha256(path))
    return made


def pictures(num: int, side: int, channels: int = 3) -> Tensor:
    shape = (num, side, side, channels)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_network_has_the_names_and_number_of_the_published_weights() -> None:
    with torch.device("meta"):
        network = build()
        needed = published_format_shapes()
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert own == {name: shape for name, shape in needed.items() if name != "mask_token"} | {
        "pos_embed": (1, 1 + 16 * 16, 1024)
    }
    number = sum(torch.Size(shape).numel() for shape in needed.values())
    assert number == PUBLISHED_PARAMETERS and 0 < PUBLISHED_BYTES - 4 * number < 120_000


def published_format_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the published file, from the narrow format."""
    narrow = published_format(1024 // 64, 24)
    wide = {1024 // 64 * factor: 1024 * factor for factor in (1, 3, 4)}
    return {name: tuple(wide.get(size, size) for size in value.shape) for name, value in narrow.items()}


def test_features_are_those_of_the_formulas(weights: dict[str, Tensor]) -> None:
    network, images = DINOv2.create(None, 0), pictures(3, 40)
    extracted = network.extract(images)
    assert extracted.shape == (3, WIDTH) and extracted.dtype == torch.float32
    torch.testing.assert_close(extracted, directly(weights, prepare(images.permute(0, 3, 1, 2))), rtol=1e-4, atol=1e-5)
    assert torch.equal(network.look(images)["features"], extracted) and network.classify(extracted) is None


def test_grey_pictures_are_repeated_and_saving_keeps_which_weights(weights: dict[str, Tensor], tmp_path: Path) -> None:
    network, grey = DINOv2.create(None, 0), pictures(2, 20, 1)
    assert torch.equal(network.extract(grey), network.extract(grey.repeat(1, 1, 1, 3)))
    described = network.save(tmp_path / "network.safetensors")
    assert described["bytes"] < 200
    assert torch.equal(DINOv2.load(tmp_path / "network.safetensors").extract(grey), network.extract(grey))


def test_weights_with_another_sha256_are_refused_before_they_are_read(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = DINOv2.create(None, 0)
    network.save(tmp_path / "network.safetensors")
    monkeypatch.setattr(dinov2, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="pinned is 0000.*, but .* has "):
        DINOv2.create(None, 0)
    with pytest.raises(ValueError, match="was made with DINOv2 weights"):
        DINOv2.load(tmp_path / "network.safetensors")


def test_weights_of_another_network_are_refused(weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(changed: dict[str, Any], message: str) -> None:
        path = dinov2.find_weights()
        torch.save(changed, path)
        monkeypatch.setattr(dinov2, "SHA256", files.sha256(path))
        with pytest.raises((RuntimeError, ValueError), match=message):
            DINOv2.create(None, 0)

    refused({name: value for name, value in weights.items() if name != "norm.bias"}, "norm.bias")
    refused(weights | {"register_tokens": torch.zeros(1, 4, WIDTH)}, "register_tokens")
    refused(weights | {"code": Path("x")}, "holds more than tensors")


def test_the_position_embedding_is_sampled_where_the_published_network_samples_it() -> None:
    # position i of 16 lies at (i + .5) 37/16.1 - .5 of the file's 37; away from the border, by Keys' kernel
    ramp = torch.arange(37.0)
    stored = torch.zeros(1, 1 + 37 * 37, 2)
    stored[0, 1:, 0], stored[0, 1:, 1] = ramp.repeat_interleave(37), ramp.repeat(37)
    found = resized(stored)
    assert found.shape == (1, 257, 2) and torch.equal(found[:, 0], stored[:, 0])
    expected = torch.tensor([keys((i + 0.5) * 37 / 16.1 - 0.5) for i in range(1, 15)])
    rows = found[0, 1:].view(16, 16, 2)
    torch.testing.assert_close(rows[1:-1, 5, 0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows[5, 1:-1, 1], expected, rtol=1e-5, atol=1e-5)


def keys(place: float, a: float = -0.75) -> float:
    """The ramp f(j) = j between its whole numbers, by Keys' cubic kernel as torch has it."""

    def kernel(d: float) -> float:
        d = abs(d)
        return (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)

    return sum(j * kernel(place - j) for j in range(int(place) - 1, int(place) + 3))


def test_pictures_are_resized_without_rounding_and_normalised_as_imagenets() -> None:
    plain = torch.full((1, 3, 30, 50), 128, dtype=torch.uint8)
    prepared = prepare(plain)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert prepared.shape == (1, 3, 224, 224)
    torch.testing.assert_close(prepared, expected.view(1, 3, 1, 1).expand(prepared.shape))
    fine = pictures(1, 448).permute(0, 3, 1, 2)
    spread = prepare(fine).std() * 0.225 * 255
    assert float(spread) < 0.75 * float(fine.float().std())  # antialiased: pixels are averaged, not picked
