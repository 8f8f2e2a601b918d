"""The feature network of small coloured pictures: reproducible, of any small size, and it learns to tell classes."""

from pathlib import Path

import pytest
import torch

from facm.data.images.images import Images
from facm.networks import features
from facm.networks.features import pictures_cnn
from facm.networks.features.pictures_cnn import PicturesCNN
from facm.runtime import files


def striped(num: int, side: int = 16, wide: int | None = None, seed: int = 0) -> Images:
    """Noise with stripes across (class 0), along (1), or none (2)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    values = torch.randint(0, 120, (num, side, wide or side, 3), generator=generator)
    values[labels == 0, ::4] += 120
    values[labels == 1, :, ::4] += 120
    return Images(values.to(torch.uint8), labels, 3)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch in place of ten, in small batches."""
    monkeypatch.setattr(pictures_cnn, "EPOCHS", 1)
    monkeypatch.setattr(pictures_cnn, "BATCH_SIZE", 16)


def test_it_learns_to_tell_classes_that_are_not_told_by_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_cnn, "BATCH_SIZE", 16)
    network, heldout = PicturesCNN.create(striped(96), 0), striped(60, seed=1)
    assert heldout.labels is not None
    found = network.classify(network.extract(heldout.images[:])).argmax(1)
    assert float((found == heldout.labels).float().mean()) > 0.9


def test_training_depends_on_the_seed_only_and_leaves_the_global_generator_alone(short: None) -> None:
    train = striped(32)
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    one = PicturesCNN.create(train, 0)
    assert torch.equal(torch.get_rng_state(), state)
    try:
        torch.set_num_threads(2)
        torch.manual_seed(6)
        again, other = PicturesCNN.create(train, 0), PicturesCNN.create(train, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    weights = [torch.cat([w.flatten() for w in network.parameters()]) for network in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_log_hears_of_the_training(short: None, capsys: pytest.CaptureFixture[str]) -> None:
    PicturesCNN.create(striped(32), 3)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and told[-1].startswith("training pictures_cnn, seed 3: ")


@pytest.mark.parametrize(("side", "wide"), [(8, 8), (16, 16), (17, 23), (32, 32), (64, 48), (256, 256)])
def test_features_of_any_size_have_their_shape_and_survive_saving(
    short: None, tmp_path: Path, side: int, wide: int
) -> None:
    train = striped(6, side, wide)
    network, images = PicturesCNN.create(train, 0), train.images[:]
    described = network.save(tmp_path / "network.safetensors")
    loaded = features.network_class("pictures_cnn").load(tmp_path / "network.safetensors")
    extracted = network.extract(images)
    assert extracted.shape == (6, PicturesCNN.widths["features"]) and extracted.dtype == torch.float32
    assert torch.equal(loaded.extract(images), extracted) and network.look(images).keys() == PicturesCNN.widths.keys()
    logits = loaded.classify(extracted)
    assert logits is not None and logits.shape == (6, 3)
    torch.testing.assert_close(logits, network(pictures_cnn.from_levels(images)))
    assert described["sha256"] == files.sha256(tmp_path / "network.safetensors")


def test_features_do_not_depend_on_the_pictures_beside() -> None:
    torch.manual_seed(0)
    network, images = PicturesCNN(3, 1).eval(), striped(12).images[:]
    torch.testing.assert_close(network.extract(images)[:1], network.extract(images[:1]))


def test_augmentation_moves_pictures_by_an_eighth_of_their_side_and_mirrors_half() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    x = torch.stack([rows, columns, torch.zeros(16, 16)]).repeat(200, 1, 1, 1)
    moved = pictures_cnn.augment(x)
    shift = moved[:, 0, 8, 8] - 8
    assert set(shift.tolist()) == {-2, -1, 0, 1, 2}
    mirrored = moved[:, 1, 8, 9] < moved[:, 1, 8, 8]
    assert 70 < int(mirrored.sum()) < 130
    expected = (rows[None] + shift[:, None, None]).clamp(0, 15)
    assert torch.equal(moved[:, 0], expected), "rows are shifted, the rim repeated"
    assert torch.equal(moved[:, 2], torch.zeros(200, 16, 16)), "the channels stay apart"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "these pictures have none: put them into class folders, or set it to inception"),
        (Images(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), None, 0), "these pictures have none"),
        (Images(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), torch.zeros(4).long(), 1), "are all of one: put them"),
        (Images(torch.zeros(4, 16, 16, 1, dtype=torch.uint8), torch.arange(4), 4), r"3 channels, these are \(16"),
        (Images(torch.zeros(4, 4, 4, 3, dtype=torch.uint8), torch.arange(4), 4), "needs pictures with sides of 8 to"),
        (Images(torch.zeros(4, 300, 16, 3, dtype=torch.uint8), torch.arange(4), 4), "needs pictures with sides of 8"),
    ],
)
def test_what_it_cannot_be_trained_on_is_refused(train: Images | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PicturesCNN.create(train, 0)


def test_more_pictures_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_cnn, "BYTES", 1000)
    with pytest.raises(ValueError, match=r"GiB at most, and 6 of \(16, 16, 3\) are .* set it to inception"):
        PicturesCNN.create(striped(6), 0)
