"""``calicoctl endpoint``: found by id, prefix or address; its profiles in order, its named ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from netaddr import EUI, IPNetwork

from calico_core.model.endpoints import EndpointPort, EndpointStatus, WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey, WorkloadStatusKey

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

ONE = WorkloadEndpointKey("rack-a", "cni", "pod-1", "aaaa1111")
TWO = WorkloadEndpointKey("rack-a", "cni", "pod-2", "aaaa2222")
THREE = WorkloadEndpointKey("rack-b", "libnetwork", "libnetwork", "bbbb3333")
PORT_WORDS = ("http:tcp:8080", "dns:17:53")


@pytest.fixture
def three(calicoctl: Calicoctl, records: TypedRecords) -> Calicoctl:
    for number, key in enumerate((ONE, TWO, THREE), 1):
        record = WorkloadEndpoint(
            state="active",
            name=f"cali{number}",
            mac=EUI("02:00:00:00:00:01"),
            ipv4_nets=(IPNetwork(f"10.65.0.{number}/32"),),
            profile_ids=("web",),
            labels={"app": "web"},
        )
        records.put(key, record)
    records.put(WorkloadStatusKey("rack-a", "cni", "pod-1", "aaaa1111"), EndpointStatus(status="up"))
    for name in ("web", "db", "ops"):
        calicoctl.ok("profile", "add", name)
    return calicoctl


def profiles(records: TypedRecords, key: WorkloadEndpointKey = ONE) -> tuple[str, ...]:
    found: tuple[str, ...] = records.get(key).record.profile_ids
    return found


def test_show_as_json(three: Calicoctl) -> None:
    rows = three("endpoint", "show", "-o", "json").json
    assert [row["endpoint"] for row in rows] == ["aaaa1111", "aaaa2222", "bbbb3333"]
    first = rows[0]
    assert {name: first[name] for name in ("host", "orchestrator", "workload", "interface")} == {
        "host": "rack-a",
        "orchestrator": "cni",
        "workload": "pod-1",
        "interface": "cali1",
    }
    assert (first["addresses"], first["profiles"], first["labels"]) == (["10.65.0.1"], ["web"], {"app": "web"})
    assert (first["state"], first["status"]) == ("active", "up")
    assert rows[1]["status"] is None


def test_source_prefixes(three: Calicoctl, records: TypedRecords) -> None:
    command = ("endpoint", "aaaa1111", "source-prefix")
    assert three(*command, "show", "-o", "json").json == []
    asked = (*command, "set", "198.51.100.7/24", "2001:db8::7", "198.51.100.0/24")
    assert three.ok(*asked) == "Source prefix(es) 198.51.100.0/24, 2001:db8::7/128 set.\n"
    assert "unchanged" in three.ok(*asked)
    assert three(*command, "show", "-o", "json").json == [{"prefix": "198.51.100.0/24"}, {"prefix": "2001:db8::7/128"}]
    assert three("endpoint", "show", "-o", "json").json[0]["source_prefixes"] == ["198.51.100.0/24", "2001:db8::7/128"]
    refused = three(*command, "set", "198.51.100.0/33")
    assert (refused.code, "198.51.100.0/33" in refused.err) == (2, True)
    assert three.ok(*command, "set") == "Source prefix(es) none set.\n"
    assert records.get(ONE).record.allowed_source_prefixes == ()
    assert profiles(records) == ("web",)


def test_the_table_counts_by_host_and_orchestrator(three: Calicoctl) -> None:
    lines = three.ok("endpoint", "show").splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["rack-a", "cni", "2", "2"]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == ["rack-b", "libnetwork", "1", "1"]
    assert "10.65.0.3" in three.ok("endpoint", "show", "--detailed")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (("--host", "rack-b"), ["bbbb3333"]),
        (("--orchestrator", "cni"), ["aaaa1111", "aaaa2222"]),
        (("--workload", "pod-2"), ["aaaa2222"]),
        (("--endpoint", "aaaa"), ["aaaa1111", "aaaa2222"]),
        (("--host", "nowhere"), []),
    ],
)
def test_filters(three: Calicoctl, filters: tuple[str, ...], expected: list[str]) -> None:
    assert [row["endpoint"] for row in three("endpoint", "show", *filters, "-o", "json").json] == expected


def test_append_remove_set(three: Calicoctl, records: TypedRecords) -> None:
    three.ok("endpoint", "aaaa1111", "profile", "append", "db", "ops")
    assert profiles(records) == ("web", "db", "ops")
    assert "unchanged" in three.ok("endpoint", "aaaa1111", "profile", "append", "db")
    three.ok("endpoint", "aaaa1111", "profile", "remove", "db")
    assert profiles(records) == ("web", "ops")
    assert "unchanged" in three.ok("endpoint", "aaaa1111", "profile", "remove", "db")
    three.ok("endpoint", "aaaa1111", "profile", "set", "db", "web")
    assert profiles(records) == ("db", "web")
    assert "unchanged" in three.ok("endpoint", "aaaa1111", "profile", "set", "db", "web")
    three.ok("endpoint", "aaaa1111", "profile", "set")
    assert profiles(records) == ()
    assert profiles(records, TWO) == ("web",)
    assert three("endpoint", "aaaa2222", "profile", "show", "-o", "json").json == [{"profile": "web"}]


def test_a_rewrite_keeps_everything_else(three: Calicoctl, records: TypedRecords) -> None:
    before = records.get(ONE).record
    three.ok("endpoint", "aaaa1111", "profile", "append", "db")
    three.ok("endpoint", "aaaa1111", "profile", "remove", "db")
    assert records.get(ONE).record == before


def test_named_ports(three: Calicoctl, records: TypedRecords) -> None:
    before = records.get(ONE).record
    assert "http:tcp:8080, dns:17:53 set." in three.ok("endpoint", "aaaa1111", "ports", "set", *PORT_WORDS)
    http, dns = (EndpointPort(name="http", protocol="tcp", port=8080), EndpointPort(name="dns", protocol="17", port=53))
    assert records.get(ONE).record == msgspec.structs.replace(before, ports=(http, dns))
    assert "unchanged" in three.ok("endpoint", "aaaa1111", "ports", "set", *PORT_WORDS, PORT_WORDS[0])
    assert three("endpoint", "aaaa1111", "ports", "show", "-o", "json").json == [
        {"name": "http", "protocol": "tcp", "port": 8080},
        {"name": "dns", "protocol": "17", "port": 53},
    ]
    assert [row["ports"] for row in three("endpoint", "show", "-o", "json").json] == [list(PORT_WORDS), [], []]
    assert "none set." in three.ok("endpoint", "aaaa1111", "ports", "set")
    assert records.get(ONE).record == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("http",), "'http' is not NAME:PROTOCOL:PORT, such as http:tcp:80"),
        (("http:tcp:80", "http:tcp:web"), "'http:tcp:web' is not NAME:PROTOCOL:PORT"),
        (("http:icmp:80",), "'icmp' is not tcp, udp, sctp"),
        (("http:tcp:70000",), "70000"),
        (("80:tcp:80",), "80:tcp:80"),
    ],
)
def test_a_bad_port_is_named_and_nothing_is_written(
    three: Calicoctl, records: TypedRecords, words: tuple[str, ...], says: str
) -> None:
    before = records.get(ONE)
    done = three("endpoint", "aaaa1111", "ports", "set", *words)
    assert done.code == 2
    assert "NAME:PROTOCOL:PORT" in done.err
    assert says in done.err
    assert records.get(ONE) == before


@pytest.mark.parametrize("name", ["bbbb3333", "bbbb", "10.65.0.3", "libnetwork"])
def test_ways_to_name_an_endpoint(three: Calicoctl, records: TypedRecords, name: str) -> None:
    three.ok("endpoint", name, "profile", "append", "db")
    assert profiles(records, THREE) == ("web", "db")


@pytest.mark.parametrize(
    ("name", "profile", "code", "says"),
    [
        ("aaaa", "db", 5, "2 endpoints"),
        ("bbb", "db", 4, "'bbb'"),
        ("cccc", "db", 4, "'cccc'"),
        ("aaaa1111", "nobody", 4, "'nobody'"),
    ],
)
def test_what_cannot_be_found(
    three: Calicoctl, records: TypedRecords, name: str, profile: str, code: int, says: str
) -> None:
    before = {key: records.get(key) for key in (ONE, TWO, THREE)}
    done = three("endpoint", name, "profile", "append", profile)
    assert done.code == code
    assert says in done.err
    assert {key: records.get(key) for key in (ONE, TWO, THREE)} == before
