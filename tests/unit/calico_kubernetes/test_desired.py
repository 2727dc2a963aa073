"""What is written for a snapshot of the API, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from calico_core.interfaces.datastore import Delete, Put
from calico_core.model import codec
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.model.kubernetes import CONFIG_HASH, Metadata, Namespace, Pod, ServiceAccount
from calico_kubernetes.desired import Change, Stored, changes
from calico_kubernetes.objects import NetworkPolicy, Snapshot

KINDS = frozenset(Snapshot._fields)
NAMES = [f"n{number}" for number in range(20)]
SNAPSHOT = Snapshot(
    namespaces={("", name): Namespace(metadata=Metadata(name=name)) for name in NAMES},
    service_accounts={
        (name, "default"): ServiceAccount(metadata=Metadata(name="default", namespace=name)) for name in NAMES
    },
    policies={(name, "deny"): NetworkPolicy(metadata=Metadata(name="deny", namespace=name)) for name in NAMES},
    pods={("n0", "web"): Pod(metadata=Metadata(name="web", namespace="n0", labels={"app": "web"}))},
)
ENDPOINT = WorkloadEndpointKey("h", "k8s", "n0.web", "e")
STALE = {ENDPOINT.path: Stored(codec.encode(WorkloadEndpoint(state="active", name="cali0")), 1)}


def what(change: Change) -> str:
    kind = next(each for each in ("tier", "labels", "rules", "endpoint") if f"/{each}" in change.key)
    return f"{'put' if isinstance(change.operation, Put) else 'delete'} {kind}"


def applied(found: list[Change], observed: dict[str, Stored]) -> dict[str, Stored]:
    after = dict(observed)
    for change in found:
        if isinstance(change.operation, Delete):
            del after[change.key]
        else:
            after[change.key] = Stored(change.operation.value, 2)
    return after


def test_what_closes_is_written_before_what_opens_and_deleted_after_it() -> None:
    made = list(changes(SNAPSHOT, STALE))
    assert list(dict.fromkeys(map(what, made))) == ["put tier", "put labels", "put endpoint", "put rules"]
    assert len(made) == 5 * len(NAMES) + 1

    there = applied(made, STALE)
    assert list(changes(SNAPSHOT, there)) == []
    gone = list(changes(Snapshot(), there))
    assert list(dict.fromkeys(map(what, gone))) == ["delete rules", "delete labels", "delete tier"]
    assert set(applied(gone, there)) == {ENDPOINT.path}

    # one in the place of another: there is no moment without any
    renamed = SNAPSHOT._replace(
        policies={("n0", "other"): NetworkPolicy(metadata=Metadata(name="other", namespace="n0"))}
    )
    turned = list(changes(renamed, there))
    assert list(map(what, turned)) == ["put tier"] + ["delete tier"] * len(NAMES)


def test_a_pod_s_labels_are_not_written_over_those_of_another_of_its_name() -> None:
    """The snapshot may be older than the endpoint, which its node made with the labels of the pod as it is now."""

    def written(pod_uid: str | None, **metadata: Any) -> list[str]:
        pod = Pod(metadata=Metadata(name="web", namespace="n0", labels={"trusted": "yes"}, **metadata))
        stored = {ENDPOINT.path: Stored(codec.encode(an_endpoint(pod_uid)), 1)}
        return list(map(what, changes(Snapshot(pods={("n0", "web"): pod}), stored)))

    def an_endpoint(pod_uid: str | None) -> WorkloadEndpoint:
        return WorkloadEndpoint(state="active", name="cali0", labels={"trusted": "no"}, pod_uid=pod_uid)

    assert written("new", uid="old") == []
    assert written("new", uid="new") == ["put endpoint"]
    assert written(None, uid="old") == ["put endpoint"]  # recorded by older software
    # of a file: the API has a pod of its own for it, and a new one when somebody deletes that
    assert written("file", uid="new", annotations={CONFIG_HASH: "file"}) == ["put endpoint"]


def test_what_may_be_older_than_the_api_opens_nothing() -> None:
    made = list(changes(SNAPSHOT, STALE, away=KINDS))
    assert list(map(what, made)) == ["put tier"] * len(NAMES)

    there = applied(list(changes(SNAPSHOT, STALE)), STALE)
    assert list(changes(Snapshot(), there, away=KINDS)) == []


@pytest.mark.parametrize(
    ("away", "written"),
    [
        ("service_accounts", {"tier", "labels kns", "endpoint", "rules kns"}),
        ("pods", {"tier", "labels kns", "labels ksa", "rules ksa"}),
        ("namespaces", {"tier", "labels ksa", "endpoint", "rules ksa"}),
        ("policies", set()),
    ],
)
def test_what_rests_on_other_kinds_than_those_away_goes_on(away: str, written: set[str]) -> None:
    def said(change: Change) -> str:
        kind, of = what(change).split()[1], change.key.partition("/profile/")[2][:3]
        return f"{kind} {of}".strip()

    there = applied(list(changes(SNAPSHOT, STALE)), STALE)
    added = {said(change) for change in changes(SNAPSHOT, STALE, away={away})}
    assert added == written | {"tier"}, "policies that are missing are written in any case"
    gone = {said(change) for change in changes(Snapshot(), there, away={away})}
    assert gone == written - {"endpoint"}
    other = {path: Stored(b"{}", 1) if "/tier/" in path else stored for path, stored in there.items()}
    changed = {said(change) for change in changes(SNAPSHOT, other, away={away})}
    assert changed == written & {"tier"}
