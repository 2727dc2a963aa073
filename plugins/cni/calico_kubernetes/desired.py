"""The whole of what the datastore should hold for a snapshot of the API, and how it differs from what it holds. Pure.

Only records under our own naming are ever touched: profiles ``kns.…`` and ``ksa.…``, policies ``knp.default.…`` of the
tier ``default``, endpoints of the orchestrator ``k8s``. The latter are made and removed by the CNI plugin of their
node; here only their labels and profiles follow the pod.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from operator import itemgetter
from typing import NamedTuple

import msgspec

from calico_core.errors import CalicoError, InvalidRecord
from calico_core.interfaces.datastore import Compare, Delete, Operation, Put
from calico_core.log import get_logger
from calico_core.model import codec
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.key_paths import parse_key
from calico_core.model.keys import (
    Key,
    PolicyKey,
    ProfileLabelsKey,
    ProfileRulesKey,
    ProfileTagsKey,
    WorkloadEndpointKey,
)
from calico_core.model.kubernetes import (
    FIRST_INTERFACE,
    NAME_LABEL,
    NAMESPACE_LABEL_PREFIX,
    ORCHESTRATOR,
    SERVICE_ACCOUNT_LABEL_PREFIX,
    Metadata,
    Pod,
    endpoint_labels,
    endpoint_profiles,
    namespace_profile,
    own_profile,
    prefixed,
    service_account_profile,
    split_workload_id,
)
from calico_core.model.policies import DEFAULT_TIER, Policy
from calico_core.model.rules import Rule, RuleLists
from calico_kubernetes.conversion import PortNames, closed, closed_policy, policy_record
from calico_kubernetes.objects import Name, NetworkPolicy, Snapshot

POLICY_PREFIX = "knp.default."
LARGEST_RECORD_BYTES = 1_000_000
"""etcd takes requests of 1.5 MiB."""
_TURNS: tuple[type, ...] = (PolicyKey, ProfileLabelsKey, WorkloadEndpointKey, ProfileTagsKey, ProfileRulesKey)
"""What is written, in this order: a profile's rules open the pods that no policy selects, so policies, and the labels
that these select by, stand before. What is deleted follows, the other way round: a policy goes last."""
_POLICIES = _TURNS.index(PolicyKey)
_LAST = 2 * len(_TURNS) - 1
_OPEN = RuleLists(inbound_rules=(Rule(action="allow"),), outbound_rules=(Rule(action="allow"),))
"""A pod that no policy selects is not isolated."""
_NOTHING = RuleLists()

log = get_logger(__name__)


class Stored(NamedTuple):
    """A value in the datastore, and the revision to swap it against."""

    value: bytes
    mod_revision: int


class Change(NamedTuple):
    """One write, under the condition that nobody was faster."""

    key: str
    precondition: Compare
    operation: Operation

    @property
    def size_bytes(self) -> int:
        return len(self.key) + (len(self.operation.value) if isinstance(self.operation, Put) else 0)


def is_ours(key: Key | None) -> bool:
    """Whether the controller looks after the record of a key."""
    if isinstance(key, PolicyKey):
        return key.tier == DEFAULT_TIER and key.name.startswith(POLICY_PREFIX)
    if isinstance(key, ProfileRulesKey | ProfileLabelsKey | ProfileTagsKey):
        return key.profile.startswith(("kns.", "ksa."))
    return isinstance(key, WorkloadEndpointKey) and key.orchestrator == ORCHESTRATOR


def changes(
    snapshot: Snapshot, observed: Mapping[str, Stored], *, away: AbstractSet[str] = frozenset()
) -> Iterator[Change]:
    """What leads from ``observed`` (records of ours by path) to what is wanted. Applied, nothing is left to change.

    In an order in which a part of them opens nothing that the whole keeps closed. ``away``: kinds of the snapshot that
    may be older than the API. What rests on them is left, as it might open what the API has closed by now; but not
    policies that are missing, as pods which none selects are open.
    """
    wanted: set[str] = set()
    found: list[tuple[int, Change]] = []
    for key, record in desired_records(snapshot).items():
        path, value = key.path, _encoded(key, record)
        if value is None:
            continue
        wanted.add(path)
        stored = observed.get(path)
        if stored is None or stored.value != value:
            condition = Compare(path, 0 if stored is None else stored.mod_revision)
            found.append((_TURNS.index(type(key)), Change(path, condition, Put(path, value))))
    for path, stored in observed.items():
        held = parse_key(path)
        turn = _TURNS.index(type(held))
        if isinstance(held, WorkloadEndpointKey):
            found += [(turn, change) for change in _endpoint_change(held, stored, snapshot.pods)]
        elif path not in wanted:
            found.append((_LAST - turn, Change(path, Compare(path, stored.mod_revision), Delete(path))))
    for turn, change in sorted(found, key=itemgetter(0)):
        is_missing_policy = turn == _POLICIES and not change.precondition.mod_revision
        if is_missing_policy or not away or away.isdisjoint(_rests_on(parse_key(change.key))):
            yield change


def _rests_on(key: Key | None) -> tuple[str, ...]:
    """The kinds whose state a record follows: its own, and those whose records stand before it (see ``_TURNS``). A
    policy's rules for named ports follow pods, too, but hold for the endpoints alone that have these numbers."""
    if isinstance(key, PolicyKey):
        return ("policies",)
    if isinstance(key, WorkloadEndpointKey):
        return "pods", "policies"
    if isinstance(key, ProfileLabelsKey | ProfileRulesKey | ProfileTagsKey) and key.profile.startswith("ksa."):
        return "service_accounts", "policies"  # it opens nothing
    return ("namespaces", "pods", "policies") if isinstance(key, ProfileRulesKey) else ("namespaces", "policies")


