"""Variational autoencoders, through diffusers' AutoencoderKL: what sd_vae and va_vae have in common.

`latents.vae` names the weights: a folder of diffusers (config.json, diffusion_pytorch_model.safetensors), the name of
one on the hub, or a file in LDM's layout (.pt, .ckpt with `state_dict`, or .safetensors; facm/data/latents/ldm.py).
Their sha256 is compared with `latents.vae_sha256` first, and travels with latents and checkpoints.

The latent of an image is sampled from the encoder's posterior, with noise that depends on (seed, stream), and on
neither the batch nor the number of processes. All is float32, without TF32, a few images at a time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from facm.data.images.levels import from_levels, refuse_rounding, to_levels
from facm.data.latents import ldm
from facm.runtime import dist, foreign
from facm.runtime.files import load_record, pinned
from facm.runtime.names import refuse_unknown
from facm.runtime.params import PATH
from facm.runtime.paths import repository_root

AT_ONCE = 16  # images in the network, whatever the batch: 4 GB of activations at 256 x 256 and 128 channels
POSTERIORS = ("sample", "mode")
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention before diffusers 0.17
APART = (0, 0, 0, 1)  # Philox counter: far from the streams of the samplers' noise


@dataclass(frozen=True)
class Architecture:
    """A published autoencoder.

    Attributes:
        multipliers: channels of each level over those of the first; each level but the last halves the sides.
    """

    name: str  # of the codec
    multipliers: tuple[int, ...]
    attention: tuple[bool, ...]  # of each level, whether its blocks have attention
    channels: int  # of a latent
    scale: float  # latents are the posterior's samples times this
    width: int = 128  # channels of the first level, as published

    @property
    def factor(self) -> int:
        """Pixels per latent position, along a side."""
        return int(2 ** (len(self.multipliers) - 1))

    def config(self, width: int) -> dict[str, Any]:
        """Arguments of AutoencoderKL, `width` channels at the first level."""
        down = [f"{'Attn' if attends else ''}DownEncoderBlock2D" for attends in self.attention]
        up = [f"{'Attn' if attends else ''}UpDecoderBlock2D" for attends in reversed(self.attention)]
        return {
            "down_block_types": down,
            "up_block_types": up,
            "block_out_channels": [width * multiplier for multiplier in self.multipliers],
            "layers_per_block": 2,
            "latent_channels": self.channels,
            "scaling_factor": self.scale,
        }


class Autoencoder:
    """A codec made of a network's encoder and decoder. Its subclasses say which."""

    name: ClassVar[str]
    architecture: ClassVar[Architecture]

    def __init__(
        self,
        vae: str,
        vae_sha256: str | None = None,  # of the weights' file; None: any
        posterior: str = "sample",  # sample | mode, what of the posterior a latent is
        seed: int = 0,  # of the posterior's noise
        rounding: str = "round",  # round | floor, of decoded levels
        network: Any = None,  # an AutoencoderKL that is loaded already, in place of `vae`; it stays on its device
    ):
        """Load the network.

        Args:
            vae: folder, hub name or file of the weights; a path is looked for here, then under the repository's root.

        Raises:
            FileNotFoundError: no such weights.
            ValueError: other weights than the pinned ones, or of another architecture.
        """
        refuse_unknown([posterior], POSTERIORS, f"{PATH}, latents.posterior")
        refuse_rounding(rounding)
        self.rounding, self.posterior, self.seed = rounding, posterior, seed
        self._vae, self.sha256, self.network = vae, vae_sha256, network
        if network is None:
            path, self.sha256 = find_pinned(vae, vae_sha256)
            self.network = load(path, self.architecture).to(dist.device())

    @property
    def options(self) -> dict[str, Any]:
        """What builds this codec again; recorded with latents and checkpoints."""
        return {"vae": self._vae, "vae_sha256": self.sha256, "posterior": self.posterior, "seed": self.seed}

    @torch.no_grad()
    def encode(self, images: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Images uint8 (B, H, W, 3) -> latents float32 (B, C, H/f, W/f), on the device, times the scale.

        `streams`: numbers of the noise streams of their posteriors; None: 0, 1, ...
        """
        streams = range(len(images)) if streams is None else streams
        parts = [slice(first, first + AT_ONCE) for first in range(0, len(images), AT_ONCE)]
        return torch.cat([self._encode(images[part], streams[part]) for part in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W), scaled -> images uint8 (B, f H, f W, 3), on the CPU."""
        return torch.cat([self._decode(part).cpu() for part in latents.split(AT_ONCE)])

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, int, int]:
        """(H, W, 3) -> (C, H/f, W/f); ValueError for images that are not RGB, or whose sides f does not divide."""
        height, width, channels = image_shape
        factor = self.architecture.factor
        if channels != 3 or height % factor or width % factor:
            raise ValueError(
                f"{PATH}, latents.codec: '{self.name}' needs RGB pictures with sides in multiples of {factor}, these "
                f"are {width}x{height} with {channels} channels: set data.side"
            )
        return self.architecture.channels, height // factor, width // factor

    def _encode(self, images: Tensor, streams: Sequence[int]) -> Tensor:
        x = from_levels(images.to(self.network.device))
        with _float32():
            found = self.network.encode(x).latent_dist
        z = found.mean
        if self.posterior == "sample":
            z = z + found.std * noise(self.seed, streams, z.shape[1:]).to(z)
        return z * self.architecture.scale

    def _decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.network.device, torch.float32) / self.architecture.scale
        with _float32():
            return to_levels(self.network.decode(z).sample, self.rounding)


