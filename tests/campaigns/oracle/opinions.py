"""What the project says of a packet, where it is its to say: the opinions that the oracle puts beside the kernel's."""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress

from calico_core.model.hoststate import HostState
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.policy.explain import Packet, explain, holder
from calico_core.policy.flows import Cluster
from tests.campaigns.oracle import ways
from tests.campaigns.oracle.bench import OUTSIDE
from tests.campaigns.oracle.cases import LOOPBACK, METADATA, METADATA_PORT, OTHER_HOST, flow_of

_HOST_ENDPOINTS = f"/calico/v1/host/{ways.HOST}/endpoint/"


def real(
    records: ways.Stored, cluster: Cluster, state: HostState, probe: dict[str, Any], way: ways.Way, to_host: str
) -> tuple[str | None, str | None]:
    """What ``flows`` and ``explain`` say, where it is theirs to say: they know nothing of interfaces and MACs, of
    connections, of routes, and of addresses of the host that no record names."""
    flow, via = flow_of(probe), probe["via"]
    packet = Packet(
        src=IPAddress(flow.src), dst=IPAddress(flow.dst), protocol=flow.protocol,
        src_port=flow.sport, dst_port=flow.dport, icmp=flow.icmp,
    )  # fmt: skip
    if probe.get("stray") or probe.get("mac"):
        return None, None
    sender, is_own = None, True
    if via.startswith("cali"):
        sender = WorkloadEndpointKey(ways.HOST, "k8s", f"w{via[4:]}", "eth0")
        workload = state.workloads.get(sender)
        if workload is None:
            return None, None
        is_own = any(packet.src in net for net in workload.nets)
    # which of several endpoints is an interface's, and whether it has one, only the host knows
    count = sum(1 for path in records if path.startswith(_HOST_ENDPOINTS))
    is_certain = not count or (count == 1 and ways.UPLINK in state.interfaces)
    is_always_let = flow.dport == 53 or flow.sport in (68, 546)
    is_asked_as_foreign = via == OUTSIDE or to_host == "DROP" or is_always_let or bool(count)
    is_to_other = flow.dst in OTHER_HOST and is_asked_as_foreign
    flows = None
    is_as_sent = via != OUTSIDE or not _is_masqueraded_elsewhere(records, cluster, flow)
    if is_certain and not is_to_other and is_as_sent and _is_routed_as_pools_say(records, cluster, way):
        sides = [side for side in cluster.explain(packet, source=sender).sides if side.host in (ways.HOST, None)]
        flows = "deny" if any(side.outcome == "deny" for side in sides) else "allow"
    # nor does ``explain`` know of a host without IPv6
    is_own = is_own and (packet.src.version == 4 or cluster.has_ipv6(ways.HOST))
    return flows, _told(state, packet, way, to_host, via) if is_own else None


def _is_masqueraded_elsewhere(records: ways.Stored, cluster: Cluster, flow: ways.Flow) -> bool:
    """Whether the host that the records give its source to would have changed it, as there is no such host here."""
    pools = [record for path, record in records.items() if "/pool/" in path]
    is_asked_for = any(pool.get("masquerade") and ways.contains(pool["cidr"], flow.src) for pool in pools)
    leaves = not any(ways.contains(pool["cidr"], flow.dst) for pool in pools)
    return is_asked_for and leaves and bool(cluster.carriers(IPAddress(flow.src)))


def _is_routed_as_pools_say(records: ways.Stored, cluster: Cluster, way: ways.Way) -> bool:
    """Where no endpoint has an address: ``flows`` says that what is of a pool is nobody's and all else is elsewhere."""

    def is_nobodys(address: str) -> bool:
        if cluster.carriers(IPAddress(address)):
            return False
        return any(ways.contains(pool["cidr"], address) for path, pool in records.items() if "/pool/" in path)

    return not is_nobodys(way.flow.src) and is_nobodys(way.flow.dst) == (way.to == ways.NOWHERE)


def _told(state: HostState, packet: Packet, way: ways.Way, to_host: str, via: str) -> str | None:
    """``explain`` knows the workloads of the host, and nothing else: one that sends from what another has is taken for
    the other, and it is not told what the host makes of the packet itself."""
    is_host_s = packet.dst_port in (53, 67, 547, METADATA_PORT) or to_host == "DROP"
    if (way.to == ways.TO_HOST and is_host_s) or _is_tunnel(packet) or str(packet.dst) in (METADATA, LOOPBACK):
        return None
    sender = holder(state.workloads.values(), packet.src)
    if not via or state.interfaces or way.to == ways.NOWHERE or (sender is not None and sender.interface != via):
        return None
    outcome = explain(state, packet).outcome
    return None if outcome == "unaffected" else outcome


def _is_tunnel(packet: Packet) -> bool:
    return packet.protocol == 4 or packet.dst_port == 4789