def desired_records(snapshot: Snapshot) -> dict[Key, object]:
    """Profiles and policies."""
    records: dict[Key, object] = {}
    for namespace in snapshot.namespaces.values():
        name = namespace.metadata.name
        labels = _profile_labels(NAMESPACE_LABEL_PREFIX, namespace.metadata)
        records |= _profile(namespace_profile(name), _OPEN, labels)
    for account in snapshot.service_accounts.values():
        name = service_account_profile(account.metadata.namespace, account.metadata.name)
        labels = _profile_labels(SERVICE_ACCOUNT_LABEL_PREFIX, account.metadata)
        records |= _profile(name, _NOTHING, labels)
    names = PortNames(snapshot.pods.values())
    for policy in snapshot.policies.values():
        name = f"{POLICY_PREFIX}{policy.metadata.namespace}.{policy.metadata.name}"
        records[PolicyKey(DEFAULT_TIER, name)] = _policy(policy, names)
    return records


def _encoded(key: Key, record: object) -> bytes | None:
    """None: the datastore does not take it. Without the labels of a namespace, nothing selects it."""
    value = codec.encode(record)
    if len(value) <= LARGEST_RECORD_BYTES:
        return value
    reason = f"the record has {len(value)} bytes, more than {LARGEST_RECORD_BYTES}"
    if isinstance(record, Policy):
        log.error("policy.unconvertible", key=key.path, reason=reason, action="its pods are closed")
        return codec.encode(closed(record.selector))
    log.error("record.too_large", key=key.path, reason=reason, action="it is left out")
    return None


def _profile(name: str, rules: RuleLists, labels: dict[str, str]) -> dict[Key, object]:
    return {ProfileRulesKey(name): rules, ProfileLabelsKey(name): labels}


def _profile_labels(prefix: str, metadata: Metadata) -> dict[str, str]:
    """Sorted, so that equal labels are equal bytes."""
    given = sorted((metadata.labels or {}).items())
    return prefixed(prefix, [*given, (NAME_LABEL, metadata.name)])


def _policy(policy: NetworkPolicy, names: PortNames) -> Policy:
    try:
        return policy_record(policy, names)
    except CalicoError as error:
        log.error(
            "policy.unconvertible",
            namespace=policy.metadata.namespace,
            policy=policy.metadata.name,
            reason=str(error),
            action="its pods are closed",
        )
        return closed_policy(policy)


def _endpoint_change(key: WorkloadEndpointKey, stored: Stored, pods: Mapping[Name, Pod]) -> Iterator[Change]:
    pod = pods.get(split_workload_id(key.workload))
    if pod is None:
        return  # on its way out, or newer than the snapshot
    try:
        endpoint = codec.decode(key, stored.value)
    except InvalidRecord as error:
        log.warning("endpoint.invalid", key=key.path, reason=str(error))
        return
    if endpoint.pod_uid and not pod.is_known_as(endpoint.pod_uid):
        return  # that of another pod of the name: the snapshot is older, or the endpoint is on its way out
    wanted = msgspec.structs.replace(_with_profiles(endpoint, pod), labels=endpoint_labels(pod))
    if wanted == endpoint:
        return
    value = _encoded(key, wanted)
    if value is None:
        return
    yield Change(key.path, Compare(key.path, stored.mod_revision), Put(key.path, value))


def _with_profiles(endpoint: WorkloadEndpoint, pod: Pod) -> WorkloadEndpoint:
    """Those of its namespace and service account, and what other networks brought that share the interface. Where the
    pod has a profile of its own, by annotation, that alone says who may reach it: its namespace's would open it, and
    goes where it was put in by one who did not know."""
    brought = tuple(profile for attachment in endpoint.attachments for profile in attachment.profile_ids)
    own = endpoint.own_profiles or _own_by_name(endpoint, pod)
    if not own:
        profiles = tuple(dict.fromkeys((*endpoint_profiles(pod), *brought)))
        return msgspec.structs.replace(endpoint, profile_ids=profiles)
    opening = set(endpoint_profiles(pod)).difference(brought)
    profiles = tuple(each for each in dict.fromkeys((*endpoint.profile_ids, *own)) if each not in opening)
    return msgspec.structs.replace(endpoint, profile_ids=profiles, own_profiles=own)


def _own_by_name(endpoint: WorkloadEndpoint, pod: Pod) -> tuple[str, ...]:
    """The reference plugin does not note in the record which of its profiles is the pod's own."""
    name = own_profile(pod.metadata.namespace, pod.metadata.name, endpoint.ifname or FIRST_INTERFACE)
    return (name,) if name in endpoint.profile_ids else ()
