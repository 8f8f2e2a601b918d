"""The identity codec: exact on levels, rounding as named, layout NHWC <-> NCHW; points as they are."""

import pytest
import torch

from facm.data import codecs
from facm.data.codecs.identity import Identity


def levels() -> torch.Tensor:
    """Every level once: uint8 (1, 8, 16, 2)."""
    return torch.arange(256).to(torch.uint8).view(1, 8, 16, 2)


@pytest.mark.parametrize("name", [name for name in codecs.CODECS if name not in codecs.WEIGHTS])  # test_autoencoder.py
def test_every_registered_codec_brings_shapes_and_types_back(name: str) -> None:
    codec, images = codecs.build(name), torch.randn(7, 3) if name in codecs.POINTS else levels()
    latents = codec.encode(images)
    assert codec.name == name and latents.dtype == torch.float32
    assert latents.shape[1:] == codec.latent_shape(images.shape[1:])
    decoded = codec.decode(latents)
    assert decoded.dtype == images.dtype and decoded.shape == images.shape


def test_levels_become_x_in_minus_1_to_1_with_channels_first() -> None:
    latents = Identity().encode(levels())
    assert latents.shape == (1, 2, 8, 16)
    assert float(latents.min()) == -1 and float(latents.max()) == 1
    torch.testing.assert_close(latents[0, 1, 2, 3], torch.tensor((2 * 32 + 3 * 2 + 1) / 127.5 - 1))


def test_every_level_survives_encoding_and_decoding() -> None:
    assert torch.equal(Identity().decode(Identity().encode(levels())), levels())


def test_decoding_clamps() -> None:
    x = torch.tensor([-7.0, -1.001, 1.001, 7.0]).view(1, 1, 1, 4)
    assert Identity().decode(x).flatten().tolist() == [0, 0, 255, 255]


def test_rounding_is_half_up_and_floor_is_the_published_formula() -> None:
    levels = torch.tensor([0.25, 0.5, 0.75, 1.5, 2.5, 254.5], dtype=torch.float64)
    x = levels.view(1, 1, 1, -1) / 127.5 - 1 + 1e-12  # x itself may lie a rounding error below the half
    assert Identity().decode(x).flatten().tolist() == [0, 1, 1, 2, 3, 255]
    assert Identity("floor").decode(x).flatten().tolist() == [0, 0, 0, 1, 2, 254]
    x = torch.rand(1, 1, 50, 50, dtype=torch.float64) * 2 - 1
    assert torch.equal(Identity("floor").decode(x)[..., 0], (255 * (x[:, 0] + 1) / 2).floor().to(torch.uint8))


def test_floor_darkens_by_half_a_level_and_rounding_does_not() -> None:
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64).view(1, 1, 1, -1)
    for rounding, bias in (("round", 0.0), ("floor", -0.5)):
        decoded = Identity(rounding).decode(x).double().flatten()
        assert float((decoded - (x.flatten() + 1) * 127.5).mean()) == pytest.approx(bias, abs=1e-3)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents.codec: unknown 'identty' \(did you mean 'identity'\?\)"):
        codecs.build("identty")
    with pytest.raises(ValueError, match="unknown rounding 'ceil'; known: round, floor"):
        codecs.build("identity", rounding="ceil")
