"""Rules written by us and by libnftables read back as the same bytes, and a change of chains needs no libnftables."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from calico_core.dataplane.denials import Origins
from calico_core.dataplane.linux.netlink import NLM_F_APPEND, NLM_F_CREATE, Request, parse_attributes, text
from calico_core.dataplane.nftables import layout
from calico_core.dataplane.nftables.library import NftLibrary
from calico_core.dataplane.nftables.netfilter import GETRULE, NftSocket
from calico_core.dataplane.nftables.policy_table import PolicyTable
from calico_core.dataplane.nftables.rule_encoder import encode_rule
from calico_core.dataplane.nftables.rule_messages import NEWRULE
from calico_core.dataplane.nftables.rules import render_rule
from calico_core.dataplane.nftables.verdicts import Verdicts
from calico_core.interfaces.dataplane import DataplaneOptions, DenialOrigin
from calico_core.model.hoststate import HostChanges, HostRule, HostState, PolicyList, RulesId, SetId, TierPolicies
from calico_core.model.rules import PORT_PROTOCOLS
from tests.integration.dataplane_nftables.conftest import ALLOW, ANY, OPEN, a_set, rules_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

pytestmark = pytest.mark.needs_root

_HEADER = bytes((1, 0, 0, 0)) + text(1, "calico")
_SETS = """add table inet calico
add chain inet calico pi_other
add set inet calico plain4 { type ipv4_addr; }
add set inet calico plain6 { type ipv6_addr; flags interval; }
add set inet calico named4 { type ipv4_addr . inet_proto . inet_service; }
add set inet calico named6 { type ipv6_addr . inet_proto . inet_service; }
"""
_SET, _PORT_SET = SetId("plain"), SetId("named")
_numbers = itertools.count()

nets = st.lists(
    st.sampled_from(
        ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "10.9.8.0/23", "::/0", "fe80::/10", "2001:db8::1/128")
    ).map(IPNetwork),
    max_size=2,
).map(tuple)
ports = st.lists(st.sampled_from(((80, 80), (0, 5), (1, 65535), (443, 443))), max_size=2).map(tuple)
icmps = st.none() | st.tuples(st.sampled_from((0, 3, 8, 255)), st.none() | st.sampled_from((0, 4)))
sets = st.sampled_from(((), (), (_SET,)))
port_sets = st.sampled_from(((), (), (_PORT_SET,)))
rules = st.builds(
    HostRule,
    action=st.sampled_from(("allow", "deny", "reject", "pass", "log")),
    ip_version=st.sampled_from((None, 4, 6)),
    protocol=st.sampled_from((None, 1, 6, 6, 17, 58)),
    not_protocol=st.sampled_from((None, None, 17)),
    **{f"{no}{side}_nets": nets for no in ("", "not_") for side in ("src", "dst")},
    **{f"{no}{side}_sets": sets for no in ("", "not_") for side in ("src", "dst")},
    **{f"{no}{side}_ports": ports for no in ("", "not_") for side in ("src", "dst")},
    **{f"{no}{side}_port_sets": port_sets for no in ("", "not_") for side in ("src", "dst")},
    icmp=icmps,
    not_icmp=icmps,
    log_prefix=st.sampled_from((None, "seen", "two words")),
)


def _sensible(rule: HostRule) -> HostRule:
    """Without what no rule of this protocol may ask for."""
    nothing: dict[str, Any] = {}
    if rule.protocol not in PORT_PROTOCOLS:
        nothing |= dict.fromkeys(("src_ports", "not_src_ports", "dst_ports", "not_dst_ports"), ())
    family = {1: 4, 58: 6}.get(rule.protocol or 0)
    if family is None or rule.ip_version not in (None, family):
        nothing |= {"icmp": None, "not_icmp": None}
    elif rule.icmp is not None:
        # "type 8 and type not 3": libnftables no longer compares type and code at once; the same in other bytes
        nothing |= {"not_icmp": None}
    if rule.src_ports and rule.dst_ports:
        # libnftables compares both ports at once also where another match stands between; the same in other bytes
        nothing |= {"not_src_ports": (), "not_src_port_sets": ()}
    return msgspec.structs.replace(rule, **nothing)


options = st.builds(
    DataplaneOptions,
    drop_override=st.sampled_from(("DROP", "LOG-and-DROP", "LOG-and-ACCEPT")),
    deny_action=st.sampled_from(("DROP", "REJECT")),
    denied_group=st.sampled_from((0, 5)),
    log_rate=st.sampled_from((0, 7)),
    log_unit=st.sampled_from(("second", "minute", "hour", "day")),
)


class Bench:
    """A table, and the two ways to write into it."""

    def __init__(self, namespace_fd: int) -> None:
        self.library = NftLibrary(namespace_fd)
        self.socket = NftSocket(namespace_fd)
        assert self.library.run(_SETS) == ()

    def by_both(self, texts: tuple[str, ...]) -> tuple[list[Any], list[Any], int]:
        """What stands after the rules that we can write were written by libnftables, and by us; and how many we
        left."""
        encoded = {each: encode_rule(each) for each in texts}
        known = [each for each in texts if encoded[each] is not None]
        theirs, ours = (f"{who}{next(_numbers)}" for who in ("theirs", "ours"))
        script = [f"add chain inet calico {name}" for name in (theirs, ours)]
        script += [f"add rule inet calico {theirs} {each}" for each in known]
        assert self.library.run("\n".join(script) + "\n") == (), known
        for each in known:
            request = Request("add rule", NEWRULE, NLM_F_CREATE | NLM_F_APPEND, _HEADER + text(2, ours))
            self.socket.commit([(request.type, request.flags, request.body + (encoded[each] or b""))], "add rule")
        return self.standing(theirs), self.standing(ours), len(texts) - len(known)

    def standing(self, chain: str) -> list[Any]:
        bodies = self.socket.dump(Request("list rules", GETRULE, 0, _HEADER + text(2, chain)))
        found = [parse_attributes(body, 4) for body in bodies]
        return [(each[4], each.get(7)) for each in found if each[2] == chain.encode() + b"\0"]

    def close(self) -> None:
        self.library.close()
        self.socket.close()


@pytest.fixture
def bench(lab: Any) -> Iterator[Bench]:
    lab.dataplane.purge()
    made = Bench(lab.host.fd)
    yield made
    made.close()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rule=rules.map(_sensible), options=options)
def test_rules_are_the_same_bytes(bench: Bench, rule: HostRule, options: DataplaneOptions) -> None:
    verdicts, origin = Verdicts(options, Origins()), DenialOrigin(reason="rule", rules=RulesId("a/b"), rule=1)
    texts = render_rule(rule, lambda name, family: f"{name}{family}", families=(4, 6), verdicts=verdicts, origin=origin)
    theirs, ours, left = bench.by_both(layout.chain(texts).rules)
    assert ours == theirs
    # nothing but the lists of several values, and pairs of them, is left to libnftables
    assert left == sum("{" in each for each in texts)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=options, action=st.sampled_from(("deny", "pass")))
def test_lists_are_the_same_bytes(bench: Bench, options: DataplaneOptions, action: Any) -> None:
    tiers = tuple(
        TierPolicies(tier=name, policies=(RulesId("other"), RulesId("other")), default_action=action)
        for name in ("first", "second")
    )
    verdicts = Verdicts(options, Origins())
    listed = layout.list_rules(PolicyList(tiers=tiers, profiles=(RulesId("other"),)), "in", verdicts)
    texts = tuple(
        each.replace(layout.rules_chain_name(RulesId("other"), "in"), "pi_other") for each in layout.chain(listed).rules
    )
    theirs, ours, left = bench.by_both(texts)
    assert ours == theirs
    assert left == 0
    assert len(ours) == len(texts)


@pytest.fixture
def table(lab: Any) -> Iterator[Table]:
    made = Table(lab)
    yield made
    made.policy.close()


class Table:
    """The policy table alone, to see which way a batch went."""

    def __init__(self, lab: Any) -> None:
        self.policy = PolicyTable(lab.options, lab.host.fd)
        self._state = HostState()

    def apply(self, **changes: Any) -> str:
        batch = HostChanges(**changes)
        self._state.update(batch)
        report = self.policy.follow(batch, self._state)
        assert report.failures == ()
        standing = self.policy.observe()
        assert standing is not None
        assert self.policy.desired.differences(standing) == []
        return report.path


def test_a_policy_comes_changes_and_goes_by_netlink(lab: Any, table: Table) -> None:
    policy, workloads = RulesId("policy/p"), [lab.unwired() for _ in range(3)]
    web = HostRule(action="allow", protocol=6, src_sets=(SetId("s"),), dst_ports=((80, 80),))
    policies = PolicyList(tiers=(TierPolicies(tier="default", policies=(policy,)),), profiles=OPEN.profiles)
    first = tuple(each.endpoint() for each in workloads)
    assert table.apply(is_complete=True, rules=(rules_of(ANY, (ALLOW,)),), workloads=first) == "libnftables"
    came = table.apply(
        sets=(a_set("s", "10.0.0.1", "10.0.1.0/24"),),
        rules=(rules_of(policy, (web,)),),
        workloads=tuple(each.endpoint(inbound=policies) for each in workloads),
    )
    assert came == "netlink"
    changed = msgspec.structs.replace(web, dst_ports=((81, 90),))
    assert table.apply(rules=(rules_of(policy, (changed,)),)) == "netlink"
    assert table.apply(workloads=first, removed_rules=(policy,), removed_sets=(SetId("s"),)) == "netlink"


def test_what_we_cannot_write_goes_by_libnftables(lab: Any, table: Table) -> None:
    table.apply(is_complete=True, rules=(rules_of(ANY, (ALLOW,)),), workloads=(lab.unwired().endpoint(),))
    several = HostRule(action="allow", protocol=6, dst_ports=((80, 80), (443, 443)))
    assert table.apply(rules=(rules_of("policy/several", (several,)),)) == "libnftables"
