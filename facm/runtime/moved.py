"""Where modules went that plug-ins of users may still import: a stale import names the new place."""

from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "facm.attention": "facm.flow.attention_jvp",
    "facm.derivative": "facm.flow.derivative",
    "facm.dual": "facm.flow.dual",
    "facm.losses": "facm.flow.losses",
    "facm.point": "facm.flow.interface",
    "facm.schedules": "facm.flow.time",
    "facm.velocity": "facm.flow.guidance",
    "facm.samplers.noise": "facm.flow.noise",
    "facm.backbones": "facm.networks.backbones; its blocks, dropout, pixel_norm and transformer facm.networks.layers",
    "facm.checkpoint": "facm.networks.checkpoint",
    "facm.ema": "facm.networks.ema",
    "facm.features": "facm.networks.features; its weights facm.runtime.weights, its precision facm.networks.precision",
    "facm.lpips": "facm.networks.lpips",
    "facm.preconds": "facm.networks.preconds; its wrapper facm.networks.layers.precond",
    "facm.target": "facm.networks.ema",
    "facm.batch": "facm.training.batch",
    "facm.passes": "facm.training.passes",
    "facm.repa": "facm.training.repa",
    "facm.source": "facm.training.target_velocity",
    "facm.step": "facm.training.step",
    "facm.student": "facm.training.passes",
    "facm.train": "facm.training.loop",
    "facm.codecs": "facm.data.codecs; its autoencoder and ldm facm.data.latents",
    "facm.data.decode": "facm.data.images.decode",
    "facm.data.normalise": "facm.data.latents.statistics",
    "facm.data.pictures": "facm.data.images.files",
    "facm.data.tokens": "facm.data.latents.tokens",
    **{f"facm.data.{name}": f"facm.data.datasets.{name}" for name in ("cifar10", "digits", "folder", "precomputed")},
    "facm.encoder": "facm.data.latents.encoder",
    "facm.mixture": "facm.data.datasets.mixture",
    "facm.generator": "facm.inference.generator",
    "facm.picture": "facm.inference.grid",
    "facm.samples": "facm.inference.samples",
    "facm.evaluate": "facm.metrics.scores",
    "facm.frechet": "facm.metrics.frechet",
    "facm.inception_score": "facm.metrics.inception_score",
    "facm.reference": "facm.metrics.reference",
    "facm.seen": "facm.metrics.extract",
    **{f"facm.{name}": f"facm.runtime.{name}" for name in ("dist", "files", "log", "names", "params")},
    "facm.ahead": "facm.runtime.prefetch",
    "facm.stop": "facm.runtime.signals",
}
"""Module -> what it is now."""


class Finder:
    """The last finder of `sys.meta_path`: no other one knows the module."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: the module has moved; the message names the new place.
        """
        if name not in MOVED:
            return None
        where = " (what an objective needs: `from facm.flow import ...`)" if "facm.flow." in MOVED[name] else ""
        raise ModuleNotFoundError(f"{name} has moved, change the import: it is now {MOVED[name]}{where}", name=name)
