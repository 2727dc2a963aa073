"""What the policy table costs the packets: between two workloads of a host, against the same wiring without a table.

``python tests/benchmarks/bench_throughput.py [others|receiver] [ENDPOINTSxPOLICIES …] [--rounds N]``. Needs root.
Prints a JSON line a shape of the host. Three hosts are made alike, each a network namespace with two workloads wired by
the real wiring. "policy" is then given its policies by the nftables driver, "bare" never has a table, and "tracked" has
one rule that lets known connections pass, which is what connection tracking alone costs. They are measured in turn
within each round, and what counts is the median of the rounds' ratios ``to_bare``: policy ÷ bare for bytes and
connections a second, bare ÷ policy for the time of a round trip; 1 is "policy costs nothing". ``twins`` is the same
comparison before the policies came, that is how far two equal hosts differ here and now. ``packet_cpu_s`` is the
processor time that a datagram of a known connection takes from ``send`` to the receiver's queue: the kernel carries it
there in the sender's own turn, so that the least of many is told from others' load.

Shape "others": the policies apply to other endpoints of the host, shared out among them. Shape "receiver": up to 100
of them apply to the receiver too, and only the last of these allows. The other endpoints are in the table and have
no interface. A new connection is judged by policy; the packets that follow it belong to a connection that is known.
"""

from __future__ import annotations

import argparse
import itertools
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import msgspec
from netaddr import IPNetwork

from calico_core.dataplane.linux import netns, sysctl
from calico_core.dataplane.linux.link_messages import set_link
from calico_core.dataplane.linux.rtnetlink import RouteSocket
from calico_core.dataplane.linux.wiring import VethWiring
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.dataplane.workload_links import forwarding
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import (
    HostChanges,
    HostRule,
    HostRules,
    HostWorkload,
    PolicyList,
    RulesId,
)
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import WiringRequest
from tests.benchmarks import yardsticks
from tests.benchmarks.namespaces import a_namespace
from tests.benchmarks.nft import nft
from tests.benchmarks.policy_tables import a_workload, from_set, new_sets, one_tier
from tests.command_line import positive, require_root

