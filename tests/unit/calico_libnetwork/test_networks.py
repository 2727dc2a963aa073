"""CreateNetwork and DeleteNetwork. Source: libnetwork specification 3.1, 3.2, 5.2, 12 rows 5, 6, 10 to 13."""

from __future__ import annotations

from typing import Any

import pytest

from calico_core.datastore.memory import MemoryDatastore
from calico_core.errors import Unavailable
from calico_core.interfaces.datastore import TransactionResult
from calico_core.model.keys import PoolKey, ProfileLabelsKey, ProfileRulesKey, ProfileTagsKey
from calico_core.model.pools import Pool
from calico_core.model.rules import Rule, RuleLists
from calico_libnetwork.network_record import NetworkKey, NetworkRecord

from .conftest import CALICO_IPV4, CALICO_IPV6, FOREIGN, NETWORK, OTHER_NETWORK, Setup, a_network, ids, net

FOREIGN_POOL = PoolKey(net("10.99.0.0/24"))
RULES = RuleLists(
    id=NETWORK, inbound_rules=(Rule(action="allow", src_tag=NETWORK),), outbound_rules=(Rule(action="allow"),)
)


def delete(setup: Setup, network: str = NETWORK) -> None:
    assert setup.ask("NetworkDriver.DeleteNetwork", {"NetworkID": network}) == {}


def test_calico_ipam(setup: Setup) -> None:
    before = setup.paths()
    assert setup.create_network(v6=[CALICO_IPV6]) == {}
    assert setup.record(ProfileRulesKey(NETWORK)) == RULES
    assert setup.record(ProfileTagsKey(NETWORK)) == (NETWORK,)
    assert setup.record(ProfileLabelsKey(NETWORK)) == {}
    assert setup.record(NetworkKey(NETWORK)) == NetworkRecord(
        network_id=NETWORK, profile=NETWORK, is_profile_ours=True, is_calico_ipam=True
    )
    after = setup.paths()
    assert len(after) == len(before) + 4
    assert setup.create_network(v6=[CALICO_IPV6]) == {}
    assert setup.paths() == after
    delete(setup)
    assert setup.paths() == before
    delete(setup)


def test_calico_ipam_with_a_subnet_and_options(setup: Setup) -> None:
    setup.create_network(
        v4=[{**CALICO_IPV4, "Pool": "10.65.0.0/24", "AuxAddresses": {"x": "10.65.0.9/24"}}],
        **{"org.projectcalico.mtu": "1400", "org.projectcalico.ifprefix": "test", "org.projectcalico.profile": "web"},
    )
    record = setup.record(NetworkKey(NETWORK))
    assert record.pools == (net("10.65.0.0/24"),)
    assert [str(address) for address in record.aux_addresses] == ["10.65.0.9"]
    assert (record.mtu_bytes, record.interface_prefix, record.profile) == (1400, "test", "web")
    assert not record.made_pools
    assert setup.record(ProfileTagsKey("web")) == ("web",)


@pytest.mark.parametrize(
    ("options", "ipip", "masquerade"),
    [
        ({}, None, False),
        ({"ipip": "true", "nat-outgoing": "true"}, "tunl0", True),
        ({"ipip": "", "nat-outgoing": "False"}, "tunl0", False),
        ({"ipip": "false"}, None, False),
    ],
)
def test_other_ipam_makes_a_pool(setup: Setup, options: dict[str, str], ipip: str | None, masquerade: bool) -> None:
    before = setup.paths()
    setup.create_network(v4=[FOREIGN], **options)
    pool = setup.record(FOREIGN_POOL)
    assert (pool.ipam, pool.ipip, pool.masquerade) == (False, ipip, masquerade)
    record = setup.record(NetworkKey(NETWORK))
    assert not record.is_calico_ipam
    assert record.made_pools == (net("10.99.0.0/24"),)
    delete(setup)
    assert setup.paths() == before


def test_pool_that_was_there_before_stays(setup: Setup) -> None:
    setup.records.put(FOREIGN_POOL, Pool(cidr=FOREIGN_POOL.cidr, ipam=False, masquerade=True))
    setup.create_network(v4=[FOREIGN])
    delete(setup)
    assert setup.record(FOREIGN_POOL).masquerade


