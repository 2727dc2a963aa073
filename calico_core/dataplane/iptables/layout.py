"""The chains every host has, and the shapes of the others.

::

    raw PREROUTING     calico-PREROUTING ─ workload? ─▶ calico-wl-src ─ tunnels, loopback: drop ─▶ calico-src… (tree)
                         │                                ├─▶ calico-sp-<interface>: its addresses, and prefixes
                         │                                └─▶ calico-nosource: DHCP, ND, else drop
                         └ calico-ufrom… (tree) ─▶ calico-ui-… (untracked policy of a host endpoint)
    mangle PREROUTING  calico-PREROUTING ─ calico-dfrom… (tree) ─▶ calico-di-… (policy before translation)
    nat PREROUTING     calico-PREROUTING ─ metadata; calico-fip-dnat: floating addresses
    filter INPUT       calico-INPUT ─ tunnels of strangers: drop
                         ├ workload? ─▶ calico-wl-host ─ DHCP, DNS, neighbours; then as endpoint_to_host says
                         └ calico-hfrom… (tree) ─▶ calico-hi…-… (a host endpoint's list of policies)
    filter FORWARD     calico-FORWARD ─ calico-vfrom… (tree) ─▶ calico-vi-… (forward policy of a host endpoint)
                         └ from or to a workload ─▶ calico-wl ─ established: accept; tunnels, as translated: drop
                             ├─▶ calico-from… (tree) ─▶ calico-fl-… (a list of policies) ─▶ calico-po-… (rules)
                             ├─▶ calico-to… (tree) ───▶ calico-tl-…                      └▶ calico-pi-…
                             └ leaves? ─▶ calico-vto… (tree) ─▶ calico-vo-…; and so what is of no workload
    raw OUTPUT         calico-OUTPUT ─ calico-uto… (tree) ─▶ calico-uo-…
    nat OUTPUT         calico-OUTPUT ─ calico-fip-dnat
    filter OUTPUT      calico-OUTPUT ─ calico-hto… (tree) ─▶ calico-ho…-…
    nat POSTROUTING    calico-POSTROUTING ─ calico-fip-snat; tunnels; pool to elsewhere: masquerade

One jump to each stands first in the kernel's chain (last, if options say so), and only while something needs it: a host
without host endpoints has those of FORWARD, INPUT and raw PREROUTING. Traffic of the host itself to its workloads
passes. A tree over workloads that knows no interface of the name drops, so an interface nobody told us of is closed; a
tree over host interfaces returns. What survives both directions is accepted at once: whoever comes after us may have a
policy of dropping (Docker). Source: felix specification 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from calico_core.dataplane.host_hooks import IPV6_IS_OFF
from calico_core.dataplane.iptables.ipsets import address_text, net_text
from calico_core.dataplane.iptables.names import (
    FILTER,
    MANGLE,
    NAT,
    RAW,
    readable,
    rules_chain_name,
    tag,
)
from calico_core.dataplane.iptables.verdicts import ACCEPT, RETURN, Verdicts
from calico_core.dataplane.reconcile import Chain
from calico_core.interfaces.dataplane import DenialOrigin
from calico_core.model.addresses import LOOPBACK, WIDTH
from calico_core.model.always_open import DHCP_PORTS, DISCOVERY_TYPES, DNS_PORT, NEIGHBOUR_TYPES
from calico_core.model.interface_names import separate_prefixes
from calico_core.model.tunnels import IPIP_PROTOCOL, VXLAN_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import EUI, IPNetwork

    from calico_core.dataplane.denials import Origins
    from calico_core.interfaces.dataplane import DataplaneOptions, FailsafePort
    from calico_core.model.hoststate import PolicyList

    Direction = Literal["inbound", "outbound"]

#: In this order: who may send is opened last.
TABLES = (FILTER, MANGLE, RAW, NAT)
#: Chains of rules stand there only while a host endpoint needs them.
EARLY_TABLES = (RAW, MANGLE)
#: By table: the kernel's chain, and ours that it leads to.
HOOKS = {
    FILTER: {"FORWARD": "calico-FORWARD", "INPUT": "calico-INPUT", "OUTPUT": "calico-OUTPUT"},
    MANGLE: {"PREROUTING": "calico-PREROUTING"},
    RAW: {"PREROUTING": "calico-PREROUTING", "OUTPUT": "calico-OUTPUT"},
    NAT: {"PREROUTING": "calico-PREROUTING", "OUTPUT": "calico-OUTPUT", "POSTROUTING": "calico-POSTROUTING"},
}
FROM_ROOT, TO_ROOT, SOURCE_ROOT = "calico-from", "calico-to", "calico-src"
NO_SOURCE, WORKLOAD_SOURCE, WORKLOADS = "calico-nosource", "calico-wl-src", "calico-wl"
FAILSAFE = {"inbound": "calico-fs-in", "outbound": "calico-fs-out"}
NO_TRACK = "calico-notrack"

COMMENT = "calico:"
_ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED"
_INVALID = "-m conntrack --ctstate INVALID"
_LINK_LOCAL_SOURCES = ("::/128", "fe80::/10")
_DHCP = {family: "-p 17 -m udp --sport {} --dport {}".format(*ports) for family, ports in DHCP_PORTS.items()}
_PORTS_A_MATCH = 15
#: So many policies are skipped one by one at most, once a packet is accepted.
_POLICIES_A_LOOK = 8
_NO_CONNECTION = "belongs to no connection"


class Purpose(msgspec.Struct, frozen=True):
    """What a list of policies is for. ``letters`` stand in the names of its chains."""

    letters: str
    direction: Direction
    table: str = FILTER


TO_WORKLOAD, FROM_WORKLOAD = Purpose("tl", "inbound"), Purpose("fl", "outbound")
HOST_IN, HOST_OUT = Purpose("hi", "inbound"), Purpose("ho", "outbound")
FORWARD_IN, FORWARD_OUT = Purpose("vi", "inbound"), Purpose("vo", "outbound")
UNTRACKED_IN, UNTRACKED_OUT = Purpose("ui", "inbound", RAW), Purpose("uo", "outbound", RAW)
PRE_DNAT = Purpose("di", "inbound", MANGLE)


def after_early(purpose: Purpose, *, is_untracked: bool, is_pre_dnat: bool) -> Purpose:
    """The same where earlier policy of the interface may have let a packet through already."""
    return msgspec.structs.replace(purpose, letters=f"{purpose.letters}{'u' * is_untracked}{'d' * is_pre_dnat}")


def chain(rules: Iterable[str]) -> Chain:
    """Each rule carries its tag in its comment; what follows `` # `` in a rule's text joins it, for people."""
    texts: list[str] = []
    tags: list[str] = []
    for rule in rules:
        body, _, note = rule.partition(" # ")
        tags.append(tag(body))
        texts.append(f'{body} -m comment --comment "{COMMENT}{tags[-1]}{" " + note if note else ""}"')
    return Chain(tags=tuple(tags), rules=tuple(texts))


