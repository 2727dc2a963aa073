"""The chains of host endpoints: interfaces of the host itself under policy.

::

    prerouting/raw     host_raw_in ── hep_raw_in:  interface ─▶ hri_…  allow: untracked and accepted; deny: drop
    output/raw         host_raw_out ─ hep_raw_out: interface ─▶ hro_…
    prerouting/mangle  host_dnat ──── hep_dnat:    interface ─▶ hd_…   before destinations are translated
    input, output      host_in, host_out ─ hep_in, hep_out ──▶ hi_…, ho_…  state, ICMPv6, fail-safe ports, policy, deny
    forward            host_fwd_in, host_fwd_out ────────────▶ hfi_…, hfo_…  only where a list asks for it

All of it, the hooks too, stands only while an endpoint needs it. Interfaces with equal lists share a chain. What is on
no map falls through: an interface without endpoint is not policed. Source: felix specification 6.3, 6.5, 6.6, 6.11.
Pure.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal

import msgspec

from calico_core.dataplane.host_hooks import IPV6_IS_OFF, earlier, is_asked
from calico_core.dataplane.nftables.layout import chain, list_rules, rules_chain_name, workload_names
from calico_core.dataplane.nftables.names import digest
from calico_core.dataplane.reconcile import Chain, NamedSet
from calico_core.errors import InvalidRequest
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.always_open import DISCOVERY_TYPES
from calico_core.model.hoststate import ANY_INTERFACE, PolicyList, TierPolicies
from calico_core.model.ids import check_host_interface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from calico_core.dataplane.host_hooks import Earlier
    from calico_core.dataplane.host_hooks import Place as Field
    from calico_core.dataplane.nftables.verdicts import Verdicts
    from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort
    from calico_core.model.hoststate import HostInterface, RulesId

MANGLE_PREROUTING, RAW_OUTPUT, OUTPUT = "filter prerouting -150", "filter output -300", "filter output 0"
FAILSAFE_IN, FAILSAFE_OUT = "failsafe_in", "failsafe_out"
FAILSAFE_RAW_IN, FAILSAFE_RAW_OUT = "failsafe_raw_in", "failsafe_raw_out"
_KEYWORD = {4: "ip", 6: "ip6"}
_DISCOVERY = f"icmpv6 type {{ {', '.join(map(str, DISCOVERY_TYPES))} }}"


class Place(msgspec.Struct, frozen=True):
    """One point of a packet's way at which a list of an endpoint is asked. ``dispatch`` is the chain the hook jumps
    to, ``map`` leads from there."""

    field: Field
    kind: Literal["host", "forward", "raw", "dnat"]
    direction: Literal["in", "out"]
    dispatch: str
    map: str
    prefix: str
    failsafe: str = ""

    @property
    def interface(self) -> str:
        return "iifname" if self.direction == "in" else "oifname"


PLACES = (
    Place("inbound", "host", "in", "host_in", "hep_in", "hi", FAILSAFE_IN),
    Place("outbound", "host", "out", "host_out", "hep_out", "ho", FAILSAFE_OUT),
    Place("forward_inbound", "forward", "in", "host_fwd_in", "hep_fwd_in", "hfi"),
    Place("forward_outbound", "forward", "out", "host_fwd_out", "hep_fwd_out", "hfo"),
    Place("untracked_inbound", "raw", "in", "host_raw_in", "hep_raw_in", "hri", FAILSAFE_RAW_IN),
    Place("untracked_outbound", "raw", "out", "host_raw_out", "hep_raw_out", "hro", FAILSAFE_RAW_OUT),
    Place("pre_dnat", "dnat", "in", "host_dnat", "hep_dnat", "hd", FAILSAFE_IN),
)


class HostChains(msgspec.Struct, frozen=True):
    """All chains and maps host endpoints need, hooks of others' aside. ``subjects``: whose a chain is, where it is one
    endpoint's. ``named``: the rules they name. ``problems`` by subject."""

    chains: dict[str, Chain]
    sets: dict[str, NamedSet]
    subjects: dict[str, str]
    named: frozenset[RulesId]
    problems: dict[str, str]

    def has(self, dispatch: str) -> bool:
        """Whether a hook is to jump there."""
        return dispatch in self.chains


