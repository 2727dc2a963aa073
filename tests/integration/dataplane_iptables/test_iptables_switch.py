"""From one driver to the other under traffic: what policy permits goes on, what it denies never passes."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from netaddr import IPAddress

from calico_core.dataplane.iptables import removal
from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.errors import ToolFailed
from calico_core.interfaces.dataplane import is_whole_policy
from calico_core.model.hoststate import (
    HostChanges,
    HostInterface,
    HostNat,
    HostRule,
    HostRules,
    PolicyList,
    PortMember,
    PortSetChange,
    RulesId,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import HostEndpointKey
from tests.integration.dataplane_nftables.conftest import ANY

if TYPE_CHECKING:
    from calico_core.interfaces.dataplane import Dataplane

pytestmark = pytest.mark.needs_root

_EACH_S = 0.001
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; without it the machine's own limit holds
PORT = 4000


class Flow:
    """Numbered packets of many connections, one a millisecond, and those that arrived."""

    def __init__(
        self, stack: contextlib.ExitStack, sender: Any, receiver: Any, address: str = "", port: int = PORT
    ) -> None:
        self.listener = stack.enter_context(receiver.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 23)  # it is read at the end only
        self.listener.bind(("0.0.0.0", port))
        self.listener.settimeout(0.5)
        self._sender, self._to = sender, (address or receiver.v4, port)
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()
        stack.callback(self.finish)

    def _send(self) -> None:
        """A socket for each packet, so that each is a connection that policy decides."""
        while not self._stop.is_set():
            with self._sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.sendto(self.sent.to_bytes(4, "big"), self._to)
            self.sent += 1
            time.sleep(_EACH_S)

    def finish(self) -> set[int]:
        """The numbers that arrived."""
        self._stop.set()
        self._thread.join()
        arrived: set[int] = set()
        with contextlib.suppress(TimeoutError):
            while True:
                arrived.add(int.from_bytes(self.listener.recv(16), "big"))
        return arrived


def _wait_for(flows: list[Flow], more: int = 50) -> None:
    wanted = [flow.sent + more for flow in flows]
    deadline = time.monotonic() + 30
    while any(flow.sent < each for flow, each in zip(flows, wanted, strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def nftables(lab: Any) -> Dataplane:
    return NftablesDataplane(lab.options, lab.host.fd)


def has_ours(lab: Any) -> bool:
    return "table inet calico" in lab.nft("list", "tables")


def test_switch_and_back_without_a_gap(lab: Any) -> None:
    far = lab.outside()
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    for network in ("10.65.0.0/16", "198.51.100.0/24"):
        far.run("ip", "route", "add", network, "via", "192.0.2.1")
    state = everything(a, b, c)

    with contextlib.closing(nftables(lab)) as first:
        assert first.apply(state).is_clean
        assert b.reaches(a.v4, 80)
        with contextlib.ExitStack() as stack:
            permitted = [
                Flow(stack, b, a),
                Flow(stack, far, a, "198.51.100.5", PORT + 2),
                Flow(stack, far, lab.host, "192.0.2.1"),
            ]
            denied = [Flow(stack, b, c), Flow(stack, far, lab.host, "192.0.2.1", PORT + 1)]
            flows = [*permitted, *denied]
            _wait_for(flows)
            for _ in itertools.repeat(None, 2):
                report = lab.dataplane.apply(state)
                assert report.is_clean
                assert not has_ours(lab), "what the other left is gone once policy stands"
                _wait_for(flows)
                with contextlib.closing(nftables(lab)) as second:
                    assert second.apply(state).is_clean
                    assert "calico-" not in lab.save()
                    assert "calico-" not in lab.save(family=6)
                    assert lab.ipset("save") == ""
                    _wait_for(flows)
                # as the runtime does, each driver starts from what stands
                lab.restart()
            for number, flow in enumerate(permitted):
                arrived = flow.finish()
                assert flow.sent > 200
                assert set(range(flow.sent)) - arrived == set(), number
            assert [flow.finish() for flow in denied] == [set(), set()]


def everything(a: Any, b: Any, c: Any) -> HostChanges:
    """``a`` has a floating address and a port by name; ``c`` is closed; so is the host but for one port."""
    host, web = RulesId("policy/default/host"), SetId("npt-00000000000000aa")
    allow = HostRule(action="allow")
    by_name = HostRule(action="allow", dst_port_sets=(web,))
    to_host = HostRule(action="allow", protocol=17, dst_ports=((PORT, PORT),))
    named = PolicyList(profiles=(RulesId("profile/named"),))
    ports = ((17, PORT), (17, PORT + 2), (6, 80))
    members = frozenset(PortMember(4, int(IPAddress(a.v4)), protocol, port) for protocol, port in ports)
    nat = HostNat(internal=IPAddress(a.v4), external=IPAddress("198.51.100.5"))
    return HostChanges(
        is_complete=True,
        port_sets=(PortSetChange(id=web, is_new=True, added=members),),
        rules=(
            HostRules(id=ANY, inbound=(allow,), outbound=(allow,)),
            HostRules(id=RulesId("profile/named"), inbound=(by_name,)),
            HostRules(id=host, inbound=(to_host,), outbound=(allow,)),
        ),
        workloads=(
            msgspec.structs.replace(a.endpoint(inbound=named), nats=(nat,)),
            b.endpoint(),
            c.endpoint(inbound=PolicyList()),
        ),
        interfaces=(
            HostInterface(
                key=HostEndpointKey(host="h", endpoint="up0"),
                interface="up0",
                inbound=PolicyList(tiers=(TierPolicies(tier="default", policies=(host,)),)),
                outbound=PolicyList(tiers=(TierPolicies(tier="default", policies=(host,)),)),
            ),
        ),
    )


def test_the_other_kind_stays_until_policy_is_in_force(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a = lab.workload()
    with contextlib.closing(nftables(lab)) as first:
        state = HostChanges(is_complete=True, workloads=(a.endpoint(PolicyList(), PolicyList()),))
        assert first.apply(state).is_clean
    with monkeypatch.context() as broken:
        broken.setenv("PATH", "/nonexistent")
        report = lab.dataplane.apply(state)
        assert [is_whole_policy(failure.subject) for failure in report.failures] == [True]
        monkeypatch.undo()
    assert has_ours(lab)
    assert lab.dataplane.apply(state).is_clean
    assert not has_ours(lab)


def test_a_start_touches_nothing_while_policy_of_the_other_kind_stands(lab: Any) -> None:
    a = lab.workload()
    state = HostChanges(is_complete=True, workloads=(a.endpoint(PolicyList(), PolicyList()),))
    assert lab.dataplane.apply(state).is_clean
    with contextlib.closing(nftables(lab)) as second:
        second.ensure_closed()
        assert not has_ours(lab)
        assert second.apply(state).is_clean
    before = lab.save()
    lab.restart()
    lab.dataplane.ensure_closed()
    assert has_ours(lab)
    assert ":calico-" not in lab.save()
    assert ":calico-" not in before


def test_who_cannot_tell_whether_the_other_kind_stands_closes(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_refused(_: NftablesDataplane) -> bool:
        raise ToolFailed(("iptables-save",), 1, "Permission denied")

    monkeypatch.setattr(NftablesDataplane, "_other_kind_stands", is_refused)
    with contextlib.closing(nftables(lab)) as first:
        first.ensure_closed()
    assert has_ours(lab)


OLD = """*filter
:felix-FORWARD - [0:0]
:felix-to-1 - [0:0]
:cali-FORWARD - [0:0]
:cali-tw-cali1 - [0:0]
:DOCKER - [0:0]
-A FORWARD -j felix-FORWARD
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A FORWARD -m comment --comment "not of cali" -j DOCKER
-A felix-FORWARD -m set --match-set felix-v4-a src -g felix-to-1
-A cali-FORWARD -m set --match-set cali40s:abc src -j cali-tw-cali1
-A DOCKER -j RETURN
COMMIT
"""


def test_what_the_reference_agents_left_is_removed(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    for name in ("felix-v4-a", "cali40s:abc", "theirs"):
        lab.ipset("create", name, "hash:ip")
    lab.host.run(f"iptables-{lab.backend}-restore", "--noflush", stdin=OLD)
    lab.host.run(f"iptables-{lab.backend}-restore", "--noflush", stdin="*nat\n:felix-PREROUTING - [0:0]\nCOMMIT\n")
    lab.start(a.endpoint(), b.endpoint())
    removed = IptablesDataplane.remove_reference(lab.host.fd)
    assert len(removed) == 7
    assert f"chain felix-FORWARD of filter (IPv4, {lab.backend})" in removed
    assert "set cali40s:abc" in removed
    saved = lab.save()
    assert "felix" not in saved
    assert "cali-" not in saved
    assert '-A FORWARD -m comment --comment "not of cali" -j DOCKER' in saved
    assert lab.ipset("list", "-n").split() == ["theirs"]
    assert lab.dataplane.resync().healed == ()
    assert b.reaches(a.v4, 80)
    assert IptablesDataplane.remove_reference(lab.host.fd) == ()


def test_the_other_backend_is_cleaned_too(lab: Any) -> None:
    a = lab.workload()
    lab.start(a.endpoint())
    removal.remove_ours(lab.host.fd)
    removal.remove_ours(lab.host.fd)
    assert "calico-" not in lab.save()
    assert "calico-" not in lab.save(family=6)
    assert lab.ipset("save") == ""
    assert set(lab.dataplane.wiring().routes(a.interface)) == set(a.nets), "routes are the other driver's now"
