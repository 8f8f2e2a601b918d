"""Checkpoints to export: small students and a teacher in pixels, in an autoencoder's latents, of points."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ldm_reference import random_weights
from miniature import CONSTANTS, randomised, write_checkpoint, write_latents
from safetensors.torch import save_file

from facm.data.codecs.sd_vae import SdVae
from facm.networks import checkpoint
from facm.networks.checkpoint import Config
from facm.runtime.files import sha256


def write_autoencoder(path: Path) -> Path:
    """Weights of an SD-VAE of width 32 in LDM's layout."""
    a = SdVae.architecture
    save_file(random_weights(32, a.multipliers, a.channels, a.attention), path)
    return path


def write_variant(folder: Path, of: Config, **changes: Any) -> Config:
    """A checkpoint like another one's description with `changes`, with random weights."""
    config = replace(of, **changes)
    torch.manual_seed(0)
    checkpoint.save(folder, dict(randomised(config.build(), seed=3).state_dict()), config)
    return checkpoint.read_config(folder)


def write_all(folder: Path) -> Path:
    """student, teacher, classless, latent (codec sd_vae, weights in vae.safetensors), points."""
    data = write_latents(folder / "latents", channels=3)
    student = write_checkpoint(folder / "student", data, kind="student")
    write_checkpoint(folder / "teacher", data)
    write_checkpoint(folder / "classless", write_latents(folder / "plain", classes=0), kind="student")
    vae = write_autoencoder(folder / "vae.safetensors")
    options = {"vae": str(vae), "vae_sha256": sha256(vae), "posterior": "sample", "seed": 0}
    write_variant(
        folder / "latent",
        student,
        shape=(4, 4, 4),
        codec="sd_vae",
        codec_options=options,
        mean=[0.1] * 4,
        std=[0.5, 0.6, 0.7, 0.8],
    )
    write_variant(
        folder / "points",
        student,
        backbone="mlp",
        constants=CONSTANTS["mlp"],
        shape=(2,),
        num_classes=0,
        codec="points",
        mean=[0.5, -0.5],
        std=[2.0, 1.0],
    )
    return folder
