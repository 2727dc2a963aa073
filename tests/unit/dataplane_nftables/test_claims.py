"""Several workloads with one interface or one address."""

from __future__ import annotations

import msgspec
from netaddr import IPAddress, IPNetwork

from calico_core.dataplane.claims import Claims, Down
from calico_core.model.hoststate import HostNat, HostWorkload, PolicyList, RulesId
from calico_core.model.keys import WorkloadEndpointKey

ONE, TWO = IPNetwork("10.0.0.1/32"), IPNetwork("10.0.0.2/32")


def a_workload(name: str, interface: str, *nets: IPNetwork, is_active: bool = True) -> HostWorkload:
    key = WorkloadEndpointKey(host="h", orchestrator="o", workload=name, endpoint="e")
    return HostWorkload(key=key, interface=interface, is_active=is_active, nets=nets)


def test_address_goes_to_the_first_by_path_in_any_order() -> None:
    a, b = a_workload("a", "cali1", ONE), a_workload("b", "cali2", ONE, TWO)
    for order in ((a, b), (b, a)):
        claims = Claims()
        for workload in order:
            claims.put(workload)
        assert claims.networks("cali1") == (ONE,)
        assert claims.networks("cali2") == (TWO,)


def test_a_floating_address_for_an_address_of_another_leads_nowhere() -> None:
    external = IPAddress("192.0.2.9")
    nat = HostNat(internal=ONE.ip, external=external)
    a = a_workload("a", "cali1", ONE)
    b = msgspec.structs.replace(a_workload("b", "cali2", ONE, TWO), nats=(nat,))
    claims = Claims()
    claims.put(b)
    assert claims.leads(b, nat)
    assert claims.networks("cali2") == (ONE, TWO, IPNetwork(external))
    assert claims.put(a) == {"cali1", "cali2"}
    assert not claims.leads(b, nat)
    assert claims.networks("cali2") == (TWO,)


def test_the_other_is_touched_when_the_first_goes() -> None:
    a, b = a_workload("a", "cali1", ONE), a_workload("b", "cali2", ONE)
    claims = Claims()
    claims.put(b)
    assert claims.put(a) == {"cali1", "cali2"}
    assert claims.remove(a.key) == {"cali1", "cali2"}
    assert claims.networks("cali2") == (ONE,)
    assert claims.networks("cali1") == ()
    assert claims.remove(a.key) == set()


def test_inactive_claims_no_address_but_keeps_its_interface() -> None:
    claims = Claims()
    claims.put(a_workload("a", "cali1", ONE, is_active=False))
    claims.put(a_workload("b", "cali2", ONE))
    assert claims.networks("cali1") == ()
    assert claims.networks("cali2") == (ONE,)
    assert claims.interfaces() == {"cali1", "cali2"}


def test_interface_goes_to_the_first_by_path() -> None:
    a, b = a_workload("a", "cali1", ONE), a_workload("b", "cali1", TWO)
    claims = Claims()
    claims.put(b)
    claims.put(a)
    assert claims.owner("cali1") == a
    assert claims.networks("cali1") == (ONE,)
    assert claims.keys("cali1") == {a.key, b.key}
    claims.remove(a.key)
    assert claims.networks("cali1") == (TWO,)


def test_an_active_workload_has_an_interface_before_one_that_is_not() -> None:
    a, b = a_workload("a", "cali1", ONE, is_active=False), a_workload("b", "cali1", TWO)
    claims = Claims()
    claims.put(a)
    assert claims.owner("cali1") == a
    claims.put(b)
    assert claims.owner("cali1") == b
    assert claims.networks("cali1") == (TWO,)
    assert list(claims.losers()) == [], "it wants nothing"
    active = msgspec.structs.replace(a, is_active=True)
    assert claims.put(active) == {"cali1"}
    assert claims.owner("cali1") == active
    ((loser, reason),) = claims.losers()
    assert loser == b
    assert reason == f"another endpoint has the interface cali1: {a.key.path}"
    claims.remove(a.key)
    assert claims.owner("cali1") == b
    assert list(claims.losers()) == []


def test_moved_interface_leaves_the_old_one() -> None:
    claims = Claims()
    claims.put(a_workload("a", "cali1", ONE))
    assert claims.put(a_workload("a", "cali2", ONE)) == {"cali1", "cali2"}
    assert claims.networks("cali1") == ()
    assert claims.interfaces() == {"cali2"}


def test_a_workload_that_claims_the_same_touches_nobody_else_and_is_the_new_one() -> None:
    a, b = a_workload("a", "cali1", ONE), a_workload("b", "cali2", ONE)
    claims = Claims()
    claims.put(a)
    claims.put(b)
    other = HostWorkload(
        key=a.key, interface="cali1", is_active=True, nets=(ONE,), inbound=PolicyList(profiles=(RulesId("p"),))
    )
    assert claims.put(other) == {"cali1"}
    assert claims.owner("cali1") is other
    assert claims.put(a_workload("a", "cali1", TWO)) == {"cali1", "cali2"}
    assert claims.put(a_workload("a", "cali1", TWO, is_active=False)) == {"cali1"}
    assert claims.networks("cali1") == ()
    assert claims.networks("cali2") == (ONE,)


def test_an_address_of_two_goes_to_the_one_that_is_up() -> None:
    down = Down()
    claims = Claims(down)
    a, b, c = a_workload("a", "cali1", ONE), a_workload("b", "cali2", ONE), a_workload("c", "cali3", TWO)
    for each in (a, b, c):
        claims.put(each)
    assert claims.rivals() == {"cali1", "cali2"}
    for are_down, holder in (((), a), (("cali1",), b), (("cali2",), a), (("cali1", "cali2"), a), (("cali3",), a)):
        before = claims.generation
        assert down.tell(are_down) is (claims.generation != before)
        assert claims.claimant(ONE.ip) == holder, are_down
        assert claims.claimant(TWO.ip) == c
    claims.remove(b.key)
    assert claims.rivals() == set()
