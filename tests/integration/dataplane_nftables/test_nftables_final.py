"""What untracked or pre-DNAT policy allows inbound is final at that interface, and nowhere else. Both drivers pass
all of it."""

from __future__ import annotations

import itertools
import select
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import pytest
from netaddr import IPAddress

from calico_core.model.hoststate import HostChanges, HostRule, HostRules, HostState, PolicyList, RulesId, TierPolicies
from calico_core.policy.explain import Packet, explain_side
from calico_core.policy.explain_host import explain_interface
from tests.integration.dataplane_nftables.conftest import ALLOWED_S, DENIED_S
from tests.integration.dataplane_nftables.test_nftables_hosts import HOST, NEIGHBOUR, endpoint, host, tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_root

__all__ = ["host"]

UDP = 17
OTHER = "203.0.113.2"
#: What each list says of a packet: a digit of its port's number.
SAYS: dict[str, tuple[str, ...]] = {
    "untracked": ("", "allow", "deny"),
    "pre_dnat": ("", "allow", "deny"),
    "last": ("allow", "deny"),
    "workload": ("allow", "deny"),
}
PORTS = {30000 + number: words for number, words in enumerate(itertools.product(*SAYS.values()))}


def a_list(name: str, default_action: Literal["deny", "pass"] = "deny") -> PolicyList:
    ids = (RulesId(f"policy/default/{name}"),)
    return PolicyList(tiers=(TierPolicies(tier="default", policies=ids, default_action=default_action),))


def early_lists(hooks: tuple[str, ...]) -> dict[str, Any]:
    """As policy calculation makes them: what no rule decides goes on."""
    fields = {"untracked": "untracked_inbound", "pre_dnat": "pre_dnat"}
    return {fields[hook]: a_list(hook, "pass") for hook in hooks}


def rules(name: str, *inbound: HostRule, outbound: tuple[HostRule, ...] = ()) -> HostRules:
    return HostRules(id=RulesId(f"policy/default/{name}"), inbound=inbound, outbound=outbound)


def udp(action: Any, *ports: int) -> HostRule:
    return HostRule(action=action, protocol=UDP, dst_ports=tuple((port, port) for port in ports))


def by_ports() -> Iterator[HostRules]:
    """The rules that make true what ``SAYS`` has."""
    for position, name in enumerate(SAYS):
        yield rules(
            name,
            *(
                udp(action, *(port for port, words in PORTS.items() if words[position] == action))
                for action in ("allow", "deny")
            ),
        )


def second_way_out(lab: Any) -> Any:
    """A namespace behind another interface of the host, ``up1``; the neighbour knows the way."""
    other = lab.namespace()
    lab.host.run("ip", "link", "add", "up1", "type", "veth", "peer", "name", "up1", "netns", other.name)
    for each, address in ((lab.host, "203.0.113.1"), (other, OTHER)):
        each.run("ip", "address", "add", f"{address}/24", "dev", "up1")
        each.run("ip", "link", "set", "up1", "up")
    other.run("ip", "route", "add", "192.0.2.0/24", "via", "203.0.113.1")
    lab.neighbour.run("ip", "route", "add", "203.0.113.0/24", "via", HOST)
    return other


