"""The model card of an exported checkpoint: README.md with the hub's front matter, from what is known and nothing else.

Figures are those that dvc.lock proves to be this checkpoint's (facm/export/provenance.py). What is not known is said to
be not known.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm import samplers
from facm.data import codecs
from facm.export.provenance import Provenance
from facm.networks.checkpoint import Config
from facm.table import COLUMNS, ENDS

LIBRARY = "facm"
MORE = ("fid_", "is_", "sfid_", "fd_", "map_")  # columns beside the usual ones begin so
DRAWING = ("sampler", "steps", "w", "t_low", "t_high", "t_grid", "shift", "seed", "rounding")


@dataclass(frozen=True)
class Exported:
    """What the export itself did."""

    name: str  # of the model, its title
    license: str  # of the weights, an identifier of the hub
    weights: int  # number of the network's weights
    sigma_rel: float | None  # of the exported average, None: as it was stored
    samples: str  # what samples.png shows, a sentence
    onnx_error: float | None = None  # the graph's difference from torch; None: there is no graph
    vae: bool = False  # whether the codec's network is in the folder


def render(config: Config, known: Provenance, exported: Exported) -> str:
    parts = [
        _front(config, exported),
        _title(config, known, exported),
        _use(config, known, exported),
        _figures(config, known),
        _training(config, known, exported),
        _limits(config, known),
    ]
    return "\n\n".join(parts) + "\n"


def _front(config: Config, exported: Exported) -> str:
    from huggingface_hub import ModelCardData

    tags = ["image-generation", "flow-matching", config.kind, config.objective, config.backbone, "diffusers"]
    tags += ["consistency-model", "few-step"] if config.kind == "student" else []
    tags += ["class-conditional"] if config.num_classes else []
    data = ModelCardData(
        license=exported.license,
        library_name=LIBRARY,
        pipeline_tag=None if config.codec in codecs.POINTS else "unconditional-image-generation",
        tags=list(dict.fromkeys(tags)),
    )
    return f"---\n{data.to_yaml()}\n---"


def _title(config: Config, known: Provenance, exported: Exported) -> str:
    what = "points" if config.codec in codecs.POINTS else "pictures"
    imported = _imported(config)
    of = f" like those of the dataset `{known.data['name']}`" if known.data and not imported else ""
    classes = f", of {config.num_classes} classes" if config.num_classes else ", without classes"
    how = {
        "student": f"a few-step student, trained with the method `{config.objective}`: it draws in one or a few "
        "evaluations of its network",
        "teacher": "a teacher, "
        + (f"imported from {_from(imported)}" if imported else f"trained with the method `{config.objective}`")
        + ": it draws by following its flow, in tens of evaluations of its network",
    }[config.kind]
    first = f"# {exported.name}\n\nA generator of {what}{of}{classes}: {how}."
    if known.imported:
        first += f" Its teacher was imported from {_from(known.imported)}; its licence may bind this network too."
    return f"{first}\n\n![{exported.samples}](samples.png)\n\n{exported.samples}"


def _use(config: Config, known: Provenance, exported: Exported) -> str:
    points, classes = config.codec in codecs.POINTS, config.num_classes
    labels = str(list(range(min(3, classes)))) if classes else "None"
    ours, theirs = _calls(config, known)
    ours, theirs = (ours, theirs) if classes else (f"num=3, {ours}", f"num_images=3, {theirs}")
    output = ', output_type="np"' if points else ""
    kind = "float32 (N, D)" if points else "uint8 (N, H, W, C)"
    lines = f"""## Use

With the package `facm` installed, `FOLDER` being this folder, or `hf://OWNER/NAME` on the hub:

```python
import facm

generator = facm.load("FOLDER")
images = generator.generate({labels}, {ours}, seed=0)  # {kind}
```

As a pipeline of diffusers, which gives the same for the same seed (on the hub `OWNER/NAME`, without `hf://`):

