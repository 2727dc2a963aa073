"""``calicoctl explain --from selector:…``: one line for each pair of ends, and what decides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calico_core.cli.context import CliContext
from calico_core.cli.failure import Missing
from calico_core.cli.flow_words import Party, find_party
from calico_core.cli.output import answer
from calico_core.errors import InvalidRequest, InvalidSelector
from calico_core.model.addresses import first_address
from calico_core.model.selectors import parse_selector
from calico_core.policy.explain import Packet
from calico_core.policy.flows import Cluster, FlowVerdict

PREFIX = "selector:"
PORT_WANTED = "policy on the way looks at ports: name the destination's"
_MOST_PAIRS = 10_000
_COLUMNS = {"From": "source", "To": "destination", "Verdict": "verdict", "Decided by": "decided_by"}


def answer_pairs(
    context: CliContext,
    cluster: Cluster,
    words: tuple[str, str],
    packet_of: Callable[[list[Party]], Packet],
    verdict_word: Callable[[FlowVerdict], str],
) -> bool:
    """Whether any pair is denied. ``packet_of`` refuses two ends without a common family: their pair has no verdict.

    :raises InvalidRequest: a selector that is none, or that takes in too many.
    :raises Missing: an end is nobody.
    """
    sources = _parties(cluster, words[0], "--from")
    destinations = _parties(cluster, words[1], "--to")
    pairs = [(a, b) for a in sources for b in destinations if a.key is None or a.key != b.key]
    if len(pairs) > _MOST_PAIRS:
        raise InvalidRequest("--from", f"{len(pairs)} pairs of ends are more than {_MOST_PAIRS}: ask for fewer")
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        row = {"source": _name(a), "destination": _name(b)}
        try:
            packet = packet_of([a, b])
        except InvalidRequest as error:
            rows.append({**row, "verdict": "none", "decided_by": error.reason})
            continue
        if cluster.lacks_port(packet, a.key, b.key):
            raise InvalidRequest("--port", PORT_WANTED)
        verdict = cluster.explain(packet, source=a.key, destination=b.key)
        rows.append({**row, "verdict": verdict_word(verdict), "decided_by": _decider(verdict)})
    answer(context, rows, _COLUMNS)
    return any(row["verdict"] == "denied" for row in rows)


def _parties(cluster: Cluster, word: str, field: str) -> list[Party]:
    if not word.startswith(PREFIX):
        return [find_party(word, cluster.endpoints, cluster.hosts)]
    text = word.removeprefix(PREFIX)
    try:
        selector = parse_selector(text)
    except InvalidSelector as error:
        raise InvalidRequest(field, str(error)) from error
    found = [
        Party(tuple(map(first_address, endpoint.nets)), key)
        for key, endpoint in sorted(cluster.endpoints.items(), key=lambda item: item[0].path)
        if endpoint.nets and selector.matches(cluster.labels(key))
    ]
    if not found:
        raise Missing("endpoint with an address that matches", text, "calicoctl endpoint show --detailed lists them")
    return found


def _name(party: Party) -> str:
    key = party.key
    return str(party.addresses[0]) if key is None else f"{key.host}/{key.workload}/{key.endpoint}"


def _decider(verdict: FlowVerdict) -> str:
    """The first side that denies, else the last that was asked, with what decided there."""
    asked = [side for side in verdict.sides if side.outcome is not None]
    side = next((each for each in asked if each.outcome == "deny"), asked[-1] if asked else None)
    if side is None:
        return ""
    if not side.steps:
        return side.reason
    step = side.steps[-1]
    if step.kind is None:
        return f"{side.direction}: {step.reason}"
    position = "" if step.position is None else f" rule {step.position}"
    reason = f": {step.reason}" if step.is_closed else ""
    return f"{side.direction}: {step.kind} {step.name}{position}{reason}"
