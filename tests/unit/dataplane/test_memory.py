"""The doubles' own switches; what they share with the real thing is in the contract test."""

from __future__ import annotations

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import (
    Connection,
    DataplaneOptions,
    DenialOrigin,
    DeniedPacket,
    Failure,
    RuleCount,
)
from calico_core.model.hoststate import HostChanges, HostRule, HostRules, HostWorkload, RulesId
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.workloads import WiringRequest

KEY = WorkloadEndpointKey(host="h", orchestrator="test", workload="w", endpoint="eth0")
WORKLOAD = HostWorkload(key=KEY, interface="cali1", is_active=True)
REQUEST = WiringRequest(
    interface="cali1",
    container_interface="eth0",
    namespace_fd=3,
    namespace="n",
    addresses=(IPNetwork("10.0.0.1/32"),),
)


def test_refused_subjects_fail_until_they_are_taken_out() -> None:
    dataplane = MemoryDataplane.open(DataplaneOptions())
    dataplane.refused[KEY.path] = "no"
    rules = HostRules(id=RulesId("profile/p"))
    report = dataplane.apply(HostChanges(is_complete=True, rules=(rules,), workloads=(WORKLOAD,)))
    assert report.failures == (Failure(KEY.path, "no"),)
    assert not dataplane.is_programmed(KEY)
    dataplane.refused.clear()
    report = dataplane.apply(HostChanges())
    assert report.is_clean
    assert report.changes == 1
    assert dataplane.is_programmed(KEY)


def test_what_the_kernel_forgot_is_healed() -> None:
    dataplane = MemoryDataplane.open(DataplaneOptions())
    dataplane.apply(HostChanges(is_complete=True, workloads=(WORKLOAD,)))
    assert dataplane.resync().healed == ()
    dataplane.forget()
    assert not dataplane.is_programmed(KEY)
    assert dataplane.resync().healed != ()
    assert dataplane.is_programmed(KEY)


def test_wiring_fails_once_when_told() -> None:
    wiring = MemoryDataplane.open(DataplaneOptions()).wiring()
    wiring.fail_next(KernelRefused("attach", 12))
    with pytest.raises(KernelRefused):
        wiring.attach(REQUEST)
    assert not wiring.exists("cali1")
    assert wiring.attach(REQUEST).is_new


def test_another_wish_for_an_interface_is_followed() -> None:
    wiring = MemoryDataplane.open(DataplaneOptions()).wiring()
    wiring.attach(REQUEST)
    other = WiringRequest(
        interface="cali1", container_interface="eth0", namespace_fd=4, namespace="n",
        addresses=(IPNetwork("10.0.0.2/32"),),
    )  # fmt: skip
    assert wiring.attach(other).is_new
    assert not wiring.check(other)
    assert wiring.check(REQUEST)


def test_what_a_kernel_would_tell_of_its_own() -> None:
    rules = HostRules(id=RulesId("profile/p"), inbound=(HostRule(action="deny"),))
    dataplane = MemoryDataplane.open(DataplaneOptions(denied_group=7))
    dataplane.apply(HostChanges(is_complete=True, rules=(rules,)))
    heard: list[DeniedPacket] = []
    stop = dataplane.watch_denied(heard.append)
    packet = DeniedPacket(
        origin=DenialOrigin(reason="rule", rules=rules.id, rule=0), time=1.0, in_interface="cali1", out_interface="",
        src=IPAddress("10.0.0.1"), dst=IPAddress("10.0.0.2"), protocol=6,
    )  # fmt: skip
    dataplane.deny(packet)
    stop()
    dataplane.deny(packet)
    assert heard == [packet]

    dataplane.count(rules.id, "inbound", 0, 2, 100)
    dataplane.count(rules.id, "inbound", 0, 1, 50)
    dataplane.apply(HostChanges(rules=(rules,)))
    assert dataplane.rule_counts() == (RuleCount(rules.id, "inbound", 0, 3, 150),)
    dataplane.apply(HostChanges(rules=(HostRules(id=rules.id, outbound=rules.inbound),)))
    assert dataplane.rule_counts() == (RuleCount(rules.id, "outbound", 0, 0, 0),)

    one, other = IPAddress("10.0.0.1"), IPAddress("10.0.0.2")
    connection = Connection(6, one, other, 1000, 80, other, one, 80, 1000)
    dataplane.connect(connection)
    assert dataplane.connections() == (connection,)
    assert (dataplane.cut([connection]), dataplane.cut([connection]), dataplane.connections()) == (1, 0, ())


def test_without_a_group_nobody_hears_of_denials() -> None:
    dataplane = MemoryDataplane.open(DataplaneOptions())
    dataplane.watch_denied(lambda packet: pytest.fail(str(packet)))
    origin = DenialOrigin(reason="rule")
    one = IPAddress("10.0.0.1")
    dataplane.deny(
        DeniedPacket(origin=origin, time=1.0, in_interface="", out_interface="", src=one, dst=one, protocol=6)
    )
