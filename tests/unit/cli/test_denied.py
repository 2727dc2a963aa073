"""``calicoctl denied`` and the counters, against a node's socket that answers what a kernel told it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.memory import MemoryDataplane
from calico_core.datastore.records import TypedRecords
from calico_core.interfaces.dataplane import DataplaneOptions, DenialOrigin, DeniedPacket
from calico_core.interfaces.integration import Call, CallReply
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import RulesId
from calico_core.model.keys import HostIpKey, PolicyKey, ProfileRulesKey, WorkloadEndpointKey
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule, RuleLists
from calico_core.node.denied import DeniedLog, parse_question
from calico_core.node.socket_api import SocketServer
from tests.unit.cli.conftest import Calicoctl

SELF, POLICY = RulesId("profile/web"), RulesId("policy/default/db")
COUNTS = [
    {"rules": SELF, "direction": "inbound", "rule": 0, "action": "allow", "packets": 5, "bytes": 300},
    {"rules": POLICY, "direction": "inbound", "rule": 1, "action": "deny", "packets": 7, "bytes": 420},
]


class Node:
    """Its socket, and the packets that it will hear of as soon as somebody listens."""

    def __init__(self, dataplane: MemoryDataplane) -> None:
        self.dataplane, self.log = dataplane, DeniedLog(dataplane)
        self.packets: list[DeniedPacket] = []

    def answer(self, call: Call) -> CallReply:
        command, *words = call.stdin.decode().split()
        if command == "counters":
            return CallReply(stdout=json.dumps(COUNTS).encode())
        cursor, wait_s = parse_question(iter(words))
        found = self.log.after(cursor, 0 if cursor is None else wait_s)
        if cursor is None:
            for packet in self.packets:
                self.dataplane.deny(packet)
        return CallReply(stdout=json.dumps(found).encode())


@pytest.fixture
def node(calicoctl: Calicoctl, tmp_path: Path) -> Iterator[Node]:
    del calicoctl
    made = Node(MemoryDataplane.open(DataplaneOptions(denied_group=7)))
    (tmp_path / "run").mkdir(exist_ok=True)
    server = SocketServer(str(tmp_path / "run" / "node.sock"), made.answer)
    server.start()
    yield made
    made.log.close()
    server.stop()


@pytest.fixture
def records(records: TypedRecords) -> TypedRecords:
    for name, address in (("web-1", "10.0.0.7"), ("db-1", "10.0.0.9")):
        endpoint = WorkloadEndpoint(state="active", name=f"cali{name}", ipv4_nets=(IPNetwork(f"{address}/32"),))
        records.put(WorkloadEndpointKey("rack-a", "cni", name, "eth0"), endpoint)
    records.put(HostIpKey("rack-b"), "192.0.2.2")
    records.put(ProfileRulesKey("web"), RuleLists(inbound_rules=(Rule(action="allow"),)))
    rules = (Rule(action="allow", protocol="udp"), Rule(action="deny", protocol="tcp"))
    records.put(PolicyKey("default", "db"), Policy(selector="all()", inbound_rules=rules))
    return records


def denied(origin: DenialOrigin, source: str = "10.0.0.7", **fields: object) -> DeniedPacket:
    values: dict[str, object] = {"protocol": 6, "src_port": 40112, "dst_port": 5432}
    return DeniedPacket(
        origin=origin, time=1.5, in_interface="caliweb-1", out_interface="", src=IPAddress(source),
        dst=IPAddress("10.0.0.9"), **{**values, **fields},
    )  # fmt: skip


def test_words(calicoctl: Calicoctl, node: Node, records: TypedRecords) -> None:
    del records
    node.packets = [
        denied(DenialOrigin(reason="rule", direction="inbound", rules=POLICY, rule=1)),
        denied(DenialOrigin(reason="rule", direction="inbound", rules=POLICY, rule=9)),
        denied(DenialOrigin(reason="end of tier", direction="inbound", tier="default"), source="192.0.2.2"),
        denied(DenialOrigin(reason="no profile matched", direction="outbound"), source="198.51.100.1"),
        denied(DenialOrigin(reason="spoofed source"), protocol=1, src_port=None, dst_port=None, icmp=(8, 0)),
    ]
    lines = calicoctl.ok("denied", "--seconds", "1").splitlines()
    whom = "10.0.0.9 port 5432 (db-1 on rack-a)"
    says = [line.partition(" ")[2] for line in lines]
    assert says == [
        (
            f"tcp from 10.0.0.7 port 40112 (web-1 on rack-a) to {whom}: "
            "inbound, tier default → policy db → rule 2: deny tcp"
        ),
        (
            f"tcp from 10.0.0.7 port 40112 (web-1 on rack-a) to {whom}: "
            "inbound, policy/default/db: its rules have changed since"
        ),
        f"tcp from 192.0.2.2 port 40112 (host rack-b) to {whom}: inbound, tier default → none of its policies decides",
        f"tcp from 198.51.100.1 port 40112 to {whom}: outbound, no policy and no profile of it allows this",
        "icmp type/code 8/0 from 10.0.0.7 (web-1 on rack-a) to 10.0.0.9 (db-1 on rack-a): spoofed source",
    ]


def test_one_endpoint_and_json(calicoctl: Calicoctl, node: Node, records: TypedRecords) -> None:
    del records
    origin = DenialOrigin(reason="rule", direction="inbound", rules=POLICY, rule=1)
    node.packets = [denied(origin), denied(origin, source="198.51.100.1")]
    lines = calicoctl.ok("denied", "--seconds", "1", "--endpoint", "web-1", "-o", "json").splitlines()
    (found,) = [json.loads(line) for line in lines]
    assert (found["protocol"], found["source"], found["port"]) == ("tcp", "10.0.0.7", 5432)
    assert found["destination_endpoint"] == {"host": "rack-a", "workload": "db-1", "endpoint": "eth0"}
    assert found["denied_by"] == {
        "tier": "default", "kind": "policy", "name": "db", "direction": "inbound", "position": 2, "text": "deny tcp",
    }  # fmt: skip


def test_a_host_address_that_is_none_hides_nothing(calicoctl: Calicoctl, node: Node, records: TypedRecords) -> None:
    for number, text in enumerate(("garbage", "", "2001:db8::1")):
        records.put(HostIpKey(f"odd-{number}"), text)
    node.packets = [denied(DenialOrigin(reason="end of tier", direction="inbound", tier="default"), source="192.0.2.2")]
    assert "(host rack-b)" in calicoctl.ok("denied", "--seconds", "1", "--endpoint", "db-1")


def test_what_cannot_be(calicoctl: Calicoctl, records: TypedRecords) -> None:
    del records
    assert "no node answers" in calicoctl("denied").err
    assert "one object a line" in calicoctl("denied", "-o", "yaml").err
    assert calicoctl("denied", "--endpoint", "nobody").code != 0


def test_counters(calicoctl: Calicoctl, node: Node, records: TypedRecords) -> None:
    del node, records
    (rule,) = calicoctl("policy", "counters", "-o", "json").json
    assert rule == {
        "tier": "default", "name": "db", "direction": "inbound", "position": 2, "text": "deny tcp", "packets": 7,
        "bytes": 420,
    }  # fmt: skip
    (rule,) = calicoctl("profile", "counters", "web", "-o", "json").json
    assert (rule["name"], rule["position"], rule["text"], rule["packets"]) == ("web", 1, "allow", 5)
    done = calicoctl("policy", "counters", "default", "other")
    assert (done.code != 0, "in force" in done.err) == (True, True)
