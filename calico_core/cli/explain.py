"""``calicoctl explain``: would this flow pass, and which rule decides?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.explain_many import PORT_WANTED, PREFIX, answer_pairs
from calico_core.cli.flow_words import (
    Party,
    common_addresses,
    find_party,
    icmp_of,
    parse_flow,
    parse_icmp,
    parse_port,
    protocol_of,
    protocol_word,
)
from calico_core.cli.output import answer_one
from calico_core.cli.rule_words import render_rule
from calico_core.errors import InvalidRequest
from calico_core.model import codec
from calico_core.model.addresses import parse_address
from calico_core.model.endpoints import ALL_INTERFACES
from calico_core.model.hosts import NODE_STOPPED
from calico_core.model.keys import (
    BGP_HOSTS,
    FELIX_STATUS,
    NODE_STATUS,
    V1,
    NodeStatusKey,
    WorkloadEndpointKey,
    WorkloadStatusKey,
)
from calico_core.model.rules import PORT_PROTOCOLS
from calico_core.policy.explain import Packet
from calico_core.policy.flows import Cluster, FlowVerdict, PassedOver, RuleStep, Side
from calico_core.policy.host_settings import DROP_OVERRIDE

_EPHEMERAL_PORT = 49152
"""The sender's port where none is named: of the range that RFC 6335 leaves to such."""
_EXIT_DENIED = 6
_WORDS = {"allow": "allowed", "deny": "denied", "pass": "passed on", "unaffected": "not asked", None: "not asked"}
_ENDS = {"outbound": "source", "inbound": "destination"}


@click.command()
@click.argument("words", metavar="[endpoint E]", nargs=-1)
@click.option(
    "--from",
    "source",
    metavar="A",
    help="Endpoint id or its beginning, workload, address, host:NAME or selector:SELECTOR.",
)
@click.option("--to", "destination", metavar="B", help="The same.")
@click.option("--protocol", metavar="NAME", help="tcp (without it), udp, icmp, … or a number.")
@click.option("--port", metavar="N", help="Destination port.")
@click.option("--source-port", metavar="N", help="Source port; without it one of those that clients get.")
@click.option("--source-address", metavar="IP", help="What endpoint A sends from, if not from an address of its own.")
@click.option("--icmp", metavar="TYPE/CODE", help="ICMP type and code; without it an echo request.")
@click.option("--ip-version", type=click.Choice(["4", "6"]), help="Where both ends have both.")
@click.option("--flow", metavar="SRC:PORT,DST:PORT,PROTO", help="All of it in one word; IPv6 as [ADDRESS]:PORT.")
@click.option("--exit-code", "tells_by_exit", is_flag=True, help="Exit with 6 when it is denied.")
@pass_context
def explain(
    context: CliContext,
    words: tuple[str, ...],
    source: str | None,
    destination: str | None,
    protocol: str | None,
    port: str | None,
    source_port: str | None,
    source_address: str | None,
    icmp: str | None,
    ip_version: str | None,
    flow: str | None,
    tells_by_exit: bool,
) -> None:
    """Say whether a new connection from A to B passes, and which rule of which policy or profile decides at each end.
    With selector:… at an end, as selector:role=='web', one line for each pair of endpoints, and what decides it.
    With 'endpoint E': everything that applies to E, which may be host:NAME/ENDPOINT for a host endpoint.
    Reads the datastore alone: what the kernel has by now, 'calicoctl status' on the hosts knows."""
    if words:
        options = (source, destination, protocol, port, source_port, source_address, icmp, ip_version, flow)
        if len(words) != 2 or words[0] != "endpoint" or any(option is not None for option in options):
            raise InvalidRequest(words[0], "write 'explain endpoint E' alone, or --from A --to B, or --flow")
        from calico_core.cli.explain_endpoint import answer_endpoint

        answer_endpoint(context, _load(context)[0], words[1])
        return
    numbers = {
        "--port": None if port is None else parse_port(port, field="--port"),
        "--source-port": None if source_port is None else parse_port(source_port, field="--source-port"),
    }
    if flow is not None:
        if any(word is not None for word in (source, destination, protocol, port, source_port, source_address)):
            raise InvalidRequest("--flow", "says all of it: leave out --from, --to, --protocol, addresses and ports")
        source, numbers["--source-port"], destination, numbers["--port"], protocol = parse_flow(flow)
    if source is None or destination is None:
        raise InvalidRequest("--from" if source is None else "--to", "name both ends, or give --flow")
    cluster, notes = _load(context)
    version = None if ip_version is None else int(ip_version)
    if source.startswith(PREFIX) or destination.startswith(PREFIX):
        if source_address is not None:
            raise InvalidRequest("--source-address", "is of one endpoint: name it with --from, not by a selector")

        def packet_of(parties: list[Party]) -> Packet:
            return _packet(parties, version, protocol, icmp, numbers["--port"], numbers["--source-port"])

        is_denied = answer_pairs(
            context, cluster, (source, destination), packet_of, lambda verdict: _WORDS[verdict.outcome]
        )
        if tells_by_exit and is_denied:
            raise click.exceptions.Exit(_EXIT_DENIED)
        return
    parties = [find_party(word, cluster.endpoints, cluster.hosts) for word in (source, destination)]
    if source_address is not None:
        if parties[0].key is None:
            raise InvalidRequest("--source-address", f"--from must name an endpoint that sends from it, not {source}")
        parties[0] = Party((parse_address(source_address),), parties[0].key)
    packet = _packet(parties, version, protocol, icmp, numbers["--port"], numbers["--source-port"])
    keys = [party.key for party in parties]
    if cluster.lacks_port(packet, *keys):
        raise InvalidRequest("--port", PORT_WANTED)
    verdict = cluster.explain(packet, source=keys[0], destination=keys[1])
    found = _json(verdict, [note for side in verdict.sides for note in notes.of(side)])
    answer_one(context, found, _text(found))
    if tells_by_exit and verdict.outcome == "deny":
        raise click.exceptions.Exit(_EXIT_DENIED)


