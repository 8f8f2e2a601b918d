"""One flat state dict out of the layouts in which checkpoints are published: the average, unless asked otherwise.

* names to tensors: those. SiT's, DiT's and REPA's released files, which are averages.
* `ema` beside `model`, `opt`, `args` or `config`, `steps`: `ema`. LightningDiT's files, training files of the others.
* `ema` and `_extracted_from`: `ema`. FACM's released files.
* `emas` beside `model`, `opt`, `args`, `step`: FACM's training files. `emas` has `ema_models.<i>.ema_model.<name>`,
  i = 0 for sigma_rel 0.05, i = 1 for 0.2.
* `ema`, a whole module: its parameters and buffers. EDM's pickles.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.convert import settings
from facm.convert.pickles import ForeignError, StandIn, module_attributes, module_state
from facm.convert.settings import Settings

DEFAULT_PROFILE = 0.2
PROFILES = (0.05, 0.2)  # of the two averages in FACM's training files
EXTRACTED = {"PostHocEMA": 0.2, "PostHocEMA (ema_models.0)": 0.05}  # what its utils/extract_ema.py notes: sigma_rel
STEPS = ("step", "steps", "train_steps")
CHOICES = ("ema", "model")


@dataclass(frozen=True)
class Weights:
    """A network's weights as they were found.

    Attributes:
        tensors: by the authors' names, without what wrappers put before them.
        averaged: True: averaged over training; False: raw; None: the file does not tell.
        sigma_rel: length of a power-function average, where it is one.
        step: of the training, where the file tells it.
        attributes: plain attributes of a whole module (EDM), else empty.
        settings: what the file says of its training.
    """

    tensors: dict[str, Tensor]
    averaged: bool | None
    sigma_rel: float | None
    step: int | None
    attributes: dict[str, Any]
    settings: Settings = field(default_factory=Settings)


def choose(content: Any, path: Path, *, which: str = "ema", profile: float = DEFAULT_PROFILE) -> Weights:
    """Pick the weights from a file's content.

    Args:
        content: as `pickles.read` gives it.
        path: of the file, for messages.
        which: ema | model.
        profile: of several averages the one of this sigma_rel.

    Raises:
        ForeignError: no such weights, something else than tensors among them, or settings that contradict each other.
    """
    if which not in CHOICES:
        raise ForeignError(f"which weights: '{which}' is not one of {', '.join(CHOICES)}")
    if not isinstance(content, Mapping):
        raise ForeignError(f"{path} holds a {type(content).__name__}, no checkpoint")
    told = settings.read(content, path)
    step = next((int(content[name]) for name in STEPS if isinstance(content.get(name), int)), None)
    if which == "ema" and "emas" in content:
        tensors = _profile(content["emas"], path, profile)
        return Weights(stripped(tensors, path), True, profile, step, {}, told)
    if which in content:
        value = content[which]
        attributes = module_attributes(value) if isinstance(value, StandIn) else {}
        length = _length(str(content.get("_extracted_from"))) if which == "ema" else None
        if profile not in (DEFAULT_PROFILE, length):
            which_one = "weights of no told sigma_rel" if length is None else f"the average of sigma_rel {length} alone"
            raise ForeignError(f"{path} has {which_one}, not that of {profile}: leave out --profile")
        tensors = stripped(_flat(value, f"{path}, '{which}'"), path)
        return Weights(tensors, which == "ema", length, step, attributes, told)
    if not any(name in content for name in ("ema", "emas", "model")) and _are_tensors(content):
        if which == "model":
            raise ForeignError(f"{path} holds one set of weights without telling which: leave out --which model")
        if profile != DEFAULT_PROFILE:
            raise ForeignError(f"{path} holds one set of weights without telling which: leave out --profile {profile}")
        return Weights(stripped(dict(content), path), None, None, None, {})
    other = "; --which model takes its raw weights" if "model" in content else ""
    raise ForeignError(f"{path} has no '{which}', it has {', '.join(map(str, list(content)[:8]))}{other}")


def stripped(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without DDP's `module.` at their beginning and torch.compile's `_orig_mod.` anywhere.

    Raises:
        ForeignError: two names become one.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", ""))
        if short in found:
            raise ForeignError(f"{path} has '{short}' twice, with and without the prefix of a wrapper")
        found[short] = tensor
    return found


def _profile(emas: Any, path: Path, profile: float) -> dict[str, Tensor]:
    """One of the averages that ema_pytorch's PostHocEMA keeps."""
    flat = _flat(emas, f"{path}, 'emas'")
    numbers = sorted({name.split(".")[1] for name in flat if name.startswith("ema_models.")})
    if numbers != [str(i) for i in range(len(PROFILES))]:
        raise ForeignError(f"{path} has averages {numbers}, known are 0 and 1 for sigma_rel {PROFILES}")
    if profile not in PROFILES:
        raise ForeignError(f"{path} has averages of sigma_rel {PROFILES}, none of {profile}: set --profile to one")
    prefix = f"ema_models.{PROFILES.index(profile)}.ema_model."
    return {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}


def _length(told: str) -> float | None:
    """sigma_rel of an average, as FACM's extract_ema.py or our export notes it."""
    ours = re.search(r"\bsigma_rel (\d+(?:\.\d+)?)\b", told)
    return float(ours[1]) if ours else EXTRACTED.get(told)


def _flat(value: Any, where: str) -> dict[str, Tensor]:
    if isinstance(value, StandIn):
        value = module_state(value)
    if not isinstance(value, Mapping) or not value or not _are_tensors(value):
        raise ForeignError(f"{where} is no state dict: names to tensors")
    return dict(value)


def _are_tensors(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