def heard(receiver: Any, sender: Any, address: str, ports: set[int], wanted: set[int]) -> set[int]:
    """Of the ports those a datagram arrives at: waits for the wanted ones, and a little for others."""
    arrived: set[int] = set()
    with ExitStack() as stack:
        listeners = {}
        for port in ports:
            listener = stack.enter_context(receiver.socket(socket.AF_INET, socket.SOCK_DGRAM))
            listener.bind((address, port))
            listeners[listener] = port
        sending = stack.enter_context(sender.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for port in sorted(ports):
            sending.sendto(b"datagram", (address, port))
        while listeners:
            ready, _, _ = select.select([*listeners], [], [], DENIED_S if wanted <= arrived else ALLOWED_S)
            if not ready:
                break
            arrived |= {listeners.pop(each) for each in ready}
    return arrived


@pytest.mark.parametrize("hooks", [(), ("untracked",), ("pre_dnat",), ("untracked", "pre_dnat")], ids="-".join)
def test_packets_do_what_the_evaluator_says(host: Any, hooks: tuple[str, ...]) -> None:
    """Every mixture of what the lists of an interface and of a workload behind it say, to the host and through it."""
    workload = host.workload()
    last: dict[str, Any] = {"inbound": a_list("last"), "forward_inbound": a_list("last")}
    interface = endpoint(**last, **early_lists(hooks))
    changes = {"workloads": (workload.endpoint(a_list("workload"), PolicyList()),), "interfaces": (interface,)}
    state = HostState()
    state.update(HostChanges(is_complete=True, rules=tuple(by_ports()), **changes))  # type: ignore[arg-type]
    report = host.apply(is_complete=True, rules=tuple(by_ports()), **changes)
    assert report.is_clean

    for target, receiver in ((HOST, host.host), (workload.v4, workload)):
        is_forwarded = receiver is workload
        expected = set()
        for port in PORTS:
            packet = Packet(IPAddress(NEIGHBOUR), IPAddress(target), UDP, 40000, port)
            found = explain_interface(state, interface, "inbound", packet, is_forwarded=is_forwarded)
            outcomes = [each.steps[-1].outcome for each in found if each.is_decided]
            if is_forwarded:
                outcomes.append(explain_side(state, changes["workloads"][0], "inbound", packet)[-1].outcome)
            if "deny" not in outcomes:
                expected.add(port)
        assert 0 < len(expected) < len(PORTS)
        arrived = heard(receiver, host.neighbour, target, set(PORTS), expected)
        wrong = {port: PORTS[port] for port in arrived ^ expected}
        assert not wrong, (target, wrong)


@pytest.mark.parametrize("field", ["untracked_inbound", "pre_dnat"])
def test_another_interface_is_asked_all_the_same(host: Any, field: str) -> None:
    """Let in at one, it still has to be let out at the other."""
    other = second_way_out(host)
    early: dict[str, Any] = {field: a_list("early")}
    host.start(
        interfaces=(endpoint(forward_inbound=a_list("shut"), **early), endpoint("up1", forward_outbound=a_list("out"))),
        rules=(rules("early", udp("allow", 90, 91)), rules("shut"), rules("out", outbound=(udp("allow", 90),))),
    )
    assert heard(other, host.neighbour, OTHER, {90, 91, 92}, {90}) == {90}
    host.apply(rules=(rules("out", outbound=(udp("allow", 91, 92),)),))
    assert heard(other, host.neighbour, OTHER, {90, 91, 92}, {91}) == {91}


def test_connection_let_in_before_translation_lives_on(host: Any) -> None:
    """Its answers and later packets belong to it, whatever the lists that were not asked say by then."""
    workload = host.workload()
    shut: dict[str, Any] = {
        field: a_list("shut") for field in ("inbound", "outbound", "forward_inbound", "forward_outbound")
    }
    host.start(
        workload.endpoint(),
        interfaces=(endpoint(pre_dnat=a_list("early"), **shut),),
        rules=(rules("early", tcp(80)), rules("shut")),
    )
    for target, receiver in ((HOST, host.host), (workload.v4, workload)):
        with (
            receiver.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
            host.neighbour.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        ):
            server.bind((target, 80))
            server.listen()
            client.settimeout(ALLOWED_S)
            client.connect((target, 80))
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(ALLOWED_S)
                host.apply(rules=(rules("early", HostRule(action="deny")),))
                client.send(b"question")
                assert accepted.recv(64) == b"question"
                accepted.send(b"answer")
                assert client.recv(64) == b"answer"
        assert host.neighbour.is_blocked_from(target, 80), "no new one"
        host.apply(rules=(rules("early", tcp(80)),))
    assert host.host.is_blocked_from(NEIGHBOUR, 80), "nor one of the host's own"
    assert workload.is_blocked_from(NEIGHBOUR, 80)


@pytest.mark.parametrize("hooks", [(), ("untracked",), ("pre_dnat",), ("untracked", "pre_dnat")], ids="-".join)
def test_mark_that_a_packet_came_with_opens_nothing(host: Any, hooks: tuple[str, ...]) -> None:
    """As what comes out of a tunnel carries the mark of the packet around it; tracked or not, fail-safe port or not."""
    workload = host.workload()
    undecided = (rules(hook, udp("allow", 99)) for hook in hooks)
    shut: dict[str, Any] = {field: a_list("shut") for field in ("inbound", "forward_inbound")}
    # at a hook before all of ours
    host.host.run(
        "nft",
        "add table ip marking; "
        "add chain ip marking first { type filter hook prerouting priority -400; }; "
        "add rule ip marking first iifname up0 meta mark set 0x01000000; "
        "add rule ip marking first iifname up0 udp dport 91 notrack",
    )
    host.start(
        workload.endpoint(),
        interfaces=(endpoint(**shut, **early_lists(hooks)),),
        rules=(*undecided, rules("shut", udp("allow", 98))),
    )
    for target, receiver in ((HOST, host.host), (workload.v4, workload)):
        arrived = heard(receiver, host.neighbour, target, {90, 91, 98}, {98})
        assert arrived == {98}, target
    assert host.neighbour.is_blocked_from(workload.v4, 22), "open to the host alone"
    assert host.neighbour.reaches(HOST, 22)
