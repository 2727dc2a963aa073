"""A node that is restarted again and again under traffic: nothing permitted is lost, nothing denied passes.

``nox -s restarts -- --count N [--dataplane nftables|iptables] [--ways WAY …]``. Its last line is ``N restarts,
L lost, W wrongly passed``; it exits with 1 unless both are 0. The ways to restart are taken in turn:

- **clean**: SIGTERM, then start;
- **kill**: SIGKILL, then start;
- **anew**: ``calicoctl node restart``, the process stays;
- **upgrade**: start with a setting that changes the fixed part of the table, as another version's table would;
- **driver**: start with the other dataplane driver.

Meanwhile, at 1 kHz each and for IPv4 and IPv6: datagrams from a workload that may send them, never answered, so that
every one is new to connection tracking and judged by policy, and the same from one that may not; an answered stream;
and one TCP connection whose retransmissions count as lost.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Self

from calico_core.lab.flood import Flood
from calico_core.lab.probes import probe_until
from calico_core.lab.stream import Stream
from calico_core.lab.tcp_stream import TcpStream
from calico_core.lab.topology import Laboratory
from tests.command_line import positive, require_root

if TYPE_CHECKING:
    from calico_core.lab.host import LabHost
    from calico_core.lab.workload import LabWorkload

WAYS = ("clean", "kill", "anew", "upgrade", "driver")
_OTHER = {"nftables": "iptables", "iptables": "nftables"}
_BOTH_FAMILIES = {"ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}}
_SENT_BETWEEN = 300
_PATIENCE_S = 60.0


class Result(NamedTuple):
    restarts: int
    ways: Counter[str]
    sent: int
    losses: dict[str, int]
    forbidden: int
    wrongly_passed: int
    tcp_bytes: int
    seconds: float

    @property
    def lost(self) -> int:
        return sum(self.losses.values())

    @property
    def last_line(self) -> str:
        return f"{self.restarts} restarts, {self.lost} lost, {self.wrongly_passed} wrongly passed"


class Traffic:
    """Between three workloads: the first two may talk, the stranger may not."""

    def __init__(self, first: LabWorkload, second: LabWorkload, stranger: LabWorkload) -> None:
        self._permitted = [Flood(second, first, ip_version=version) for version in (4, 6)]
        self._forbidden = [Flood(stranger, first, ip_version=version) for version in (4, 6)]
        self._forbidden += [Flood(first, stranger, ip_version=4)]
        self._answered = [Stream(second, first, "udp", interval_s=0.001, ip_version=version) for version in (4, 6)]
        self._tcp = TcpStream(first, second)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for each in (*self._permitted, *self._forbidden, *self._answered, self._tcp):
                stack.enter_context(each)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def await_more(self) -> None:
        """Until every flood has sent some hundred packets more."""
        floods = [*self._permitted, *self._forbidden]
        goals = [flood.report().sent + _SENT_BETWEEN for flood in floods]
        deadline = time.monotonic() + _PATIENCE_S
        while any(flood.report().sent < goal for flood, goal in zip(floods, goals, strict=True)):
            if time.monotonic() > deadline:
                raise TimeoutError("the floods do not go on")
            time.sleep(0.005)

    def stop(self, restarts: int, ways: Counter[str], seconds: float) -> Result:
        permitted = [flood.stop() for flood in self._permitted]
        answered = [stream.stop() for stream in self._answered]
        forbidden = [flood.stop() for flood in self._forbidden]
        tcp = self._tcp.stop()
        losses = {f"one way IPv{n}": flood.sent - flood.arrived for n, flood in zip((4, 6), permitted, strict=True)}
        losses |= {f"answered IPv{n}": stream.lost for n, stream in zip((4, 6), answered, strict=True)}
        losses |= {"TCP retransmissions": tcp.retransmits, "TCP connections": 1 if tcp.error else 0}
        return Result(
            restarts=restarts,
            ways=ways,
            sent=sum(flood.sent for flood in permitted) + sum(stream.sent for stream in answered),
            losses=losses,
            forbidden=sum(flood.sent for flood in forbidden),
            wrongly_passed=sum(flood.arrived for flood in forbidden),
            tcp_bytes=tcp.bytes_arrived,
            seconds=seconds,
        )


class Restarter:
    """Knows how the node was started last."""

    def __init__(self, host: LabHost, dataplane: str) -> None:
        self._host, self._dataplane = host, dataplane
        self._actions = itertools.cycle(("ACCEPT", "RETURN"))
        self._action = "RETURN"

    def start(self) -> None:
        self._host.start_node(
            environment={
                "CALICO_DATAPLANE_DRIVER": self._dataplane,
                "FELIX_DEFAULTENDPOINTTOHOSTACTION": self._action,
            },
            timeout_s=_PATIENCE_S,
        )

    def restart(self, way: str) -> None:
        if way == "anew":
            self._host.calicoctl("node", "restart", timeout_s=_PATIENCE_S)
            return
        if way == "kill":
            self._host.kill_node()
        else:
            self._host.stop_node()
        if way == "upgrade":
            self._action = next(self._actions)
        if way == "driver":
            self._dataplane = _OTHER[self._dataplane]
        self.start()


def run(*, count: int, dataplane: str, ways: tuple[str, ...] = WAYS) -> Result:
    lab = Laboratory.create(f"restarts{os.getpid() % 100000}", 1, routing="none", ipv6=True)
    with lab:
        host = lab.hosts[0]
        restarter = Restarter(host, dataplane)
        restarter.start()
        host.install_cni()
        workloads = [lab.add_workload(host) for _ in range(3)]
        for workload, network in zip(workloads, ("net1", "net1", "other"), strict=True):
            workload.attach(network=network, config=_BOTH_FAMILIES)
        for version in (4, 6):
            found = probe_until(workloads[0], workloads[1], "tcp", is_reachable=True, within_s=30, ip_version=version)
            assert found.is_reachable, found
        done: Counter[str] = Counter()
        with Traffic(*workloads) as traffic:
            started = time.monotonic()
            for way in itertools.islice(itertools.cycle(ways), count):
                traffic.await_more()
                restarter.restart(way)
                traffic.await_more()
                done[way] += 1
            return traffic.stop(count, done, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(prog="restarts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=positive, default=20)
    parser.add_argument("--dataplane", choices=sorted(_OTHER), default="nftables", help="the one to begin with")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    chosen = parser.parse_args()
    require_root(parser)
    result = run(count=chosen.count, dataplane=chosen.dataplane, ways=tuple(chosen.ways))
    print(", ".join(f"{count} × {way}" for way, count in result.ways.items()), f"in {result.seconds:.0f} s")
    print(f"permitted: {result.sent} packets; forbidden: {result.forbidden}")
    print(
        f"TCP: {result.tcp_bytes} bytes; lost: {', '.join(f'{count} {kind}' for kind, count in result.losses.items())}"
    )
    print(result.last_line)
    return 1 if result.lost or result.wrongly_passed else 0


if __name__ == "__main__":
    sys.exit(main())
