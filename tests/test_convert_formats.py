"""Converted SiT, DiT, REPA and EDM checkpoints give the velocity of the original formulas, written out here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import inputs, theirs, transformer_file
from torch import Tensor, nn

from facm import checkpoint, convert
from facm.backbones.blocks import sincos_positions
from facm.checkpoint import Config
from facm.convert import transformer
from facm.convert.pickles import ForeignError


def converted(path: Path, format: str, *, trust: bool = False, **given: Any) -> tuple[nn.Module, Config]:
    """The checkpoint folder that a file becomes, loaded."""
    source = convert.Source(path, format, trust=trust)
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


@pytest.mark.parametrize("format", ["sit", "repa"])
def test_a_position_embedding_that_is_missing_is_made_anew(format: str, tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt")
    weights = torch.load(path, weights_only=True)
    del weights["pos_embed"]
    torch.save(weights, path)
    with pytest.raises(ForeignError, match=r"has no position embedding .* --set side=N \(its pixels\)"):
        converted(path, format, heads=2)
    network, _ = converted(path, format, heads=2, side=8)
    assert torch.equal(network.state_dict()["pos_embed"], sincos_positions((4, 4), 32))


@pytest.mark.parametrize("format", ["sit", "repa"])
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
    assert set(told[1:]) == {f"  missing: {name}" for name in missing}
