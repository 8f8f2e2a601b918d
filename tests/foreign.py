"""Files of exactly the published layouts, small, with random weights; nothing in them starts at zero."""

import argparse
import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from miniature import randomised
from oracle import golden
from torch import Tensor, nn

from facm.networks import backbones


def training_file(path: Path, case: str = "expanded", prefix: str = "module.") -> Path:
    """FACM's training checkpoint: raw weights under DDP's prefix, two averages, settings as a Namespace."""
    averages = {0: golden(f"{case}/teacher/"), 1: golden(f"{case}/student/")}
    emas: dict[str, Tensor] = {}
    for number, weights in averages.items():
        emas |= {f"ema_models.{number}.initted": torch.tensor(True), f"ema_models.{number}.step": torch.tensor(7)}
        emas |= {f"ema_models.{number}.ema_model.{name}": tensor for name, tensor in weights.items()}
    model = {prefix + name: tensor + 1 for name, tensor in averages[1].items()}
    settings = {"opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4), "epoch": 3, "step": 7, "scheduler": {}}
    torch.save({"model": model, "emas": emas, **settings}, path)
    return path


def release_file(path: Path, weights: dict[str, Tensor]) -> Path:
    """FACM's released checkpoint."""
    torch.save({"ema": weights, "_extracted_from": "PostHocEMA"}, path)
    return path


def stats_file(path: Path, channels: int = 4) -> Path:
    """latents_stats.pt."""
    mean, std = torch.linspace(-0.3, 0.4, channels), torch.linspace(0.5, 2.0, channels)
    torch.save({"mean": mean.view(1, -1, 1, 1), "std": std.view(1, -1, 1, 1)}, path)
    return path


def network(name: str, seed: int = 0, **constants: Any) -> nn.Module:
    """A small network of ours with the authors' names and random weights, in eval mode."""
    sizes = {"patch_size": 2, "hidden": 32, "depth": 2, "heads": 2} | constants
    made = randomised(backbones.build(name, sizes, shape=(4, 8, 8), num_classes=5), seed)
    return made.eval().requires_grad_(False)


def inputs(seed: int = 3, size: tuple[int, ...] = (4, 8, 8), classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x_t (6, C, H, W), times strictly inside (0, 1), labels among which is the null label."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, *size, generator=generator)
    return x, torch.tensor([0.03, 0.2, 0.4, 0.6, 0.8, 0.97]), torch.tensor([0, 1, 2, 3, 4, classes])


def transformer_file(path: Path, *, channels: int = 4, answered: int = 8, prefix: str = "", seed: int = 0) -> Path:
    """A bare state dict in the layout of DiT, SiT and REPA: width 32, two blocks, patch 2, latents 8 x 8, 5 classes."""
    generator, hidden = torch.Generator().manual_seed(seed), 32
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (hidden, channels, 2, 2),
        "t_embedder.mlp.0.weight": (hidden, 256),
        "t_embedder.mlp.2.weight": (hidden, hidden),
        "y_embedder.embedding_table.weight": (6, hidden),
        "final_layer.linear.weight": (4 * answered, hidden),
        "final_layer.adaLN_modulation.1.weight": (2 * hidden, hidden),
    }
    for i in range(2):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * hidden, hidden),
            f"blocks.{i}.attn.proj.weight": (hidden, hidden),
            f"blocks.{i}.mlp.fc1.weight": (4 * hidden, hidden),
            f"blocks.{i}.mlp.fc2.weight": (hidden, 4 * hidden),
            f"blocks.{i}.adaLN_modulation.1.weight": (6 * hidden, hidden),
        }
    biased = [name for name in shapes if "table" not in name]
    shapes |= {name.replace("weight", "bias"): shapes[name][:1] for name in biased} | {"pos_embed": (1, 16, hidden)}
    weights = {prefix + name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(weights, path)
    return path


def theirs(path: Path, x: Tensor, t: Tensor, y: Tensor, heads: int = 2) -> Tensor:
    """The network of DiT, SiT and REPA, written out in float64: x (B, C, H, W), raw t (B,), y (B,) -> all channels."""
    w = {name: tensor.double() for name, tensor in torch.load(path, weights_only=True).items()}
    x, t, patch = x.double(), t.double(), 2
    (batch, _, height, width), hidden = x.shape, w["pos_embed"].shape[2]

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(value, (hidden,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    tokens = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
    tokens = tokens.flatten(2).transpose(1, 2) + w["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(128).double() / 128)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][y])
    for block in ("blocks.0", "blocks.1"):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{block}.adaLN_modulation.1", c).chunk(6, 1)
        qkv = linear(f"{block}.attn.qkv", norm(tokens, shift1, scale1)).reshape(batch, -1, 3, heads, hidden // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = ((q @ k.transpose(2, 3) / math.sqrt(hidden // heads)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        tokens = tokens + gate1[:, None] * linear(f"{block}.attn.proj", attended)
        mlp = F.gelu(linear(f"{block}.mlp.fc1", norm(tokens, shift2, scale2)), approximate="tanh")
        tokens = tokens + gate2[:, None] * linear(f"{block}.mlp.fc2", mlp)
    tokens = linear("final_layer.linear", norm(tokens, *linear("final_layer.adaLN_modulation.1", c).chunk(2, 1)))
    pixels = tokens.reshape(batch, height // patch, width // patch, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", pixels).reshape(batch, -1, height, width)


def edm_pickle(path: Path, network: nn.Module, ran: Path, kind: str = "EDMPrecond", sigma_data: float = 0.5) -> Path:
    """EDM's file: the module in `ema` is rebuilt from its classes' source, which here makes the folder `ran`."""
    precond = type(kind, (nn.Module,), {})()
    precond.model, precond.sigma_data, precond.sigma_min, precond.sigma_max = network, sigma_data, 0, math.inf
    persistence = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise AssertionError('code of the pickle was run')", vars(persistence))

    class Persistent(pickle.Pickler):
        """Pickles a module as torch_utils/persistence.py of NVlabs/edm does."""

        def reducer_override(self, value: Any) -> Any:
            if not isinstance(value, nn.Module):
                return NotImplemented
            meta = {"type": "class", "version": 6, "class_name": type(value).__name__, "state": dict(vars(value))}
            meta["module_src"] = f"import os; os.mkdir({str(ran)!r})"
            return persistence._reconstruct_persistent_obj, (meta,)

    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), persistence
    persistence._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    try:
        with path.open("wb") as file:
            Persistent(file).dump({"ema": precond, "loss_fn": None, "dataset_kwargs": {"path": "cifar10.zip"}})
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
    return path
