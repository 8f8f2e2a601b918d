"""Every preset, with the overlays it is meant with: rendered, parsed, checked, of the published size, and trained."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign import edm_pickle, release_file, transformer_file
from miniature import NETWORK, ROOT, UNET, randomised, write_latents

from facm import check, convert, preset
from facm.data import codecs
from facm.data.codecs.sd_vae import SdVae
from facm.data.codecs.va_vae import VaVae
from facm.data.latents import tokens
from facm.data.latents.store import LatentSet
from facm.networks import backbones, checkpoint
from facm.runtime import params
from facm.runtime.params import Params
from stages import distill, import_teacher, teacher

TRAINED = [  # a teacher and a student, or a student from scratch
    "digits",
    "digits scratch",
    "mixture",
    "mixture scratch",
    "cifar10",
    "cifar10 cifar10_conditional",
    "cifar10 scratch",
    "cifar10 cifar10_conditional scratch",
    "imagenet256",
    "imagenet256 scratch",
    "imagenet256 sd_vae",
    "imagenet256 sd_vae sit",
    "imagenet256 sd_vae sit scratch",
    "imagenet256 sd_vae dit",
    "imagenet256 sd_vae repa",
    "imagenet256 sd_vae repa scratch",
]
IMPORTED = {  # a published checkpoint in the teacher's place, by its format
    "cifar10 imported": "edm",
    "imagenet256 imported": "facm",
    "imagenet256 sd_vae imported": "lightningdit",
    "imagenet256 sd_vae sit imported": "sit",
    "imagenet256 sd_vae dit imported": "dit",
    "imagenet256 sd_vae repa imported": "repa",
}
SIZES = {  # trained weights of the paper's networks, and tokens of a latent
    "cifar10": (55_732_739, None),
    "imagenet256": (674_965_856, 256),
    "imagenet256 sd_vae": (674_928_976, 256),
    "imagenet256 sd_vae sit": (674_834_720, 256),
    "imagenet256 sd_vae dit": (674_834_720, 256),
    "imagenet256 sd_vae repa": (682_947_600, 256),
}


def rendered(names: str) -> dict[str, Any]:
    """Params of presets, separated by blanks, as plain mappings."""
    if names not in _RENDERED:
        _RENDERED[names] = yaml.safe_load(preset.render(names.split(), ROOT / "presets"))
    return copy.deepcopy(_RENDERED[names])


_RENDERED: dict[str, dict[str, Any]] = {}


def changed(mapping: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The mapping with values set by dotted names, in place."""
    for place, value in changes.items():
        *blocks, name = place.split(".")
        block = mapping
        for part in blocks:
            block = block[part]
        assert name in block, place
        block[name] = value
    return mapping