def render_hosts(
    interfaces: Iterable[HostInterface],
    options: DataplaneOptions,
    verdicts: Verdicts,
    families: Sequence[int],
    problem_of: Callable[[HostInterface], str | None],
) -> HostChains:
    """``problem_of``: why an endpoint cannot be programmed as wanted; it is closed then, fail-safe ports aside."""
    chains: dict[str, Chain] = {}
    subjects: dict[str, str] = {}
    problems: dict[str, str] = {}
    named: set[RulesId] = set()
    spares: tuple[str, ...] = ()
    elements: defaultdict[Place, dict[str, str]] = defaultdict(dict)
    for interface in sorted(interfaces, key=lambda each: each.interface):
        try:
            if interface.interface != ANY_INTERFACE:
                check_host_interface(interface.interface, field="interface")
        except InvalidRequest as error:
            problems[interface.key.path] = f"{error}; it is left out"
            continue
        named.update(rules_of(interface))
        spares += interface.spares
        problem = problem_of(interface)
        if problem is not None:
            problems[interface.key.path] = f"{problem}; it is closed"
            interface = _closed(interface)  # noqa: PLW2901 (what stands in for it)
        for place in PLACES:
            policies: PolicyList = getattr(interface, place.field)
            if not is_asked(place.field, policies):
                continue
            before = earlier(place.field, interface)
            marks = "u" * before.is_untracked + "d" * before.is_pre_dnat
            name = f"{place.prefix}_{digest(msgspec.json.encode(policies), 8)}{'_' * bool(marks)}{marks}"
            if name not in chains:
                chains[name] = chain(_place_rules(place, policies, verdicts, families, before))
                subjects[name] = interface.key.path
            elements[place][interface.interface] = name
    sets: dict[str, NamedSet] = {}
    for place, targets in elements.items():
        sets[place.map] = NamedSet("verdict", frozenset(item for item in targets.items() if item[0] != ANY_INTERFACE))
        spared = ("lo", *workload_names(options), *spares)
        chains[place.dispatch] = chain(_dispatch(place, targets.get(ANY_INTERFACE), spared))
    chains |= _failsafes(chains, options)
    if "host_raw_out" in chains:
        chains["raw_output"] = chain(["jump host_raw_out"], RAW_OUTPUT)
    if "host_dnat" in chains:
        chains["mangle_prerouting"] = chain(["jump host_dnat"], MANGLE_PREROUTING)
    return HostChains(chains, sets, subjects, frozenset(named), problems)


def rules_of(interface: HostInterface) -> Iterator[RulesId]:
    """All rules it names."""
    for place in PLACES:
        policies: PolicyList = getattr(interface, place.field)
        for tier in policies.tiers:
            yield from tier.policies
        yield from policies.profiles


def _closed(interface: HostInterface) -> HostInterface:
    """What stands in the place of one that cannot be programmed: nobody is let in or out, nobody goes untracked."""
    shut = PolicyList(tiers=(TierPolicies(tier="closed", policies=()),))
    lists = {
        place.field: shut if place.kind == "forward" and getattr(interface, place.field).tiers else PolicyList()
        for place in PLACES
    }
    return msgspec.structs.replace(interface, **lists)


def _dispatch(place: Place, any_chain: str | None, spared: Iterable[str]) -> list[str]:
    """``spared``: what the endpoint of all interfaces is not for; the host's talk with itself is of no interface."""
    rules = [f"{place.interface} vmap @{place.map}"]
    if any_chain is not None:
        names = ", ".join(f'"{name}"' for name in spared)
        rules += [f"{place.interface} {{ {names} }} return", f"goto {any_chain}"]
    return rules