def _packet(
    parties: list[Party],
    version: int | None,
    protocol: str | None,
    icmp: str | None,
    port: int | None,
    source_port: int | None,
) -> Packet:
    src, dst = common_addresses(parties[0], parties[1], version)
    kind = None if icmp is None else parse_icmp(icmp)
    has_port = port is not None or source_port is not None
    number = protocol_of(protocol, has_port=has_port, icmp=kind, version=src.version)
    if number in PORT_PROTOCOLS and source_port is None:
        source_port = _EPHEMERAL_PORT
    return Packet(
        src=src,
        dst=dst,
        protocol=number,
        src_port=source_port,
        dst_port=port,
        icmp=icmp_of(number, kind, src.version),
    )


class _Notes:
    """What decides beside policy, as far as the datastore knows it."""

    def __init__(self, context: CliContext, cluster: Cluster) -> None:
        self._cluster = cluster
        self._statuses = {
            (key.host, key.orchestrator, key.workload, key.endpoint): found.record
            for found in context.records.list(FELIX_STATUS)
            if isinstance(key := found.key, WorkloadStatusKey)
        }
        self._running = {
            found.key.host
            for found in context.records.list(NODE_STATUS)
            if isinstance(found.key, NodeStatusKey) and found.record.state != NODE_STOPPED
        }

    def of(self, side: Side) -> Iterator[str]:
        key = side.workload
        if side.host is not None and side.outcome == "deny" and self._cluster.is_policy_off(side.host):
            yield f"{DROP_OVERRIDE} switches policy off on host {side.host}: what its rules deny passes there"
        if key is not None:
            known = self._statuses.get((key.host, key.orchestrator, key.workload, key.endpoint))
            if known is not None and known.status != "up":
                reason = f": {known.reason}" if known.reason else ""
                yield f"endpoint {key.endpoint} is {known.status} on host {key.host}{reason}"
            if key.host not in self._running:
                yield f"calico-node does not run on host {key.host}: what it enforces may be older"
        if side.host_endpoint is not None:
            if side.host not in self._running:
                yield f"calico-node does not run on host {side.host}: what it enforces may be older"
            if not side.is_interface_certain:
                yield f"only host {side.host} knows through which of its interfaces the packet goes"


def _load(context: CliContext) -> tuple[Cluster, _Notes]:
    """One snapshot of everything that policy reads, and what hosts report beside it."""
    found = context.records.list(V1)
    bad = {path: text for path, text in getattr(context.records, "bad_records", {}).items() if path.startswith(V1)}
    hosts = context.records.list(BGP_HOSTS)
    cluster = Cluster(
        ((each.key, each.record) for each in (*found, *hosts)),
        bad=bad,
    )
    return cluster, _Notes(context, cluster)


# --- the answer --------------------------------------------------------------------------------------


