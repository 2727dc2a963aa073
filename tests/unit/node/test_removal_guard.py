"""What passes, what waits, and what lets it go. A guard on a clock and a kernel that the test turns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from calico_core.datastore.known_records import Update
from calico_core.datastore.syncer import SyncBatch, SyncStatus
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import (
    BgpHostAddressKey,
    GlobalConfigKey,
    HostConfigKey,
    HostIpKey,
    Key,
    PolicyKey,
    WorkloadEndpointKey,
)
from calico_core.model.policies import Policy
from calico_core.node.removal_guard import RemovalGuard

HERE = "rack-a"
CONFIRM_S = 300.0


class World:
    """A datastore's records, a kernel's interfaces, and what the guard has passed on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.interfaces: set[str] = set()
        self.stored: dict[Key, Any] = {}
        self.followed: dict[Key, Any] = {}
        self.guard = RemovalGuard(
            HERE, exists=self.interfaces.__contains__, count=self.count, confirm_after_s=CONFIRM_S
        )

    def count(self) -> Counter[type[Key]]:
        return Counter(type(key) for key in self.stored)

    def tell(self, changes: dict[Key, Any], *, is_snapshot: bool = False) -> None:
        for key, record in changes.items():
            if record is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = record
        updates = tuple(Update(key, key.path, record, 1) for key, record in changes.items())
        self.follow(self.guard.pass_on(SyncBatch(updates, SyncStatus.IN_SYNC, 1, is_snapshot=is_snapshot), self.now))

    def follow(self, updates: list[Update]) -> None:
        for update in updates:
            if update.record is None:
                self.followed.pop(update.key, None)
            else:
                self.followed[update.key] = update.record

    def look(self, after_s: float, *, is_in_sync: bool = True) -> None:
        self.now += after_s
        self.follow(self.guard.look(self.now, is_in_sync=is_in_sync))

    def end_interface(self, name: str) -> None:
        self.interfaces.discard(name)
        self.follow(self.guard.interface_gone(name))

    @property
    def reason(self) -> str:
        freeze = self.guard.freeze(self.now)
        return freeze.reason if freeze is not None else ""


def endpoint(number: int, host: str = HERE, **fields: Any) -> tuple[Key, WorkloadEndpoint]:
    values: dict[str, Any] = {
        "state": "active",
        "name": f"cali{number}",
        "ipv4_nets": (IPNetwork(f"10.65.0.{number}/32"),),
    }
    return WorkloadEndpointKey(host, "cni", f"pod{number}", "eth0"), WorkloadEndpoint(**{**values, **fields})


def policy(number: int) -> tuple[Key, Policy]:
    return PolicyKey("default", f"p{number}"), Policy(selector="all()")


@pytest.fixture
def world() -> World:
    """Twenty local endpoints with their interfaces, twenty remote ones, twenty policies."""
    made = World()
    made.interfaces.update(f"cali{number}" for number in range(20))
    made.tell(dict(endpoint(number) for number in range(20)), is_snapshot=True)
    made.tell(dict(endpoint(100 + number, "rack-b") for number in range(20)))
    made.tell(dict(policy(number) for number in range(20)))
    return made


def gone(*entries: tuple[Key, Any]) -> dict[Key, Any]:
    return {key: None for key, _ in entries}


def test_one_deletion_passes_at_once(world: World) -> None:
    world.tell(gone(endpoint(1), policy(1), endpoint(101, "rack-b")))
    assert world.followed == world.stored
    assert world.guard.next_look(world.now) is None


def test_an_emptied_store_takes_nothing_away(world: World) -> None:
    before = dict(world.followed)
    world.tell(dict.fromkeys(before), is_snapshot=True)
    assert world.followed == before
    assert world.reason == ""  # it may be over in a moment
    world.look(6)
    assert world.reason == "the datastore lost 20 of 20 local endpoints while it was away"
    freeze = world.guard.freeze(world.now)
    assert freeze is not None
    assert freeze.waiting == 60


def test_half_or_less_of_a_kind_is_no_catastrophe(world: World) -> None:
    world.tell(gone(*(policy(number) for number in range(10))), is_snapshot=True)
    assert world.followed == world.stored