```python
from facm.pipeline import FACMPipeline

pipeline = FACMPipeline.from_pretrained("FOLDER")
images = pipeline({labels}, {theirs}, seed=0{output}).images
```

`DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)` works too, with \
`facm` installed."""
    if exported.onnx_error is None:
        return lines
    given = "`noise`, standard normal float32" + (", and `labels`, int64," if classes else "")
    return f"""{lines}

`onnx/onestep.onnx` is the one-step generator without torch: {given} to `x1`, what the codec decodes. It differs from \
torch by {exported.onnx_error:.1e} of the largest value (onnxruntime, CPU)."""


def _calls(config: Config, known: Provenance) -> tuple[str, str]:
    """Arguments of `generate` and of the pipeline that sample as the run did, where that is known."""
    name = known.drawn.get("sampler", config.samplers[0])
    if config.kind == "student":
        nfes = known.drawn.get("nfe") or [2]
        fields = of_nfe(known, name, 2 if 2 in nfes else nfes[0])
    else:
        fields = guided(known)
    if fields.get("w", 1) <= 1:
        fields = {key: value for key, value in fields.items() if key not in ("w", "t_low", "t_high")}
    fields |= {} if name == config.samplers[0] else {"sampler": name}
    pipeline = {"nfe": "num_inference_steps", "steps": "num_inference_steps", "w": "guidance_scale"}
    if "t_grid" in fields:
        fields = {"nfe": len(fields["t_grid"])} | fields
    ours = ", ".join(f"{key}={value!r}" for key, value in fields.items())
    return ours, ", ".join(f"{pipeline.get(key, key)}={value!r}" for key, value in fields.items())


def of_nfe(known: Provenance, sampler: str, nfe: int) -> dict[str, Any]:
    """Fields with which the run sampled from a student at an NFE; the default's where it is not known."""
    grids = {len(grid): tuple(grid) for grid in known.drawn.get("t_grid") or ()}
    length, _ = samplers.length(sampler)
    if length == "t_grid" and nfe in grids:
        return {"t_grid": grids[nfe]}
    shift = known.drawn.get("shift", 0)
    steps = {"steps": samplers.length_for(sampler, nfe)} | ({"shift": shift} if shift and sampler != "edm" else {})
    return steps if length == "steps" else {"nfe": nfe}


def guided(known: Provenance) -> dict[str, Any]:
    """Fields with which the run sampled from a teacher; unguided where it is not known."""
    kept = ("steps", "w", "t_low", "t_high", "shift")
    found = {key: known.drawn[key] for key in kept if key in known.drawn}
    return {key: value for key, value in found.items() if key != "shift" or value} or {"steps": 50}


def _figures(config: Config, known: Provenance) -> str:
    if not known.figures:
        return f"## Figures\n\nThere are none with this export: {known.why}."
    result = known.figures
    rows = [(title, {"samples": known.ends} | result[name]) for name, title in ENDS if name in result]
    for title, scores in rows:
        if title == "held-out":
            heldout = {key: result[f"heldout_{key}"] for key in ("accuracy", "copies") if f"heldout_{key}" in result}
            scores |= heldout | {"samples": None}
    if "teacher" in result:
        title = "this teacher" if config.kind == "teacher" else "its teacher"
        rows.append((title, {"samples": result["teacher"].get("num")} | result["teacher"]))
    for name, scores in result.get("student", {}).items():
        rows.append((f"this student, NFE {name.removeprefix('nfe')}", {"samples": result.get("num")} | scores))
    keys = {key for _, scores in rows for key in scores if not key.endswith("_second")} - {"nfe"}
    columns = [c for c in COLUMNS if c in keys] + sorted(key for key in keys - set(COLUMNS) if key.startswith(MORE))
    columns.append("samples")
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {title} | " + " | ".join(_cell(scores.get(c)) for c in columns) + " |" for title, scores in rows]
    drawn = {name: known.drawn.get(name) for name in DRAWING}
    told = ", ".join(f"{key} {json.dumps(value)}" for key, value in drawn.items() if value is not None)
    more = f" NFE {result['teacher']['nfe']}." if config.kind == "teacher" else ""
    if drawn["rounding"] not in (None, "round"):
        more += " The code above rounds levels to the nearest one instead."
    return "\n".join(
        [
            "## Figures",
            "",
            f"Features `{result.get('features', 'not told')}`; `samples` is each row's number of them. The rows above "
            "the network's own are the ends of the scale: all held-out data, and what knows nothing. `fd` compares "
            "runs that have the same features, reference and number of samples, nothing else.",
            "",
            *lines,
            "",
            f"Drawn with {told}.{more}",
        ]
    )


