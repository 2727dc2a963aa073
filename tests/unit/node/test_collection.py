"""What the collector may do, decided from values: no thread, no store, no kernel."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.datastore import Versioned
from calico_core.ipam.local_view import LocalView
from calico_core.ipam.store_view import Held
from calico_core.model.blocks import Block
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import WorkloadEndpointKey
from calico_core.node.collection import Baseline, Decisions, Observation, decide, thawed

BLOCK = Block(cidr=IPNetwork("10.0.0.0/28"), affinity="host:a", allocations=(None,) * 16)
GRACE_S = 900.0
NOW = 1_700_000_000.0


def held(number: int, **changes: Any) -> Held:
    attributes = {"node": "a", "orchestrator": "cni"}
    each = Held(IPAddress(f"10.0.0.{number}"), BLOCK, f"h{number}", attributes, 7)
    return each._replace(**changes)


def endpoint(number: int, **changes: Any) -> Versioned[WorkloadEndpoint]:
    record = WorkloadEndpoint(
        state="active",
        name=f"cali{number}",
        ipv4_nets=(IPNetwork(f"10.0.0.{number}/32"),),
        netns=f"/run/netns/c{number}",
    )
    key = WorkloadEndpointKey("a", "cni", f"c{number}", "e")
    return Versioned(key, msgspec.structs.replace(record, **changes), 5)


def seen(
    at_s: float = 0.0, *, endpoints: tuple[int, ...] = (), links: tuple[int, ...] = (), **fields: Any
) -> Observation:
    local = LocalView(
        host="a",
        interfaces=frozenset({"lo", *(f"cali{number}" for number in links)}),
        host_routes={IPAddress(f"10.0.0.{number}"): f"cali{number}" for number in links},
        lists={"cni": {}, "libnetwork": {}, "mesos": {}},
    )
    values: dict[str, Any] = {
        "at_s": at_s,
        "store": "s1",
        "revision": 100,
        "endpoints": tuple(endpoint(number) for number in endpoints),
        "held": (),
        "local": local,
    }
    return Observation(**{**values, **fields})


class Memory:
    """Looks one after the other, as the collector does."""

    def __init__(self) -> None:
        self.last = Decisions(baseline=Baseline())

    def look(self, observation: Observation) -> Decisions:
        self.last = decide(observation, self.last.baseline, self.last.suspects, grace_s=GRACE_S, now=NOW)
        return self.last


def released(decisions: Decisions) -> list[str]:
    return [leak.handle for leak in decisions.release]


# --- addresses ---------------------------------------------------------------------------------------


def test_a_leaked_address_goes_after_the_grace_and_not_before() -> None:
    memory = Memory()
    assert memory.look(seen(0, held=(held(1),))).release == ()
    assert memory.look(seen(GRACE_S - 1, held=(held(1),))).release == ()
    assert set(memory.last.suspects) == {"handle h1"}
    assert released(memory.look(seen(GRACE_S, held=(held(1),)))) == ["h1"]


def test_one_look_is_never_enough() -> None:
    decided = decide(seen(1e9, held=(held(1),)), Baseline(), {}, grace_s=0.0, now=NOW)
    assert decided.release == ()
    assert decided.suspects


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param({"endpoints": (1,), "links": (1,)}, id="an endpoint and the kernel"),
        pytest.param({"endpoints": (1,)}, id="an endpoint record alone"),
        pytest.param({"links": (1,)}, id="the kernel alone"),
        pytest.param({"held": (held(1, handle=None),)}, id="no handle"),
        pytest.param({"held": (held(1, attributes={}),)}, id="no attributes"),
        pytest.param({"held": (held(1, attributes={"node": "a"}),)}, id="nobody says that an endpoint is to come"),
        pytest.param({"held": (held(1, attributes={"node": "b", "orchestrator": "cni"}),)}, id="of another host"),
        pytest.param({"held": (held(1, handle="ipip-tunnel-addr-a"),)}, id="a tunnel"),
        pytest.param({"held": (held(1, attributes={"node": "a", "orchestrator": "x"}),)}, id="nobody to ask"),
    ],
)
def test_one_sign_of_life_keeps_it_for_ever(sign: dict[str, Any]) -> None:
    memory = Memory()
    for look in range(5):
        assert memory.look(seen(look * GRACE_S, **{"held": (held(1),), **sign})).release == ()
    assert "handle h1" not in memory.last.suspects


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"subnets": (IPNetwork("10.0.0.0/24"),)}, id="a bridge or the uplink"),
        pytest.param({"addresses": frozenset({IPAddress("10.0.0.1")})}, id="an interface"),
        pytest.param({"lists": {"cni": {IPAddress("10.0.0.1"): "aux"}}}, id="an integration's list"),
        pytest.param({"lists": {}}, id="the integration could not be asked"),
        pytest.param({"interfaces": frozenset({"cali1"})}, id="an interface that may be its own"),
    ],
)
def test_other_signs_on_the_host_keep_it_too(changes: dict[str, Any]) -> None:
    memory = Memory()
    local = msgspec.structs.replace(seen().local, **changes)
    for look in range(5):
        assert memory.look(seen(look * GRACE_S, held=(held(1),), local=local)).release == ()


def test_where_the_interface_is_known_it_decides_and_no_other() -> None:
    known = held(1, attributes={"node": "a", "orchestrator": "cni", "interface": "cali1"})
    memory = Memory()
    for look in range(3):
        assert memory.look(seen(look * GRACE_S, links=(1,), held=(known,))).release == ()
    memory = Memory()
    memory.look(seen(0, links=(2,), held=(known,)))
    assert released(memory.look(seen(GRACE_S, links=(2,), held=(known,)))) == ["h1"]


def test_a_handle_goes_whole_or_not_at_all() -> None:
    both = (held(1, handle="h"), held(2, handle="h"))
    memory = Memory()
    for look in range(4):
        assert memory.look(seen(look * GRACE_S, endpoints=(2,), held=both)).release == ()
    memory = Memory()
    memory.look(seen(0, held=both))
    (leak,) = memory.look(seen(GRACE_S, held=both)).release
    assert leak.addresses == (IPAddress("10.0.0.1"), IPAddress("10.0.0.2"))


def test_a_workload_that_returns_starts_the_clock_anew() -> None:
    memory = Memory()
    memory.look(seen(0, held=(held(1),)))
    memory.look(seen(GRACE_S / 2, endpoints=(1,), links=(1,), held=(held(1),)))
    assert memory.look(seen(GRACE_S, held=(held(1),))).release == ()
    assert memory.look(seen(2 * GRACE_S - 1, held=(held(1),))).release == ()
    assert released(memory.look(seen(2 * GRACE_S, held=(held(1),)))) == ["h1"]


def test_an_address_that_was_assigned_again_meanwhile_starts_the_clock_anew() -> None:
    memory = Memory()
    memory.look(seen(0, held=(held(1),)))
    assert memory.look(seen(GRACE_S, held=(held(1, sequence=8),))).release == ()


# --- endpoints ---------------------------------------------------------------------------------------


def test_an_endpoint_without_interface_is_reported_and_kept_while_its_sandbox_may_live() -> None:
    memory = Memory()
    memory.look(seen(0, endpoints=(1,)))
    assert memory.last.unwired == ()
    decided = memory.look(seen(GRACE_S, endpoints=(1,)))
    assert decided.unwired == (endpoint(1).key.path,)
    assert decided.remove == ()


def test_it_is_removed_when_its_sandbox_is_gone_too() -> None:
    memory = Memory()
    gone = frozenset({"/run/netns/c1"})
    memory.look(seen(0, endpoints=(1,), lost_sandboxes=gone))
    decided = memory.look(seen(GRACE_S, endpoints=(1,), lost_sandboxes=gone))
    assert [found.key for found in decided.remove] == [endpoint(1).key]


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(endpoint(1, netns=None), id="no sandbox recorded"),
        pytest.param(endpoint(1)._replace(key=WorkloadEndpointKey("a", "acme", "c1", "e")), id="a stranger's"),
    ],
)
def test_what_cannot_be_proven_dead_stays(found: Versioned[WorkloadEndpoint]) -> None:
    memory = Memory()
    for look in range(4):
        observation = seen(look * GRACE_S, endpoints=(), lost_sandboxes=frozenset({"/run/netns/c1"}))
        decided = memory.look(msgspec.structs.replace(observation, endpoints=(found,)))
        assert decided.remove == ()
    assert decided.unwired == (found.key.path,)


def test_a_lost_sandbox_with_a_living_interface_is_alive() -> None:
    memory = Memory()
    for look in range(3):
        observation = seen(look * GRACE_S, endpoints=(1,), links=(1,), lost_sandboxes=frozenset({"/run/netns/c1"}))
        assert memory.look(observation).remove == ()


# --- sudden losses -----------------------------------------------------------------------------------

FOUR = (1, 2, 3, 4)
ALL_HELD = tuple(held(number) for number in FOUR)


def test_more_than_half_of_the_records_gone_at_once_freezes_everything() -> None:
    memory = Memory()
    memory.look(seen(0, endpoints=FOUR, links=FOUR, held=ALL_HELD))
    for look in range(1, 6):
        decided = memory.look(seen(look * GRACE_S, endpoints=(4,), held=ALL_HELD))
        assert decided.baseline.freeze is not None
        assert (decided.release, decided.remove) == ((), ())
    assert decided.baseline.freeze is not None
    assert "3 of 4" in decided.baseline.freeze.reason
    assert decided.baseline.freeze.lost == tuple(endpoint(number).key.path for number in (1, 2, 3))


def test_the_freeze_survives_a_restart_and_ends_by_an_operators_word() -> None:
    memory = Memory()
    memory.look(seen(0, endpoints=FOUR, links=FOUR, held=ALL_HELD))
    memory.look(seen(1, endpoints=(4,), held=ALL_HELD))
    stored = msgspec.json.decode(msgspec.json.encode(memory.last.baseline), type=Baseline)
    memory = Memory()
    memory.last = Decisions(baseline=stored)
    memory.look(seen(0, endpoints=(4,), held=ALL_HELD))
    assert memory.look(seen(GRACE_S, endpoints=(4,), held=ALL_HELD)).release == ()
    memory.last = msgspec.structs.replace(memory.last, baseline=thawed(memory.last.baseline))
    assert released(memory.look(seen(2 * GRACE_S, endpoints=(4,), held=ALL_HELD))) == ["h1", "h2", "h3"]


def test_the_freeze_ends_when_the_records_are_back_or_their_owners_gave_all_up() -> None:
    for after in (
        seen(2, endpoints=FOUR, links=FOUR, held=ALL_HELD),
        seen(2, endpoints=(4,), links=(4,), held=ALL_HELD[3:]),
    ):
        memory = Memory()
        memory.look(seen(0, endpoints=FOUR, links=FOUR, held=ALL_HELD))
        assert memory.look(seen(1, endpoints=(4,), held=ALL_HELD)).baseline.freeze is not None
        assert memory.look(after).baseline.freeze is None


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(seen(1, endpoints=(3, 4), links=FOUR, held=ALL_HELD), id="half"),
        pytest.param(seen(1), id="all detached, with addresses and interfaces"),
        pytest.param(seen(1, endpoints=FOUR, held=ALL_HELD), id="a reboot: records stay"),
    ],
)
def test_what_is_no_sudden_loss(after: Observation) -> None:
    memory = Memory()
    memory.look(seen(0, endpoints=FOUR, links=FOUR, held=ALL_HELD))
    assert memory.look(after).baseline.freeze is None


def test_two_records_are_never_a_sudden_loss() -> None:
    memory = Memory()
    memory.look(seen(0, endpoints=(1, 2), links=(1, 2), held=ALL_HELD[:2]))
    assert memory.look(seen(1, held=ALL_HELD[:2])).baseline.freeze is None


def test_records_that_vanish_while_their_interfaces_stay_are_a_loss_even_without_addresses() -> None:
    memory = Memory()
    memory.look(seen(0, endpoints=FOUR, links=FOUR, held=ALL_HELD))
    assert memory.look(seen(1, links=FOUR)).baseline.freeze is not None


@pytest.mark.parametrize("changes", [{"revision": 50}, {"store": "s2"}])
def test_another_life_of_the_datastore_freezes(changes: dict[str, Any]) -> None:
    memory = Memory()
    memory.look(seen(0, endpoints=FOUR, links=FOUR, held=ALL_HELD))
    decided = memory.look(seen(1, endpoints=FOUR, links=FOUR, held=ALL_HELD, **changes))
    assert decided.baseline.freeze is not None
    for look in range(2, 5):
        after = seen(look * GRACE_S, endpoints=FOUR, links=FOUR, held=ALL_HELD, **changes)
        assert memory.look(after).baseline.freeze is not None, "it ends by an operator's word alone"


def test_a_round_is_bounded() -> None:
    many = tuple(held(1, address=IPAddress(0x0A000000 + number), handle=f"h{number}") for number in range(1000))
    memory = Memory()
    memory.look(seen(0, held=many))
    assert len(memory.look(seen(GRACE_S, held=many)).release) == 256
