"""isolate and cleanup: what is attached, with which profiles, and what is left."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core import __version__
from calico_core.errors import KernelRefused
from calico_core.model.keys import BgpHostAddressKey, HostIpKey, ProfileRulesKey, WorkloadEndpointKey
from calico_core.model.rules import Rule, RuleLists
from calico_mesos.errors import ALREADY_ISOLATED

from .conftest import CONTAINER, HOST, HOST_ADDRESS, UID, Setup, an_isolate

DIGEST = hashlib.sha1(CONTAINER.encode()).hexdigest()
KEY = WorkloadEndpointKey(HOST, "mesos", CONTAINER, DIGEST)
MESOS = "/calico/mesos/"


@pytest.mark.parametrize(
    ("changes", "nets"),
    [
        ({}, ["10.65.0.9/32"]),
        ({"ipv4_addrs": None, "ipv6_addrs": ["fd80:65::9"]}, ["fd80:65::9/128"]),
        ({"ipv6_addrs": ["fd80:65::9"], "pid": "4321"}, ["10.65.0.9/32", "fd80:65::9/128"]),
    ],
)
def test_isolate_attaches_every_address(setup: Setup, changes: dict[str, Any], nets: list[str]) -> None:
    assert setup.isolate(**changes) == {}
    endpoint = setup.workloads.attached[KEY].endpoint
    assert [str(net) for net in endpoint.nets] == nets
    assert endpoint.name == f"cali{DIGEST[:11]}"
    assert endpoint.container_id == CONTAINER
    request = setup.workloads.attach_requests[0]
    assert request.namespace_fd == 77
    assert request.namespace == "/proc/4321/ns/net"
    assert request.container_interface == "eth0"


def test_profiles_and_their_rules(setup: Setup) -> None:
    setup.isolate(netgroups=["prof_a", "public", "prof_b", "prof_a"], hostname="agent-7")
    names = ("default_agent-7", "public", "prof_a", "prof_b")
    assert setup.workloads.attached[KEY].endpoint.profile_ids == names
    host = IPNetwork(f"{HOST_ADDRESS}/32")
    rules = {name: (profile.tags, profile.rules) for name, profile in setup.workloads.profiles.items()}
    assert rules == {
        "default_agent-7": (
            ("default_agent-7",),
            RuleLists(
                id="default_agent-7",
                inbound_rules=(Rule(action="allow", src_net=host),),
                outbound_rules=(Rule(action="allow", dst_net=host),),
            ),
        ),
        "public": (
            ("public",),
            RuleLists(
                id="public", inbound_rules=(Rule(action="allow"),), outbound_rules=(Rule(action="allow"),)
            ),
        ),
        **{
            name: (
                (name,),
                RuleLists(
                    id=name,
                    inbound_rules=(Rule(action="allow", src_tag=name),),
                    outbound_rules=(Rule(action="allow"),),
                ),
            )
            for name in ("prof_a", "prof_b")
        },
    }  # fmt: skip


def test_agent_that_does_not_know_its_name_yet(setup: Setup) -> None:
    setup.isolate(hostname="")
    assert setup.workloads.attached[KEY].endpoint.profile_ids == (f"default_{HOST}",)


def test_host_profile_follows_the_host_and_respects_edits(setup: Setup) -> None:
    setup.isolate()
    setup.ask("cleanup", hostname=HOST, container_id=CONTAINER)
    key = ProfileRulesKey(f"default_{HOST}")
    setup.records.put(HostIpKey(HOST), "172.16.0.2")
    setup.records.put(BgpHostAddressKey(HOST, 6), "fd00::2")
    setup.isolate()
    found = setup.records.get(key)
    assert found is not None
    assert [str(rule.src_net) for rule in found.record.inbound_rules] == ["172.16.0.2/32", "fd00::2/128"]
    assert [str(rule.dst_net) for rule in found.record.outbound_rules] == ["172.16.0.2/32", "fd00::2/128"]

    setup.ask("cleanup", hostname=HOST, container_id=CONTAINER)
    edited = RuleLists(inbound_rules=(Rule(action="deny"),), outbound_rules=found.record.outbound_rules)
    setup.records.put(key, edited)
    setup.records.put(HostIpKey(HOST), "172.16.0.3")
    setup.isolate()
    after = setup.records.get(key)
    assert after is not None
    assert after.record == edited


def test_host_without_an_address(setup: Setup) -> None:
    setup.records.delete(HostIpKey(HOST))
    assert "node1 has no address" in setup.refused("isolate", **an_isolate())


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([{"key": "k", "value": "v"}], {"k": "v"}),
        ([{"key": "DCOS_SPACE", "value": "/a/b/c"}], {"DCOS_SPACE": "a.b.c"}),
        ([{"key": "k"}], {"k": ""}),
        ({"k": "$my..val"}, {"k": "my.val"}),
        ({"k": "m$y.val"}, {"k": "m-y.val"}),
        ({"k": "-my-val"}, {"k": "my-val"}),
        ({"k": "//my/val/"}, {"k": "my.val"}),
        (
            {"k": "some_val-with.lots*of^weird#characters"},
            {"k": "some_val-with.lots-of-weird-characters"},
        ),
        ({"$$": "lost", "a b": "1", "a$b": "2"}, {"a-b": "2"}),
        (None, {}),
    ],
)
def test_labels(setup: Setup, labels: Any, expected: dict[str, str]) -> None:
    setup.isolate(labels=labels)
    assert setup.workloads.attached[KEY].endpoint.labels == expected


def test_isolate_twice(setup: Setup) -> None:
    setup.isolate()
    assert setup.refused("isolate", **an_isolate()) == ALREADY_ISOLATED
    assert len(setup.workloads.attach_requests) == 1


def test_isolate_again_after_a_crash_before_its_end(setup: Setup) -> None:
    setup.isolate()
    for entry in setup.records.store.list(MESOS).entries:
        setup.records.store.delete(entry.key)
    setup.isolate()
    assert len(setup.workloads.attach_requests) == 2
    assert setup.refused("isolate", **an_isolate()) == ALREADY_ISOLATED


def test_failed_isolate_leaves_nothing_and_keeps_the_addresses(setup: Setup) -> None:
    setup.ask("reserve", hostname=HOST, uid=UID, ipv4_addrs=["10.65.0.9"])
    setup.workloads.failure = KernelRefused("link", 17)
    assert setup.refused("isolate", **an_isolate()) == "link: File exists"
    assert not setup.records.store.list(MESOS).entries
    assert [str(address) for address in setup.ipam.by_handle(UID)] == ["10.65.0.9"]


def test_cleanup_releases_what_the_container_still_holds(setup: Setup) -> None:
    setup.ask("reserve", hostname=HOST, uid=UID, ipv4_addrs=["10.65.0.8", "10.65.0.9"], ipv6_addrs=["fd80:65::9"])
    setup.isolate(ipv4_addrs=["10.65.0.8", "10.65.0.9"], ipv6_addrs=["fd80:65::9"])
    setup.ask("cleanup", hostname=HOST, container_id=CONTAINER)
    assert not setup.ipam.held
    assert not setup.workloads.attached
    assert not setup.records.store.list(MESOS).entries
    setup.ask("cleanup", hostname=HOST, container_id=CONTAINER)


def test_address_that_is_somebody_elses_by_now_stays(setup: Setup) -> None:
    """The order of the module: release, then cleanup; in between the address was given to the next."""
    setup.ask("reserve", hostname=HOST, uid=UID, ipv4_addrs=["10.65.0.9"])
    setup.isolate()
    setup.ask("release", ips=["10.65.0.9"])
    setup.ask("reserve", hostname=HOST, uid="next", ipv4_addrs=["10.65.0.9"])
    setup.ask("cleanup", hostname=HOST, container_id=CONTAINER)
    found = setup.ipam.allocation(IPAddress("10.65.0.9"))
    assert found is not None
    assert found.handle == "next"


def test_address_not_had_through_mesos_is_not_released(setup: Setup) -> None:
    setup.ipam.held[IPAddress("10.65.0.9")] = ("by-hand", {})
    setup.isolate()
    setup.ask("cleanup", hostname=HOST, container_id=CONTAINER)
    assert [str(address) for address in setup.ipam.by_handle("by-hand")] == ["10.65.0.9"]


def test_version(setup: Setup) -> None:
    assert setup.ask("version") == {"version": __version__}