def test_new_and_changed_records_pass_meanwhile(world: World) -> None:
    world.tell(dict.fromkeys(list(world.followed)), is_snapshot=True)
    world.tell({**dict([endpoint(50)]), GlobalConfigKey("LogLevel"): "debug"})
    assert endpoint(50)[0] in world.followed
    assert world.followed[GlobalConfigKey("LogLevel")] == "debug"


SETTINGS: dict[Key, str] = {
    GlobalConfigKey("InterfacePrefix"): "tap",
    GlobalConfigKey("DefaultEndpointToHostAction"): "DROP",
    HostConfigKey(HERE, "HealthPort"): "9100",
}


def test_a_setting_that_is_removed_is_gone_at_once(world: World) -> None:
    world.tell(SETTINGS)
    world.tell(dict.fromkeys(SETTINGS), is_snapshot=True)
    assert world.followed == world.stored


def test_settings_that_are_lost_with_the_rest_wait_with_it(world: World) -> None:
    """Without them the node would start anew, and forget what waits."""
    world.tell(SETTINGS)
    before = dict(world.followed)
    world.tell(dict.fromkeys(before), is_snapshot=True)
    assert world.followed == before
    world.tell({GlobalConfigKey("LogLevel"): "debug"})
    world.tell({GlobalConfigKey("LogLevel"): None})
    assert world.followed[GlobalConfigKey("LogLevel")] == "debug"
    world.follow(world.guard.confirm())
    assert world.followed == {}


def test_settings_alone_may_be_what_is_lost(world: World) -> None:
    world.tell({GlobalConfigKey(f"Name{number}"): "1" for number in range(5)})
    world.tell({GlobalConfigKey(f"Name{number}"): None for number in range(5)}, is_snapshot=True)
    world.look(6)
    assert world.reason == "the datastore lost 5 of 5 settings while it was away"


def test_what_hosts_withdraw_of_themselves_is_no_sign(world: World) -> None:
    """As their tunnel addresses when a pool is encapsulated no longer."""
    own = {HostConfigKey(f"rack-{number}", "IPv4VXLANTunnelAddr"): f"10.65.1.{number}" for number in range(9)}
    world.tell(dict(own))
    world.tell(dict.fromkeys(own), is_snapshot=True)
    assert world.followed == world.stored


def test_hosts_wait_with_what_is_lost_and_are_no_sign(world: World) -> None:
    """Who forgets them while pools stay takes what comes encapsulated for a stranger's."""
    hosts: dict[Key, str] = {HostIpKey(f"rack-{number}"): f"192.0.2.{number}" for number in range(9)}
    hosts |= {BgpHostAddressKey(f"rack-{number}", 6): f"2001:db8::{number}" for number in range(9)}
    world.tell(dict(hosts))
    world.tell(dict.fromkeys(hosts), is_snapshot=True)
    assert not hosts.keys() & world.followed.keys()
    world.tell(dict(hosts))
    before = dict(world.followed)
    world.tell(dict.fromkeys(before), is_snapshot=True)
    assert world.followed == before


def test_records_that_come_back_end_it(world: World) -> None:
    before = dict(world.followed)
    world.tell(dict.fromkeys(before), is_snapshot=True)
    world.tell({key: record for key, record in before.items() if key != policy(3)[0]})
    world.look(6)
    assert world.followed == world.stored
    assert policy(3)[0] not in world.followed  # a straggler is somebody's work
    assert world.reason == ""
    assert world.guard.next_look(world.now) is None


def test_records_that_come_back_one_by_one_leave_no_gap(world: World) -> None:
    """The last few are under way as the first were."""
    before = dict(world.followed)
    world.tell(dict.fromkeys(before), is_snapshot=True)
    for key, record in before.items():
        world.tell({key: record})
        assert world.followed == before
        world.look(1)
    assert world.guard.next_look(world.now) is None


def test_the_last_few_are_not_given_up_while_the_store_is_away(world: World) -> None:
    before = dict(world.followed)
    world.tell(dict.fromkeys(before), is_snapshot=True)
    world.tell({key: record for key, record in before.items() if key != policy(3)[0]})
    world.look(60, is_in_sync=False)
    assert world.followed == before
    assert (world.guard.next_look(world.now) or 0) > world.now
    world.look(6)
    assert world.followed == world.stored


