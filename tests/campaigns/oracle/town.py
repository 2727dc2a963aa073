"""The namespaces of the oracle: one host, its workloads, and a neighbour with remote endpoints and strangers.

It stands for a whole campaign; cases change the policy only. Packets are written raw into the sender's namespace and
captured where they end up: on the interface of a workload or of the neighbour, behind the input hook of the host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self

from netaddr import EUI, IPAddress, IPNetwork

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.conntrack import CT_DELETE
from calico_core.dataplane.linux.netlink import NETLINK_NETFILTER, NetlinkSocket, Request
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.interfaces.dataplane import Dataplane, DataplaneOptions
from calico_core.model.workloads import WiringRequest
from tests.campaigns.oracle.flows import ICMP, ICMPV6, SCTP, TCP, UDP, Flow, answered_in, number_in, packet

WORKLOADS = ("w1", "w2", "w3", "w4")
HOST, NEIGHBOUR = "host", "neighbour"
OTHER_PROTOCOL = 200
HOST_ADDRESSES = (IPAddress("192.0.2.1"), IPAddress("2001:db8::1"))
STRANGERS = (IPAddress("192.0.2.2"), IPAddress("2001:db8::2"))
REMOTE = {
    "r1": (IPAddress("10.66.0.1"), IPAddress("fd66::1")),
    "r2": (IPAddress("10.66.0.2"), IPAddress("fd66::2")),
}
ADDRESSES = {
    name: (IPAddress(f"10.65.0.{number}"), IPAddress(f"10.65.1.{number}"), IPAddress(f"fd65::{number}"))
    for number, name in enumerate(WORKLOADS, 1)
}
"""Of each workload: two IPv4 and one IPv6 address in its namespace, whatever its record says."""
INTERFACES = {name: f"cali{name}" for name in WORKLOADS}
MACS = {name: EUI(0x02_00_00_00_00_00 + number) for number, name in enumerate(WORKLOADS, 1)}

_ETH_P_IP, _ETH_P_IPV6, _ETH_P_ALL = 0x0800, 0x86DD, 0x0003
_PACKET_OUTGOING = 4
_BUFFER_BYTES = 8 << 20
_PATIENCE_S, _QUIET_S = 1.5, 0.01


class Arrivals(NamedTuple):
    """By number of the packet: where it arrived, and how it was answered."""

    arrived: dict[int, set[str]]
    answered: dict[int, set[str]]


class Town:
    """Use as a context manager. ``dataplane``: ``nftables`` or ``iptables``."""

    def __init__(self, dataplane: str, options: DataplaneOptions | None = None) -> None:
        self._kind = {"nftables": NftablesDataplane, "iptables": IptablesDataplane}[dataplane]
        self._options = options or DataplaneOptions()
        self._stack = contextlib.ExitStack()
        self._fds: dict[str, int] = {}
        self._writers: dict[tuple[str, int], socket.socket] = {}
        self._captures = selectors.DefaultSelector()
        self._ports = 0

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def dataplane(self) -> Dataplane:
        return self._dataplane

    # --- packets ---------------------------------------------------------------------------------------------

    def forget_connections(self) -> None:
        """What was permitted once is judged anew."""
        for outcome in self._conntrack.attempt([Request("flush conntrack", CT_DELETE, 0, bytes(4))]):
            if outcome.error is not None and outcome.error.errno != errno.ENOENT:
                raise outcome.error

    def exchange(self, flows: dict[int, Flow], awaited: Iterable[int], answers: Iterable[int]) -> Arrivals:
        """Send them all and see what becomes of them. It is over once everything that is awaited has come and nothing
        more follows, or when patience ends."""
        found = Arrivals({}, {})
        wanted, wanted_answers = set(awaited), set(answers)
        self._drain(found)
        found.arrived.clear()
        found.answered.clear()
        for number, flow in flows.items():
            self._write(flow, packet(flow, number))
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            self._drain(found)
            if wanted <= found.arrived.keys() and wanted_answers <= found.answered.keys():
                break
            self._captures.select(0.05)
        while self._captures.select(_QUIET_S):
            self._drain(found)
        return found

    def _write(self, flow: Flow, data: bytes) -> None:
        writer = self._writers[flow.sender, flow.src.version]
        # A workload's own kernel may refuse (no route): then nothing arrives, and the judge says what that means.
        with contextlib.suppress(OSError):
            writer.sendto(data, (str(flow.dst), 0))

    def _drain(self, found: Arrivals) -> None:
        for key, _ in self._captures.select(0):
            place, protocol = key.data
            capture: socket.socket = key.fileobj  # type: ignore[assignment]
            while True:
                try:
                    data, address = capture.recvfrom(2048)
                except BlockingIOError:
                    break
                if protocol is None:
                    if address[2] == _PACKET_OUTGOING:
                        continue
                    _note(found, place, data)
                else:
                    _note_raw(found, place, protocol, data, is_v4=capture.family == socket.AF_INET)

    # --- building --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in (HOST, NEIGHBOUR, *WORKLOADS):
            self._namespace(name)
        self._ip(HOST, "link", "set", "lo", "up")
        self._link_neighbour()
        self._dataplane = self._kind(self._options, self._fds[HOST])
        self._stack.callback(self._dataplane.close)
        self._dataplane.ensure_closed()
        for name in WORKLOADS:
            self._wire(name)
        self._conntrack = NetlinkSocket(NETLINK_NETFILTER, self._fds[HOST])
        self._stack.callback(self._conntrack.close)
        for name, interface in ((NEIGHBOUR, "up0"), *((name, "eth0") for name in WORKLOADS)):
            self._capture(name, interface)
        for protocol in (TCP, UDP, ICMP, SCTP, OTHER_PROTOCOL):
            self._capture_host(socket.AF_INET, protocol)
        for protocol in (TCP, UDP, ICMPV6, SCTP, OTHER_PROTOCOL):
            self._capture_host(socket.AF_INET6, protocol)
        for name in (HOST, NEIGHBOUR, *WORKLOADS):
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                writer = netns.socket_in(self._fds[name], family, socket.SOCK_RAW, socket.IPPROTO_RAW)
                self._writers[name, version] = self._stack.enter_context(writer)
                writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def _namespace(self, name: str) -> None:
        full = f"oracle-{os.getpid()}-{name}"
        fd = netns.open_namespace(str(netns.create_namespace(full)))
        self._stack.callback(netns.delete_namespace, full)
        self._stack.callback(os.close, fd)
        self._fds[name] = fd
        netns.run_in(fd, _quieten)

    def _ip(self, name: str, *words: str) -> None:
        command = ["ip", "netns", "exec", f"oracle-{os.getpid()}-{name}", "ip", *words]
        subprocess.run(command, check=True, capture_output=True)

    def _link_neighbour(self) -> None:
        peer = f"oracle-{os.getpid()}-{NEIGHBOUR}"
        self._ip(HOST, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", peer)
        for name, addresses in ((HOST, HOST_ADDRESSES), (NEIGHBOUR, STRANGERS)):
            for address in addresses:
                width = 24 if address.version == 4 else 64
                self._ip(name, "address", "add", f"{address}/{width}", "dev", "up0", *_nodad(address))
            self._ip(name, "link", "set", "up0", "up")
        self._ip(NEIGHBOUR, "link", "set", "lo", "up")
        for addresses in REMOTE.values():
            for address in addresses:
                width = 32 if address.version == 4 else 128
                self._ip(NEIGHBOUR, "address", "add", f"{address}/{width}", "dev", "lo")
        for nets, gateways, name in (
            (("10.66.0.0/16", "fd66::/64"), STRANGERS, HOST),
            (("10.65.0.0/16", "fd65::/64"), HOST_ADDRESSES, NEIGHBOUR),
        ):
            for net, gateway in zip(nets, gateways, strict=True):
                self._ip(name, "route", "add", net, "via", str(gateway))

    def _wire(self, name: str) -> None:
        self._dataplane.wiring().attach(
            WiringRequest(
                interface=INTERFACES[name],
                container_interface="eth0",
                namespace_fd=self._fds[name],
                namespace=name,
                addresses=tuple(IPNetwork(address) for address in ADDRESSES[name]),
                mac=MACS[name],
            )
        )

    def _capture(self, name: str, interface: str) -> None:
        capture = netns.socket_in(self._fds[name], socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._stack.enter_context(capture)
        capture.bind((interface, _ETH_P_ALL))
        self._listen(capture, (name, None))

    def _capture_host(self, family: int, protocol: int) -> None:
        capture = netns.socket_in(self._fds[HOST], family, socket.SOCK_RAW, protocol)
        self._stack.enter_context(capture)
        self._listen(capture, (HOST, protocol))

    def _listen(self, capture: socket.socket, data: tuple[str, int | None]) -> None:
        capture.setblocking(False)
        capture.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
        self._captures.register(capture, selectors.EVENT_READ, data)


def _quieten() -> None:
    """Answers to what nobody listens for must not be held back; the limits are the kernel's protection, not ours."""
    for name, value in (
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_msgs_per_sec", "100000"),
        ("ipv4/icmp_msgs_burst", "100000"),
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv4/icmp_echo_ignore_broadcasts", "1"),
    ):
        with contextlib.suppress(OSError), open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
            file.write(value)


def _nodad(address: IPAddress) -> tuple[str, ...]:
    return ("nodad",) if address.version == 6 else ()


def _note(found: Arrivals, place: str, data: bytes) -> None:
    """A packet of an interface, without its link header."""
    if len(data) < 20:
        return
    if data[0] >> 4 == 4:
        protocol, transport = data[9], data[(data[0] & 15) * 4 : struct.unpack_from("!H", data, 2)[0]]
    else:
        protocol, transport = data[6], data[40:]
    _note_transport(found, place, protocol, transport)


def _note_raw(found: Arrivals, place: str, protocol: int, data: bytes, *, is_v4: bool) -> None:
    """A packet of a raw socket: IPv4 brings its header, IPv6 does not (ip(7), ipv6(7))."""
    _note_transport(found, place, protocol, data[(data[0] & 15) * 4 :] if is_v4 and data else data)


def _note_transport(found: Arrivals, place: str, protocol: int, transport: bytes) -> None:
    answered = answered_in(protocol, transport)
    if answered is not None:
        found.answered.setdefault(answered[0], set()).add(answered[1])
        return
    number = number_in(protocol, transport)
    if number is not None:
        found.arrived.setdefault(number, set()).add(place)
