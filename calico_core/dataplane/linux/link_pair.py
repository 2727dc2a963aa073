"""The pair between the host and a container: how it is made and known again."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.link_messages import PAIR_KINDS, add_netkit, add_veth, get_link
from calico_core.dataplane.linux.prefix import network_of
from calico_core.dataplane.linux.rtnetlink import link_of
from calico_core.errors import InterfaceTaken
from calico_core.model.addresses import local_mac, mac_from_bytes
from calico_core.model.workloads import WiredInterface

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import EUI

    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.dataplane.linux.netlink import Request
    from calico_core.dataplane.linux.prefix import Prefix
    from calico_core.dataplane.linux.rtnetlink import RouteSocket
    from calico_core.model.workloads import Device, WiringRequest

HOST_MAC = b"\xee" * 6


def pair_of(request: WiringRequest, device: Device) -> tuple[Request, bytes]:
    """The request that makes it, and the container's MAC address."""
    mac = packed(request.mac or local_mac(os.urandom(6)))
    add = add_netkit if device == "netkit" else add_veth
    create = add(
        request.interface,
        request.container_interface,
        mac=HOST_MAC,
        peer_mac=mac,
        peer_namespace_fd=request.namespace_fd,
        mtu_bytes=request.mtu_bytes or 0,
        queues=request.queues if request.queues > 1 else 0,
    )
    return create, mac


def create_link(host: RouteSocket, create: Request, name: str) -> Link | None:
    """Make the pair and read its host end back, in one message; None when a name is taken."""
    made, looked_up = host.attempt([create, get_link(name)])
    if made.error is not None:
        if made.error.errno == errno.EEXIST:
            return None
        raise made.error
    if looked_up.error is not None:
        raise looked_up.error
    return link_of(looked_up)


def is_host_end(link: Link) -> bool:
    """Whether it is as we make them, whatever it is called."""
    return link.kind in PAIR_KINDS and link.mac == HOST_MAC


def are_peers(host: RouteSocket, link: Link, inner: Link, namespace_fd: int) -> bool:
    """Each names the other's index, and the host's end names the container's namespace."""
    if link.kind not in PAIR_KINDS or (link.peer_index, inner.peer_index) != (inner.index, link.index):
        return False
    return link.peer_namespace_id is not None and link.peer_namespace_id == host.namespace_id(namespace_fd)


def refuse_foreign(link: Link, where: str) -> None:
    if link.kind not in PAIR_KINDS:
        raise InterfaceTaken(link.name, where, f"a {link.kind or 'physical'} interface")


def wired_interface(
    link: Link, peer_mac: bytes, *, is_new: bool = True, missing_routes: Iterable[Prefix] = ()
) -> WiredInterface:
    return WiredInterface(
        interface=link.name,
        host_mac=mac_from_bytes(link.mac),
        mac=mac_from_bytes(peer_mac),
        mtu_bytes=link.mtu_bytes,
        is_new=is_new,
        missing_routes=tuple(map(network_of, missing_routes)),
    )


def packed(mac: EUI | None) -> bytes:
    return mac.packed if mac is not None else b""
