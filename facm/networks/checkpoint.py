"""Self-describing checkpoint folders: `model.safetensors`, `ema/*.safetensors`, `config.json`. No pickle.

Loading needs no params.yaml: config.json has the backbone and its constants, the conditioning, classes, codec and
latent statistics, the objective and the samplers that fit it, step, params and versions.
"""

import copy
import math
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from facm.data.latents.store import LatentSet
from facm.networks import backbones, ema, preconds
from facm.runtime import files
from facm.runtime.params import outputs
from facm.runtime.paths import located

EXTRA_EMBEDDERS = ("r_embedder.", "model.r_embedder.")  # what a student may have beyond its teacher; zero-initialised
PROJECTORS = ("projectors.", "model.projectors.")
"""What serves pretraining alone: a student drops it, a pretraining may begin it anew."""

SNAPSHOT = re.compile(r"step([0-9]{1,18})_sigma([0-9.e-]+)\.safetensors")
"""Names of EMA snapshots, see `snapshot_name`."""
UNSEEN = {"pixel_norm": False, "heads": None, "time_scale": 1.0}
"""Constants that no weight's name or shape tells, and their defaults."""
LATER: dict[str, Any] = {"precond": "none", "precond_constants": {}, "codec_options": {}, "null_label": True}
"""Fields of Config that older checkpoints lack, and what they were."""
OPTIONAL = {"codec_options", "null_label"}  # which of them are left out of config.json where they are what they were


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit; the message names the file and the rule."""


@dataclass(frozen=True)
class Config:
    """What config.json holds."""

    kind: str  # teacher | student
    backbone: str
    constants: dict[str, Any]
    shape: tuple[int, ...]  # (C, H, W) of a latent
    num_classes: int  # 0: none
    conditioning: str  # plain | expanded | auxiliary
    fraction: float  # share of the FM format in pretraining; a student knows both formats
    codec: str
    mean: list[float]  # per channel, of the latents
    std: list[float]
    objective: str
    samplers: list[str]
    step: int  # of an imported one as its file tells, else 0
    sigma_rel: float | None  # of model.safetensors; None: imported, and not known as a power-function average
    params: dict[str, Any]
    threads: int
    versions: dict[str, str]
    sha256: str = ""  # of model.safetensors, filled in when written
    precond: str = "none"
    precond_constants: dict[str, Any] = field(default_factory=dict)
    codec_options: dict[str, Any] = field(default_factory=dict)  # what its codec is built with; left out where empty
    null_label: bool = True  # False: `num_classes` was never trained as the label that means none; left out where True

    @property
    def auxiliary(self) -> bool:
        return self.conditioning == "auxiliary"

    @property
    def knows_fm_format(self) -> bool:
        """Whether the network was trained at c_FM."""
        return self.conditioning != "plain" and self.fraction > 0

    def build(self, dropout: float = 0.0) -> nn.Module:
        network = backbones.build(
            self.backbone,
            self.constants,
            shape=tuple(self.shape),
            num_classes=self.num_classes,
            auxiliary=self.auxiliary,
            dropout=dropout,
        )
        return preconds.build(self.precond, self.precond_constants, network, mean=self.mean, std=self.std)


def describe(
    kind: str,
    latents: LatentSet,
    backbone: tuple[str, dict[str, Any]],
    objective: Any,
    settings: Any,
    params: dict[str, Any],
    precond: tuple[str, dict[str, Any]],
) -> Config:
    """Config of a network about to be trained.

    Args:
        kind: teacher | student.
        backbone: name and constants, resolved (`facm.networks.backbones.resolve`); a student's become `of_student`.
        settings: params.teacher or params.distill.
        params: the whole params.yaml as plain mappings, recorded.
        precond: name and constants.
    """
    return Config(
        kind=kind,
        backbone=backbone[0],
        constants=backbones.of_student(*backbone) if kind == "student" else backbone[1],
        shape=tuple(latents.shape),
        num_classes=latents.num_classes,
        conditioning=objective.conditioning,
        fraction=getattr(objective, "fraction", 1.0),
        codec=latents.codec,
        mean=latents.mean.tolist(),
        std=latents.std.tolist(),
        objective=type(objective).__module__.rpartition(".")[2],  # file name, the key of the registry
        samplers=list(objective.samplers),
        step=settings.steps,
        sigma_rel=settings.ema.sigma_rel,
        params=params,
        threads=torch.get_num_threads(),
        versions=versions(),
        precond=precond[0],
        precond_constants=precond[1],
        codec_options=latents.codec_options,
        null_label=not latents.num_classes or _trains_null_label(settings),
    )


def _trains_null_label(settings: Any) -> bool:
    """Whether a training drops labels, or starts from a network whose training did (a teacher, if it is there yet)."""
    start = settings.init or (settings.teacher if getattr(settings, "mode", None) == "distill" else None)
    if settings.label_dropout > 0 or start is None:
        return bool(settings.label_dropout > 0)
    folder = located(start)
    return not (folder / "config.json").is_file() or read_config(folder).null_label


def versions() -> dict[str, str]:
    """Versions that a number may depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "machine": platform.machine()}


