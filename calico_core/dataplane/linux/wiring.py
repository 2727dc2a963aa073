"""A workload's interface: a pair of links, its addresses, routes and sysctls on both sides.

The container sees addresses of full length and one next hop, which is the host end of the pair: it answers ARP for
everything (proxy ARP) and needs no address of its own. The host has a route to each address. This is the hot path of
an attach: about twenty system calls, no process, no import. Source: cni specification 5.2 and 7.5.

::

    host namespace                                container namespace
    caliXXXX  ee:ee:ee:ee:ee:ee  ◀──── veth ────▶ eth0  10.0.0.1/32      (or netkit, where asked for and there)
      10.0.0.1 dev caliXXXX scope link              169.254.1.1 dev eth0 scope link
                                                    default via 169.254.1.1
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from calico_core.dataplane.linux import container_end, netns, sysctl, workload_sysctls
from calico_core.dataplane.linux.address_messages import SCOPE_LINK, add_address
from calico_core.dataplane.linux.container_end import GATEWAY_V6, WantedAddresses
from calico_core.dataplane.linux.host_routes import raise_and_route
from calico_core.dataplane.linux.link_messages import add_veth, get_link, set_link
from calico_core.dataplane.linux.link_pair import (
    HOST_MAC,
    are_peers,
    create_link,
    packed,
    pair_of,
    refuse_foreign,
    wired_interface,
)
from calico_core.dataplane.linux.orphans import delete_orphans, find_orphans
from calico_core.dataplane.linux.prefix import network_of, prefix_of
from calico_core.dataplane.linux.reaper import LinkReaper
from calico_core.dataplane.linux.route_messages import PROTOCOL, delete_route, workload_route
from calico_core.dataplane.linux.rtnetlink import RouteSocket, RouteSockets, link_of
from calico_core.errors import CalicoError, InterfaceTaken, InvalidRequest, KernelRefused
from calico_core.interfaces.dataplane import WorkloadWiring
from calico_core.log import get_logger
from calico_core.model.addresses import local_mac, mac_from_bytes
from calico_core.model.workloads import PairRequest, WiredInterface, WiringRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from netaddr import IPNetwork

    from calico_core.dataplane.linux.link_messages import Link
    from calico_core.dataplane.linux.prefix import Prefix
    from calico_core.dataplane.linux.sysctl import Setting

    SettingsCallback = Callable[[str, int, tuple[Setting, ...]], None]

log = get_logger(__name__)


class VethWiring(WorkloadWiring):
    """Wires the workloads of one host. Any thread; calls do not wait for each other.

    ``namespace_fd`` None: the process's own namespace is the host's. ``pins_gateway`` gives the container a permanent
    neighbour entry for its next hop: no ARP before the first packet, and no need for a default route on the host,
    without which proxy ARP is silent. ``opens_loopback``: workloads are led to the host's loopback.
    ``on_settings`` hears which sysctls a host end was given, with its name and index.
    """

    def __init__(
        self,
        namespace_fd: int | None = None,
        *,
        interface_prefixes: tuple[str, ...] = ("cali",),
        pins_gateway: bool = True,
        opens_loopback: bool = False,
        on_settings: SettingsCallback | None = None,
    ) -> None:
        self._namespace_fd = namespace_fd
        self._on_settings = on_settings
        self._sockets = RouteSockets(namespace_fd)
        self._reaper = LinkReaper(self._sockets)
        self._interface_prefixes = interface_prefixes
        self._pins_gateway = pins_gateway
        self._opens_loopback = opens_loopback
        self._has_netkit = True  # until the kernel says otherwise

    def close(self) -> None:
        """Free the sockets kept open, when the kernel is done with what was deleted."""
        self._reaper.close()
        self._sockets.close()

    def attach(self, request: WiringRequest) -> WiredInterface:
        wanted = WantedAddresses(request.addresses)
        _refuse_missing_ipv6(wanted)
        self._refuse_host_namespace(request)
        settings = workload_sysctls.container_namespace(
            has_v4=bool(wanted.v4), has_v6=bool(wanted.v6), is_forwarding=request.allow_ip_forwarding
        )
        container, before = netns.run_in(request.namespace_fd, lambda: container_end.open_container(settings))
        with container, self._sockets.borrow() as host, contextlib.ExitStack() as undo:
            if before:
                undo.callback(_restore, request.namespace_fd, before)
            wired = self._attach(host, container, request, wanted, undo)
            undo.pop_all()
            return wired

    def detach(self, interface: str) -> None:
        with self._sockets.borrow() as host:
            link = host.find_link(interface)
        if link is None:
            return
        refuse_foreign(link, "the host")
        self._reaper.delete(interface)

    def check(self, request: WiringRequest) -> tuple[str, ...]:
        wanted = WantedAddresses(request.addresses)
        with RouteSocket(request.namespace_fd) as container, self._sockets.borrow() as host:
            link = host.find_link(request.interface)
            if link is None:
                return (f"host interface {request.interface} is missing",)
            inner = container.find_link(request.container_interface)
            if inner is None:
                return (f"container interface {request.container_interface} is missing",)
            if not are_peers(host, link, inner, request.namespace_fd):
                return (f"{request.interface} and {request.container_interface} are not one pair",)
            # that to the next hop belongs to the interface with the default route, and may have gone with it: routes
            # that stand do not need it
            is_first = request.is_default_route or any(not each.prefixlen for each in request.routes)
            found = self._differences(host, container, request, wanted, link, inner, needs_next_hop=is_first)
            return tuple(found)

    def host_end(self, namespace_fd: int, container_interface: str) -> str | None:
        with RouteSocket(namespace_fd) as container, self._sockets.borrow() as host:
            inner = container.find_link(container_interface)
            link = host.find_link(index=inner.peer_index) if inner is not None and inner.peer_index else None
            if inner is None or link is None or not are_peers(host, link, inner, namespace_fd):
                return None
            return link.name

    def make_pair(self, request: PairRequest) -> WiredInterface:
        wanted = WantedAddresses(request.addresses)
        _refuse_missing_ipv6(wanted)
        mac = packed(request.mac or local_mac(os.urandom(6)))
        create = add_veth(
            request.interface,
            request.peer,
            mac=HOST_MAC,
            peer_mac=mac,
            mtu_bytes=request.mtu_bytes or 0,
        )
        with self._sockets.borrow() as host, contextlib.ExitStack() as undo:
            link = create_link(host, create, request.interface)
            if link is None:
                for name in (request.interface, request.peer):
                    self._delete_leftover(host.find_link(name))
                link = create_link(host, create, request.interface)
            if link is None:
                raise InterfaceTaken(request.interface, "the host")
            undo.callback(self._undo_link, request.interface)
            host.execute(set_link(request.peer, is_up=True))
            self._raise_host_end(host, link, wanted)
            undo.pop_all()
        return wired_interface(link, mac)

    def orphans(self) -> Mapping[str, int]:
        with self._sockets.borrow() as host:
            return {link.name: link.index for link in find_orphans(host, self._interface_prefixes)}

    def remove_orphans(self, indexes: Collection[int]) -> None:
        with self._sockets.borrow() as host:
            delete_orphans(host, indexes)

    def exists(self, interface: str) -> bool:
        with self._sockets.borrow() as host:
            return host.find_link(interface) is not None

    def routes(self, interface: str) -> tuple[IPNetwork, ...]:
        with self._sockets.borrow() as host:
            link = host.find_link(interface)
            found = host.routes(index=link.index) if link else []
        # the kernel's own fe80::/64 is of no interest
        return tuple(network_of(route.destination) for route in found if route.destination.is_host)

    def _attach(
        self,
        host: RouteSocket,
        container: RouteSocket,
        request: WiringRequest,
        wanted: WantedAddresses,
        undo: contextlib.ExitStack,
    ) -> WiredInterface:
        link, mac = self._create(host, request)
        if link is None:
            standing = self._settle_clash(host, container, request)
            if standing is not None:
                return self._repair(host, container, request, wanted, *standing)
            link, mac = self._create(host, request)
        if link is None:
            raise InterfaceTaken(request.interface, "the host", "made by somebody else just now")
        undo.callback(self._undo_link, request.interface)
        standing_routes = self._configure(host, container, request, wanted, link)
        return wired_interface(link, mac, missing_routes=standing_routes)

    def _create(self, host: RouteSocket, request: WiringRequest) -> tuple[Link | None, bytes]:
        """The host end, None when a name is taken, and the container's MAC address. A kernel without netkit makes a
        veth in its place."""
        if request.device == "netkit" and self._has_netkit:
            create, mac = pair_of(request, "netkit")
            try:
                return create_link(host, create, request.interface), mac
            except KernelRefused as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._has_netkit = False
                reason = "the kernel has no netkit (CONFIG_NETKIT, Linux 6.7): pairs are veth until the node restarts"
                log.warning("interface.netkit_missing", interface=request.interface, made="veth", reason=reason)
        create, mac = pair_of(request, "veth")
        return create_link(host, create, request.interface), mac

    def _settle_clash(
        self, host: RouteSocket, container: RouteSocket, request: WiringRequest
    ) -> tuple[Link, Link] | None:
        """A name is taken. Our own pair is given back; None when a leftover was deleted and the way is free.

        :raises InterfaceTaken: the container's name, or the host's, belongs to something else. Nothing was changed.
        """
        link = host.find_link(request.interface)
        inner = container.find_link(request.container_interface)
        if link and inner and are_peers(host, link, inner, request.namespace_fd):
            return link, inner
        if inner is not None:
            raise InterfaceTaken(request.container_interface, request.namespace or "the container")
        self._delete_leftover(link)
        return None

    def _repair(
        self,
        host: RouteSocket,
        container: RouteSocket,
        request: WiringRequest,
        wanted: WantedAddresses,
        link: Link,
        inner: Link,
    ) -> WiredInterface:
        """Our pair stands already: nothing if it is as wanted, else change it in place. It was here before this call
        and stays whatever happens."""
        found = self._differences(host, container, request, wanted, link, inner)
        others = container_end.held_by_others(
            container,
            inner.index,
            wanted,
            has_default_route=request.is_default_route,
            destinations=_destinations(request),
        )
        if not found:
            return wired_interface(link, inner.mac, is_new=False, missing_routes=others)
        log.info("interface.repaired", interface=request.interface, differences=found)
        mac, mtu = packed(request.mac) or inner.mac, request.mtu_bytes or 0
        host.execute(set_link(index=link.index, mac=HOST_MAC, mtu_bytes=mtu))
        container.execute(set_link(index=inner.index, mac=mac, mtu_bytes=mtu))
        container_end.remove_surplus(container, inner.index, wanted)
        surplus = [
            route for route in host.routes(index=link.index, protocol=PROTOCOL) if route.destination not in wanted.all
        ]
        host.execute(*map(delete_route, surplus))
        (outcome,) = host.execute(get_link(index=link.index))
        link = link_of(outcome)
        self._configure(host, container, request, wanted, link)
        return wired_interface(link, mac, is_new=True, missing_routes=others)

    def _configure(
        self,
        host: RouteSocket,
        container: RouteSocket,
        request: WiringRequest,
        wanted: WantedAddresses,
        link: Link,
    ) -> tuple[Prefix, ...]:
        """Everything but the pair itself; may be repeated. Host routes, which may take over another's, come last:
        nothing can fail after them. Gives the routes that stood in the container already."""
        settings = workload_sysctls.container_end(request.container_interface, has_v6=bool(wanted.v6))
        if settings:
            netns.run_in(request.namespace_fd, lambda: sysctl.apply(settings))
        standing = container_end.configure(
            container,
            link.peer_index,
            wanted,
            has_default_route=request.is_default_route,
            destinations=_destinations(request),
            # as read back from the kernel: a wrong entry would be a black hole
            gateway_mac=link.mac if self._pins_gateway else b"",
        )
        self._raise_host_end(host, link, wanted)
        container_end.await_carrier(container, link.peer_index)
        return standing

    def _host_settings(self, interface: str, wanted: WantedAddresses) -> tuple[Setting, ...]:
        return workload_sysctls.host_end(
            interface, has_v4=bool(wanted.v4), has_v6=bool(wanted.v6), opens_loopback=self._opens_loopback
        )

    def _raise_host_end(self, host: RouteSocket, link: Link, wanted: WantedAddresses) -> None:
        """Sysctls while it is down, then up with its link-local address and the routes."""
        settings = self._host_settings(link.name, wanted)
        carried, files = workload_sysctls.of_the_link(settings)
        netns.run_in(self._namespace_fd, lambda: sysctl.apply(files))
        if self._on_settings is not None:
            self._on_settings(link.name, link.index, settings)
        raise_and_route(
            host,
            link.index,
            [workload_route(each, link.index) for each in wanted.all],
            addresses=[add_address(link.index, GATEWAY_V6, scope=SCOPE_LINK)] if wanted.v6 else [],
            ipv4_settings=carried,
            interface_prefixes=self._interface_prefixes,
        )

    def _differences(
        self,
        host: RouteSocket,
        container: RouteSocket,
        request: WiringRequest,
        wanted: WantedAddresses,
        link: Link,
        inner: Link,
        *,
        needs_next_hop: bool = True,
    ) -> list[str]:
        found: list[str] = []
        if not link.is_up:
            found.append(f"host interface {link.name} is down")
        if link.mac != HOST_MAC:
            found.append(f"host interface {link.name} has MAC {mac_from_bytes(link.mac)}")
        if request.mac is not None and inner.mac != packed(request.mac):
            found.append(f"container interface {inner.name} has MAC {mac_from_bytes(inner.mac)}")
        found += [
            f"{each.name} has MTU {each.mtu_bytes}, not {request.mtu_bytes}"
            for each in (link, inner)
            if request.mtu_bytes not in (None, each.mtu_bytes)
        ]
        found += container_end.differences(
            container,
            inner,
            wanted,
            has_default_route=request.is_default_route,
            destinations=_destinations(request),
            needs_next_hop=needs_next_hop,
        )
        routed = {route.destination for route in host.routes(index=link.index)}
        found += [f"host route {each} through {link.name} is missing" for each in wanted.all if each not in routed]
        settings = self._host_settings(link.name, wanted)
        wrong = netns.run_in(self._namespace_fd, lambda: sysctl.first_difference(settings))
        if wrong is not None:
            found.append(f"sysctl net/{wrong.path} is not {wrong.value}")
        return found

    def _refuse_host_namespace(self, request: WiringRequest) -> None:
        if self._namespace_fd is not None:
            is_host = netns.same_namespace(self._namespace_fd, request.namespace_fd)
        else:
            is_host = netns.is_own_namespace(request.namespace_fd)
        if is_host:
            raise InvalidRequest("namespace", f"{request.namespace or 'it'} is the host's own")

    def _delete_leftover(self, link: Link | None) -> None:
        if link is None:
            return
        refuse_foreign(link, "the host")
        log.info("interface.leftover_deleted", interface=link.name)
        self._reaper.delete(link.name)

    def _undo_link(self, interface: str) -> None:
        try:
            self._reaper.delete(interface)
        except CalicoError as error:
            # the first error is the one to tell; the reconciler finds the leftover
            log.warning("interface.undo_failed", interface=interface, error=str(error))


def _restore(namespace_fd: int, settings: tuple[Setting, ...]) -> None:
    try:
        netns.run_in(namespace_fd, lambda: sysctl.apply(settings))
    except CalicoError as error:
        log.warning("sysctl.undo_failed", error=str(error))


def _refuse_missing_ipv6(wanted: WantedAddresses) -> None:
    if wanted.v6 and not sysctl.has_ipv6():
        raise KernelRefused("wire IPv6 addresses", errno.EAFNOSUPPORT, "this kernel has no IPv6")


def _destinations(request: WiringRequest) -> list[Prefix]:
    """Of the routes beside the default one."""
    return [prefix_of(each) for each in request.routes]
