"""Results made before they are needed: images are decoded while the batch before them is encoded.

They come in the order of the items, whatever the threads do: nothing here can change a number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int = 2) -> Iterator[Made]:
    """What `make` returns for each item, in order; up to `depth` results are made before they are needed.

    One thread calls `make`; what it raises is raised when its turn comes. `depth` bounds the memory.
    """
    pool = ThreadPoolExecutor(1, "ahead")
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
