"""The fixed part of the table: base chains, anti-spoofing, dispatch; and the chains that endpoints share.

::

    prerouting/raw  raw_prerouting ─ workload? ─▶ workload_source ─ (interface, address) known, or with its MAC?
                    └▶ wl_source: interface ─▶ ws_… (prefixes that it may send from, too), else drop
    forward         forward ─ established: accept ─▶ from_workload ─ wl_from: interface ─▶ from_… (a list of policies)
                                                 └─▶ to_workload ── wl_to: interface ──▶ to_…      └▶ po_…, pi_… (rules)
    input           input ─ workload? ─▶ workload_to_host ─ DHCP, DNS, neighbours; then as endpoint_to_host says
    prerouting/nat  nat_prerouting ─ metadata; floating address: to the workload's own (only while there are such)
    output/nat      nat_output ─ floating addresses, for the host itself
    postrouting/nat nat_postrouting ─ pool to elsewhere: masquerade (only while a pool wants it); a workload that asked
                    for its own floating address; what leaves by a tunnel with an address of another interface

Host endpoints add to these hooks what :mod:`host_endpoints` draws. Traffic of the host itself to its workloads has no
chain: it passes. A lookup that misses falls to a drop, so an interface nobody told us of is closed. Source: felix
specification 6 and 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from netaddr import cidr_merge

from calico_core.dataplane.host_hooks import IPV6_IS_OFF
from calico_core.dataplane.nftables.elements import mac_text
from calico_core.dataplane.nftables.names import kernel_name, readable, tag
from calico_core.dataplane.nftables.rules import from_any_of
from calico_core.dataplane.nftables.verdicts import INVALID_CHAIN, KNOWN_ACCEPT
from calico_core.dataplane.reconcile import Chain
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.addresses import LOOPBACK
from calico_core.model.always_open import DHCP_PORTS, DNS_PORT, METADATA, METADATA_PORT, NEIGHBOUR_TYPES
from calico_core.model.interface_names import separate_prefixes
from calico_core.model.tunnels import DEVICE_NAMES, IPIP_PROTOCOL, VXLAN_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from calico_core.dataplane.nftables.verdicts import Verdicts
    from calico_core.interfaces.dataplane import DataplaneOptions
    from calico_core.model.hoststate import HostPeers, HostWorkload, PolicyList, RulesId

Direction = Literal["in", "out"]

RAW_PREROUTING = "filter prerouting -300"
FORWARD = "filter forward 0"
INPUT = "filter input 0"
OUTPUT = "filter output 0"
PREROUTING, NAT_OUTPUT, POSTROUTING = "nat prerouting -100", "nat output -100", "nat postrouting 100"

FROM_MAP, TO_MAP, SOURCE_MAP = "wl_from", "wl_to", "wl_source"
SPOOFED = "spoofed source"
SOURCE_KINDS = {4: ("source4", "source_mac4"), 6: ("source6", "source_mac6")}
NAT_KINDS = {4: ("nat4", "hairpin4"), 6: ("nat6", "hairpin6")}
_NEIGHBOURS = f"icmpv6 type {{ {', '.join(map(str, NEIGHBOUR_TYPES))} }}"
_DHCP = {family: "udp sport {} udp dport {}".format(*ports) for family, ports in DHCP_PORTS.items()}
#: A packet that is accepted passes this many jumps at most before it returns.
_JUMPS_A_RETURN = 8


def chain(rules: Iterable[str], hook: str = "") -> Chain:
    """Each rule carries its tag as comment; what follows `` # `` in a rule's text joins the comment, for people."""
    texts: list[str] = []
    tags: list[str] = []
    for rule in rules:
        body, _, note = rule.partition(" # ")
        tags.append(tag(body))
        texts.append(f'{body} comment "{tags[-1]}{" " + note if note else ""}"')
    return Chain(tags=tuple(tags), rules=tuple(texts), hook=hook)


def source_set(kind: str) -> str:
    """The one set of this kind."""
    return {"source4": "src_any4", "source6": "src_any6", "source_mac4": "src_mac4", "source_mac6": "src_mac6"}[kind]


