"""Where this process runs: device, rank, threads. The only module that knows of accelerators and process groups."""

import os

import torch
import torch.distributed as torch_dist


def setup(threads: int) -> None:
    """Set the CPU threads of this process and join the process group where torchrun has started several.

    Bit-identical results on one machine need the same number of threads.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if world_size() > 1 and not torch_dist.is_initialized():
        torch_dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def teardown() -> None:
    """Leave the process group."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def device() -> torch.device:
    """The accelerator of this rank, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Rank 0 writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def mean_(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the ranks."""
    if torch_dist.is_initialized():
        for tensor in tensors:
            torch_dist.all_reduce(tensor)
            tensor.div_(world_size())


def peak_memory_mib() -> float:
    """Peak memory of this process: on the accelerator, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
