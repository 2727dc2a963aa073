"""Looking at the namespace of a call before anything is done in its name."""

from __future__ import annotations

import os

from calico_cni.errors import InvalidNamespace

_OWN = "/proc/self/ns/net"


def check_container_namespace(descriptor: int | None, path: str) -> int:
    """The descriptor, if it is a namespace and not the one this process lives in. Compares device and inode.

    ``CNI_NETNS_OVERRIDE`` does not change that: a pair with both ends in the host connects nothing.

    :raises InvalidNamespace: otherwise. Source: cni specification 2.2.
    """
    if descriptor is None:
        raise InvalidNamespace("CNI_NETNS", f"{path!r} cannot be opened")
    found, own = os.fstat(descriptor), os.stat(_OWN)  # noqa: PTH116 - what the descriptor above is compared with
    if found.st_dev != own.st_dev:
        raise InvalidNamespace("CNI_NETNS", f"{path!r} is not a network namespace")
    if found.st_ino == own.st_ino:
        raise InvalidNamespace("CNI_NETNS", f"{path!r} is the host's own network namespace, not a container's")
    return descriptor
