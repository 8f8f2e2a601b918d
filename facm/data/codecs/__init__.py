"""Codecs between pictures and the space of training, one file each; a new one is a file and a line in CODECS."""

from typing import Any

from facm.data.latents.codec import Codec
from facm.runtime.registry import Registry

CODECS = Registry(
    __name__, "params.yaml, latents.codec", identity="Identity", points="Points", sd_vae="SdVae", va_vae="VaVae"
)
POINTS = ("points",)  # which of them take points
WEIGHTS = ("sd_vae", "va_vae")  # which of them are networks, whose weights `latents.vae` names


def build(name: str, **options: Any) -> Codec:
    """Make a codec.

    Args:
        name: a key of CODECS.
        options: named options of its class.

    Raises:
        ValueError: unknown name.
    """
    codec: Codec = CODECS.load(name)(**options)
    return codec
