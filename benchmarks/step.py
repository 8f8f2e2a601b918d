"""Benchmark of one FACM training step: is it right, how many FLOPs, how long, how much memory; see README.md.

python -m benchmarks.step --preset A --compile --mem --json step.json
"""

import argparse
import dataclasses
import functools
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import meter
from benchmarks.variants import COMPILED, NAMES, SIZES, Size, Variant, Workload, gradient
from facm.runtime import dist, files
from facm.runtime.log import say

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}  # of loss and gradient, relative, against float32
GATED = 4  # samples of the gate at most: its float32 reference needs gigabytes for each of the XL network's
WARM_UP = 2  # runs after the first
FLOOR = 9  # F: guided teacher 2, FM and CM 2, backward 4, tangent 1; its attention adds a
PEAK_TFLOPS = {"H200": (989, 67), "H100": (989, 67), "A100": (312, 19.5)}  # dense bfloat16, float32 without TF32
COLUMNS = ("median", "min", "iqr", "over_fm", "speedup", "images_per_s", "mfu", "hfu")


class Target(NamedTuple):
    """A ratio of two variants' figures and the bound that it should keep."""

    figure: str  # time | memory
    top: str
    bottom: str
    sign: str  # <= | >=
    bound: float

    def met(self, ratio: float) -> bool:
        """Whether a measured ratio keeps the bound."""
        return ratio <= self.bound if self.sign == "<=" else ratio >= self.bound


TARGETS = (
    Target("time", "joint", "fm", "<=", 3.3),
    Target("time", "joint" + COMPILED, "fm" + COMPILED, "<=", 3.2),
    Target("time", "reference", "joint", ">=", 1.12),
    Target("time", "reference" + COMPILED, "joint" + COMPILED, ">=", 1.2),
    Target("memory", "joint", "reference", "<=", 0.50),
    Target("memory", "joint" + COMPILED, "reference" + COMPILED, "<=", 0.36),
    Target("memory", "checkpointed", "reference", "<=", 0.16),
)
"""For preset A on one CPU core; elsewhere they are told for comparison."""


class Wrong(RuntimeError):
    """A variant's loss or gradient is not the reference's."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    options = parse(arguments)
    if options.json:
        try:
            files.refuse_no_target(options.json, "--json")
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
    with ExitStack() as stack:
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
            stack.callback(os.environ.pop, "TORCHINDUCTOR_CACHE_DIR")
        if options.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if options.device == "cuda" and dist.device().type != "cuda":
            raise SystemExit("--device cuda: torch sees no GPU here")
        dist.setup(options.threads)
        result = measure(options)
    say(table(result))
    if options.json:
        files.save_json(options.json, result)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=main.__doc__)
    parser.add_argument("--preset", choices=SIZES, default="A", help="network and batch (default A)")
    parser.add_argument("--batch", type=int, help="samples, instead of the preset's")
    parser.add_argument("--tokens", type=int, help="tokens per sample, a square, instead of the preset's")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32", help="bfloat16: autocast")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--compile", action="store_true", help="measure each variant compiled as well")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs of each variant (default 10)")
    parser.add_argument("--mem", action="store_true", help="measure peak memory too")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for MFU; known for " + ", ".join(PEAK_TFLOPS))
    parser.add_argument("--json", type=Path, help="file for all figures and raw samples")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that is told: gate, FLOPs, times, memory, in this order."""
    given = {name: getattr(options, name) for name in ("batch", "tokens") if getattr(options, name)}
    size = dataclasses.replace(SIZES[options.preset], **given)
    device = dist.device()
    load = Workload.create(size, device, options.dtype)
    names = [*options.variants, *(name + COMPILED for name in options.variants if options.compile)]
    variants: dict[str, Variant] = {}
    result = environment(device) | {
        "config": {"preset": options.preset, "dtype": options.dtype, "rounds": options.rounds, **vars(size)},
        "gate": gated(load, names, variants),
        "flops": count(load, names),
    }
    variants |= {name: load.variant(name) for name in names if name not in variants}
    for variant in list(variants.values()) * WARM_UP:
        variant.run()
    with pinned(device, options.threads):
        result["samples"] = meter.interleaved({n: v.run for n, v in variants.items()}, options.rounds, device)
    if options.mem:
        result["memory_mib"] = memory(variants, device)
    peak = options.peak_tflops or known_peak(device, options.dtype)
    result["figures"] = figures(result, size, peak)
    result["targets"] = [judged for target in TARGETS if (judged := judge(target, result)) is not None]
    return result


