"""Prefixes beside an endpoint's own addresses: which are left, and who is told that they mean nothing."""

from __future__ import annotations

import pytest
from netaddr import IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import HostState
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.policy.allowed_sources import AllowedSources
from calico_core.policy.resolver import PolicyResolver

KEY = WorkloadEndpointKey("here", "k8s", "shop.web", "eth0")


def endpoint(*prefixes: str, **more: str) -> WorkloadEndpoint:
    nets = tuple(IPNetwork(each) for each in prefixes)
    return WorkloadEndpoint(**{"state": "active", "name": "cali0", **more}, allowed_source_prefixes=nets)  # type: ignore[arg-type]


def test_each_prefix_once_in_order() -> None:
    asked = endpoint("2001:db8::/64", "10.1.0.0/16", "10.0.0.0/8", "192.0.2.7/32", "10.0.0.0/8", "2001:db8::7/128")
    found = AllowedSources(is_wanted=True).of(KEY, asked)
    assert [str(each) for each in found] == ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/64"]


def test_who_is_ignored_is_told_once_and_again_when_it_returns() -> None:
    sources = AllowedSources(is_wanted=False)
    assert sources.of(KEY, endpoint("10.0.0.0/8")) == ()
    assert sources.take_ignored() == [KEY]
    assert sources.of(KEY, endpoint("10.1.0.0/16")) == ()
    assert sources.take_ignored() == []
    sources.of(KEY, endpoint())
    sources.of(KEY, endpoint("10.0.0.0/8"))
    assert sources.take_ignored() == [KEY]
    sources.forget(KEY)
    sources.of(KEY, endpoint("10.0.0.0/8"))
    assert sources.take_ignored() == [KEY]


@pytest.mark.parametrize("lets_spoof", [True, False])
def test_the_host_is_told_what_is_active(*, lets_spoof: bool) -> None:
    resolver, state = PolicyResolver("here", lets_spoof=lets_spoof), HostState()
    resolver.in_sync()
    prefix = (IPNetwork("10.0.0.0/8"),)
    for record, wanted in (
        (endpoint("10.0.0.0/8"), prefix),
        (endpoint("10.0.0.0/8", state="inactive"), ()),
        (endpoint("10.0.0.0/8"), prefix),
        (endpoint(), ()),
    ):
        resolver.apply([(KEY, record)])
        state.update(resolver.flush())
        assert state.workloads[KEY].allowed_source_prefixes == (wanted if lets_spoof else ())
