"""Small random states of a host, and the batches that lead from one to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from netaddr import EUI, IPAddress, IPNetwork

from calico_core.model.hoststate import (
    ANY_INTERFACE,
    AddressSet,
    HostChanges,
    HostInterface,
    HostNat,
    HostPeers,
    HostPools,
    HostRule,
    HostRules,
    HostState,
    HostWorkload,
    PolicyList,
    PortMember,
    PortSetChange,
    RulesId,
    SetChange,
    SetId,
    TierPolicies,
)
from calico_core.model.keys import HostEndpointKey, WorkloadEndpointKey

if TYPE_CHECKING:
    from collections.abc import Callable

SETS = tuple(SetId(f"tag-000000000000000{n}") for n in range(3))
PORT_SETS = tuple(SetId(f"npt-000000000000000{n}") for n in range(2))
PORT_MEMBERS = tuple(
    PortMember(address.version, int(address), protocol, port)
    for address in (IPAddress("10.0.0.1"), IPAddress("fd00::1"))
    for protocol, port in ((6, 80), (17, 53), (132, 9))
)
INTERFACES = ("up0", "up1", ANY_INTERFACE)
PEERS = (
    HostPeers(),
    HostPeers((IPAddress("192.0.2.1"),), is_ipip=True),
    HostPeers((IPAddress("192.0.2.1"), IPAddress("192.0.2.2"), IPAddress("2001:db8::2")), is_vxlan=True),
)
FLOATING = tuple(IPAddress(text) for text in ("198.51.100.1", "198.51.100.2", "2001:db8:f::1"))
PREFIXES = tuple(IPNetwork(text) for text in ("10.0.0.0/31", "10.0.0.2/32", "0.0.0.0/0", "fd00::/64", "::/0"))
RULES = tuple(RulesId(name) for name in ("profile/a", "policy/default/b", "policy/other/b"))
MEMBERS = tuple(
    IPNetwork(text)
    for text in (
        "10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "fd00::1/128", "fd00::2/128",
        "10.0.0.0/31", "10.0.0.0/8", "fd00::/64", "255.255.255.0/24", "0.0.0.0/0",
    )
)  # fmt: skip
POOLS = (
    HostPools(),
    HostPools(all=(IPNetwork("10.0.0.0/8"),)),
    HostPools(all=(IPNetwork("10.0.0.0/8"), IPNetwork("10.0.0.0/16")), masquerade=(IPNetwork("10.0.0.0/16"),)),
    HostPools(
        all=(IPNetwork("fd00::/48"),),
        masquerade=(IPNetwork("fd00::/48"),),
        hosts=(IPAddress("192.0.2.1"), IPAddress("fd00::9")),
    ),
)


@st.composite
def host_states(draw: Callable[[Any], Any]) -> HostState:
    """Every reference in it leads somewhere."""
    state = HostState()
    for set_id in draw(st.sets(st.sampled_from(SETS))):
        state.sets[set_id] = AddressSet.of(draw(st.sets(st.sampled_from(MEMBERS), max_size=5)))
    for set_id in draw(st.sets(st.sampled_from(PORT_SETS))):
        state.port_sets[set_id] = frozenset(draw(st.sets(st.sampled_from(PORT_MEMBERS), max_size=4)))
    sets, port_sets = (
        st.sets(st.sampled_from(sorted(known)), max_size=2) if known else st.just(set())
        for known in (state.sets, state.port_sets)
    )
    for rules_id in draw(st.sets(st.sampled_from(RULES))):
        rules = [draw(_rules(sets, port_sets)) for _ in range(2)]
        state.rules[rules_id] = HostRules(id=rules_id, inbound=rules[0], outbound=rules[1])
    for number in draw(st.sets(st.integers(1, 4))):
        workload = draw(_workloads(number, sorted(state.rules)))
        state.workloads[workload.key] = workload
    for name in draw(st.sets(st.sampled_from(INTERFACES))):
        state.interfaces[name] = draw(_interfaces(name, sorted(state.rules)))
    state.pools = draw(st.sampled_from(POOLS))
    state.peers = draw(st.sampled_from(PEERS))
    return state


def whole(state: HostState) -> HostChanges:
    """The batch that brings all of a state."""
    return HostChanges(
        is_complete=True,
        sets=tuple(SetChange(id=set_id, is_new=True, added=members) for set_id, members in state.sets.items()),
        port_sets=tuple(PortSetChange(id=each, is_new=True, added=ports) for each, ports in state.port_sets.items()),
        rules=tuple(state.rules.values()),
        workloads=tuple(state.workloads.values()),
        interfaces=tuple(state.interfaces.values()),
        pools=state.pools,
        peers=state.peers,
    )


def step(before: HostState, after: HostState) -> HostChanges:
    """The batch that leads from one state to another."""
    sets: list[SetChange] = []
    for set_id, members in after.sets.items():
        had = before.sets.get(set_id)
        if had is None:
            sets.append(SetChange(id=set_id, is_new=True, added=members))
        elif had != members:
            sets.append(SetChange(id=set_id, added=members - had, removed=had - members))
    port_sets: list[PortSetChange] = []
    for set_id, ports in after.port_sets.items():
        known = before.port_sets.get(set_id)
        if known is None:
            port_sets.append(PortSetChange(id=set_id, is_new=True, added=ports))
        elif known != ports:
            port_sets.append(PortSetChange(id=set_id, added=ports - known, removed=known - ports))
    return HostChanges(
        sets=tuple(sets),
        port_sets=tuple(port_sets),
        rules=tuple(rules for rules in after.rules.values() if before.rules.get(rules.id) != rules),
        workloads=tuple(each for each in after.workloads.values() if before.workloads.get(each.key) != each),
        interfaces=tuple(each for name, each in after.interfaces.items() if before.interfaces.get(name) != each),
        pools=after.pools if after.pools != before.pools else None,
        peers=after.peers if after.peers != before.peers else None,
        removed_sets=tuple(before.sets.keys() - after.sets.keys()),
        removed_port_sets=tuple(before.port_sets.keys() - after.port_sets.keys()),
        removed_rules=tuple(before.rules.keys() - after.rules.keys()),
        removed_workloads=tuple(before.workloads.keys() - after.workloads.keys()),
        removed_interfaces=tuple(before.interfaces.keys() - after.interfaces.keys()),
    )


@st.composite
def _rules(draw: Callable[[Any], Any], sets: Any, port_sets: Any) -> tuple[HostRule, ...]:
    rule = st.builds(
        HostRule,
        action=st.sampled_from(("allow", "deny", "reject", "pass", "log")),
        ip_version=st.sampled_from((None, 4, 6)),
        protocol=st.just(6),
        src_sets=sets.map(lambda found: tuple(sorted(found))),
        not_dst_sets=sets.map(lambda found: tuple(sorted(found))),
        dst_ports=st.sampled_from(((), ((80, 80),), ((80, 90), (85, 100), (7, 7)))),
        dst_port_sets=port_sets.map(lambda found: tuple(sorted(found))),
        not_src_port_sets=port_sets.map(lambda found: tuple(sorted(found))),
        src_nets=st.lists(st.sampled_from(MEMBERS), max_size=3).map(tuple),
        not_src_nets=st.lists(st.sampled_from(MEMBERS), max_size=2).map(tuple),
        log_prefix=st.sampled_from((None, "hit")),
    )
    return tuple(draw(st.lists(rule, max_size=3)))


@st.composite
def _policies(draw: Callable[[Any], Any], rules: list[RulesId]) -> PolicyList:
    names = st.lists(st.sampled_from(rules), max_size=2, unique=True).map(tuple) if rules else st.just(())
    chosen = draw(names)
    action = draw(st.sampled_from(("deny", "pass")))
    tiers = (TierPolicies(tier="default", policies=chosen, default_action=action),) if chosen else ()
    return PolicyList(tiers=tiers, profiles=draw(names))


@st.composite
def _interfaces(draw: Callable[[Any], Any], name: str, rules: list[RulesId]) -> HostInterface:
    lists = [draw(st.one_of(st.just(PolicyList()), _policies(rules))) for _ in range(7)]
    return HostInterface(
        key=HostEndpointKey(host="h", endpoint=f"of-{'all' if name == ANY_INTERFACE else name}"),
        interface=name,
        inbound=lists[0],
        outbound=lists[1],
        forward_inbound=lists[2],
        forward_outbound=lists[3],
        untracked_inbound=lists[4],
        untracked_outbound=lists[5],
        pre_dnat=lists[6],
        spares=draw(st.sampled_from(((), ("kube-ipvs0",), ("eth0.7", "up1")))) if name == ANY_INTERFACE else (),
    )


@st.composite
def _workloads(draw: Callable[[Any], Any], number: int, rules: list[RulesId]) -> HostWorkload:
    nets = tuple(draw(st.sets(st.sampled_from(MEMBERS[:5]), max_size=2)))
    floating = [
        HostNat(net.ip, external)
        for net in nets
        for external in draw(st.sets(st.sampled_from(FLOATING), max_size=2))
        if external.version == net.version
    ]
    return HostWorkload(
        key=WorkloadEndpointKey(host="h", orchestrator="test", workload=f"w{number}", endpoint="eth0"),
        # two of them may want the same interface
        interface=draw(st.sampled_from((f"cali{number}", "cali1"))),
        is_active=draw(st.booleans()),
        mac=draw(st.sampled_from((None, EUI("02:00:00:00:00:01"), EUI("02:00:00:00:00:02")))),
        nets=nets,
        allowed_source_prefixes=tuple(draw(st.sets(st.sampled_from(PREFIXES), max_size=2))),
        nats=tuple(floating),
        inbound=draw(_policies(rules)),
        outbound=draw(_policies(rules)),
    )