def _json(verdict: FlowVerdict, notes: list[str]) -> dict[str, Any]:
    packet = verdict.packet
    return {
        "verdict": _WORDS[verdict.outcome],
        "packet": {
            "source": str(packet.src),
            "source_port": packet.src_port,
            "destination": str(packet.dst),
            "port": packet.dst_port,
            "protocol": protocol_word(packet.protocol),
            "icmp": None if packet.icmp is None else f"{packet.icmp[0]}/{packet.icmp[1]}",
        },
        "sides": [_side(side) for side in verdict.sides],
        "notes": list(dict.fromkeys(notes)),
    }


def _side(side: Side) -> dict[str, Any]:
    key: WorkloadEndpointKey | None = side.workload
    return {
        "end": _ENDS[side.direction],
        "direction": side.direction,
        "place": side.place,
        "address": str(side.address),
        "host": side.host,
        "workload": key.workload if key else None,
        "endpoint": key.endpoint if key else None,
        "host_endpoint": side.host_endpoint.endpoint if side.host_endpoint else None,
        "interface": side.interface,
        "verdict": _WORDS[side.outcome],
        "reason": side.reason,
        "steps": [_step(step) for step in side.steps],
        "passed_over": [_passed_over(each) for each in side.passed_over],
    }


def _passed_over(found: PassedOver) -> dict[str, Any]:
    return {
        "hook": found.hook,
        "tier": found.tier,
        "kind": found.kind,
        "name": found.name,
        "position": found.position,
        "text": render_rule(found.rule),
        "mismatch": found.field,
    }


def _step(step: RuleStep) -> dict[str, Any]:
    return {
        "verdict": "rejected" if step.is_rejected else _WORDS[step.outcome],
        "hook": step.hook,
        "tier": step.tier,
        "kind": step.kind,
        "name": step.name,
        "position": step.position,
        "text": None if step.rule is None else render_rule(step.rule),
        "rule": None if step.rule is None else codec.to_builtins(step.rule),
        "reason": step.reason,
        "closed": step.is_closed,
    }


def _text(found: dict[str, Any]) -> str:
    packet = found["packet"]
    ports = ("" if packet[name] is None else f" port {packet[name]}" for name in ("source_port", "port"))
    icmp = "" if packet["icmp"] is None else f" type/code {packet['icmp']}"
    start = f"{found['verdict'].upper()}: {packet['protocol']}{icmp} from {packet['source']}{next(ports)}"
    lines = [f"{start} to {packet['destination']}{next(ports)}"]
    for side in found["sides"]:
        end = "between" if side["place"] == "interface" else side["end"]
        lines += ["", f"{end}, {side['direction']}: {_whom(side)}: {side['verdict']}"]
        lines += [f"  {side['reason']}"] if side["reason"] else []
        lines += [f"  {_line(step)}" for step in side["steps"]]
        if side["steps"] and side["steps"][-1]["kind"] is None:  # nobody wrote the drop: what was near it?
            lines += [f"    not {_rule(each)}: differs in: {each['mismatch']}" for each in side["passed_over"]]
    lines += ["", *(f"note: {note}" for note in found["notes"])] if found["notes"] else []
    return "\n".join(lines)


def _whom(side: dict[str, Any]) -> str:
    if side["endpoint"] is not None:
        return f"endpoint {side['endpoint']} of workload {side['workload']} on host {side['host']}"
    if side["host_endpoint"] is not None:
        interface = side["interface"]
        where = "all interfaces" if interface == ALL_INTERFACES else f"interface {interface}"
        return f"host endpoint {side['host_endpoint']} on {where} of host {side['host']}"
    return f"host {side['host']}" if side["host"] is not None else side["address"]


def _line(step: dict[str, Any]) -> str:
    tier = _hook(step) + ("" if step["tier"] is None else f"tier {step['tier']} → ")
    if step["kind"] is None:
        return f"{tier}{step['reason']}: {step['verdict']}"
    if step["position"] is None:
        return f"{tier}{step['kind']} {step['name']}: {step['reason']}: {step['verdict']}"
    reason = f": {step['reason']}" if step["closed"] else ""
    return f"{_rule(step)}{reason}: {step['verdict']}"


def _rule(found: dict[str, Any]) -> str:
    tier = _hook(found) + ("" if found["tier"] is None else f"tier {found['tier']} → ")
    return f"{tier}{found['kind']} {found['name']} → rule {found['position']}: {found['text']}"


def _hook(found: dict[str, Any]) -> str:
    return "" if found["hook"] == "normal" else f"{found['hook'].replace('_', '-')}: "
