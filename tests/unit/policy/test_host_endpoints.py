"""Host endpoints: which interface is whose, and which policies act at which hook. Source: felix specification 6.11."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from netaddr import IPAddress

from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import ANY_INTERFACE, HostChanges, HostState, PolicyList
from calico_core.model.keys import HostEndpointKey, PolicyKey, ProfileRulesKey, TierKey, WorkloadEndpointKey
from calico_core.model.policies import Policy, Tier
from calico_core.model.rules import Rule, RuleLists
from calico_core.policy.resolver import PolicyResolver

A, B = HostEndpointKey("here", "a"), HostEndpointKey("here", "b")
ONE, TWO = IPAddress("192.0.2.1"), IPAddress("192.0.2.2")


class Host:
    """A resolver in sync, and what its batches add up to."""

    def __init__(self, is_excluded: Callable[[str], bool] = lambda _interface: False) -> None:
        self.resolver = PolicyResolver("here", is_excluded=is_excluded)
        self.state = HostState()
        self.resolver.in_sync()
        self.flush()

    def flush(self) -> HostChanges:
        changes = self.resolver.flush()
        self.state.update(changes)
        return changes

    def put(self, *updates: tuple[object, object]) -> HostChanges:
        self.resolver.apply(updates)  # type: ignore[arg-type]
        return self.flush()

    def interface(self, name: str, *addresses: IPAddress, is_gone: bool = False) -> HostChanges:
        self.resolver.set_interface(name, None if is_gone else frozenset(addresses))
        return self.flush()

    @property
    def owners(self) -> dict[str, str]:
        return {name: found.key.endpoint for name, found in self.state.interfaces.items()}


def names(policies: PolicyList) -> list[str]:
    return [each.rpartition("/")[2] for tier in policies.tiers for each in tier.policies]


def test_by_name_there_or_not() -> None:
    host = Host()
    host.put((A, HostEndpoint(name="eth0", expected_ipv4_addrs=(ONE,))))
    assert host.owners == {"eth0": "a"}, "closed before the interface comes"
    host.interface("eth1", ONE)
    assert host.owners == {"eth0": "a"}, "the name is what counts where there is one"
    assert not host.interface("eth0", TWO)
    assert not host.interface("eth0", is_gone=True)


def test_by_address_on_whatever_interface_has_it() -> None:
    host = Host()
    assert not host.put((A, HostEndpoint(expected_ipv4_addrs=(ONE, TWO)))).interfaces
    host.interface("eth0", ONE)
    host.interface("eth1", TWO)
    assert host.owners == {"eth0": "a", "eth1": "a"}
    changes = host.interface("eth0", IPAddress("192.0.2.9"))
    assert changes.removed_interfaces == ("eth0",)
    host.interface("eth2", ONE)
    assert host.owners == {"eth1": "a", "eth2": "a"}, "the endpoint follows its address"
    host.interface("eth1", is_gone=True)
    assert host.owners == {"eth2": "a"}


def test_the_first_of_two_is_in_force_and_the_other_is_named(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    host.interface("eth0", ONE)
    with caplog.at_level(logging.WARNING):
        host.put((B, HostEndpoint(name="eth0")), (A, HostEndpoint(expected_ipv4_addrs=(ONE,))))
    assert host.owners == {"eth0": "a"}
    (fields,) = [
        record.calico_fields  # type: ignore[attr-defined]
        for record in caplog.records
        if record.message == "host_endpoint.not_in_force"
    ]
    assert (fields["interface"], fields["endpoint"]) == ("eth0", "b")
    host.put((A, None))
    assert host.owners == {"eth0": "b"}


def test_all_interfaces() -> None:
    host = Host()
    host.put((B, HostEndpoint(name="*")), (A, HostEndpoint(name="eth0")))
    assert host.owners == {ANY_INTERFACE: "b", "eth0": "a"}


def test_records_of_other_hosts_are_none_of_ours() -> None:
    host = Host()
    assert not host.put((HostEndpointKey("there", "a"), HostEndpoint(name="eth0"))).interfaces


def test_each_hook_has_its_policies() -> None:
    host = Host()
    host.put(
        (A, HostEndpoint(name="eth0", profile_ids=("p",), labels={"role": "edge"})),
        (TierKey("t"), Tier(order=1, default_action="deny")),
        (PolicyKey("t", "plain"), Policy(selector="has(role)")),
        (PolicyKey("t", "both"), Policy(selector="has(role)", apply_on_forward=True)),
        (PolicyKey("t", "raw"), Policy(selector="has(role)", untracked=True, apply_on_forward=True)),
        (PolicyKey("t", "nat"), Policy(selector="has(role)", pre_dnat=True)),
        (PolicyKey("t", "staged"), Policy(selector="has(role)", staged=True, apply_on_forward=True)),
        (PolicyKey("t", "other"), Policy(selector="role == 'core'")),
    )
    found = host.state.interfaces["eth0"]
    assert names(found.inbound) == names(found.outbound) == ["both", "plain", "staged"]
    assert names(found.forward_inbound) == names(found.forward_outbound) == ["both", "staged"]
    assert names(found.untracked_inbound) == names(found.untracked_outbound) == ["raw"]
    assert names(found.pre_dnat) == ["nat"]
    assert found.inbound.profiles == ("profile/p",)
    assert not found.forward_inbound.profiles + found.untracked_inbound.profiles + found.pre_dnat.profiles
    assert [tier.default_action for tier in found.forward_inbound.tiers] == ["deny"]
    assert [tier.default_action for tier in found.untracked_inbound.tiers + found.pre_dnat.tiers] == ["pass", "pass"]
    listed = ("plain", "both", "raw", "nat", "staged")
    assert set(host.state.rules) == {"profile/p", *(f"policy/t/{each}" for each in listed)}


def test_types_count_at_every_hook() -> None:
    host = Host()
    host.put(
        (A, HostEndpoint(name="eth0")),
        (PolicyKey("t", "in"), Policy(selector="", types=("ingress",), untracked=True)),
        (PolicyKey("t", "out"), Policy(selector="", types=("egress",), pre_dnat=True)),
    )
    found = host.state.interfaces["eth0"]
    assert names(found.untracked_inbound) == ["in"]
    assert not found.untracked_outbound.tiers
    assert not found.pre_dnat.tiers, "nothing leaves before its destination is translated"


def test_a_policy_that_changes_its_hook_moves() -> None:
    host = Host()
    key = PolicyKey("t", "p")
    host.put((A, HostEndpoint(name="eth0")), (key, Policy(selector="")))
    (changed,) = host.put((key, Policy(selector="", untracked=True))).interfaces
    assert (names(changed.inbound), names(changed.untracked_inbound)) == ([], ["p"])
    assert not host.put((key, Policy(selector="", untracked=True, order=3))).interfaces


def test_labels_of_profiles_and_removal() -> None:
    host = Host()
    host.put(
        (A, HostEndpoint(name="eth0", profile_id="p")),
        (ProfileRulesKey("p"), RuleLists(inbound_rules=(Rule(src_selector="has(x)"),))),
    )
    assert len(host.state.sets) == 1
    changes = host.put((A, None))
    assert changes.removed_interfaces == ("eth0",)
    assert changes.removed_rules == ("profile/p",)
    assert not host.state.sets


def test_workloads_and_interfaces_share_lists() -> None:
    host = Host()
    key = WorkloadEndpointKey("here", "k8s", "w", "eth0")
    host.put(
        (A, HostEndpoint(name="eth0")),
        (key, WorkloadEndpoint(state="active", name="cali0")),
        (PolicyKey("t", "p"), Policy(selector="")),
    )
    assert host.state.interfaces["eth0"].inbound is host.state.workloads[key].inbound
    host.put((key, None))
    assert set(host.state.rules) == {"policy/t/p"}, "still the interface's"


def test_workloads_and_the_host_keep_to_their_own_interfaces(caplog: pytest.LogCaptureFixture) -> None:
    resolver, state = PolicyResolver("here", interface_prefixes=("cali",)), HostState()
    resolver.in_sync()
    good, bad = (WorkloadEndpointKey("here", "k8s", name, "eth0") for name in ("good", "bad"))
    remote = WorkloadEndpointKey("there", "k8s", "w", "eth0")
    with caplog.at_level(logging.WARNING):
        resolver.apply(
            [
                (good, WorkloadEndpoint(state="active", name="cali0")),
                (bad, WorkloadEndpoint(state="active", name="eth0")),
                (remote, WorkloadEndpoint(state="active", name="tap0")),
                (A, HostEndpoint(name="cali0")),
                (B, HostEndpoint(name="eth0")),
            ]
        )
        state.update(resolver.flush())
    assert list(state.workloads) == [good]
    assert list(state.interfaces) == ["eth0"]
    ignored = [
        record for record in caplog.records if record.message in {"endpoint.ignored", "host_endpoint.not_in_force"}
    ]
    assert sorted(record.calico_fields["interface"] for record in ignored) == ["cali0", "eth0"]  # type: ignore[attr-defined]
    resolver.apply([(bad, WorkloadEndpoint(state="active", name="cali1"))])
    state.update(resolver.flush())
    assert set(state.workloads) == {good, bad}


def test_excluded_interfaces_are_of_records_that_name_them_alone() -> None:
    host = Host(is_excluded=lambda name: name.startswith("kube"))
    host.put((A, HostEndpoint(expected_ipv4_addrs=(ONE,))), (B, HostEndpoint(name=ANY_INTERFACE)))
    host.interface("kube-ipvs0", ONE)
    assert host.owners == {ANY_INTERFACE: "b"}
    assert host.state.interfaces[ANY_INTERFACE].spares == ("kube-ipvs0",)
    assert not host.interface("kube-ipvs0", ONE, TWO), "its addresses do not matter"
    assert not host.interface("eth0", TWO)
    # no dataplane could write it: it stays under the policy of all
    assert not host.interface('kube"*')
    host.interface("eth0", ONE)
    assert host.owners == {"eth0": "a", ANY_INTERFACE: "b"}
    assert host.state.interfaces["eth0"].spares == ()
    host.interface("kube-ipvs0", is_gone=True)
    assert host.state.interfaces[ANY_INTERFACE].spares == ()
    host.put((A, HostEndpoint(name="kube-ipvs0")))
    assert host.owners == {"kube-ipvs0": "a", ANY_INTERFACE: "b"}
