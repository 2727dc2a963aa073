"""What the workload's own host makes of a packet beside policy: the metadata address, DHCP and DNS, tunnels."""

from __future__ import annotations

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.model.keys import GlobalConfigKey, HostConfigKey, ProfileRulesKey
from calico_core.model.rules import Rule, RuleLists
from calico_core.policy.explain import Packet
from calico_core.policy.flows import Cluster
from calico_core.settings import Settings
from tests.unit.policy.test_flows import A, ask, last, records

METADATA = "169.254.169.254"


def test_the_metadata_address_leads_where_policy_is_asked_about() -> None:
    found = records()
    found[ProfileRulesKey("p")] = RuleLists(outbound_rules=(Rule(action="allow", dst_net=IPNetwork("203.0.113.0/24")),))
    assert ask(found, dst=METADATA).outcome == "deny", "nobody leads it anywhere"
    found[GlobalConfigKey("MetadataAddr")] = "203.0.113.7"
    verdict = ask(found, dst=METADATA)
    assert (verdict.outcome, str(verdict.packet.dst)) == ("allow", METADATA)
    assert [(str(side.address), side.place) for side in verdict.sides] == [
        ("10.0.0.1", "workload"),
        ("203.0.113.7", "outside"),
    ]
    assert verdict.sides[0].reason == "the metadata address: led to 203.0.113.7 port 8775"
    assert ask(found, dst=METADATA, port=81).outcome == "deny"
    found[HostConfigKey("h1", "MetadataAddr")] = "203.0.114.7"
    assert ask(found, dst=METADATA).outcome == "deny"


@pytest.mark.parametrize("server", ["127.0.0.1", "192.0.2.1", "metadata.example"])
def test_the_host_s_own_metadata_service_is_open_to_all_that_may_send(server: str) -> None:
    found = records()
    found[ProfileRulesKey("p")] = RuleLists()
    found[GlobalConfigKey("MetadataAddr")], found[GlobalConfigKey("MetadataPort")] = server, "99"
    verdict = ask(found, dst=METADATA)
    assert verdict.outcome == "allow"
    assert f"led to {server} port 99" in verdict.sides[0].reason
    if server == "192.0.2.1":
        assert ask(found, dst=server, port=99).outcome == "allow", "by its own address, too"
        assert ask(found, dst=server, port=98).outcome == "deny"
    found[A] = msgspec.structs.replace(found[A], state="inactive")
    assert ask(found, dst=METADATA).outcome == "deny"


def test_the_loopback_of_a_host_is_for_itself() -> None:
    found = records()
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=(Rule(),), outbound_rules=(Rule(),))
    found[GlobalConfigKey("MetadataAddr")] = "127.0.0.1"
    for port in (80, 8775):
        verdict = ask(found, dst="127.0.0.1", port=port)
        assert (verdict.outcome, verdict.sides[0].steps) == ("deny", ())
        assert "127.0.0.1 is a loopback address" in verdict.sides[0].reason


@pytest.mark.parametrize(
    ("source_port", "port", "outcome"), [(68, 67, "allow"), (546, 547, "deny"), (9, 53, "allow"), (9, 67, "deny")]
)
def test_what_a_workload_may_always_ask_its_host(source_port: int, port: int, outcome: str) -> None:
    packet = Packet(
        src=IPAddress("10.0.0.1"), dst=IPAddress("192.0.2.1"), protocol=17, src_port=source_port, dst_port=port
    )
    cluster = Cluster(records().items(), defaults=Settings(endpoint_to_host="DROP"))
    assert cluster.explain(packet).outcome == outcome


@pytest.mark.parametrize(
    ("protocol", "port", "setting"),
    [(17, 4789, "AllowVXLANPacketsFromWorkloads"), (4, None, "AllowIPIPPacketsFromWorkloads")],
)
def test_a_workload_cannot_send_into_the_tunnels_of_hosts(protocol: int, port: int | None, setting: str) -> None:
    found = records()
    found[ProfileRulesKey("p")] = RuleLists(inbound_rules=(Rule(),), outbound_rules=(Rule(),))
    verdict = ask(found, protocol=protocol, port=port)
    assert (verdict.outcome, verdict.sides[0].steps) == ("deny", ())
    assert "from a workload: it could come out of the hosts' tunnels" in verdict.sides[0].reason
    found[HostConfigKey("h1", setting)] = "true"
    verdict = ask(found, protocol=protocol, port=port)
    assert verdict.outcome == "allow"
    assert last(verdict.sides[0]).name == "p"