def save(folder: str | Path, weights: dict[str, Tensor], config: Config, snapshots: list[Path] | None = None) -> None:
    """Write a checkpoint with copies of EMA snapshots in `ema/`; an earlier one is replaced.

    Nothing half-written is ever found under the final name.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "ema").mkdir(parents=True)
    written = files.save_tensors(temporary / "model.safetensors", weights)
    described = asdict(config) | {"sha256": written["sha256"]}
    left_out = [name for name in OPTIONAL if described[name] == LATER[name]]
    files.save_json(temporary / "config.json", {k: v for k, v in described.items() if k not in left_out})
    for snapshot in snapshots or []:
        with snapshot.open("rb") as source, files.atomic_write(temporary / "ema" / snapshot.name) as copy:
            shutil.copyfileobj(source, copy)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    files.fsync_dir(folder.parent)


def refuse_own(folder: str | Path, out: str | Path, option: str = "--out") -> None:
    """Raise ValueError where what an option names is a checkpoint's own folder, lies in it, or holds it."""
    own, place = Path(folder).resolve(), Path(out).resolve()
    if place in (own, *own.parents):
        raise ValueError(f"{option} {out} is the checkpoint's own folder, or above it: choose another")
    if own in place.parents:
        raise ValueError(f"{option} {out} lies in the checkpoint's own folder, which DVC tracks: choose another")


def refuse_foreign(out: str | Path) -> None:
    """Raise ValueError where `save` cannot write, or would replace what is no checkpoint, or what a stage makes."""
    if Path(out).exists():
        try:
            read_config(out)
        except (CheckpointError, OSError):
            raise ValueError(f"{out} is there and no checkpoint folder: choose another --out") from None
    refuse_made(out)
    files.refuse_unwritable(Path(out))


def refuse_made(out: str | Path, option: str = "--out") -> None:
    """Raise ValueError where what an option names is, holds or lies in what a stage of the pipeline makes."""
    named, place = Path(os.path.abspath(out)), Path(out).resolve()  # data/ may be a link to another disk
    pipelines = [above / "dvc.yaml" for path in (named, place) for above in (path, *path.parents)]
    pipeline = next((path for path in pipelines if path.is_file()), Path("dvc.yaml"))
    for name in outputs(None, pipeline):
        made = (pipeline.parent / name).resolve()
        if made in (place, *place.parents) or place in made.parents:
            relation = "holds" if place in made.parents else "belongs to"
            raise ValueError(
                f"{option} {out} {relation} {name}, which is made by a stage of {pipeline}: choose another"
            )


def read_config(folder: str | Path) -> Config:
    """The description alone; CheckpointError for a missing or damaged config.json."""
    path = Path(folder) / "config.json"
    try:
        found = files.load_json(path, f"remove {folder} and run `dvc repro`")
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no checkpoint: {path} is missing; `dvc pull` or `dvc repro` brings it"
        ) from None
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return described(found, path, f"remove {folder} and run `dvc repro`")


