"""A host and workloads in fresh network namespaces, wired by the real wiring, and probes with real packets."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.dataplane.linux import netns
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.interfaces.dataplane import ApplyReport, DataplaneOptions
from calico_core.model.hoststate import (
    AddressSet,
    HostChanges,
    HostRule,
    HostRules,
    HostWorkload,
    PolicyList,
    RulesId,
    SetChange,
    SetId,
)
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import WiringRequest

_numbers = itertools.count()
DENIED_S = 0.4
ALLOWED_S = 4.0
ANY = RulesId("profile/any")
OPEN = PolicyList(profiles=(ANY,))
ALLOW = HostRule(action="allow")


def patience_s(*, is_allowed: bool) -> float:
    """For a packet: a busy machine may take its time over what must come; what must not is not waited for as long."""
    return ALLOWED_S if is_allowed else DENIED_S


class Namespace:
    def __init__(self) -> None:
        self.name = f"nfd-{os.getpid()}-{next(_numbers)}"
        self.fd = netns.open_namespace(str(netns.create_namespace(self.name)))

    def close(self) -> None:
        os.close(self.fd)
        netns.delete_namespace(self.name)

    def run(self, *argv: str, stdin: str | None = None) -> str:
        command = ["ip", "netns", "exec", self.name, *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin).stdout

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return netns.socket_in(self.fd, family, kind, protocol)

    def is_blocked_from(self, address: str, port: int) -> bool:
        """No answer within the time a busy machine needs for one."""
        return not self.reaches(address, port, within_s=DENIED_S)

    def reaches(
        self, address: str, port: int, source: tuple[str, int] | None = None, within_s: float = ALLOWED_S
    ) -> bool:
        """By TCP; a refusal is an answer."""
        with self.socket(_family(address), socket.SOCK_STREAM) as client:
            client.settimeout(within_s)
            if source is not None:
                client.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
                client.bind(source)
            try:
                client.connect((address, port))
            except ConnectionRefusedError:
                return True
            except OSError as error:
                if isinstance(error, TimeoutError) or error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                    return False
                raise
            return True

    def pings(self, address: str, kind: int = 8, within_s: float = ALLOWED_S) -> bool:
        """By one ICMP request of the type; the types 8 and 13 are answered."""
        with self.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as probe:
            probe.settimeout(within_s)
            body = struct.pack("!BBHHH", kind, 0, 0, 7, 7) + bytes(12)
            total = sum(struct.unpack(f"!{len(body) // 2}H", body))
            checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            probe.sendto(body[:2] + struct.pack("!H", checksum) + body[4:], (address, 0))
            answer = {8: 0, 13: 14}[kind]
            with contextlib.suppress(TimeoutError):
                while probe.recv(2048)[20] != answer:
                    pass
                return True
            return False


class Workload(Namespace):
    """A container: its endpoint, as the datastore would have it, and its namespace."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.interface = f"cali{number}"
        self.v4, self.v6 = f"10.65.0.{number}", f"fd65::{number:x}"
        self.mac = EUI(0x02_00_00_00_00_00 + number)
        self.nets = (IPNetwork(f"{self.v4}/32"), IPNetwork(f"{self.v6}/128"))
        self.key = WorkloadEndpointKey(host="h", orchestrator="test", workload=f"w{number}", endpoint="eth0")

    def endpoint(
        self, inbound: PolicyList = OPEN, outbound: PolicyList = OPEN, *, is_active: bool = True
    ) -> HostWorkload:
        return HostWorkload(
            key=self.key,
            interface=self.interface,
            is_active=is_active,
            mac=self.mac,
            nets=self.nets,
            inbound=inbound,
            outbound=outbound,
        )


class Lab:
    """One host. ``dataplane`` may be closed and opened again as a restarted agent would."""

    def __init__(self, stack: contextlib.ExitStack, options: DataplaneOptions) -> None:
        self._stack = stack
        self.options = options
        self.host = self.namespace()
        self.host.run("ip", "link", "set", "lo", "up")
        self.dataplane = NftablesDataplane(options, self.host.fd)
        stack.callback(self._close)
        self._count = 0

    def _close(self) -> None:
        """Of the one that is open by then."""
        self.dataplane.close()

    def namespace(self) -> Namespace:
        made = Namespace()
        self._stack.callback(made.close)
        return made

    def workload(self) -> Workload:
        """A container with its interface made."""
        made = self.unwired()
        self.wire(made)
        return made

    def unwired(self) -> Workload:
        self._count += 1
        made = Workload(self._count)
        self._stack.callback(made.close)
        return made

    def wire(self, workload: Workload) -> None:
        request = WiringRequest(
            interface=workload.interface,
            container_interface="eth0",
            namespace_fd=workload.fd,
            namespace=workload.name,
            addresses=workload.nets,
            mac=workload.mac,
        )
        self.dataplane.wiring().attach(request)

    def outside(self) -> Namespace:
        """A neighbour of the host: 192.0.2.2 and 2001:db8::2, which has no route to the workloads."""
        made = self.namespace()
        self.host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", made.name)
        for each, last in ((self.host, 1), (made, 2)):
            each.run("ip", "address", "add", f"192.0.2.{last}/24", "dev", "up0")
            each.run("ip", "address", "add", f"2001:db8::{last}/64", "dev", "up0", "nodad")
            each.run("ip", "link", "set", "up0", "up")
        return made

    def restart(self) -> None:
        self.dataplane.close()
        self.dataplane = NftablesDataplane(self.options, self.host.fd)

    def apply(self, **changes: object) -> ApplyReport:
        return self.dataplane.apply(HostChanges(**changes))  # type: ignore[arg-type]

    def start(self, *workloads: HostWorkload, **more: object) -> ApplyReport:
        """The first batch, with a profile that allows everything."""
        rules = (rules_of(ANY, (ALLOW,)), *more.pop("rules", ()))  # type: ignore[misc]
        return self.apply(is_complete=True, rules=rules, workloads=workloads, **more)

    def nft(self, *argv: str) -> str:
        return self.host.run("nft", *argv)

    def handles(self) -> dict[str, list[str]]:
        """Rules of our table by chain, each as its handle."""
        found: dict[str, list[str]] = {}
        chain = ""
        for line in self.nft("-a", "list", "table", "inet", "calico").splitlines():
            if line.strip().startswith("chain "):
                chain = line.split()[1]
            elif "# handle" in line and chain and "hook" not in line:
                found.setdefault(chain, []).append(line.rpartition(" ")[2])
        return found


def rules_of(rules_id: str, inbound: tuple[HostRule, ...] = (), outbound: tuple[HostRule, ...] = (ALLOW,)) -> HostRules:
    return HostRules(id=RulesId(rules_id), inbound=inbound, outbound=outbound)


def a_set(set_id: str, *members: str) -> SetChange:
    return SetChange(id=SetId(set_id), is_new=True, added=AddressSet.of([IPNetwork(each) for each in members]))


def _family(address: str) -> int:
    return socket.AF_INET if IPAddress(address).version == 4 else socket.AF_INET6


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    with contextlib.ExitStack() as stack:

        def make(**options: object) -> Lab:
            return Lab(stack, DataplaneOptions(**options))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab()