def shape_of(p: Params) -> tuple[int, ...]:
    """(C, H, W) of the latents that a preset makes."""
    if p.latents.codec not in codecs.WEIGHTS:
        return 3, 32, 32
    assert p.data.side is not None
    architecture = {"sd_vae": SdVae, "va_vae": VaVae}[p.latents.codec].architecture
    return architecture.channels, *2 * [p.data.side // architecture.factor]


@pytest.mark.parametrize("names", [*TRAINED, *IMPORTED])
def test_a_preset_is_in_order(names: str) -> None:
    mapping = rendered(names)
    if names in IMPORTED:
        with pytest.raises(ValueError, match=r"imported.source: is null: say which checkpoint is to be the teacher"):
            check.check(params.parse(mapping))
        source = {"source": "x.pt", "format": IMPORTED[names], "sha256": "0" * 64}
        if convert.load_format(IMPORTED[names]).normalised:
            source["stats"] = "stats.pt"
        mapping = changed(mapping, {f"imported.{name}": value for name, value in source.items()})
    check.check(params.parse(mapping))


def test_every_preset_is_in_some_combination() -> None:
    used = [*TRAINED, *IMPORTED, *(names for _, names, _ in rows())]
    assert {name for names in used for name in names.split()} == set(preset.available(ROOT / "presets"))


def test_presets_of_real_scales_tell_their_cost() -> None:
    for name in ("cifar10", "imagenet256", "sd_vae", "sit", "dit", "repa"):
        comment = "\n".join(
            line for line in (ROOT / f"presets/{name}.yaml").read_text().splitlines() if line.startswith("#")
        )
        assert "hours" in comment or "cost" in comment, name


@pytest.mark.parametrize("names", SIZES)
def test_a_preset_has_the_published_size(names: str) -> None:
    p = params.parse(rendered(names))
    (name, constants), shape = check.backbone(p), shape_of(p)
    weights, num_tokens = SIZES[names]
    with torch.device("meta"):
        network = backbones.build(name, constants, shape=shape, num_classes=1000 if num_tokens else 0)
    assert sum(weight.numel() for weight in network.parameters() if weight.requires_grad) == weights
    if num_tokens is not None:
        assert shape[1] * shape[2] // constants["patch_size"] ** 2 == num_tokens


def test_cifar10_is_the_papers_column_of_table_5() -> None:
    d = params.parse(rendered("cifar10")).distill
    assert (d.batch_size, d.w, d.dropout, d.ema.sigma_rel) == (128, 1.0, 0.1, 0.2)
    assert (d.optimizer.lr, tuple(d.optimizer.betas), d.optimizer.weight_decay) == (1e-4, (0.9, 0.995), 0.0)
    assert (d.time.sampler, d.time.mean, d.time.std) == ("arctan_lognormal", -1.0, 1.4)
    assert rendered("cifar10")["backbone"] == {"name": "ddpmpp", "precond": "simple_edm"}
    assert rendered("cifar10")["latents"]["labels"] is False


def test_imagenet256_is_the_papers_column_of_table_5() -> None:
    for names in ("imagenet256", "imagenet256 sd_vae sit", "imagenet256 sd_vae dit", "imagenet256 sd_vae repa"):
        mapping = rendered(names)
        d = params.parse(mapping).distill
        assert (d.batch_size, d.w, d.t_low, d.dropout, d.ema.sigma_rel) == (1024, 1.75, 0.125, 0.0, 0.2)
        assert (d.optimizer.lr, tuple(d.optimizer.betas), d.optimizer.weight_decay) == (1e-4, (0.9, 0.999), 0.0)
        assert (d.time.sampler, d.time.mean, d.time.std) == ("arctan_lognormal", -0.8, 1.6)
        assert (d.alpha, d.beta, d.p, mapping["objectives"]["facm"]["norm_c"]) == ("power", "cos", 0.5, 1e-3)


SHORT = {
    **{
        f"{stage}.{name}": value
        for stage in ("teacher", "distill")
        for name, value in {"steps": 2, "batch_size": 4, "optimizer.warmup": 0, "ema.snapshots": 1}.items()
    },
    **{
        f"backbones.{backbone}.{name}": value
        for backbone in ("lightningdit", "sit", "dit", "repa")
        for name, value in (NETWORK | {"variant": None, "label_std": 0.02, "gate_bias": 0.0}).items()
    },
    **{f"backbones.ddpmpp.{name}": value for name, value in UNET.items()},
    **{f"backbones.repa.{name}": value for name, value in {"encoder_depth": 1, "features": 6}.items()},
    "backbones.repa.projector_width": 8,
    "train.accumulate": 1,  # of 4 samples
    "train.compile": False,  # minutes; tests/training/test_passes.py compiles
    "runtime.threads": 1,
    "runtime.log_every": 1,
}


class Fake:
    """Tokens like those of an encoder: 4 per picture."""

    name = "fake"

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 4, 6) * images.float().mean((1, 2, 3))[:, None, None]


def write_tokens(folder: Path, latents: LatentSet) -> None:
    """Tokens beside latents of random pictures."""
    tokens.write(
        folder,
        lambda part: torch.zeros(len(part), 4, 4, 3, dtype=torch.uint8),
        latents.num,
        Fake(),
        flip=latents.flips,
        shard_size=5,
        batch_size=5,
        fingerprint=latents.fingerprint,
    )


def train(here: Path, mapping: dict[str, Any]) -> None:
    """Two steps of the teacher, where there is one, and of the student."""
    (here / "params.yaml").write_text(yaml.safe_dump(mapping))
    p = params.parse(mapping)
    channels = 1 if p.data.name == "digits" else shape_of(p)[0]
    latents = write_latents(
        Path("data/latents"),
        channels=channels,
        classes=3 if p.latents.labels else 0,
        flip=p.latents.flip,
        normalise=p.latents.normalise,
    )
    if p.latents.tokens.encoder is not None:
        write_tokens(Path("data/latents"), latents)
    if p.distill.mode == "distill":
        teacher.main()
    distill.main()
    told = json.loads(Path("metrics/distill.json").read_text())["distill_training"]
    assert (told["steps"], told["skipped"], told["stable"]) == (2, 0, True)


@pytest.mark.parametrize("names", [names for names in TRAINED if "mixture" not in names])  # tests/data/test_mixture.py
def test_a_preset_trains_for_two_steps_at_reduced_width(names: str, here: Path) -> None:
    train(here, changed(rendered(names), SHORT))


