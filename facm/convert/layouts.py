"""Layouts of checkpoints that are not read, each refused by name: in several files, diffusers', folders of tools."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from facm.runtime.foreign import ForeignError

SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(?:safetensors|bin|pt|pth)$")
DIFFUSERS = ("transformer_blocks.", "single_transformer_blocks.", "down_blocks.", "up_blocks.", "mid_block.")
WANTED = (
    "the names and conventions of diffusers' networks are not read: take the authors' own file (DiT-XL-2-256x256.pt, "
    "SiT-XL-2-256x256.pt, ...)"
)
MERGE = (
    "it is in several files: merge them, such as `weights = {}; [weights.update(safetensors.torch.load_file(f)) for f "
    "in files]; safetensors.torch.save_file(weights, 'whole.safetensors')`, and name the whole"
)


def refuse_path(path: Path, place: str = "") -> None:
    """Raise ForeignError, which begins with `place`, for a path that is known to be no whole checkpoint."""
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        index = next((name for name in names if name.endswith(".index.json")), None)
        if "model_index.json" in names:
            raise ForeignError(f"{place}{path} is the folder of a pipeline of diffusers: {WANTED}")
        if ".metadata" in names:
            raise ForeignError(
                f"{place}{path} is a distributed checkpoint of torch: make one file of it with `python -m "
                f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} whole.pt`"
            )
        if "config.json" in names:
            refuse_path(path / "config.json", place)
        if index is not None:
            raise ForeignError(f"{place}{path} is a sharded checkpoint ({index}), {MERGE}")
        return
    if path.suffix == ".json" and path.is_file():
        _refuse_json(path, place)
    if (shard := SHARD.search(path.name)) and shard[1] != "00001":
        raise ForeignError(f"{place}{path} is one of {int(shard[1])} files of a sharded checkpoint, {MERGE}")


def refuse_names(names: Iterable[str], path: Path) -> None:
    """Raise ForeignError for weights by the names of diffusers."""
    theirs = [name for name in names if name.startswith(DIFFUSERS)]
    if theirs:
        kind = "DiTTransformer2DModel or a like one" if theirs[0].startswith(DIFFUSERS[:2]) else "a UNet2DModel"
        raise ForeignError(f"{path} is a network of diffusers ({kind}: {theirs[0]}): {WANTED}")


def _refuse_json(path: Path, place: str) -> None:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and "weight_map" in found:
        files = len(set(map(str, found["weight_map"].values()))) if isinstance(found["weight_map"], dict) else "several"
        raise ForeignError(f"{place}{path} is the index of a sharded checkpoint of {files} files, {MERGE}")
    if isinstance(found, dict) and "_class_name" in found:
        raise ForeignError(f"{place}{path} describes a {found['_class_name']} of diffusers: {WANTED}")
    raise ForeignError(f"{place}{path} holds no weights: name the file that does (.pt, .pkl, .safetensors)")