def fixed_chains(options: DataplaneOptions, families: Sequence[int], verdicts: Verdicts) -> dict[str, Chain]:
    """All chains that do not depend on what the host has to do."""
    chains = {INVALID_CHAIN: chain(verdicts.drop("", "belongs to no connection"))} if options.drops_invalid else {}
    return {
        **chains,
        "workload_source": chain(
            [
                *_encapsulated(options, verdicts),
                # before translation, which leads to the loopback what may go there
                *verdicts.drop(f"ip daddr {LOOPBACK}", "to a loopback address"),
                *_workload_source(families, verdicts),
            ]
        ),
        # tunnels once more, as the packet is translated: a Service may lead to a host's
        "from_workload": chain(
            [
                *_encapsulated_vxlan(options, verdicts),
                f"iifname vmap @{FROM_MAP}",
                *verdicts.drop("", "from an unknown endpoint"),
            ]
        ),
        "to_workload": chain(
            [
                # an interface is asked for, whatever the family
                *([] if 6 in families else verdicts.drop("meta nfproto ipv6", IPV6_IS_OFF)),
                f"oifname vmap @{TO_MAP}",
                *verdicts.drop("", "to an unknown endpoint"),
            ]
        ),
        "workload_to_host": chain(_workload_to_host(options, verdicts, is_v6=6 in families)),
    }


def base_chains(
    options: DataplaneOptions,
    families: Sequence[int],
    verdicts: Verdicts,
    peers: HostPeers,
    is_there: Callable[[str], bool],
) -> dict[str, Chain]:
    """The hooks of policy. ``is_there``: whether host endpoints have brought a chain of that name to jump to."""
    workload = _workload(options)

    def host(*names: str) -> list[str]:
        return [f"jump {name}" for name in names if is_there(name)]

    forwarded = host("host_fwd_in", "host_fwd_out")
    chains = {
        "raw_prerouting": chain([f"iifname {workload} goto workload_source", *host("host_raw_in")], RAW_PREROUTING),
        "forward": chain(
            [
                KNOWN_ACCEPT,  # whose connection it is matters less than the names of two interfaces cost
                f"iifname != {workload} oifname != {workload} {'goto forward_host' if forwarded else 'return'}",
                *verdicts.unconnected(),
                *host("host_fwd_in"),
                f"iifname {workload} jump from_workload",
                f"oifname {workload} jump to_workload",
                *host("host_fwd_out"),
            ],
            FORWARD,
        ),
        "input": chain(
            [
                # a workload that may encapsulate is no host of ours either
                *_from_peers(peers, options, families, verdicts),
                f"iifname {workload} goto workload_to_host",
                *host("host_in"),
            ],
            INPUT,
        ),
    }
    if forwarded:
        chains["forward_host"] = chain(forwarded)
    if host("host_out"):
        chains["output"] = chain([*_of_peers(peers, options, families, "daddr"), *host("host_out")], OUTPUT)
    return chains


def workload_names(options: DataplaneOptions) -> tuple[str, ...]:
    """Patterns of workloads' interfaces, of which a name matches one at most: intervals of a set may not overlap."""
    return tuple(f"{prefix}*" for prefix in separate_prefixes(options.interface_prefixes))


def _workload(options: DataplaneOptions) -> str:
    """What a workload's interface is compared with; a set costs a packet more than one name does."""
    names = [f'"{name}"' for name in workload_names(options)]
    return names[0] if len(names) == 1 else f"{{ {', '.join(names)} }}"


def _tunnels(peers: HostPeers, families: Sequence[int]) -> list[tuple[str, str]]:
    """Encapsulations in use, as match and the keyword of the family that carries them."""
    used = [(f"meta l4proto {IPIP_PROTOCOL}", "ip")] if peers.is_ipip else []
    if peers.is_vxlan:
        used += [(f"udp dport {VXLAN_PORT}", "ip6" if family == 6 else "ip") for family in families]
    return used


def _from_peers(peers: HostPeers, options: DataplaneOptions, families: Sequence[int], verdicts: Verdicts) -> list[str]:
    """Encapsulated packets come from hosts only: from anybody else their content would be believed."""
    refused: list[str] = []
    if peers.is_ipip:
        refused += verdicts.drop(f"meta nfproto ipv4 meta l4proto {IPIP_PROTOCOL}", "IPIP from no host of ours")
    if peers.is_vxlan:
        # a host that has no tunnels of IPv6 leaves such packets to its other services
        used = "" if 6 in families else "meta nfproto ipv4 "
        refused += verdicts.drop(f"{used}udp dport {VXLAN_PORT}", "VXLAN from no host of ours")
    return _of_peers(peers, options, families, "saddr") + refused


