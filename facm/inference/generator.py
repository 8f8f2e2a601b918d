"""A trained checkpoint as a generator of images: `facm.load("data/student").generate(labels, nfe=2, seed=0)`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from facm import samplers
from facm.data import codecs
from facm.inference.sampler import for_network
from facm.networks import checkpoint
from facm.networks.precision import full
from facm.runtime import dist
from facm.runtime.log import progress


class Drawn(NamedTuple):
    """Evaluations per image, and images that were not finite, replaced by the data's mean."""

    nfe: int
    not_finite: int


class Generator:
    """A network, the codec behind it and the samplers that fit it."""

    def __init__(
        self,
        network: nn.Module,
        config: checkpoint.Config,
        *,
        vae: str | None = None,
        rounding: str = "round",
        codec: Any = None,
        device: torch.device | None = None,
    ):
        """Put a network in eval mode on a device (None: the accelerator, else the CPU).

        `vae` and `rounding`: see `load`. `codec`: one that is loaded already, in place of the one that config names.
        """
        self.device = device or dist.device()
        self.network, self.config = network.to(self.device), config
        if codec is not None:
            self.codec = codec
            return
        if vae is not None and config.codec not in codecs.WEIGHTS:
            raise ValueError(f"codec '{config.codec}' of this checkpoint has no weights: leave vae out, got {vae!r}")
        options = {} if config.codec in codecs.POINTS else {"rounding": rounding}
        moved = {} if vae is None else {"vae": vae}
        self.codec = codecs.build(config.codec, **(config.codec_options | moved | options))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        sigma_rel: float | None = None,
        *,
        vae: str | None = None,
        rounding: str = "round",
    ) -> "Generator":
        """From a checkpoint folder.

        Args:
            sigma_rel: another, post-hoc EMA length than the stored one.
            vae: where the codec's weights are here, if not where config.json says; they must be the same ones.
            rounding: of decoded levels to uint8: round (half up) | floor; not for points.

        Raises:
            facm.networks.checkpoint.CheckpointError: missing, damaged or unfitting files.
            FileNotFoundError: no weights of the codec.
            ValueError: other weights of the codec than it was trained with.
        """
        return cls(*checkpoint.load(folder, sigma_rel), vae=vae, rounding=rounding)

    def sampler(self, name: str | None = None, **fields: Any) -> Any:
        """A sampler that this checkpoint can use; `name` None: the checkpoint's first.

        Args:
            fields: `nfe` or `t_grid` (consistency); `nfe` or `steps`, `w`, `t_low`, `t_high`, `shift` (euler, heun).

        Raises:
            ValueError: a sampler that does not fit the objective, an NFE that it cannot have, or guidance of a network
                without a null label.
        """
        name = name or self.config.samplers[0]
        if name not in self.config.samplers:
            raise ValueError(
                f"sampler '{name}' does not fit a {self.config.kind} trained by '{self.config.objective}': "
                f"it has {', '.join(self.config.samplers)}; set sample.sampler in params.yaml"
            )
        if self.config.kind == "teacher":
            checkpoint.refuse_guidance(self.config, "this teacher", fields.get("w") or 1, "w (baseline.w)")
        condition = "fm" if self.config.kind == "student" else "t"
        return for_network(name, self.config.conditioning, condition, **fields)

    def generate(
        self,
        labels: Sequence[int] | None,
        nfe: int = 1,
        seed: int = 0,
        *,
        num: int | None = None,
        sampler: str | None = None,
        **fields: Any,
    ) -> np.ndarray:
        """Sample images.

        Args:
            labels: class of each image, 0 .. classes - 1; None for a model without classes.
            nfe: function evaluations per image.
            seed: image i depends on seed, i and its label only.
            num: number of images; needed where there are no labels, else left out.
            sampler, fields: see `sampler`.

        Returns:
            uint8 (N, H, W, C), or points float32 (N, D).

        Raises:
            ValueError: labels outside the model's classes, or a sampler that does not fit.
        """
        y = self.labels(labels, num)
        total = num if y is None else len(y)
        images, _ = self.draw(self.sampler(sampler, nfe=nfe, **fields), y, total, seed)  # type: ignore[arg-type]
        return images

    def draw(
        self, sampler: Any, y: Tensor | None, num: int, seed: int, *, batch_size: int = 256, what: str = "sampling"
    ) -> tuple[np.ndarray, int]:
        """`num` images with labels y (num,) int64 or None, all in this process, and the NFE that the sampler counted.

        `batch_size` does not change them beyond rounding; `what` names the progress bar.
        """
        batches = dist.batches(num, batch_size)
        drawn = [self._batch(sampler, y, batch, seed) for batch in progress(batches, len(batches), what)]
        refuse_not_finite(sum(broken for _, _, broken in drawn), num, what)
        return np.concatenate([images for images, _, _ in drawn]), drawn[-1][1]

    def draw_into(
        self,
        take: Callable[[np.ndarray], None],
        sampler: Any,
        y: Tensor | None,
        num: int,
        seed: int,
        *,
        batch_size: int,
        what: str,
    ) -> Drawn:
        """Sample `num` images, the batches shared among the ranks, and pass them on, in order, on rank 0.

        A rank holds one batch at a time. Its images are the same whatever the number of ranks. Other arguments: see
        `draw`.

        Args:
            take: called with images uint8 (B, H, W, C) as soon as they are there.

        Returns:
            What was sampled; zeros on other ranks.
        """
        batches, counted, not_finite = dist.batches(num, batch_size), 0, 0
        mine = [batches[number] for number in dist.share(len(batches))]
        shown = progress(mine, len(mine), what)
        drawn: Iterator[tuple[np.ndarray, int, int]] = (self._batch(sampler, y, batch, seed) for batch in shown)
        for images, nfe, broken in dist.in_order(drawn, len(batches)):
            take(images)
            counted, not_finite = nfe, not_finite + broken
        return Drawn(counted, not_finite)

    def decode(self, x1: Tensor) -> np.ndarray:
        """Normalised latents (B, C, H, W) -> uint8 images (B, H, W, C), or (B, D) -> float32 points (B, D)."""
        return np.asarray(self.codec.decode(self._units(x1)).cpu())

    def _units(self, x1: Tensor) -> Tensor:
        """Normalised latents -> latents as the codec gave them."""
        shape = (-1, *[1] * (x1.dim() - 2))
        mean, std = (torch.tensor(values).view(shape).to(x1) for values in (self.config.mean, self.config.std))
        return x1 * std + mean

    @torch.no_grad()
    def sample(self, sampler: Any, noise: Tensor, y: Tensor | None) -> tuple[Tensor, int]:
        """From noise (sampler.draws, B, ...) float64 and labels y (B,) int64 or None to x1 and the NFE.

        x1 are normalised latents (B, ...) float32 on the device, not decoded.
        """
        labels = None if y is None else y.to(self.device)
        with full():
            x1, nfe = sampler(self.network, noise.to(self.device), labels, self.config.num_classes)
        return x1.float(), nfe

    @torch.no_grad()
    def _batch(self, sampler: Any, y: Tensor | None, batch: range, seed: int) -> tuple[np.ndarray, int, int]:
        """Images number `batch`, the NFE, and how many were not finite, in whose place is the data's mean."""
        noise = samplers.noise(seed, batch, sampler.draws, self.config.shape)
        with full():
            x1, nfe = self.sample(sampler, noise, None if y is None else y[batch.start : batch.stop])
            finite = self._units(x1).flatten(1).isfinite().all(1)
            x1 = torch.where(finite.view(-1, *[1] * (x1.dim() - 1)), x1, torch.zeros_like(x1))
            return self.decode(x1), nfe, int((~finite).sum())

    def labels(self, labels: Sequence[int] | None, num: int | None = None) -> Tensor | None:
        """Labels (N,) int64 of `num` images, None without classes; ValueError where they do not fit the model."""
        classes = self.config.num_classes
        if (labels is None) != (classes == 0):
            need = f"labels 0..{classes - 1}" if classes else "no labels, but num"
            raise ValueError(f"this model has {classes} classes: it needs {need}")
        if labels is None:
            if num is None or num < 1:
                raise ValueError(f"a model without classes needs num, the number of pictures, at least 1; got {num}")
            return None
        y = torch.as_tensor(labels)
        if y.dim() != 1 or not len(y) or y.is_floating_point() or num not in (None, len(y)):
            raise ValueError(f"labels must be a list with one class per picture, got {labels!r} and num {num}")
        if int(y.min()) < 0 or int(y.max()) >= classes:
            raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(y.min())}..{int(y.max())}")
        return y.to(torch.int64)


def refuse_not_finite(number: int, num: int, what: str) -> None:
    """Raise ValueError where some of `num` images were not finite."""
    if number:
        raise ValueError(
            f"{what}: {number} of {num} pictures are not finite: the network has diverged. Look at its curves with "
            "`dvc plots show`; a lower optimizer.lr in params.yaml, or an earlier average, may do"
        )


def balanced_labels(num: int, num_classes: int) -> Tensor | None:
    """(num,) labels 0, 1, ..., cycled, so that classes are balanced at any prefix; None without classes."""
    return torch.arange(num) % num_classes if num_classes else None
