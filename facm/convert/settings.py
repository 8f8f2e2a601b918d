"""What a file says of its own training beside its weights: `args` (a dict or a Namespace), `config`, `opt`.

Names are those of willisma/SiT (path_type, prediction, model, num_classes), sihyun-yu/REPA (also cfg_prob, qk_norm),
hustvl/LightningDiT (its yaml: transport.*, data.latent_norm, data.latent_multiplier, model.use_rope, ...) and
facebookresearch/DiT. Every mapping of the file is searched, at any depth; what bears no name of NAMES, such as a
learning rate, does not change the network and is ignored.

Which values a format translates stands in its class (`settings`); every other one is refused by name. SiT's GVP and VP
paths, REPA's cosine and predictions of noise or score on any of them have no precond here that is exact: `ddpm` knows
the 1000 steps of DiT alone.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.networks import backbones
from facm.runtime.foreign import ForeignError, StandIn

NAMES = {  # name in a file -> what it is called here
    "path_type": "path",
    "prediction": "prediction",
    "prediction_type": "prediction",
    "noise_schedule": "noise_schedule",
    "predict_xstart": "predict_xstart",
    "diffusion_steps": "diffusion_steps",
    "model": "model",
    "model_type": "model",
    "num_classes": "classes",
    "class_dropout_prob": "label_dropout",
    "label_dropout": "label_dropout",
    "cfg_prob": "cfg_prob",
    "latent_norm": "latent_norm",
    "latent_multiplier": "latent_multiplier",
    "qk_norm": "qk_norm",
    "use_qknorm": "qk_norm",
    "use_swiglu": "swiglu",
    "use_rope": "rope",
    "use_rmsnorm": "rms_norm",
    "wo_shift": "shift",
}
NEGATED = ("wo_shift",)
SWITCHES = ("qk_norm", "swiglu", "rope", "rms_norm", "shift")  # constants of a backbone
CHOSEN = ("path", "prediction", "noise_schedule", "predict_xstart", "diffusion_steps", *SWITCHES)
FAMILIES = {"DiT": "dit", "SiT": "sit", "LightningDiT": "lightningdit"}  # of a model's name, such as SiT-XL/2
OF_WEIGHTS = ("ema", "emas", "model")  # entries of a file that hold no settings
EITHER = (True, False)
PLAIN: dict[str, tuple[Any, ...]] = {  # the switches of DiT, SiT and REPA
    "qk_norm": EITHER,
    "swiglu": (False,),
    "rope": (False,),
    "rms_norm": (False,),
    "shift": (True,),
}
DEEPEST = 16  # levels of mappings that are looked through; no file of theirs has more than three
CURE = "if the settings are not the file's own, save its weights alone, as {'ema': weights}"


@dataclass(frozen=True)
class Settings:
    """The settings of a file that are known; `found` by our names, a switch as the constant of the backbone."""

    told: dict[str, Any] = field(default_factory=dict)  # by their full names in the file, such as args.path_type
    found: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # the full name of each of these

    def get(self, name: str) -> Any:
        """A setting, None where the file does not tell it."""
        return self.found.get(name)

    def named(self, name: str) -> str:
        """A setting with its value, for messages."""
        return f"{self.names[name]} {self.told[self.names[name]]!r}"


def read(content: Mapping[Any, Any], path: Path) -> Settings:
    """The settings of a file's content; ForeignError for one that has two values, or a kind that it cannot be."""
    settings = Settings()
    entries = {name: value for name, value in content.items() if name not in OF_WEIGHTS or isinstance(value, str)}
    for name, value in _leaves(entries, "", set()):
        short = name.rpartition(".")[2].replace("-", "_")
        known = NAMES.get(short)
        if known is None or value is None:
            continue
        _refuse_kind(known, value, name, path)
        meant = not value if short in NEGATED else value
        if settings.found.get(known, meant) != meant:
            raise ForeignError(f"{path} contradicts itself: {settings.named(known)}, {name} {value!r}; {CURE}")
        settings.told[name], settings.found[known], settings.names[known] = value, meant, name
    return settings


def refuse_other(settings: Settings, format: str, translated: Mapping[str, tuple[Any, ...]], path: Path) -> None:
    """Raise ForeignError for settings that the format does not translate; `families` are those of its models' names."""
    for name in CHOSEN:
        value, known = settings.get(name), translated.get(name, ())
        if value is not None and not any(value == one and type(value) is type(one) for one in known):
            words = ", ".join(repr(one) for one in known) or "nothing"
            raise ForeignError(
                f"{path} says {settings.named(name)}, of which --from {format} (in params.yaml: imported.format) makes "
                f"no velocity of the straight path: it knows {words}; choose the --from whose authors write that, "
                f"another checkpoint, or {CURE}"
            )
    family, _ = _model(settings)
    if family in FAMILIES and family not in translated.get("families", ()):
        raise ForeignError(
            f"{path} says {settings.named('model')}, which is no network of --from {format} (in params.yaml: "
            f"imported.format): {CURE}"
        )


