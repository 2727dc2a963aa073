"""Tunnel devices and the routes of encapsulated pools in the kernel: look, compare, change what differs.

Devices, their addresses and forwarding entries go through pyroute2: they change when a host joins, not with every
container. Routes, of which there is one a block, go through our own messages. pyroute2 is imported when the first
tunnel is wanted, so that a node without encapsulated pools never pays for it.

Ours are the devices by their names, what hangs on them, and of the routes with our protocol number those on them, on
the uplinks, and blackholes; routes of workload interfaces are the dataplane driver's.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux.link_messages import delete_link
from calico_core.dataplane.linux.prefix import AF_INET, AF_INET6, host_prefix, prefix_of
from calico_core.dataplane.linux.route_messages import PROTOCOL, RTN_BLACKHOLE, Route
from calico_core.dataplane.linux.routes import apply_routes, plan_routes
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.errors import DataplaneError, KernelRefused
from calico_core.interfaces.dataplane import Failure
from calico_core.log import get_logger
from calico_core.model.tunnels import TUNNELS, VXLAN_PORT, VXLAN_VNI, HostTunnels, TunnelDevice, TunnelPeer, TunnelRoute

if TYPE_CHECKING:
    from pyroute2 import IPRoute

    from calico_core.dataplane.linux.link_messages import Link

log = get_logger(__name__)

#: The kernel gives IPv6 routes this metric when none is asked for (linux/ipv6_route.h, IP6_RT_PRIO_USER).
_METRIC = {4: 0, 6: 1024}
_FAMILY = {4: AF_INET, 6: AF_INET6}
_NTF_SELF = 2
_IFF_UP = 1
_PERMANENT, _NOARP = 0x80, 0x40
_LINK_LOCAL = IPNetwork("fe80::/10")
_MODULE_MISSING = (errno.EOPNOTSUPP, errno.ENOENT)


class Uplink(msgspec.Struct, frozen=True, kw_only=True):
    """The interface that holds the host's own address, and the subnet it is in."""

    index: int
    name: str
    mtu_bytes: int
    subnet: IPNetwork


class TunnelReport(msgspec.Struct, frozen=True, kw_only=True):
    """``changed``: what was not as wanted, in words; empty when the kernel had it all."""

    changed: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()


class ModuleMissing(DataplaneError):
    """The kernel has no such kind of device."""

    def __init__(self, device: str, kind: str) -> None:
        super().__init__(
            f"cannot create {device}: this kernel lacks the module {kind!r}; "
            f"traffic between hosts of {kind} pools is lost until it is there"
        )
        self.device, self.kind = device, kind