def test_pool_with_endpoints_stays(setup: Setup) -> None:
    setup.create_network(v4=[FOREIGN])
    setup.create_endpoint("10.99.0.2/24")
    delete(setup)
    assert setup.record(FOREIGN_POOL) is not None
    assert setup.record(ProfileRulesKey(NETWORK)) is not None
    setup.ask("NetworkDriver.DeleteEndpoint", ids())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"v4": [CALICO_IPV4, CALICO_IPV4]}, "Calico supports one IPv4 subnet for each network, not 2."),
        ({"v6": [CALICO_IPV6, CALICO_IPV6]}, "Calico supports one IPv6 subnet for each network, not 2."),
        ({"v4": []}, "IPv4Data: is empty"),
        ({"v4": [{"Pool": "10.99.0.0/24"}]}, "Gateway: is missing"),
        ({"v4": [{"Gateway": "10.99.0.1/24"}]}, "Pool: is missing"),
        ({"v4": [{"Gateway": "x", "Pool": "10.99.0.0/24"}]}, "Gateway: 'x'"),
        ({"v4": [FOREIGN], "v6": [CALICO_IPV6]}, "both address families"),
        ({"v4": [{"Gateway": "10.65.0.1/25", "Pool": "10.65.0.0/25"}]}, "overlaps the Calico IP pool 10.65.0.0/24"),
        ({"v4": [{"Gateway": "10.65.0.1/24", "Pool": "10.65.0.0/24"}]}, "use --ipam-driver calico-ipam"),
        ({"v4": [{"Gateway": "10.64.0.1/12", "Pool": "10.64.0.0/12"}]}, "overlaps the Calico IP pool 10.65.0.0/24"),
        ({"foo": ""}, "Calico driver does not support the flag foo."),
        ({"foo": "", "bar": "1"}, "Calico driver does not support the flags bar, foo."),
        ({"ipip": "true"}, "Calico driver does not support the flag ipip."),
        ({"v4": [FOREIGN], "ipip": "perhaps"}, "ipip: 'perhaps' is not true or false"),
        ({"org.projectcalico.mtu": "70000"}, "org.projectcalico.mtu: '70000'"),
        ({"org.projectcalico.ifprefix": "a/b"}, "org.projectcalico.ifprefix: 'a/b'"),
        ({"org.projectcalico.profile": "a b"}, "org.projectcalico.profile: 'a b'"),
    ],
)
def test_refused(setup: Setup, changes: dict[str, Any], text: str) -> None:
    before = setup.paths()
    assert text in setup.refused("NetworkDriver.CreateNetwork", a_network(**changes), status=400)
    assert setup.paths() == before


def test_internal_network(setup: Setup) -> None:
    request = a_network()
    request["Options"]["com.docker.network.internal"] = False
    setup.ask("NetworkDriver.CreateNetwork", request)
    request["Options"]["com.docker.network.internal"] = True
    text = setup.refused("NetworkDriver.CreateNetwork", request)
    assert text == "Calico driver does not support the flag --internal."


def test_edited_rules_survive_a_repeated_create(setup: Setup) -> None:
    setup.create_network()
    setup.records.put(ProfileRulesKey(NETWORK), RuleLists())
    setup.create_network()
    assert setup.record(ProfileRulesKey(NETWORK)) == RuleLists()


def test_profile_of_somebody_else(setup: Setup) -> None:
    setup.records.put(ProfileRulesKey("web"), RuleLists())
    setup.create_network(**{"org.projectcalico.profile": "web"})
    assert setup.record(ProfileRulesKey("web")) == RuleLists()
    delete(setup)
    assert setup.record(ProfileRulesKey("web")) == RuleLists()


def test_profile_that_two_networks_share_goes_with_the_second(setup: Setup) -> None:
    for network in (NETWORK, OTHER_NETWORK):
        setup.create_network(network, **{"org.projectcalico.profile": "web"})
    delete(setup, NETWORK)
    assert setup.record(ProfileRulesKey("web")) is not None
    delete(setup, OTHER_NETWORK)
    assert setup.record(ProfileRulesKey("web")) is None
    assert not setup.paths("/calico/v1/policy/")


def test_deletion_of_the_unknown_touches_no_profile(setup: Setup) -> None:
    setup.records.put(ProfileRulesKey("web"), RuleLists())
    delete(setup, "web")
    assert setup.record(ProfileRulesKey("web")) == RuleLists()


def test_record_of_another_version_is_replaced(setup: Setup) -> None:
    setup.records.store.put(NetworkKey(NETWORK).path, b'{"NetworkID":"x","IPv4Data":[]}')
    setup.create_network()
    assert setup.record(NetworkKey(NETWORK)).network_id == NETWORK


class FailingOnce(MemoryDatastore):
    """A store whose next transaction is lost, or that of another writer comes first."""

    fault = ""

    def transact(self, *arguments: Any, **more: Any) -> TransactionResult:
        fault, self.fault = self.fault, ""
        if fault == "gone":
            raise Unavailable("etcd3://10.0.0.1:2379", "connection refused")
        if fault == "race":
            super().put(ProfileRulesKey(NETWORK).path, b"{}")
        return super().transact(*arguments, **more)


@pytest.mark.parametrize("fault", ["gone", "race"])
def test_failure_in_between(setup: Setup, fault: str) -> None:
    store = FailingOnce()
    setup.records._store = store
    store.fault = fault
    if fault == "gone":
        text = setup.refused("NetworkDriver.CreateNetwork", a_network(), status=500)
        assert text.startswith("The Calico datastore at etcd3://10.0.0.1:2379 does not answer")
        assert not setup.paths()
        return
    setup.create_network()
    assert setup.record(ProfileRulesKey(NETWORK)) == RuleLists()
    assert not setup.record(NetworkKey(NETWORK)).is_profile_ours
