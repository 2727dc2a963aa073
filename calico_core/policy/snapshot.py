"""The records of a cluster at one moment, and what follows from them for each host: what :mod:`flows` asks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from netaddr import IPAddress, IPNetwork

from calico_core.model.addresses import contains
from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import HostRules, HostState, HostWorkload, PolicyList, RulesId
from calico_core.model.keys import (
    BgpHostAddressKey,
    HostEndpointKey,
    HostIpKey,
    Key,
    PoolKey,
    WorkloadEndpointKey,
)
from calico_core.model.pools import Pool
from calico_core.model.rules import PORT_PROTOCOLS, Rule
from calico_core.policy.cluster_wide import host_address
from calico_core.policy.effective_labels import effective_labels
from calico_core.policy.explain import Direction, Packet, holder
from calico_core.policy.host_settings import MAX_SET_SIZE, HostSettings
from calico_core.policy.resolver import PolicyResolver, refusal
from calico_core.policy.rules import stored_position
from calico_core.policy.rules_ids import record_key
from calico_core.policy.set_limit import SetsBeyond, close_rules, set_words
from calico_core.policy.tunnel_routes import encapsulation
from calico_core.policy.verdicts import kind_and_name
from calico_core.settings import Settings


class Snapshot(HostSettings):
    """Every host's records. ``bad`` maps the paths of records that do not decode to the reason. ``defaults``: what
    hosts go by whose configuration names nothing."""

    def __init__(
        self,
        records: Iterable[tuple[Key, Any]],
        *,
        bad: Mapping[str, str] | None = None,
        defaults: Settings | None = None,
    ) -> None:
        super().__init__(dict(records), Settings() if defaults is None else defaults)
        self._bad = bad or {}
        self._states: dict[str, HostState] = {}
        self._beyond: dict[str, SetsBeyond] = {}
        self.host_endpoints: dict[HostEndpointKey, HostEndpoint] = {}
        self.endpoints: dict[WorkloadEndpointKey, WorkloadEndpoint] = {}
        self.hosts: dict[IPAddress, str] = {}
        self._addresses: dict[tuple[str, int], IPAddress] = {}
        for key, record in self._records.items():
            if isinstance(key, WorkloadEndpointKey):
                self.endpoints[key] = record
            elif isinstance(key, HostIpKey | BgpHostAddressKey):
                address = host_address(key, record)
                if address is None:
                    continue
                self.hosts[address] = key.host
                self._addresses[key.host, address.version] = address
            elif isinstance(key, HostEndpointKey):
                self.host_endpoints[key] = record
        self._owners: dict[tuple[str, str], WorkloadEndpointKey] = {}  # of an interface: the first active one
        for owner in sorted(self.endpoints, key=lambda each: each.path):
            if self.endpoints[owner].state == "active":
                self._owners.setdefault((owner.host, self.endpoints[owner].name), owner)
        for host_key, host_endpoint in self.host_endpoints.items():
            for each in host_endpoint.addresses:
                self.hosts.setdefault(each, host_key.host)

    def why_not_in_force(self, key: WorkloadEndpointKey) -> str | None:
        """Why the host closes the endpoint, active as it is, whatever policy says: its interface is no workload's, or
        another one's."""
        endpoint = self.endpoints[key]
        if endpoint.state != "active":
            return None
        if reason := refusal(endpoint, self.interface_prefixes(key.host)):
            return f"interface {endpoint.name}: {reason}"
        owner = self._owners[key.host, endpoint.name]
        return None if owner == key else f"another endpoint has the interface {endpoint.name}: {owner.path}"

    def labels(self, key: WorkloadEndpointKey) -> dict[str, str]:
        """Those that policy sees on it."""
        return effective_labels(self.endpoints[key], self._records)

    def lacks_port(self, packet: Packet, *parties: WorkloadEndpointKey | None) -> bool:
        """Whether the packet names no destination port, and policy on its way looks at one."""
        is_bare = packet.protocol in PORT_PROTOCOLS and packet.dst_port is None
        return is_bare and self.asks_for_port(packet, *parties)

    def asks_for_port(self, packet: Packet, *parties: WorkloadEndpointKey | None) -> bool:
        """Whether policy of an end looks at the destination port of packets of this protocol."""
        keys = {*self.carriers(packet.src), *self.carriers(packet.dst), *filter(None, parties)}
        lists: list[tuple[HostState, PolicyList]] = []
        for key in keys:
            state = self.state(key.host)
            lists += [(state, each) for each in (state.workloads[key].inbound, state.workloads[key].outbound)]
        hosts = {*(key.host for key in keys), self.hosts.get(packet.src), self.hosts.get(packet.dst)}
        for host in {key.host for key in self.host_endpoints} & hosts:
            state = self.state(host)
            for interface in state.interfaces.values():
                values = (getattr(interface, field) for field in interface.__struct_fields__)
                lists += [(state, value) for value in values if isinstance(value, PolicyList)]
        return any(
            _looks_at_port(state.rules[rules_id], packet.protocol)
            for state, policies in lists
            for rules_id in (*(each for tier in policies.tiers for each in tier.policies), *policies.profiles)
        )

    def state(self, host: str) -> HostState:
        """What the agent of ``host`` would tell its dataplane, and the dataplane make of it: rules that name a set
        beyond its limit deny."""
        found = self._states.get(host)
        if found is None:
            resolver = PolicyResolver(host, lets_spoof=self.lets_spoof(host), has_floating=self.has_floating(host))
            resolver.apply(self._records.items())
            for key, record in self.host_endpoints.items():
                if key.host == host and record.name is None:  # one that has what is expected stands for the real one
                    resolver.set_interface(_unnamed(record), frozenset(record.addresses))
            resolver.in_sync()
            found = self._states[host] = HostState()
            found.update(resolver.flush())
            self._beyond[host] = close_rules(found, self.max_set_size(host))
        return found

    def rules_of(
        self, rules_id: RulesId, direction: Direction
    ) -> tuple[Literal["policy", "profile"], str, tuple[Rule, ...] | None]:
        """Kind and name of the record, and its rules as they are stored; None: no record stands behind it."""
        key = record_key(rules_id)
        lists = self._records.get(key)
        kind, name = kind_and_name(key)
        if lists is None:
            return kind, name, None
        return kind, name, lists.inbound_rules if direction == "inbound" else lists.outbound_rules

    def why_closed(self, host: str, rules_id: RulesId, direction: Direction) -> dict[int, str]:
        """The rules of the list that deny on the host whatever they say, by their place in the record (from 0)."""
        self.state(host)
        beyond, (kind, _, rules) = self._beyond[host], self.rules_of(rules_id, direction)
        reasons: dict[int, str] = {}
        for index, set_id in beyond.named.get((rules_id, direction), {}).items():
            assert rules is not None  # of what is not there no rule names a set
            position = stored_position(rules, index, of_profile=kind == "profile")
            size, words = beyond.sizes[set_id], set_words(rules[position], set_id)
            reasons[position] = (
                f"the set of {words} has {size} members, more than {MAX_SET_SIZE} {self.max_set_size(host)}: "
                "rules that name it deny"
            )
        return reasons

    def why_bad(self, key: Key) -> str | None:
        """Of a record that does not decode."""
        return self._bad.get(key.path)

    # --- addresses ---------------------------------------------------------------------------------

    def holders(self, address: IPAddress) -> list[WorkloadEndpointKey]:
        """Who has the address: of each host one endpoint at most."""
        hosts = sorted({key.host for key in self.carriers(address)})
        found = [self.holder(host, address) for host in hosts]
        return [each.key for each in found if each is not None]

    def holder(self, host: str, address: IPAddress) -> HostWorkload | None:
        """Which of the host's, of the records that it obeys."""
        prefixes, workloads = self.interface_prefixes(host), self.state(host).workloads.values()
        return holder((each for each in workloads if not refusal(self.endpoints[each.key], prefixes)), address)

    def carriers(self, address: IPAddress) -> list[WorkloadEndpointKey]:
        """Who is said to have it."""
        found = [
            key for key, endpoint in self.endpoints.items() if any(contains(net, address) for net in endpoint.nets)
        ]
        return sorted(found, key=lambda key: key.path)

    def address_of(self, host: str, version: int) -> IPAddress | None:
        """By which other hosts know it."""
        return self._addresses.get((host, version))

    def pools(self) -> Iterator[Pool]:
        return (record for key, record in self._records.items() if isinstance(key, PoolKey))

    def pool_of(self, address: IPAddress) -> IPNetwork | None:
        return next(
            (key.cidr for key in self._records if isinstance(key, PoolKey) and contains(key.cidr, address)), None
        )

    def is_tunnelled(self, address: IPAddress) -> bool:
        """Whether it always goes from host to host inside another packet, past the policy of interfaces."""
        ways = (encapsulation(pool) for pool in self.pools() if contains(pool.cidr, address))
        return any(way is not None and way[1] == "always" for way in ways)


def _looks_at_port(rules: HostRules, protocol: int) -> bool:
    """For a decision: staged ones make none."""
    return not rules.is_staged and any(
        rule.protocol == protocol
        and (rule.dst_ports or rule.not_dst_ports or rule.dst_port_sets or rule.not_dst_port_sets)
        for rule in rules.inbound + rules.outbound
    )


def _unnamed(record: HostEndpoint) -> str:
    return f"with {record.addresses[0]}"
