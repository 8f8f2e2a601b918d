"""LPIPS: its formula by hand, against torch-fidelity's port, its gradient, its published files, and what is refused.

The weights are random, in files of exactly the published names, shapes and formats.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from miniature import MIXTURE, parsed, write_checkpoint, write_latents, write_params
from torch import Tensor, nn

from facm import check
from facm.networks import checkpoint, lpips
from facm.networks.lpips import BLOCKS, LPIPS, Distance
from facm.runtime.files import sha256
from facm.runtime.params import ParamsError
from stages import distill

TINY = ((4, 1), (3, 2))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(num: int, side: int, channels: int = 3, seed: int = 0) -> Tensor:
    return normal(num, channels, side, side, seed=seed).clamp(-1, 1)


def drawn(network: LPIPS, seed: int = 0) -> LPIPS:
    """With random weights; the learned ones are not negative, as the published ones."""
    for i, (name, weight) in enumerate(network.state_dict().items()):
        weight.copy_(normal(*weight.shape, seed=seed + i) * (weight[0].numel() / 2) ** -0.5)
        if name.startswith("lin"):
            weight.abs_()
    return network


def vgg_state() -> dict[str, Tensor]:
    """torchvision's VGG16: 32 tensors, here views of one small storage, so that 138 million weights take 9 MB."""
    numbers, state = 0.03 * normal(512 * 512 * 9), {}
    index, channels = 0, 3
    for width, convolutions in BLOCKS:
        for _ in range(convolutions):
            state[f"features.{index}.weight"] = numbers[: width * channels * 9].view(width, channels, 3, 3)
            state[f"features.{index}.bias"] = numbers[:width]
            index, channels = index + 2, width
        index += 1
    for index, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        state[f"classifier.{index}.weight"] = numbers[:1].expand(shape)
        state[f"classifier.{index}.bias"] = numbers[:1].expand(shape[0])
    return state


