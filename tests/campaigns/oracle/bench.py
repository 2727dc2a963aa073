"""The bench of the oracle: one host with four containers and a neighbour, made once; only policy changes.

::

    container 0..3 ── cali0..3 ┐
                               ├ host (the dataplane under test) ── up0 ── outside: remote endpoints and strangers
    fence ── fa, fb ───────────┘

Packets are written to the containers' interfaces as frames and read from them as frames; what ends at the host is
read by raw sockets, which stand behind its INPUT chains. All is sent from one CPU, so packets pass in the order in
which they were sent: once the last one, through the fence, has arrived, all others have, or never will. Neighbours are
known for good and containers answer nothing.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import subprocess
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.linux import netns
from calico_core.dataplane.linux.conntrack import CT_DELETE
from calico_core.dataplane.linux.netlink import NETLINK_NETFILTER, NetlinkSocket, Request
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort
from calico_core.model.workloads import WiringRequest
from tests.campaigns.oracle import wire
from tests.campaigns.oracle.cases import (
    FAILSAFE_IN,
    FAILSAFE_OUT,
    FLOATING,
    KNOWN_HOST,
    METADATA_PORT,
    OTHER_HOST,
    OWN_MAC,
    OWN_NETS,
    PAIRS,
    PEER,
    WORKLOADS,
    shared_with,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from calico_core.interfaces.dataplane import Dataplane

ETH_P_ALL, SOL_PACKET, PACKET_IGNORE_OUTGOING = 0x0003, 263, 23
OUTSIDE = "up0"
HOST = ""
"""Names of places: ``cali0``… for the containers, these two for the others."""
_FENCE = ("10.67.0.1", "10.67.0.2")
_FENCE_WAIT_S = 20.0
_HOST_PROTOCOLS = (1, 4, 6, 17, 58, 132, 200)
_NO_LIMITS = (("ipv4.icmp_msgs_per_sec", 1_000_000), ("ipv4.icmp_msgs_burst", 1_000_000))
_numbers = itertools.count()

DRIVERS: dict[str, Callable[[DataplaneOptions, int], Dataplane]] = {
    "nftables": NftablesDataplane,
    "iptables": IptablesDataplane,
    "iptables-nft": lambda options, fd: IptablesDataplane(options, fd, "nft"),
    "iptables-legacy": lambda options, fd: IptablesDataplane(options, fd, "legacy"),
}


Arrived = dict[wire.Seen, bytes]
"""What was seen at a place, and how it looked from the IP header on; empty where the kernel does not show that."""


class Sending(NamedTuple):
    """One packet, from the IP header on. ``mac``: in place of the container's own."""

    place: str
    ip: bytes
    mac: str | None = None


class _Port(NamedTuple):
    """An interface we write frames to and read them from."""

    socket: socket.socket
    mac: bytes
    gateway_mac: bytes

    def send(self, ip: bytes, mac: str | None) -> None:
        own = self.mac if mac is None else bytes.fromhex(mac.replace(":", ""))
        self.socket.send(wire.frame(own, self.gateway_mac, ip))


