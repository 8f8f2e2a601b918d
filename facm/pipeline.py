"""`FACMPipeline.from_pretrained(folder)`: an exported student or teacher as a pipeline of diffusers.

    pipeline = FACMPipeline.from_pretrained("student-export")
    pipeline([3, 1, 4], num_inference_steps=2, seed=0).images     # as facm.load(...).generate([3, 1, 4], nfe=2, seed=0)

Its parts are the network, whose config.json is our checkpoint's description, and, where the codec has one, an ordinary
AutoencoderKL. There is no scheduler: the samplers are facm.samplers, chosen by name in the call. float32 only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from torch import Tensor

from facm import samplers
from facm.data import codecs
from facm.data.latents.autoencoder import AT_ONCE
from facm.data.latents.levels import to_levels
from facm.export import folder
from facm.inference.generator import Generator
from facm.networks.precision import full
from facm.runtime.names import refuse_unknown

OUTPUTS = ("pil", "np", "pt", "latent")


class FACMNetwork(ModelMixin, ConfigMixin):
    """A velocity network F(x, t, y, r) as a model of diffusers; its config is `facm.networks.checkpoint.Config`."""

    @register_to_config
    def __init__(
        self,
        kind: str,
        backbone: str,
        constants: dict[str, Any],
        shape: Sequence[int],
        num_classes: int,
        conditioning: str,
        fraction: float,
        codec: str,
        mean: list[float],
        std: list[float],
        objective: str,
        samplers: list[str],
        step: int,
        sigma_rel: float | None,
        params: dict[str, Any],
        threads: int,
        versions: dict[str, str],
        sha256: str,
        precond: str,
        precond_constants: dict[str, Any],
        codec_options: dict[str, Any],
        null_label: bool = True,
    ) -> None:
        super().__init__()
        self.described = folder.described(dict(self.config), "the config of a FACMNetwork")
        self.network = self.described.build()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """The network's answer: x (B, ...), t (B,), y (B,) or None, r (B,) or None -> like x."""
        answer: Tensor = self.network(x, t, y, r)
        return answer


