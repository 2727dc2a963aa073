"""Two fresh network namespaces a test: a host and a container. The machine's own is never touched."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.rtnetlink import RouteSocket

_numbers = itertools.count()


class Namespace:
    """A namespace with a name, a descriptor and a route socket in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = str(netns.create_namespace(name))
        self.fd = netns.open_namespace(self.path)
        self.route_socket = RouteSocket(self.fd)

    def close(self) -> None:
        self.route_socket.close()
        os.close(self.fd)
        netns.delete_namespace(self.name)


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    with contextlib.ExitStack() as stack:

        def make() -> Namespace:
            made = Namespace(f"dpl-{os.getpid()}-{next(_numbers)}")
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def host(make_namespace: Callable[[], Namespace]) -> Namespace:
    return make_namespace()


@pytest.fixture
def container(make_namespace: Callable[[], Namespace]) -> Namespace:
    return make_namespace()
