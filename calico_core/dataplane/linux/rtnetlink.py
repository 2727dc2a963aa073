"""The route socket: links, addresses, routes and neighbours of one network namespace.

Changes are made by sending requests (``link_messages``, ``address_messages``, ``route_messages``) with ``execute``,
several in one message where they belong together; this class adds the questions.
"""

from __future__ import annotations

import errno
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.address_messages import (
    InterfaceAddress,
    Neighbour,
    dump_addresses,
    dump_neighbours,
    dump_proxies,
    parse_address,
    parse_neighbour,
)
from calico_core.dataplane.linux.link_messages import (
    RTM_NEWLINK,
    RTM_NEWNSID,
    Link,
    dump_links,
    get_link,
    get_namespace_id,
    parse_link,
    parse_namespace_id,
)
from calico_core.dataplane.linux.netlink import DEFAULT_TIMEOUT_S, NETLINK_ROUTE, NetlinkSocket
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6
from calico_core.dataplane.linux.route_messages import RT_TABLE_MAIN, Route, dump_routes, parse_route
from calico_core.errors import KernelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from calico_core.dataplane.linux.netlink import Outcome

_IDLE_SOCKETS = 8


class RouteSocket(NetlinkSocket):
    """A NETLINK_ROUTE socket of a namespace, kept open; one thread at a time uses it."""

    def __init__(self, namespace_fd: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(NETLINK_ROUTE, namespace_fd, timeout_s)

    def find_link(self, name: str = "", index: int = 0) -> Link | None:
        """The link, or None when there is none of that name (or index)."""
        (outcome,) = self.attempt([get_link(name, index)])
        if outcome.error is None:
            return link_of(outcome)
        if outcome.error.errno == errno.ENODEV:
            return None
        raise outcome.error

    def find_links(self, names: Sequence[str]) -> dict[str, Link]:
        """Those of these names that are there, asked for in one message."""
        found: dict[str, Link] = {}
        for name, outcome in zip(names, self.attempt([get_link(name) for name in names]), strict=True):
            if outcome.error is None:
                found[name] = link_of(outcome)
            elif outcome.error.errno != errno.ENODEV:
                raise outcome.error
        return found

    def links(self) -> list[Link]:
        return [parse_link(body) for body in self.dump(dump_links())]

    def namespace_id(self, namespace_fd: int) -> int | None:
        """The id by which links here name a peer in that namespace; None when it has none yet."""
        (outcome,) = self.execute(get_namespace_id(namespace_fd))
        for kind, body in outcome.replies:
            if kind == RTM_NEWNSID:
                return parse_namespace_id(body)
        return None

    def addresses(self, index: int = 0, family: int = 0) -> list[InterfaceAddress]:
        """Of one interface, or all; of one family, or both."""
        found = map(parse_address, self.dump(dump_addresses(index, family)))
        return [entry for entry in found if index in (0, entry.index)]

    def routes(self, family: int = 0, *, table: int = RT_TABLE_MAIN, protocol: int = 0, index: int = 0) -> list[Route]:
        """Routes of a table; family, protocol, index 0 take all. A family the kernel lacks has none."""
        found: list[Route] = []
        for each in (family,) if family else (AF_INET, AF_INET6):
            for body in self._dump_family(each, table, protocol, index):
                route = parse_route(body)
                if (
                    route is not None
                    and route.destination.family == each
                    and route.table == table
                    and protocol in (0, route.protocol)
                    and index in (0, route.index)
                ):
                    found.append(route)
        return found

    def neighbours(self) -> list[Neighbour]:
        """All but proxy entries."""
        return [parse_neighbour(body) for body in self.dump(dump_neighbours())]

    def proxies(self, family: int) -> list[Neighbour]:
        """The addresses of others that the host answers for."""
        return [parse_neighbour(body) for body in self.dump(dump_proxies(family))]

    def _dump_family(self, family: int, table: int, protocol: int, index: int) -> list[bytes]:
        try:
            return self.dump(dump_routes(family, table=table, protocol=protocol, index=index))
        except KernelRefused as error:
            # ENOENT: the table does not exist; EOPNOTSUPP: no such family; ENODEV: the device went
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENODEV):
                return []
            raise


def link_of(outcome: Outcome) -> Link:
    """The link an answered look-up carries."""
    for kind, body in outcome.replies:
        if kind == RTM_NEWLINK:
            return parse_link(body)
    raise KernelRefused("look up link", errno.EPROTO, "the kernel acknowledged without an answer")


class RouteSockets:
    """Route sockets of one namespace for callers in many threads: each borrows one, none waits for another."""

    def __init__(self, namespace_fd: int | None = None) -> None:
        self.namespace_fd = namespace_fd
        self._lock = threading.Lock()
        self._idle: list[RouteSocket] = []

    @contextmanager
    def borrow(self) -> Iterator[RouteSocket]:
        borrowed = self.take()
        try:
            yield borrowed
        finally:
            self.give_back(borrowed)

    def take(self) -> RouteSocket:
        """One that the caller gives back, or closes when answers may still come to it."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        return idle or RouteSocket(self.namespace_fd)

    def give_back(self, taken: RouteSocket) -> None:
        with self._lock:
            keep = len(self._idle) < _IDLE_SOCKETS
            if keep:
                self._idle.append(taken)
        if not keep:
            taken.close()

    def close(self) -> None:
        """Close the idle ones; borrowed sockets still come back and stay."""
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()