def constants(
    settings: Settings, given: Mapping[str, Any], translated: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Constants that the user gives, and those that the file tells; ForeignError where they contradict each other."""
    told = {name: settings.found[name] for name in SWITCHES if name in settings.found and translated[name] == EITHER}
    told |= dict.fromkeys(["classes"], settings.get("classes")) if "classes" in settings.found else {}
    names = {name: settings.named(name) for name in told}
    family, variant = _model(settings)
    network = backbones.BACKBONES.load(FAMILIES[family]) if family in FAMILIES else None
    sizes = getattr(network, "SIZES", {}).get(variant, {})
    told |= sizes
    names |= {name: f"{settings.named('model')}, {name} {size}" for name, size in sizes.items()}
    for name, value in told.items():
        if isinstance(given.get(name), int | float | str) and given[name] != value:
            where = "the dataset's classes or latents.labels" if name == "classes" else "the block of backbone.name"
            raise ForeignError(
                f"{path} says {names[name]}, and {name} is set to {given[name]!r}: leave out --set {name} (in "
                f"params.yaml: {where}), or {CURE}"
            )
    return dict(given) | told


def statistics(
    settings: Settings, mean: list[float], std: list[float], scale: float, channels: int, path: Path
) -> tuple[list[float], list[float]]:
    """Mean and std per channel that make the network's latents of its codec's, as the file tells them.

    LightningDiT's latents are the autoencoder's own, normalised by statistics if `latent_norm`, times
    `latent_multiplier`.

    Args:
        mean, std: of the statistics, per channel; empty: none.
        scale: by which the codec multiplies the autoencoder's own.

    Raises:
        ForeignError: statistics that the file contradicts, or needs.
    """
    normalised, multiplier = settings.get("latent_norm"), settings.get("latent_multiplier")
    if normalised and not mean:
        raise ForeignError(
            f"{path} says {settings.named('latent_norm')}: give the latents_stats.pt that belongs to it with --stats "
            "(in params.yaml: imported.stats)"
        )
    if normalised is False:
        plain = [0.0] * channels, [scale / (multiplier or 1.0)] * channels
        pairs = zip([*mean, *std], [*plain[0], *plain[1]] if mean else [], strict=True)
        if not all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in pairs):
            raise ForeignError(
                f"{path} says {settings.named('latent_norm')}, and its statistics are of mean {mean[:4]} and std "
                f"{std[:4]}: leave out --stats, or give mean 0 and std {plain[1][0]:g} for every channel"
            )
        return plain
    if multiplier is None:
        return mean, std
    if not mean:
        return [0.0] * channels, [scale / multiplier] * channels
    return mean, [value / multiplier for value in std]


def _refuse_kind(known: str, value: Any, name: str, path: Path) -> None:
    """Raise ForeignError for a value that a setting cannot have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    rules = {
        "classes": (isinstance(value, int) and number and value >= 1, "a whole number of at least 1"),
        "label_dropout": (number and 0 <= value <= 1, "a number in [0, 1]"),
        "cfg_prob": (number and 0 <= value <= 1, "a number in [0, 1]"),
        "latent_multiplier": (number and 0 < value < math.inf, "a number above 0"),
        "diffusion_steps": (number, "a number"),
        "latent_norm": (isinstance(value, bool), "true or false"),
        "predict_xstart": (isinstance(value, bool), "true or false"),
        **{switch: (isinstance(value, bool), "true or false") for switch in SWITCHES},
    }
    fits, rule = rules.get(known, (isinstance(value, str), "a word"))
    if not fits:
        raise ForeignError(f"{path} says {name} {value!r}, which must be {rule}: {CURE}")


def _model(settings: Settings) -> tuple[str, str]:
    """Family and variant of the model's name, such as SiT and XL/2; empty where there is none."""
    match = re.fullmatch(r"(\w+)-(\w+/\d+)", settings.get("model") or "")
    return (match[1], match[2]) if match else ("", "")


def _leaves(value: Any, place: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Full names and values of what is no mapping; stand-ins of Namespaces and configs are mappings, too."""
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, Mapping) else {}
        if "_val" in state:  # a value of OmegaConf's
            value = state["_val"]
        else:
            inner = state.get("_content", state.get("_fields", state))  # of OmegaConf, of ml_collections
            read = dict(value) | (dict(inner) if isinstance(inner, Mapping) else {})
            value = read or f"<{value.name}>"  # an object of which nothing can be read
    if not isinstance(value, Mapping):
        if not isinstance(value, Tensor):
            yield place, value
        return
    if id(value) in seen or depth > DEEPEST:
        return
    seen.add(id(value))
    for name, entry in value.items():
        yield from _leaves(entry, f"{place}.{name}" if place else str(name), seen, depth + 1)