class FACMPipeline(DiffusionPipeline):
    """Noise and labels to pictures, in one or a few evaluations of a student, or by a teacher's flow."""

    _optional_components = ["vae"]  # noqa: RUF012 (diffusers reads it from the class)
    network: FACMNetwork
    vae: Any

    def __init__(self, network: FACMNetwork, vae: AutoencoderKL | None = None) -> None:
        super().__init__()
        self.register_modules(network=network, vae=vae)  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """As diffusers', but for its advice to install accelerate, which these networks do not need."""
        return super().from_pretrained(pretrained_model_name_or_path, **{"low_cpu_mem_usage": False} | options)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        *,
        num_images: int | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **fields: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw pictures.

        Args:
            class_labels: class of each picture, (B,) in 0 .. classes - 1; None for a model without classes.
            num_inference_steps: evaluations (consistency, jumps, anchored), or steps of the time grid (euler, heun,
                dpmpp, edm); None: one evaluation, or the sampler's own number of steps.
            generator: of the noise, or one for each picture; None: torch's own.
            num_images: needed where there are no labels.
            seed: noise as `facm.load(...).generate(seed=...)` draws it, in place of a generator.
            latents: the noise itself, (B, ...) or, where the sampler takes fresh noise, (draws, B, ...).
            guidance_scale: w of euler, heun, dpmpp, edm; None: none. A student's guidance is in its weights.
            sampler: one of the network's; None: its first.
            output_type: pil | np, float32 (B, H, W, C) in [0, 1] | pt, float32 (B, C, H, W) in [0, 1] | latent,
                the normalised latents. Points are np or pt (B, D), in the data's units, or latent.
            return_dict: an ImagePipelineOutput, else a tuple.
            fields: others of the sampler, such as t_grid, t_low, t_high, shift.

        Raises:
            ValueError: labels, sampler, noise or output that do not fit; before anything is drawn.
        """
        drawing = self._drawing()
        y = drawing.labels(class_labels, num_images)
        num = int(num_images or 0) if y is None else len(y)
        rule = drawing.sampler(sampler, **self._fields(drawing, sampler, num_inference_steps, guidance_scale, fields))
        self._refuse(output_type, sources=(generator, seed, latents))
        noise = self._noise(rule.draws, num, generator, seed, latents)
        x1, _ = drawing.sample(rule, noise, y)
        images = self._output(drawing, x1, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _drawing(self) -> Generator:
        """What draws, around the present network and VAE, on the device where they are."""
        config, vae = self.network.described, self.vae
        if self.network.dtype != torch.float32:
            raise ValueError(f"the network is {self.network.dtype}, but is asked in float32: load without torch_dtype")
        if (vae is None) == (config.codec in codecs.WEIGHTS):
            raise ValueError(f"codec '{config.codec}' {'needs the part vae' if vae is None else 'has no part vae'}")
        codec = codecs.build(config.codec) if vae is None else _Given(config.codec, vae)
        return Generator(self.network.network, config, codec=codec, device=self.network.device)

    def _fields(
        self, drawing: Generator, name: str | None, steps: int | None, w: float | None, fields: dict[str, Any]
    ) -> dict[str, Any]:
        """Of the sampler, with its length by its own name."""
        length, default = samplers.length(name or drawing.config.samplers[0])
        if w is not None:
            fields = fields | {"w": w}
        if length == "steps":
            return fields | {"steps": default if steps is None else steps}
        return fields | {"nfe": 1 if steps is None else steps}

    def _refuse(self, output_type: str, sources: tuple[Any, ...]) -> None:
        refuse_unknown([output_type], OUTPUTS, "output_type")
        if output_type == "pil" and self.network.described.codec in codecs.POINTS:
            raise ValueError("this model draws points, not pictures: set output_type to np, pt or latent")
        if sum(source is not None for source in sources) > 1:
            raise ValueError("generator, seed and latents each give the noise: give one of them")

    def _noise(self, draws: int, num: int, generator: Any, seed: int | None, latents: Tensor | None) -> Tensor:
        """(draws, num, *shape) float64."""
        shape = tuple(self.network.described.shape)
        if seed is not None:
            return samplers.noise(seed, range(num), draws, shape)
        if latents is not None:
            noise = latents[None] if latents.dim() == len(shape) + 1 else latents
            if tuple(noise.shape) != (draws, num, *shape):
                raise ValueError(f"latents are {tuple(latents.shape)}, needed are ({draws}, {num}, *{shape})")
            return noise.double()
        if isinstance(generator, Sequence):
            if len(generator) != num:
                raise ValueError(f"{len(generator)} generators for {num} pictures: give one for all or one for each")
            return torch.stack([_normal(one, (draws, *shape)) for one in generator], 1)
        return _normal(generator, (draws, num, *shape))

    def _output(self, drawing: Generator, x1: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return x1
        with full():
            decoded = drawing.decode(x1)
        if output_type == "pil":
            return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in decoded]
        if self.network.described.codec in codecs.POINTS:
            return torch.from_numpy(decoded) if output_type == "pt" else decoded
        levels = decoded.astype(np.float32) / 255
        return torch.from_numpy(levels).permute(0, 3, 1, 2) if output_type == "pt" else levels


class _Given:
    """The decoding half of a codec, around an autoencoder that is loaded already; see data/latents/autoencoder.py."""

    def __init__(self, codec: str, vae: Any):
        self.name, self.vae = codec, vae
        self.scale = codecs.CODECS.load(codec).architecture.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W), scaled -> pictures uint8 (B, H, W, 3), on the CPU."""
        parts = (part.to(self.vae.device, torch.float32) / self.scale for part in latents.split(AT_ONCE))
        return torch.cat([to_levels(self.vae.decode(part).sample).cpu() for part in parts])


def _normal(generator: torch.Generator | None, shape: tuple[int, ...]) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
