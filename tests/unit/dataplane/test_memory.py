"""The doubles' own switches; what they share with the real thing is in the contract test."""

from __future__ import annotations

import pytest
from netaddr import IPNetwork

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.errors import KernelRefused
from calico_core.interfaces.dataplane import DataplaneOptions, Failure
from calico_core.model.hoststate import HostChanges, HostRules, HostWorkload, RulesId
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
