"""Profiles of a container: its agent's, then one a netgroup. Source: mesos specification 4."""

from __future__ import annotations

from collections.abc import Sequence

from netaddr import IPAddress, IPNetwork

from calico_core.errors import Conflict, InvalidRequest, NotReady
from calico_core.interfaces.datastore import Records
from calico_core.log import get_logger
from calico_core.model.addresses import host_network, parse_address
from calico_core.model.ids import check_name
from calico_core.model.keys import BgpHostAddressKey, HostIpKey, ProfileRulesKey
from calico_core.model.rules import Rule, RuleLists
from calico_core.model.workloads import NewProfile
from calico_mesos.errors import Refused

PUBLIC = "public"

log = get_logger(__name__)


def agent_profile(agent: str, addresses: Sequence[IPAddress]) -> NewProfile:
    """Executors talk with the agent on their host: its addresses are let in and out."""
    name = f"default_{agent}"
    try:
        check_name(name, field="hostname")
    except InvalidRequest as error:
        raise Refused(str(error)) from error
    nets = [host_network(address) for address in addresses]
    rules = RuleLists(
        id=name,
        inbound_rules=tuple(Rule(action="allow", src_net=net) for net in nets),
        outbound_rules=tuple(Rule(action="allow", dst_net=net) for net in nets),
    )
    return NewProfile(name=name, tags=(name,), rules=rules)


def netgroup_profiles(netgroups: Sequence[str]) -> tuple[NewProfile, ...]:
    """``public`` first, the others in the order asked for."""
    ordered = sorted(netgroups, key=lambda name: name != PUBLIC)
    return tuple(_netgroup_profile(name) for name in ordered)


def host_addresses(records: Records, host: str) -> tuple[IPAddress, ...]:
    """What the node registered, IPv4 first. Raises ``NotReady`` when it never did."""
    keys = (HostIpKey(host), BgpHostAddressKey(host, 4), BgpHostAddressKey(host, 6))
    found = [entry.record.strip() for key in keys if (entry := records.get(key)) is not None]
    addresses = tuple(dict.fromkeys(parse_address(text, field="host address") for text in found if text))
    if not addresses:
        raise NotReady(f"host {host} has no address in the datastore: start its node once")
    return addresses


def refresh_agent_profile(records: Records, wanted: NewProfile) -> None:
    """Correct the rules if they still are as we make them and the host's address has changed since. Rules that somebody
    edited stay."""
    found = records.get(ProfileRulesKey(wanted.name))
    if found is None or found.record == wanted.rules or not _is_as_made(found.record):
        return
    try:
        records.swap(found, wanted.rules)
    except Conflict:
        return  # whoever changed it meanwhile knew better, or did the same
    log.info("profile.host_address_changed", profile=wanted.name)


def _netgroup_profile(name: str) -> NewProfile:
    inbound = Rule(action="allow") if name == PUBLIC else Rule(action="allow", src_tag=name)
    rules = RuleLists(id=name, inbound_rules=(inbound,), outbound_rules=(Rule(action="allow"),))
    return NewProfile(name=name, tags=(name,), rules=rules)


def _is_as_made(rules: RuleLists) -> bool:
    sources = [rule.src_net for rule in rules.inbound_rules]
    targets = [rule.dst_net for rule in rules.outbound_rules]
    if not sources or sources != targets:
        return False
    plain = tuple(Rule(action="allow", src_net=net) for net in sources if _is_host(net))
    return plain == rules.inbound_rules and rules.outbound_rules == tuple(
        Rule(action="allow", dst_net=net) for net in targets
    )


def _is_host(net: IPNetwork | None) -> bool:
    return net is not None and net == host_network(IPAddress(net.first, net.version))
