"""Sets beyond their limit are closed, and open again (ADR 11). Both drivers pass all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPNetwork

from calico_core.model.hoststate import (
    AddressSet,
    HostRule,
    HostRules,
    PolicyList,
    PortMember,
    PortSetChange,
    RulesId,
    SetChange,
    SetId,
)
from tests.integration.dataplane_nftables.conftest import ALLOW

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs_root

LIMIT = 300
HOSTS, PORTS, NAMING = SetId("tag-00000000000000aa"), SetId("npt-00000000000000aa"), RulesId("profile/naming")


@pytest.fixture
def lab(make_lab: Callable[..., Any]) -> Any:
    return make_lab(max_set_size=LIMIT)


def others(first: int, count: int) -> AddressSet:
    return AddressSet.of([IPNetwork((10 << 24 | value, 32), version=4) for value in range(first, first + count)])


def naming(*inbound: HostRule) -> dict[str, Any]:
    return {"rules": (HostRules(id=NAMING, inbound=inbound, outbound=(ALLOW,)),)}


def the_set(members: AddressSet) -> SetChange:
    return SetChange(id=HOSTS, is_new=True, added=members)


def test_an_allowing_rule_allows_nobody_until_its_set_has_shrunk(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    rules = naming(HostRule(action="allow", src_sets=(HOSTS,)))
    everybody = (a.endpoint(PolicyList(profiles=(NAMING,))), b.endpoint())
    full = AddressSet.of(b.nets) | others(1, LIMIT - 1)
    assert lab.start(*everybody, sets=(the_set(full),), **rules).is_clean
    assert b.reaches(a.v4, 80)
    report = lab.apply(sets=(SetChange(id=HOSTS, added=others(1000, 1)),))
    assert {failure.subject for failure in report.failures} == {HOSTS, NAMING}
    assert f"{LIMIT} members" in next(failure.reason for failure in report.failures if failure.subject == HOSTS)
    assert b.is_blocked_from(a.v4, 80)
    assert a.reaches(b.v4, 80), "nobody else is concerned"
    # it is told for as long as it holds, and nothing is written over and over
    again = lab.dataplane.resync()
    assert ({failure.subject for failure in again.failures}, again.changes) == ({HOSTS, NAMING}, 0)
    assert lab.apply(sets=(SetChange(id=HOSTS, removed=others(1, 1)),)).is_clean
    assert b.reaches(a.v4, 80)
    # one in, one out, while it is full
    assert lab.apply(sets=(SetChange(id=HOSTS, added=others(2000, 1), removed=others(2, 1)),)).is_clean
    assert b.reaches(a.v4, 80)
    assert lab.dataplane.resync().healed == ()


def test_a_denying_rule_opens_nothing_while_its_set_is_too_large(lab: Any) -> None:
    """What kept the old members here would let the new one in."""
    a, b, c = lab.workload(), lab.workload(), lab.workload()
    rules = naming(HostRule(action="deny", src_sets=(HOSTS,)), ALLOW)
    everybody = (a.endpoint(PolicyList(profiles=(NAMING,))), b.endpoint(), c.endpoint())
    assert lab.start(*everybody, sets=(the_set(others(1, LIMIT)),), **rules).is_clean
    assert b.reaches(a.v4, 80)
    lab.apply(sets=(SetChange(id=HOSTS, added=AddressSet.of(b.nets)),))
    assert b.is_blocked_from(a.v4, 80), "it is denied"
    assert c.is_blocked_from(a.v4, 80), "nobody can tell whether it is"
    # a restart while it is so, as one at any other time
    lab.restart()
    report = lab.start(*everybody, sets=(the_set(others(1, LIMIT) | AddressSet.of(b.nets)),), **rules)
    assert {failure.subject for failure in report.failures} == {HOSTS, NAMING}
    assert b.is_blocked_from(a.v4, 80)
    assert lab.apply(sets=(SetChange(id=HOSTS, removed=others(1, 1)),)).is_clean
    assert b.is_blocked_from(a.v4, 80)
    assert c.reaches(a.v4, 80)


def test_a_set_of_named_ports_too(lab: Any) -> None:
    a, b = lab.workload(), lab.workload()
    rules = naming(HostRule(action="allow", protocol=6, dst_port_sets=(PORTS,)))
    everybody = (a.endpoint(PolicyList(profiles=(NAMING,))), b.endpoint())
    mine = frozenset({PortMember(4, int(a.nets[0].ip), 6, 80)})
    foreign = frozenset(PortMember(4, 10 << 24 | value, 6, 80) for value in range(1, LIMIT + 1))
    ports = PortSetChange(id=PORTS, is_new=True, added=mine | foreign)
    report = lab.start(*everybody, port_sets=(ports,), **rules)
    assert {failure.subject for failure in report.failures} == {PORTS, NAMING}
    assert b.is_blocked_from(a.v4, 80)
    assert lab.apply(port_sets=(PortSetChange(id=PORTS, removed=foreign),)).is_clean
    assert b.reaches(a.v4, 80)
    assert b.is_blocked_from(a.v4, 81)
    # it goes while it is too large, and what was said of it goes with it
    assert not lab.apply(port_sets=(PortSetChange(id=PORTS, added=foreign),)).is_clean
    gone = lab.apply(workloads=(a.endpoint(),), removed_rules=(NAMING,), removed_port_sets=(PORTS,))
    assert gone.is_clean
    assert b.reaches(a.v4, 81)