SHAPES = ("others", "receiver")
ENDPOINTS, POLICIES = (1, 100, 1_000), (1, 1_000, 10_000)
APPLIED, RULES_EACH = 100, 10
SETS, MEMBERS = 100, 20
FIRST_OTHER = 0x0A100001
SENDER, RECEIVER, PORT, UDP_PORT = "10.65.0.1", "10.65.0.2", 9000, 9001
OPEN = RulesId("profile/open")
ALLOW = HostRule(action="allow")
WINDOW_S = 0.1
ROUND_TRIPS, DATAGRAMS, MESSAGE = 1_000, 4_000, bytes(64)
CHUNK = bytes(1 << 18)
TRACKING = """
table inet tracked {
  chain forward { type filter hook forward priority filter; ct state established,related accept; }
}
"""
"""The least that a stateful firewall does: it knows the connections."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


# --- the receiver: a process of its own --------------------------------------------------------------


def serve(listener: socket.socket) -> None:
    """One client at a time, until standard input ends. The first byte of a client says what it is: ``s`` sends and
    wants the count, ``e`` wants an echo."""
    buffer = bytearray(1 << 20)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        client, _ = listener.accept()
        with client:
            try:
                client.sendall(b"!")
                kind = client.recv(1)
                if kind == b"s":
                    total = 0
                    while got := client.recv_into(buffer):
                        total += got
                    client.sendall(total.to_bytes(8, "big"))
                elif kind == b"e":
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while got := client.recv_into(buffer):
                        client.sendall(memoryview(buffer)[:got])
            except ConnectionResetError:
                pass  # the way a client of the connection test leaves


@contextmanager
def a_receiver(namespace_fd: int) -> Iterator[None]:
    with netns.socket_in(namespace_fd, socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((RECEIVER, PORT))
        listener.listen(128)
        number = listener.fileno()
        argv = [sys.executable, __file__, "--serve", str(number)]
        process = subprocess.Popen(argv, pass_fds=(number,), stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.communicate()  # which ends its standard input


# --- a host with two workloads -----------------------------------------------------------------------


class Host:
    """``measure`` runs one kind of traffic from the sender to the receiver."""

    def __init__(self, stack: ExitStack) -> None:
        (self._name, self.fd), (_, sender), (_, receiver) = (stack.enter_context(a_namespace()) for _ in range(3))
        netns.run_in(self.fd, lambda: sysctl.apply(forwarding(has_ipv6=False)))
        with RouteSocket(self.fd) as route_socket:
            route_socket.execute(set_link("lo", is_up=True))  # as on every host
        wiring = VethWiring(self.fd)
        stack.callback(wiring.close)
        self._sender = sender
        self.workloads = [
            _wire(wiring, name, namespace_fd, address)
            for name, namespace_fd, address in (("calisend", sender, SENDER), ("calirecv", receiver, RECEIVER))
        ]
        stack.enter_context(a_receiver(receiver))
        to, from_ = (netns.socket_in(fd, socket.AF_INET, socket.SOCK_DGRAM) for fd in (receiver, sender))
        self._to, self._from = stack.enter_context(to), stack.enter_context(from_)
        self._to.bind((RECEIVER, UDP_PORT))
        self._from.connect((RECEIVER, UDP_PORT))

    def track(self) -> None:
        nft("-f", "-", namespace=self._name, stdin=TRACKING)

    def connect(self) -> socket.socket:
        client = netns.socket_in(self._sender, socket.AF_INET, socket.SOCK_STREAM)
        try:
            client.settimeout(10)
            client.connect((RECEIVER, PORT))
            if client.recv(1) != b"!":
                raise RuntimeError("the receiver did not answer")
        except BaseException:
            client.close()
            raise
        return client

    def bytes_a_second(self) -> float:
        with self.connect() as client:
            client.sendall(b"s")
            started = time.perf_counter()
            sent = 0
            while time.perf_counter() - started < WINDOW_S:
                client.sendall(CHUNK)
                sent += len(CHUNK)
            client.shutdown(socket.SHUT_WR)
            received = int.from_bytes(client.recv(8, socket.MSG_WAITALL), "big")
            seconds = time.perf_counter() - started
        if received != sent:
            raise RuntimeError(f"{received} bytes came of {sent}")
        return received / seconds

    def round_trip_s(self) -> float:
        """The median of many."""
        seconds = []
        with self.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(b"e")
            for _ in range(ROUND_TRIPS):
                started = time.perf_counter()
                client.sendall(MESSAGE)
                if client.recv(len(MESSAGE), socket.MSG_WAITALL) != MESSAGE:
                    raise RuntimeError("the echo is another")
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def packet_cpu_s(self) -> float:
        """One way, of an answered flow. The receiver reads none, its queue is full soon."""
        _empty(self._to)
        self._from.send(MESSAGE)
        self._to.settimeout(10)
        self._to.sendto(MESSAGE, self._to.recvfrom(len(MESSAGE))[1])
        self._from.settimeout(10)
        self._from.recv(len(MESSAGE))
        self._from.setblocking(False)
        started = time.thread_time()
        for _ in range(DATAGRAMS):
            self._from.send(MESSAGE)
        return (time.thread_time() - started) / DATAGRAMS

    def connections_a_second(self) -> float:
        """Connect, hear one byte, reset (nothing waits for its end); one after the other, from one thread that
        stands in the sender's namespace."""
        return netns.run_in(self._sender, self._connect_for_a_while)

    def _connect_for_a_while(self) -> float:
        started = time.perf_counter()
        count = 0
        while (seconds := time.perf_counter() - started) < WINDOW_S:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(10)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                client.connect((RECEIVER, PORT))
                if client.recv(1) != b"!":
                    raise RuntimeError("the receiver did not answer")
            count += 1
        return count / seconds


def _empty(queue: socket.socket) -> None:
    queue.setblocking(False)
    with suppress(BlockingIOError):
        while queue.recv(len(MESSAGE)):
            pass


def _wire(wiring: VethWiring, name: str, namespace_fd: int, address: str) -> HostWorkload:
    net = IPNetwork(f"{address}/32")
    wired = wiring.attach(
        WiringRequest(
            interface=name, container_interface="eth0", namespace_fd=namespace_fd, namespace=name, addresses=(net,)
        )
    )
    key = WorkloadEndpointKey("host", "bench", name, "eth0")
    return HostWorkload(key=key, interface=name, is_active=True, mac=wired.mac, nets=(net,))


# --- its policies ------------------------------------------------------------------------------------


def policy_id(number: int) -> RulesId:
    return RulesId(f"policy/default/p-{number}")


def a_policy(number: int, *, allows: bool) -> HostRules:
    """TCP from a set nobody measured is in, to a port of its own; the last rule of one that allows takes all."""
    rules = [from_set((RULES_EACH * number + rule) % SETS, 1000 + rule, "allow") for rule in range(RULES_EACH)]
    return HostRules(id=policy_id(number), inbound=(*rules[:-1], ALLOW) if allows else tuple(rules))


def listing(numbers: range) -> PolicyList:
    if not numbers:
        return PolicyList(profiles=(OPEN,))
    return one_tier(map(policy_id, numbers), OPEN)


