"""Denied packets and counters of rules, from the kernel to ``calicoctl``, with real nodes and packets."""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from typing import Any, Self

import pytest

from calico_core.lab.host import LabHost, executable
from calico_core.lab.probes import probe, probe_until
from calico_core.lab.topology import Laboratory
from calico_core.lab.workload import LabWorkload
from tests.waiting import eventually

pytestmark = pytest.mark.needs_root

LATER = 4444


class Followed:
    """``calicoctl denied`` in the background: ``lines`` are what it has said so far, to the end of the block."""

    def __init__(self, host: LabHost, *arguments: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            ["nsenter", f"--net={host.namespace}", "--", *executable("calicoctl"), "-o", "json", "denied", "--follow",
             *arguments],
            env=host.environment, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._thread.join()
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):  # the last one may be cut short by the end
                self.lines.append(json.loads(line))


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
    """The first of all says that it is there."""
    eventually(lambda: "denied.listening" in host.node_log.read_text(), within_s=60)


def test_who_is_denied_whom_and_by_which_rule(lab: Laboratory, pair: tuple[LabWorkload, LabWorkload]) -> None:
    (host,), (first, second) = lab.hosts, pair
    host.calicoctl("policy", "apply", "-f", "-", stdin=json.dumps(POLICY))
    assert probe_until(first, second, "tcp", is_reachable=False, within_s=10).is_reachable is False
    with Followed(host, "--endpoint", "192.0.2.200") as other:
        wait_for_listener(host)
        with Followed(host) as both:

            def heard() -> list[dict[str, Any]]:
                assert not probe(first, second, "tcp", timeout_s=0.2).is_reachable
                destination = str(second.addresses[0])
                return [each for each in both.lines if (each["protocol"], each["destination"]) == ("tcp", destination)]

            eventually(lambda: len(heard()) >= 3, within_s=60)
            found = heard()
        assert other.lines == []
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
    with Followed(host) as denied:
        wait_for_listener(host)
        for _ in range(3):
            assert probe_until(first, second, "tcp", is_reachable=True, within_s=10).is_reachable
        found = counts()
        assert found["inbound", 2] >= 3
        assert (found["inbound", 1], found["inbound", 3]) == (0, 0), "the rules after it are not asked"
        applied = host.calicoctl("explain", "endpoint", str(second.addresses[0])).stdout
        assert "policy p: staged" in applied
        host.calicoctl("policy", "apply", "-f", "-", stdin=json.dumps(POLICY))
        assert probe_until(first, second, "tcp", LATER, is_reachable=False, within_s=20).is_reachable is False
        eventually(lambda: denied.lines, within_s=60)
    assert {each["port"] for each in denied.lines} == {LATER}, "nothing was denied while it was staged"


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