class Tunnels:
    """Used by one thread, in its network namespace; nothing is kept open between calls."""

    def uplinks(self, addresses: Iterable[IPAddress]) -> dict[IPAddress, Uplink]:
        """Of the host's own addresses, those that an interface holds. One on the loopback interface, as routed fabrics
        have it, goes out by the default route."""
        wanted = {host_prefix(address).address: address for address in addresses}
        found: dict[IPAddress, Uplink] = {}
        with RouteSocket() as socket:
            links = {link.index: link for link in socket.links()}
            for entry in socket.addresses():
                address = wanted.get(entry.prefix.address)
                if address is None:
                    continue
                link = links.get(entry.index)
                if link is not None and link.name == "lo":
                    link = links.get(_default_route_index(socket, entry.prefix.family))
                if link is None:
                    continue
                subnet = IPNetwork((int(address), entry.prefix.length), version=address.version).cidr
                found[address] = Uplink(index=link.index, name=link.name, mtu_bytes=link.mtu_bytes, subnet=subnet)
        return found

    def mtus(self, pattern: str) -> dict[str, int]:
        """MTU in bytes of the interfaces that are up and whose names begin with what ``pattern`` describes."""
        matches = re.compile(pattern).match
        with RouteSocket() as socket:
            return {link.name: link.mtu_bytes for link in socket.links() if link.is_up and matches(link.name)}

    def sync(self, desired: HostTunnels, known: HostTunnels | None = None) -> TunnelReport:
        """Make everything as wanted. What fails is reported; the rest is done.

        ``known`` is what an earlier sync without failures made, and is trusted: what is equal in it is not looked at
        in the kernel. None trusts nothing.
        """
        changed: list[str] = []
        failures: list[Failure] = []
        uplinks = self.uplinks(desired.locals)
        if known is None or (known.locals, known.devices) != (desired.locals, desired.devices):
            known = None
            self._remove_unwanted(desired, changed, failures)
        for device in desired.devices if known is None or known.peers != desired.peers else ():
            uplink = uplinks.get(device.local)
            mtu_bytes = uplink.mtu_bytes - device.tunnel.overhead_bytes if uplink else 0
            peers = [peer for peer in desired.peers if peer.device == device.name]
            with _gathered(failures, f"device {device.name}"), _iproute(device.name) as iproute:
                _Device(iproute, device, mtu_bytes, changed).ensure(peers)
        with _gathered(failures, "routes"):
            self._sync_routes(desired.routes, known.routes if known else None, uplinks, changed, failures)
        return TunnelReport(changed=tuple(changed), failures=tuple(failures))

    def _remove_unwanted(self, desired: HostTunnels, changed: list[str], failures: list[Failure]) -> None:
        """Devices of earlier pools. ``tunl0`` belongs to the kernel's module: it loses its addresses and stays."""
        wanted = {device.name for device in desired.devices}
        with RouteSocket() as socket:
            for tunnel in TUNNELS:
                link = None if tunnel.device in wanted else socket.find_link(tunnel.device)
                if link is None:
                    continue
                with _gathered(failures, f"device {tunnel.device}"):
                    if tunnel.kind == "ipip":
                        self._strip(link, changed)
                    else:
                        socket.execute(delete_link(index=link.index))
                        changed.append(f"removed {link.name}")

    def _strip(self, link: Link, changed: list[str]) -> None:
        with _iproute(link.name) as iproute:
            for address, length in _addresses_of(iproute, link.index, 4):
                iproute.addr("del", index=link.index, address=str(address), prefixlen=length)
                changed.append(f"removed {address} from {link.name}")

    def _sync_routes(
        self,
        wanted: tuple[TunnelRoute, ...],
        known: tuple[TunnelRoute, ...] | None,
        uplinks: dict[IPAddress, Uplink],
        changed: list[str],
        failures: list[Failure],
    ) -> None:
        with RouteSocket() as socket:
            places = _Places(socket, uplinks)
            desired = [found for route in wanted if (found := places.route(route)) is not None]
            missing = Counter(route.device or "the uplink" for route in wanted if places.route(route) is None)
            if known is None:
                observed = _observed(socket, desired, places)
            else:
                observed = [found for route in known if (found := places.route(route)) is not None]
            plan = plan_routes(desired, observed)
            failed = {failure.route: failure.error for failure in apply_routes(socket, plan)}
        failures += [Failure(f"{number} routes", f"{place} is not there") for place, number in missing.items()]
        failures += [Failure(f"route {route.destination}", str(error)) for route, error in failed.items()]
        changed += [f"removed route {route.destination}" for route in plan.delete if route not in failed]
        changed += [f"set route {route.destination}" for route in plan.replace if route not in failed]


