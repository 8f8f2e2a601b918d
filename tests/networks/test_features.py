"""Feature networks: reproducible training, saving, torch-fidelity's view of them, and Inception's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from facm.data import datasets
from facm.data.images.images import Images
from facm.metrics.scores import ReferenceStatistics
from facm.networks import features
from facm.networks.features import digits_cnn, inception
from facm.networks.features.digits_cnn import DigitsCNN
from facm.runtime import files


def register() -> str:
    """Register the network with torch-fidelity, so that its own `calculate_metrics` runs over it; returns the name.

    The weights are given as `feature_extractor_weights_path`, inputs are datasets of uint8 (1, 8, 8).
    """
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import (
        FEATURE_EXTRACTORS_REGISTRY,
        register_feature_extractor,
    )

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any):
            super().__init__(name, features_list)
            self.network = DigitsCNN.load(Path(feature_extractor_weights_path))

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("penultimate",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "penultimate"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (self.network.extract(images.permute(0, 2, 3, 1)),)

    if DigitsCNN.name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(DigitsCNN.name, Extractor)
    return DigitsCNN.name


@pytest.fixture(scope="module")
def train() -> Images:
    return datasets.load("digits", None, "train")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch in place of 25."""
    monkeypatch.setattr(digits_cnn, "EPOCHS", 1)


def test_an_unknown_network_is_named_with_the_nearest_one_and_the_place() -> None:
    with pytest.raises(ValueError, match=r"reference.features: unknown 'digit_cnn' \(did you mean 'digits_cnn'"):
        features.network_class("digit_cnn")


@pytest.mark.parametrize("name", features.FEATURES)
def test_every_registered_network_has_its_name(name: str) -> None:
    assert features.network_class(name).name == name


def test_training_depends_on_the_seed_only_and_leaves_the_global_generator_alone(short: None, train: Images) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    one = DigitsCNN.create(train, 0)
    assert torch.equal(torch.get_rng_state(), state)
    try:
        torch.manual_seed(6)
        torch.set_num_threads(2)
        again, other = DigitsCNN.create(train, 0), DigitsCNN.create(train, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_log_hears_of_the_training(short: None, train: Images, capsys: pytest.CaptureFixture[str]) -> None:
    DigitsCNN.create(train, 3)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 10 and told[-1].startswith("training digits_cnn, seed 3: ")


def test_features_and_logits_have_their_shapes_and_survive_saving(tmp_path: Path, train: Images) -> None:
    torch.manual_seed(0)
    network, images = DigitsCNN().eval(), train.images[:501]
    described = network.save(tmp_path / "network.safetensors")
    loaded = DigitsCNN.load(tmp_path / "network.safetensors")
    extracted, logits = network.extract(images), network.classify(network.extract(images))
    assert extracted.shape == (501, 32) and extracted.dtype == torch.float32 and logits.shape == (501, 10)
    assert torch.equal(loaded.extract(images), extracted) and torch.equal(loaded.classify(extracted), logits)
    torch.testing.assert_close(logits, network(digits_cnn.from_levels(images)))
    assert described["sha256"] == files.sha256(tmp_path / "network.safetensors")


def test_damaged_weights_are_named_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    DigitsCNN().save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"network.safetensors is damaged .* run `dvc repro`"):
        DigitsCNN.load(path)


def test_pictures_of_another_kind_are_refused() -> None:
    colour = Images(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.arange(4), 10)
    with pytest.raises(ValueError, match=r"needs pictures \(8, 8, 1\) in 10 classes, .*\(32, 32, 3\).* inception"):
        DigitsCNN.create(colour, 0)


def test_augmentation_shifts_by_at_most_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_cnn, "NOISE", 0.0)
    torch.manual_seed(0)
    x = torch.full((300, 1, 8, 8), -1.0)
    x[:, 0, 4, 3] = 1.0
    shifted = digits_cnn.augment(x)
    assert torch.equal(shifted.sum((1, 2, 3)), x.sum((1, 2, 3)))
    places = {tuple(p[1:]) for p in (shifted[:, 0] == 1).nonzero().tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)}


