"""LPIPS: how different two images look to VGG16 (Zhang et al. 2018, arXiv 1801.03924), version 0.1, differentiable.

    d(a, b) = sum_l mean_hw sum_c w_lc (y_l(a) - y_l(b))_c^2,    y_l = features of layer l / their norm over channels

over relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of torchvision's VGG16 and the learned weights w.

Sources: lpips/lpips.py of the published code (richzhang/PerceptualSimilarity) and torch-fidelity's port of it, both
read. torch-fidelity's own class is not used: it cannot be made without fetching both files and unpickling them, and it
takes levels from 0 to 255. Its distances are ours (tests/networks/test_lpips.py).

Images below 256 pixels are enlarged to 224 x 224 bilinearly, as the published code of consistency models does
(openai/consistency_models, cm/karras_diffusion.py). That code takes piq's LPIPS with average in place of max pooling.
Here: LPIPS as its authors define it, with max pooling, for which the weights w were learned.

The weights lie in torch's cache, pinned by their sha256; `python -m facm.networks.lpips` fetches them. They are read as
tensors only, so no code in them can run.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.linalg import vector_norm

from facm.runtime import files, foreign
from facm.runtime.names import printable

FILES = {  # name -> (where from, sha256, as several independent projects pin them)
    "vgg16-397923af.pth": (
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "weights-vgg16-lpips.pth": (  # lpips/weights/v0.1/vgg.pth of the published code
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
}
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions of each of VGG16's blocks
CLASSIFIER = {f"classifier.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")}  # of VGG16; not needed
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and std for images in [-1, 1]
SMALL, SIDE, EPS = 256, 224, 1e-10


class LPIPS(nn.Module):
    """The network; weights are constants with the names of the published files. `blocks`: width and convolutions of
    each.
    """

    def __init__(self, blocks: tuple[tuple[int, int], ...] = BLOCKS) -> None:
        super().__init__()
        layers, channels, ends = list[nn.Module](), 3, list[int]()
        for i, (width, convolutions) in enumerate(blocks):
            layers += [nn.MaxPool2d(2)] if i else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            ends.append(len(layers))
        self.features, self.ends = nn.Sequential(*layers), tuple(ends)
        for i, (width, _) in enumerate(blocks):
            lin = nn.Module()
            lin.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))  # the first was a dropout
            self.add_module(f"lin{i}", lin)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], sides of at least 16 -> d(a, b) (B,), with a gradient to a alone."""
        with torch.no_grad():
            of_b = self.layers(b)
        d = torch.zeros(len(a), dtype=a.dtype, device=a.device)
        for i, (y_a, y_b) in enumerate(zip(self.layers(a), of_b, strict=True)):
            w = self.get_submodule(f"lin{i}.model.1")
            d = d + w((y_a - y_b).square()).mean((1, 2, 3))
        return d

    def layers(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> unit-length features of each block (B, C_l, H_l, W_l)."""
        x, found = (x - self.get_buffer("shift")) / self.get_buffer("scale"), list[Tensor]()
        for i, layer in enumerate(self.features, 1):
            x = layer(x)
            if i in self.ends:
                found.append(x / (vector_norm(x, dim=1, keepdim=True) + EPS))
        return found


class Distance:
    """d(a, b) of normalised latents that are pixels: (a, b) like x_t -> (B,), with a gradient to a alone.

    x std + mean, both (C,), is the image in [-1, 1]; one channel (grey) is repeated, ValueError unless C is 1 or 3.
    """

    def __init__(self, network: LPIPS, mean: Tensor, std: Tensor) -> None:
        if len(mean) not in (1, 3):
            raise ValueError(
                f"params.yaml, objectives.cd.distance: 'lpips' needs pictures of one or three channels, data/latents "
                f"has {len(mean)}: set l2 or pseudo_huber"
            )
        device = network.get_buffer("shift").device
        self.network, self.mean, self.std = network, mean.view(-1, 1, 1).to(device), std.view(-1, 1, 1).to(device)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.network(self.picture(a), self.picture(b.detach()))

    def picture(self, x: Tensor) -> Tensor:
        """Normalised latents (B, C, H, W) -> images (B, 3, H, W), enlarged where they are small."""
        x = (x * self.std + self.mean).expand(-1, 3, -1, -1)
        if min(x.shape[-2:]) < SMALL:
            x = functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return x


def from_weights(vgg: Path, lins: Path) -> LPIPS:
    """LPIPS with the weights of two published files, read as tensors only.

    `vgg` is torchvision's VGG16: `features.<i>.weight`, `.bias`, and the classifier's, which are dropped. `lins` has
    `lin<l>.model.1.weight` (1, C_l, 1, 1), of the lpips package or of torch-fidelity.

    Raises FileNotFoundError, or ValueError where one is damaged, more than tensors, or has other names or shapes.
    """
    network = LPIPS()
    needed = network.state_dict()
    for path, mine, dropped in ((vgg, "features.", CLASSIFIER), (lins, "lin", set[str]())):
        state = foreign.read(path)
        wanted = {name: tensor for name, tensor in needed.items() if name.startswith(mine)}
        if not isinstance(state, dict) or state.keys() != wanted.keys() | dropped:
            odd = sorted(map(str, state.keys() ^ (wanted.keys() | dropped))) if isinstance(state, dict) else []
            raise ValueError(f"{path} holds other tensors than LPIPS needs ({', '.join(odd[:4]) or type(state)})")
        for name, tensor in wanted.items():
            found = tuple(state[name].shape) if isinstance(state[name], Tensor) else type(state[name]).__name__
            if found != tuple(tensor.shape):
                raise ValueError(f"{path}, {name}: shape {found}, needed is {tuple(tensor.shape)}")
            tensor.copy_(state[name])
    return network


def find_weights() -> tuple[Path, Path]:
    """The two pinned files in torch's cache; FileNotFoundError, or ValueError for other content."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    vgg, lins = (folder / name for name in FILES)
    for path in (vgg, lins):
        url, pinned = FILES[path.name]
        if not path.is_file():
            raise FileNotFoundError(
                f"params.yaml, objectives.cd.distance: 'lpips' needs {path}: run `python -m facm.networks.lpips`, or "
                f"fetch {url} where there is a network and put it there (TORCH_HOME moves that folder), or set l2 or "
                "pseudo_huber"
            )
        files.pinned(path, pinned, "", "remove it and run `python -m facm.networks.lpips`")
    return vgg, lins


def main() -> None:
    """Fetch what is missing into torch's cache (553 MB), checked."""
    argparse.ArgumentParser(prog="python -m facm.networks.lpips", description=main.__doc__).parse_args()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, (url, pinned) in FILES.items():
            if not (folder / name).is_file():
                progress = sys.stderr.isatty()
                torch.hub.download_url_to_file(url, str(folder / name), hash_prefix=pinned, progress=progress)
        found = find_weights()
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(printable("\n".join(map(str, found))))


if __name__ == "__main__":
    main()
