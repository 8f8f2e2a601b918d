"""EDM (Karras et al. 2022, arXiv 2206.00364; NVlabs/edm): a pickle whose `ema` is a whole EDMPrecond around a SongUNet.

The pickle carries the source of its classes, which torch_utils/persistence.py would run; only its tensors are read
(`--trust-pickle`). A state dict of the same names (`model.enc...`) in a .pt or .safetensors file will do as well.
Precond `edm` makes a velocity of the denoiser: v(x_t, t) = (D(x_t / t; (1 - t)/t) - x_t)/(1 - t). The layer for
augmentation labels stays; it is fed zeros, as when EDM samples. Published networks with classes were trained without
label dropout (`label_dropout` of the pickle's network), so that nothing guides them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.convert import labels
from facm.convert.weights import Format, Found, Layout, Weights, is_plain, refuse_misshapen
from facm.runtime.foreign import ForeignError


class EDM(Format):
    """Codec: identity, pixels in [-1, 1], not normalised further."""

    codec = "identity"

    def read(self, weights: Weights, given: Mapping[str, Any], path: Path) -> Found:
        kind = weights.attributes.get("class", "EDMPrecond")
        if kind != "EDMPrecond":
            raise ForeignError(f"{path} holds a {kind}: only EDMPrecond is known, not the VP, VE or iDDPM ones")
        tensors = {name.removeprefix("model."): tensor for name, tensor in weights.tensors.items()}
        constants, shape, classes = describe(tensors, given, path)
        precond = {"sigma_data": float(weights.attributes.get("sigma_data", 0.5))}
        found = Found("ddpmpp", constants, shape, classes, tensors, precond="edm", precond_constants=precond)
        return replace(found, null_label=not classes or _drops_labels(weights))


def describe(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], tuple[int, int, int], int]:
    """Constants of ddpmpp, shape (C, S, S) of an image, and number of classes; ForeignError unless it is a SongUNet."""
    parts = [name.split(".") for name in tensors if name.startswith("enc.")]
    sides = sorted({int(part[1].split("x")[0]) for part in parts if part[1].split("x")[0].isdecimal()}, reverse=True)
    first = f"enc.{sides[0]}x{sides[0]}_conv.weight" if sides else ""
    if first not in tensors or "map_layer0.weight" not in tensors:
        raise ForeignError(f"{path} is not what --from says: it has {list(tensors)[:4]}, no enc.<S>x<S>_conv")
    refuse_misshapen(tensors, _layouts(tensors, first), path)
    width, channels = tensors[first].shape[:2]
    blocks = {side: sorted({part[1] for part in parts if part[1].startswith(f"{side}x{side}_block")}) for side in sides}

    def rows(block: str, layer: str) -> int:
        name = f"enc.{block}.{layer}.weight"
        if name not in tensors:
            raise ForeignError(f"{path} lacks {name}: it is no SongUNet of EDM")
        return tensors[name].shape[0]

    def attends(side: int) -> bool:
        return any(f"enc.{block}.qkv.weight" in tensors for block in blocks[side])

    if not all(blocks.values()):
        raise ForeignError(f"{path} has levels {sides}, some of them without blocks: it is no SongUNet of EDM")
    block = blocks[sides[0]][0]
    constants: dict[str, Any] = {
        "model_channels": width,
        "channel_mult": [rows(blocks[side][0], "conv0") // width for side in sides],
        "num_blocks": len(blocks[sides[0]]),
        "attn_resolutions": [side for side in sides if attends(side)],
        "resample_filter": _taps(tensors, path),
        "channel_mult_noise": tensors["map_layer0.weight"].shape[1] // width,
        "adaptive_scale": rows(block, "affine") == 2 * rows(block, "conv0"),
        "augment_dim": tensors["map_augment.weight"].shape[1] if "map_augment.weight" in tensors else None,
    }
    classes = tensors["map_label.weight"].shape[1] if "map_label.weight" in tensors else 0
    if given.get("classes", classes) not in (classes, labels.OF_DATA):
        raise ForeignError(f"{path} knows {classes} classes, not {given['classes']}: choose another checkpoint or data")
    constants |= {name: value for name, value in given.items() if name != "classes"}
    return constants, (channels, sides[0], sides[0]), classes


def _drops_labels(weights: Weights) -> bool:
    """Whether labels were dropped in training; the published networks never saw the row of zeros that means none."""
    return bool(weights.attributes.get("label_dropout") or weights.settings.get("label_dropout"))


def _layouts(tensors: Mapping[str, Tensor], first: str) -> dict[str, Layout]:
    """Axes of the weights from which sizes are read."""
    ends: dict[str, Layout] = {"conv0.weight": ("out", "in", "3", "3"), "affine.weight": ("out", "in")}
    ends["resample_filter"] = ("1", "1", "taps", "taps")
    linear = ("map_layer0.weight", "map_augment.weight", "map_label.weight")
    layouts: dict[str, Layout] = dict.fromkeys(linear, ("out", "in"))
    layouts |= {name: axes for name in tensors for end, axes in ends.items() if name.endswith(f".{end}")}
    return layouts | {first: ("width", "channels", "3", "3")}


def _taps(tensors: Mapping[str, Tensor], path: Path) -> list[int]:
    """The filter that halves the sides: whole numbers whose outer product, divided by its sum, is the buffer."""
    for name, tensor in tensors.items():
        if name.endswith(".resample_filter") and is_plain(tensor):
            line = tensor.double().sum(dim=(0, 1, 2))
            if not (line / line[0]).isfinite().all():
                raise ForeignError(f"{path} has {line.tolist()} in {name}, which is no filter: fetch it again")
            return [round(tap) for tap in (line / line[0]).tolist()]
    return [1, 1]