def gated(load: Workload, names: Sequence[str], built: dict[str, Variant]) -> dict[str, dict[str, float]]:
    """The gate's figures, of at most GATED samples; variants that are built for the whole batch are kept in `built`."""
    size = load.size
    if size.batch <= GATED:
        built |= {name: load.variant(name) for name in names}
        return gate(load, {name: functools.partial(built.__getitem__, name) for name in names})
    few = Workload.create(dataclasses.replace(size, batch=GATED), load.device, load.precision)
    return gate(few, {name: functools.partial(few.variant, name) for name in names})


def gate(load: Workload, builders: Mapping[str, Callable[[], Variant]]) -> dict[str, dict[str, float]]:
    """Compare the first run of each variant with the eager float32 reference, `fm` with its own eager float32 form.

    Returns:
        By variant: relative errors `loss` and `gradient`, and `first_s`, which includes compilation.

    Raises:
        Wrong: an error above the tolerance.
    """
    exact, truths, told = dataclasses.replace(load, precision="float32"), {}, {}
    for name, build in builders.items():
        base = "fm" if name.startswith("fm") else "reference"
        if base not in truths:
            truths[base] = truth(exact.variant(base))
        (means, right), variant = truths[base], build()
        start = time.perf_counter()
        got = variant.run()
        error = max(abs(float(got[term] / mean) - 1) for term, mean in means.items())
        first_s = time.perf_counter() - start
        distance = float((gradient(variant.network) - right).norm() / right.norm())
        told[name] = {"loss": error, "gradient": distance, "first_s": first_s}
        say(f"{name}: loss {error:.1e}, gradient {distance:.1e} off, first run {first_s:.1f} s")
        if not max(error, distance) <= TOLERANCES[load.precision]:
            raise Wrong(f"{name}: loss {error:.1e}, gradient {distance:.1e} off, allowed {TOLERANCES[load.precision]}")
        variant.network.zero_grad()
    return told


def truth(variant: Variant) -> tuple[Mapping[str, Tensor], Tensor]:
    """Loss and gradient of a variant, of which nothing else is kept."""
    return variant.run(), gradient(variant.network)


def count(load: Workload, names: Sequence[str]) -> dict[str, Any]:
    """FLOPs of the eager form of each variant in F, F itself in FLOP, a, and the floor 9 + a."""
    counts = meter.flops(load.forward)
    F, a = sum(counts.values()), meter.attention_share(counts)
    bases = dict.fromkeys(name.removesuffix(COMPILED) for name in names)
    steps = {base: sum(meter.flops(load.variant(base).run).values()) / F for base in bases}
    return {"F": F, "a": a, "floor": FLOOR + a, "steps": steps}


def memory(variants: Mapping[str, Variant], device: torch.device) -> dict[str, float]:
    """Peak above entry in MiB, gradients included, activations of no other variant alive."""
    peaks = {}
    for variant in variants.values():
        variant.network.zero_grad()
    for name, variant in variants.items():
        peaks[name] = meter.peak_mib(variant.run, device)
        variant.network.zero_grad()
    return peaks