def _of_peers(peers: HostPeers, options: DataplaneOptions, families: Sequence[int], side: str) -> list[str]:
    """What hosts of ours, and those that count as such, encapsulate; by ``saddr`` or ``daddr``."""
    rules: list[str] = []
    for match, keyword in _tunnels(peers, families):
        family = 6 if keyword == "ip6" else 4
        rules.append(f"{keyword} {side} @peers{family} {match} accept")
        external = cidr_merge(net for net in options.external_peers if net.version == family)
        if external:
            rules.append(f"{keyword} {side} {{ {', '.join(map(str, external))} }} {match} accept")
    return rules


def _encapsulated(options: DataplaneOptions, verdicts: Verdicts) -> list[str]:
    """A workload that could send into the hosts' tunnels would come out beyond all policy."""
    rules = _encapsulated_vxlan(options, verdicts)
    if not options.allows_ipip:
        rules += verdicts.drop(f"meta l4proto {IPIP_PROTOCOL}", "IPIP from a workload")
    return rules


def _encapsulated_vxlan(options: DataplaneOptions, verdicts: Verdicts) -> list[str]:
    """Known by a port alone, which translation may give to what had another."""
    return [] if options.allows_vxlan else verdicts.drop(f"udp dport {VXLAN_PORT}", "VXLAN from a workload")


def _workload_source(families: Sequence[int], verdicts: Verdicts) -> list[str]:
    # most endpoints are held to no MAC, and a look-up that misses costs each of their packets
    rules = [
        "iifname . ip saddr @src_any4 return",
        "iifname . ether saddr . ip saddr @src_mac4 return",
    ]
    if 6 in families:
        rules += [
            "iifname . ip6 saddr @src_any6 return",
            "iifname . ether saddr . ip6 saddr @src_mac6 return",
        ]
    rules.append(f"ip saddr 0.0.0.0 {_DHCP[4]} return")
    if 6 in families:
        rules += [
            f"ip6 saddr {{ ::, fe80::/10 }} {_NEIGHBOURS} return",
            f"ip6 saddr fe80::/10 {_DHCP[6]} return",
        ]
    return [*rules, f"iifname vmap @{SOURCE_MAP}", *verdicts.drop("", SPOOFED)]


def source_chain(workload: HostWorkload, families: Sequence[int], verdicts: Verdicts) -> Chain | None:
    """What else an interface may send, beside what comes from its own addresses; None: nothing."""
    mac = "" if workload.mac is None else f"ether saddr {mac_text(int(workload.mac))} "
    matches = [match for each in families if (match := from_any_of(workload.allowed_source_prefixes, each))]
    if not matches:
        return None
    return chain([*(f"{mac}{match} return" for match in matches), *verdicts.drop("", SPOOFED)])


def _workload_to_host(options: DataplaneOptions, verdicts: Verdicts, *, is_v6: bool) -> list[str]:
    rules = [verdicts.known("accept")]
    if is_v6:
        rules.append(f"{_NEIGHBOURS} accept")
    if options.metadata is not None:
        address, port = options.metadata
        rules.append(f"ip daddr {address} tcp dport {port} accept")
    rules += [f"meta nfproto ipv{family} {_DHCP[family]} accept" for family in ((4, 6) if is_v6 else (4,))]
    rules.append(f"udp dport {DNS_PORT} accept")
    if options.endpoint_to_host == "DROP":
        origin = DenialOrigin(reason="from an endpoint to its host", direction="outbound")
        return [*rules, *verdicts.deny("", origin, "endpoint to host")]
    # RETURN and ACCEPT end alike here: an accept of ours does not overrule the tables of others
    rules.append("jump from_workload")
    return [*rules, "accept"] if options.endpoint_to_host == "ACCEPT" else rules


class Nat(msgspec.Struct, frozen=True, kw_only=True):
    """What of translation is wanted now."""

    masquerades: bool = False
    floats: bool = False
    tunnels: tuple[str, ...] = ()

    @classmethod
    def tunnels_of(cls, peers: HostPeers, families: Sequence[int]) -> tuple[str, ...]:
        wanted = {"ipip": peers.is_ipip, "vxlan": peers.is_vxlan}
        return tuple(name for (kind, family), name in DEVICE_NAMES.items() if family in families and wanted[kind])


