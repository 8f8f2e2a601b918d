"""LightningDiT (Yao et al. 2025, arXiv 2501.01423; hustvl/LightningDiT, as in ali-vilab/FACM).

DiT with RMSNorm, QK-norm, SwiGLU and 2-D RoPE, each of which can be switched off. The authors' checkpoint of 800 epochs
was trained without QK-norm, that of FACM with it. Time, blocks and names: see transformer.py.
"""

from typing import ClassVar

from facm.networks.layers.transformer import Transformer, sizes


class LightningDiT(Transformer):
    """Velocity F(x, t, y, r); zero at initialisation. Arguments, shapes and errors: see `Transformer`."""

    NAME: ClassVar[str] = "lightningdit"
    SIZES: ClassVar[dict[str, dict[str, int]]] = sizes(
        "B/1", "B/2", "L/2", "XL/1", "XL/2", "1p0B/1", "1p0B/2", "1p6B/1", "1p6B/2"
    )
