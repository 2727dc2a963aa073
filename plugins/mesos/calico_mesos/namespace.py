"""The network namespace of a process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from calico_mesos.errors import Refused

_OWN = "/proc/self/ns/net"


def namespace_path(pid: int) -> str:
    return f"/proc/{pid}/ns/net"


@contextlib.contextmanager
def namespace_of(pid: int) -> Iterator[int]:
    """A descriptor, closed at the end. Refuses a process that is gone, and one that lives in this process' own
    namespace: that is the host's."""
    try:
        descriptor = os.open(namespace_path(pid), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"Process {pid} has no network namespace: {error.strerror}.") from error
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat(_OWN)):  # noqa: PTH116 - a descriptor on the other side
            raise Refused(f"Process {pid} is in the host's own network namespace, not in a container's.")
        yield descriptor
    finally:
        os.close(descriptor)