class _Device:
    """One device of one pass. The kernel changes neither VNI, port nor local address of a VXLAN device: a device that
    differs in them is made anew."""

    def __init__(self, iproute: IPRoute, device: TunnelDevice, mtu_bytes: int, changed: list[str]) -> None:
        self._iproute, self._device, self._mtu_bytes, self._changed = iproute, device, mtu_bytes, changed
        self._index = 0

    def ensure(self, peers: list[TunnelPeer]) -> None:
        self._ensure_link()
        self._ensure_address()
        if self._device.tunnel.kind == "vxlan":
            self._ensure_neighbours(peers)
            self._ensure_forwarding(peers)

    def _ensure_link(self) -> None:
        name = self._device.name
        link = _find(self._iproute, name)
        if link is not None and not self._is_same_tunnel(link):
            self._iproute.link("del", index=link["index"])
            link = None
        if link is None:
            self._create()
            self._changed.append(f"created {name}")
            link = _find(self._iproute, name)
            if link is None:
                raise KernelRefused(f"look up {name}", errno.ENODEV)
        self._index = link["index"]
        fixes: dict[str, Any] = {}
        if self._mtu_bytes and link.get_attr("IFLA_MTU") != self._mtu_bytes:
            fixes["mtu"] = self._mtu_bytes
        if self._device.mac is not None and link.get_attr("IFLA_ADDRESS") != str(self._device.mac):
            fixes["address"] = str(self._device.mac)
        if not link["flags"] & _IFF_UP:
            fixes["state"] = "up"
        if fixes:
            self._iproute.link("set", index=self._index, **fixes)
            self._changed.append(f"set {name}: {', '.join(f'{key} {value}' for key, value in fixes.items())}")

    def _create(self) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            self._iproute.link("add", **link_attributes(self._device, self._mtu_bytes))
        except NetlinkError as error:
            if error.code in _MODULE_MISSING:
                raise ModuleMissing(self._device.name, self._device.tunnel.kind) from error
            raise

    def _is_same_tunnel(self, link: Any) -> bool:
        info = link.get_attr("IFLA_LINKINFO")
        if info is None or info.get_attr("IFLA_INFO_KIND") != self._device.tunnel.kind:
            return False
        if self._device.tunnel.kind == "ipip":
            return True
        data = info.get_attr("IFLA_INFO_DATA")
        local = "IFLA_VXLAN_LOCAL" if self._device.tunnel.version == 4 else "IFLA_VXLAN_LOCAL6"
        expected = {"IFLA_VXLAN_ID": VXLAN_VNI, "IFLA_VXLAN_PORT": VXLAN_PORT, "IFLA_VXLAN_LEARNING": 0}
        return data.get_attr(local) == str(self._device.local) and all(
            data.get_attr(name) == value for name, value in expected.items()
        )

    def _ensure_address(self) -> None:
        """Exactly the tunnel address, or none; link-local ones are the kernel's."""
        version = self._device.tunnel.version
        address = self._device.address
        wanted = {(address, 32 if version == 4 else 128)} if address is not None else set()
        present = set(_addresses_of(self._iproute, self._index, version))
        for extra, length in present - wanted:
            self._iproute.addr("del", index=self._index, address=str(extra), prefixlen=length)
            self._changed.append(f"removed {extra} from {self._device.name}")
        for missing, length in wanted - present:
            self._iproute.addr("add", index=self._index, address=str(missing), prefixlen=length)
            self._changed.append(f"added {missing} to {self._device.name}")

    def _ensure_neighbours(self, peers: list[TunnelPeer]) -> None:
        """Tunnel address → MAC, so that nobody has to be asked."""
        wanted = {str(peer.address): str(peer.mac) for peer in peers}
        present: dict[str, str] = {}
        for entry in self._iproute.get_neighbours(_FAMILY[self._device.tunnel.version], ifindex=self._index):
            if entry["ifindex"] == self._index and entry["state"] & _PERMANENT:
                present[entry.get_attr("NDA_DST")] = entry.get_attr("NDA_LLADDR") or ""
        for address, mac in wanted.items():
            if present.get(address) != mac:
                self._iproute.neigh("replace", dst=address, lladdr=mac, ifindex=self._index, state=_PERMANENT)
                self._changed.append(f"set neighbour {address}")
        for address in present.keys() - wanted.keys():
            self._ignoring_gone(lambda gone=address: self._iproute.neigh("del", dst=gone, ifindex=self._index))  # type: ignore[misc]
            self._changed.append(f"removed neighbour {address}")

    def _ensure_forwarding(self, peers: list[TunnelPeer]) -> None:
        """MAC → host address. An entry is deleted and added: replacing would keep a second destination."""
        wanted = {(str(peer.mac), str(peer.host_address)) for peer in peers}
        present = {
            (entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST"))
            for entry in self._iproute.fdb("dump", ifindex=self._index)
            if entry["ifindex"] == self._index and entry.get_attr("NDA_DST")
        }
        for mac, host in present - wanted:
            arguments = {"ifindex": self._index, "lladdr": mac, "dst": host, "flags": _NTF_SELF}
            self._ignoring_gone(lambda arguments=arguments: self._iproute.fdb("del", **arguments))  # type: ignore[misc]
            self._changed.append(f"removed forwarding to {host}")
        for mac, host in wanted - present:
            self._iproute.fdb(
                "append", ifindex=self._index, lladdr=mac, dst=host, flags=_NTF_SELF, state=_NOARP | _PERMANENT
            )
            self._changed.append(f"set forwarding to {host}")

    def _ignoring_gone(self, remove: Callable[[], object]) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            remove()
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.ESRCH):
                raise