class Channelled(Dataset):
    """Pictures as torch-fidelity wants them: one (C, H, W) at a time."""

    def __init__(self, images: torch.Tensor):
        self.images = images.permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_torch_fidelity_itself_measures_the_same_over_our_network(short: None, tmp_path: Path, train: Images) -> None:
    import torch_fidelity

    from facm.metrics.scores import kernel_distance, precision_recall

    network = DigitsCNN.create(train, 0)
    network.save(tmp_path / "network.safetensors")
    one, two = train.images[:200], train.images[200:500]
    theirs = torch_fidelity.calculate_metrics(
        input1=Channelled(one),
        input2=Channelled(two),
        feature_extractor=register(),
        feature_extractor_weights_path=str(tmp_path / "network.safetensors"),
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=200,
        kid_subsets=3,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    statistics, extracted = ReferenceStatistics.of(network, two), network.extract(one)
    # torch-fidelity averages the float32 features in float32, as it does KID's kernels, which are about 1
    assert statistics.distance(extracted) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    kid = kernel_distance(extracted, statistics.features, subsets=3)
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], abs=5e-7)
    expected = pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)  # theirs are of float32
    assert precision_recall(extracted, statistics.features) == expected


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache on a machine without a network; returns where the weights belong."""

    def download(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path / "checkpoints" / inception.FILE


def test_inception_without_weights_says_which_file_goes_where(hub: Path, train: Images) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        features.network_class("inception").create(train, 0)
    for part in (inception.FILE, inception.URL, str(hub), "no network"):
        assert part in str(refused.value)


def test_other_weights_under_inceptions_name_are_refused_before_they_are_unpickled(hub: Path, train: Images) -> None:
    hub.parent.mkdir()
    hub.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"pinned is {inception.SHA256}, but .* has .*: remove it"):
        features.network_class("inception").create(train, 0)


def random_inception(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write random weights in the format of Inception's file to `path` and pin them in place of the published ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as published

    class Unloaded(published.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
            return None

    monkeypatch.setattr(published, "load_state_dict_from_url", lambda *_, **__: {})
    torch.manual_seed(0)
    path.parent.mkdir()
    torch.save(Unloaded("inception-v3-compat", ["2048"]).state_dict(), path)
    monkeypatch.setattr(inception, "SHA256", files.sha256(path))


def spatial(published: Any, image: torch.Tensor) -> torch.Tensor:
    """ADM's spatial features layer by layer: `mixed_6/conv:0` up to its 7th channel, in order row, column, channel.

    TensorFlow's mixed, mixed_1, ... mixed_6 are Mixed_5b, 5c, 5d, 6a, 6b, 6c, 6d; its `conv` is the 1x1 branch.
    """
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    x = resize(image.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"):
        x = getattr(published, name)(x)
    x = published.MaxPool_2(x)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):
        x = getattr(published, name)(x)
    branch = published.Mixed_6d.branch1x1
    x = branch.bn(branch.conv(x)).relu()
    assert x.shape == (1, 192, 17, 17)
    return torch.stack([x[0, :7, row, column] for row in range(17) for column in range(17)]).view(1, 2023)


def test_inception_runs_on_weights_of_its_format(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Images
) -> None:
    random_inception(hub, monkeypatch)
    network, image = inception.Inception.create(train, 0), train.images[:1]
    extracted, seen = network.extract(image), network.look(image)
    assert {name: view.shape[1] for name, view in seen.items()} == network.widths
    assert torch.equal(seen["features"], extracted)
    torch.testing.assert_close(seen["logits"], extracted @ network.network.fc.weight.T)  # without the bias
    torch.testing.assert_close(seen["spatial"], spatial(network.network, image))
    assert not network.network.Mixed_6d.branch1x1._forward_hooks
    assert extracted.shape == (1, 2048) and extracted.dtype == torch.float32 and bool(extracted.isfinite().all())
    assert torch.equal(network.extract(image.repeat(1, 1, 1, 3)), extracted)
    assert network.classify(extracted) is None
    network.save(tmp_path / "network.safetensors")
    assert torch.equal(inception.Inception.load(tmp_path / "network.safetensors").extract(image), extracted)
    monkeypatch.setattr(inception, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="was made with Inception weights"):
        inception.Inception.load(tmp_path / "network.safetensors")
