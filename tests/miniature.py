"""The pipeline's parts, small enough for tests: latents of 4 x 4 noise, a network of one block, a few steps."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from facm import check
from facm.data import codecs
from facm.data.images.images import Images
from facm.data.latents import store
from facm.data.latents.statistics import statistics
from facm.data.latents.store import LatentSet
from facm.inference.samples import saving_arrays
from facm.networks import checkpoint
from facm.objectives.fm import FM
from facm.runtime import params
from facm.training.passes import Passes, Student

ROOT = Path(__file__).parents[1]
BASE = yaml.safe_load((ROOT / "presets" / "base.yaml").read_text())
NETWORK = {"patch_size": 2, "hidden": 32, "depth": 1, "heads": 2, "label_std": 1.0, "gate_bias": 0.5}
UNET = {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [2]}
SHALLOW = UNET | {"channel_mult": [1], "attn_resolutions": [4]}  # for what has nothing to do with its levels
CONSTANTS: dict[str, dict[str, Any]] = {  # of every backbone, as a student has them
    "lightningdit": NETWORK,
    "dit": NETWORK,
    "sit": NETWORK,
    "repa": NETWORK | {"encoder_depth": 1, "projector": False},
    "mlp": {"hidden": 16, "depth": 2},
    "ddpmpp": SHALLOW,
}
TINY = {
    "backbones.lightningdit.variant": None,
    **{f"backbones.lightningdit.{name}": value for name, value in NETWORK.items()},
    "backbones.mlp.hidden": 16,
    "backbones.mlp.depth": 1,
    **{f"backbones.ddpmpp.{name}": value for name, value in UNET.items()},
    **{
        f"{stage}.{name}": value
        for stage in ("teacher", "distill")
        for name, value in {"steps": 4, "batch_size": 4, "ema.snapshots": 2, "optimizer.lr": 1e-2}.items()
    },
    "baseline.steps": 2,
    "baseline.num": 6,
    "sample.num": 6,
    "sample.nfe": [1, 2],
    "evaluate.kid_subsets": 1,
    "runtime.log_every": 1,
}

MIXTURE = {  # points in place of pictures
    "data__name": "mixture",
    "reference__features": "exact_map",
    "latents__codec": "points",
    "backbone__name": "mlp",
    "evaluate__copies": False,
}
SCRATCH = {  # presets/scratch.yaml
    "distill__mode": "scratch",
    "distill__teacher": "data/latents",
    "evaluate__baseline": "metrics/reference.json",
    "report__pictures": "data/samples",
    "report__curves": "metrics/distill",
    "distill__label_dropout": 0.1,
}


def plain(**changes: Any) -> dict[str, Any]:
    """params.yaml as plain mappings: presets/base.yaml, made tiny, then `changes`, with `__` for the dot."""
    mapping = copy.deepcopy(BASE)
    for place, value in (TINY | {place.replace("__", "."): value for place, value in changes.items()}).items():
        *blocks, name = place.split(".")
        block = mapping
        for part in blocks:
            block = block[part]
        block[name] = value
    return mapping


def parsed(**changes: Any) -> params.Params:
    """The same, parsed."""
    return params.parse(plain(**changes))


def write_params(folder: Path, **changes: Any) -> None:
    """The same, as a file params.yaml."""
    (folder / "params.yaml").write_text(yaml.safe_dump(plain(**changes)))


def pictures(num: int = 14, classes: int = 3, channels: int = 1, side: int = 4) -> Images:
    """Random pictures; each class has one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, side, side, channels), generator=generator, dtype=torch.uint8)
    return Images(images, torch.arange(num) % classes if classes else None, classes)


def write_latents(
    folder: Path,
    *,
    num: int = 14,
    classes: int = 3,
    channels: int = 1,
    side: int = 4,
    flip: bool = False,
    normalise: str = "channel",
) -> LatentSet:
    """A set of random latents in shards of five, written and opened."""
    store.write(
        folder,
        pictures(num, classes, channels, side),
        codecs.build("identity"),
        flip=flip,
        shard_size=5,
        dataset_name="random",
        fingerprint="f" * 64,
        batch_size=4,
        normalise=lambda measured: statistics(measured, normalise),
    )
    return LatentSet.open(folder)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every weight redrawn, so that nothing starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def write_checkpoint(
    folder: Path, data: LatentSet, *, kind: str = "teacher", seed: int = 0, **changes: Any
) -> checkpoint.Config:
    """A checkpoint with random weights, described as its stage does, with one EMA snapshot per length and step."""
    p, raw = parsed(**changes), plain(**changes)
    settings = p.teacher if kind == "teacher" else p.distill
    objective: Any = check.build_objective(p)
    if kind == "teacher":
        objective = FM(conditioning=p.teacher.conditioning, fraction=p.teacher.fraction)
    config = checkpoint.describe(kind, data, check.backbone(p), objective, settings, raw, check.precond(p))
    weights = dict(randomised(config.build(), seed).state_dict())
    kept = folder.with_name(folder.name + "-snapshots")
    kept.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, step in enumerate((settings.steps // 2, settings.steps)):
        for j, sigma_rel in enumerate(settings.ema.sigma_rels):
            moved = {name: w + 0.01 * (2 * i + j) if w.is_floating_point() else w for name, w in weights.items()}
            paths.append(kept / checkpoint.snapshot_name(step, sigma_rel))
            checkpoint.files.save_tensors(paths[-1], moved)
    checkpoint.save(folder, weights, config, paths)
    return checkpoint.read_config(folder)


class Points:
    """Points (D,) to train on, for networks that take no pictures; what the loop needs of a LatentSet."""

    shape: tuple[int, ...] = (2,)
    flips, codec = False, "identity"

    def __init__(self, classes: int = 3, num: int = 14):
        self.num, self.num_classes = num, classes
        self.points = torch.randn(num, 2, generator=torch.Generator().manual_seed(0))

    def batch(self, indices: Tensor, flips: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.points[indices], indices % self.num_classes if self.num_classes else None


def student(network: Any, method: str = "dual", keys: Tensor | None = None) -> Student:
    """The network as an objective sees it, ready for one backward pass."""
    answering = Student(Passes(network, method))
    answering.begin(keys)
    return answering


def truncate(path: Path, share: float = 0.5) -> None:
    """Cut a file off, as a full disk does."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def save_arrays(path: str | Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write an npz of images that are at hand, arr_0, and labels, arr_1, where there are any."""
    with saving_arrays(path, len(images), labels) as take:
        take(images)
