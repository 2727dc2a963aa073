"""What somebody else does to the kernel is repaired within one refresh, and the log names it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe, probe_until
from calico_core.lab.tcp_stream import TcpStream
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests.e2e.observing import MakeLab

pytestmark = pytest.mark.needs_root
REFRESH_S = 1.0
_WAIT_S = 30.0


class Bench:
    """Two that may talk and one that may not; the node refreshes each second."""

    def __init__(self, lab: Laboratory, driver: str) -> None:
        self.driver, self.host = driver, lab.hosts[0]
        settings = {"CALICO_DATAPLANE_DRIVER": driver, "FELIX_IPTABLESREFRESHINTERVAL": str(REFRESH_S)}
        self.host.start_node(environment=settings, timeout_s=60)
        self.host.install_cni()
        self.first, self.second, self.stranger = (lab.add_workload(self.host) for _ in range(3))
        for workload, network in ((self.first, "net1"), (self.second, "net1"), (self.stranger, "other")):
            workload.attach(network=network)
        self.holds()

    def holds(self) -> None:
        """Policy is as it should be."""
        assert probe_until(self.second, self.first, "tcp", is_reachable=True, within_s=_WAIT_S).is_reachable
        assert not probe(self.stranger, self.first, "tcp", timeout_s=0.3).is_reachable

    def repairs(self, damage: Callable[[], None], *named: str) -> None:
        """Do it; wait until the log has all the names, and see that policy stands."""
        self.names(damage, *named)
        self.holds()

    def names(self, damage: Callable[[], None], *named: str) -> None:
        """Do it; wait until the log has all the names."""
        start = self.host.node_log.stat().st_size
        damage()
        deadline = time.monotonic() + _WAIT_S
        while missing := [each for each in named if each not in self._healed_since(start)]:
            assert time.monotonic() < deadline, f"not named as healed: {missing}"
            time.sleep(0.05)

    def run(self, *argv: str, stdin: str = "") -> None:
        self.host.run(argv, stdin=stdin)

    def _healed_since(self, offset: int) -> str:
        with self.host.node_log.open("rb") as file:
            file.seek(offset)
            lines = file.read().decode().splitlines()
        return "\n".join(line for line in lines if "dataplane.healed" in line)


@pytest.fixture(params=["nftables", "iptables"])
def bench(request: pytest.FixtureRequest, make_lab: MakeLab) -> Bench:
    return Bench(make_lab(1, nodes=False), request.param)


def test_rules_and_routes(bench: Bench) -> None:
    """The whole ruleset, one jump, one element or set, one route."""
    address, interface = str(bench.first.addresses[0]), _interface(bench.host, bench.first)
    if bench.driver == "nftables":
        bench.repairs(lambda: bench.run("nft", "flush", "ruleset"), "table inet calico")
        element = f"{{ {interface} }}"
        bench.repairs(lambda: bench.run("nft", "delete", "element", "inet", "calico", "wl_to", element), "set wl_to")
        bench.repairs(lambda: bench.run("nft", "flush", "chain", "inet", "calico", "forward"), "chain forward")
    else:
        foreign = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
        bench.repairs(lambda: bench.run("iptables-restore", stdin=foreign), "jumps of FORWARD (IPv4 filter)")
        bench.repairs(lambda: bench.run("iptables", "-F", "FORWARD"), "jumps of FORWARD (IPv4 filter)")
        bench.repairs(lambda: bench.run("ipset", "flush"), "set calico-4h-")
    bench.repairs(lambda: bench.run("ip", "route", "del", f"{address}/32"), f"route {address}/32")


def test_connections_that_are_permitted_outlive_a_flush_of_connection_tracking(bench: Bench) -> None:
    with TcpStream(bench.second, bench.first) as stream:
        _await_more(stream)
        bench.run("conntrack", "-F")
        _await_more(stream)
        report = stream.stop()
    assert (report.error, report.retransmits) == ("", 0)
    bench.holds()


def test_an_interface_that_is_renamed_and_gets_its_name_back(bench: Bench) -> None:
    """Under another name it is nobody's and closed; under its own it has all it had. The log names it both times."""
    name = _interface(bench.host, bench.first)

    def rename(old: str, new: str) -> None:
        bench.run("ip", "link", "set", old, "down")
        bench.run("ip", "link", "set", old, "name", new)
        bench.run("ip", "link", "set", new, "up")

    bench.names(lambda: rename(name, "calistranger"), f"interface {name}: it was renamed calistranger")
    assert not probe(bench.second, bench.first, "tcp", timeout_s=0.5).is_reachable
    bench.repairs(lambda: rename("calistranger", name), f"interface {name}")


def _interface(host: LabHost, workload: LabWorkload) -> str:
    """The host's end."""
    route = host.run(["ip", "-o", "route", "show", f"{workload.addresses[0]}/32"]).stdout.split()
    return route[route.index("dev") + 1]


def _await_more(stream: TcpStream) -> None:
    goal, deadline = stream.report().bytes_arrived + 20_000, time.monotonic() + _WAIT_S
    while stream.report().bytes_arrived < goal:
        assert time.monotonic() < deadline, stream.report()
        time.sleep(0.01)