SIDE, CLASSES = 8, 5  # of the small published files
OVERRIDES = {  # as docs/scales.md has them
    "edm": {"backbone.precond": "edm", "backbones.ddpmpp.augment_dim": 9, "latents.normalise": "none"},
    "facm": {"teacher.conditioning": "expanded"},
}


def published(format: str, p: Params, channels: int) -> None:
    """x.pt: a checkpoint of a format, of the size that p has, with random weights."""
    name, constants = check.backbone(p)
    if format in ("sit", "dit", "repa"):
        transformer_file(Path("x.pt"), channels=channels, answered=channels if format == "repa" else 2 * channels)
        return
    classes = 0 if format == "edm" else CLASSES
    theirs = backbones.build(name, constants, shape=(channels, SIDE, SIDE), num_classes=classes)
    if format == "edm":
        edm_pickle(Path("x.pt"), randomised(theirs), Path("ran"))
    else:
        release_file(Path("x.pt"), dict(randomised(theirs).state_dict()))


@pytest.mark.parametrize("names", IMPORTED)
def test_an_imported_preset_trains_for_two_steps_at_reduced_width(names: str, here: Path) -> None:
    """The stage import_teacher reads a file of the format that the row of docs/scales.md names."""
    format = IMPORTED[names]
    blocks = {f"backbones.{name}.depth": 2 for name in ("sit", "dit", "repa")}
    learns = {"backbones.sit.learn_sigma": True, "backbones.dit.learn_sigma": True}
    sides = {"backbones.ddpmpp.attn_resolutions": [4]}
    mapping = changed(rendered(names), SHORT | blocks | learns | sides | OVERRIDES.get(format, {}))
    p = params.parse(mapping)
    channels = shape_of(p)[0]
    published(format, p, channels)
    chosen = {"source": "x.pt", "format": format, "sha256": checkpoint.sha256("x.pt"), "trust_pickle": format == "edm"}
    latents = write_latents(
        Path("data/latents"),
        channels=channels,
        side=SIDE,
        classes=CLASSES if p.latents.labels else 0,
        flip=p.latents.flip,
        normalise=p.latents.normalise,
    )
    if convert.load_format(format).normalised:
        torch.save({"mean": latents.mean, "std": latents.std}, "stats.pt")
        chosen["stats"] = "stats.pt"
    (here / "params.yaml").write_text(
        yaml.safe_dump(changed(mapping, {f"imported.{key}": value for key, value in chosen.items()}))
    )
    import_teacher.main()
    distill.main()
    told = json.loads(Path("metrics/distill.json").read_text())["distill_training"]
    assert (told["steps"], told["skipped"], told["stable"]) == (2, 0, True)
    assert checkpoint.read_config("data/teacher").params["imported"]["format"] == format


def rows() -> list[tuple[str, str, str]]:
    """Row, presets and overrides of the tables of docs/scales.md that have them."""
    found = []
    for line in (ROOT / "docs/scales.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or len(cells) < 5:
            continue
        place = next((i for i, cell in enumerate(cells) if re.fullmatch(r"`[a-z0-9_ ]+`", cell)), None)
        if place is not None:
            found.append((cells[0], cells[place].strip("`"), cells[place + 1].strip("`")))
    return found


def with_overrides(names: str, overrides: str) -> dict[str, Any]:
    """Params of presets with `-S KEY=VALUE -S ...`."""
    parts = overrides.split()
    assert parts[::2] == ["-S"] * (len(parts) // 2), overrides
    settings = (part.partition("=") for part in parts[1::2])
    return changed(rendered(names), {name: yaml.safe_load(value) for name, _, value in settings})


@pytest.mark.parametrize(("row", "names", "overrides"), rows(), ids=[row for row, *_ in rows()])
def test_a_row_of_the_page_is_in_order(row: str, names: str, overrides: str) -> None:
    check.check(params.parse(with_overrides(names, overrides)))


HERE = [row for row in rows() if "imported" not in row[1] and "lpips" not in row[2]]  # those need files of others


@pytest.mark.slow
@pytest.mark.parametrize(("row", "names", "overrides"), HERE, ids=[row for row, *_ in HERE])
def test_a_row_of_the_page_trains_for_two_steps_at_reduced_width(
    row: str, names: str, overrides: str, here: Path
) -> None:
    train(here, changed(with_overrides(names, overrides), SHORT))


def test_the_page_has_the_papers_tables() -> None:
    assert len(rows()) >= 9 + 6 + 7 + 6 + 3
