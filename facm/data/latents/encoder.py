"""Patch tokens of a frozen vision transformer of timm, DINOv2's in the first place, for REPA
(facm/data/latents/tokens.py).

As in sihyun-yu/REPA, train.py and utils.py: images in [0, 1] are normalised by ImageNet's mean and std, enlarged or
reduced to `side` by bicubic interpolation without antialiasing, and the tokens are those behind the last norm, without
the class token; position embeddings are resampled to the grid of `side`.

Weights are a local file, Meta's `dinov2_vitb14_pretrain.pth` or timm's safetensors, pinned by its sha256.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facm.runtime import files, foreign
from facm.runtime.params import PATH
from facm.runtime.paths import repository_root

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
PLACE = f"{PATH}, latents.tokens"


class Encoder:
    """A frozen transformer.

    Args:
        name: of timm, such as vit_base_patch14_dinov2; `features` of it is the width of a token.
        weights: its state dict, Meta's or timm's.
        side: of the square to which images are brought, a multiple of the patch size (14).
        sizes: in place of the model's own, for tests.

    Raises:
        ValueError: timm does not know the model, the side does not fit it, or the weights do not.
    """

    def __init__(self, name: str, weights: dict[str, Tensor], *, side: int = 224, **sizes: Any) -> None:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        if name not in timm.list_models(module="vision_transformer"):
            raise ValueError(f"{PLACE}.encoder: timm {timm.__version__} has no vision transformer '{name}'")
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, img_size=side, **sizes)
        patch = network.patch_embed.patch_size[0]
        if side % patch:
            raise ValueError(f"{PLACE}.side: {side} is not a multiple of the patch size {patch} of '{name}'")
        try:
            network.load_state_dict(checkpoint_filter_fn(dict(weights), network), strict=True)
        except RuntimeError as error:
            raise ValueError(f"{PLACE}.weights: they do not fit '{name}': {error}") from None
        self.name, self.side, self.network = name, side, network.eval().requires_grad_(False)

    @property
    def shape(self) -> tuple[int, int]:
        """Number and width of an image's tokens."""
        return (self.side // self.network.patch_embed.patch_size[0]) ** 2, self.network.num_features

    def to(self, device: torch.device) -> "Encoder":
        self.network.to(device)
        return self

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Images uint8 (B, H, W, 3), or grey (B, H, W, 1) -> tokens float32 (B, (side / patch)^2, features), or
        ValueError.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] not in (1, 3):
            raise ValueError(f"pictures must be uint8 (B, H, W, 1 or 3), got {images.dtype} {tuple(images.shape)}")
        device = next(self.network.parameters()).device
        x = images.to(device).permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1) / 255
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        x = F.interpolate((x - mean) / std, self.side, mode="bicubic")
        tokens: Tensor = self.network.forward_features(x)
        return tokens[:, self.network.num_prefix_tokens :]


def pinned(path: str, expected: str) -> Path:
    """The file of weights; raises FileNotFoundError where there is none, ValueError where it is another one."""
    file = repository_root() / path
    if not file.is_file():
        raise FileNotFoundError(f"{PLACE}.weights: {file} is missing: put the encoder's weights there")
    files.pinned(file, expected, f"{PLACE}.sha256", "other weights give other tokens")
    return file


def load(name: str, path: str, expected: str, side: int) -> Encoder:
    """Make an `Encoder` from a file of weights (.safetensors or .pth; a relative path lies under the repository's
    root).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file than the pinned one, or as `Encoder` does.
    """
    file = pinned(path, expected)
    weights = foreign.read(file)
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{PLACE}.weights: {file} holds no bare state dict")
    return Encoder(name, weights, side=side)