def described(values: Any, path: Path, cure: str) -> Config:
    """A description from plain values.

    Args:
        values: as JSON gives them.
        path: where from.
        cure: what to do where they are no description; ends the message.

    Raises:
        CheckpointError: other names, values of another type, or statistics that are not those of `shape`'s channels.
    """
    names = {field.name for field in fields(Config)}
    found = set(values) if isinstance(values, dict) else set()
    if found | set(LATER) != names:
        raise CheckpointError(f"{path} is of another format: differing keys {sorted((found | set(LATER)) ^ names)}")
    values = copy.deepcopy(LATER) | values
    try:
        files.refuse_other_form(values, Config, str(path), cure)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    config = Config(**(values | {"shape": tuple(values["shape"])}))
    refuse_statistics(config, str(path), cure)
    return config


def refuse_statistics(config: Config, where: str, cure: str) -> None:
    """Raise CheckpointError unless mean and std are a finite number per channel, std above 0.

    They would be broadcast, or give images of another scale, without a word.
    """
    channels = config.shape[0] if len(config.shape) in (1, 3) else 0
    numbers = [len(values) == channels and all(map(math.isfinite, values)) for values in (config.mean, config.std)]
    if not channels or not all(numbers) or min(config.std) <= 0:
        raise CheckpointError(
            f"{where}: mean {config.mean} and std {config.std} must be {channels} finite numbers each, one per "
            f"channel, std above 0: {cure}"
        )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A safetensors file on the CPU; CheckpointError where it is missing or truncated."""
    try:
        return files.load_tensors(Path(path), f"remove {Path(path).parent} and run `dvc repro`")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: `dvc pull` or `dvc repro` brings it") from None
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load(folder: str | Path, sigma_rel: float | None = None) -> tuple[nn.Module, Config]:
    """A network in eval mode on the CPU, with the weights as stored, or those of a post-hoc EMA length sigma_rel.

    Raises CheckpointError: as `read_config` and `read_weights`, or weights that do not fit config.json.
    """
    config, path = read_config(folder), Path(folder) / "model.safetensors"
    weights = read_weights(path) if sigma_rel is None else synthesize(folder, sigma_rel)
    if sigma_rel is None and (found := sha256(path)) != config.sha256:
        raise CheckpointError(
            f"{path} has sha256 {found}, config.json says {config.sha256}: they are not of one training, or damaged; "
            f"remove {folder} and run `dvc repro`"
        )
    return network_of(config, weights, f"{folder}: model.safetensors", f"{folder}/config.json"), config


def network_of(config: Config, weights: dict[str, Tensor], where: str, of: str) -> nn.Module:
    """The network of a description with its weights, in eval mode on the CPU.

    Args:
        config: the description.
        weights: by its names.
        where, of: files that the weights and the description are from, for messages.

    Raises:
        CheckpointError: constants that no network has, or weights that are not its.
    """
    try:
        with torch.device("meta"):  # names and shapes alone: a size that is damaged takes no memory
            expected = {name: tensor.shape for name, tensor in config.build().state_dict().items()}
    except (ValueError, RuntimeError, OverflowError) as error:
        told = str(error).replace("params.yaml, ", "")
        raise CheckpointError(f"{of} describes no network ({told})") from None
    odd = sorted(expected.keys() ^ weights.keys())
    odd += [name for name, shape in expected.items() if name in weights and weights[name].shape != shape]
    odd += [name for name, tensor in weights.items() if tensor.is_complex()]
    if odd:
        more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
        raise CheckpointError(f"{where} does not fit config.json: other names or shapes, {', '.join(odd[:4])}{more}")
    network = config.build()
    network.load_state_dict(weights, strict=True)
    return network.eval().requires_grad_(False)


def snapshot_name(step: int, sigma_rel: float) -> str:
    """File name of an EMA snapshot; it carries step and profile."""
    return f"step{step:08d}_sigma{sigma_rel:g}.safetensors"


def snapshots(folder: str | Path) -> list[tuple[int, float, Path]]:
    """(step, sigma_rel, path) of each EMA snapshot of a checkpoint folder.

    Raises:
        CheckpointError: a file there that is called differently.
    """
    found = []
    for path in sorted((Path(folder) / "ema").glob("step*_sigma*.safetensors")):
        told = SNAPSHOT.fullmatch(path.name)
        if told is None:
            raise CheckpointError(f"{path} is not called {snapshot_name(1, 0.1)}, by step and sigma_rel: move it away")
        found.append((int(told[1]), float(told[2]), path))
    return found


def synthesize(folder: str | Path, sigma_rel: float) -> dict[str, Tensor]:
    """Post-hoc EMA weights of any sigma_rel at the checkpoint's step (facm.networks.ema).

    Raises CheckpointError: fewer than two snapshots, or one that is truncated or does not fit the others.
    """
    found = snapshots(folder)
    if len(found) < 2:
        raise CheckpointError(f"{folder}/ema holds {len(found)} snapshots, post-hoc EMA needs two: set ema.snapshots")
    first = _shapes(found[0][2])
    for step, length, path in found:
        if _shapes(path) != first:
            raise CheckpointError(f"{path} has other tensors than {found[0][2]}: the folder mixes two runs")
        try:
            ema.gamma(length)
        except ValueError:
            raise CheckpointError(
                f"{path} is of step {step} and sigma_rel {length}, of which none is: move it"
            ) from None
    return ema.synthesize(found, step=read_config(folder).step, sigma_rel=sigma_rel)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a snapshot's tensors, by name, of its header alone."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove {path.parent} and run `dvc repro`") from None


def transfer(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights of a network that may lack the extra, zero-initialised embedders, and projectors on either side.

    Raises CheckpointError for any other missing, unexpected or mis-shaped key.
    """
    own = network.state_dict()
    weights = {k: tensor for k, tensor in weights.items() if k in own or not k.startswith(PROJECTORS)}
    missing = [k for k in own if k not in weights and not k.startswith(EXTRA_EMBEDDERS + PROJECTORS)]
    unexpected = [k for k in weights if k not in own]
    shapes = [k for k in weights if k in own and own[k].shape != weights[k].shape]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{where} does not fit the network of params.yaml, backbones: missing {missing[:4]}, "
            f"unexpected {unexpected[:4]}, other shape {shapes[:4]}"
        )
    without_values = any(tensor.is_meta for tensor in own.values())  # names and shapes are all there is to it
    network.load_state_dict(own | weights, strict=True, assign=without_values)


