"""Requests that are refused, and in which words. Source: mesos specification 2.2."""

from __future__ import annotations

from typing import Any

import pytest

from calico_core.errors import Contended, PoolExhausted, Unavailable

from .conftest import DEAD_PID, HOST, UID, Setup, an_isolate

NO_LIST = "IP addresses must be provided as JSON list, not: "
ADVICE = "Ensure that it is up and running, and that ETCD_AUTHORITY or CALICO_DATASTORE of the node names it."
UNPARSED = "IP address could not be parsed: "
ALLOCATE = {"hostname": HOST, "uid": UID, "num_ipv4": 1, "num_ipv6": 0}
RESERVE = {"hostname": HOST, "uid": UID, "ipv4_addrs": ["10.65.0.9"]}


def without(arguments: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    return {**{key: value for key, value in arguments.items() if key not in names}, **changes}


@pytest.mark.parametrize(
    ("stdin", "text"),
    [
        (b"", "Input data was truncated"),
        (b"{not json", "JSON is malformed"),
        (b"[]", "The request must be a JSON object"),
        (b"\xff\xfe", "JSON is malformed"),
        (b"{}", "Missing command"),
        (b'{"args":{}}', "Missing command"),
        (b'{"command":"isolate"}', "Missing args"),
        (b'{"command":"fly"}', "Missing args"),
        (b'{"command":"fly","args":{}}', "Unknown command: fly"),
        (b'{"command":["isolate"],"args":{}}', "Unknown command: ['isolate']"),
        (b'{"command":"isolate","args":[]}', "args must be a JSON object"),
    ],
)
def test_envelope(setup: Setup, stdin: bytes, text: str) -> None:
    reply, shape = setup.send(stdin)
    assert reply.status == 1
    assert shape["error"].startswith(text)


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("isolate", an_isolate(container_id=None), "Missing container_id"),
        ("isolate", an_isolate(hostname=None), "Missing hostname"),
        ("isolate", an_isolate(pid=None), "Missing pid"),
        ("isolate", {}, "Missing container_id"),
        ("isolate", an_isolate(pid="x"), "pid must be an integer"),
        ("isolate", an_isolate(pid=[1]), "pid must be an integer"),
        ("isolate", an_isolate(pid=0), "pid must be the number of a process"),
        ("isolate", an_isolate(ipv4_addrs="10.0.0.1"), NO_LIST + "10.0.0.1"),
        ("isolate", an_isolate(ipv4_addrs=["10.0.0"]), UNPARSED + "10.0.0"),
        ("isolate", an_isolate(ipv4_addrs=[7]), UNPARSED + "7"),
        ("isolate", an_isolate(ipv4_addrs=["10.0.0.1/33"]), UNPARSED + "10.0.0.1/33"),
        ("isolate", an_isolate(ipv6_addrs=["fd80::zz"]), UNPARSED + "fd80::zz"),
        ("isolate", an_isolate(ipv4_addrs=["::1"]), "IPv6 address must not be placed in IPv4 address field."),
        ("isolate", an_isolate(ipv6_addrs=["1.2.3.4"]), "IPv4 address must not be placed in IPv6 address field."),
        ("isolate", an_isolate(ipv4_addrs=None), "Must provide at least one IPv4 or IPv6 address."),
        ("isolate", an_isolate(ipv4_addrs=[]), "Must provide at least one IPv4 or IPv6 address."),
        ("isolate", an_isolate(netgroups="a"), "Must provide list of netgroups."),
        ("isolate", an_isolate(netgroups=[1]), "Must provide list of netgroups."),
        (
            "isolate",
            an_isolate(netgroups=["a/b"]),
            "netgroup: 'a/b' may hold only letters, digits, '_', '.' and '-'",
        ),
        (
            "isolate",
            an_isolate(hostname="a b"),
            "hostname: 'default_a b' may hold only letters, digits, '_', '.' and '-'",
        ),
        (
            "isolate",
            an_isolate(labels="k=v"),
            "Labels must be provided as JSON object, or as list of objects with key and value.",
        ),
        ("isolate", an_isolate(pid=DEAD_PID), "Process 999999 has no network namespace: No such file or directory."),
        ("cleanup", {"hostname": HOST}, "Missing container_id"),
        ("cleanup", {"container_id": "c1"}, "Missing hostname"),
        ("allocate", without(ALLOCATE, "uid"), "Missing uid"),
        ("allocate", without(ALLOCATE, uid=""), "Missing uid"),
        ("allocate", without(ALLOCATE, "hostname"), "Missing hostname"),
        ("allocate", without(ALLOCATE, "num_ipv4"), "Missing num_ipv4"),
        ("allocate", without(ALLOCATE, "num_ipv6"), "Missing num_ipv6"),
        ("allocate", without(ALLOCATE, num_ipv4="one"), "num_ipv4 must be an integer"),
        ("allocate", without(ALLOCATE, num_ipv6=True), "num_ipv6 must be an integer"),
        ("allocate", without(ALLOCATE, num_ipv4=-1), "num_ipv4 must not be negative"),
        ("allocate", without(ALLOCATE, num_ipv4=33), "At most 32 addresses can be had at once, not 33."),
        ("reserve", without(RESERVE, "uid"), "Missing uid"),
        ("reserve", without(RESERVE, "hostname"), "Missing hostname"),
        ("reserve", without(RESERVE, "ipv4_addrs"), "Must provide at least one IPv4 or IPv6 address."),
        ("reserve", without(RESERVE, ipv4_addrs=["11.0.0.1"]), "IP '11.0.0.1' is in no Calico pool."),
        ("release", {}, "Must supply either uid or ips."),
        ("release", {"uid": "u", "ips": ["10.65.0.1"]}, "Supply either uid or ips, not both."),
        ("release", {"uid": 7}, "uid must be a string"),
        ("release", {"ips": "10.65.0.1"}, NO_LIST + "10.65.0.1"),
        ("release", {"ips": ["x"]}, UNPARSED + "x"),
    ],
)
def test_refused_with_nothing_done(setup: Setup, command: str, arguments: dict[str, Any], text: str) -> None:
    before = setup.records.list("/calico/")
    assert setup.refused(command, **arguments) == text
    assert setup.records.list("/calico/") == before
    assert not setup.ipam.held
    assert not setup.workloads.attached


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (
            Unavailable("etcd3://10.0.0.1:2379", "connection refused"),
            "Failed to communicate with etcd at 'etcd3://10.0.0.1:2379'. " + ADVICE,
        ),
        (
            Unavailable("/var/lib/calico/calico.db", "disk full"),
            "Failed to communicate with the datastore at '/var/lib/calico/calico.db'. " + ADVICE,
        ),
        (Contended("block 10.65.0.0/26", 9), "block 10.65.0.0/26: lost 9 races, try again"),
        (PoolExhausted(4, 2, 1, "all held"), "IPv4: asked for 2 addresses, found 1: all held"),
        (KeyError("boom"), "Unhandled error KeyError; the log of the node says more."),
    ],
)
def test_failures_of_what_it_stands_on(setup: Setup, failure: Exception, text: str) -> None:
    setup.workloads.failure = failure
    assert setup.refused("isolate", **an_isolate()) == text
    assert not setup.workloads.attached


def test_strict_refuses_what_is_lenient_by_default(setup: Setup) -> None:
    strict = Setup(is_strict=True)
    setup.ask("cleanup", hostname="", container_id="unknown")
    assert strict.refused("cleanup", hostname="", container_id="unknown") == "Missing hostname"
    assert strict.refused("cleanup", hostname=HOST, container_id="x") == "No endpoint found with container-id: x"
