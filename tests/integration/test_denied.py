"""Denied packets and counters of rules, from the kernel to ``calicoctl``, with real nodes and packets."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from calico_core.lab.host import LabHost
from calico_core.lab.probes import probe_until
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root


class Followed:
    """``calicoctl denied`` in the background, for as long as it takes."""

    def __init__(self, host: LabHost, *arguments: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._host, self._arguments = host, arguments
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        done = self._host.calicoctl("denied", "--seconds", "6", "-o", "json", *self._arguments)
        self.lines = [json.loads(line) for line in done.stdout.splitlines()]

    def end(self) -> list[dict[str, Any]]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.lines


@pytest.fixture(params=["nftables", "iptables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Laboratory]:
    with Laboratory.create(f"d{uuid.uuid4().hex[:8]}", 1, datastore="sqlite", routing="none") as made:
        (host,) = made.hosts
        host.start_node(environment={"CALICO_DATAPLANE_DRIVER": request.param})
        host.install_cni()
        yield made


@pytest.fixture
def pair(lab: Laboratory) -> tuple[LabWorkload, LabWorkload]:
    (host,) = lab.hosts
    first, second = lab.add_workload(host), lab.add_workload(host)
    for workload in (first, second):
        workload.attach(network="net")
    assert probe_until(first, second, "tcp", is_reachable=True, within_s=10).is_reachable
    return first, second


def wait_for_listener(host: LabHost) -> None:
    deadline = time.monotonic() + 15
    while "denied.listening" not in host.node_log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_is_denied_whom_and_by_which_rule(lab: Laboratory, pair: tuple[LabWorkload, LabWorkload]) -> None:
    (host,), (first, second) = lab.hosts, pair
    host.calicoctl("policy", "apply", "-f", "-", stdin=json.dumps(POLICY))
    assert probe_until(first, second, "tcp", is_reachable=False, within_s=10).is_reachable is False
    both, other = Followed(host), Followed(host, "--endpoint", "192.0.2.200")
    wait_for_listener(host)
    for _ in range(3):
        assert probe_until(first, second, "tcp", is_reachable=False, within_s=20).is_reachable is False
    lines = both.end()
    assert other.end() == []
    found = [each for each in lines if each["protocol"] == "tcp" and each["destination"] == str(second.addresses[0])]
    assert found
    assert found[0]["source"] == str(first.addresses[0])
    assert found[0]["source_endpoint"]["host"] == host.name
    rule = found[0]["denied_by"]
    assert (rule["tier"], rule["kind"], rule["name"], rule["direction"]) == ("default", "policy", "p", "inbound")
    assert (rule["position"], rule["text"]) == (2, "deny tcp")
    counted = json.loads(host.calicoctl("policy", "counters", "default", "p", "-o", "json").stdout)
    by_rule = {(each["direction"], each["position"]): each for each in counted}
    assert by_rule["inbound", 2]["text"] == "deny tcp"
    assert by_rule["inbound", 2]["packets"] >= 3
    assert by_rule["inbound", 1]["packets"] == 0


def test_a_staged_policy_counts_what_it_would_decide(lab: Laboratory, pair: tuple[LabWorkload, LabWorkload]) -> None:
    (host,), (first, second) = lab.hosts, pair
    staged = {**POLICY, "policy": {**POLICY["policy"], "staged": True}}
    host.calicoctl("policy", "apply", "-f", "-", stdin=json.dumps(staged))

    def counts() -> dict[tuple[str, int], int]:
        done = host.calicoctl("policy", "counters", "default", "p", "-o", "json", check=False)
        rows = json.loads(done.stdout) if done.returncode == 0 else []
        return {(each["direction"], each["position"]): each["packets"] for each in rows}

    eventually(lambda: ("inbound", 2) in counts())
    denied = Followed(host)
    wait_for_listener(host)
    for _ in range(3):
        assert probe_until(first, second, "tcp", is_reachable=True, within_s=10).is_reachable
    found = counts()
    assert found["inbound", 2] >= 3
    assert (found["inbound", 1], found["inbound", 3]) == (0, 0), "the rules after it are not asked"
    assert denied.end() == []
    applied = host.calicoctl("explain", "endpoint", str(second.addresses[0])).stdout
    assert "policy p: staged" in applied
    host.calicoctl("policy", "apply", "-f", "-", stdin=json.dumps(POLICY))
    assert probe_until(first, second, "tcp", is_reachable=False, within_s=10).is_reachable is False


POLICY: dict[str, Any] = {
    "tier": "default",
    "name": "p",
    "policy": {
        "selector": "all()",
        "inbound_rules": [
            {"action": "allow", "protocol": "sctp"},
            {"action": "deny", "protocol": "tcp"},
            {"action": "allow"},
        ],
        "outbound_rules": [{"action": "allow"}],
    },
}
