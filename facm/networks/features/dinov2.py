"""DINOv2 ViT-L/14 (Oquab et al. 2023): 1024 features, for FD-DINOv2 (Stein et al. 2023; EDM2's calculate_metrics.py).

An image is resized to 224 x 224 (bicubic, antialiased, not rounded), normalised as ImageNet's, and its class token
after the last norm is taken. torch-fidelity's `dinov2-vit-l-14` resizes bilinearly as TensorFlow 1 does, fetches code
from the net, and takes no file of weights: here timm's network runs on the published file, read as tensors only. The
file's position embedding is for 37 x 37 patches; it is brought to 16 x 16 as the published network does it: bicubic
with the scale 16.1/37 (timm would resize to exactly 16/37, antialiased, which gives other features).

The weights lie in torch's cache, pinned by the sha256 that those who use the file have published.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor

from facm.data.images.images import Images
from facm.networks import precision
from facm.runtime import foreign, weights

FILE = "dinov2_vitl14_pretrain.pth"
URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{FILE}"
SHA256 = "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
NETWORK: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
SIDE, PATCH, STORED = 224, 14, 37  # pixels of an image and of a patch; patches per side in the file
OFFSET = 0.1  # added to the new number of patches per side before it is divided by the old one
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DINOv2:
    """ViT-L/14; it knows no classes."""

    name: ClassVar[str] = "dinov2"
    seeded: ClassVar[bool] = False
    batch: ClassVar[int] = 64
    widths: ClassVar[dict[str, int]] = {"features": 1024}
    exact: ClassVar[None] = None

    def __init__(self, path: Path):
        """From the file FILE; ValueError where it is damaged or more than tensors, RuntimeError for other weights."""
        stored = foreign.read(path)
        stored.pop("mask_token", None)  # of training only
        stored["pos_embed"] = resized(stored["pos_embed"])
        self.network = build()
        self.network.load_state_dict(stored)
        self.network.eval().requires_grad_(False)

    @classmethod
    def create(cls, train: Images | None, seed: int) -> "DINOv2":
        """With the pinned weights, whatever data and seed; raises as `find_weights` does."""
        return cls(find_weights())

    @classmethod
    def load(cls, path: Path) -> "DINOv2":
        """With the pinned weights, if `path` was saved with them; raises as `weights.check` and `weights.find`."""
        weights.check(path, "DINOv2", SHA256)
        return cls(find_weights())

    def save(self, path: Path) -> dict[str, Any]:
        """Write which weights these are, not the weights; returns `file`, `bytes`, `sha256`."""
        return weights.save(path, SHA256)

    def to(self, device: Any) -> "DINOv2":
        self.network.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Images uint8 (N, H, W, 3), or grey (N, H, W, 1) repeated -> features float32 (N, 1024), on the CPU."""
        device = next(self.network.parameters()).device
        chunks = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).split(self.batch)
        with precision.full():
            return torch.cat([self.network(prepare(chunk.to(device))).cpu() for chunk in chunks])

    def look(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.extract(images)}

    def classify(self, features: Tensor) -> None:
        """Nothing: it knows no classes."""


def build() -> Any:
    """The network without its weights: patches of 14 pixels, one class token, layer scale, no head."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=SIDE, patch_size=PATCH, init_values=1e-5, num_classes=0, **NETWORK)


def prepare(images: Tensor) -> Tensor:
    """Images uint8 (B, 3, H, W) -> what the network takes, float32 (B, 3, 224, 224)."""
    x = functional.interpolate(images.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True) / 255
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def resized(embedding: Tensor) -> Tensor:
    """Position embedding (1, 1 + 37 * 37, D) of class token and patches -> (1, 1 + 16 * 16, D)."""
    token, patches = embedding[:, :1], embedding[:, 1:]
    patches = patches.reshape(1, STORED, STORED, -1).permute(0, 3, 1, 2)
    scale = (SIDE // PATCH + OFFSET) / STORED
    patches = functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, patches.flatten(2).transpose(1, 2)], dim=1)


def find_weights() -> Path:
    """The pinned weights; raises as `weights.find` does."""
    return weights.find("dinov2", FILE, URL, SHA256)