class Bench:
    """A context manager. One thread."""

    def __init__(self, dataplane: str) -> None:
        self._driver = DRIVERS[dataplane]
        self.answers_early = dataplane == "nftables"
        self._stack = contextlib.ExitStack()
        self._ports: dict[str, _Port] = {}
        self._told: object = None
        self._dataplane: Dataplane | None = None
        self._next = 0xA0000000

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def dataplane(
        self, to_host: str, set_limit: int | None = None, metadata: str | None = None, *, has_ipv6: bool = True
    ) -> Dataplane:
        """The driver, started anew when it has to be told otherwise: as an agent does that restarts."""
        told = to_host, set_limit, metadata, has_ipv6
        if self._dataplane is None or told != self._told:
            self._close_dataplane()
            options = DataplaneOptions(
                endpoint_to_host=to_host,
                is_ipv6_enabled=has_ipv6,
                failsafe_inbound=tuple(FailsafePort(*each) for each in FAILSAFE_IN),
                failsafe_outbound=tuple(FailsafePort(*each) for each in FAILSAFE_OUT),
                metadata=None if metadata is None else (IPAddress(metadata), METADATA_PORT),
            )
            if set_limit is not None:
                options = msgspec.structs.replace(options, max_set_size=set_limit)
            self._dataplane = self._driver(options, self._host_fd)
            self._told = told
        return self._dataplane

    def number(self) -> int:
        """For one packet."""
        self._next += 1
        return self._next

    def run_on_host(self, *argv: str) -> None:
        _run(list(argv), self._host_name)

    def forget_connections(self) -> None:
        for outcome in self._conntrack.attempt([Request("flush conntrack", CT_DELETE, 0, bytes(4))]):
            if outcome.error is not None and outcome.error.errno != errno.ENOENT:
                raise outcome.error

    def send(self, sendings: Iterable[Sending]) -> dict[str, Arrived]:
        """Send them, wait until they are through, and give what arrived where."""
        for place, ip, mac in sendings:
            if place == HOST:
                self._send_from_host(ip)
            else:
                self._ports[place].send(ip, mac)
        self._pass_fence()
        seen = {place: _marked((wire.read_frame(data), data[14:]) for data in _drain(port.socket))
                for place, port in self._ports.items()}  # fmt: skip
        at_host = [(wire.read_ip(data), data) for each in self._raw4 for data in _drain(each)]
        at_host += [(wire.read_payload(number, data), b"") for number, each in self._raw6 for data in _drain(each)]
        return {**seen, HOST: _marked(at_host)}

    def _send_from_host(self, ip: bytes) -> None:
        is_v4 = ip[0] >> 4 == 4
        address = socket.inet_ntop(socket.AF_INET, ip[16:20]) if is_v4 else socket.inet_ntop(socket.AF_INET6, ip[24:40])
        # no route, as to an endpoint that is not there, is an answer too
        with contextlib.suppress(OSError):
            (self._out4 if is_v4 else self._out6).sendto(ip, (address, 0))

    def _pass_fence(self) -> None:
        number = self.number()
        sender, receiver = self._fence
        sender.send(wire.packet(*_FENCE, wire.UDP, number, sport=1, dport=number & 0xFFFF), None)
        poller = select.poll()
        poller.register(receiver.socket, select.POLLIN)
        while True:
            if not poller.poll(_FENCE_WAIT_S * 1000):
                raise RuntimeError("the packet behind all others did not arrive")
            if wire.Seen(number) in map(wire.read_frame, _drain(receiver.socket)):
                return

    # --- making it -------------------------------------------------------------------------------------

    def _build(self) -> None:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        self._stack.callback(os.sched_setaffinity, 0, before)
        self._host_name, self._host_fd = self._namespace()
        for name in ("ipv4.conf.all.rp_filter", "ipv4.conf.default.rp_filter", "ipv6.conf.default.accept_dad"):
            self._sysctl(self._host_name, name, 0)
        for name in ("ipv4.icmp_echo_ignore_all", "ipv6.icmp.echo_ignore_all"):
            self._sysctl(self._host_name, name, 1)
        for name, value in (("ipv4.icmp_ratelimit", 0), ("ipv6.icmp.ratelimit", 0), *_NO_LIMITS):
            self._sysctl(self._host_name, name, value)
        self._stack.callback(self._close_dataplane)
        wiring = self.dataplane("RETURN").wiring()
        for number in range(WORKLOADS):
            self._attach(wiring.attach, number)
        self._join_outside()
        self._join_fence()
        self._open_host()

    def _close_dataplane(self) -> None:
        if self._dataplane is not None:
            self._dataplane.close()
            self._dataplane = None

    def _attach(self, attach: Callable[[WiringRequest], object], number: int) -> None:
        name, fd = self._namespace()
        mac = OWN_MAC.format(number)
        addresses = [*PAIRS[number][0], *PAIRS[number][1]]
        nets = tuple(IPNetwork(each) for each in addresses)
        attach(WiringRequest(interface=f"cali{number}", container_interface="eth0", namespace_fd=fd, namespace=name,
                             addresses=nets, mac=EUI(mac)))  # fmt: skip
        _mute(name)
        # it also has what a record may say that it has: IPv4 neighbours are the driver's own business, and it is asked
        others = [each for family in (*shared_with(number), *FLOATING) for each in family]
        self._ip(name, [f"address add {each} dev eth0{' nodad' if ':' in each else ''}" for each in others])
        own = (*addresses, *others)
        known = [f"neigh replace {each} lladdr {mac} dev cali{number} nud permanent" for each in own if ":" in each]
        self._ip(self._host_name, known)
        self._ports[f"cali{number}"] = self._port(fd, "eth0", f"cali{number}")

    def _join_outside(self) -> None:
        name, fd = self._namespace()
        mac = "02:00:00:00:66:01"
        self._ip(self._host_name, [
            f"link add up0 type veth peer name up0 netns {name} address {mac}",
            f"address add {KNOWN_HOST[0]}/24 dev up0", f"address add {KNOWN_HOST[1]}/64 dev up0 nodad",
            f"address add {OTHER_HOST[0]} dev lo", f"address add {OTHER_HOST[1]} dev lo nodad",
            "link set lo up", "link set up0 up",
        ])  # fmt: skip
        self._ip(name, ["link set up0 up"])
        # what the fabric would not send back: addresses of ours without an endpoint
        neighbours = (*PEER, "192.0.2.2", "2001:db8::2")
        self._ip(self._host_name, [
            *(f"neigh replace {each} lladdr {mac} dev up0 nud permanent" for each in neighbours),
            "route add default via 192.0.2.2", "route add default via 2001:db8::2",
            *(f"route add blackhole {each}" for each in OWN_NETS),
        ])  # fmt: skip
        _mute(name)
        self._ports[OUTSIDE] = self._port(fd, "up0", "up0")

    def _join_fence(self) -> None:
        name, fd = self._namespace()
        for each in ("iptables", "ip6tables"):
            with contextlib.suppress(subprocess.CalledProcessError):  # bridges do not ask the network layer's hooks
                self._sysctl(self._host_name, f"bridge.bridge-nf-call-{each}", 0)
        self._ip(self._host_name, [
            f"link add fa type veth peer name fa netns {name}", f"link add fb type veth peer name fb netns {name}",
            "link add fence type bridge", "link set fa master fence", "link set fb master fence",
            "link set fa up", "link set fb up", "link set fence up",
        ])  # fmt: skip
        self._ip(name, ["link set fa up", "link set fb up"])
        _mute(name)
        receiver = self._port(fd, "fb", "fb")
        # over a bridge: no host endpoint, whatever it is drawn to be, has a say in it
        self._fence = self._port(fd, "fa", "fa")._replace(gateway_mac=receiver.mac), receiver

    def _open_host(self) -> None:
        def raw(family: int, protocol: int) -> socket.socket:
            made = self._stack.enter_context(netns.socket_in(self._host_fd, family, socket.SOCK_RAW, protocol))
            made.setblocking(False)
            return made

        self._conntrack = NetlinkSocket(NETLINK_NETFILTER, self._host_fd)
        self._stack.callback(self._conntrack.close)
        self._raw4 = [raw(socket.AF_INET, number) for number in _HOST_PROTOCOLS]
        self._raw6 = [(number, raw(socket.AF_INET6, number)) for number in _HOST_PROTOCOLS]
        self._out4, self._out6 = (raw(family, socket.IPPROTO_RAW) for family in (socket.AF_INET, socket.AF_INET6))

    def _port(self, fd: int, interface: str, host_interface: str) -> _Port:
        made = netns.socket_in(fd, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._stack.enter_context(made)
        made.bind((interface, ETH_P_ALL))
        made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        made.setblocking(False)
        with netns.socket_in(self._host_fd, socket.AF_PACKET, socket.SOCK_RAW) as host_end:
            host_end.bind((host_interface, 0))
            gateway = host_end.getsockname()[4]
        return _Port(made, made.getsockname()[4], gateway)

    def _namespace(self) -> tuple[str, int]:
        name = f"oracle-{os.getpid()}-{next(_numbers)}"
        path = netns.create_namespace(name)
        self._stack.callback(netns.delete_namespace, name)
        fd = netns.open_namespace(str(path))
        self._stack.callback(os.close, fd)
        return name, fd

    def _sysctl(self, namespace: str, name: str, value: int) -> None:
        _run(["sysctl", "-qw", f"net.{name}={value}"], namespace)

    def _ip(self, namespace: str, lines: list[str]) -> None:
        subprocess.run(["ip", "-n", namespace, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def _marked(packets: Iterable[tuple[wire.Seen | None, bytes]]) -> Arrived:
    return {seen: data for seen, data in packets if seen is not None}


def _mute(namespace: str) -> None:
    """Its protocols hear nothing, so they answer nothing; our sockets read before that."""
    rules = "add table inet mute; add chain inet mute input { type filter hook input priority 0; policy drop; }"
    _run(["nft", rules], namespace)


def _run(argv: list[str], namespace: str) -> None:
    done = subprocess.run(["ip", "netns", "exec", namespace, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.stderr.strip()}")


def _drain(source: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(source.recv(65536))
    return found