def _training(config: Config, known: Provenance, exported: Exported) -> str:
    stage = {"student": "distill", "teacher": "teacher"}[config.kind]
    imported = _imported(config)
    settings = {} if imported else config.params.get(stage, {})
    commit = "not known" if known.commit is None else f"`{known.commit}`" + (", with changes" if known.dirty else "")
    stored = "not known" if config.sigma_rel is None else f"{config.sigma_rel:g}"
    facts: dict[str, Any] = {
        "network": f"{config.backbone}, {exported.weights:,} weights, {_plain(config.constants)}",
        "samples": f"{'x'.join(map(str, config.shape))}, codec `{config.codec}`"
        + (" (in `vae/`)" if exported.vae else ""),
        "conditioning": config.conditioning,
        "steps": "not known" if imported and not config.step else config.step,
        "batch": settings.get("batch_size", "not known"),
        "seed": settings.get("seed", "not known"),
        "EMA length sigma_rel": f"{exported.sigma_rel:g} (synthesised)" if exported.sigma_rel is not None else stored,
        "dataset": f"`{known.data['name']}`, fingerprint `{known.data.get('fingerprint')}`"
        if known.data and not imported
        else "not known",
        "commit": commit,
        "sha256 of the checkpoint": f"`{config.sha256}`",
        "made with": _plain(config.versions),
    }
    if config.precond != "none":
        facts["preconditioning"] = f"{config.precond}, {_plain(config.precond_constants)}"
    if config.kind == "student" and settings:
        facts["guidance in the weights"] = _plain({k: settings.get(k) for k in ("w", "t_low", "t_high")})
        facts["mode"] = settings.get("mode", "not known")
    if imported:
        facts["imported from"] = _from(imported)
    if known.imported:
        facts["teacher imported from"] = _from(known.imported)
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(
        [
            "## Training",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            f"All params of the {'import' if imported else 'training'} stand in `network/config.json`, under `params`.",
        ]
    )


def _imported(config: Config) -> dict[str, Any]:
    """The block `imported` of a checkpoint that was not trained here, else empty."""
    block: dict[str, Any] = config.params.get("imported") or {}
    return block if block.get("source") else {}


def _from(imported: Mapping[str, Any]) -> str:
    return f"{Path(imported['source']).name}, {_plain({key: imported.get(key) for key in ('format', 'sha256')})}"


def _limits(config: Config, known: Provenance) -> str:
    lines = [
        "## Intended use and limits",
        "",
        "For research on few-step generation, and as a part of software that knows what the model was trained on. It "
        "draws what resembles its training data, with their gaps and biases, and nothing else"
        + ("; it takes classes, no text." if config.num_classes else "; it takes no conditions."),
        "",
    ]
    if not known.figures:
        lines.append("Nothing is known here of its quality: measure before use.")
    elif "copies" in json.dumps(known.figures):
        lines.append(
            "`copies` is the share of samples that lie nearer to a training picture than nearly all training pictures "
            "lie to each other; compare it with the held-out row. A share of zero does not prove that nothing was "
            "memorised."
        )
    else:
        lines.append("Copies of training data were not looked for.")
    if known.figures.get("stable") is False:
        lines.append("The training was not stable: it ended by the rule for values that are not finite.")
    return "\n".join(lines)


def _plain(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items() if value is not None)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
