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
        """x (B, ...), t (B,), y (B,) or None, r (B,) or None -> velocity, like x."""
        velocity: Tensor = self.network(x, t, y, r)
        return velocity


class FACMPipeline(DiffusionPipeline):
    """Noise and labels to images, in one or a few evaluations of a student, or by a teacher's flow."""

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
        """Sample images.

        Args:
            class_labels: class of each image, (B,) in 0 .. classes - 1; None for a model without classes.
            num_inference_steps: evaluations (consistency, jumps, anchored), or steps of the time grid (euler, heun,
                dpmpp, edm); None: one evaluation, or the sampler's own number of steps.
            generator: of the noise, or one for each image; None: torch's own.
            num_images: needed where there are no labels.
            seed: the noise of `facm.load(...).generate(seed=...)`, in place of a generator.
            latents: the noise itself, (B, ...) or, where the sampler takes fresh noise, (draws, B, ...).
            guidance_scale: w of euler, heun, dpmpp, edm; None: none. A student's guidance is in its weights.
            sampler: one of the network's; None: its first.
            output_type: pil | np, float32 (B, H, W, C) in [0, 1] | pt, float32 (B, C, H, W) in [0, 1] | latent,
                the normalised latents. Points are np or pt (B, D), in the data's units, or latent.
            return_dict: an ImagePipelineOutput, else a tuple.
            fields: others of the sampler, such as t_grid, t_low, t_high, shift.

        Raises:
            ValueError: labels, sampler, noise or output that do not fit; before anything is sampled.
        """
        inner = self._generator()
        y = inner.labels(class_labels, num_images)
        num = int(num_images or 0) if y is None else len(y)
        length, default = samplers.length(sampler or inner.config.samplers[0])
        of_steps = {"steps": default} if length == "steps" else {"nfe": 1}
        if num_inference_steps is not None:
            of_steps = dict.fromkeys(of_steps, num_inference_steps)
        guidance = {} if guidance_scale is None else {"w": guidance_scale}
        rule = inner.sampler(sampler, **fields | guidance | of_steps)
        refuse_unknown([output_type], OUTPUTS, "output_type")
        if output_type == "pil" and inner.config.codec in codecs.POINTS:
            raise ValueError("this model draws points, not pictures: set output_type to np, pt or latent")
        if sum(source is not None for source in (generator, seed, latents)) > 1:
            raise ValueError("generator, seed and latents each give the noise: give one of them")
        shape = tuple(inner.config.shape)
        if seed is None:
            noise = _noise((rule.draws, num, *shape), generator, latents)
        else:
            noise = samplers.noise(seed, range(num), rule.draws, shape)
        x1, _ = inner.sample(rule, noise, y)
        images = x1 if output_type == "latent" else _as(output_type, inner, x1)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _generator(self) -> Generator:
        """The present network and VAE, on the device where they are."""
        config, vae = self.network.described, self.vae
        if self.network.dtype != torch.float32:
            raise ValueError(f"the network is {self.network.dtype}, but is asked in float32: load without torch_dtype")
        if (vae is None) == (config.codec in codecs.WEIGHTS):
            raise ValueError(f"codec '{config.codec}' {'needs the part vae' if vae is None else 'has no part vae'}")
        codec = codecs.build(config.codec, **({} if vae is None else {"vae": "", "network": vae}))
        return Generator(self.network.network, config, codec=codec, device=self.network.device)


def _noise(shape: tuple[int, ...], generator: Any, latents: Tensor | None) -> Tensor:
    """Float64 noise of a shape (draws, num, ...), given or from torch's generators."""
    draws, num, *of_one = shape
    if latents is not None:
        noise = latents[None] if latents.dim() == len(shape) - 1 else latents
        if tuple(noise.shape) != shape:
            raise ValueError(f"latents are {tuple(latents.shape)}, needed are {shape}")
        return noise.double()
    if isinstance(generator, Sequence):
        if len(generator) != num:
            raise ValueError(f"{len(generator)} generators for {num} pictures: give one for all or one for each")
        return torch.stack([_normals(one, (draws, *of_one)) for one in generator], 1)
    return _normals(generator, shape)


def _normals(generator: torch.Generator | None, shape: tuple[int, ...]) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=device)


def _as(output_type: str, generator: Generator, x1: Tensor) -> Any:
    """Decoded images as `output_type` pil | np | pt."""
    with full():
        decoded = generator.decode(x1)
    if output_type == "pil":
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in decoded]
    if generator.config.codec in codecs.POINTS:
        return torch.from_numpy(decoded) if output_type == "pt" else decoded
    levels = decoded.astype(np.float32) / 255
    return torch.from_numpy(levels).permute(0, 3, 1, 2) if output_type == "pt" else levels