def nat_chains(nat: Nat, options: DataplaneOptions, families: Sequence[int]) -> dict[str, Chain]:
    """The hooks of translation, only those that something needs: each makes the kernel look at every connection."""
    keywords = [(family, "ip" if family == 4 else "ip6") for family in families]
    floating = [f"dnat {ip} to {ip} daddr map @nat{family}" for family, ip in keywords] if nat.floats else []
    before: list[str] = []
    if options.metadata is not None:
        address, port = options.metadata
        match = f"iifname {_workload(options)} ip daddr {METADATA} tcp dport {METADATA_PORT}"
        before.append(f"{match} dnat ip to {address}:{port}")
    before += floating
    after: list[str] = []
    if nat.floats:
        after += [f"snat {ip} to {ip} saddr . {ip} daddr map @hairpin{family}" for family, ip in keywords]
    if nat.masquerades:
        after += [rule for family, ip in keywords for rule in _from_pools(options, family, ip)]
    # a connection of the host's own that was bound elsewhere: the other end of the tunnel would answer past it
    after += [
        f'oifname "{device}" fib saddr . oif type != local fib saddr type local masquerade' for device in nat.tunnels
    ]
    wanted = {
        "nat_prerouting": (before, PREROUTING),
        "nat_output": (floating, NAT_OUTPUT),
        "nat_postrouting": (after, POSTROUTING),
    }
    return {name: chain(rules, hook) for name, (rules, hook) in wanted.items() if rules}


def _from_pools(options: DataplaneOptions, family: int, ip: str) -> list[str]:
    """What leaves the pools gets an address that the world knows. Only TCP and UDP have ports to choose."""
    leaving = f'oifname "{options.nat_interfaces.replace("+", "*")}" ' if options.nat_interfaces else ""
    match = f"{leaving}{ip} saddr @masq{family} {ip} daddr != @pools{family}"
    address = options.nat_address
    is_own = address is not None and address.version == family
    rules: list[str] = []
    if options.nat_ports is not None:
        ports = "{}-{}".format(*options.nat_ports)
        own = f"[{address}]" if family == 6 else str(address)
        to = f"snat {ip} to {own}:{ports}" if is_own else f"masquerade to :{ports}"
        rules.append(f"{match} meta l4proto {{ tcp, udp }} {to} fully-random")
    return [*rules, f"{match} {f'snat {ip} to {address}' if is_own else 'masquerade'} fully-random"]


def closed_chain(reason: str, origin: DenialOrigin, verdicts: Verdicts) -> Chain:
    """In the place of what cannot be rendered or was refused."""
    return chain(verdicts.deny("", origin, reason))


def rules_chain_name(rules_id: RulesId, direction: str) -> str:
    """``direction`` is ``in`` (towards the workload) or ``out``."""
    return kernel_name("pi" if direction == "in" else "po", rules_id)


def list_rules(
    policies: PolicyList, direction: Direction, verdicts: Verdicts, *, denies_rest: bool = True
) -> list[str]:
    """Tiers in order, profiles in order, denial. "Accept" is to return with the accept mark set: the caller may have
    the other end's policy to ask. ``denies_rest`` False: what nobody decides passes.

    A jump looks for both marks itself, so that a policy is one rule here: the kernel takes and leaves a list, and walks
    it in vain, at so much a rule."""
    side: Literal["inbound", "outbound"] = "inbound" if direction == "in" else "outbound"
    rules = [verdicts.clear_marks]
    passed_before = False
    for tier in policies.tiers:
        if not tier.policies:
            continue
        if passed_before:
            rules.append(verdicts.clear_pass)
        passed_before = True
        for position, rules_id in enumerate(tier.policies):
            jump = f"jump {rules_chain_name(rules_id, direction)}"
            # only after a policy may a mark be set
            rules.append(f"{verdicts.if_undecided} {jump}" if position else jump)
            if (position + 1) % _JUMPS_A_RETURN == 0 or position + 1 == len(tier.policies):
                rules.append(verdicts.if_accepted_return)
        if tier.default_action == "deny":
            origin = DenialOrigin(reason="end of tier", direction=side, tier=tier.tier)
            rules += verdicts.deny(verdicts.if_not_passed, origin, f"end of tier {readable(tier.tier, 40)}")
    for rules_id in policies.profiles:
        rules += [f"jump {rules_chain_name(rules_id, direction)}", verdicts.if_accepted_return]
    if not denies_rest:
        return rules
    origin = DenialOrigin(reason="no profile matched", direction=side)
    return rules + verdicts.deny("", origin, "no profile matched")