def noise(seed: int, streams: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normals (B, *shape) float64; each row is a function of (seed, stream)."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, stream], counter=APART)).standard_normal(tuple(shape))
        for stream in streams
    ]
    return torch.from_numpy(np.stack(rows))


def find_pinned(vae: str, vae_sha256: str | None) -> tuple[Path, str]:
    """The weights' file and its sha256; FileNotFoundError, or ValueError for other weights than the pinned ones."""
    path = find(vae)
    place = f"{PATH}, latents.vae_sha256 (or a checkpoint's config.json)"
    cure = "latents can be encoded and decoded by the same weights only: restore them, or pin the others"
    return path, pinned(path, vae_sha256, place, f"{cure} and run `dvc repro`")


def is_hub_name(vae: str) -> bool:
    """Whether weights are neither here nor under the repository's root, and may be on the hub."""
    here = any((root / vae).exists() for root in (Path(), repository_root()))
    return HUB_NAME.fullmatch(vae) is not None and not here


def find(vae: str) -> Path:
    """The weights' file; FileNotFoundError where they are neither here nor to be had from the hub."""
    for path in (Path(vae), repository_root() / vae):
        if path.is_file():
            return path
        if path.is_dir():
            if (path / WEIGHTS).is_file() and (path / CONFIG).is_file():
                return path / WEIGHTS
            raise FileNotFoundError(f"{PATH}, latents.vae: the folder {path} has not both {CONFIG} and {WEIGHTS}")
    if not HUB_NAME.fullmatch(vae):
        raise FileNotFoundError(f"{PATH}, latents.vae: there is neither a folder nor a file {vae}")
    return _fetched(vae)


def _fetched(name: str) -> Path:
    """The weights' file of a model on the hub, downloaded where it is not in the hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, CONFIG)
        return Path(hf_hub_download(name, WEIGHTS))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{PATH}, latents.vae: there is no folder or file {name}, and it could not be fetched from the hub "
            f"({type(error).__name__}): check the name, or fetch it where there is a network and name its folder"
        ) from None


def load(path: Path, architecture: Architecture) -> Any:
    """The network in eval mode on the CPU, float32; ValueError where it is damaged, or more than its width differs."""
    from diffusers import AutoencoderKL

    weights = _weights(path)
    try:
        converted = ldm.converted(weights) if ldm.is_ldm(weights) else _renewed(weights)
        if path.with_name(CONFIG).is_file():
            _check_config(path.with_name(CONFIG), architecture)
        with torch.device("meta"):
            network: Any = AutoencoderKL(**architecture.config(ldm.width(converted)))
        _refuse_differences(network.state_dict(), converted)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{PATH}, latents.vae: {path} is no weights of '{architecture.name}': {error}") from None
    network.load_state_dict({name: value.float() for name, value in converted.items()}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, those under `state_dict` where it has one."""
    found = foreign.read(path)
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    weights = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f"{PATH}, latents.vae: {path} holds no weights, neither at the top nor under 'state_dict'")
    return weights


def _renewed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers, attention named as today; the published SD-VAE files have the older names."""
    renamed = {}
    for name, value in weights.items():
        place, _, kind = name.rpartition(".")
        module, _, last = place.rpartition(".")
        older = ".attentions." in name and last in OLDER
        renamed[f"{module}.{OLDER[last]}.{kind}" if older else name] = value
    return renamed


def _check_config(path: Path, architecture: Architecture) -> None:
    """Raise ValueError where a config.json of diffusers differs in what the weights' names and shapes do not tell."""
    found = load_record(path, dict[str, Any], "fetch it again")
    for name, value in (("scaling_factor", architecture.scale), ("shift_factor", None), ("norm_num_groups", 32)):
        if found.get(name, value) != value:
            raise ValueError(f"its config.json has {name} {found[name]}, needed is {value}")


def _refuse_differences(needed: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    missing = [name for name in needed if name not in given]
    unexpected = [name for name in given if name not in needed]
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in needed.items()
        if name in given and given[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{len(missing)} weights are missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, "
            f"{len(shapes)} of another shape {shapes[:3]}"
        )


def _float32() -> Any:
    """Convolutions without TF32, by algorithms that give the same bits again."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