def others(endpoints: int, policies: int) -> Iterator[HostWorkload]:
    """Each policy applies to one of them at least."""
    each = max(1, policies // endpoints)
    for number in range(endpoints):
        first = number * each % policies
        inbound = listing(range(first, min(first + each, policies)))
        yield a_workload(number, inbound=inbound, outbound=listing(range(0)), first=FIRST_OTHER)


def state_of(host: Host, shape: str, endpoints: int, policies: int) -> HostChanges:
    applied = range(min(APPLIED, policies) if shape == "receiver" else 0)
    sender, receiver = host.workloads
    return HostChanges(
        is_complete=True,
        sets=new_sets(SETS, MEMBERS),
        rules=(
            HostRules(id=OPEN, inbound=(ALLOW,), outbound=(ALLOW,)),
            *(a_policy(number, allows=number == applied.stop - 1) for number in range(policies)),
        ),
        workloads=(
            _with_lists(sender, inbound=range(0)),
            _with_lists(receiver, inbound=applied),
            *others(endpoints, policies),
        ),
    )


def _with_lists(workload: HostWorkload, *, inbound: range) -> HostWorkload:
    return msgspec.structs.replace(workload, inbound=listing(inbound), outbound=listing(range(0)))


# --- the comparison ----------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[Host], float], bool]] = {
    "bytes_a_second": (Host.bytes_a_second, True),
    "round_trip_s": (Host.round_trip_s, False),
    "packet_cpu_s": (Host.packet_cpu_s, False),
    "connections_a_second": (Host.connections_a_second, True),
}
"""How to measure, and whether more is better."""


def compare(hosts: dict[str, Host], rounds: int) -> dict[str, dict[str, float]]:
    """By kind of traffic: the medians of all hosts, and how the one named "policy" stands to each of the others, round
    by round; above 1 it is the faster."""
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in hosts} for kind in KINDS}
    for turn in range(-1, rounds):  # the first round warms up
        for kind, (measure, _) in KINDS.items():
            for name in hosts if turn % 2 else reversed(hosts):
                value = measure(hosts[name])
                if turn >= 0:
                    found[kind][name].append(value)
    return {kind: _compared(values, more_is_better=KINDS[kind][1]) for kind, values in found.items()}


def _compared(values: dict[str, list[float]], *, more_is_better: bool) -> dict[str, float]:
    compared = {name: _rounded(statistics.median(each)) for name, each in values.items()}
    best = max if more_is_better else min
    for name, others in values.items():
        if name == "policy":
            continue
        pairs = [(best(values["policy"]), best(others)), *zip(values["policy"], others, strict=True)]
        at_best, *ratios = [a / b if more_is_better else b / a for a, b in pairs]
        compared[f"to_{name}"] = round(statistics.median(ratios), 3)
        compared[f"to_{name}_at_best"] = round(at_best, 3)
    return compared


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def run(shape: str, endpoints: int, policies: int, rounds: int) -> None:
    before = yardsticks.measure()
    with ExitStack() as stack:
        judged, tracked, bare = (Host(stack) for _ in range(3))
        twins = compare({"policy": judged, "bare": bare}, max(3, rounds // 3))
        tracked.track()
        dataplane = NftablesDataplane(DataplaneOptions(is_ipv6_enabled=False), judged.fd)
        stack.callback(dataplane.close)
        dataplane.ensure_closed()
        report = dataplane.apply(state_of(judged, shape, endpoints, policies))
        if report.failures:
            raise RuntimeError(f"refused: {report.failures[:3]}")
        compared = compare({"policy": judged, "tracked": tracked, "bare": bare}, rounds)
    yardsticks.report(
        f"throughput-{shape}", endpoints=endpoints, policies=policies, n=rounds, **compared,
        twins={kind: values["to_bare"] for kind, values in twins.items()},
        **yardsticks.ends(before),
    )  # fmt: skip


def _what(text: str) -> str | tuple[int, int]:
    """A type of arguments: a shape, or a size."""
    if text in SHAPES:
        return text
    endpoints, _, policies = text.partition("x")
    try:
        return positive(endpoints), positive(policies)
    except argparse.ArgumentTypeError:
        reason = f"{text!r} is neither {', '.join(SHAPES)} nor ENDPOINTSxPOLICIES"
        raise argparse.ArgumentTypeError(reason) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "what", nargs="*", type=_what, help="others, receiver (default: both), 100x1000 (default: all sizes)"
    )
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--serve", type=int, metavar="FD", help="be the receiver, on this listening socket")
    given = parser.parse_args()
    if given.serve is not None:
        serve(socket.socket(fileno=given.serve))
        return
    require_root(parser)
    shapes = [each for each in given.what if isinstance(each, str)] or SHAPES
    sizes = [each for each in given.what if not isinstance(each, str)]
    for shape in shapes:
        for endpoints, policies in sizes or itertools.product(ENDPOINTS, POLICIES):
            run(shape, endpoints, policies, given.rounds)


if __name__ == "__main__":
    main()
