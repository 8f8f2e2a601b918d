"""The folder that `python -m facm.export` and `FACMPipeline.save_pretrained` write; read without diffusers.

    model_index.json      names the pipeline and its parts
    network/config.json   a checkpoint's description (facm.networks.checkpoint.Config), and two keys that begin with _
    network/diffusion_pytorch_model.safetensors      its weights, each name after `network.`
    vae/                  the codec's network as diffusers keeps it, where it has one

Around them, of no part in loading: README.md (the model card), samples.png, pipeline.py, onnx/.
"""

from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from facm.data import codecs
from facm.inference.generator import Generator
from facm.networks import checkpoint
from facm.networks.checkpoint import CheckpointError, Config
from facm.runtime import files

INDEX, NETWORK, VAE = "model_index.json", "network", "vae"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PREFIX = "network."  # of a weight's name: the pipeline's part holds the network under this name
PIPELINE, PART = ("facm.pipeline", "FACMPipeline"), ("facm.pipeline", "FACMNetwork")
CURE = "export the checkpoint again (`python -m facm.export`), or fetch the folder again"


def is_exported(folder: str | Path) -> bool:
    """Whether a folder has such a layout, be it ours or another pipeline's."""
    return (Path(folder) / INDEX).is_file()


def load(folder: str | Path, *, vae: str | None = None, rounding: str = "round") -> Generator:
    """A generator from an exported folder; `vae`: the codec's weights, if not the folder's own; see `Generator.load`.

    Raises CheckpointError: another pipeline's folder, or missing, damaged or unfitting files.
    """
    folder = Path(folder)
    index = _json(folder / INDEX)
    if index.get("_class_name") != PIPELINE[1]:
        raise CheckpointError(
            f"{folder} holds a {index.get('_class_name')} of diffusers, not a {PIPELINE[1]}: load it with diffusers"
        )
    config, path = read_config(folder), folder / NETWORK / WEIGHTS
    weights = {name.removeprefix(PREFIX): value for name, value in checkpoint.read_weights(path).items()}
    network = checkpoint.network_of(config, weights, str(path), str(path.with_name(CONFIG)))
    if vae is None and config.codec in codecs.WEIGHTS:
        vae = str(folder / VAE)
    return Generator(network, config, vae=vae, rounding=rounding)


def read_config(folder: Path) -> Config:
    """The description in an exported folder; CheckpointError where it is missing, damaged or of another format."""
    return described(_json(folder / NETWORK / CONFIG), str(folder / NETWORK / CONFIG))


def described(values: dict[str, Any], where: str) -> Config:
    """A description from plain values, without those that diffusers adds."""
    own = {"null_label": True} | {name: value for name, value in values.items() if not name.startswith("_")}
    names = {field.name for field in fields(Config)}
    if own.keys() != names:
        raise CheckpointError(f"{where} is of another format: differing keys {sorted(own.keys() ^ names)}: {CURE}")
    return checkpoint.described(own, Path(where), CURE)


def write(folder: Path, network: nn.Module, config: Config, vae: Any = None) -> Config:
    """Write the parts that are loaded, into an empty or missing folder; `vae` is the codec's AutoencoderKL, if it has
    one.

    Returns:
        The description as it was written: the codec's weights are the folder's own.
    """
    if vae is not None:
        vae.save_pretrained(folder / VAE)
        own = {"vae": VAE, "vae_sha256": files.sha256(folder / VAE / WEIGHTS)}
        config = replace(config, codec_options=config.codec_options | own)
    weights: dict[str, Tensor] = {PREFIX + name: value for name, value in network.state_dict().items()}
    files.save_tensors(folder / NETWORK / WEIGHTS, weights, {"format": "pt"})
    files.save_json(folder / NETWORK / CONFIG, _named(PART[1]) | asdict(config))
    parts = {NETWORK: list(PART), VAE: [None, None] if vae is None else ["diffusers", "AutoencoderKL"]}
    files.save_json(folder / INDEX, _named(PIPELINE[1]) | parts)
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        found = files.load_json(path, CURE)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object: {CURE}")
    return found


def _named(name: str) -> dict[str, str]:
    return {"_class_name": name, "_diffusers_version": version("diffusers")}