def figures(result: Mapping[str, Any], size: Size, peak_tflops: float | None) -> dict[str, dict[str, float]]:
    """What a variant's times mean, by variant.

    Returns:
        `median`, `min`, `iqr` of seconds (GPU: by events; CPU: process time, or wall time of several threads),
        `over_fm` t / t_fm and `speedup` t_reference / t, eager against eager and compiled against compiled,
        `images_per_s`, and where the peak is known `mfu` = 9 F / (t peak), 3 F for `fm`, and `hfu`, the same with the
        counted FLOPs.
    """
    told = {}
    for name, clocks in result["samples"].items():
        clock = "gpu" if "gpu" in clocks else "cpu" if result["threads"] == 1 else "wall"
        told[name] = meter.spread(clocks[clock])
    for name, row in told.items():
        base, t = name.removesuffix(COMPILED), row["median"]
        suffix = name.removeprefix(base)
        for key, other in (("over_fm", "fm"), ("speedup", "reference")):
            if other + suffix in told:
                ratio = t / told[other + suffix]["median"]
                row[key] = ratio if key == "over_fm" else 1 / ratio
        row["images_per_s"] = size.batch / t
        if peak_tflops:
            F_over_peak = result["flops"]["F"] / (t * peak_tflops * 1e12)
            row["mfu"] = (3 if base == "fm" else FLOOR) * F_over_peak
            row["hfu"] = result["flops"]["steps"][base] * F_over_peak
    return told


def judge(target: Target, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """A target with its measured ratio; None where a variant or the memory was not measured."""
    values = result.get("memory_mib", {})
    if target.figure == "time":
        values = {name: row["median"] for name, row in result["figures"].items()}
    if target.top not in values or target.bottom not in values:
        return None
    ratio = values[target.top] / values[target.bottom]
    return target._asdict() | {"ratio": ratio, "met": target.met(ratio)}


def table(result: Mapping[str, Any]) -> str:
    """The figures and the targets as Markdown."""
    columns = [key for key in COLUMNS if any(key in row for row in result["figures"].values())]
    peaks = result.get("memory_mib", {})
    lines = [f"{result['device']}, torch {result['torch']}, commit {result['git']['commit'][:7]}, {result['config']}"]
    lines += [f"F = {result['flops']['F'] / 1e9:.4g} GFLOP, floor {result['flops']['floor']:.3f} F", ""]
    lines += ["| variant | " + " | ".join([*columns, "FLOPs / F", "peak MiB", "first run s"]) + " |"]
    lines += ["|---" * (len(columns) + 4) + "|"]
    for name, row in result["figures"].items():
        cells = [f"{row[key]:.3f}" if key in row else "-" for key in columns]
        cells += [f"{result['flops']['steps'][name.removesuffix(COMPILED)]:.3f}"]
        cells += [f"{peaks[name]:.0f}" if name in peaks else "-", f"{result['gate'][name]['first_s']:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| ratio | measured | target | |", "|---|---|---|---|"]
    for t in result["targets"]:
        verdict = "met" if t["met"] else "not met"
        lines.append(
            f"| {t['figure']}: {t['top']} / {t['bottom']} | {t['ratio']:.3f} | {t['sign']} {t['bound']} | {verdict} |"
        )
    return "\n".join(lines)


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what it was measured."""
    root = Path(__file__).parents[1]
    commit, changes = (
        subprocess.run(["git", *command], cwd=root, capture_output=True, text=True).stdout.strip()
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "facm", "benchmarks"])
    )
    return {
        "git": {"commit": commit, "dirty": bool(changes)},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def known_peak(device: torch.device, dtype: str) -> float | None:
    """Peak TFLOP/s of the device, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[dtype == "float32"] for part, peaks in PEAK_TFLOPS.items() if part in name), None)


@contextmanager
def pinned(device: torch.device, threads: int) -> Iterator[None]:
    """Stay on the last `threads` of the allowed CPUs; not before, because compilation uses them all."""
    if device.type != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


if __name__ == "__main__":
    main()
