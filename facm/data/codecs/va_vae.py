"""VA-VAE (Yao and Wang 2025, arXiv 2501.01423), f16d32, the codec of LightningDiT and of FACM's ImageNet results.

Published as a file in LDM's layout (vavae-imagenet256-f16d32-dinov2.pt). Attention where a side has 16 positions, which
is the last level for images of 256 pixels, on which it was trained. No scale factor: latents are normalised by their
statistics.
"""

from typing import ClassVar

from facm.data.latents.autoencoder import Architecture, Autoencoder


class VaVae(Autoencoder):
    """Images (H, W, 3) <-> latents (32, H/16, W/16)."""

    name: ClassVar[str] = "va_vae"
    architecture: ClassVar[Architecture] = Architecture(
        "va_vae", (1, 1, 2, 2, 4), (False, False, False, False, True), channels=32, scale=1.0
    )
