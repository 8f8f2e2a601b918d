"""SD-VAE (Rombach et al. 2022, arXiv 2112.10752), f8d4, the codec of DiT, SiT and REPA: z = 0.18215 * sample.

`stabilityai/sd-vae-ft-ema` and `stabilityai/sd-vae-ft-mse` on the hub share the encoder; their decoders differ by a few
hundredths of FID.
"""

from typing import ClassVar

from facm.data.latents.autoencoder import Architecture, Autoencoder


class SdVae(Autoencoder):
    """Images (H, W, 3) <-> latents (4, H/8, W/8)."""

    name: ClassVar[str] = "sd_vae"
    architecture: ClassVar[Architecture] = Architecture("sd_vae", (1, 2, 4, 4), (False,) * 4, channels=4, scale=0.18215)
