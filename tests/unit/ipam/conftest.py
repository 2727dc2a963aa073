"""What the tests of the allocator share: a store whose laws are checked at the end, a clock, costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.ipam.allocator import BlockIpam
from tests.doubles.ipam_store import check_laws


class Clock:
    """In nanoseconds, as allocators ask for it; it stands still until moved."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def store() -> Iterator[MemoryDatastore]:
    store = MemoryDatastore()
    yield store
    check_laws(store)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ipam_of(store: MemoryDatastore, clock: Clock) -> Callable[[str], BlockIpam]:
    """A process of a host that has just started."""
    return lambda host: BlockIpam(TypedRecords(store), host, clock_ns=clock)
