"""Where this process runs: device, rank, threads. The only module that knows of accelerators and process groups."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import nn
from torch.utils._pytree import tree_map_only

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # for one rank that works while the others wait (feature network, scores)


def setup(threads: int) -> None:
    """Set the CPU threads of this process and join the process group where torchrun has started several.

    Bit-identical results on one machine need the same number of threads. float32 means float32: TF32, which torch
    allows in convolutions on GPUs, is switched off.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if world_size() > 1 and not torch_dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch_dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of threads outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def teardown() -> None:
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
    if torch_dist.is_initialized():
        torch_dist.barrier()


def mean_(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the ranks."""
    if torch_dist.is_initialized():
        for tensor in tensors:
            torch_dist.all_reduce(tensor)
            tensor.div_(world_size())


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor, in place, by its sum over the ranks."""
    if torch_dist.is_initialized():
        torch_dist.all_reduce(tensor)
    return tensor


def shard(module: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Spread a module's weights over the ranks (FSDP2), gathered block by block when they are used."""
    from torch.distributed.fsdp import fully_shard

    mesh = torch_dist.init_device_mesh(device().type, (world_size(),))
    for part in [*blocks, module]:
        fully_shard(part, mesh=mesh)


def gather_full(tree: Any, *, everywhere: bool = False) -> Any:
    """A copy of nested dicts and lists in which sharded tensors are whole and on the CPU; all ranks must call it.

    Ranks other than 0 get None for a sharded tensor, unless `everywhere`.
    """

    def gather(leaf: Any) -> Any:
        if not is_sharded(leaf):
            return leaf
        full = leaf.full_tensor()
        return full.cpu() if everywhere or is_main() else None

    return tree_map_only(torch.Tensor, gather, tree)


def sharded_like(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor as sharded as `model` is, if they have one shape, else as it is."""
    if not is_sharded(model) or tensor.shape != model.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)  # type: ignore[attr-defined]


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, whose import takes seconds."""
    return hasattr(tensor, "full_tensor")


def peak_memory_mib() -> float:
    """Peak memory of this process: on the accelerator, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def batches(num: int, size: int) -> list[range]:
    """0 .. num - 1 in batches of `size`, the last one smaller: the same ones whatever the number of processes."""
    return [range(first, min(first + size, num)) for first in range(0, num, size)]


def share(num: int) -> range:
    """Which of `num` pieces of work are this rank's: every world_size-th."""
    return range(rank(), num, world_size())


def in_order(items: Iterable[Any], num: int) -> Iterator[Any]:
    """What all ranks made, in order, on rank 0; the other ranks yield nothing. `items` are this rank's (`share`),
    picklable.

    Each rank holds one item at a time: it makes the next when rank 0 has taken the last.
    """
    mine = iter(items)
    for number in range(num):
        owner = number % world_size()
        if owner == rank() == 0:
            yield next(mine)
        elif owner == rank():
            torch_dist.send_object_list([next(mine)], dst=0)
        elif is_main():
            received: list[Any] = [None]
            torch_dist.recv_object_list(received, src=owner)
            yield received[0]


def from_main(make: Callable[[], Any]) -> Any:
    """What `make` returns on rank 0, where alone it is called, on every rank; anything that can be pickled."""
    made = [make() if is_main() else None]
    if torch_dist.is_initialized():
        torch_dist.broadcast_object_list(made, src=0)
    return made[0]
