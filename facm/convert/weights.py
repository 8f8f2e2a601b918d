"""The weights of a published checkpoint: found in its file, described in our terms (`Found`), fitted to our network.

One flat state dict comes out of these layouts, the average unless asked otherwise:

* names to tensors: those. SiT's, DiT's and REPA's released files, which are averages.
* `ema` beside `model`, `opt`, `args` or `config`, `steps`: `ema`. LightningDiT's files, training files of the others.
* `ema` and `_extracted_from`: `ema`. FACM's released files.
* `emas` beside `model`, `opt`, `args`, `step`: FACM's training files. `emas` has `ema_models.<i>.ema_model.<name>`, i =
  0 for sigma_rel 0.05, i = 1 for 0.2.
* `ema`, a whole module: its parameters and buffers. EDM's pickles.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from facm.convert import settings
from facm.convert.settings import Settings
from facm.networks import backbones
from facm.networks.checkpoint import Config
from facm.runtime.foreign import ForeignError, StandIn

DEFAULT_PROFILE = 0.2
PROFILES = (0.05, 0.2)  # of the two averages in FACM's training files
EXTRACTED = {"PostHocEMA": 0.2, "PostHocEMA (ema_models.0)": 0.05}  # what its utils/extract_ema.py notes: sigma_rel
STEPS = ("step", "steps", "train_steps")
CHOICES = ("ema", "model")
RECOMPUTABLE = ("pos_embed", "feat_rope.", "model.pos_embed")
"""Buffers that follow from the sizes, and that a file may lack; `model.` is the network within a preconditioning."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what weights are published in

Layout = tuple[str, ...]  # a word per axis, such as ("hidden", "channels", "patch", "patch")


@dataclass(frozen=True)
class Weights:
    """A network's weights as they were found."""

    tensors: dict[str, Tensor]  # by the authors' names, without the prefixes of wrappers
    averaged: bool | None  # True: averaged over training; False: raw; None: the file does not tell
    sigma_rel: float | None  # length of a power-function average, where it is one
    step: int | None  # of the training, where the file tells it
    attributes: dict[str, Any]  # plain attributes of a whole module (EDM), else empty
    settings: Settings = field(default_factory=Settings)  # what the file says of its training


@dataclass(frozen=True)
class Found:
    """A network in this project's terms, as a format reads it.

    Attributes:
        precond: key of facm.networks.preconds: what makes a velocity of the network's answer; none: it is one.
    """

    backbone: str
    constants: dict[str, Any]
    shape: tuple[int, ...]  # (C, H, W) of a latent
    num_classes: int  # 0: none
    weights: dict[str, Tensor] = field(repr=False)  # by our names, conventions folded in
    conditioning: str = "plain"  # plain | expanded | auxiliary: what the network knows
    fraction: float = 0.0  # share of the FM format in its training, 0 where it knows t only
    precond: str = "none"
    precond_constants: dict[str, Any] = field(default_factory=dict)  # those of it that the file tells
    null_label: bool = True  # whether it was trained with a label that means none, so that it can be guided


class Format:
    """A source format."""

    codec: ClassVar[str] = "sd_vae"
    normalised: ClassVar[bool] = False  # its latents are normalised by statistics of their own file
    students: ClassVar[bool] = False  # it publishes few-step students
    settings: ClassVar[dict[str, tuple[Any, ...]]] = {}  # which of its authors' settings it translates, see settings.py

    def read(self, weights: Weights, given: Mapping[str, Any], path: Path) -> Found:
        """The network; `given` are constants that the user knows. Raises ForeignError."""
        raise NotImplementedError


def choose(content: Any, path: Path, *, which: str = "ema", profile: float = DEFAULT_PROFILE) -> Weights:
    """Pick the weights from a file's content, as `foreign.read` gives it.

    Args:
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
    """Names without DDP's leading `module.` and torch.compile's `_orig_mod.`; ForeignError where two become one."""
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


def module_state(value: StandIn, prefix: str = "") -> dict[str, Tensor] | None:
    """The state dict of an nn.Module that a StandIn replaces; None where it replaces something else.

    EDM's classes are rebuilt from one mapping, whose `state` is the module's `__dict__` (torch_utils/persistence.py).
    """
    state = value.state
    if state is None and value.arguments and isinstance(value.arguments[0], Mapping):
        state = value.arguments[0].get("state")
    if not isinstance(state, Mapping) or not {"_parameters", "_buffers", "_modules"} <= set(state):
        return None
    passing = state.get("_non_persistent_buffers_set", ())
    named = {**state["_parameters"], **{k: v for k, v in state["_buffers"].items() if k not in passing}}
    found = {prefix + name: tensor.detach() for name, tensor in named.items() if tensor is not None}
    for name, module in state["_modules"].items():
        if module is not None:
            found |= module_state(module, f"{prefix}{name}.") or {}
    return found


def module_attributes(value: StandIn) -> dict[str, Any]:
    """The plain attributes of that module and of its `model`, such as EDM's `sigma_data`, and `class`, its name."""
    meta, state = _rebuilt(value)
    modules = state.get("_modules")
    inner = modules.get("model") if isinstance(modules, Mapping) else None
    found = (_rebuilt(inner)[1] if isinstance(inner, StandIn) else {}) | state
    plain = {name: attribute for name, attribute in found.items() if isinstance(attribute, bool | int | float | str)}
    return plain | {"class": meta.get("class_name", type(value).__name__)}


