"""Work that runs ahead of whoever takes its results: pictures are decoded while the batch before them is encoded.

Results come in the order of the items, whatever the threads do: nothing here can change a number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int = 2) -> Iterator[Made]:
    """What `make` returns for each item, in order; up to `depth` results are made before they are asked for.

    Args:
        make: called in one thread of its own, with one item after the other.
        items: any number.
        depth: results that wait at most, beside the one in use; bounds the memory.

    Raises:
        Exception: what `make` raises, when its turn comes.
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
