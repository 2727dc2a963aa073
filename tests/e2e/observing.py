"""What end-to-end tests look at: the kernel of a host, and the datastore."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from calico_core.lab.host import LabHost
from calico_core.lab.probes import ProbeKind, probe
from calico_core.lab.station import Station
from calico_core.lab.topology import Laboratory

MakeLab = Callable[..., Laboratory]
ALLOWED_S, DENIED_S = 5.0, 0.5


def passes(
    source: Station, target: Station, kind: ProbeKind = "tcp", port: int = 0, *, is_expected: bool = True
) -> bool:
    """Whether the target answers, now. A busy machine may take its time over what must pass; what must not is not
    waited for as long."""
    return probe(source, target, kind, port, timeout_s=ALLOWED_S if is_expected else DENIED_S).is_reachable


def kernel_state(host: LabHost) -> dict[str, Any]:
    """Links, routes and our table's objects of a host, without what changes by itself (indexes, handles, counters)."""
    links = json.loads(host.run(["ip", "-j", "link"]).stdout)
    routes = host.run(["ip", "-4", "route"]).stdout.splitlines() + host.run(["ip", "-6", "route"]).stdout.splitlines()
    ruleset = host.run(["nft", "-j", "list", "table", "inet", "calico"]).stdout
    return {
        "links": sorted(link["ifname"] for link in links),
        "routes": sorted(route for route in routes if "fe80::" not in route),
        "nft": _without_numbers(json.loads(ruleset)),
    }


def kernel_handles(host: LabHost) -> dict[str, int]:
    """nft handle of every object and rule of the host: those of iptables have one too."""
    listing = json.loads(host.run(["nft", "-j", "-a", "list", "ruleset"]).stdout)
    handles = {}
    for entry in listing["nftables"]:
        for kind, found in entry.items():
            if "handle" in found:
                handles[f"{kind} {found.get('chain', '')} {found.get('name', '')} {found['handle']}"] = found["handle"]
    return handles


def workload_keys(host: LabHost) -> list[str]:
    """Datastore keys that belong to workloads: endpoints, handles, their status, and addresses in use."""
    endpoints = json.loads(host.calicoctl("endpoint", "show", "-o", "json").stdout)
    pools = json.loads(host.calicoctl("ipam", "show", "-o", "json").stdout)
    return [endpoint["endpoint"] for endpoint in endpoints] + [pool["cidr"] for pool in pools if pool["used"]]


def _without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"packets", "bytes"}:
            return "counter"
        return {name: _without_numbers(entry) for name, entry in value.items() if name not in {"handle", "metainfo"}}
    if isinstance(value, list):
        return [_without_numbers(entry) for entry in value]
    return value