def lins_state() -> dict[str, Tensor]:
    """The lpips package's and torch-fidelity's: five 1x1 convolutions without bias, behind a dropout."""
    return {f"lin{i}.model.1.weight": normal(1, width, 1, 1, seed=i).abs() for i, (width, _) in enumerate(BLOCKS)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Both files; VGG16's in the format of before 2020, which the published one has."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(vgg_state(), folder / "vgg.pth", _use_new_zipfile_serialization=False)
    torch.save(lins_state(), folder / "lins.pth")
    return folder / "vgg.pth", folder / "lins.pth"


@pytest.fixture(scope="module")
def published(files: tuple[Path, Path]) -> LPIPS:
    return lpips.from_weights(*files)


# The formula


def test_the_distance_is_the_sum_over_layers_of_weighted_squares_of_unit_features() -> None:
    """On a picture of 2 x 2, written out from the state dict alone."""
    network = drawn(LPIPS(TINY))
    weights = network.state_dict()
    assert list(weights) == [
        *(f"features.{i}.{kind}" for i in (0, 3, 5) for kind in ("weight", "bias")),
        "lin0.model.1.weight",
        "lin1.model.1.weight",
    ]

    def features(x: Tensor) -> list[Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's, of [0, 1]
        x = ((x + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        first = functional.conv2d(x, weights["features.0.weight"], weights["features.0.bias"], padding=1).relu()
        x = first.amax((2, 3), keepdim=True)  # the maximum of 2 x 2
        x = functional.conv2d(x, weights["features.3.weight"], weights["features.3.bias"], padding=1).relu()
        return [first, functional.conv2d(x, weights["features.5.weight"], weights["features.5.bias"], padding=1).relu()]

    a, b = pictures(3, 2), pictures(3, 2, seed=1)
    expected = torch.zeros(3)
    for i, (y_a, y_b) in enumerate(zip(features(a), features(b), strict=True)):
        y_a, y_b = (y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in (y_a, y_b))
        w = weights[f"lin{i}.model.1.weight"].view(1, -1, 1, 1)
        expected += (w * (y_a - y_b).square()).sum(1).mean((1, 2))
    assert expected.min() > 0.01
    torch.testing.assert_close(network(a, b), expected, rtol=1e-5, atol=1e-6)


def test_equal_pictures_have_distance_0_and_the_order_of_two_does_not_matter() -> None:
    network, a, b = drawn(LPIPS(TINY)), pictures(4, 8), pictures(4, 8, seed=1)
    assert torch.equal(network(a, a), torch.zeros(4))
    torch.testing.assert_close(network(a, b), network(b, a))
    assert network(a, b).shape == (4,) and network(a, b).min() > 0


def test_the_gradient_flows_to_the_first_picture_alone_and_to_no_weight() -> None:
    network, a, b = drawn(LPIPS(TINY)), pictures(2, 8).requires_grad_(), pictures(2, 8, seed=1).requires_grad_()
    network(a, b).sum().backward()
    assert a.grad is not None and a.grad.abs().amax((1, 2, 3)).min() > 0
    assert b.grad is None and all(weight.grad is None for weight in network.parameters())
    assert [p for p in network.parameters() if p.requires_grad] == []


def test_the_gradient_is_that_of_finite_differences() -> None:
    network = drawn(LPIPS(TINY)).double()
    a, b = pictures(1, 4).double().requires_grad_(), pictures(1, 4, seed=1).double()
    assert torch.autograd.gradcheck(lambda a: network(a, b), a, eps=1e-7, atol=1e-5)


def test_features_that_are_all_0_have_a_finite_gradient() -> None:
    network = drawn(LPIPS(TINY))
    network.get_parameter("features.5.bias").fill_(-1e6)
    a = pictures(2, 4).requires_grad_()
    network(a, pictures(2, 4, seed=1)).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().max() > 0


def test_torch_fidelity_finds_the_same_distance_with_the_same_weights(published: LPIPS, monkeypatch) -> None:
    from torch_fidelity import sample_similarity_lpips as theirs
    from torchvision.models.vgg import cfgs, make_layers

    def vgg16() -> Any:
        with torch.device("meta"):
            features = make_layers(cfgs["D"])
        state = {n.removeprefix("features."): w for n, w in vgg_state().items() if n.startswith("features.")}
        features.load_state_dict(state, assign=True)
        return SimpleNamespace(features=features)

    monkeypatch.setattr(theirs, "torchvision_load_pretrained_vgg16", vgg16)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *arguments, **options: lins_state())
    a, b = pictures(2, 32), pictures(2, 32, seed=1)
    expected = theirs.SampleSimilarityLPIPS("lpips")((a + 1) * 127.5, (b + 1) * 127.5)
    assert expected.shape == (2,) and expected.min() > 0.01
    torch.testing.assert_close(published(a, b), expected, rtol=1e-4, atol=1e-6)


# Pictures


class Seen(nn.Module):
    """A network that remembers what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(3, 1, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.asked = (a, b)
        return (a - b).square().mean((1, 2, 3))


def test_latents_are_denormalised_grey_is_repeated_and_small_pictures_are_enlarged() -> None:
    network: Any = Seen()
    distance = Distance(network, torch.tensor([0.5]), torch.tensor([2.0]))
    a, b = normal(2, 1, 8, 8).requires_grad_(), normal(2, 1, 8, 8, seed=1).requires_grad_()
    distance(a, b).sum().backward()
    for x, asked in zip((a, b), network.asked, strict=True):
        enlarged = functional.interpolate(2 * x + 0.5, size=224, mode="bilinear")
        torch.testing.assert_close(asked, enlarged.repeat(1, 3, 1, 1))
    assert a.grad is not None and a.grad.abs().min() > 0 and b.grad is None


def test_large_pictures_in_colour_are_asked_as_they_are() -> None:
    network: Any = Seen()
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    x = normal(1, 3, 256, 256)
    Distance(network, mean, std)(x, x)
    torch.testing.assert_close(network.asked[0], x * std.view(3, 1, 1) + mean.view(3, 1, 1))
    with pytest.raises(ValueError, match="'lpips' needs pictures of one or three channels, data/latents has 4: set l2"):
        Distance(network, torch.zeros(4), torch.ones(4))


# Files


def test_the_published_files_are_loaded_in_full(published: LPIPS) -> None:
    state = published.state_dict()
    expected = {n: w for n, w in (vgg_state() | lins_state()).items() if not n.startswith("classifier")}
    assert state.keys() == expected.keys() and len(state) == 26 + 5
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert sum(weight.numel() for weight in state.values()) == 14_714_688 + 1472
    assert published.ends == (4, 9, 16, 23, 30), "torchvision's layers up to relu1_2, 2_2, 3_3, 4_3 and 5_3"


def test_a_file_with_other_tensors_or_code_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    def saved(value: Any) -> Path:
        torch.save(value, tmp_path / "other.pth")
        return tmp_path / "other.pth"

    vgg, lins = files
    with pytest.raises(ValueError, match=r"other.pth holds other tensors than LPIPS needs \(lin4.model.1.weight\)"):
        lpips.from_weights(vgg, saved({n: w for n, w in lins_state().items() if n != "lin4.model.1.weight"}))
    with pytest.raises(ValueError, match=r"holds other tensors than LPIPS needs \(lin5.model.1.weight\)"):
        lpips.from_weights(vgg, saved(lins_state() | {"lin5.model.1.weight": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"lin2.model.1.weight: shape \(1, 256\), needed is \(1, 256, 1, 1\)"):
        lpips.from_weights(vgg, saved(lins_state() | {"lin2.model.1.weight": torch.zeros(1, 256)}))
    with pytest.raises(ValueError, match="holds other tensors than LPIPS needs"):
        lpips.from_weights(lins, lins)
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        lpips.from_weights(vgg, saved(nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="holds other tensors than LPIPS needs .*list"):
        lpips.from_weights(vgg, saved([torch.zeros(1)]))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's, without a network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_network(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path / "checkpoints"


ASKED = {"distill__objective": "cd", "objectives__cd__distance": "lpips"}


def test_without_its_weights_lpips_is_refused_before_the_teacher_is_trained(cache: Path, monkeypatch) -> None:
    check.at_hand(parsed())
    check.check(parsed(**ASKED))
    for name, (url, _) in lpips.FILES.items():
        with pytest.raises(FileNotFoundError) as told:
            check.at_hand(parsed(**ASKED))
        for part in (
            "objectives.cd.distance",
            str(cache / name),
            "python -m facm.networks.lpips",
            url,
            "set l2 or pseudo_huber",
        ):
            assert part in str(told.value)
        cache.mkdir(exist_ok=True)
        (cache / name).write_bytes(name.encode())
        with pytest.raises(ValueError, match=rf"pinned is .*, but .*{name} has .*: remove it and run"):
            check.at_hand(parsed(**ASKED))
        digest = sha256(cache / name)
        monkeypatch.setitem(lpips.FILES, name, (url, digest))
    check.at_hand(parsed(**ASKED))


def test_fetching_checks_each_file_by_its_sha256_and_tells_where_they_are(cache: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["facm.networks.lpips"])
    with pytest.raises(SystemExit, match="error: no network"):
        lpips.main()
    fetched = []
    monkeypatch.setattr(lpips, "find_weights", lambda: (cache / "a", cache / "b"))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, path, hash_prefix, progress: fetched.append((url, hash_prefix))
    )
    lpips.main()
    assert fetched == list(lpips.FILES.values()) and [len(pinned) for _, pinned in fetched] == [64, 64]
    assert capsys.readouterr().out.split() == [str(cache / "a"), str(cache / "b")]


def test_lpips_of_what_is_no_picture_is_refused_with_the_reason() -> None:
    with pytest.raises(ParamsError, match=r"objectives.cd.distance: 'lpips' compares pictures, and with latents.codec"):
        check.check(parsed(**MIXTURE, **ASKED))


def test_the_distill_stage_finds_the_files_and_trains_by_them(cache: Path, files, tmp_path: Path, monkeypatch) -> None:
    """With pictures enlarged to 32 x 32 only, for time's sake."""
    monkeypatch.chdir(tmp_path)
    cache.mkdir()
    for path, (name, (url, _)) in zip(files, list(lpips.FILES.items()), strict=True):
        shutil.copy(path, cache / name)
        monkeypatch.setitem(lpips.FILES, name, (url, sha256(path)))
    monkeypatch.setattr(lpips, "SIDE", 32)
    made = write_latents(Path("data/latents"))
    write_checkpoint(Path("data/teacher"), made)
    write_params(tmp_path, **ASKED, distill__steps=2)
    threads = torch.get_num_threads()
    distill.main()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    figures = json.loads(Path("metrics/distill.json").read_text())["distill_training"]
    assert figures["skipped"] == 0 and 0 < figures["loss_cd"] < 100
    assert checkpoint.load("data/student")[1].objective == "cd"
