"""The links of a laboratory: every host's ``eth0``, the fabric between them, addresses, routes and sysctls.

All is made inside the laboratory's own namespaces; the machine's own is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.linux import netns, sysctl
from calico_core.dataplane.linux.address_messages import add_address
from calico_core.dataplane.linux.link_messages import IF_OPER_UP, add_bridge, add_veth, delete_link, set_link
from calico_core.dataplane.linux.prefix import Prefix, host_prefix, parse_prefix
from calico_core.dataplane.linux.route_messages import RTPROT_STATIC, Route, add_route
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.dataplane.linux.sysctl import Setting
from calico_core.errors import NotReady
from calico_core.lab.record import FabricRecord, HostRecord

UPLINK = "eth0"
BRIDGE = "fabric0"
_SETTLE_S = 20.0
_POLL_S = 0.001
_DEFAULT = {4: parse_prefix("0.0.0.0/0"), 6: parse_prefix("::/0")}

# no duplicate address detection: a link is usable at once, and all addresses here are ours
_QUICK_IPV6 = tuple(
    Setting(f"ipv6/conf/{scope}/{key}", "0", is_vital=False)
    for scope in ("all", "default")
    for key in ("accept_dad", "accept_ra")
)
_ROUTER = (
    Setting("ipv4/conf/all/forwarding", "1"),
    Setting("ipv6/conf/all/forwarding", "1", is_vital=False),
)


def build(fabric: FabricRecord, hosts: Sequence[HostRecord]) -> None:
    """Make the namespaces of the fabric and the hosts, and all links between them."""
    path = netns.create_namespace(fabric.namespace)
    with opened(path) as fabric_fd, RouteSocket(fabric_fd) as inside:
        netns.run_in(fabric_fd, lambda: sysctl.apply(_settings(fabric)))
        loopback = _index(inside, "lo")
        inside.execute(set_link(index=loopback, is_up=True))
        bridge = 0
        if fabric.kind == "bridge":
            inside.execute(add_bridge(BRIDGE), set_link(BRIDGE, is_up=True))
            bridge = _index(inside, BRIDGE)
        else:
            inside.execute(*(add_address(loopback, host_prefix(each)) for each in fabric.addresses))
        for position, host in enumerate(hosts):
            if bridge and not position:
                pairs = zip(host.gateways, host.subnets, strict=True)
                inside.execute(*(add_address(bridge, _prefix(address, net)) for address, net in pairs))
            _join(host, inside, fabric_fd, bridge)
        await_operational(fabric_fd, inside, [gateway for host in hosts for gateway in host.gateways])


def rejoin(fabric: FabricRecord, host: HostRecord) -> None:
    """Make the namespace of one host anew, and its link, as after a reboot."""
    with opened(netns.NAMED / fabric.namespace) as fabric_fd, RouteSocket(fabric_fd) as inside:
        # the kernel takes its time to end a namespace, and the old link is there until it has
        (gone,) = inside.attempt([delete_link(host.port)])
        if gone.error is not None and gone.error.errno != errno.ENODEV:
            raise gone.error
        _join(host, inside, fabric_fd, _index(inside, BRIDGE) if fabric.kind == "bridge" else 0)
        await_operational(fabric_fd, inside, host.gateways)


def create_stub(name: str) -> Path:
    """A namespace with nothing but its loopback, up: what a container runtime makes before it calls CNI."""
    path = netns.create_namespace(name)
    with opened(path) as descriptor:
        netns.run_in(descriptor, lambda: sysctl.apply(_QUICK_IPV6))
        with RouteSocket(descriptor) as inside:
            inside.execute(set_link("lo", is_up=True))
    return path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the namespace for the block."""
    descriptor = netns.open_namespace(str(path))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def await_operational(namespace_fd: int, inside: RouteSocket, addresses: Iterable[IPAddress] = ()) -> None:
    """Wait until every veth of the namespace takes packets, and neighbours can find its IPv6 ``addresses``.

    A link that comes up before its other end drops what it is given until the kernel's link watch has looked at it
    (net/core/link_watch.c), and the group an IPv6 address is asked for by is joined by a worker (net/ipv6/addrconf.c).
    A first question lost to either would be repeated a second later only.

    :raises NotReady: a link stays down, or an address stays unknown.
    """
    groups = {_solicited_node_group(each) for each in addresses if each.version == 6}
    deadline = time.monotonic() + _SETTLE_S
    while True:
        # the bridge never lacked carrier, so it works though its state is told up to a second late
        waiting = [link.name for link in inside.links() if link.kind == "veth" and link.oper_state != IF_OPER_UP]
        waiting += groups - netns.run_in(namespace_fd, _joined_groups) if groups else ()
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise NotReady(f"links without carrier or groups not joined: {', '.join(waiting)}")
        time.sleep(_POLL_S)


def _join(host: HostRecord, fabric: RouteSocket, fabric_fd: int, bridge: int) -> None:
    with opened(netns.create_namespace(host.namespace)) as host_fd, RouteSocket(host_fd) as inside:
        netns.run_in(host_fd, lambda: sysctl.apply(_QUICK_IPV6))
        inside.execute(
            set_link("lo", is_up=True),
            add_veth(UPLINK, host.port, peer_namespace_fd=fabric_fd, is_up=True),
        )
        fabric.execute(set_link(host.port, is_up=True))
        port, uplink = _index(fabric, host.port), _index(inside, UPLINK)
        if bridge:
            fabric.execute(set_link(index=port, bridge_index=bridge))
        else:
            pairs = zip(host.gateways, host.subnets, strict=True)
            fabric.execute(*(add_address(port, _prefix(address, net)) for address, net in pairs))
        pairs = zip(host.addresses, host.subnets, strict=True)
        inside.execute(
            *(add_address(uplink, _prefix(address, net)) for address, net in pairs),
            *(add_route(_default_route(gateway, uplink)) for gateway in host.gateways),
        )
        await_operational(host_fd, inside, host.addresses)


def _joined_groups() -> set[str]:
    """IPv6 multicast groups of the thread's namespace, as 32 hexadecimal digits."""
    lines = Path("/proc/thread-self/net/igmp6").read_text().splitlines()
    return {line.split()[2] for line in lines}


def _solicited_node_group(address: IPAddress) -> str:
    """RFC 4291, 2.7.1."""
    return f"ff0200000000000000000001ff{int(address) & 0xFFFFFF:06x}"


def _settings(fabric: FabricRecord) -> tuple[Setting, ...]:
    return _QUICK_IPV6 + (_ROUTER if fabric.kind == "router" else ())


def _default_route(gateway: IPAddress, index: int) -> Route:
    return Route(
        destination=_DEFAULT[gateway.version],
        gateway=host_prefix(gateway).address,
        index=index,
        protocol=RTPROT_STATIC,
    )


def _prefix(address: IPAddress, network: IPNetwork) -> Prefix:
    host = host_prefix(address)
    return Prefix(host.family, host.address, network.prefixlen)


def _index(route_socket: RouteSocket, name: str) -> int:
    link = route_socket.find_link(name)
    assert link is not None, f"{name} was made just before"
    return link.index
