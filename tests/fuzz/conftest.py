"""A folder in memory where there is one, and an end to what a process may allocate."""

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HEADROOM = 3 * 2**30  # bytes beyond what the process has: who believes a declared length of more fails
MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, of the computer's memory where there is such a file system."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="facm-fuzz-") as made:
        yield Path(made)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A limit to the address space, so that a huge allocation fails in place of filling the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
