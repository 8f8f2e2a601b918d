"""Work for several gloo processes, as torchrun starts them; module-level, because spawned processes import it."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from facm.runtime import dist


def run(num: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(*arguments)` in `num` processes that form a group; an error in one fails the test.

    Args:
        num: of processes.
        work: a module-level function.
        arguments: what it is given, picklable.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_enter, (num, port, work, arguments), nprocs=num)


def _enter(rank: int, num: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(Path(__file__).parents[1])
    dist.setup(1)
    work(*arguments)
    dist.teardown()
