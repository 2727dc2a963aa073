"""``usePodCidr`` in place of a subnet: the range that the Kubernetes cluster gave the node for its pods.

Only an ADD needs to know it. Everything else is about addresses that are known already: it does without the API, and
another plugin is shown a subnet that holds any address. Source: cni specification 5.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from calico_core.errors import InvalidRequest
from calico_core.model.addresses import parse_network

_WORDS = {"usepodcidr": 4, "usepodcidripv6": 6}
_ANY = {4: "0.0.0.0/0", 6: "::/0"}
_FIELD = "ipam.subnet"


def wants_pod_cidr(stdin: bytes) -> bool:
    """Whether a subnet of a parsed configuration is one of the words. Cheap: most have none."""
    if b'"usepodcidr' not in stdin.lower():
        return False
    parts = _parts(msgspec.json.decode(stdin).get("ipam"))
    return any(_version_asked(part) is not None for part in parts)


def with_any_subnet(stdin: bytes) -> bytes:
    """For a plugin that shall release or look, not assign."""
    return _replaced(stdin, _ANY.__getitem__) if wants_pod_cidr(stdin) else stdin


def with_pod_cidrs(stdin: bytes, pod_cidrs: tuple[str, ...], *, node: str) -> bytes:
    """:raises InvalidRequest: the node has no range of a wanted family."""
    ranges: Mapping[int, str] = {
        network.version: str(network) for network in (parse_network(each, field="podCIDRs") for each in pod_cidrs)
    }

    def range_of(version: int) -> str:
        if version not in ranges:
            has = ", ".join(ranges.values()) or "none"
            raise InvalidRequest(_FIELD, f"node {node} has no IPv{version} range for its pods (podCIDRs: {has})")
        return ranges[version]

    return _replaced(stdin, range_of)


def _replaced(stdin: bytes, subnet_of: Callable[[int], str]) -> bytes:
    configuration = msgspec.json.decode(stdin)
    for each in _parts(configuration.get("ipam")):
        version = _version_asked(each)
        if version is not None:
            each["subnet"] = subnet_of(version)
    return msgspec.json.encode(configuration)


def _version_asked(part: Mapping[str, Any]) -> int | None:
    return _WORDS.get(str(part.get("subnet", "")).lower())


def _parts(ipam: Any) -> list[dict[str, Any]]:
    """Everything that may have a subnet, in whatever shape the configuration came."""
    if not isinstance(ipam, dict):
        return []
    ranges = ipam.get("ranges")
    groups = [group for group in ranges if isinstance(group, list)] if isinstance(ranges, list) else []
    return [ipam, *(part for group in groups for part in group if isinstance(part, dict))]
