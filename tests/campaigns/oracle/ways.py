"""Where a packet goes and what it looks like there, read off the stored records: routes and translation.

Shares no line with the project, as :mod:`naive`, which asks policy about it. Source: felix specification 6.7 and 6.9.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

Stored = dict[str, Any]
Failsafe = tuple[int, int, str | None]
HOST, UPLINK = "here", "up0"
TO_HOST, NOWHERE = "", "nowhere"
_LOCAL = f"/calico/v1/host/{HOST}/workload/"


class Flow(NamedTuple):
    """The first packet of one."""

    src: str
    dst: str
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None

    @property
    def version(self) -> int:
        return ip_address(self.src).version


class Place(NamedTuple):
    """What the records do not say: the host's own addresses, those of its uplink, the networks of which it has every
    address or nobody, what it does with packets of workloads to them, its fail-safe ports as (protocol, port, whom),
    whether its kernel can answer before connection tracking and translation: iptables rejects in its filter table only
    (iptables-extensions(8)), whether it lets workloads send from the prefixes that their records allow, and where it
    leads what they send to the metadata address, if anywhere, and whether it knows IPv6 for them and its policy."""

    host_addresses: frozenset[str]
    uplink_addresses: frozenset[str]
    own_nets: tuple[str, ...]
    to_host: str
    failsafe_in: tuple[Failsafe, ...]
    failsafe_out: tuple[Failsafe, ...]
    answers_early: bool = True
    lets_spoof: bool = False
    metadata: tuple[str, int] | None = None
    has_ipv6: bool = True

    def is_without(self, flow: Flow) -> bool:
        """Whether it knows nothing of its family."""
        return flow.version == 6 and not self.has_ipv6


class Way(NamedTuple):
    """``to``: the interface it leaves by, or one of the words above. ``receiver``: the workload endpoint there.
    ``flow``: as policy behind translation sees it. ``sources``: what its receiver may see it come from."""

    to: str
    receiver: Any
    flow: Flow
    sources: frozenset[str]


def way_of(
    records: Stored, place: Place, flow: Flow, *, is_tracked: bool = True, is_from_workload: bool = False
) -> Way:
    """What is not tracked is not translated."""
    if is_from_workload and place.metadata is not None and is_to_metadata(flow):
        flow = flow._replace(dst=place.metadata[0], dport=place.metadata[1])
    external = None if place.is_without(flow) else _floating(records, flow.dst)
    if external is not None and is_tracked:
        flow = flow._replace(dst=external[1])
    # a floating address has a route of its own: to whom it leads
    receiver = holder(records, flow.dst) if external is None else external[0]
    if place.is_without(flow):
        receiver = None
    if flow.dst in place.host_addresses:
        return Way(TO_HOST, None, flow, frozenset({flow.src}))
    to = receiver["name"] if receiver is not None else UPLINK
    if receiver is None and any(contains(net, flow.dst) for net in place.own_nets):
        to = NOWHERE
    return Way(to, receiver, flow, _sources(records, place, flow) if is_tracked else frozenset({flow.src}))


def is_to_metadata(flow: Flow) -> bool:
    return (flow.dst, flow.protocol, flow.dport) == ("169.254.169.254", 6, 80)


def _sources(records: Stored, place: Place, flow: Flow) -> frozenset[str]:
    """The hairpin, then the pools that are masqueraded: to what is in no pool."""
    known_as = [each for each in _externals(records) if _leads_to(records, each) == flow.dst]
    if flow.src == flow.dst and known_as:
        return frozenset({min(known_as, key=ip_address)})
    pools = [record for path, record in records.items() if "/pool/" in path]
    is_masqueraded = any(pool.get("masquerade") and contains(pool["cidr"], flow.src) for pool in pools)
    if is_masqueraded and not any(contains(pool["cidr"], flow.dst) for pool in pools):
        return frozenset(each for each in place.host_addresses if ip_address(each).version == flow.version)
    return frozenset({flow.src})


def interface_of(records: Stored, place: Place, address: str) -> str:
    """Where packets to it go that are not translated."""
    return way_of(records, place, Flow(address, address, 0), is_tracked=False).to


# --- who has an address --------------------------------------------------------------------------------------------


def local(records: Stored) -> list[Any]:
    """This host's endpoints, in the order of their paths."""
    return [records[path] for path in sorted(records) if path.startswith(_LOCAL)]


def holder(records: Stored, address: str) -> Any:
    """The active endpoint of this host's that has the address: of several the first."""
    return next((each for each in _active(records) if address in addresses(each)), None)


def addresses(endpoint: Any) -> set[str]:
    nets = [*endpoint.get("ipv4_nets", ()), *endpoint.get("ipv6_nets", ())]
    return {str(ip_network(net).network_address) for net in nets}


def contains(net: str, address: str) -> bool:
    return ip_address(address) in ip_network(net)


def _active(records: Stored) -> list[Any]:
    return [each for each in local(records) if each["state"] == "active"]


def _nats(endpoint: Any) -> list[tuple[str, str]]:
    """As (external, internal)."""
    nats = [*endpoint.get("ipv4_nat", ()), *endpoint.get("ipv6_nat", ())]
    return [(each["ext_ip"], each["int_ip"]) for each in nats]


def _externals(records: Stored) -> set[str]:
    return {external for each in _active(records) for external, _ in _nats(each)}


def _floating(records: Stored, address: str) -> tuple[Any, str] | None:
    """The endpoint that it leads to, and which of its own addresses: the first of both. One that leads to an address
    which another endpoint has leads nobody anywhere."""
    for endpoint in _active(records):
        internal = [each for external, each in _nats(endpoint) if external == address]
        if internal:
            found: str = min(internal, key=ip_address)
            return (endpoint, found) if holder(records, found) is endpoint else None
    return None


def _leads_to(records: Stored, external: str) -> str | None:
    found = _floating(records, external)
    return None if found is None else found[1]