def link_attributes(device: TunnelDevice, mtu_bytes: int) -> dict[str, Any]:
    """What pyroute2 is told to make a device of."""
    found: dict[str, Any] = {"ifname": device.name, "kind": device.tunnel.kind}
    if mtu_bytes:
        found["mtu"] = mtu_bytes
    if device.tunnel.kind == "ipip":
        # no local and no remote: one device takes every peer, as the module's own tunl0 does
        return found | {"ipip_ttl": 0, "ipip_pmtudisc": 1}
    if device.mac is not None:
        found["address"] = str(device.mac)
    local = "vxlan_local" if device.tunnel.version == 4 else "vxlan_local6"
    return found | {"vxlan_id": VXLAN_VNI, "vxlan_port": VXLAN_PORT, "vxlan_learning": 0, local: str(device.local)}


class _Places:
    """Where routes lead, as indexes of links."""

    def __init__(self, socket: RouteSocket, uplinks: dict[IPAddress, Uplink]) -> None:
        found = {name: socket.find_link(name) for name in ("lo", *(tunnel.device for tunnel in TUNNELS))}
        self._links = {name: link.index for name, link in found.items() if link is not None}
        self._uplinks: dict[int, int] = {address.version: uplink.index for address, uplink in uplinks.items()}
        self.ours = {index for name, index in self._links.items() if name != "lo"} | set(self._uplinks.values())

    def route(self, route: TunnelRoute) -> Route | None:
        """As the kernel lists it; None while its device is not there."""
        version = route.destination.version
        destination, metric = prefix_of(route.destination), _METRIC[version]
        if route.gateway is None:
            # IPv6 keeps its blackholes on the loopback interface, IPv4 on none
            index = self._links.get("lo", 0) if version == 6 else 0
            return Route(destination=destination, index=index, type=RTN_BLACKHOLE, metric=metric)
        index = self._links.get(route.device, 0) if route.device else self._uplinks.get(version, 0)
        if not index:
            return None
        gateway = host_prefix(route.gateway).address
        return Route(destination=destination, index=index, gateway=gateway, metric=metric, is_onlink=True)


def _default_route_index(socket: RouteSocket, family: int) -> int:
    """0 when there is none."""
    found = [route for route in socket.routes(family) if route.destination.length == 0 and route.index]
    return min(found, key=lambda route: route.metric).index if found else 0


def _observed(socket: RouteSocket, desired: list[Route], places: _Places) -> list[Route]:
    """Routes that are ours, and whatever stands where one of ours is to be."""
    targets = {_identity(route) for route in desired}
    return [
        route
        for route in socket.routes()
        if _identity(route) in targets
        or (route.protocol == PROTOCOL and (route.type == RTN_BLACKHOLE or route.index in places.ours))
    ]


def _identity(route: Route) -> tuple[object, ...]:
    return route.destination, route.table, route.metric


def _find(iproute: IPRoute, name: str) -> Any | None:
    found = iproute.link_lookup(ifname=name)
    return next(iter(iproute.get_links(found[0])), None) if found else None


def _addresses_of(iproute: IPRoute, index: int, version: int) -> Iterator[tuple[IPAddress, int]]:
    for entry in iproute.get_addr(family=_FAMILY[version], index=index):
        address = IPAddress(entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"))
        if entry["index"] == index and not (version == 6 and address in _LINK_LOCAL):
            yield address, entry["prefixlen"]


@contextmanager
def _iproute(subject: str) -> Iterator[IPRoute]:
    """pyroute2 for the block; what the kernel refuses there is a ``KernelRefused`` naming the ``subject``."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as iproute:
            yield iproute
    except NetlinkError as error:
        raise KernelRefused(f"change {subject}", error.code) from error


@contextmanager
def _gathered(failures: list[Failure], subject: str) -> Iterator[None]:
    """What the kernel refuses inside becomes a failure of ``subject``; the pass goes on."""
    try:
        yield
    except (DataplaneError, OSError) as error:
        failures.append(Failure(subject, str(error)))