def start_from(network: nn.Module, config: Config, folder: str | Path, expected: str | None) -> None:
    """Load the first weights of a training, described by `config`, from another checkpoint.

    A relative folder is looked for here, then under the repository's root, where queue workers do not run. `expected`
    is the sha256 of its weights, pinned in params.yaml.

    Raises CheckpointError for another width, class count, codec or latent statistics, other weights than the pinned
    ones.
    """
    folder = located(str(folder))
    other = read_config(folder)
    check_fits(config, other, folder)
    if other.auxiliary and not config.auxiliary:
        raise CheckpointError(
            f"{folder} was trained with conditioning 'auxiliary', a second time r, and this training has "
            f"'{config.conditioning}': set {'distill' if config.kind == 'student' else 'teacher'}.conditioning: "
            "auxiliary in params.yaml, or choose another checkpoint"
        )
    check_same_function(config, other, folder)
    path = Path(folder) / "model.safetensors"
    weights, found, wanted = read_weights(path), sha256(path), expected or other.sha256
    if found != wanted:
        raise CheckpointError(
            f"{path} has sha256 {found}, expected is {wanted}: it is not the checkpoint that "
            "init_sha256 in params.yaml pins, or it is damaged (then remove the folder and run `dvc repro`)"
        )
    transfer(network, weights, str(path))


