"""``calicoctl explain`` as a person runs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from netaddr import IPNetwork

from calico_core.model.endpoints import EndpointStatus, HostEndpoint, WorkloadEndpoint
from calico_core.model.hosts import NodeStatus
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostConfigKey,
    HostEndpointKey,
    HostIpKey,
    NodeStatusKey,
    PolicyKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    WorkloadEndpointKey,
    WorkloadStatusKey,
)
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule, RuleLists

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

WEB, DB = (WorkloadEndpointKey("rack-a", "cni", name, f"{name}-endpoint") for name in ("web", "db"))


@pytest.fixture(autouse=True)
def cluster(records: TypedRecords) -> None:
    for number, key in enumerate((WEB, DB), 1):
        nets = (IPNetwork(f"10.0.0.{number}/32"),)
        record = WorkloadEndpoint(state="active", name=f"cali{number}", profile_ids=(key.workload,), ipv4_nets=nets)
        records.put(key, record)
        status = EndpointStatus(status="up")
        records.put(WorkloadStatusKey(key.host, key.orchestrator, key.workload, key.endpoint), status)
    allow = Rule(action="allow")
    records.put(ProfileRulesKey("web"), RuleLists(inbound_rules=(allow,), outbound_rules=(allow,)))
    records.put(
        ProfileRulesKey("db"),
        RuleLists(inbound_rules=(Rule(protocol="tcp", dst_ports=(5432,)),), outbound_rules=(Rule(action="deny"),)),
    )
    records.put(NodeStatusKey("rack-a"), NodeStatus(version="1", started=0.0, state="running"))


def test_text(calicoctl: Calicoctl) -> None:
    out = calicoctl.ok("explain", "--from", "web", "--to", "db-endpoint", "--port", "5432")
    assert out.splitlines() == [
        "ALLOWED: tcp from 10.0.0.1 port 49152 to 10.0.0.2 port 5432",
        "",
        "source, outbound: endpoint web-endpoint of workload web on host rack-a: allowed",
        "  profile web → rule 1: allow: allowed",
        "",
        "destination, inbound: endpoint db-endpoint of workload db on host rack-a: allowed",
        "  profile db → rule 1: allow tcp to ports 5432: allowed",
    ]


def test_json_and_exit_code(calicoctl: Calicoctl) -> None:
    done = calicoctl("explain", "--flow", "10.0.0.2:1000,10.0.0.1:80,tcp", "--exit-code", "-o", "json")
    assert done.code == 6
    assert done.json["verdict"] == "denied"
    assert done.json["packet"]["source_port"] == 1000
    source, destination = done.json["sides"]
    assert (source["verdict"], destination["verdict"]) == ("denied", "allowed")
    assert source["steps"][0]["rule"] == {"action": "deny"}
    assert calicoctl("explain", "--flow", "10.0.0.2:1000,10.0.0.1:80,tcp").code == 0
    ping = calicoctl("explain", "--from", "web", "--to", "db", "--icmp", "8/0", "--exit-code", "-o", "json")
    assert (ping.code, ping.json["packet"]["icmp"]) == (6, "8/0")
    assert ping.json["sides"][1]["steps"][-1]["reason"] == "no profile decides"


def test_an_end_nobody_wrote_shows_what_was_near(calicoctl: Calicoctl) -> None:
    out = calicoctl.ok("explain", "--from", "web", "--to", "db", "--port", "22").splitlines()
    assert out[-2:] == [
        "  no profile decides: denied",
        "    not profile db → rule 1: allow tcp to ports 5432: differs in: to ports",
    ]


def test_notes(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(
        WorkloadStatusKey("rack-a", "cni", "db", "db-endpoint"), EndpointStatus(status="error", reason="set too big")
    )
    records.put(NodeStatusKey("rack-a"), NodeStatus(version="1", started=0.0, state="stopped"))
    records.put(HostIpKey("rack-b"), "192.0.2.9")
    records.store.put(HostEndpointKey("rack-b", "eth0").path, b'{"name": "eth0"}')
    out = calicoctl.ok("explain", "--from", "host:rack-b", "--to", "db", "--port", "5432")
    assert "note: endpoint db-endpoint is error on host rack-a: set too big" in out
    assert "note: calico-node does not run on host rack-a" in out
    assert "note: calico-node does not run on host rack-b" in out
    assert "note: only host rack-b knows through which of its interfaces the packet goes" in out


def test_a_host_endpoint_is_asked(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(HostIpKey("rack-b"), "192.0.2.9")
    records.put(HostEndpointKey("rack-b", "uplink"), HostEndpoint(name="eth0"))
    records.put(
        PolicyKey("default", "web"),
        Policy(
            selector="", inbound_rules=(Rule(action="reject", dst_ports=(80,), protocol="tcp"),), types=("ingress",)
        ),
    )
    out = calicoctl.ok("explain", "--from", "192.0.2.50", "--to", "host:rack-b", "--port", "80").splitlines()
    assert out[0].startswith("DENIED")
    assert out[
        out.index("destination, inbound: host endpoint uplink on interface eth0 of host rack-b: denied") + 1
    ] == ("  tier default → policy web → rule 1: reject tcp to ports 80: rejected")
    records.put(PolicyKey("default", "raw"), Policy(selector="", inbound_rules=(Rule(),), untracked=True))
    done = calicoctl("explain", "--from", "192.0.2.50", "--to", "host:rack-b", "--port", "80", "-o", "json")
    side = done.json["sides"][-1]
    assert (side["host_endpoint"], side["interface"], side["verdict"]) == ("uplink", "eth0", "allowed")
    assert [(step["hook"], step["name"]) for step in side["steps"]] == [("untracked", "raw")]


def test_ends_by_their_labels(calicoctl: Calicoctl, records: TypedRecords) -> None:
    third = WorkloadEndpointKey("rack-b", "cni", "late", "late-endpoint")
    nets = (IPNetwork("10.0.1.1/32"), IPNetwork("fd00::1/128"))
    record = WorkloadEndpoint(state="active", name="cali3", profile_ids=("web",), labels={"tier": "own"},
                              ipv4_nets=nets[:1], ipv6_nets=nets[1:])  # fmt: skip
    records.put(third, record)
    records.put(ProfileLabelsKey("web"), {"role": "front", "tier": "inherited"})
    records.put(ProfileLabelsKey("db"), {"role": "back"})
    front = "selector:role == 'front'"
    rows = json.loads(calicoctl.ok("-o", "json", "explain", "--from", front, "--to", "selector:all()", "--port", "80"))
    assert [(each["source"], each["destination"], each["verdict"]) for each in rows] == [
        ("rack-a/web/web-endpoint", "rack-a/db/db-endpoint", "denied"),
        ("rack-a/web/web-endpoint", "rack-b/late/late-endpoint", "allowed"),
        ("rack-b/late/late-endpoint", "rack-a/db/db-endpoint", "denied"),
        ("rack-b/late/late-endpoint", "rack-a/web/web-endpoint", "allowed"),
    ]
    assert rows[1]["decided_by"] == "inbound: profile web rule 1"
    assert rows[0]["decided_by"].startswith("inbound: ")
    own = ("explain", "--from", "db", "--to", "selector:tier == 'own'", "--port", "80", "--exit-code")
    done = calicoctl(*own)
    assert done.code == 6
    assert "outbound: profile db rule 1" in done.out
    assert "web-endpoint" not in done.out
    six = calicoctl.ok(
        "explain", "--from", "web", "--to", "selector:role == 'front'", "--ip-version", "6", "--port", "1"
    )
    assert "no IPv6 address in common" in six


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--from", "web"), 2, "--to"),
        (("--from", "web", "--to", "db"), 2, "--port"),
        (("--from", "web", "--to", "db", "--port", "x"), 2, "not a port"),
        (("--from", "web", "--to", "fd00::1"), 2, "in common"),
        (("--from", "nobody", "--to", "db"), 4, "nobody"),
        (("--flow", "a,b,tcp", "--to", "db"), 2, "--flow"),
        (("--from", "selector:role =", "--to", "db", "--port", "1"), 2, "--from"),
        (("--from", "selector:role == 'none'", "--to", "db", "--port", "1"), 4, "role == 'none'"),
        (("--from", "selector:all()", "--to", "db"), 2, "--port"),
        (("--from", "selector:all()", "--to", "db", "--source-address", "10.0.0.9"), 2, "--source-address"),
    ],
)
def test_refusals(calicoctl: Calicoctl, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = calicoctl("explain", *arguments)
    assert done.code == code
    assert says in done.err
    assert not done.out


def test_everything_that_applies(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(
        PolicyKey("default", "web"), Policy(selector="", inbound_rules=(Rule(action="reject"),), types=("ingress",))
    )
    assert calicoctl.ok("explain", "endpoint", "web").splitlines() == [
        "endpoint web-endpoint of workload web on host rack-a",
        "",
        "inbound:",
        "  tier default → policy web",
        "      1 reject",
        "  end of tier default: deny",
        "  profile web",
        "      1 allow",
        "  what none of them decides is denied",
        "",
        "outbound:",
        "  profile web",
        "      1 allow",
        "  what none of them decides is denied",
    ]
    assert calicoctl("explain", "endpoint", "10.0.0.1", "-o", "json").json["endpoint"] == "web-endpoint"
    assert calicoctl("explain", "endpoint", "10.0.0.9").code == 4
    assert calicoctl("explain", "endpoint", "web", "--port", "80").code == 2
    assert calicoctl("explain", "what").code == 2


@pytest.mark.parametrize("setting", ["Any", None])
def test_what_an_endpoint_may_send_from_applies_too(
    calicoctl: Calicoctl, records: TypedRecords, setting: str | None
) -> None:
    prefixes = (IPNetwork("198.51.100.0/24"), IPNetwork("2001:db8::/64"))
    records.put(WEB, msgspec.structs.replace(records.get(WEB).record, allowed_source_prefixes=prefixes))
    if setting is not None:
        calicoctl.ok("config", "set", "WorkloadSourceSpoofing", setting)
    end = "" if setting else ": without effect, WorkloadSourceSpoofing is Disabled there"
    lines = calicoctl.ok("explain", "endpoint", "web").splitlines()
    assert lines[1] == f"may also send from 198.51.100.0/24, 2001:db8::/64{end}"
    found = calicoctl("explain", "endpoint", "web", "-o", "json").json
    assert found["source_prefixes"] == ["198.51.100.0/24", "2001:db8::/64"]
    assert found["may_use_source_prefixes"] is (setting == "Any")
    asked = ("explain", "--from", "web", "--to", "db", "--port", "5432", "--source-address", "198.51.100.7")
    assert ("spoofed source: 198.51.100.7 is in a prefix" in calicoctl.ok(*asked)) is (setting is None)


def test_everything_that_applies_to_a_host(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(HostEndpointKey("rack-b", "uplink"), HostEndpoint(name="eth0", profile_ids=("gone",)))
    records.put(PolicyKey("default", "raw"), Policy(selector="", inbound_rules=(Rule(),), pre_dnat=True))
    records.put(PolicyKey("default", "on"), Policy(selector="", apply_on_forward=True, types=("egress",)))
    assert calicoctl.ok("explain", "endpoint", "host:rack-b/uplink").splitlines() == [
        "endpoint uplink of the host itself on host rack-b",
        "",
        "inbound, pre-dnat, interface eth0:",
        "  tier default → policy raw",
        "      1 allow",
        "  end of tier default: pass",
        "  what none of them decides goes on",
        "",
        "inbound, interface eth0:",
        "  profile gone: not there, or invalid: denies",
        "  what none of them decides is denied",
        "",
        "outbound, interface eth0:",
        "  tier default → policy on",
        "  end of tier default: deny",
        "  profile gone: not there, or invalid: denies",
        "  what none of them decides is denied",
        "",
        "outbound, forward, interface eth0:",
        "  tier default → policy on",
        "  end of tier default: deny",
        "  what all of them pass on is forwarded",
    ]
    assert calicoctl("explain", "endpoint", "host:rack-b/none").code == 4


def test_an_address_that_is_not_the_endpoints(calicoctl: Calicoctl) -> None:
    asked = ("explain", "--from", "web", "--to", "db", "--port", "5432", "--source-address")
    assert calicoctl.ok(*asked, "10.0.0.9").splitlines()[:4] == [
        "DENIED: tcp from 10.0.0.9 port 49152 to 10.0.0.2 port 5432",
        "",
        "source, outbound: endpoint web-endpoint of workload web on host rack-a: denied",
        "  spoofed source: 10.0.0.9 is no address of the endpoint, whatever policy says",
    ]
    assert calicoctl.ok(*asked, "10.0.0.1").startswith("ALLOWED")
    done = calicoctl("explain", "--from", "10.0.0.1", "--to", "db", "--port", "5432", "--source-address", "10.0.0.9")
    assert done.code == 2
    assert "--source-address" in done.err


def test_a_rule_whose_set_is_too_large(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(GlobalConfigKey("MaxIpsetSize"), "1")
    records.put(ProfileRulesKey("db"), RuleLists(inbound_rules=(Rule(src_selector="all()"),)))
    why = "the set of selector all() has 2 members, more than MaxIpsetSize 1: rules that name it deny"
    asked = ("explain", "--from", "web", "--to", "db", "--port", "5432")
    done = calicoctl(*asked, "-o", "json")
    step = done.json["sides"][1]["steps"][0]
    assert (step["verdict"], step["closed"], step["reason"]) == ("denied", True, why)
    assert calicoctl.ok(*asked).splitlines()[-1] == f"  profile db → rule 1: allow from selector 'all()': {why}: denied"
    assert why in calicoctl.ok("explain", "--from", "web", "--to", "selector:all()", "--port", "5432")
    found = calicoctl("explain", "endpoint", "db", "-o", "json").json
    assert [each["lists"][0]["closed"] for each in found["applied"]] == [{"1": why}, {}]
    assert f"      1 allow from selector 'all()': denies everything: {why}" in calicoctl.ok("explain", "endpoint", "db")


def test_where_policy_is_switched_off_it_is_said(calicoctl: Calicoctl, records: TypedRecords) -> None:
    asked = ("explain", "--from", "web", "--to", "db", "--port", "22", "-o", "json")
    note = "DropActionOverride switches policy off on host rack-a: what its rules deny passes there"
    assert note not in calicoctl(*asked).json["notes"]
    records.put(GlobalConfigKey("DropActionOverride"), "log-and-accept")
    assert note in calicoctl(*asked).json["notes"]


def test_a_host_address_that_is_none_stops_no_answer(calicoctl: Calicoctl, records: TypedRecords) -> None:
    records.put(HostIpKey("rack-x"), "garbage")
    records.put(BgpHostAddressKey("rack-x", 6), "zz")
    asked = ("explain", "--from", "web", "--to", "db", "--port", "5432")
    assert calicoctl.ok(*asked).startswith("ALLOWED")


def test_who_has_no_interface_of_its_own_is_closed(calicoctl: Calicoctl, records: TypedRecords) -> None:
    """As its host has it: a second record of one interface, and one whose interface is no workload's."""
    for name, interface, number in (("zweb", "cali1", 3), ("tap", "tap3", 4)):
        nets = (IPNetwork(f"10.0.0.{number}/32"),)
        record = WorkloadEndpoint(state="active", name=interface, profile_ids=("web",), ipv4_nets=nets)
        records.put(WorkloadEndpointKey("rack-a", "cni", name, "eth0"), record)
    second = f"another endpoint has the interface cali1: {WEB.path}"
    odd = "interface tap3: its name does not begin with 'cali'"
    for name, reason in (("zweb", second), ("tap", odd)):
        for asked in (("--from", "web", "--to", name), ("--from", name, "--to", "db")):
            out = calicoctl.ok("explain", *asked, "--port", "5432")
            assert out.startswith("DENIED"), out
            assert f"  {reason}" in out.splitlines()
    records.put(GlobalConfigKey("InterfacePrefix"), "cali,tap")
    asked = ("explain", "--from", "tap", "--to", "db", "--port", "5432")
    assert calicoctl.ok(*asked).startswith("ALLOWED")
    records.put(HostConfigKey("rack-a", "InterfacePrefix"), "tap")
    assert calicoctl.ok("explain", "--from", "web", "--to", "tap", "--port", "80").startswith("DENIED")
