"""Journey A's brain: datastore updates in, changes of the host's desired state out.

Level-triggered: the latest value of each key counts, and the sum of all changes depends on the final inputs alone, not
on how they came. Owned by one thread. Source: felix specification 3 and 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from netaddr import IPAddress

from calico_core.log import get_logger
from calico_core.model.endpoints import HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import (
    ANY_INTERFACE,
    HostChanges,
    HostInterface,
    HostRules,
    HostWorkload,
    PolicyList,
    RulesId,
    SetId,
)
from calico_core.model.interface_names import prefixes_in_words
from calico_core.model.keys import (
    BgpHostAddressKey,
    HostEndpointKey,
    HostIpKey,
    Key,
    NetworkSetKey,
    PolicyKey,
    PoolKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    TierKey,
    WorkloadEndpointKey,
)
from calico_core.model.rules import Rule, RuleLists
from calico_core.model.selectors import Labels
from calico_core.policy.active import ActiveLists, References
from calico_core.policy.allowed_sources import AllowedSources
from calico_core.policy.cluster_wide import ClusterWide
from calico_core.policy.floating import NO_NATS, FloatingAddresses
from calico_core.policy.host_endpoints import HostEndpoints
from calico_core.policy.ip_sets import IpSets
from calico_core.policy.label_index import IndexFigures
from calico_core.policy.policy_lists import Hook, PolicyLists, Tiers
from calico_core.policy.rules import Source, compile_rules, tag_label
from calico_core.policy.rules_ids import policy_rules_id, profile_rules_id, record_key

log = get_logger(__name__)

_NO_RULES = RuleLists(inbound_rules=(Rule(action="deny"),), outbound_rules=(Rule(action="deny"),))
"""Of a profile that is not there: closed at its place in the list. Source: felix specification 4.5."""
_CLOSED = PolicyList()
Pending = defaultdict[type[Key], dict[Any, Any]]
"""The latest value of each key; None: deleted."""


def refusal(record: WorkloadEndpoint, prefixes: tuple[str, ...]) -> str:
    """Why a host whose workloads' interfaces begin with one of these does not obey the record. Or ''."""
    return "" if record.name.startswith(prefixes) else f"its name does not begin with {prefixes_in_words(prefixes)}"


