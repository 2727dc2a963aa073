"""Looking at the namespace of a call before anything is done in its name."""

from __future__ import annotations

import os

from calico_cni.environment import Invocation
from calico_cni.errors import InvalidNamespace

_OWN = "/proc/self/ns/net"


def check_container_namespace(descriptor: int | None, invocation: Invocation) -> int:
    """The descriptor, if it is a namespace and not the one this process lives in. Compares device and inode.

    ``CNI_NETNS_OVERRIDE`` does not change that: the workload's default route, address and sysctls would be the host's.

    :raises InvalidNamespace: otherwise. Source: cni specification 2.2.
    """
    path = invocation.namespace
    if descriptor is None:
        raise InvalidNamespace("CNI_NETNS", f"{path!r} cannot be opened")
    found, own = os.fstat(descriptor), os.stat(_OWN)  # noqa: PTH116 - what the descriptor above is compared with
    if found.st_dev != own.st_dev:
        raise InvalidNamespace("CNI_NETNS", f"{path!r} is not a network namespace")
    if found.st_ino == own.st_ino and invocation.overrides_namespace:
        why = "both ends of the pair would be the host's, and the container's default route its own"
        raise InvalidNamespace(
            "CNI_NETNS_OVERRIDE", f"cannot be honoured for {path!r}, the host's own namespace: {why}"
        )
    if found.st_ino == own.st_ino:
        raise InvalidNamespace("CNI_NETNS", f"{path!r} is the host's own network namespace, not a container's")
    return descriptor
