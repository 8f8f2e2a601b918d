"""What a step costs: FLOPs, time and memory of a function without arguments."""

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Run = Callable[[], Any]


def flops(run: Run) -> dict[str, int]:
    """FLOPs of a run by operation (`bmm` is attention), with attention written out; eager code only."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


def attention_share(counts: Mapping[str, int]) -> float:
    """The share a of a network's FLOPs that are products of activations."""
    return sum(count for operation, count in counts.items() if operation.endswith("bmm")) / sum(counts.values())


def seconds(run: Run, device: torch.device) -> dict[str, float]:
    """Seconds of one run by clock: `wall`, and `cpu` (process time) or `gpu` (CUDA events)."""
    if device.type == "cpu":
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall = time.perf_counter()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return {"gpu": start.elapsed_time(end) / 1e3, "wall": time.perf_counter() - wall}


Samples = dict[str, dict[str, list[float]]]
"""Seconds by name and clock, one per round."""


def interleaved(runs: Mapping[str, Run], rounds: int, device: torch.device) -> Samples:
    """Time every run once per round; each round starts with another one."""
    names, samples = list(runs), {name: defaultdict[str, list[float]](list) for name in runs}
    for start in range(rounds):
        for i in range(len(names)):
            name = names[(start + i) % len(names)]
            for clock, value in seconds(runs[name], device).items():
                samples[name][clock].append(value)
    return {name: dict(clocks) for name, clocks in samples.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, min and interquartile range."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median, "min": min(values), "iqr": high - low}


def peak_mib(run: Run, device: torch.device) -> float:
    """The most memory in use during a run, above what was in use before it."""
    gc.collect()
    if device.type == "cpu":
        return _peak_of_trace(run) / 2**20
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    entry = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - entry) / 2**20


def _peak_of_trace(run: Run) -> int:
    """Bytes: highest running sum of what torch's CPU allocator gave and took back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = trace.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak
