"""The policy controller between a Kubernetes API (a double over HTTP, the real client) and a datastore in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import InvalidSettings, Unavailable
from calico_core.interfaces.datastore import Datastore, Lease, Operation, Precondition, Put, TransactionResult
from calico_core.model.addresses import parse_mac
from calico_core.model.endpoints import EndpointAttachment, WorkloadEndpoint
from calico_core.model.keys import PolicyKey, ProfileLabelsKey, ProfileRulesKey, WorkloadEndpointKey
from calico_kubernetes import cache, controller, election
from calico_kubernetes.api import KINDS, Api
from calico_kubernetes.controller import PolicyController
from tests.doubles.kubernetes_api import KubernetesApi
from tests.waiting import eventually

pytest.importorskip("kubernetes")

DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress"]}
ENDPOINT = WorkloadEndpointKey("n1", "k8s", "shop.web-0", "0123")


class LimitedDatastore(MemoryDatastore):
    """With etcd's limit of a request, by default 1.5 MiB."""

    def transact(
        self, preconditions: Sequence[Precondition], operations: Sequence[Operation], otherwise: Sequence[str] = ()
    ) -> TransactionResult:
        if sum(len(each.value) for each in operations if isinstance(each, Put)) > 1.5 * 2**20:
            raise Unavailable("limited", "request is too large")
        return super().transact(preconditions, operations, otherwise)


class Cluster:
    """An API, a datastore and controllers of several nodes."""

    def __init__(self, folder: Path) -> None:
        self.api = KubernetesApi(folder)
        self.store: Datastore = LimitedDatastore()
        self.records = TypedRecords(self.store)
        self._stops: dict[str, tuple[threading.Event, threading.Thread]] = {}

    def start(self, host: str = "n1", kubeconfig: str = "") -> None:
        stop = threading.Event()
        runner = PolicyController(self.store, host, kubeconfig or self.api.kubeconfig())
        thread = threading.Thread(target=runner.run, args=(stop,))
        thread.start()
        self._stops[host] = (stop, thread)

    def stop(self, host: str) -> None:
        stop, thread = self._stops.pop(host)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()

    def close(self) -> None:
        for host in list(self._stops):
            self.stop(host)
        self.api.stop()

    @property
    def leader(self) -> str:
        entry = self.store.get(election.KEY)
        return entry.value.decode() if entry else ""

    def record(self, key: Any) -> Any:
        found = self.records.get(key)
        return None if found is None else found.record


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(controller, "CANDIDATE_S", 0.1)
    made = Cluster(tmp_path)
    yield made
    made.close()


def an_endpoint(**changes: Any) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        **{
            "state": "active",
            "name": "cali0123",
            "mac": parse_mac("02:00:5e:10:00:01"),
            "container_id": "c1",
            **changes,
        }
    )


def knp(name: str) -> PolicyKey:
    return PolicyKey("default", f"knp.default.{name}")


def test_namespaces_accounts_and_policies_become_records_and_go_again(cluster: Cluster) -> None:
    for name in ("shop", "lab", "field", "yard", "tower"):  # more than a page
        cluster.api.put("namespaces", name, labels={"team": name})
    cluster.api.put("service_accounts", "robot", "shop", labels={"role": "bot"})
    cluster.api.put("policies", "closed", "shop", spec=DENY_ALL)
    cluster.start()
    eventually(lambda: cluster.record(knp("shop.closed")))
    assert cluster.record(ProfileLabelsKey("kns.shop")) == {"pcns.team": "shop", "pcns.projectcalico.org/name": "shop"}
    assert len(cluster.record(ProfileRulesKey("kns.tower")).inbound_rules) == 1
    assert cluster.record(ProfileLabelsKey("ksa.shop.robot"))["pcsa.role"] == "bot"
    assert cluster.record(ProfileRulesKey("ksa.shop.robot")).inbound_rules == ()

    cluster.api.put("namespaces", "shop", labels={"team": "north"})
    cluster.api.delete("policies", "closed", "shop")
    cluster.api.delete("namespaces", "lab")
    eventually(lambda: cluster.record(ProfileLabelsKey("kns.shop"))["pcns.team"] == "north")
    eventually(
        lambda: cluster.record(knp("shop.closed")) is None and cluster.record(ProfileRulesKey("kns.lab")) is None
    )


def test_labels_of_an_endpoint_follow_its_pod(cluster: Cluster) -> None:
    cluster.records.put(ENDPOINT, an_endpoint(labels={"stale": "yes"}, profile_ids=("kns.shop",)))
    cluster.start()
    cluster.api.put("pods", "web-0", "shop", labels={"app": "web"}, spec={"serviceAccountName": "robot"})
    eventually(lambda: cluster.record(ENDPOINT).labels.get("app") == "web")
    endpoint = cluster.record(ENDPOINT)
    assert endpoint.labels == {
        "app": "web",
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "robot",
    }
    assert endpoint.profile_ids == ("kns.shop", "ksa.shop.robot")
    assert (endpoint.container_id, str(endpoint.mac)) == ("c1", "02:00:5e:10:00:01")

    cluster.api.delete("pods", "web-0", "shop")
    cluster.api.put("namespaces", "shop")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))
    assert cluster.record(ENDPOINT) == endpoint  # its node removes it


@pytest.mark.parametrize(
    "recorded",
    [
        {"profile_ids": ("shop_web-0",), "own_profiles": ("shop_web-0",)},
        # by the reference plugin: the profile goes with the endpoint all the same
        {"profile_ids": ("shop_web-0",)},
        # opened by a controller that did not know
        {"profile_ids": ("kns.shop", "ksa.shop.default"), "own_profiles": ("shop_web-0",)},
    ],
)
def test_a_pod_that_an_annotation_closes_is_closed(cluster: Cluster, recorded: dict[str, Any]) -> None:
    """The profile of its namespace allows everybody."""
    cluster.records.put(ENDPOINT, an_endpoint(**recorded))
    cluster.start()
    cluster.api.put("pods", "web-0", "shop", labels={"app": "web"})
    eventually(lambda: cluster.record(ENDPOINT).labels.get("app") == "web")
    endpoint = cluster.record(ENDPOINT)
    assert (endpoint.profile_ids, endpoint.own_profiles) == (("shop_web-0",), ("shop_web-0",))


def test_a_name_like_that_of_another_pod_s_own_profile_closes_nothing(cluster: Cluster) -> None:
    cluster.records.put(ENDPOINT, an_endpoint(profile_ids=("shop_web-1", "shop_web-0_eth1")))
    cluster.start()
    cluster.api.put("pods", "web-0", "shop")
    eventually(lambda: cluster.record(ENDPOINT).profile_ids == ("kns.shop", "ksa.shop.default"))
    assert cluster.record(ENDPOINT).own_profiles == ()


def test_what_another_network_of_a_shared_interface_brought_stays(cluster: Cluster) -> None:
    pods = ("kns.shop", "ksa.shop.default")
    attachments = (
        EndpointAttachment(network="net1", ifname="eth0", profile_ids=pods),
        EndpointAttachment(network="net2", ifname="eth1", profile_ids=("net2",)),
    )
    cluster.records.put(ENDPOINT, an_endpoint(profile_ids=(*pods, "net2"), attachments=attachments))
    cluster.start()
    cluster.api.put("pods", "web-0", "shop", labels={"app": "web"})
    eventually(lambda: cluster.record(ENDPOINT).labels.get("app") == "web")
    assert cluster.record(ENDPOINT).profile_ids == (*pods, "net2")


def test_a_record_that_somebody_changed_or_added_is_put_right(cluster: Cluster) -> None:
    cluster.api.put("policies", "closed", "shop", spec=DENY_ALL)
    cluster.start()
    eventually(lambda: cluster.record(knp("shop.closed")))
    wanted = cluster.record(knp("shop.closed"))
    cluster.records.delete(knp("shop.closed"))
    eventually(lambda: cluster.record(knp("shop.closed")) == wanted)
    cluster.records.put(knp("shop.invented"), wanted)
    eventually(lambda: cluster.record(knp("shop.invented")) is None)
    cluster.store.put(knp("shop.closed").path, b"rubbish")
    eventually(lambda: cluster.store.get(knp("shop.closed").path).value != b"rubbish")  # type: ignore[union-attr]


def test_records_that_are_not_ours_are_never_touched(cluster: Cluster) -> None:
    others = [
        PolicyKey("default", "mine"),
        PolicyKey("other", "knp.default.a.b"),
        WorkloadEndpointKey("n1", "cni", "c", "e"),
    ]
    cluster.store.put(others[0].path, b'{"selector": "all()"}')
    cluster.store.put(others[1].path, b'{"selector": "all()"}')
    cluster.records.put(others[2], an_endpoint())
    cluster.store.put("/calico/v1/policy/profile/net1/rules", b"{}")
    before = cluster.store.list("/calico/v1/").entries
    cluster.api.put("namespaces", "shop")
    cluster.start()
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))
    after = {entry.key: entry for entry in cluster.store.list("/calico/v1/").entries}
    assert all(after[entry.key] == entry for entry in before)


def test_large_policies_keep_nothing_from_being_written(cluster: Cluster) -> None:
    """Several that do not fit into one transaction together, and one that fits into none."""
    cluster.api.page = 50
    cluster.api.put("namespaces", "shop")
    for number in range(8):
        peers = [{"podSelector": {"matchLabels": {"app": f"{number}-{each}"}}} for each in range(1500)]
        cluster.api.put("policies", f"large-{number}", "shop", spec={"podSelector": {}, "ingress": [{"from": peers}]})
    peers = [{"podSelector": {"matchLabels": {"app": str(each)}}} for each in range(1500)]
    ports = [{"port": 80, "protocol": protocol} for protocol in ("TCP", "UDP", "SCTP")] + [{"port": "http"}]
    too_large = {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": peers, "ports": ports}] * 2}
    too_large["egress"] = [{"to": peers, "ports": ports}]
    cluster.api.put("policies", "too-large", "shop", spec=too_large)
    cluster.api.put("policies", "closed", "shop", spec=DENY_ALL)
    cluster.start()
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")) and cluster.record(knp("shop.closed")))
    eventually(lambda: all(cluster.record(knp(f"shop.large-{number}")) for number in range(8)))
    assert len(cluster.record(knp("shop.large-7")).inbound_rules) == 1500
    eventually(lambda: cluster.record(knp("shop.too-large")))
    closed = cluster.record(knp("shop.too-large"))
    assert (closed.inbound_rules, closed.outbound_rules, closed.types) == ((), (), ("ingress", "egress"))
    assert closed.selector.endswith('app == "db"')


def test_a_policy_that_is_not_understood_keeps_no_other_from_being_read(cluster: Cluster) -> None:
    cluster.api.put("policies", "odd", "shop", spec={"podSelector": {"matchLabels": {"app": "db"}}, "ingress": "all"})
    cluster.api.put("policies", "closed", "shop", spec=DENY_ALL)
    cluster.start()
    eventually(lambda: cluster.record(knp("shop.closed")) and cluster.record(knp("shop.odd")))
    assert cluster.record(knp("shop.odd")).selector.endswith('app == "db"')
    cluster.api.put("policies", "odd", "shop", spec=DENY_ALL)
    eventually(lambda: cluster.record(knp("shop.odd")).types == ("ingress",))


def test_a_fault_of_its_own_does_not_end_it(cluster: Cluster) -> None:
    class Faulty(LimitedDatastore):
        unforeseen = 1

        def lease(self, ttl_s: float) -> Lease:
            if self.unforeseen:
                self.unforeseen -= 1
                raise RuntimeError("no such thing was foreseen")
            return super().lease(ttl_s)

    cluster.store = Faulty()
    cluster.records = TypedRecords(cluster.store)
    cluster.api.put("namespaces", "shop")
    cluster.start()
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))


def test_while_the_api_is_away_everything_stays_and_then_follows(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.api.put("namespaces", "shop")
    cluster.api.put("policies", "closed", "shop", spec=DENY_ALL)
    cluster.start()
    eventually(lambda: cluster.record(knp("shop.closed")))
    with caplog.at_level("WARNING", logger="calico_kubernetes"):
        cluster.api.stop()
        eventually(lambda: sum(each.getMessage() == "kubernetes.away" for each in caplog.records) == len(KINDS))
    cluster.records.delete(ProfileRulesKey("kns.shop"))
    cluster.records.delete(knp("shop.closed"))
    eventually(lambda: cluster.record(knp("shop.closed")))  # repaired without the API
    assert cluster.record(ProfileRulesKey("kns.shop")) is None  # what opens is not: nobody knows what was closed since
    cluster.api.start()
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))  # though nothing has happened there
    cluster.api.put("namespaces", "lab")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.lab")))
    cluster.api.forget_history()
    cluster.api.delete("policies", "closed", "shop")
    eventually(lambda: cluster.record(knp("shop.closed")) is None)


def test_a_new_token_is_picked_up(cluster: Cluster) -> None:
    cluster.api.token = "another"
    cluster.api.put("namespaces", "shop")
    cluster.start()
    eventually(lambda: len(cluster.api.requests) > 1)
    assert cluster.record(ProfileRulesKey("kns.shop")) is None
    cluster.api.kubeconfig(token="another")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))


def test_one_node_writes_and_another_takes_over(cluster: Cluster) -> None:
    cluster.start("n1")
    eventually(lambda: cluster.leader == "n1")
    cluster.start("n2")
    cluster.api.put("namespaces", "shop")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))
    assert cluster.leader == "n1"
    cluster.stop("n1")
    eventually(lambda: cluster.leader == "n2")
    cluster.api.put("namespaces", "lab")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.lab")))


def test_a_node_that_lost_its_lease_does_not_write(cluster: Cluster) -> None:
    """Deposed without knowing it: the key was won by another."""
    cluster.start("n1")
    cluster.api.put("namespaces", "first")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.first")))
    cluster.store.put(election.KEY, b"n2")
    revision = cluster.store.get(election.KEY).mod_revision  # type: ignore[union-attr]
    cluster.api.put("namespaces", "shop")
    # it notices with the refusal of its first write and stops working
    eventually(lambda: all(thread.name != "kube-mirror" for thread in threading.enumerate()))
    assert cluster.record(ProfileRulesKey("kns.shop")) is None
    assert cluster.store.get(election.KEY).mod_revision == revision  # type: ignore[union-attr]

    cluster.store.delete(election.KEY)
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))


def test_a_node_that_does_not_reach_the_api_does_not_lead(cluster: Cluster) -> None:
    cluster.start("astray", "/nowhere/kubeconfig")
    cluster.start("refused", cluster.api.kubeconfig("no-such-token", name="refused"))
    eventually(lambda: len(cluster.api.requests) > 1)
    assert cluster.leader == ""
    cluster.start("n1")
    cluster.api.put("namespaces", "shop")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.shop")))
    assert cluster.leader == "n1"


@pytest.mark.parametrize("text", ["token: [hunter2", "token: hunter2\x01", "- a", "text", ""])
def test_a_kubeconfig_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(InvalidSettings) as refusal:
        Api(str(path))
    assert (refusal.value.name, refusal.value.origin) == ("kubeconfig", str(path))
    assert "hunter2" not in str(refusal.value)


def test_a_leader_that_loses_the_api_makes_room(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "AWAY_S", 0.5)
    cluster.start("n1", cluster.api.kubeconfig(name="first"))
    eventually(lambda: cluster.leader == "n1")
    cluster.start("n2")
    cluster.api.kubeconfig("no-such-token", name="first")
    cluster.api.forget_history()
    cluster.api.put("namespaces", "lab")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.lab")))
    eventually(lambda: cluster.leader == "n2")


def test_an_api_that_is_away_for_all_finds_a_leader_when_it_is_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "AWAY_S", 0.5)
    cluster.api.put("policies", "closed", "shop", spec=DENY_ALL)
    for host in ("n1", "n2"):
        cluster.start(host)
    eventually(lambda: cluster.record(knp("shop.closed")))
    cluster.api.stop()
    eventually(lambda: cluster.leader == "")
    assert cluster.record(knp("shop.closed")) is not None
    cluster.api.delete("policies", "closed", "shop")
    cluster.api.start()
    eventually(lambda: cluster.record(knp("shop.closed")) is None)


def test_candidates_do_not_ask_all_at_once(cluster: Cluster) -> None:
    class Counted(threading.Event):
        """Set after so many waits, which take no time."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            if len(waits) == 20:
                self.set()
            return self.is_set()

    waits: list[float | None] = []
    cluster.store.create(election.KEY, b"n2")
    PolicyController(cluster.store, "n1", cluster.api.kubeconfig()).run(Counted())
    assert len(set(waits)) > 10
    assert all(each is not None and 0.5 <= each / controller.CANDIDATE_S <= 1.5 for each in waits)


def test_nothing_is_watched_any_more_by_who_does_not_lead(cluster: Cluster) -> None:
    before = set(threading.enumerate())  # those of earlier tests may not have ended yet
    cluster.start()
    eventually(lambda: sum("watch" in path for path in cluster.api.requests) == 4)
    assert any(each.name.startswith("kube-") for each in set(threading.enumerate()) - before)
    cluster.stop("n1")
    eventually(
        lambda: not any(each.name.startswith("kube-") for each in set(threading.enumerate()) - before), within_s=5
    )


def test_an_api_that_was_restored_is_listed_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "RELIST_S", 0.0)
    for name in ("shop", "lab", "field"):
        cluster.api.put("namespaces", name)
    cluster.start()
    eventually(lambda: cluster.record(ProfileRulesKey("kns.field")))
    cluster.api.restore_empty()
    cluster.api.put("namespaces", "shop")
    eventually(lambda: cluster.record(ProfileRulesKey("kns.field")) is None)
    assert cluster.record(ProfileRulesKey("kns.shop")) is not None


def test_a_kind_that_is_refused_keeps_no_policy_from_following(cluster: Cluster) -> None:
    cluster.api.put("policies", "closed", "shop", spec=DENY_ALL)
    cluster.start()
    eventually(lambda: cluster.record(knp("shop.closed")))
    cluster.api.refuse_kinds["service_accounts"] = 403
    before = len(cluster.api.requests)
    cluster.api.forget_history()
    eventually(lambda: any("serviceaccounts" in path for path in cluster.api.requests[before:]))
    cluster.api.delete("policies", "closed", "shop")
    eventually(lambda: cluster.record(knp("shop.closed")) is None, within_s=20)