def jump(target: str) -> str:
    """The rule that leads from the kernel's chain to ours, as the kernel shows it."""
    return f'-m comment --comment "{COMMENT}{tag(target)}" -j {target}'


class Layout:
    """Chains as the options want them. Pure. ``families``: those that policy is for."""

    def __init__(self, options: DataplaneOptions, families: tuple[int, ...], origins: Origins) -> None:
        self.options, self.families = options, families
        #: Patterns of workloads' interfaces. A name matches one at most: a rule that jumps stands once for each.
        self.workloads = tuple(f"{prefix}+" for prefix in separate_prefixes(options.interface_prefixes))
        self._verdicts = {
            (family, table): Verdicts(options, origins, family, table) for family in (4, 6) for table in TABLES
        }

    def verdicts(self, family: int, table: str = FILTER) -> Verdicts:
        return self._verdicts[family, table]

    # --- what every host has ----------------------------------------------------------------------

    def fixed_chains(self, family: int) -> dict[str, dict[str, Chain]]:
        """By table: the chains that do not depend on what the host has to do."""
        early = self.verdicts(family, RAW)
        return {
            FILTER: {
                "calico-wl-host": chain(self._workload_to_host(family)),
            },
            RAW: {
                WORKLOAD_SOURCE: chain(
                    [*self._encapsulated(early), *self._to_loopback(early, family), f"-g {SOURCE_ROOT}"]
                ),
                NO_SOURCE: chain(self._no_source(family)),
            },
            MANGLE: {},
            NAT: {},
        }

    def forwarded(self, family: int, leaving: list[str]) -> list[str]:
        """What comes from workloads or goes to them. ``leaving``: how host endpoints' policy is asked, after theirs."""
        verdicts = self.verdicts(family)
        return [
            *self._unconnected(family),
            f"{_ESTABLISHED} {verdicts.allow}",
            *(rule for each in self.workloads for rule in self._encapsulated_vxlan(verdicts, f"-i {each} ")),
            *(f"-i {each} -j {FROM_ROOT}" for each in self.workloads),
            *(f"-o {each} -j {TO_ROOT}" for each in self.workloads),
            *leaving,
            verdicts.allow,
        ]

    def _encapsulated(self, verdicts: Verdicts) -> list[str]:
        """A workload that could send into the hosts' tunnels would come out beyond all policy."""
        rules = self._encapsulated_vxlan(verdicts)
        if not self.options.allows_ipip:
            rules += verdicts.drop(f"-p {IPIP_PROTOCOL}", "IPIP from a workload")
        return rules

    def _encapsulated_vxlan(self, verdicts: Verdicts, sender: str = "") -> list[str]:
        """Known by a port alone, which translation may give to what had another: asked before it and after."""
        if self.options.allows_vxlan:
            return []
        return verdicts.drop(f"{sender}-p 17 -m udp --dport {VXLAN_PORT}", "VXLAN from a workload")

    def _to_loopback(self, verdicts: Verdicts, family: int) -> list[str]:
        """Before translation, which leads there what may go there. Of IPv6 the kernel takes no such packet."""
        return verdicts.drop(f"-d {net_text(LOOPBACK)}", "to a loopback address") if family == 4 else []

    def _unconnected(self, family: int) -> list[str]:
        """What the kernel's tracking makes nothing of."""
        return self.verdicts(family).drop(_INVALID, _NO_CONNECTION) if self.options.drops_invalid else []

    def _workload_to_host(self, family: int) -> list[str]:
        verdicts, action = self.verdicts(family), self.options.endpoint_to_host
        rules = self._unconnected(family)
        rules.append(f"{_ESTABLISHED} {ACCEPT}")
        if family == 6:
            rules += [f"-p 58 -m icmp6 --icmpv6-type {kind} {ACCEPT}" for kind in NEIGHBOUR_TYPES]
        if self.options.metadata is not None and self.options.metadata[0].version == family:
            address, port = self.options.metadata
            width = WIDTH[family]
            rules.append(f"-d {address_text(int(address), family)}/{width} -p 6 -m tcp --dport {port} {ACCEPT}")
        rules += [f"{_DHCP[family]} {ACCEPT}", f"-p 17 -m udp --dport {DNS_PORT} {ACCEPT}"]
        if action == "DROP":
            origin = DenialOrigin(reason="from an endpoint to its host", direction="outbound")
            return [*rules, *verdicts.deny("", origin, note="endpoint to host")]
        rules += [*self._encapsulated_vxlan(verdicts), f"-j {FROM_ROOT}"]
        return [*rules, ACCEPT] if action == "ACCEPT" else rules

    def _no_source(self, family: int) -> list[str]:
        """What a workload may send without an address of its own."""
        rules: list[str] = []
        if family == 4:
            rules = [f"-s 0.0.0.0/32 {_DHCP[4]} {RETURN}"]
        elif family in self.families:
            rules = [
                f"-s {source} -p 58 -m icmp6 --icmpv6-type {kind} {RETURN}"
                for source in _LINK_LOCAL_SOURCES
                for kind in NEIGHBOUR_TYPES
            ]
            rules.append(f"-s fe80::/10 {_DHCP[6]} {RETURN}")
        return [*rules, *self.verdicts(family, RAW).drop("", "spoofed source")]

    def missed(self, root: str, family: int) -> list[str]:
        """The rules for a workload interface that nobody told us of."""
        if root == SOURCE_ROOT:
            return [f"-g {NO_SOURCE}"]
        return self.verdicts(family).drop("", f"{'from' if root == FROM_ROOT else 'to'} an unknown endpoint")

    # --- endpoints --------------------------------------------------------------------------------

    def list_chain(self, policies: PolicyList, purpose: Purpose, family: int) -> Chain:
        """Tiers in order, profiles in order, drop. "Accept" is to return with the accept mark set where the caller
        may have another list to ask; lists of host endpoints decide themselves."""
        verdicts = self.verdicts(family, purpose.table)
        decided = {"h": verdicts.allow, "u": f"-g {NO_TRACK}", "d": verdicts.allow}
        # otherwise it returns to who may have another list to ask
        accepted = f"{verdicts.if_accepted} {decided.get(purpose.letters[0], RETURN)}"
        # what comes early, or is only forwarded, leaves to others what it does not decide
        is_last, ends_tiers = purpose.letters[0] in "tfh", purpose.table == FILTER
        rules = self._before_policy(purpose, family)
        if verdicts.clear_marks not in rules:
            rules.append(verdicts.clear_marks)
        passed_before = False
        for tier in policies.tiers:
            if not tier.policies:
                continue
            if passed_before:
                rules.append(verdicts.clear_pass)
            passed_before = True
            for position, rules_id in enumerate(tier.policies):
                if position and position % _POLICIES_A_LOOK == 0:
                    rules.append(accepted)
                step = f"-j {rules_chain_name(rules_id, purpose.direction)}"
                # only after a policy may a mark be set
                rules.append(f"{verdicts.if_undecided} {step}" if position else step)
            rules.append(accepted)
            if ends_tiers and tier.default_action == "deny":
                origin = DenialOrigin(reason="end of tier", direction=purpose.direction, tier=tier.tier)
                rules += verdicts.deny(verdicts.if_not_passed, origin, note=f"end of tier {readable(tier.tier, 40)}")
        for rules_id in policies.profiles if is_last else ():
            rules += [f"-j {rules_chain_name(rules_id, purpose.direction)}", accepted]
        if is_last:
            origin = DenialOrigin(reason="no profile matched", direction=purpose.direction)
            rules += verdicts.deny("", origin, note="no profile matched")
        return chain(rules)

    def no_ipv6_chain(self, purpose: Purpose) -> Chain:
        """What stands for the lists of host endpoints where there is no policy of IPv6."""
        origin = DenialOrigin(reason=IPV6_IS_OFF, direction=purpose.direction)
        denial = self.verdicts(6, purpose.table).deny("", origin, note=IPV6_IS_OFF)
        return chain([*self._before_policy(purpose, 6), *denial])

    def _before_policy(self, purpose: Purpose, family: int) -> list[str]:
        """What no policy of a host endpoint decides."""
        kind, verdicts = purpose.letters[0], self.verdicts(family, purpose.table)
        if kind in "tf":
            return []
        rules: list[str] = []
        if kind == "d":
            rules += [f"{_ESTABLISHED} {RETURN}", *self._unconnected(family)]
            if "u" in purpose.letters:
                rules.append(f"{verdicts.if_accepted} -m conntrack --ctstate UNTRACKED {RETURN}")
        if kind in "ud":
            # before the fail-safe ports, too: a decapsulated packet carries the mark of the packet around it
            rules.append(verdicts.clear_marks)
        elif kind in "hv":
            # let through by an earlier policy of the interface; a mark alone might be anybody's
            passing = verdicts.allow if kind == "h" else RETURN
            if "u" in purpose.letters:
                rules.append(f"{verdicts.if_accepted} -m conntrack --ctstate UNTRACKED {passing}")
            # what belongs to no connection is let through by no mark and no fail-safe port
            rules += [f"{_ESTABLISHED} {verdicts.allow}", *self._unconnected(family)]
            if "d" in purpose.letters:
                rules.append(f"{verdicts.if_accepted} {passing}")
        if family == 6 and kind != "v":
            rules += [f"-p 58 -m icmp6 --icmpv6-type {each} {ACCEPT}" for each in DISCOVERY_TYPES]
        if kind != "v" and self.failsafe_chain(purpose.direction, family, purpose.table) is not None:
            rules.append(f"-j {FAILSAFE[purpose.direction]}")
        return rules

    def failsafe_chain(self, direction: Direction, family: int, table: str) -> Chain | None:
        """The ports that no policy closes; None: there are none. In the raw table, which knows no connections, their
        answers too."""
        inbound, outbound = self.options.failsafe_inbound, self.options.failsafe_outbound
        mine, others = (inbound, outbound) if direction == "inbound" else (outbound, inbound)
        remote = "-s" if direction == "inbound" else "-d"
        rules = _open_ports(mine, family, remote, "--dports")
        if table == RAW:
            rules += _open_ports(others, family, remote, "--sports")
        return chain(rules) if rules else None

    def no_track_chain(self) -> Chain:
        return chain(["-j CT --notrack", ACCEPT])

    def source_chain(
        self, mac: EUI | None, addresses: Iterable[int], prefixes: Iterable[IPNetwork], family: int
    ) -> Chain:
        """``mac`` None: any."""
        sender = "" if mac is None else f"-m mac --mac-source {int(mac).to_bytes(6, 'big').hex(':')} "
        width = WIDTH[family]
        sources = [f"-s {address_text(each, family)}/{width} " for each in sorted(addresses)]
        # of the whole family the kernel shows nothing
        sources += [f"-s {net_text(each)} " if each.prefixlen else "" for each in prefixes if each.version == family]
        return chain([*(f"{source}{sender}{RETURN}" for source in sources), f"-g {NO_SOURCE}"])


def _open_ports(ports: Iterable[FailsafePort], family: int, remote: str, option: str) -> list[str]:
    groups: dict[tuple[int, IPNetwork | None], set[int]] = {}
    for each in ports:
        if each.net is None or each.net.version == family:
            groups.setdefault((each.protocol, each.net), set()).add(each.port)
    rules: list[str] = []
    for (protocol, net), numbers in groups.items():
        match = f"-p {protocol} " if net is None else f"{remote} {net_text(net)} -p {protocol} "
        ordered = sorted(numbers)
        for start in range(0, len(ordered), _PORTS_A_MATCH):
            chunk = ",".join(map(str, ordered[start : start + _PORTS_A_MATCH]))
            rules.append(f"{match}-m multiport {option} {chunk} {ACCEPT}")
    return rules