class PolicyResolver:
    """``apply`` what the datastore says and ``set_interface`` what the host has, then ``flush``: one batch."""

    def __init__(
        self,
        host: str,
        *,
        interface_prefixes: tuple[str, ...] = (),
        lets_spoof: bool = False,
        has_floating: bool = True,
        is_excluded: Callable[[str], bool] = lambda _interface: False,
    ) -> None:
        """``interface_prefixes``: the names of all workloads' interfaces begin with one of them, and no other's.
        Empty: they may be called anything.
        ``lets_spoof``: workloads may send from the prefixes that their records allow them. ``has_floating`` False: the
        floating addresses that records name lead nowhere.
        ``is_excluded``: whether an interface is the business only of a host endpoint that names it."""
        self._host = host
        self._prefixes = interface_prefixes
        self.allowed_sources = AllowedSources(is_wanted=lets_spoof)
        self._is_in_sync = False
        self._is_first = True
        self._pending: Pending = defaultdict(dict)
        self._profile_rules: dict[str, RuleLists] = {}
        self._profile_labels: dict[str, Labels] = {}
        self._profile_tags: dict[str, tuple[str, ...]] = {}
        self._local: dict[WorkloadEndpointKey, WorkloadEndpoint] = {}
        self._floating = FloatingAddresses()
        self._has_floating = has_floating
        self._host_endpoints = HostEndpoints(interface_prefixes, is_excluded)
        self._cluster_wide = ClusterWide()
        self._policy_lists = PolicyLists()
        self._ip_sets = IpSets()
        self._lists = ActiveLists()
        self._set_references: References[SetId] = References()
        # As the dataplane was told.
        self._workloads: dict[WorkloadEndpointKey, HostWorkload] = {}
        self._interfaces: dict[str, HostInterface] = {}
        self._rules: dict[RulesId, HostRules] = {}
        self._rule_sets: dict[RulesId, tuple[SetId, ...]] = {}
        # Of the batch under way.
        self._dirty_rules: set[RulesId] = set()
        self._is_interface_dirty = False
        # by the identity of the tiers, which are held with them
        self._known_lists: dict[tuple[int, tuple[str, ...]], tuple[Tiers, tuple[PolicyList, PolicyList]]] = {}

    def index_figures(self) -> IndexFigures:
        """Of the sets in use; any thread."""
        return self._ip_sets.index_figures()

    def workload(self, key: WorkloadEndpointKey) -> HostWorkload | None:
        """As the dataplane was told; any thread."""
        return self._workloads.get(key)

    def in_sync(self) -> None:
        """The snapshot is complete: from now on :meth:`flush` speaks."""
        self._is_in_sync = True

    def apply(self, updates: Iterable[tuple[Key, Any]]) -> None:
        """The latest value of each key; None: deleted. Keys that are not policy's business are ignored."""
        pending = self._pending
        for key, value in updates:
            pending[type(key)][key] = value

    def set_interface(self, name: str, addresses: frozenset[IPAddress] | None) -> None:
        """An interface of the host itself and all its addresses; None: it is gone. Those of workloads are not to be
        given."""
        self._is_interface_dirty |= self._host_endpoints.set_interface(name, addresses)

    def flush(self) -> HostChanges:
        """What changed since the last flush. The first after :meth:`in_sync` is complete; before it, empty."""
        if not self._is_in_sync or not (self._is_first or self._pending or self._is_interface_dirty):
            return HostChanges()
        pending, self._pending = self._pending, defaultdict(dict)
        self._take_policies(pending)
        self._take_profiles(pending)
        dirty = self._take_local(pending[WorkloadEndpointKey])
        self._take_host_endpoints(pending[HostEndpointKey])
        relisted = self._policy_lists.flush()
        dirty.update(key for key in relisted if isinstance(key, WorkloadEndpointKey))
        workloads, removed_workloads = self._resolve(dirty)
        self._is_interface_dirty |= any(isinstance(key, HostEndpointKey) for key in relisted)
        interfaces, removed_interfaces = self._resolve_interfaces()
        rules, removed_rules, sets = self._compile()
        removed_sets, removed_port_sets = self._activate(sets)
        for kind in (WorkloadEndpointKey, HostEndpointKey, NetworkSetKey):
            self._ip_sets.update_members(pending[kind].items())
        set_changes, port_set_changes = self._ip_sets.flush()
        addresses = pending[HostIpKey] | pending[BgpHostAddressKey]
        self._cluster_wide.take(pending[PoolKey].items(), addresses.items())
        pools, peers = self._cluster_wide.changed()
        changes = HostChanges(
            is_complete=self._is_first,
            sets=set_changes,
            port_sets=port_set_changes,
            rules=tuple(rules),
            workloads=tuple(workloads),
            interfaces=tuple(interfaces),
            pools=pools,
            peers=peers,
            removed_sets=tuple(removed_sets),
            removed_port_sets=tuple(removed_port_sets),
            removed_rules=tuple(removed_rules),
            removed_workloads=tuple(removed_workloads),
            removed_interfaces=tuple(removed_interfaces),
        )
        self._is_first = False
        self._known_lists.clear()
        self._lists.forget_unused()
        return changes

    # --- inputs --------------------------------------------------------------------------------------

    def _take_policies(self, pending: Pending) -> None:
        # before the endpoints: what selectors ask of labels is then indexed as endpoints come
        for tier_key, tier in pending[TierKey].items():
            self._policy_lists.set_tier(tier_key.tier, tier)
        for policy_key, policy in pending[PolicyKey].items():
            self._policy_lists.set_policy(policy_key, policy)
        self._note_rules(map(policy_rules_id, pending[PolicyKey]))

    def _take_profiles(self, pending: Pending) -> None:
        for rules_key, rules in pending[ProfileRulesKey].items():
            _put(self._profile_rules, rules_key.profile, rules)
        self._note_rules(profile_rules_id(key.profile) for key in pending[ProfileRulesKey])
        changed: dict[str, None] = {}
        for labels_key, labels in pending[ProfileLabelsKey].items():
            _put(self._profile_labels, labels_key.profile, labels)
            changed[labels_key.profile] = None
        for tags_key, tags in pending[ProfileTagsKey].items():
            _put(self._profile_tags, tags_key.profile, tags)
            changed[tags_key.profile] = None
        for profile in changed:
            given = self._profile_labels.get(profile)
            self._policy_lists.set_profile_labels(profile, given)
            marks = {tag_label(tag): "" for tag in self._profile_tags.get(profile, ())}
            self._ip_sets.set_profile_labels(profile, {**given, **marks} if given and marks else given or marks)

    def _note_rules(self, changed: Iterable[RulesId]) -> None:
        """Rules that are not in use are no concern: they are read when they come into use."""
        if self._rules:
            self._dirty_rules.update(each for each in changed if each in self._rules)

    def _take_local(self, updates: dict[WorkloadEndpointKey, WorkloadEndpoint | None]) -> set[WorkloadEndpointKey]:
        host = self._host
        local = [(key, self._checked(key, record)) for key, record in updates.items() if key.host == host]
        active = [(key, record if record is not None and record.state == "active" else None) for key, record in local]
        self._policy_lists.update_endpoints(active)
        dirty = {key for key, _ in local}
        for key, endpoint in local:
            _put(self._local, key, endpoint)
        if self._has_floating:
            for key, endpoint in active:
                dirty |= self._floating.put(key, endpoint)
        return dirty

    def refusal(self, record: WorkloadEndpoint) -> str:
        """Why a record of this host is not obeyed: it claims an interface which is no workload's. Or ''."""
        return refusal(record, self._prefixes) if self._prefixes else ""

    def _checked(self, key: WorkloadEndpointKey, record: WorkloadEndpoint | None) -> WorkloadEndpoint | None:
        reason = self.refusal(record) if record is not None else ""
        if record is None or not reason:
            return record
        log.warning("endpoint.ignored", endpoint=key.endpoint, interface=record.name, reason=reason)
        return None

    def _take_host_endpoints(self, updates: dict[HostEndpointKey, HostEndpoint | None]) -> None:
        local = [update for update in updates.items() if update[0].host == self._host]
        self._policy_lists.update_endpoints(local)
        for key, record in local:
            self._host_endpoints.set_record(key, record)
        self._is_interface_dirty |= bool(local)

    # --- outputs -------------------------------------------------------------------------------------

    def _resolve(self, keys: Iterable[WorkloadEndpointKey]) -> tuple[list[HostWorkload], list[WorkloadEndpointKey]]:
        """The local endpoints that changed, and those that are gone."""
        changed: list[HostWorkload] = []
        gone: list[WorkloadEndpointKey] = []
        for key in sorted(keys, key=_sort_key):
            before = self._workloads.get(key)
            endpoint = self._local.get(key)
            after = None if endpoint is None else self._workload(key, endpoint)
            if after == before:
                continue
            if after is not None:
                self._workloads[key] = after
                self._lists.hold(after)
                changed.append(after)
            else:
                del self._workloads[key]
                self.allowed_sources.forget(key)
                gone.append(key)
            if before is not None:
                self._lists.release(before)
        return changed, gone

    def _workload(self, key: WorkloadEndpointKey, endpoint: WorkloadEndpoint) -> HostWorkload:
        is_active = endpoint.state == "active"
        inbound = outbound = self._lists.share(_CLOSED)
        if is_active:
            inbound, outbound = self._lists_of(key, "normal", endpoint.profile_ids)
        return HostWorkload(
            key=key,
            interface=endpoint.name,
            is_active=is_active,
            mac=endpoint.mac,
            nets=endpoint.ipv4_nets + endpoint.ipv6_nets,
            allowed_source_prefixes=self.allowed_sources.of(key, endpoint) if is_active else (),
            ipv6_gateway=endpoint.ipv6_gateway,
            nats=self._floating.of(key) if is_active else NO_NATS,
            inbound=inbound,
            outbound=outbound,
        )

    def _lists_of(
        self, key: WorkloadEndpointKey | HostEndpointKey, hook: Hook, profile_ids: tuple[str, ...] = ()
    ) -> tuple[PolicyList, PolicyList]:
        tiers = self._policy_lists.tiers_of(key, hook)
        known = self._known_lists.get((id(tiers), profile_ids))
        if known is not None:
            return known[1]
        profiles = tuple(profile_rules_id(profile) for profile in profile_ids)
        inbound, outbound = (self._lists.share(PolicyList(tiers=each, profiles=profiles)) for each in tiers)
        self._known_lists[id(tiers), profile_ids] = tiers, (inbound, outbound)
        return inbound, outbound

    def _resolve_interfaces(self) -> tuple[list[HostInterface], list[str]]:
        """The interfaces of the host whose policy changed, and those that have none any more."""
        if not self._is_interface_dirty:
            return [], []
        self._is_interface_dirty = False
        before = self._interfaces
        after = {name: self._interface(name, key) for name, key in self._host_endpoints.by_interface().items()}
        changed = [each for name, each in after.items() if before.get(name) != each]
        for interface in changed:
            self._lists.hold(interface)
        for name, old in before.items():
            if after.get(name) != old:
                self._lists.release(old)
            else:
                after[name] = old
        self._interfaces = after
        return changed, sorted(before.keys() - after.keys())

    def _interface(self, name: str, key: HostEndpointKey) -> HostInterface:
        profile_ids = self._host_endpoints.records[key].profile_ids
        inbound, outbound = self._lists_of(key, "normal", profile_ids)
        forward_inbound, forward_outbound = self._lists_of(key, "forward")
        untracked_inbound, untracked_outbound = self._lists_of(key, "untracked")
        pre_dnat, _ = self._lists_of(key, "pre_dnat")
        return HostInterface(
            key=key,
            interface=name,
            inbound=inbound,
            outbound=outbound,
            forward_inbound=forward_inbound,
            forward_outbound=forward_outbound,
            untracked_inbound=untracked_inbound,
            untracked_outbound=untracked_outbound,
            pre_dnat=pre_dnat,
            spares=self._host_endpoints.excluded if name == ANY_INTERFACE else (),
        )

    def _compile(self) -> tuple[list[HostRules], list[RulesId], dict[SetId, Source]]:
        """Rules that are new or others, rules no longer used, and what the sets are made of that they name."""
        begun, ended = self._lists.rules.take_changes()
        changed: list[HostRules] = []
        sources: dict[SetId, Source] = {}
        active = self._lists.rules
        for rules_id in dict.fromkeys([*begun, *sorted(each for each in self._dirty_rules if each in active)]):
            rules, sets = self._compile_one(rules_id)
            if self._rules.get(rules_id) == rules:
                continue
            sources.update(sets)
            self._rules[rules_id] = rules
            self._set_references.hold(sets)
            self._set_references.release(self._rule_sets.get(rules_id, ()))
            self._rule_sets[rules_id] = tuple(sets)
            changed.append(rules)
        for rules_id in ended:
            del self._rules[rules_id]
            self._set_references.release(self._rule_sets.pop(rules_id))
        self._dirty_rules.clear()
        return changed, ended, sources

    def _compile_one(self, rules_id: RulesId) -> tuple[HostRules, dict[SetId, Source]]:
        """Fails closed."""
        key = record_key(rules_id)
        if isinstance(key, ProfileRulesKey):
            lists = self._profile_rules.get(key.profile, _NO_RULES)
            return compile_rules(rules_id, lists.inbound_rules, lists.outbound_rules, of_profile=True)
        policy = self._policy_lists.policy(key)
        return compile_rules(
            rules_id, policy.inbound_rules, policy.outbound_rules, of_profile=False, is_staged=policy.staged
        )

    def _activate(self, sources: dict[SetId, Source]) -> tuple[list[SetId], list[SetId]]:
        """The sets no longer used: of addresses, and of ports."""
        begun, ended = self._set_references.take_changes()
        for set_id in begun:
            self._ip_sets.activate(set_id, sources[set_id])
        gone: tuple[list[SetId], list[SetId]] = [], []
        for set_id in ended:
            gone[self._ip_sets.deactivate(set_id)].append(set_id)
        return gone


def _put(table: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _sort_key(key: WorkloadEndpointKey) -> tuple[str, str, str]:
    return key.orchestrator, key.workload, key.endpoint
