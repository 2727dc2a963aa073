"""Network namespaces of a benchmark's own, gone when it ends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from calico_core.dataplane.linux import netns

_numbers = itertools.count()


@contextmanager
def named(names: Iterable[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            netns.create_namespace(name)
            stack.callback(netns.delete_namespace, name)
        yield


@contextmanager
def a_namespace() -> Iterator[tuple[str, int]]:
    """Its name, and a descriptor of it."""
    name = f"bench-{os.getpid()}-{next(_numbers)}"
    with named([name]):
        descriptor = netns.open_namespace(str(netns.NAMED / name))
        try:
            yield name, descriptor
        finally:
            os.close(descriptor)