def check_same_function(config: Config, other: Config, folder: str | Path) -> None:
    """Raise CheckpointError where equal names of weights would hide that two networks compute different things."""
    both = [(c.precond, preconds.defaults(c.precond) | c.precond_constants) for c in (config, other)]
    if both[0] != both[1]:
        told = [" ".join([name, *(f"{k} {v}" for k, v in constants.items())]) for name, constants in both]
        raise CheckpointError(
            f"{folder} was trained with precond {told[1]}, params.yaml, backbone.precond is {told[0]}: set it and its "
            "block in preconds as the checkpoint has them, or choose another checkpoint as init"
        )
    for name, default in UNSEEN.items():
        own, theirs = config.constants.get(name, default), other.constants.get(name, default)
        if own != theirs:
            raise CheckpointError(
                f"{folder} was trained with {name} {theirs!r}, params.yaml, backbones.{config.backbone}.{name} is "
                f"{own!r}: its weights fit by name but mean something else there: set it to {theirs!r}, or choose a "
                f"checkpoint that was trained with {own!r} as init"
            )


def check_teacher(config: Config, teacher: Config, folder: str | Path, condition: str) -> None:
    """Raise CheckpointError unless a teacher fits the student (classes, codec, statistics) and can be asked so."""
    check_fits(config, teacher, folder)
    if condition == "fm" and not teacher.knows_fm_format:
        raise CheckpointError(
            f"{folder} is a plain teacher, which knows t only: set distill.teacher_condition: t in params.yaml, "
            "or train it with teacher.fraction above 0"
        )


def refuse_guidance(config: Config, where: str | Path, w: float, place: str = "w", label_dropout: float = 0.0) -> None:
    """Raise CheckpointError where a network that was never trained with a null label would be evaluated at it.

    Args:
        where: its folder, for messages.
        place: of w in params.yaml.
        label_dropout: share of labels for which a student evaluates its teacher at the null label.
    """
    for name, value, least in ((place, w, 1), ("distill.label_dropout", label_dropout, 0)):
        if config.num_classes and not config.null_label and value > least:
            raise CheckpointError(
                f"{where} was trained without label dropout and has no null label, so that nothing can guide it: set "
                f"{name} to {least}, not {value:g}, or fine-tune it with labels dropped first (teacher.stage: teacher, "
                "teacher.init, teacher.label_dropout: 0.1); if its last label is the null one, it has one class less "
                f"than {config.num_classes}"
            )


def check_fits(config: Config, other: Config, folder: str | Path) -> None:
    """Raise CheckpointError unless two networks live in the same latent space and know the same classes."""
    if other.num_classes != config.num_classes:
        raise CheckpointError(
            f"{folder} knows {other.num_classes} classes, data/latents has {config.num_classes}: "
            "a student cannot have other classes than its teacher; rerun the teacher, or choose another data.name"
        )
    for name, place in (("shape", "latents.codec"), ("codec", "latents.codec")):
        if getattr(other, name) != getattr(config, name):
            raise CheckpointError(
                f"{folder} was made with {name} {getattr(other, name)!r}, data/latents with {getattr(config, name)!r}: "
                f"set {place} in params.yaml, or rerun the teacher"
            )
    own, theirs = config.codec_options.get("vae_sha256"), other.codec_options.get("vae_sha256")
    if own != theirs:
        raise CheckpointError(
            f"{folder} was made with codec weights of sha256 {theirs}, data/latents with {own}: set latents.vae in "
            "params.yaml, or rerun the teacher"
        )
    for name in ("mean", "std"):
        if not torch.allclose(
            torch.tensor(getattr(other, name)), torch.tensor(getattr(config, name)), rtol=1e-4, atol=1e-6
        ):
            raise CheckpointError(
                f"{folder} was made on latents of {name} {getattr(other, name)[:4]}, data/latents has "
                f"{getattr(config, name)[:4]}: both must be normalised alike; use the teacher's data/latents"
            )


def sha256(path: str | Path) -> str:
    return files.sha256(Path(path))