def test_what_is_lost_again_meanwhile_waits_as_the_first_time(world: World) -> None:
    before = dict(world.followed)
    world.tell(dict.fromkeys(before), is_snapshot=True)
    world.tell({key: record for key, record in before.items() if key != policy(3)[0]})
    world.tell(dict.fromkeys(before), is_snapshot=True)
    world.look(60)
    assert world.followed == before


def test_an_interface_that_goes_too_confirms_its_record(world: World) -> None:
    for number in range(20):
        world.interfaces.discard(f"cali{number}")
    world.tell(gone(*(endpoint(number) for number in range(20))))
    assert world.followed == world.stored


def test_a_node_that_is_drained_record_by_record(world: World) -> None:
    for number in range(20):
        world.tell(gone(endpoint(number)))
    assert world.followed != world.stored
    for number in range(20):
        world.end_interface(f"cali{number}")
    assert world.followed == world.stored
    world.look(6)
    assert world.reason == ""


def test_remote_endpoints_may_end_together_while_the_store_is_there(world: World) -> None:
    world.tell(gone(*(endpoint(100 + number, "rack-b") for number in range(20))))
    assert world.followed == world.stored


def test_who_claims_an_address_or_an_interface_ends_the_wait_for_it(world: World) -> None:
    world.tell(dict.fromkeys(list(world.followed)), is_snapshot=True)
    world.tell(dict([endpoint(60, name="cali60", ipv4_nets=(IPNetwork("10.65.0.7/32"),))]))
    assert endpoint(7)[0] not in world.followed
    world.tell(dict([endpoint(61, name="cali8")]))
    assert endpoint(8)[0] not in world.followed
    assert endpoint(9)[0] in world.followed


def test_a_person_confirms(world: World) -> None:
    world.tell(dict.fromkeys(list(world.followed)), is_snapshot=True)
    world.follow(world.guard.confirm())
    assert world.followed == {}
    assert world.guard.next_look(world.now) is None


def test_a_store_that_says_the_same_for_long_is_believed(world: World) -> None:
    world.tell(dict.fromkeys(list(world.followed)), is_snapshot=True)
    world.look(CONFIRM_S - 1)
    assert world.followed
    world.look(2)
    assert world.followed == {}


def test_time_without_a_store_does_not_count(world: World) -> None:
    world.tell(dict.fromkeys(list(world.followed)), is_snapshot=True)
    world.look(CONFIRM_S - 1)
    world.look(CONFIRM_S, is_in_sync=False)
    world.look(CONFIRM_S - 1)
    assert world.followed
    world.look(2)
    assert world.followed == {}


changes = st.lists(
    st.tuples(
        st.sampled_from(["tell", "tell", "snapshot", "interface", "look"]),
        st.lists(st.tuples(st.integers(0, 29), st.booleans()), max_size=40),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(changes=changes)
def test_no_deletion_is_ever_forgotten(changes: list[tuple[str, list[tuple[int, bool]]]]) -> None:
    """Whatever came before: once it is confirmed, what is followed is what the store says, and all new records are
    there at any time."""
    world = World()
    for what, entries in changes:
        if what == "look":
            world.look(20)
            continue
        if what == "interface":
            for number, is_there in entries:
                if is_there:
                    world.interfaces.add(f"cali{number}")
                else:
                    world.end_interface(f"cali{number}")
            continue
        wanted = dict(entries)
        told: dict[Key, Any] = {}
        for number, is_there in wanted.items():
            key, record = endpoint(number) if number < 20 else policy(number)
            if is_there or key in world.stored:
                told[key] = record if is_there else None
        world.tell(told, is_snapshot=what == "snapshot")
        assert world.stored.items() <= world.followed.items()
    world.follow(world.guard.confirm())
    assert world.followed == world.stored


def test_policies_that_come_and_go_are_no_flood() -> None:
    """As a test run of somebody's, or a controller that rolls one policy after another."""
    world = World()
    for number in range(60):
        key, record = policy(number)
        world.tell({key: record})
        world.now += 0.4
        world.tell({key: None})
        assert key not in world.followed
    world.look(6)
    assert world.reason == ""


def test_policies_of_a_while_ago_that_go_at_once_are_a_flood() -> None:
    world = World()
    world.tell(dict(map(policy, range(40))))
    world.now += 31
    world.tell(dict.fromkeys(key for key, _ in map(policy, range(39))))
    world.look(6)
    assert len(world.followed) == 40
    assert "39 of 40 policies" in world.reason