def _place_rules(
    place: Place, policies: PolicyList, verdicts: Verdicts, families: Sequence[int], before: Earlier
) -> list[str]:
    """The mark of what was let through ``before`` counts there. Elsewhere it might be anybody's: a decapsulated packet
    still carries the one of the packet around it."""
    passing = "return" if place.kind == "forward" else "accept"
    rules: list[str] = []
    if place.kind != "raw":
        rules.append(verdicts.known(passing))
    if before.is_pre_dnat:
        # the chain before translation has cleared what it did not set or believe
        rules.append(f"{verdicts.if_accepted} {passing}")
    elif before.is_untracked:
        rules.append(f"ct state untracked {verdicts.if_accepted} {passing}")
    if place.kind in ("raw", "dnat"):
        rules.append(verdicts.clear_marks)
        if 6 not in families:
            rules.append("meta nfproto ipv6 return")  # to the chains of what is left of it
    if place.kind != "forward":
        # a host without IPv6 for workloads may have some itself
        rules.append(f"{_DISCOVERY} {passing}")
    if place.failsafe:
        rules.append(f"jump {place.failsafe}")
    if place.kind in ("host", "forward"):
        if 6 not in families:
            origin = DenialOrigin(reason=IPV6_IS_OFF, direction=f"{place.direction}bound")  # type: ignore[arg-type]
            rules += verdicts.deny("meta nfproto ipv6", origin, IPV6_IS_OFF)
        # what every tier passes on is forwarded; only the list of a closed endpoint has no policies
        denies_rest = place.kind == "host" or not any(tier.policies for tier in policies.tiers)
        return rules + list_rules(policies, place.direction, verdicts, denies_rest=denies_rest)
    accepted = f"{verdicts.if_accepted} {'notrack ' if place.kind == 'raw' else ''}accept"
    for number, tier in enumerate(policies.tiers):
        rules += [verdicts.clear_pass] if number else []
        for position, rules_id in enumerate(tier.policies):
            jump = f"jump {rules_chain_name(rules_id, place.direction)}"
            rules += [f"{verdicts.if_not_passed} {jump}" if position else jump, accepted]
    return rules


def _failsafes(chains: dict[str, Chain], options: DataplaneOptions) -> dict[str, Chain]:
    """Those that the endpoints' chains jump to. In the raw table the answers to fail-safe connections are let through
    too: there is no state yet to know them by."""
    inbound, outbound = options.failsafe_inbound, options.failsafe_outbound
    wanted: dict[str, list[str]] = {}
    if any(name.startswith(("hi_", "hd_")) for name in chains):
        wanted[FAILSAFE_IN] = _failsafe_rules(inbound, "saddr", "dport")
    if any(name.startswith("ho_") for name in chains):
        wanted[FAILSAFE_OUT] = _failsafe_rules(outbound, "daddr", "dport")
    if any(name.startswith("hri_") for name in chains):
        wanted[FAILSAFE_RAW_IN] = [
            *_failsafe_rules(inbound, "saddr", "dport"),
            *_failsafe_rules(outbound, "saddr", "sport"),
        ]
    if any(name.startswith("hro_") for name in chains):
        wanted[FAILSAFE_RAW_OUT] = [
            *_failsafe_rules(outbound, "daddr", "dport"),
            *_failsafe_rules(inbound, "daddr", "sport"),
        ]
    return {name: chain(rules) for name, rules in wanted.items()}


def _failsafe_rules(ports: Iterable[FailsafePort], side: str, port: str) -> list[str]:
    """One look-up for all that hold for everybody, a rule for each that does not."""
    everybody = sorted({(each.protocol, each.port) for each in ports if each.net is None})
    rules: list[str] = []
    if everybody:
        pairs = ", ".join(f"{protocol} . {number}" for protocol, number in everybody)
        rules.append(f"meta l4proto . th {port} {{ {pairs} }} accept")
    for each in ports:
        if each.net is not None:
            match = f"{_KEYWORD[each.net.version]} {side} {each.net.cidr}"
            rules.append(f"{match} meta l4proto {each.protocol} th {port} {each.port} accept")
    return rules
