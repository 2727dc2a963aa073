"""The records of the peers' benchmarks of policy calculation, and what must come out of them.

Addresses count up from 10.0.0.1, every one used once. A profile ``kns.NAME`` in the peers' words is ``NAME`` here.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import Any, NamedTuple

from netaddr import IPNetwork

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import (
    Key,
    NetworkSetKey,
    PolicyKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import NetworkSet, Policy
from calico_core.model.rules import Rule, RuleLists

Updates = list[tuple[Key, Any]]
HOST = "localhost"
_SEVEN = tuple(f"calico/{name}" for name in (
    "FizzBuzz", "BoffBip", "Bazzle", "Razzle", "DoopDeeDoo", "SOME_LABEL", "BORED_NOW",
))  # fmt: skip
MARKERS = (
    "FOO_BAR", "FOO_BAR", "BIFF_BOP", *_SEVEN, "MyMarkerLabel",
    *(f"x{name}" for name in ("FOO_BAR", "BIFF_BOP", *_SEVEN)),
    *(f"yx{name}" for name in ("MyMarkerLabel", "FOO_BAR", "BIFF_BOP", *_SEVEN, "MyMarkerLabel")),
)  # fmt: skip
FIRST = 0x0A000001
SIZES = (1, 1, 1, 1, 2, 3, 4, 5, 100, 1000)
DNS = IPNetwork("10.96.0.10/32")


class Counts(NamedTuple):
    """What a first batch brings. ``rule_lists``: of policies and profiles. ``listed``: policies over all endpoints and
    both directions."""

    sets: int
    members: int
    rule_lists: int
    rules: int
    workloads: int
    listed: int


def net(address: int) -> IPNetwork:
    return IPNetwork((address, 32), version=4)


def endpoints(count: int, host: str, *, first: int) -> Iterator[tuple[Key, Any]]:
    for number in range(first, first + count):
        serial = number + 1
        labels = {f"one-in-{n}": f"value-{serial % n}" for n in (10, 11, 20, 30, 40)}
        labels[MARKERS[serial % len(MARKERS)]] = "true"
        yield (
            WorkloadEndpointKey(host, "k8s", f"wep-{number}", "eth0"),
            WorkloadEndpoint(
                state="active",
                name=f"cali{number}",
                profile_ids=(f"namespace-{number % 100}",),
                ipv4_nets=(net(FIRST + number),),
                labels=labels,
            ),
        )


def profiles() -> Iterator[tuple[Key, Any]]:
    for number in range(100):
        name = f"namespace-{number}"
        yield ProfileLabelsKey(name), {"pcns.projectcalico.org/name": name}
        yield ProfileRulesKey(name), RuleLists()


def tags() -> tuple[Updates, Counts]:
    """10,000 policies, 250,000 remote and 200 local endpoints."""
    updates: Updates = []
    size = len(MARKERS)
    for number in range(10_000):
        rules = tuple(Rule(src_selector=f"has({MARKERS[(number + j) % size]})") for j in range(5))
        policy = Policy(selector=f"has({MARKERS[number % size]})", inbound_rules=rules)
        updates.append((PolicyKey("default", f"policy-{number}"), policy))
    updates += profiles()
    updates += endpoints(250_000, "remote", first=0)
    updates += endpoints(200, HOST, first=250_000)
    return updates, Counts(29, 250_200, 10_100, 50_000, 200, 145_786)


def network_sets(count: int) -> tuple[Updates, Counts]:
    """So many network sets, each with a policy for all 200 local endpoints."""
    updates: Updates = [*profiles(), *endpoints(10_000, "remote", first=0)]
    address = FIRST
    for number in range(count):
        name = f"network-set-{number}"
        size = SIZES[number % len(SIZES)]
        nets = tuple(net(address + i) for i in range(size))
        address += size
        updates.append((NetworkSetKey(name), NetworkSet(nets=nets, labels={"network-set-name": name})))
        rule = Rule(src_selector=f"network-set-name == '{name}'")
        updates.append((PolicyKey("default", f"policy-{number}"), Policy(selector="all()", inbound_rules=(rule,))))
    updates += endpoints(200, HOST, first=10_000)
    return updates, Counts(count, address - FIRST, count + 100, count, 200, 400 * count)


def customers(count: int) -> tuple[Updates, Counts]:
    """So many namespaces of one endpoint, which may speak within themselves; 100 of the endpoints are local."""
    chance = random.Random(7)

    def text(length: int) -> str:
        return "".join(chance.choices(string.ascii_lowercase + string.digits, k=length))

    tenants = [text(10) for _ in range(5_000)]
    updates: Updates = []
    for number in range(count):
        name = f"customer-{number}"
        own = f"pcns.projectcalico.org/name == '{name}'"
        policy = Policy(
            selector=own,
            inbound_rules=(Rule(src_selector=own),),
            outbound_rules=(Rule(dst_selector=own), Rule(protocol="udp", dst_nets=(DNS,), dst_ports=(53,))),
            types=("ingress", "egress"),
        )
        updates.append((PolicyKey("default", f"{name}/isolated"), policy))
    for number in range(count):
        name = f"customer-{number}"
        labels = {"name": name, "namespace-id": text(20), "production": "false" if number % 2 else "true"}
        updates.append(
            (ProfileLabelsKey(name), {f"pcns.projectcalico.org/{key}": value for key, value in labels.items()})
        )
        updates.append((ProfileRulesKey(name), RuleLists()))
    step = count // 100
    for number in range(count):
        labels = {
            **{name: text(length) for name, length in zip("abcde", (20, 20, 10, 20, 8), strict=True)},
            **{
                name: str(number >> bit & 1)
                for bit, name in enumerate(("enabled", "debug", "canary", "managed"))
            },
            **{
                name: f"{name}-{number % values}"
                for name, values in (("environment", 3), ("tier", 4), ("region", 4), ("team", 5))
            },
            "product": "the-same",
            "tenant-id": tenants[number % len(tenants)],
        }  # fmt: skip
        endpoint = WorkloadEndpoint(
            state="active",
            name=f"cali{number}",
            profile_ids=(f"customer-{number}",),
            ipv4_nets=(net(FIRST + number),),
            labels=labels,
        )
        host = "remote" if number % step else HOST
        updates.append((WorkloadEndpointKey(host, "k8s", f"customer-{number}", "eth0"), endpoint))
    return updates, Counts(100, 100, 200, 300, 100, 200)
