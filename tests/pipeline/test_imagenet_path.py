"""The presets imagenet256 and cifar10 from picture files to scores, stage by stage, in miniature: 64 pixels at most.

The VAEs have the published architecture at a quarter of the width, with random weights in the published formats.
Nothing is learnt here; what is tested is that the stages fit together as the presets put them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ldm_reference import random_weights
from picture_files import fill
from test_scales import SHORT, changed, rendered

from facm.data.codecs.sd_vae import SdVae
from facm.data.codecs.va_vae import VaVae
from facm.data.latents import ldm
from facm.data.latents.store import LatentSet
from facm.inference.samples import load_samples
from facm.networks.features import pictures_cnn
from facm.runtime import params
from stages import baseline, distill, evaluate, latents, reference, sample, teacher

pytestmark = pytest.mark.slow

WIDTH = 32  # of the VAEs' first level; published: 128
SMALL = {
    "data.root": "pictures",
    "reference.num": 8,
    "baseline.steps": 2,
    "baseline.num": 6,
    "baseline.batch_size": 4,
    "sample.num": 6,
    "sample.batch_size": 4,
    "sample.nfe": [1, 2],
    "evaluate.kid_subsets": 1,
    "latents.batch_size": 8,
    "latents.shard_size": 7,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A repository beside weights and pictures; what stages set in this process is set back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures_cnn, "EPOCHS", 1)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def write_pictures(folder: Path, side: int) -> None:
    """Three classes of JPEG files: 12 to train on, 6 held out."""
    for split, num in (("train", 4), ("val", 2)):
        for c in range(3):
            fill(folder / split / f"n{c}", num, side, first=10 * c)


def write_va_vae(path: Path) -> dict[str, Any]:
    """A file as VA-VAE is published: LDM's names under state_dict, with what training leaves beside them."""
    a = VaVae.architecture
    weights = random_weights(WIDTH, a.multipliers, a.channels, a.attention) | {"loss.logvar": torch.zeros(())}
    torch.save({"state_dict": weights, "global_step": 1}, path)
    return {"latents.vae": str(path)}


def write_sd_vae(path: Path) -> dict[str, Any]:
    """A folder as SD-VAE is published: diffusers' config.json and safetensors."""
    from diffusers import AutoencoderKL

    a = SdVae.architecture
    network = AutoencoderKL(**a.config(WIDTH))
    network.load_state_dict(ldm.converted(random_weights(WIDTH, a.multipliers, a.channels, a.attention)), strict=True)
    network.save_pretrained(path)
    return {"latents.vae": str(path)}


def run(here: Path, names: str, changes: dict[str, Any]) -> dict[str, Any]:
    """All stages of a preset, made small; returns metrics/evaluate.json."""
    mapping = changed(rendered(names), SHORT | SMALL | changes)
    (here / "params.yaml").write_text(yaml.safe_dump(mapping))
    p = params.parse(mapping)
    for stage in (reference, latents, teacher, baseline, distill, sample, evaluate):
        stage.main()
    found = LatentSet.open("data/latents")
    assert (found.num, found.flips, found.num_classes) == (12, True, 3 if p.latents.labels else 0)
    for name in ("baseline/teacher", "samples/nfe1", "samples/nfe2"):
        images, labels = load_samples(f"data/{name}.npz")
        side = p.data.side or 32
        assert images.shape == (6, side, side, 3)
        assert (None if labels is None else labels.tolist()) == ([0, 1, 2] * 2 if p.latents.labels else None)
    scores: dict[str, Any] = json.loads(Path("metrics/evaluate.json").read_text())
    return scores


@pytest.mark.parametrize(
    ("names", "weights", "shape"),
    [
        ("imagenet256", write_va_vae, (32, 4, 4)),
        ("imagenet256 sd_vae", write_sd_vae, (4, 8, 8)),
        ("imagenet256 sd_vae sit", write_sd_vae, (4, 8, 8)),
        ("imagenet256 sd_vae dit", write_sd_vae, (4, 8, 8)),
    ],
    ids=["va_vae", "sd_vae", "sit", "dit"],
)
def test_imagenet256_goes_all_the_way(names: str, weights: Any, shape: tuple[int, ...], here: Path) -> None:
    write_pictures(here / "pictures", 80)
    scores = run(here, names, weights(here / "vae") | {"data.side": 64, "reference.features": "pictures_cnn"})
    assert LatentSet.open("data/latents").shape == shape
    assert scores["student"]["nfe1"].keys() >= {"fd", "fd_second", "accuracy", "kid", "precision", "recall"}


def test_cifar10_goes_all_the_way_without_classes_on_picture_files_and_own_features(here: Path) -> None:
    """The model knows no classes; the feature network is trained to tell the folders'."""
    write_pictures(here / "pictures", 32)
    changes = {"data.name": "folder", "reference.features": "pictures_cnn"}
    scores = run(here, "cifar10", changes | {"backbones.ddpmpp.attn_resolutions": [16]})
    assert scores["student"]["nfe1"].keys() >= {"fd", "fd_second", "copies"}
    assert "accuracy" not in scores["student"]["nfe1"] and "heldout_accuracy" in scores
