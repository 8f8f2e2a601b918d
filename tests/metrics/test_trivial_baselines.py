"""The ends of the scale, made part by part: the same pictures as at once."""

import pytest
import torch

from facm.data import datasets
from facm.data.images.images import Images
from facm.metrics.trivial_baselines import Ends


@pytest.fixture(scope="module")
def train() -> Images:
    return datasets.load("digits", None, "train")


def test_noise_is_one_stream_of_normals_with_the_mean_and_std_per_channel(train: Images) -> None:
    values = train.images.flatten(0, -2).double()
    normals = torch.randn((2000, 8, 8, 1), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    levels = values.mean(0) + values.std(0) * normals
    assert torch.equal(Ends.of(train).noise_pictures(2000, 3)[:], levels.add(0.5).floor().clamp(0, 255).to(torch.uint8))


def test_slices_of_noise_are_those_of_the_whole_in_any_order(train: Images) -> None:
    images = Images(train.images[:, :5, :5], train.labels, 10)  # 25 values, no multiple of torch's 16
    noise = Ends.of(images).noise_pictures(100, 0)
    whole = noise[:]
    assert len(noise) == 100 and whole.shape == tuple(noise.shape) == (100, 5, 5, 1) and whole.dtype == noise.dtype
    for first, end in ((0, 7), (7, 50), (90, 100), (3, 4), (3, 40), (64, 80)):
        assert torch.equal(noise[first:end], whole[first:end])


def test_means_of_colour_pictures_are_taken_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facm.metrics.trivial_baselines.VALUES", 7 * 18)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 2, 3), generator=generator, dtype=torch.uint8)
    train = Images(images, torch.randint(0, 4, (50,), generator=generator), 4)
    ends = Ends.of(train)
    means, noise = ends.mean_pictures(9), ends.noise_pictures(4000, 0)[:].double()
    for c in range(4):
        expected = (images[train.labels == c].double().mean(0) + 0.5).floor().to(torch.uint8)
        assert torch.equal(means[c : c + 1][0], expected) and torch.equal(means[c : c + 5][4], expected)
    channels = images.double().flatten(0, 2)
    torch.testing.assert_close(noise.flatten(0, 2).mean(0), channels.mean(0).clamp(0, 255), rtol=0.02, atol=1)
