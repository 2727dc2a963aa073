"""Scenarios of felix specification 13 that no other file holds. Both drivers pass all but the last."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from netaddr import EUI

from calico_core.model.hoststate import HostRule, HostRules, HostWorkload, PolicyList, RulesId, TierPolicies
from calico_core.model.keys import WorkloadEndpointKey
from tests.integration.dataplane_nftables.test_nftables_traffic import _heard, _listener

pytestmark = pytest.mark.needs_root

OTHER_MAC = "02:00:00:00:00:99"


def test_spoofed_sources_are_dropped_with_a_loose_reverse_path_filter_too(lab: Any) -> None:
    """Scenario 6: who may send is a set of ours; what the host's sysctls say does not matter."""
    a, b = lab.workload(), lab.workload()
    for name in ("all", b.interface):
        lab.host.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=2")
    lab.start(a.endpoint(), b.endpoint())
    b.run("ip", "address", "add", "10.65.0.77/32", "dev", "eth0")
    with _listener(a, a.v4) as listener:
        assert _heard(b, listener, a.v4, b.v4)
        assert not _heard(b, listener, a.v4, "10.65.0.77", is_expected=False)


def test_another_mac_in_the_record_is_the_one_that_may_send(lab: Any) -> None:
    """Scenario 36."""
    a, b = lab.workload(), lab.workload()
    lab.start(a.endpoint(), b.endpoint())
    with _listener(a, a.v4) as listener:
        assert _heard(b, listener, a.v4, b.v4)
        assert lab.apply(workloads=(msgspec.structs.replace(b.endpoint(), mac=EUI(OTHER_MAC)),)).is_clean
        assert not _heard(b, listener, a.v4, b.v4, is_expected=False), "the old one"
        b.run("ip", "link", "set", "eth0", "address", OTHER_MAC)
        # with its address an interface loses the neighbours it was given
        gateway = json.loads(lab.host.run("ip", "-j", "link", "show", b.interface))[0]["address"]
        b.run("ip", "neigh", "replace", "169.254.1.1", "lladdr", gateway, "dev", "eth0")
        assert _heard(b, listener, a.v4, b.v4)


def test_a_policy_of_a_thousand_endpoints_changes_one_chain(lab: Any) -> None:
    """Scenario 67: one transaction, and what the change does not concern keeps its rules and their counters."""
    shared, other = RulesId("policy/default/shared"), RulesId("profile/other")
    tiers = (TierPolicies(tier="default", policies=(shared,)),)
    workloads = [_endpoint(number, PolicyList(tiers=tiers, profiles=(other,))) for number in range(1000)]
    rules = [HostRules(id=each, inbound=(HostRule(action="allow"),)) for each in (shared, other)]
    assert lab.apply(is_complete=True, rules=tuple(rules), workloads=tuple(workloads)).is_clean
    before = lab.handles()
    changed = HostRules(id=shared, inbound=(HostRule(action="deny", protocol=17), HostRule(action="allow")))
    report = lab.apply(rules=(changed,))
    assert report.is_clean
    assert report.changes == 1
    after = lab.handles()
    different = {chain for chain in before | after if before.get(chain) != after.get(chain)}
    assert [name[:9] for name in different] == ["pi_shared"]


def _endpoint(number: int, inbound: PolicyList) -> HostWorkload:
    """Without an interface: what it would pass stands all the same."""
    key = WorkloadEndpointKey(host="h", orchestrator="test", workload=f"many{number}", endpoint="eth0")
    return HostWorkload(key=key, interface=f"cali9{number}", is_active=True, inbound=inbound, outbound=PolicyList())
