"""The one-step generator as one ONNX graph, x1 = x0 + F(x0, c_CM(0), y): noise and labels in, latents out.

`onestep.onnx` needs neither torch nor facm. Inputs: `noise` float32 (B, ...), standard normal, and, where there are K
classes, `labels` int64 (B,), 0 .. K - 1, which the metadata `facm.labels` names; B is free. Output `x1`: float32 (B,
...), what the codec decodes: levels / 127.5 - 1 of pixels, the latents of a VAE (times its scaling_factor), points as
they are. Where a label lies outside it is NaN: ONNX counts negative rows of a table from its end, and row K is the null
class. The file is written only where onnxruntime answers as torch does.
"""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facm import samplers
from facm.flow.path import c_cm
from facm.inference.generator import Generator
from facm.networks.checkpoint import Config

FILE = "onestep.onnx"
TOLERANCE = 1e-4  # of x1, relative to its largest absolute value
BATCHES = (1, 3)  # compared; traced is another
TRACED = 2
KNOWN = ("consistency", "jumps")  # samplers whose first evaluation from noise can be the last


class OnnxError(ValueError):
    """A network that has no one-step graph, or whose graph answers otherwise."""


class OneStep(nn.Module):
    """x0 (B, ...) float32, y (B,) int64 or None -> what the codec decodes, like x0; by a student in eval mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: Config) -> None:
        super().__init__()
        self.network, self.conditioning, self.num_classes = network, config.conditioning, config.num_classes
        shape = (-1, *[1] * (len(config.shape) - 1))
        self.register_buffer("mean", torch.tensor(config.mean).view(shape))
        self.register_buffer("std", torch.tensor(config.std).view(shape))

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The student's jump from t = 0 to the data, de-normalised."""
        c = c_cm(noise.new_zeros(noise.shape[0]), self.conditioning)
        answer: Tensor = (noise + self.network(noise, c.t, labels, c.r)) * self.std + self.mean
        if labels is None:
            return answer
        known = (labels >= 0) & (labels < self.num_classes)
        return answer.where(known.view(-1, *[1] * (noise.dim() - 1)), torch.nan)


def check(config: Config) -> None:
    """Raise OnnxError unless a network has a one-step generator and the packages are there."""
    if not set(KNOWN) & set(config.samplers):
        raise OnnxError(
            f"--onnx: a {config.kind} trained by '{config.objective}' has no one-step generator (its samplers are "
            f"{', '.join(config.samplers)}): export a student"
        )
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not _installed(name)]
    if missing:
        raise OnnxError(f"--onnx needs the packages {', '.join(missing)}: install them, or facm with its extra `onnx`")


def write(folder: Path, generator: Generator) -> float:
    """Write `onestep.onnx` (weights beyond 2 GB beside it) into a folder that exists.

    Returns:
        The largest difference from torch, relative to the largest absolute value.

    Raises:
        OnnxError: see `check`; a network that cannot be exported, or a graph that differs by more than TOLERANCE. Then
            no file is left.
    """
    config = generator.config
    check(config)
    device = generator.device
    module = OneStep(generator.network, config).to("cpu").eval()
    try:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _export(module, config, Path(temporary) / FILE)
            error = difference(Path(temporary) / FILE, generator, config)
            if not error <= TOLERANCE:
                raise OnnxError(f"the graph of {config.backbone} differs from torch by {error:.1e}, not {TOLERANCE:g}")
            for path in sorted(Path(temporary).iterdir(), reverse=True):
                os.replace(path, folder / path.name)
    finally:
        generator.network.to(device)
    return error


def inputs(config: Config, num: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Noise (num, ...) float32 as `facm.load(...).generate` draws it, and, where there are classes, labels."""
    noise = samplers.noise(seed, range(num), 1, config.shape)[0].float()
    return (noise, torch.arange(num) % config.num_classes) if config.num_classes else (noise,)


def difference(path: Path, generator: Generator, config: Config) -> float:
    """The largest difference between a graph and the sampler at one evaluation, relative to the largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    cpu = Generator(generator.network, config, codec=generator.codec, device=torch.device("cpu"))
    shape = (-1, *[1] * (len(config.shape) - 1))
    mean, std = (torch.tensor(values).view(shape) for values in (config.mean, config.std))
    worst = 0.0
    for num in BATCHES:
        given = inputs(config, num, seed=num)
        answer = run(session, *(one.numpy() for one in given))
        x1, _ = cpu.sample(cpu.sampler(_first(config), nfe=1), given[0][None].double(), (*given, None)[1])
        right = x1 * std + mean
        worst = max(worst, float((torch.from_numpy(answer) - right).abs().max() / right.abs().max()))
    return worst


def run(session: Any, noise: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """x1 by an InferenceSession; noise float32 (B, ...), labels int64 (B,) or None; ValueError if unfit."""
    classes = int(session.get_modelmeta().custom_metadata_map["facm.num_classes"])
    if (labels is None) != (classes == 0):
        raise ValueError(f"this graph has {classes} classes: it needs {'labels' if classes else 'no labels'}")
    if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    (x1,) = session.run(["x1"], {"noise": noise} | ({} if labels is None else {"labels": labels}))
    return np.asarray(x1)


def _export(module: OneStep, config: Config, path: Path) -> None:
    given = inputs(config, TRACED)
    batch = torch.export.Dim("batch")
    names = ["noise", "labels"][: len(given)]
    settings: dict[str, Any] = {"dynamic_shapes": tuple({0: batch} for _ in given), "verbose": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            program = torch.onnx.export(module, given, dynamo=True, input_names=names, output_names=["x1"], **settings)
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise OnnxError(f"{config.backbone} cannot be exported to ONNX: {cause}") from None
    if program is None:
        raise OnnxError(f"{config.backbone} cannot be exported to ONNX")
    _describe(program.model, config)
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    program.save(path, external_data=size > 2**31 - 2**20)


def _describe(model: Any, config: Config) -> None:
    """Leave out what the exporter notes at every node, paths of this machine among it; tell what the network is."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    told = ("kind", "objective", "backbone", "codec", "num_classes", "step", "sha256")
    model.metadata_props.update({f"facm.{name}": str(getattr(config, name)) for name in told})
    if config.num_classes:
        model.metadata_props["facm.labels"] = f"0..{config.num_classes - 1}"


def _first(config: Config) -> str:
    return next(name for name in config.samplers if name in KNOWN)


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
