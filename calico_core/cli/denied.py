"""``calicoctl denied``: packets that this host denies, as they come, and the rule that did it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click
from netaddr import IPAddress

from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.flow_words import find_party, protocol_word
from calico_core.cli.output import note, say
from calico_core.cli.rule_words import render_rule
from calico_core.cli.running import ask_node
from calico_core.errors import InvalidRequest
from calico_core.model.addresses import first_address
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.hoststate import RulesId
from calico_core.model.keys import HOSTS, HostIpKey, WorkloadEndpointKey
from calico_core.policy.cluster_wide import host_address
from calico_core.policy.rules import stored_position
from calico_core.policy.rules_ids import record_key

_WAIT_S = 2.0
_REREAD_S = 5.0
_WORDS = {
    "no profile matched": "no policy and no profile of it allows this",
    "refused by the kernel": "the kernel does not take its rules",
}


@click.command()
@click.option("--follow", "-f", "follows", is_flag=True, help="Until it is interrupted.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="How long; not with --follow."
)
@click.option("--endpoint", "word", metavar="A", help="From or to this one: id or its beginning, workload or address.")
@pass_context
def denied(context: CliContext, follows: bool, seconds: float, word: str | None) -> None:
    """Show the packets that this host denies from now on: who, whom, and which rule. With -o json a line each."""
    if context.output == "yaml":
        raise InvalidRequest("--output", "a stream has no YAML form here; json gives one object a line")
    names = _Names(context)
    wanted = names.addresses_of(word) if word is not None else None
    for packet in _stream(None if follows else time.monotonic() + seconds):
        if wanted is not None and wanted.isdisjoint((packet["source"], packet["destination"])):
            continue
        shown = names.explained(packet)
        say(json.dumps(shown) if context.output == "json" else _text(shown))


def _stream(deadline: float | None) -> Iterator[dict[str, Any]]:
    """Raises ``NotReady`` when the node ends meanwhile."""
    cursor: object = "now"
    while deadline is None or time.monotonic() < deadline:
        wait_s = _WAIT_S if deadline is None else max(0.0, min(_WAIT_S, deadline - time.monotonic()))
        asked_at = time.monotonic()
        found = ask_node(f"denied {cursor} {wait_s:g}", timeout_s=wait_s + 10)
        if found["missed"]:
            note(f"{found['missed']} packets came too fast to be shown")
        yield from found["packets"]
        cursor = found["cursor"]
        if not found["packets"] and (left := 0.2 - (time.monotonic() - asked_at)) > 0:
            time.sleep(left)  # the node had no place for one more that waits


class _Names:
    """Addresses and rules in people's words, from records that are read again when something is not known."""

    def __init__(self, context: CliContext) -> None:
        self._context = context
        self._read_at = 0.0
        self._endpoints: dict[WorkloadEndpointKey, WorkloadEndpoint] = {}
        self._hosts: dict[IPAddress, str] = {}
        self._by_address: dict[str, dict[str, Any]] = {}
        self._rules: dict[tuple[str, str, int], tuple[float, dict[str, Any] | None]] = {}

    def addresses_of(self, word: str) -> set[str]:
        self._read()
        return {str(address) for address in find_party(word, self._endpoints, self._hosts).addresses}

    def explained(self, packet: dict[str, Any]) -> dict[str, Any]:
        return {
            **packet,
            "protocol": protocol_word(packet["protocol"]),
            "source_endpoint": self._whose(packet["source"]),
            "destination_endpoint": self._whose(packet["destination"]),
            "denied_by": self._rule(packet),
        }

    def _whose(self, address: str) -> dict[str, Any] | None:
        if address not in self._by_address and time.monotonic() - self._read_at > _REREAD_S:
            self._read()
        return self._by_address.get(address)

    def _read(self) -> None:
        self._read_at = time.monotonic()
        self._endpoints, self._hosts = {}, {}
        for found in self._context.records.list(HOSTS):
            if isinstance(found.key, WorkloadEndpointKey):
                self._endpoints[found.key] = found.record
            elif isinstance(found.key, HostIpKey):
                address = host_address(found.key, found.record)
                if address is not None:
                    self._hosts[address] = found.key.host
        self._by_address = {str(address): {"host": host} for address, host in self._hosts.items()}
        for key, endpoint in self._endpoints.items():
            names = {"host": key.host, "workload": key.workload, "endpoint": key.endpoint}
            self._by_address.update({str(first_address(net)): names for net in endpoint.nets})

    def _rule(self, packet: dict[str, Any]) -> dict[str, Any] | None:
        """As it stands in the datastore now; None: no rule of anyone's, or its record is gone."""
        if packet["rules"] is None or packet["rule"] is None:
            return None
        name = (packet["rules"], packet["direction"], packet["rule"])
        read_at, found = self._rules.get(name, (0.0, None))
        if time.monotonic() - read_at > _REREAD_S:
            found = stored_rule(self._context, *name)
            self._rules[name] = (time.monotonic(), found)
        return found


def stored_rule(context: CliContext, rules: str, direction: str, index: int) -> dict[str, Any] | None:
    """The rule that hosts know as number ``index`` of ``rules``, as people number it. None: it is gone."""
    key = record_key(RulesId(rules))
    found = context.records.get(key)
    if found is None:
        return None
    stored = found.record.inbound_rules if direction == "inbound" else found.record.outbound_rules
    is_profile = rules.startswith("profile/")
    try:
        position = stored_position(stored, index, of_profile=is_profile)
    except StopIteration:
        return None
    name = getattr(key, "profile", None) or getattr(key, "name", None)
    return {
        "tier": getattr(key, "tier", None),
        "kind": "profile" if is_profile else "policy",
        "name": name,
        "direction": direction,
        "position": position + 1,
        "text": render_rule(stored[position]),
    }


def _text(shown: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(shown["time"])) + f".{int(shown['time'] % 1 * 1000):03}"
    icmp = "" if shown["icmp"] is None else f" type/code {shown['icmp'][0]}/{shown['icmp'][1]}"
    source = _party(shown["source"], shown["source_port"], shown["source_endpoint"])
    destination = _party(shown["destination"], shown["port"], shown["destination_endpoint"])
    return f"{clock} {shown['protocol']}{icmp} from {source} to {destination}: {_why(shown)}"


def _party(address: str, port: int | None, names: dict[str, Any] | None) -> str:
    text = address if port is None else f"{address} port {port}"
    if names is None:
        return text
    return (
        f"{text} ({names['workload']} on {names['host']})" if "workload" in names else f"{text} (host {names['host']})"
    )


def _why(shown: dict[str, Any]) -> str:
    direction = "" if shown["direction"] is None else f"{shown['direction']}, "
    rule = shown["denied_by"]
    if rule is not None:
        tier = "" if rule["tier"] is None else f"tier {rule['tier']} → "
        return f"{direction}{tier}{rule['kind']} {rule['name']} → rule {rule['position']}: {rule['text']}"
    if shown["rules"] is not None:
        return f"{direction}{shown['rules']}: {_WORDS.get(shown['reason'], 'its rules have changed since')}"
    if shown["tier"] is not None:
        return f"{direction}tier {shown['tier']} → none of its policies decides"
    return f"{direction}{_WORDS.get(shown['reason'], shown['reason'])}"
