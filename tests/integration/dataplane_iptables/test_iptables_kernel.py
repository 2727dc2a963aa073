"""What stands in the kernel: only differences are written, foreign changes are healed, what is not ours stays."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from calico_core.errors import InvalidRequest, ToolFailed
from calico_core.interfaces.dataplane import FailsafePort
from calico_core.model.hoststate import (
    AddressSet,
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
from calico_core.model.keys import HostEndpointKey
from tests.doubles.host_states import host_states, step, whole
from tests.integration.dataplane_nftables.conftest import OPEN
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

MANY, ANY, POLICY = RulesId("profile/many"), RulesId("profile/any"), RulesId("policy/default/first")
HOSTS, NETS = SetId("tag-00000000000000aa"), SetId("sel-00000000000000bb")
POOL = IPNetwork("10.65.0.0/16")
ALLOW = HostRule(action="allow")
PORTS = tuple((port, port) for port in range(1, 41))
V4, V6 = IPNetwork("192.0.2.0/24"), IPNetwork("2001:db8::/32")
EVERY_MATCH = (
    HostRule(action="allow", src_sets=(HOSTS, NETS), not_dst_sets=(HOSTS,), protocol=6, dst_ports=((80, 80),)),
    HostRule(action="deny", protocol=17, src_ports=PORTS, dst_ports=((1000, 2000), *PORTS)),
    HostRule(action="pass", protocol=132, not_src_ports=PORTS, not_dst_ports=((7, 9),)),
    HostRule(action="deny", protocol=136, dst_ports=((9, 9),)),
    HostRule(action="deny", protocol=33, src_ports=((9, 9),)),
    HostRule(action="log", protocol=1, icmp=(8, 0), not_icmp=(8, 3)),
    HostRule(action="allow", protocol=58, icmp=(128, None), not_icmp=(135, 0), log_prefix="odd prefix!"),
    HostRule(action="allow", src_nets=(V4, V6), not_src_nets=(V4, V6), dst_nets=(V4,), not_dst_nets=(V6,)),
    HostRule(action="allow", src_nets=(V4, V6, POOL), not_dst_nets=(V4, POOL), not_protocol=255),
    HostRule(action="allow", protocol=47, not_src_sets=(NETS,)),
    HostRule(action="deny", ip_version=6),
)


def a_state(*workloads: Any) -> dict[str, Any]:
    """A batch with something of everything."""
    policies = PolicyList(
        tiers=(TierPolicies(tier="default", policies=(POLICY,), default_action="pass"),), profiles=(MANY,)
    )
    return {
        "is_complete": True,
        "sets": (
            SetChange(
                id=HOSTS, is_new=True, added=AddressSet.of([IPNetwork("10.65.0.1/32"), IPNetwork("fd65::1/128")])
            ),
            SetChange(id=NETS, is_new=True, added=AddressSet.of([IPNetwork("0.0.0.0/0"), IPNetwork("fd00::/8")])),
        ),
        "rules": (
            HostRules(id=MANY, inbound=(*EVERY_MATCH, ALLOW), outbound=(*EVERY_MATCH, ALLOW)),
            HostRules(id=ANY, inbound=(ALLOW,), outbound=(ALLOW,)),
            HostRules(id=POLICY, inbound=(HostRule(action="pass", protocol=6),), outbound=()),
        ),
        "workloads": tuple(each.endpoint(policies, policies) for each in workloads),
        "pools": HostPools(all=(POOL,), masquerade=(POOL,)),
    }


def counters(lab: Any, family: int = 4) -> dict[str, list[int]]:
    """Packets counted by each rule of ours, by chain."""
    found: dict[str, list[int]] = {}
    for packets, chain in re.findall(r"^\[(\d+):\d+\] -A (calico-\S+)", lab.save("-c", family=family), re.MULTILINE):
        found.setdefault(chain, []).append(int(packets))
    return found


def test_first_batch_must_be_complete(lab: Any) -> None:
    with pytest.raises(InvalidRequest, match="whole state"):
        lab.apply()


def test_second_apply_changes_nothing(lab: Any) -> None:
    state = a_state(lab.workload(), lab.workload())
    first = lab.apply(**state)
    assert first.failures == ()
    assert first.changes > 10
    assert lab.dataplane.differences() == []
    assert lab.apply(**state).changes == 0
    assert lab.apply(workloads=state["workloads"]).changes == 0
    again = lab.dataplane.resync()
    assert (again.changes, again.healed) == (0, ())


def test_restart_keeps_what_is_right_with_its_counters(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    state = {
        "is_complete": True,
        "rules": (
            HostRules(id=ANY, inbound=(ALLOW,), outbound=(ALLOW,)),
            HostRules(id=MANY, inbound=(ALLOW,), outbound=(ALLOW,)),
        ),
        "workloads": (a.endpoint(PolicyList(profiles=(MANY,))), b.endpoint()),
    }
    lab.apply(**state)
    assert b.reaches(a.v4, 80)
    before = counters(lab)
    assert sum(sum(each) for each in before.values()) > 5
    lab.restart()
    lab.dataplane.ensure_closed()
    assert lab.apply(**state).changes == 0
    assert _is_at_least(counters(lab), before)

    # while the agent is away one policy changes
    lab.restart()
    changed = HostRules(id=MANY, inbound=(HostRule(action="allow", protocol=6),), outbound=(ALLOW,))
    report = lab.apply(**{**state, "rules": (state["rules"][0], changed)})
    assert report.failures == ()
    assert report.changes == 2, "one chain in each family"
    after = counters(lab)
    rewritten = {chain for chain in before if chain.startswith("calico-pi-many_")}
    assert len(rewritten) == 1
    assert {sum(after[chain]) for chain in rewritten} == {0}
    kept = before.keys() - rewritten
    assert _is_at_least(after, {chain: before[chain] for chain in kept})
    assert b.reaches(a.v4, 80)


@pytest.mark.parametrize(
    ("damage", "healed"),
    [
        ("iptables -F", "chain calico-from (IPv4 filter)"),
        ("iptables -F FORWARD", "jumps of FORWARD (IPv4 filter)"),
        ("iptables -t raw -F", "jumps of PREROUTING (IPv4 raw)"),
        ("ip6tables -F calico-to", "chain calico-to (IPv6 filter)"),
        ("iptables -I calico-to -j ACCEPT", "chain calico-to (IPv4 filter)"),
        ("iptables -I FORWARD -j ACCEPT", "jumps of FORWARD (IPv4 filter)"),
        ("iptables -A INPUT -j calico-FORWARD", "jumps of INPUT (IPv4 filter)"),
        ("iptables -D calico-from 1", "chain calico-from (IPv4 filter)"),
        ("iptables -N calico-mine", "chain calico-mine (IPv4 filter)"),
        ("iptables -t nat -F POSTROUTING", "jumps of POSTROUTING (IPv4 nat)"),
        ("ipset flush calico-4h-tag-00000000000000aa", "set calico-4h-tag-00000000000000aa"),
        ("ipset add calico-4n-sel-00000000000000bb 9.9.9.9", "set calico-4n-sel-00000000000000bb"),
        ("ipset create calico-4h-mine hash:ip", "set calico-4h-mine"),
    ],
)
def test_foreign_changes_are_healed(lab: Any, damage: str, healed: str) -> None:
    lab.apply(**a_state(lab.workload(), lab.workload()))
    program, *rest = damage.split()
    lab.host.run(program if program == "ipset" else f"{program}-{lab.backend}", *rest)
    report = lab.dataplane.resync()
    assert report.failures == ()
    assert healed in report.healed
    assert report.changes > 0
    assert lab.dataplane.differences() == []
    again = lab.dataplane.resync()
    assert (again.healed, again.changes) == ((), 0)


@pytest.mark.parametrize(
    ("damage", "healed"),
    [
        ("iptables -F OUTPUT", "jumps of OUTPUT (IPv4 filter)"),
        ("iptables -t mangle -F PREROUTING", "jumps of PREROUTING (IPv4 mangle)"),
        ("iptables -t nat -F OUTPUT", "jumps of OUTPUT (IPv4 nat)"),
        ("ip6tables -t raw -F calico-ufrom", "chain calico-ufrom (IPv6 raw)"),
        ("iptables -t raw -D calico-notrack 1", "chain calico-notrack (IPv4 raw)"),
        ("iptables -I calico-hfrom -j ACCEPT", "chain calico-hfrom (IPv4 filter)"),
        ("iptables -t nat -F calico-fip-dnat", "chain calico-fip-dnat (IPv4 nat)"),
        ("iptables -t nat -I PREROUTING -j calico-fip-dnat", "jumps of PREROUTING (IPv4 nat)"),
        ("ipset del calico-4p-npt-00000000000000cc 10.65.0.1,tcp:80", "set calico-4p-npt-00000000000000cc"),
        ("ipset add calico-4p-npt-00000000000000cc 9.9.9.9,icmp:8/0", "set calico-4p-npt-00000000000000cc"),
        ("ipset add calico-4h-peers 9.9.9.9", "set calico-4h-peers"),
    ],
)
def test_foreign_changes_to_the_hosts_own_policy_are_healed(lab: Any, damage: str, healed: str) -> None:
    lab.apply(**full_state(lab.workload()))
    assert lab.dataplane.differences() == []
    program, *rest = damage.split()
    lab.host.run(program if program == "ipset" else f"{program}-{lab.backend}", *rest)
    report = lab.dataplane.resync()
    assert report.failures == ()
    assert healed in report.healed
    assert lab.dataplane.differences() == []
    again = lab.dataplane.resync()
    assert (again.healed, again.changes) == ((), 0)


def full_state(a: Any) -> dict[str, Any]:
    """:func:`a_state` and everything a host endpoint, a floating address and a tunnel bring."""
    state = a_state(a)
    policies = PolicyList(tiers=(TierPolicies(tier="default", policies=(POLICY,)),))
    lists = {
        field: policies for field in HostInterface.__struct_fields__ if field not in ("key", "interface", "spares")
    }
    web = SetId("npt-00000000000000cc")
    member = PortMember(4, int(IPAddress("10.65.0.1")), 6, 80)
    by_name = HostRules(id=ANY, inbound=(HostRule(action="allow", dst_port_sets=(web,)),))
    floating = HostNat(internal=IPAddress(a.v4), external=IPAddress("198.51.100.5"))
    return {
        **state,
        "port_sets": (PortSetChange(id=web, is_new=True, added=frozenset({member})),),
        "rules": (*state["rules"], by_name),
        "workloads": tuple(msgspec.structs.replace(each, nats=(floating,)) for each in state["workloads"]),
        "interfaces": (HostInterface(key=HostEndpointKey(host="h", endpoint="up"), interface="up0", **lists),),
        "peers": HostPeers((IPAddress("192.0.2.9"),), is_ipip=True, is_vxlan=True),
    }


def test_everything_goes_with_a_purge(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(failsafe_inbound=(FailsafePort(6, 22),), metadata=(IPAddress("127.0.0.1"), 8775))
    before = lab.save(), lab.save(family=6)
    lab.apply(**full_state(lab.workload()))
    assert "calico-" in lab.save("-t", "mangle")
    lab.dataplane.purge()
    assert all("calico-" not in lab.save(family=family) for family in (4, 6))
    assert lab.ipset("save") == ""
    assert ("calico-" in "".join(before)) is False


def test_another_limit_of_sets_is_taken_over_in_one_step(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(max_set_size=70_000)
    b = lab.workload()
    rules = HostRules(id=MANY, inbound=(HostRule(action="allow", src_sets=(HOSTS,)),))
    members = SetChange(id=HOSTS, is_new=True, added=AddressSet.of(b.nets))
    assert lab.start(b.endpoint(), rules=(rules,), sets=(members,)).is_clean
    assert "maxelem 70000" in lab.ipset("save")
    lab.options = msgspec.structs.replace(lab.options, max_set_size=80_000)
    lab.restart()
    assert lab.start(b.endpoint(), rules=(rules,), sets=(members,)).is_clean
    assert "maxelem 70000" not in lab.ipset("save")
    assert "maxelem 80000" in lab.ipset("save")
    assert lab.dataplane.differences() == []


def test_the_limit_is_not_for_pools_and_networks_of_rules(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(max_set_size=2)
    nets = tuple(IPNetwork(f"10.{number}.0.0/16") for number in range(4))
    rules = HostRules(id=MANY, inbound=(HostRule(action="allow", src_nets=nets),))
    report = lab.start(lab.workload().endpoint(), rules=(rules,), pools=HostPools(all=nets, masquerade=nets))
    assert report.is_clean, report.failures


def test_flapping_sets_leave_nothing(lab: Any) -> None:
    count, rounds = 300, 3
    ids = [SetId(f"tag-{number:016x}") for number in range(count)]
    rule_ids = [RulesId(f"profile/p{number}") for number in range(count)]
    a = lab.workload()
    lab.start(a.endpoint())
    member = AddressSet.of([IPNetwork("10.1.2.3/32")])
    for _ in range(rounds):
        came = lab.apply(
            sets=tuple(SetChange(id=each, is_new=True, added=member) for each in ids),
            rules=tuple(
                HostRules(id=each, inbound=(HostRule(action="allow", src_sets=(set_id,)),))
                for each, set_id in zip(rule_ids, ids, strict=True)
            ),
        )
        assert came.failures == ()
        assert lab.dataplane.differences() == []
        gone = lab.apply(removed_rules=tuple(rule_ids), removed_sets=tuple(ids))
        assert gone.failures == ()
        assert lab.dataplane.resync().healed == (), "what is not gone yet is nobody else's"
    # the kernel frees the rules of a transaction a little later, and with them the sets
    eventually(lambda: lab.dataplane.resync().is_clean and lab.ipset("list", "-n") == "")
    assert lab.dataplane.differences() == []


def test_ruleset_restored_by_another_program_is_healed(lab: Any) -> None:
    before = lab.save("-t", "filter")
    lab.apply(**a_state(lab.workload()))
    lab.host.run(f"iptables-{lab.backend}-restore", stdin=before or "*filter\nCOMMIT\n")
    assert "calico-" not in lab.save("-t", "filter")
    assert "jumps of FORWARD (IPv4 filter)" in lab.dataplane.resync().healed
    assert lab.dataplane.differences() == []


def test_apply_heals_what_stands_in_its_way(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint())
    lab.iptables("-F")
    lab.iptables("-X")
    # needs no more than its own chains, and finds none of those they lead to
    report = lab.apply(workloads=(b.endpoint(PolicyList(profiles=(ANY, ANY))),))
    assert report.failures == ()
    assert lab.dataplane.differences() == []


@pytest.mark.parametrize("is_complete", [True, False])
def test_chain_that_somebody_else_leads_to_can_be_removed(lab: Any, *, is_complete: bool) -> None:
    """The kernel calls it busy. What leads to it is found at once, not with the next refresh."""
    a, b = lab.workload(), lab.workload()
    lab.apply(**a_state(a, b))
    lab.iptables("-N", "mine")
    for chain in re.findall(r"^:(calico-p\S+)", lab.save("-t", "filter"), re.MULTILINE):
        lab.iptables("-A", "mine", "-j", chain)
    going = {} if is_complete else {"removed_workloads": (a.key, b.key), "removed_rules": (MANY, ANY, POLICY)}
    assert lab.apply(is_complete=is_complete, **going).failures == ()
    assert lab.dataplane.differences() == []


def test_rules_and_sets_of_others_stay(lab: Any) -> None:
    lab.iptables("-N", "DOCKER")
    lab.iptables("-A", "FORWARD", "-j", "DOCKER")
    lab.iptables("-t", "nat", "-A", "POSTROUTING", "-o", "docker0", "-j", "ACCEPT")
    lab.ipset("create", "theirs", "hash:ip")
    tables = [_rules(lab, table) for table in ("filter", "nat", "raw")]
    a = lab.workload()
    lab.apply(**a_state(a))
    first = lab.iptables("-S", "FORWARD").splitlines()[1]
    assert first.endswith("-j calico-FORWARD")
    lab.dataplane.purge()
    lab.dataplane.purge()
    assert [_rules(lab, table) for table in ("filter", "nat", "raw")] == tables
    assert [line.split()[1] for line in lab.ipset("save").splitlines()] == ["theirs"]
    assert a.v4 not in lab.host.run("ip", "route")
    lab.dataplane.ensure_closed()
    assert lab.apply(**a_state(a)).failures == ()
    assert lab.dataplane.differences() == []


def test_ensure_closed_leaves_what_stands_alone(lab: Any) -> None:
    lab.apply(**a_state(lab.workload()))
    before = [_rules(lab, table) for table in ("filter", "nat", "raw")]
    lab.restart()
    lab.dataplane.ensure_closed()
    assert [_rules(lab, table) for table in ("filter", "nat", "raw")] == before
    lab.iptables("-F", "FORWARD")
    lab.dataplane.ensure_closed()
    assert [_rules(lab, table) for table in ("filter", "nat", "raw")] == before, "what is missing is put back"


def test_equal_lists_share_a_chain(lab: Any) -> None:
    made = [lab.unwired() for _ in range(5)]
    lab.start(*(each.endpoint() for each in made))
    lists = {chain for chain in counters(lab) if re.match(r"calico-[ft]l-", chain)}
    assert len(lists) == 2, "one for each direction"
    report = lab.apply(rules=(HostRules(id=ANY, inbound=(ALLOW, ALLOW), outbound=(ALLOW,)),))
    assert report.changes == 2, "one chain in each family, whatever the number of endpoints"


def test_a_set_refused_closes_its_rules_and_nothing_else(lab: Any) -> None:
    """Somebody has a set of our name and of a type that is not ours."""
    a, b = lab.workload(), lab.workload()
    lab.ipset("create", "calico-4h-tag-00000000000000aa", "hash:net")
    rules = HostRules(id=MANY, inbound=(HostRule(action="allow", src_sets=(HOSTS,)),), outbound=(ALLOW,))
    members = SetChange(id=HOSTS, is_new=True, added=AddressSet.of(b.nets))
    report = lab.start(a.endpoint(PolicyList(profiles=(MANY,))), b.endpoint(), rules=(rules,), sets=(members,))
    assert {failure.subject for failure in report.failures} == {HOSTS, MANY}
    figures = {each.name: each.value for each in lab.dataplane.figures()}
    assert figures["ipset_errors"] >= 1
    assert figures["ipset_calls"] > figures["ipset_errors"]
    assert figures["ipsets_total"] >= 1
    assert (figures["iptables_save_errors"], figures["iptables_restore_errors"]) == (0, 0)
    assert b.is_blocked_from(a.v4, 80)
    assert a.reaches(b.v4, 80)


def test_large_set_is_rewritten_as_one(lab: Any) -> None:
    def members(first: int) -> AddressSet:
        return AddressSet.of([IPNetwork((10 << 24 | value, 32), version=4) for value in range(first, first + 10000)])

    lab.start(
        lab.unwired().endpoint(),
        sets=(SetChange(id=HOSTS, is_new=True, added=members(0)),),
        rules=(HostRules(id=MANY, inbound=(HostRule(action="allow", src_sets=(HOSTS,)),)),),
    )
    report = lab.apply(sets=(SetChange(id=HOSTS, added=members(20000), removed=members(0)),))
    assert report.failures == ()
    assert report.changes == 20000
    assert lab.dataplane.differences() == []
    assert "calico-tmp-" not in lab.ipset("list", "-n")
    one = AddressSet.of([IPNetwork("10.1.2.3/32")])
    assert lab.apply(sets=(SetChange(id=HOSTS, added=one),)).changes == 1
    assert lab.dataplane.differences() == []


def test_concurrent_writer_loses_nothing(lab: Any) -> None:
    a = lab.workload()
    lab.start(a.endpoint())
    rounds = 15

    def write() -> None:
        for number in range(rounds):
            lab.iptables("-N", f"other-{number}")
            lab.iptables("-A", f"other-{number}", "-j", "RETURN")

    writer = threading.Thread(target=write)
    writer.start()
    reports = []
    for number in range(1, rounds + 1):
        rule = HostRule(action="allow", protocol=6, dst_ports=((number, number),))
        reports.append(lab.apply(rules=(HostRules(id=ANY, inbound=(rule,), outbound=(ALLOW,)),)))
    writer.join()
    assert [report.failures for report in reports if report.failures] == []
    assert lab.dataplane.differences() == []
    assert lab.save("-t", "filter").count("-A other-") == rounds


def test_missing_program_is_named(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolFailed, match="not installed"):
        lab.open()


def test_rendering_is_what_iptables_accepts(lab: Any) -> None:
    """Everything of the state, once more, read by the program without doing it."""
    lab.apply(**a_state(lab.workload()))
    for family, command in ((4, "iptables"), (6, "ip6tables")):
        saved = lab.save(family=family)
        assert "calico-pi-many" in saved
        lab.host.run(f"{command}-{lab.backend}-restore", "--test", stdin=saved)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(states=st.lists(host_states(), min_size=2, max_size=3))
def test_kernel_follows_any_sequence(lab: Any, states: list[HostState]) -> None:
    kept = HostState()
    changes = whole(states[0])
    for target in [*states[1:], states[0]]:
        kept.update(changes)
        report = lab.dataplane.apply(changes)
        assert report.failures == ()
        assert lab.dataplane.differences() == []
        assert lab.dataplane.apply(step(kept, kept)).changes == 0
        changes = step(kept, target)


def test_other_prefix(make_lab: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequest, match="at most 14"):
        make_lab(interface_prefixes=("cali", "a23456789012345"))


def test_inactive_workload_has_no_chains(lab: Any) -> None:
    a = lab.workload()
    endpoint: HostWorkload = a.endpoint(OPEN, OPEN, is_active=False)
    lab.start(endpoint)
    assert not [chain for chain in counters(lab) if chain.startswith(("calico-sp-", "calico-fl-", "calico-tl-"))]


def _rules(lab: Any, table: str) -> list[str]:
    """Chains and rules without comments of the program and counters."""
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in lab.save("-t", table).splitlines() if line[:1] in ":-"]


def _is_at_least(after: dict[str, list[int]], before: dict[str, list[int]]) -> bool:
    return all(
        len(after.get(chain, [])) == len(each) and all(map(int.__ge__, after[chain], each))
        for chain, each in before.items()
    )


def test_jumps_come_last_if_that_is_wanted_and_stay_there(make_lab: Callable[..., Any]) -> None:
    lab = make_lab(chain_insert="Append")
    a, b = lab.workload(), lab.workload()
    for base in ("FORWARD", "INPUT"):
        lab.iptables("-A", base, "-p", "udp", "-j", "ACCEPT")
    lab.dataplane.ensure_closed()
    lab.start(a.endpoint(inbound=PolicyList()), b.endpoint())
    assert [_position(lab, base) for base in ("FORWARD", "INPUT")] == [(2, 2), (2, 2)]
    assert b.is_blocked_from(a.v4, 80)
    lab.iptables("-A", "FORWARD", "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
    report = lab.dataplane.resync()
    assert "jumps of FORWARD (IPv4 filter)" in report.healed
    assert _position(lab, "FORWARD") == (3, 3)
    assert not b.is_blocked_from(a.v4, 80), "what others accept before us passes"
    assert b.is_blocked_from(a.v4, 81)
    assert lab.dataplane.resync().changes == 0
    # a restart finds them in place; one that wants them first moves them
    lab.restart()
    assert lab.start(a.endpoint(inbound=PolicyList()), b.endpoint()).changes == 0
    lab.options = msgspec.structs.replace(lab.options, chain_insert="Insert")
    lab.restart()
    lab.start(a.endpoint(inbound=PolicyList()), b.endpoint())
    assert _position(lab, "FORWARD") == (1, 3)
    assert b.is_blocked_from(a.v4, 80)
    lab.dataplane.purge()
    assert "calico" not in lab.save()


def _position(lab: Any, base: str) -> tuple[int, int]:
    """Of our jump among the rules of a kernel's chain, and how many there are."""
    rules = [line for line in lab.save("-t", "filter").splitlines() if line.startswith(f"-A {base} ")]
    (found,) = [number for number, line in enumerate(rules, 1) if line.endswith(f"-j calico-{base}")]
    return found, len(rules)
