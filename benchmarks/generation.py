"""What a picture costs: latency and memory of generation, and their ratios, in one run; see README.md.

python -m benchmarks.generation data/student --teacher data/teacher --batch 64 --json generation.json

Each way draws the same pictures from the same noise, which is checked first. Each round runs every way once, starting
with another one.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import command, meter
from benchmarks.step import environment, pinned
from facm import samplers
from facm.export import folder as exported
from facm.export import onnx
from facm.inference.generator import Generator, balanced_labels
from facm.runtime import dist

WARM_UP = 2
NFES = (1, 2, 4)
LEVELS = 1  # of 255, by which ways that are the same but for rounding may differ
GUIDED = {"steps": 8, "w": 1.25, "t_low": 0.125}  # the teacher of preset digits: Heun, NFE 29


class Wrong(RuntimeError):
    """A way that draws other pictures than it should."""


@dataclass(frozen=True)
class Way:
    """One way to draw a batch.

    Attributes:
        name: such as `facm NFE 1`.
        run: draws the batch and returns pictures uint8 (B, H, W, C), or points (B, D).
        same: name of the way that draws the same pictures; None: it is the first of its kind.
        memory: whether torch's allocator sees what it takes.
    """

    name: str
    run: Callable[[], np.ndarray]
    same: str | None = None
    memory: bool = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    command.run(parse(arguments), measure, table)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=main.__doc__)
    parser.add_argument("student", help="checkpoint folder of a student")
    parser.add_argument("--teacher", help="of its teacher, for comparison")
    parser.add_argument("--vae", help="where the codec's weights are, if not where the checkpoint's config.json says")
    parser.add_argument("--batch", type=int, default=64, help="pictures at once, beside one (default 64)")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each way (default 20)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--no-pipeline", action="store_true", help="leave FACMPipeline out")
    parser.add_argument("--no-onnx", action="store_true", help="leave onnxruntime out")
    parser.add_argument("--json", type=Path, help="file for all figures and raw samples")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is told: where, the gate, seconds and memory by batch and way."""
    device = dist.device()
    result: dict[str, Any] = environment(device) | {"config": {"rounds": options.rounds}, "batches": {}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        student = Generator.load(options.student, vae=options.vae)
        teacher = Generator.load(options.teacher, vae=options.vae) if options.teacher else None
        result["config"] |= {"backbone": student.config.backbone, "shape": list(student.config.shape)}
        result["weights"] = sum(weight.numel() for weight in student.network.parameters())
        parts = built(student, folder, options)
        for batch in dict.fromkeys((1, options.batch)):
            made = ways(student, teacher, parts, batch)
            differences = gate(made)
            for way in made * WARM_UP:
                way.run()
            with pinned(device, options.threads):
                runs = {way.name: way.run for way in made}
                samples = meter.interleaved(runs, options.rounds, device)
            memory = {way.name: meter.peak_mib(way.run, device) for way in made if way.memory}
            result["batches"][str(batch)] = {"gate": differences, "samples": samples, "memory_mib": memory}
    return result


def built(student: Generator, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The student as a pipeline of diffusers and as a session of onnxruntime, where they are wanted."""
    parts: dict[str, Any] = {}
    if not options.no_pipeline:
        from facm.pipeline import FACMPipeline

        exported.write(folder / "export", student.network, student.config, getattr(student.codec, "network", None))
        parts["pipeline"] = FACMPipeline.from_pretrained(folder / "export").to(student.device)
    if not options.no_onnx:
        try:
            onnx.check(student.config)
        except onnx.OnnxError as error:
            raise ValueError(f"{error}; or leave onnxruntime out: --no-onnx") from None
        import onnxruntime

        onnx.write(folder, student)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = options.threads
        parts["onnx"] = onnxruntime.InferenceSession(folder / onnx.FILE, settings, providers=["CPUExecutionProvider"])
    return parts


def ways(student: Generator, teacher: Generator | None, parts: Mapping[str, Any], batch: int) -> list[Way]:
    """Every way to draw a batch, decoded."""
    y = balanced_labels(batch, student.config.num_classes)
    labels, num = (None, batch) if y is None else (y.tolist(), None)
    made = [Way(f"facm NFE {nfe}", partial(drawn, student, student.sampler(nfe=nfe), y, batch)) for nfe in NFES]
    if "pipeline" in parts:
        call = partial(parts["pipeline"], labels, num_images=num, seed=0, output_type="np", return_dict=False)
        for nfe in NFES:
            run = partial(first, partial(call, num_inference_steps=nfe))
            made.append(Way(f"FACMPipeline NFE {nfe}", run, f"facm NFE {nfe}"))
    if "onnx" in parts:
        run = partial(by_onnx, student, parts["onnx"], y, batch)
        made.append(Way("ONNX NFE 1", run, "facm NFE 1", memory=False))
    if teacher is not None:
        rule = teacher.sampler("heun", **(GUIDED if teacher.config.num_classes else {"steps": GUIDED["steps"]}))
        made.append(Way("teacher", partial(drawn, teacher, rule, y, batch)))
    return made


def first(call: Callable[[], Sequence[np.ndarray]]) -> np.ndarray:
    """The pictures of a pipeline's tuple."""
    return call()[0]


def drawn(generator: Generator, rule: Any, y: Tensor | None, batch: int) -> np.ndarray:
    """Pictures number 0 .. batch - 1 of seed 0, without the progress line of `Generator.draw`."""
    noise = samplers.noise(0, range(batch), rule.draws, generator.config.shape)
    return generator.decode(generator.sample(rule, noise, y)[0])


def by_onnx(generator: Generator, session: Any, y: Tensor | None, batch: int) -> np.ndarray:
    """The same at one evaluation by onnxruntime; the codec decodes."""
    noise = samplers.noise(0, range(batch), 1, generator.config.shape)[0].float().numpy()
    latents = onnx.run(session, noise, None if y is None else y.numpy())
    return np.asarray(generator.codec.decode(torch.from_numpy(latents)).cpu())


def gate(made: Sequence[Way]) -> dict[str, float]:
    """Largest difference of each way from the one whose pictures it should draw, in levels (points: in their units).

    Raises:
        Wrong: more than LEVELS.
    """
    images: dict[str, np.ndarray] = {}
    told = {}
    for way in made:
        got = way.run()
        images[way.name] = got if got.dtype == np.uint8 or got.ndim == 2 else np.round(got * 255).astype(np.uint8)
        if way.same is None:
            continue
        told[way.name] = float(np.abs(images[way.name].astype(float) - images[way.same]).max())
        if told[way.name] > (LEVELS if images[way.name].dtype == np.uint8 else 1e-3):
            raise Wrong(f"{way.name} draws other pictures than {way.same}: they differ by {told[way.name]:g}")
    return told


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown, a table for each batch."""
    lines = [f"{result['device']}, torch {result['torch']}, commit {result['git']['commit'][:7]}, {result['config']}"]
    lines += [f"{result['weights']:,} weights, {result['threads']} threads"]
    for batch, measured in result["batches"].items():
        lines += ["", f"Batch {batch}:", "", "| way | ms | min | iqr | pictures/s | / facm NFE 1 | peak MiB |"]
        lines += ["|---" * 7 + "|"]
        rows = {
            name: meter.spread(clocks[clock(clocks, result["threads"])]) for name, clocks in measured["samples"].items()
        }
        one = rows["facm NFE 1"]["median"]
        for name, row in rows.items():
            peak = measured["memory_mib"].get(name)
            times = " | ".join(f"{1e3 * row[key]:.2f}" for key in ("median", "min", "iqr"))
            told = "-" if peak is None else f"{peak:.2f}"
            lines.append(
                f"| {name} | {times} | {int(batch) / row['median']:.0f} | {row['median'] / one:.2f} | {told} |"
            )
    return "\n".join(lines)


def clock(clocks: Mapping[str, Any], threads: int) -> str:
    """Process time of one thread on a CPU, wall time of several, CUDA events on a GPU."""
    return "gpu" if "gpu" in clocks else "cpu" if threads == 1 else "wall"


if __name__ == "__main__":
    main()