def _rebuilt(value: StandIn) -> tuple[dict[str, Any], dict[str, Any]]:
    """What EDM rebuilds a module from, and the module's `__dict__`; empty where they are no mappings."""
    meta = value.arguments[0] if value.arguments and isinstance(value.arguments[0], Mapping) else {}
    state = value.state or meta.get("state")
    return dict(meta), dict(state) if isinstance(state, Mapping) else {}


def refuse_misshapen(weights: Mapping[str, Tensor], layouts: Mapping[str, Layout], path: Path) -> None:
    """Raise ForeignError where a weight that tells sizes has other axes, or an empty one; a missing one is ignored."""
    wrong = [
        f"\n  {name}: {tuple(weights[name].shape)}, needed ({', '.join(layout)}), each at least 1"
        for name, layout in layouts.items()
        if name in weights and (weights[name].ndim != len(layout) or 0 in weights[name].shape)
    ]
    if wrong:
        raise ForeignError(
            f"{path} has weights of another shape, from which sizes would be read: fetch it again, or choose another "
            f"--from (in params.yaml: imported.format):{''.join(wrong)}"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and of FLOATS."""
    return tensor.dtype in FLOATS and tensor.layout == torch.strided


def fit(weights: Mapping[str, Tensor], config: Config, path: Path) -> dict[str, Tensor]:
    """The weights as the network of `config` has them, float32, finite, with lacking buffers; raises as `compare`."""
    expected, lacking = compare(weights, config, path)
    fitted = {name: weights[name].to(torch.float32) for name in expected if name not in lacking}
    broken = [name for name, tensor in fitted.items() if not tensor.isfinite().all()]
    if broken:
        raise ForeignError(f"{path} has values that are not finite in {', '.join(broken)}: fetch it again")
    return fitted | ({name: tensor for name, tensor in _buffers(config).items() if name in lacking} if lacking else {})


def compare(weights: Mapping[str, Tensor], config: Config, path: Path) -> tuple[list[str], list[str]]:
    """Names that the network of `config` has, and those of them that may be and are missing.

    Raises ForeignError: every missing, unexpected and mis-shaped name, and what is not dense or not of FLOATS.
    """
    try:
        with torch.device("meta"):
            network = config.build()
    except ValueError as error:
        raise ForeignError(f"{path} is of no network that can be built: {error}") from None
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    follows = [name for name, _ in network.named_buffers() if name.startswith(RECOMPUTABLE)]
    lacking = [name for name in expected if name not in weights and name in follows]
    missing = [name for name in expected if name not in weights and name not in lacking]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name}: {tuple(weights[name].shape)}, needed {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    kinds = [f"{name}: {_kind(weights[name])}" for name in expected if name in weights and not _usable(weights[name])]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another kind": kinds}
    if any(found.values()):
        told = "".join(f"\n  {what}: {name}" for what, names in found.items() for name in names)
        raise ForeignError(
            f"{path} does not fit {config.backbone} with {config.constants}, shape {tuple(config.shape)}, "
            f"{config.num_classes} classes; set what differs with --set NAME=VALUE (in params.yaml: "
            f"backbones.{config.backbone}), or choose another --from:{told}"
        )
    return list(expected), lacking


def _usable(tensor: Tensor) -> bool:
    return is_plain(tensor) and not tensor.is_meta


def _kind(tensor: Tensor) -> str:
    """What a tensor is that cannot be a weight, and what it should be."""
    is_, names = f"{tensor.dtype}, {tensor.layout}".replace("torch.", ""), (str(d).split(".")[1] for d in FLOATS)
    empty = ", without values" if tensor.is_meta else ""
    return f"{is_}{empty}; needed one of {', '.join(names)}, strided (dense)"


def _buffers(config: Config) -> dict[str, Tensor]:
    """The network's buffers; they do not depend on its depth, so that it is made with one block."""
    constants = backbones.resolve(config.backbone, config.constants)
    shallow = {name: 1 for name in ("depth", "encoder_depth") if name in constants}
    network: nn.Module = replace(config, constants=constants | shallow).build()
    return dict(network.named_buffers())
