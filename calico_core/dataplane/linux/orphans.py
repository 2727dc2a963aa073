"""Pairs of ours that lead to nobody: the container's end lies in a namespace in which no process runs.

A container that is not yet started is such a one too, so who deletes these must know that nothing is recorded of them.
They are named by index: a name may be given to a new pair meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.link_messages import delete_group, set_link
from calico_core.dataplane.linux.link_pair import is_host_end
from calico_core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.dataplane.linux.rtnetlink import RouteSocket

#: Links on their way out: ``cali`` in ASCII, a group number nobody else has a reason to use.
DOOMED_GROUP = 0x63616C69
_INIT = "1"  # in no container of ours, and not everywhere to be looked at

log = get_logger(__name__)


def find_orphans(
    host: RouteSocket, interface_prefixes: tuple[str, ...], *, processes: str = "/proc"
) -> tuple[Link, ...]:
    """Host ends with a prefix of ours and our MAC whose other end is in a namespace without a process; none where we
    may not see what namespace a process is in."""
    ours = [
        link
        for link in host.links()
        if is_host_end(link) and link.name.startswith(interface_prefixes) and link.peer_namespace_id is not None
    ]
    if not ours:
        return ()
    try:
        alive = {host.namespace_id(descriptor) for descriptor in _namespaces_of(processes)}
    except OSError as error:
        log.warning("orphans.unknown", reason=str(error))
        return ()
    return tuple(link for link in ours if link.peer_namespace_id not in alive)


def delete_orphans(host: RouteSocket, indexes: Collection[int]) -> None:
    """Marked as one group and deleted in one request: the kernel lets each request wait until its last reader (RCU)
    has let go, however many links it names. Those already gone are success. Raises ``KernelRefused``."""
    marked = host.attempt([set_link(index=index, group=DOOMED_GROUP) for index in sorted(indexes)])
    deleted = host.attempt([delete_group(DOOMED_GROUP)]) if any(each.error is None for each in marked) else []
    for outcome in (*marked, *deleted):
        if outcome.error is not None and outcome.error.errno != errno.ENODEV:
            raise outcome.error


def _namespaces_of(processes: str) -> Iterator[int]:
    """A descriptor of each network namespace in which a process runs, open until the next one is asked for."""
    seen: set[tuple[int, int]] = set()
    for name in os.listdir(processes):  # noqa: PTH208 - names only
        if not name.isdigit() or name == _INIT:
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            path = f"{processes}/{name}/ns/net"
            found = os.stat(path)  # noqa: PTH116 - of the thing linked to
            if (found.st_dev, found.st_ino) in seen:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                seen.add((found.st_dev, found.st_ino))
                yield descriptor
            finally:
                os.close(descriptor)
