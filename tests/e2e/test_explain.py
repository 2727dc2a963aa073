"""What ``calicoctl explain`` says is what packets do."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.probes import ProbeKind, probe_until
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests.e2e.observing import MakeLab, passes

pytestmark = pytest.mark.needs_root

POLICIES = """
tier: security
name: no-database
policy:
  selector: all()
  order: 10
  types: [ingress]
  inbound_rules:
    - {action: deny, protocol: tcp, dst_ports: [5432]}
    - {action: deny, protocol: icmp, ip_version: 4, src_tag: backend}
    - {action: next-tier}
---
tier: security
name: udp-of-mesh
policy:
  selector: all()
  order: 5
  types: [egress]
  outbound_rules:
    - {action: deny, protocol: udp, dst_ports: ["5000:5100"]}
    - {action: pass}
"""


class Case(NamedTuple):
    source: str
    target: str
    kind: ProbeKind
    port: int
    passes: bool
    says: str
    """Part of the step that decides, as text."""


CASES = (
    Case("web", "web2", "tcp", 80, True, "profile front → rule 1"),
    Case("web", "web2", "tcp", 5432, False, "tier security → policy no-database → rule 1"),
    Case("web", "web2", "icmp", 0, True, "profile front → rule 1"),
    Case("web", "web2", "udp", 5050, False, "tier security → policy udp-of-mesh → rule 1"),
    Case("web", "web2", "udp", 5101, True, "profile front → rule 1"),
    Case("back", "web", "tcp", 80, False, "no profile decides"),
    Case("back", "web", "icmp", 0, False, "policy no-database → rule 2"),
    Case("web", "back", "tcp", 8080, True, "profile backend → rule 3"),
    Case("web", "back", "tcp", 8081, False, "no profile decides"),
    Case("web", "back", "icmp", 0, False, "no profile decides"),
    Case("back", "bare", "tcp", 80, False, "missing profile"),
    Case("bare", "back", "tcp", 8080, False, "missing profile"),
    Case("far", "web", "tcp", 80, True, "profile front → rule 1"),
    Case("far", "back", "tcp", 8081, False, "no profile decides"),
)


@pytest.fixture
def lab(make_lab: MakeLab) -> Laboratory:
    return make_lab(2, routing="none")


def _populate(lab: Laboratory) -> dict[str, LabWorkload]:
    here, there = lab.hosts
    workloads = {}
    for name, host, network in (
        ("web", here, "front"),
        ("web2", here, "front"),
        ("back", here, "backend"),
        ("bare", here, "doomed"),
        ("far", there, "front"),
    ):
        workloads[name] = lab.add_workload(host)
        workloads[name].attach(network=network)
    # a rule that can match no packet stands in front: positions are those of the record all the same
    rule = ("profile", "backend", "rule", "add")
    here.calicoctl(*rule, "inbound", "allow", "tcp", "from", "tag", "front", "to", "ports", "8080")
    here.calicoctl(*rule, "--at", "1", "inbound", "deny", "tcp", "from", "cidr", "10.0.0.0/8", "to", "cidr", "fd00::/8")
    here.calicoctl("profile", "remove", "--force", "doomed")
    here.calicoctl("tier", "add", "security", "--order", "1")
    here.calicoctl("policy", "apply", "-f", "-", stdin=POLICIES)
    _route(here, workloads["far"], there)
    for name in ("web", "web2", "back", "bare"):
        _route(there, workloads[name], here)
    return workloads


def _route(host: LabHost, workload: LabWorkload, via: LabHost) -> None:
    """As a routing daemon would."""
    host.run(["ip", "route", "replace", str(workload.addresses[0]), "via", str(via.addresses[0])])


def _explain(host: LabHost, source: str, target: str, kind: str, port: int, *more: str) -> dict[str, Any]:
    flow = ["--protocol", kind, *(["--port", str(port)] if port else [])]
    done = host.calicoctl("explain", "--from", source, "--to", target, *flow, *more, "-o", "json", check=False)
    assert done.returncode in {0, 6}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert ("--exit-code" in more and found["verdict"] == "denied") == (done.returncode == 6)
    return found


def test_what_it_says_is_what_packets_do(lab: Laboratory) -> None:
    workloads = _populate(lab)
    host = lab.hosts[0]
    wait = probe_until(workloads["web"], workloads["web2"], "tcp", 5432, is_reachable=False, within_s=30)
    assert not wait.is_reachable
    differing = []
    for case in CASES:
        source, target = workloads[case.source], workloads[case.target]
        ends = str(source.addresses[0]), str(target.addresses[0])
        found = _explain(host, *ends, case.kind, case.port, "--exit-code")
        text = " ".join(_words(step) for side in found["sides"] for step in side["steps"])
        is_open = passes(source, target, case.kind, case.port, is_expected=case.passes)
        if not ((found["verdict"] == "allowed") == is_open == case.passes and case.says in text):
            differing.append((case, found["verdict"], is_open, text))
    assert not differing
    assert found["notes"] == []
    flow = f"{workloads['web'].addresses[0]}:40000,{workloads['web2'].addresses[0]}:5432,tcp"
    text = host.calicoctl("explain", "--flow", flow).stdout
    assert text.startswith("DENIED: tcp from ")
    assert "tier security → policy no-database → rule 1: deny tcp to ports 5432: denied" in text


def _words(step: dict[str, Any]) -> str:
    if step["position"] is None:
        return str(step["reason"])
    tier = f"tier {step['tier']} → " if step["tier"] else ""
    return f"{tier}{step['kind']} {step['name']} → rule {step['position']}"


def test_names_outside_hosts_and_the_unknown(lab: Laboratory) -> None:
    workloads = _populate(lab)
    host = lab.hosts[0]
    endpoints = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    by_address = {endpoint["addresses"][0]: endpoint for endpoint in endpoints}
    web, back = (by_address[str(workloads[name].addresses[0])] for name in ("web", "back"))

    by_id = _explain(host, web["endpoint"], back["workload"], "tcp", 8080)
    assert by_id["verdict"] == "allowed"
    assert [side["endpoint"] for side in by_id["sides"]] == [web["endpoint"], back["endpoint"]]
    assert by_id["sides"][1]["steps"][-1]["position"] == 3

    outside = _explain(host, web["endpoint"], "198.51.100.7", "tcp", 443)
    assert (outside["verdict"], outside["sides"][1]["place"]) == ("allowed", "outside")
    unknown = _explain(host, web["endpoint"], "192.168.255.254", "tcp", 443, "--exit-code")
    assert (unknown["verdict"], unknown["sides"][1]["place"]) == ("denied", "unknown")

    # from the host to its own workload, and from the neighbour host
    for each in lab.hosts:
        said = _explain(host, f"host:{each.name}", back["endpoint"], "tcp", 8081)
        is_own = each.name == host.name
        is_open = passes(each, workloads["back"], "tcp", 8081, is_expected=is_own)
        assert (said["verdict"] == "allowed") == is_open == is_own, each.name

    to_host = _explain(host, web["endpoint"], f"host:{host.name}", "tcp", 8000)
    assert (to_host["verdict"] == "allowed") == passes(workloads["web"], host, "tcp", 8000)

    host.kill_node()
    lab.hosts[1].stop_node()
    there = by_address[str(workloads["far"].addresses[0])]["endpoint"]
    assert "does not run" in " ".join(_explain(host, there, back["endpoint"], "tcp", 8080)["notes"])
    assert host.calicoctl("explain", "--from", "nobody", "--to", "1.2.3.4", check=False).returncode == 4
    assert host.calicoctl("explain", "--from", web["endpoint"], "--to", back["endpoint"], check=False).returncode == 2
